"""The errors of a request on the gateway's side, each with its HTTP status.

An error bears facts. The dialect of the route on which it is answered gives it its form (`ErrorForm`).

GatewayError
├── CallerError                 the request is at fault
│   ├── BadRequest              400: malformed, wrong type, not allowed; names the field
│   │   ├── ThreadUnsupported   its client then goes on without a message thread
│   │   ├── HistoryForgotten    after it was read for the request
│   │   └── ContextExceeded     too long for the window of the model, and nothing may be left out
│   ├── NotAuthenticated        401
│   ├── NotAllowed              403
│   ├── UnknownModel            404
│   ├── UnknownPath             404
│   ├── UnknownId               404
│   │   ├── MemoryNotFound      also where the caller may not see the memory
│   │   └── ThreadNotFound      its client then sends the whole conversation
│   ├── MethodNotAllowed        405
│   ├── BodyTimeout             408
│   ├── Conflict                409
│   ├── BodyTooLarge            413
│   ├── UnsupportedEncoding     415
│   ├── UnsupportedFile         415
│   └── LimitReached            429: a limit of a key, user or project is used up
├── UpstreamError               the provider is at fault
│   ├── UpstreamUnreachable     502
│   │   └── DescriptorsUsedUp   503: a limit of the gateway, and not the endpoint's fault
│   ├── UpstreamBroke           502: the reply ended in the middle
│   │   ├── UpstreamTooLarge    the reply is larger than the gateway takes; not the endpoint's fault
│   │   └── UpstreamRefused     the stream has an error about the request or its caller; not the endpoint's fault
│   └── UpstreamTimeout         504
├── Overloaded                  503: a limit of the gateway; carries retry_after_s
├── TooManySends                429: too many wait for one conversation already
├── MemoryUnavailable           503: the request may not be answered without memory
├── DatabaseInUse               never over HTTP: another process owns the database file
└── SettingsError               never over HTTP: the process does not start
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, Protocol, Self

# The characters of an id that an error quotes. A client's may be as long as a URL; the gateway's own are shorter.
QUOTED_ID_CHARS: Final = 120


def drop_tracebacks(error: BaseException) -> None:
    """Drops the tracebacks of an error that has been answered, and of its causes.

    A traceback holds the locals of its frames, among them the request and the reply so far. One of these frames
    usually holds the error, so all of them would stay until a search for cycles, which may be long.
    """
    cause: BaseException | None = error
    # The error of an upload that broke is raised from the upstream's error, which it has caused.
    seen_ids: set[int] = set()
    while cause is not None and id(cause) not in seen_ids:
        seen_ids.add(id(cause))
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


class GatewayError(Exception):
    """The facts of an error.

    message: the text for the caller: the fault, the value that was seen, and the remedy.
    param: the field of the request that is at fault; None: no single field.
    retry_after_s: the seconds after which the same request may succeed; None: no such time is known.
    """

    # The HTTP status of the reply, as long as its head has not left.
    status: int = 500
    # The party at fault, in OpenAI's words.
    kind: str = "server_error"
    # The error by name, if it has one.
    code: str | None = None
    # The id of the request that failed; it is set where the error is answered.
    request_id = ""
    # Further headers of the reply.
    headers: tuple[tuple[str, str], ...] = ()

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


class ErrorForm(Protocol):
    """The form that errors have in one dialect."""

    # The header in which its clients look for a request's id, in lower case; None: `x-request-id`, as everywhere.
    id_header: ClassVar[bytes | None]

    def render_body(self, error: GatewayError) -> bytes:
        """Returns the JSON body of a reply with the error's status."""

    def render_event(self, error: GatewayError) -> bytes:
        """Returns the event that ends a stream after its status was sent."""


class CallerError(GatewayError):
    status = 400
    kind = "invalid_request_error"


class BadRequest(CallerError):
    pass


class ThreadUnsupported(BadRequest):
    code = "thread_unsupported_request"

    def __init__(self, why: str) -> None:
        super().__init__(f"thread: {why} Send all messages, without `thread`.", param="thread")


class HistoryForgotten(BadRequest):
    code = "previous_response_not_found"

    def __init__(self) -> None:
        super().__init__("What the request continues or names by an id was forgotten while it was read.")


class ContextExceeded(BadRequest):
    code = "context_length_exceeded"

    def __init__(self, context_tokens: int) -> None:
        super().__init__(
            f"Your input exceeds the context window of this model ({context_tokens} tokens), and `truncation` is "
            "'disabled'. Send less of it, or `truncation: auto`.",
            param="input",
        )


class NotAuthenticated(CallerError):
    status = 401
    code = "invalid_api_key"


class NotAllowed(CallerError):
    status = 403
    kind = "permission_error"


class UnknownModel(CallerError):
    status = 404
    code = "model_not_found"
    # The name that no model here has; None: the name is an agent's, and the agent has no model.
    model: str | None = None

    @classmethod
    def unlisted(cls, model: str) -> UnknownModel:
        """Returns the error for a name that no model here has."""
        error = cls(
            f"The model {model!r} does not exist here. GET /v1/models lists what does.", param="model"
        )
        error.model = model
        return error


class UnknownPath(CallerError):
    status = 404
    code = "unknown_url"


class UnknownId(CallerError):
    """There is nothing of this kind and id in the caller's project."""

    status = 404
    code = "not_found"

    @classmethod
    def of(cls, kind: str, id: str, param: str | None = None) -> UnknownId:
        """Returns the error for an id, in OpenAI's words. kind: begins the sentence, such as "Response"."""
        return UnknownId(f"{kind} with id '{id[:QUOTED_ID_CHARS]}' not found.", param=param)


class MemoryNotFound(UnknownId):
    """There is no such memory, or the caller may not see it. param: the field that names it, if any."""

    def __init__(self, *, param: str | None = None) -> None:
        super().__init__("There is no such memory.", param=param)


class ThreadNotFound(UnknownId):
    code = "thread_not_found"

    def __init__(self, why: str) -> None:
        super().__init__(f"thread: {why} Send all messages, with a thread that begins.", param="thread")


class MethodNotAllowed(CallerError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        """Makes the error. allowed: the methods that the path has, for the header `allow`."""
        super().__init__(f"{method} is not allowed on {path}")
        self.headers = (("allow", ", ".join(sorted(allowed))),)


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


class UnsupportedFile(CallerError):
    status = 415
    code = "unsupported_file"


class UpstreamError(GatewayError):
    status = 502
    kind = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"


class DescriptorsUsedUp(UpstreamUnreachable):
    status = 503
    kind = "overloaded_error"
    code = "overloaded"


class UpstreamBroke(UpstreamError):
    code = "upstream_broke"


class UpstreamTooLarge(UpstreamBroke):
    pass


class UpstreamRefused(UpstreamBroke):
    pass


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class Overloaded(GatewayError):
    status = 503
    kind = "overloaded_error"
    code = "overloaded"


class TooManySends(GatewayError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class LimitReached(CallerError):
    """A limit turns the request away.

    is_quota: True if a quota is used up; False: the caller may try again soon.
    """

    status = 429

    def __init__(
        self, message: str, retry_after_s: float, headers: Sequence[tuple[str, str]], *, is_quota: bool
    ) -> None:
        code = "insufficient_quota" if is_quota else "rate_limit_exceeded"
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.kind = code
        self.headers = tuple(headers)


class DatabaseInUse(GatewayError):
    """The database file belongs to another process: a gateway, or a command that soon ends. Nothing was begun."""


class MemoryUnavailable(GatewayError):
    status = 503
    code = "memory_unavailable"

    @classmethod
    def since(cls, status: str) -> Self:
        """Returns the error for a request that comes while the store has this status.

        The store's own message is only logged: it names files and servers, which not every holder of a key may know.
        """
        return cls(
            f"Memory is not available: the store is {status}. The gateway's log says more.", retry_after_s=1.0
        )


class SettingsError(GatewayError):
    """A setting is missing, misspelt or contradicts another one.

    is_in_file: True if the mistake may be in the settings file.
    mistakes: all mistakes that were found, each as an error of its own.
    """

    def __init__(self, message: str, *, is_in_file: bool = True) -> None:
        super().__init__(message)
        self.is_in_file = is_in_file
        self.mistakes: tuple[SettingsError, ...] = (self,)

    @classmethod
    def of(cls, mistakes: Sequence[SettingsError]) -> SettingsError:
        """Returns one error for several mistakes, with a line for each in its message."""
        if len(mistakes) == 1:
            return mistakes[0]
        is_in_file = any(mistake.is_in_file for mistake in mistakes)
        error = cls("\n".join(mistake.message for mistake in mistakes), is_in_file=is_in_file)
        error.mistakes = tuple(mistakes)
        return error


def sentence(text: str) -> str:
    """Returns the text of one of the store's errors as a message: with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
