"""Everything that can go wrong on the gateway's side of a request, and the one table from error to HTTP.

GatewayError
├── CallerError                 the request is at fault
│   ├── BadRequest              400: malformed, wrong type, not allowed; names the field
│   ├── NotAuthenticated        401
│   ├── NotAllowed              403
│   ├── UnknownModel            404
│   ├── UnknownPath             404
│   ├── MethodNotAllowed        405
│   ├── BodyTimeout             408
│   ├── Conflict                409
│   ├── BodyTooLarge            413
│   └── UnsupportedEncoding     415
├── UpstreamError               the provider is at fault
│   ├── UpstreamUnreachable     502
│   ├── UpstreamBroke           502: the reply ended in the middle
│   └── UpstreamTimeout         504
├── Overloaded                  503: a limit of ours; carries retry_after_s
├── MemoryUnavailable           503: only where the caller asked to fail without memory
└── SettingsError               never over HTTP: the process does not start
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BadRequest",
    "BodyTimeout",
    "BodyTooLarge",
    "CallerError",
    "Conflict",
    "GatewayError",
    "MemoryUnavailable",
    "MethodNotAllowed",
    "NotAllowed",
    "NotAuthenticated",
    "Overloaded",
    "SettingsError",
    "UnknownModel",
    "UnknownPath",
    "UnsupportedEncoding",
    "UpstreamBroke",
    "UpstreamError",
    "UpstreamTimeout",
    "UpstreamUnreachable",
]


class GatewayError(Exception):
    """message: what was wrong, what was seen, what to do. param: the request field it is about, if any."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()  # what else the reply shall say, where it is a status

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """OpenAI's error object (platform.openai.com/docs/guides/error-codes; field set as its SDKs read it)."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class CallerError(GatewayError):
    status = 400
    type = "invalid_request_error"


class BadRequest(CallerError):
    pass


class NotAuthenticated(CallerError):
    status = 401
    code = "invalid_api_key"


class NotAllowed(CallerError):
    status = 403
    type = "permission_error"


class UnknownModel(CallerError):
    status = 404
    code = "model_not_found"


class UnknownPath(CallerError):
    status = 404
    code = "unknown_url"


class MethodNotAllowed(CallerError):
    status = 405
    code = "method_not_allowed"


class BodyTimeout(CallerError):
    status = 408
    code = "request_timeout"


class Conflict(CallerError):
    status = 409
    code = "conflict"


class BodyTooLarge(CallerError):
    status = 413
    code = "request_too_large"


class UnsupportedEncoding(CallerError):
    status = 415
    code = "unsupported_encoding"


class UpstreamError(GatewayError):
    status = 502
    type = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"


class UpstreamBroke(UpstreamError):
    code = "upstream_broke"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class Overloaded(GatewayError):
    status = 503
    type = "overloaded_error"
    code = "overloaded"


class MemoryUnavailable(GatewayError):
    status = 503
    code = "memory_unavailable"


class SettingsError(GatewayError):
    """A setting is missing, misspelt or contradicts another one."""
