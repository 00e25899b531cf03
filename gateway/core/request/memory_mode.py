"""The memory mode of a request, by its header and its form."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from gateway.core.request.request_headers import RawHeaders, read_known_word
from gateway.core.request.side_requests import SideRequests, is_single_structured_turn
from gateway.errors import BadRequest


class Mode(StrEnum):
    """The memory mode of a request. STRICT is ON, but the request fails if memory is not available."""

    ON = "on"
    READ = "read"
    OFF = "off"
    STRICT = "strict"


# The state of memory in a request, as the reply reports it. `none`: no user is named; `unavailable`: memory could not
# be used, and the request was answered without it.
MemoryState = Literal["on", "read", "off", "none", "unavailable"]
# The modes in which messages are stored.
STORING_MODES = (Mode.ON, Mode.STRICT)
# The modes by their words in the header; "" is the default mode.
_MODES: dict[str, Mode | None] = {"": None, **{str(mode): mode for mode in Mode}}

# The header with the memory mode of a request.
MEMORY_HEADER = b"x-mnemogate-memory"
# The header with the id of a chat in Open WebUI.
OPEN_WEBUI_CHAT = b"x-openwebui-chat-id"
# The beginnings of a temporary chat's id: in Open WebUI, and in its older versions.
_TEMPORARY_PREFIXES = (b"temporary:", b"local:")


class ModeChoice(NamedTuple):
    """The memory mode of a request. `Identity` documents the fields."""

    mode: Mode
    side_request: str | None = None
    leaves_nothing: bool = False
    mode_with_history: Mode | None = None


def choose_mode(
    headers: Mapping[bytes, bytes], body: Mapping[str, Any], default_mode: Mode, side_requests: SideRequests
) -> ModeChoice:
    """Returns the memory mode of a request, with the reason if it is not the requested mode."""
    requested_mode = _read_mode(headers[MEMORY_HEADER]) if MEMORY_HEADER in headers else None
    mode = requested_mode or default_mode
    if OPEN_WEBUI_CHAT in headers and headers[OPEN_WEBUI_CHAT].startswith(_TEMPORARY_PREFIXES):
        # The front end shows its user that this chat is off the record. A header that its operator sets for all chats
        # does not change that.
        return ModeChoice(Mode.OFF)
    if mode is Mode.OFF:
        return ModeChoice(mode)
    # A rule restricts memory even if the header asks for more: a client's library sends the header with each request,
    # also with one for a title. The header overrides only the form of the request, since a user's own turn may have a
    # schema.
    if (side_request := side_requests.find(body.get("messages") or ())) is not None:
        return ModeChoice(Mode(side_request.memory), side_request.name, side_request.leaves_nothing)
    if requested_mode is None and is_single_structured_turn(body):
        return ModeChoice(Mode.READ, leaves_nothing=True, mode_with_history=mode)
    return ModeChoice(mode)


def refuse_unstored(headers: RawHeaders) -> None:
    """Refuses a request that asks not to be stored, for a route that stores each request. Raises: BadRequest."""
    for name, value in headers:
        if name == MEMORY_HEADER and (_read_mode(value) or Mode.ON) not in STORING_MODES:
            raise BadRequest(
                "What is sent to an agent here is stored. A chat completion of `agent/<name or id>` can go without.",
                param=MEMORY_HEADER.decode(),
            )


@lru_cache(maxsize=64)  # nearly all requests have one of a few values
def _read_mode(raw: bytes) -> Mode | None:
    """Returns the mode that the header's value asks for; None: the value is empty. Raises: BadRequest."""
    return _MODES[read_known_word(MEMORY_HEADER, raw, _MODES, "on, read, off or strict")]
