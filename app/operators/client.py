"""Which OIDC provider, what we are there, and what may go wrong with it: what is known of it without asking it."""

from dataclasses import dataclass

from app.errors import PenstockError
from app.settings import Settings


class ProviderFailed(PenstockError):
    """The OIDC provider didn't answer in time, or not as such providers do. `why` is for the log."""

    code = "identity_provider_failed"
    status = 503
    retryable = True

    def __init__(self, why: str) -> None:
        super().__init__("the provider of this log-in doesn't answer as it should; the API's log says why: try again")
        self.why = why


class CodeRefused(PenstockError):
    """The provider gives nothing for this code: it was used already, is too old, or was another's."""

    code = "login_code_refused"
    status = 403
    retryable = False


class InvalidToken(PenstockError):
    """The provider's token isn't one for us, for this log-in and for now. `why` is for the log."""

    code = "id_token_refused"
    status = 403
    retryable = False

    def __init__(self, why: str) -> None:
        super().__init__("what the provider sent doesn't prove who you are; the API's log says why")
        self.why = why


@dataclass(frozen=True, slots=True)
class Client:
    """Which provider, and what we are there."""

    issuer: str
    client_id: str
    client_secret: str
    scopes: str
    timeout_s: float


def client_of(settings: Settings) -> Client | None:
    """The provider by which operators log in, if one is configured."""
    if settings.oidc_issuer is None or settings.oidc_client_id is None or settings.oidc_client_secret is None:
        return None
    return Client(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret.get_secret_value(),
        scopes=" ".join(settings.oidc_scopes.split()),
        timeout_s=settings.oidc_timeout_s,
    )
