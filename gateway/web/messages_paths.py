"""The paths of Anthropic's API. The agents API has some of them as well; its requests have no `anthropic-version`."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Scope

from gateway.dialects.messages.errors import MessagesErrors
from gateway.errors import ErrorForm, MethodNotAllowed, UnknownPath
from gateway.web.raw_headers import find_header

MESSAGES_PATH: Final = "/v1/messages"
COUNT_PATH: Final = "/v1/messages/count_tokens"
# Paths that the agents API has, too: all messages, one message, and batches.
_AGENTS_API_PATHS: Final = re.compile(rf"{MESSAGES_PATH}/((?!count_tokens$)[^/]*|batches/.*)")
# The paths of what messages name by an id; OpenAI's API has other objects under the same paths.
_STORED_PATHS: Final = re.compile(r"/v1/(files|skills)(/.*)?", re.DOTALL)
# Paths that OpenAI's API has, too.
_SHARED_PATHS: Final = re.compile(rf"/v1/models(/.*)?|{_STORED_PATHS.pattern}", re.DOTALL)
_VERSION_HEADER: Final = b"anthropic-version"
MESSAGES_ERRORS: Final = MessagesErrors()


def is_anthropic_client(scope: Scope) -> bool:
    """Returns whether a request to a path of several APIs comes from a client of Anthropic's."""
    return find_header(scope["headers"], _VERSION_HEADER) is not None


def is_about_anthropic_storage(scope: Scope) -> bool:
    """Returns whether a request is about files or skills of Anthropic's, and not about OpenAI's."""
    return _STORED_PATHS.fullmatch(scope["path"]) is not None and is_anthropic_client(scope)


def choose_messages_error_form(scope: Scope) -> ErrorForm | None:
    """Returns the form of errors for Anthropic's clients, or None for a request of another API."""
    path = scope["path"]
    if path == MESSAGES_PATH or _is_messages_subpath(scope):
        return MESSAGES_ERRORS
    return MESSAGES_ERRORS if _SHARED_PATHS.fullmatch(path) and is_anthropic_client(scope) else None


def refuse_unknown_messages_path(scope: Scope) -> None:
    """Refuses a path or a method that is not served below that of messages. Raises: UnknownPath, MethodNotAllowed."""
    if not _is_messages_subpath(scope):
        return
    if scope["path"] != COUNT_PATH:
        raise UnknownPath(f"Unknown path: {scope['method']} {scope['path']}")
    if scope["method"] != "POST":  # the agents API's routes would take the path's end for the id of a message
        raise MethodNotAllowed(scope["method"], scope["path"], ("POST",))


def _is_messages_subpath(scope: Scope) -> bool:
    """Returns whether a request is for a path of Anthropic's API below that of messages, and not for the agents API."""
    path = scope["path"]
    if not path.startswith(f"{MESSAGES_PATH}/"):
        return False
    return is_anthropic_client(scope) or _AGENTS_API_PATHS.fullmatch(path) is None
