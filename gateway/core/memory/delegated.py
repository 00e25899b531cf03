"""Delegated tasks: what a model writes to a sub-agent, as an argument of a call, which then opens another conversation.

It comes in the user's role, and no user wrote it. A list is a sub-agent's if its last user message is, word for
word, an argument of a call that still waits for its result, and if it has nothing of what the call was made for. What a
framework's known template has around the task does not count, nor does a heading between two arguments (Open WebUI's
task and its context). An argument may also be a list of tasks (AG2) or of messages (Haystack). A handoff (LibreChat)
goes on in the caller's list: there the task directly follows the message that the call was made for.
(A user's own words come as an argument too; and a user may choose one of a call's suggestions.) Nor does it
offer the called tool: so does the caller, and its user may repeat the call's argument (a question that is corrected, a
button), and who delegates keeps that from those delegated to.

Calls are known to the process alone, by hashes of their arguments, and for a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, permutations
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.conversation.canonical import call_id, calls_of, squash_utf8, text_of
from gateway.core.prompt.note import own_words
from storage.records import Scope

# The least bytes of an argument that counts, without white space. Shorter ones are names and numbers, which a user may
# send as a whole message. Not measured.
_LEAST_BYTES = 16
# The longest wait of a call for its result, in seconds; the most waiting calls of a memory; the most memories.
_WAIT_S, _MOST_CALLS, _MOST_MEMORIES = 3600.0, 64, 1024
# The most texts of a call that are noted. Models give a few tasks at once.
_MOST_TEXTS = 64
# A task may be two arguments with a heading between them. Looked for in calls of at most this many arguments, since the
# pairs are tried one by one, and with at most this many bytes of heading, as "## Context" is one. Not measured.
_MOST_PARTS, _HEADING_BYTES = 8, 32

_Messages = Sequence[Mapping[str, Any]]


class _Call(Struct, frozen=True):
    """A call of a client's tool that has no result yet."""

    # The name of the tool.
    tool: str
    # The texts among its arguments without white space: hash -> length in bytes.
    arguments: Mapping[int, int]
    # Hash of the user's message that the call was made for.
    asked: int
    # When the call was made, in seconds since the epoch.
    at: float

    def quotes(self, text: bytes) -> bool:
        """Returns whether a text is one of the arguments, or begins with one and ends with another."""
        arguments = self.arguments
        if arguments.get(hash(text), 0) >= _LEAST_BYTES:
            return True
        parts = arguments.items() if len(arguments) <= _MOST_PARTS else ()
        return any(
            begin >= _LEAST_BYTES
            and 0 <= len(text) - begin - end <= _HEADING_BYTES
            and hash(text[:begin]) == first
            and hash(text[-end:]) == last
            for (first, begin), (last, end) in permutations(parts, 2)
        )


class Delegated:
    """The calls of clients' tools that wait for their results, by memory."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Scope, dict[str, _Call]] = OrderedDict()

    def made(self, scope: Scope, body: Mapping[str, Any], reply: Mapping[str, Any], now: float) -> None:
        """Notes the calls of a reply.

        body: of its request.
        now: seconds since the epoch.

        A call that the client asked for is an answer for a program (a question rewritten for a search, which may then
        be asked in the user's place), and never gets a result.
        """
        if body.get("tool_choice") not in (None, "auto"):
            return
        asked = next(_user_texts(body["messages"]), None)
        calls: dict[str, _Call] = {}
        for call in reply.get("tool_calls") or ():
            for tool, arguments in calls_of({"tool_calls": [call]}):
                found = {hash(text): len(text) for text in islice(_texts(arguments), _MOST_TEXTS)}
                if asked is not None and max(found.values(), default=0) >= _LEAST_BYTES:
                    calls[call_id(call)] = _Call(tool, found, hash(asked), now)
        if not calls:
            return
        waiting = self._waiting.setdefault(scope, {})
        waiting.update(calls)
        while len(waiting) > _MOST_CALLS:
            del waiting[next(iter(waiting))]
        self._waiting.move_to_end(scope)
        if len(self._waiting) > _MOST_MEMORIES:
            self._waiting.popitem(last=False)

    def is_task(
        self, scope: Scope, messages: _Messages, now: float, *, offered: Collection[str] = ()
    ) -> bool:
        """Returns whether a list is a sub-agent's, and forgets the calls with results in it.

        offered: the names of its request's tools.
        """
        waiting = self._waiting.get(scope)
        if waiting is None:
            return False
        for message in messages:
            if message.get("role") == "tool":
                waiting.pop(str(message.get("tool_call_id")), None)
        if not waiting:
            del self._waiting[scope]
            return False
        texts = _user_texts(messages)
        last = next(texts, b"")
        calls = [
            c
            for c in waiting.values()
            if c.tool not in offered and now - c.at <= _WAIT_S and c.quotes(last) and hash(last) != c.asked
        ]
        if not calls:
            return False
        before = [hash(text) for text in texts]
        is_after_user = [m.get("role") for m in messages[-2:]] == ["user", "user"]
        return any(call.asked not in before or (is_after_user and call.asked == before[0]) for call in calls)


def _user_texts(messages: _Messages) -> Iterator[bytes]:
    """Yields the user's messages without white space, the last one first."""
    return (squash_utf8(own_words(text_of(m))) for m in reversed(messages) if m.get("role") == "user")


def _texts(arguments: object) -> Iterator[bytes]:
    """Yields a call's texts without white space. arguments: JSON; of a custom tool the text itself."""
    try:
        value = orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        value = arguments
    values: Iterable[object] = value.values() if isinstance(value, dict) else ()
    if isinstance(value, str):
        values = (value,)
    for each in values:
        for item in each if isinstance(each, list) else (each,):
            text = text_of(item) if isinstance(item, dict) and "role" in item else item
            if isinstance(text, str) and (squashed := squash_utf8(text)):
                yield squashed
