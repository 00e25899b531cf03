"""The errors of a request, as the gateway answers them, each with its HTTP status.

An error has the facts. The dialect of the request's route renders it (`ErrorForm`).

GatewayError
├── CallerError               the request is at fault
│   ├── BadRequest            400: malformed, wrong type, not allowed; names the field
│   │   ├── ThreadUnsupported the client then goes on without a message thread
│   │   ├── HistoryForgotten  the history was forgotten after the request had read it
│   │   └── ContextExceeded   too long for the window of the model, and nothing may be left out
│   ├── NotAuthenticated      401
│   ├── NotAllowed            403
│   ├── UnknownModel          404
│   ├── UnknownPath           404
│   ├── UnknownId             404
│   │   ├── MemoryNotFound    also if the caller may not see the memory
│   │   └── ThreadNotFound    the client then sends the whole conversation
│   ├── MethodNotAllowed      405
│   ├── BodyTimeout           408
│   ├── Conflict              409
│   ├── BodyTooLarge          413
│   ├── UnsupportedEncoding   415
│   ├── UnsupportedFile       415
│   └── LimitReached          429: a limit of a key, user or project is used up
├── UpstreamError             the provider is at fault
│   ├── UpstreamUnreachable   502
│   │   └── DescriptorsUsedUp 503: a limit of the gateway, and not the endpoint's fault
│   ├── UpstreamReplyBroken   502: the reply ended in the middle
│   │   ├── UpstreamTooLarge  the reply is larger than the gateway takes; not the endpoint's fault
│   │   └── UpstreamRefused   the stream has an error about the request or its caller; not the endpoint's fault
│   └── UpstreamTimeout       504
├── Overloaded                503: a limit of the gateway; carries retry_after_s
├── TooManySends              429: too many sends to one conversation wait already
├── MemoryUnavailable         503: the request may not be answered without memory
├── DatabaseInUse             never over HTTP: another process owns the database file
└── SettingsError             never over HTTP: the process does not start
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, Protocol, Self

# The characters of an id that an error quotes. A client's id may be as long as a URL; the gateway's ids are shorter.
QUOTED_ID_CHARS: Final = 120


def drop_tracebacks(error: BaseException) -> None:
    """Drops the tracebacks of an error that has been answered, and of its causes.

    A traceback holds the locals of its frames, among them the request and the reply so far. One of these frames usually
    holds the error, so all of them would stay until the garbage collector finds the cycle, which may take long.
    """
    cause: BaseException | None = error
    # The chain may be a cycle: the error of an upload is raised from the upstream's error, which it has caused.
    seen_ids: set[int] = set()
    while cause is not None and id(cause) not in seen_ids:
        seen_ids.add(id(cause))
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


class GatewayError(Exception):
    """An error that the gateway answers.

    message: the text for the caller: the fault, the value that was seen, and the remedy.
    param: the field of the request that is at fault; None: no single field.
    retry_after_s: the seconds after which the same request may succeed; None: no such time is known.
    """

    # The HTTP status of the reply, if its head was not sent before the error.
    status: int = 500
    # The party at fault, in OpenAI's words.
    kind: str = "server_error"
    # The name of the error, if it has a name.
    code: str | None = None
    # The id of the request that failed, which is set when the error is answered.
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

    # The header in which the dialect's clients read the id of a request, in lower case; None: `x-request-id`.
    id_header: ClassVar[bytes | None]

    def render_body(self, error: GatewayError) -> bytes:
        """Returns the JSON body of a reply with the error's status."""

    def render_event(self, error: GatewayError) -> bytes:
        """Returns the event that ends a stream after its status was sent."""


class CallerError(GatewayError):
    """The request is at fault."""

    status = 400
    kind = "invalid_request_error"


class BadRequest(CallerError):
    """The request is malformed, or has a value that is not allowed."""


class ThreadUnsupported(BadRequest):
    """A message thread cannot answer such a request. The client then sends all messages."""

    code = "thread_unsupported_request"

    def __init__(self, why: str) -> None:
        super().__init__(f"thread: {why} Send all messages, without `thread`.", param="thread")


class HistoryForgotten(BadRequest):
    """A response or conversation was forgotten after it was read for the request."""

    code = "previous_response_not_found"

    def __init__(self) -> None:
        super().__init__("What the request continues or names by an id was forgotten while it was read.")


class ContextExceeded(BadRequest):
    """The input is too long for the model's window, and no part may be left out."""

    code = "context_length_exceeded"

    def __init__(self, context_tokens: int) -> None:
        super().__init__(
            f"Your input exceeds the context window of this model ({context_tokens} tokens), and `truncation` is "
            "'disabled'. Send less of it, or `truncation: auto`.",
            param="input",
        )


class NotAuthenticated(CallerError):
    """The request has no valid key."""

    status = 401
    code = "invalid_api_key"


class NotAllowed(CallerError):
    """The key may not send such a request."""

    status = 403
    kind = "permission_error"


class UnknownModel(CallerError):
    """No model has the name that the request asks for."""

    status = 404
    code = "model_not_found"
    # The name that no model has; None: the name is an agent's, and the agent has no model.
    model: str | None = None

    @classmethod
    def for_name(cls, model: str) -> UnknownModel:
        """Returns the error for a name that no model of the gateway has."""
        error = cls(
            f"The model {model!r} does not exist here. GET /v1/models lists what does.", param="model"
        )
        error.model = model
        return error


class UnknownPath(CallerError):
    """No route has the path."""

    status = 404
    code = "unknown_url"


class UnknownId(CallerError):
    """The caller's project has no object of the kind with the id."""

    status = 404
    code = "not_found"

    @classmethod
    def for_id(cls, kind: str, object_id: str, param: str | None = None) -> UnknownId:
        """Returns the error for an id, in OpenAI's words. kind: the kind of the object, such as "Response"."""
        return UnknownId(f"{kind} with id '{object_id[:QUOTED_ID_CHARS]}' not found.", param=param)


class MemoryNotFound(UnknownId):
    """There is no such memory, or the caller may not see it. param: the field that names the memory, if any."""

    def __init__(self, *, param: str | None = None) -> None:
        super().__init__("There is no such memory.", param=param)


class ThreadNotFound(UnknownId):
    """There is no such message thread. The client then sends the whole conversation."""

    code = "thread_not_found"

    def __init__(self, why: str) -> None:
        super().__init__(f"thread: {why} Send all messages, with a thread that begins.", param="thread")


class MethodNotAllowed(CallerError):
    """The path exists, and takes other methods."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        """Makes the error. allowed: the methods that the path has, for the header `allow`."""
        super().__init__(f"{method} is not allowed on {path}")
        self.headers = (("allow", ", ".join(sorted(allowed))),)


class BodyTimeout(CallerError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class Conflict(CallerError):
    """The present state of an object does not allow the request."""

    status = 409
    code = "conflict"


class BodyTooLarge(CallerError):
    """The body is larger than the limit."""

    status = 413
    code = "request_too_large"


class UnsupportedEncoding(CallerError):
    """The body has an encoding that the gateway does not decode."""

    status = 415
    code = "unsupported_encoding"


class UnsupportedFile(CallerError):
    """The file has a type that the gateway does not read."""

    status = 415
    code = "unsupported_file"


class UpstreamError(GatewayError):
    """The provider is at fault."""

    status = 502
    kind = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """No reply came from the provider."""

    code = "upstream_unreachable"


class DescriptorsUsedUp(UpstreamUnreachable):
    """The gateway has no file descriptor left for a connection."""

    status = 503
    kind = "overloaded_error"
    code = "overloaded"


class UpstreamReplyBroken(UpstreamError):
    """The reply ended in the middle."""

    code = "upstream_broke"


class UpstreamTooLarge(UpstreamReplyBroken):
    """The reply is larger than the gateway takes."""


class UpstreamRefused(UpstreamReplyBroken):
    """The stream has an error about the request or its caller."""


class UpstreamTimeout(UpstreamError):
    """A deadline of the reply passed."""

    status = 504
    code = "upstream_timeout"


class Overloaded(GatewayError):
    """A limit of the gateway is reached."""

    status = 503
    kind = "overloaded_error"
    code = "overloaded"


class TooManySends(GatewayError):
    """Too many sends to one conversation wait already."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class LimitReached(CallerError):
    """A limit of a key, a user or a project refuses the request.

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
    """The store does not work, and the request may not be answered without memory."""

    status = 503
    code = "memory_unavailable"

    @classmethod
    def for_status(cls, status: str) -> Self:
        """Returns the error for a status of the store.

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
    def join(cls, mistakes: Sequence[SettingsError]) -> SettingsError:
        """Returns one error for several mistakes, with a line for each mistake in its message."""
        if len(mistakes) == 1:
            return mistakes[0]
        is_in_file = any(mistake.is_in_file for mistake in mistakes)
        error = cls("\n".join(mistake.message for mistake in mistakes), is_in_file=is_in_file)
        error.mistakes = tuple(mistakes)
        return error


def make_sentence(text: str) -> str:
    """Returns the message of an error of the store as a sentence: with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
