"""Repeats after an id: a client that names a reply by its id still resends messages up to it, for which the id stands.

LiveKit repeats the reply as far as its caller has heard it; Vercel's SDK, the calls of a reply; Semantic Kernel and
Strands, the question with the results of its calls; LlamaIndex, everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from gateway.core.conversation.wire_message import (
    WireMessage,
    is_system,
    read_call_id,
    read_result_id,
    read_text,
    without_space,
)
from gateway.core.words import is_beginning, join_heard_letters, join_letters


class HeardPath(Struct, frozen=True):
    """The path that ends with the named reply, which may be cut to the part that the caller has heard."""

    # The messages of the path. The last one is the reply as far as it was heard.
    path: Sequence[WireMessage]
    # The indices of the later messages that only repeat the path.
    repeat_indices: Sequence[int]
    # The reply as far as it was heard; None: the caller has heard the whole reply.
    cut_reply: WireMessage | None


def as_heard(path: Sequence[WireMessage], after: Sequence[WireMessage]) -> HeardPath:
    """Returns a path as far as it was heard, and the messages after it that repeat it.

    path: the messages of a path that ends with a reply.
    after: the messages that the client sends after the id of that reply.
    """
    repeat_indices = _find_repeats(path, after)
    whole_reply = _Reply.of(path[-1])
    cut_reply: WireMessage | None = None
    for index in range(repeat_indices[-1] + 1 if repeat_indices else 0, len(after)):
        message = after[index]
        if message.get("role") not in ("assistant", "tool"):
            break
        if cut_reply is None and whole_reply.was_heard_as(message):
            cut_reply = {**path[-1], "content": read_text(message)}
        elif not whole_reply.is_resent(message):
            continue
        repeat_indices.append(index)
    return HeardPath([*path[:-1], cut_reply or path[-1]], repeat_indices, cut_reply)


def _find_repeats(path: Sequence[WireMessage], after: Sequence[WireMessage]) -> list[int]:
    """Returns the indices of messages that repeat the path in order, up to its last reply or a result of its calls."""
    call_ids = _list_call_ids(path[-1])
    # Read on from the last match, so that the messages are found in the order of the path.
    remaining_path = enumerate(map(_make_repeat_key, path))
    repeats: list[int] = []
    for index, message in enumerate(after):
        if message.get("role") == "tool" and read_result_id(message) in call_ids:
            return repeats
        if is_system(message):
            continue
        form = _make_repeat_key(message)
        position = next((position for position, path_form in remaining_path if path_form == form), None)
        if position is None:
            return []
        repeats.append(index)
        if position == len(path) - 1:
            return repeats
    return []


def _make_repeat_key(message: WireMessage) -> tuple[object, ...]:
    """Returns the key that a message shares with its repeats: role, text without white space, ids of calls."""
    calls = tuple(map(read_call_id, message.get("tool_calls") or ()))
    return message.get("role"), without_space(read_text(message)), calls, message.get("tool_call_id")


def _list_call_ids(message: WireMessage) -> frozenset[str]:
    return frozenset(map(read_call_id, message.get("tool_calls") or ()))


class _Reply(NamedTuple):
    """A reply as later messages are compared with it."""

    # The text of the reply without signs and white space.
    letters: str
    # The text of the reply without white space.
    text: str
    # The ids of the reply's calls.
    call_ids: frozenset[str]

    @classmethod
    def of(cls, reply: WireMessage) -> _Reply:
        text = read_text(reply)
        return cls(join_letters(text), without_space(text), _list_call_ids(reply))

    def is_resent(self, message: WireMessage) -> bool:
        """Returns whether a message has nothing that the reply lacks. Dots and remarks at its end do not count."""
        if message.get("role") != "assistant" or not _list_call_ids(message) <= self.call_ids:
            return False
        text = read_text(message)
        is_same = bool(self.letters) and join_heard_letters(text) == self.letters
        return is_same or without_space(text) in ("", self.text)

    def was_heard_as(self, message: WireMessage) -> bool:
        """Returns whether a message is the beginning of the reply, as a caller who cut in has heard it.

        Dots and remarks at its end do not count (rule 4 of docs/conversations.md). A single letter is enough, since the
        client names the reply.
        """
        if message.get("role") != "assistant" or message.get("tool_calls"):
            return False
        heard_letters = join_heard_letters(read_text(message))
        return heard_letters != self.letters and is_beginning(heard_letters, self.letters, min_letters=1)
