"""What can go wrong with an engine as a whole? (What goes wrong with one request is a `RequestFailed`.)"""

OUTAGE_STATUS = 4  # the exit status of an engine's process that gave up its upstream


class EngineError(Exception):
    """The engine can't be used. `code` is public and documented; `retryable` says whether trying again may help."""

    code = "engine_error"
    retryable = False


class EngineConfigError(EngineError):
    """The settings don't fit together, or don't fit the model or the machine."""

    code = "engine_config_invalid"


class ModelNotLoadable(EngineError):
    """There is no such model, its files are broken, or it doesn't fit."""

    code = "model_not_loadable"


class ModelUnsupported(EngineError):
    """The model loads, but doesn't do its attention through transformers' AttentionInterface."""

    code = "model_unsupported"


class UpstreamUnavailable(EngineError):
    """The server that the engine hands its requests to doesn't answer, or refuses us; no request is to blame."""

    code = "upstream_unavailable"
    retryable = True


class EngineStartFailed(EngineError):
    """The engine's process ended, or said no, before it was ready. `log_tail` is the end of its log."""

    code = "engine_start_failed"

    def __init__(self, message: str, log_tail: str = "", cause: str = code) -> None:
        super().__init__(message)
        self.log_tail = log_tail
        self.cause = cause  # the code of the error in the child, such as "model_unsupported"


class EngineDied(EngineError):
    """The engine's process ended without being asked to. Its requests are lost; another process may resume them."""

    code = "engine_died"
    retryable = True

    def __init__(self, returncode: int | None, log_tail: str) -> None:
        super().__init__(f"the engine's process died with exit status {returncode}; the end of its log:\n{log_tail}")
        self.returncode = returncode
        self.log_tail = log_tail

    @property
    def is_outage(self) -> bool:
        """Whether it ended because what it depends on is away: its requests had no part in that."""
        return self.returncode == OUTAGE_STATUS
