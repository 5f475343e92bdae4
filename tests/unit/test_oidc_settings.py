"""Which settings of the OIDC provider are refused when a process starts, and does the refusal name them and no secret?"""

from typing import Any

import pytest
from pydantic import ValidationError

from app.operators.client import client_of
from app.settings import Settings
from tests.support.cli import runner

SET = {"oidc_issuer": "https://id.test/realms/ops", "oidc_client_id": "penstock", "oidc_client_secret": "s3cret-word"}


@pytest.mark.parametrize(
    "issuer",
    [
        "https://id.test",
        "https://id.test:8443/",
        "https://[2001:db8::1]/x",
        "http://localhost:8080/realms/ops",
        "http://127.0.0.1",
        "http://[::1]:1/x",
    ],
)
def test_an_issuer_is_https_or_on_this_machine(issuer: str) -> None:
    client = client_of(Settings(_env_file=None, **SET | {"oidc_issuer": issuer}))
    assert client is not None
    assert client.issuer == issuer


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"oidc_issuer": "http://id.test"}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": "http://localhost.evil.test"}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": "http://127.0.0.1@evil.test"}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": "https://user@id.test"}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": "https://id.test/?a=b"}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": "id.test"}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": ""}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_issuer": None}, "PENSTOCK_OIDC_ISSUER"),
        ({"oidc_client_id": None}, "PENSTOCK_OIDC_CLIENT_ID"),
        ({"oidc_client_secret": None}, "PENSTOCK_OIDC_CLIENT_SECRET"),
        ({"oidc_scopes": "profile"}, "PENSTOCK_OIDC_SCOPES"),
        ({"oidc_roles": {}}, "PENSTOCK_OIDC_ROLES"),
        ({"oidc_roles": {"": "owner"}}, "PENSTOCK_OIDC_ROLES"),
        ({"oidc_roles": {"a": "admin"}}, "oidc_roles"),
        ({"oidc_timeout_s": 0}, "oidc_timeout_s"),
        ({"oidc_issuer": None, "oidc_client_id": None, "oidc_client_secret": None, "dashboard_passwords": False}, "PENSTOCK_DASHBOARD_PASSWORDS"),
    ],
)  # fmt: skip
def test_a_setting_that_can_not_be_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(_env_file=None, **SET | change)
    assert named in str(refused.value)
    assert "s3cret-word" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PENSTOCK_OIDC_CLIENT_SECRET", "s3cret-word" * 100), ("PENSTOCK_OIDC_ISSUER", "http://id.test")],
)
def test_the_command_line_names_the_setting_and_shows_no_secret(
    capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    environment = {f"PENSTOCK_{each.upper()}": text for each, text in SET.items()} | {name: value}
    result = runner(capsys)("migrate", **environment)
    assert result.status == 1
    assert result.err.startswith(f"penstock: {name}: ")
    assert "s3cret-word" not in result.err


def test_roles_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_OIDC_ROLES", '{"penstock-admins": "owner"}')
    assert Settings(_env_file=None).oidc_roles == {"penstock-admins": "owner"}


def test_where_nothing_is_set_there_is_no_provider() -> None:
    assert client_of(Settings(_env_file=None)) is None
