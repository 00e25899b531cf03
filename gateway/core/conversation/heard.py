"""Repeats after an id: a client sends again what precedes a reply, though the reply's id stands for all of it.

LiveKit repeats the reply, as far as its caller has heard it, Vercel's SDK the calls of one, Semantic Kernel and Strands
the question with the results of its calls, LlamaIndex everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from gateway.core.conversation.canonical import WireMessage, call_id, is_system, text_of, without_space
from gateway.core.words import heard_letters, is_beginning, letters_of


class HeardPath(Struct, frozen=True):
    """The path that an id stands for, as far as the caller has heard it."""

    # The messages of the path. The last one is the reply, as far as it was heard.
    path: Sequence[WireMessage]
    # The indices of the later messages that only repeat it.
    repeats: Sequence[int]
    # The reply as far as it was heard; None: it was heard whole.
    cut_reply: WireMessage | None


def as_heard(path: Sequence[WireMessage], after: Sequence[WireMessage]) -> HeardPath:
    """Returns a path, and the messages after it without repeats. path: ends with a reply."""
    again = _find_repeated(path, after)
    whole_reply = _Reply.of(path[-1])
    cut_reply: WireMessage | None = None
    for index in range(again[-1] + 1 if again else 0, len(after)):
        message = after[index]
        if message.get("role") not in ("assistant", "tool"):
            break
        if cut_reply is None and whole_reply.was_heard_as(message):
            cut_reply = {**path[-1], "content": text_of(message)}
        elif not whole_reply.is_resent(message):
            continue
        again.append(index)
    return HeardPath([*path[:-1], cut_reply or path[-1]], again, cut_reply)


def _find_repeated(path: Sequence[WireMessage], after: Sequence[WireMessage]) -> list[int]:
    """Returns which messages, by index, stand in the path and lead to its last reply or to a result of its calls."""
    calls = _calls(path[-1])
    above = enumerate(map(_form, path))
    passed: list[int] = []
    for index, message in enumerate(after):
        if message.get("role") == "tool" and message.get("tool_call_id") in calls:
            return passed
        if is_system(message):
            continue
        form = _form(message)
        position = next((position for position, path_form in above if path_form == form), None)
        if position is None:
            return []
        passed.append(index)
        if position == len(path) - 1:
            return passed
    return []


def _form(message: WireMessage) -> tuple[object, ...]:
    calls = tuple(map(call_id, message.get("tool_calls") or ()))
    return message.get("role"), without_space(text_of(message)), calls, message.get("tool_call_id")


def _calls(message: WireMessage) -> frozenset[str]:
    return frozenset(map(call_id, message.get("tool_calls") or ()))


class _Reply(NamedTuple):
    """A reply as later messages are compared with it."""

    # The text of the reply without signs and white space.
    letters: str
    # The text of the reply without white space.
    text: str
    # The ids of its calls.
    calls: frozenset[str]

    @classmethod
    def of(cls, reply: WireMessage) -> _Reply:
        text = text_of(reply)
        return cls(letters_of(text), without_space(text), _calls(reply))

    def is_resent(self, message: WireMessage) -> bool:
        """Returns whether a message has nothing but what the reply has."""
        if message.get("role") != "assistant":
            return False
        return without_space(text_of(message)) in ("", self.text) and _calls(message) <= self.calls

    def was_heard_as(self, message: WireMessage) -> bool:
        """Returns whether a message has what a caller who cut in has heard of the reply.

        As everywhere, dots and remarks at its end do not count (rule 4 of docs/conversations.md).
        """
        if message.get("role") != "assistant" or message.get("tool_calls"):
            return False
        heard = heard_letters(text_of(message))
        return heard != self.letters and is_beginning(heard, self.letters)
