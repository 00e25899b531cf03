"""Reads of a chat message as it is on the wire: its text, its media and its calls, whatever the form of its content.

A message may have any form that JSON allows: a broken field counts as absent.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.core.roles import RESULT_ROLES, SYSTEM_ROLES

WireMessage = dict[str, Any]

# The key of a message's private fields (gateway.core.conversation.private).
PRIVATE = "mnemogate"
# The ASCII characters that `str.split` takes for white space.
_ASCII_SPACE = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"


def is_system(message: Mapping[str, Any]) -> bool:
    return message.get("role") in SYSTEM_ROLES


def has_result_role(message: Mapping[str, Any]) -> bool:
    """Returns whether a message is the result of a call by its role."""
    return message.get("role") in RESULT_ROLES


def count_leading_system(messages: Sequence[WireMessage]) -> int:
    """Returns the number of system messages with which a list begins: the index of the first other message."""
    return next((i for i, message in enumerate(messages) if not is_system(message)), len(messages))


def read_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, whatever the form of its content.

    The parts of a user's message are lines, since an application puts a file, a title or a hint before a question. The
    parts of a reply may end within a sentence, as those with citations do.
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    between_parts = "\n" if message.get("role") == "user" else ""
    return between_parts.join(text for text in texts if isinstance(text, str))


def read_audio_id(message: Mapping[str, Any]) -> str:
    """Returns the id of the audio in which a model has spoken a reply; "": the reply is written.

    A client's message has the id in `audio`, a stored message in its private fields.
    """
    audio = message.get("audio")
    if audio is None and isinstance(private := message.get(PRIVATE), dict):
        audio = private.get("audio")
    audio_id = audio.get("id") if isinstance(audio, dict) else None
    return audio_id if isinstance(audio_id, str) else ""


def find_text_hashed_alone(message: Mapping[str, Any]) -> str | None:
    """Returns the text of an assistant message that is hashed by its text alone; None for every other message."""
    content = message.get("content")
    if not isinstance(content, str) or message.get("name") is not None or read_audio_id(message):
        return None
    has_calls = message.get("tool_calls") is not None or message.get("function_call") is not None
    return None if has_calls else content


def list_media(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts of a message that are no text. Stored hashes depend on it."""
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [part for part in content if isinstance(part, dict) and not isinstance(part.get("text"), str)]


def list_shown_media(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the images, sounds and files of a message. Mistral's thoughts are parts of its replies, but no media."""
    return [part for part in list_media(message) if "thinking" not in part]


def flag_results(messages: Iterable[Mapping[str, Any]]) -> list[bool]:
    """Returns a flag for each message: it is the result of a call, or has only the media of results before it.

    A tool's message cannot have media, so the media follow in the user's role.
    """
    flags: list[bool] = []
    for message in messages:
        role = message.get("role")
        follows_result = bool(flags) and flags[-1]
        is_media = role == "user" and follows_result and bool(list_media(message)) and not read_text(message)
        flags.append(role in RESULT_ROLES or is_media)
    return flags


class NamedCall(NamedTuple):
    """A call of a tool, without its id."""

    # The name of the tool.
    name: str
    # The arguments as they came, mostly JSON in a text; for a custom tool its input.
    arguments: Any


def read_named_calls(message: Mapping[str, Any]) -> list[NamedCall]:
    """Returns the calls of a message that are not broken, also the call of the older `function_call`."""
    calls = [read_named_call(call) for call in list_raw_calls(message) if find_callee(call) is not None]
    older_call = message.get("function_call")
    if isinstance(older_call, dict):
        calls.append(NamedCall(str(older_call.get("name")), older_call.get("arguments")))
    return calls


def find_callee(call: object) -> dict[str, Any] | None:
    """Returns the function or the custom tool of a call; None: the call is broken."""
    function = call.get("function") or call.get("custom") if isinstance(call, dict) else None
    return function if isinstance(function, dict) else None


def read_named_call(call: object) -> NamedCall:
    """Returns the tool and the arguments of a call."""
    function = find_callee(call) or {}
    return NamedCall(str(function.get("name")), function.get("arguments", function.get("input")))


def list_raw_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the `tool_calls` of a message as they are, also broken ones, without values that are no objects."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def read_call_id(call: object) -> str:
    """Returns the id of a call; "": the call is no object.

    Some models give their calls no ids. The id of such a call is "None", as is that of its result.
    """
    return str(call.get("id")) if isinstance(call, dict) else ""


def read_result_id(result: Mapping[str, Any]) -> str:
    """Returns the id of the call that a result answers, as `read_call_id` returns it."""
    return str(result.get("tool_call_id"))


def without_space(text: str) -> str:
    """Returns a text without white space."""
    return without_space_utf8(text).decode("utf-8", "surrogatepass")


def without_space_utf8(text: str) -> bytes:
    """Returns a text without white space, as UTF-8."""
    if text.isascii():  # in a fifth of the time; all messages that clients resend pass here
        return text.encode().translate(None, _ASCII_SPACE)
    return "".join(text.split()).encode("utf-8", "surrogatepass")


def find_rest_after(text: str, beginning: str) -> str | None:
    """Returns the rest of a text that begins with `beginning`, white space aside; None: it begins otherwise."""
    if text.startswith(beginning):
        return text[len(beginning) :]
    offset = 0
    for char in without_space(beginning):
        while text[offset : offset + 1].isspace():
            offset += 1
        if text[offset : offset + 1] != char:
            return None
        offset += 1
    return text[offset:]


def make_shown_reply(full_reply: Sequence[WireMessage], gateway_call_ids: Container[str] = ()) -> WireMessage:
    """Returns the reply as the client sees it: the text as it was streamed, and the client's own calls.

    gateway_call_ids: the ids of the calls that the gateway ran itself.
    """
    replies = [message for message in full_reply if message.get("role") == "assistant"]
    calls = [
        call
        for each in replies
        for call in list_raw_calls(each)
        if read_call_id(call) not in gateway_call_ids
    ]
    reply: WireMessage = {"role": "assistant", "content": join_texts(map(read_text, replies))}
    return {**reply, "tool_calls": calls} if calls else reply


def join_texts(texts: Iterable[str]) -> str:
    """Joins the texts of several messages into one."""
    joined_text = ""
    for text in texts:
        joined_text += choose_separator(joined_text, text) + text
    return joined_text


def choose_separator(before: object, after: object) -> str:
    """Returns the separator of two messages' texts, such as "Let me see." and "It rains.": a space or "".

    before, after: contents of any form; a content that is no text needs no separator.
    """
    if isinstance(before, str) and isinstance(after, str) and before and after:
        return "" if before[-1].isspace() or after[0].isspace() else " "
    return ""
