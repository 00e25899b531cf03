"""Delegated tasks: the messages of a model to a sub-agent, as arguments of calls, which then open conversations.

A task comes in the user's role, and no user wrote it. A list is a sub-agent's if all of this holds:

- Its last user message is, word for word, an argument of a call that still waits for its result. A framework's known
  template around the task does not count, nor does a heading between two arguments (Open WebUI's task and its context).
  An argument may also be a list of tasks (AG2) or of messages (Haystack).
- It lacks the message for which the call was made. With it, the list is the user's, who may have chosen one of the
  call's suggestions. A handoff (LibreChat) is the exception: it goes on in the caller's list, where the task directly
  follows that message.
- The task is not that message itself: a user's own words may be passed on as an argument.
- Its request does not offer the called tool. The caller's requests do, and its user may repeat an argument (a
  corrected question, a button); a sub-agent is not given the tool that delegates to it.

Calls are known to the process alone, by hashes of their arguments, and for a limited time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, permutations
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.conversation.wire_message import (
    read_call_id,
    read_named_calls,
    read_result_id,
    read_text,
    without_space_utf8,
)
from gateway.core.prompt.note_text import read_own_words
from storage.records import Scope

# The fewest bytes, without white space, of an argument that can be a task. Shorter arguments are names and numbers,
# which a user may send as a whole message. Not measured.
_MIN_BYTES = 16
# The longest wait of a call for its result. Chosen: a sub-agent works for minutes.
_WAIT_S = 3600.0
# The most waiting calls of a memory, and the most memories with such calls. Both bound the memory of a process. Not
# measured.
_MAX_CALLS = 64
_MAX_MEMORIES = 1024
# The most texts of a call that are noted. Models give a few tasks at once. Not measured.
_MAX_TEXTS = 64
# The most arguments of a call in which two arguments with a heading between them are looked for, since the pairs are
# tried one by one. Not measured.
_MAX_PAIRED_ARGUMENTS = 8
# The most bytes of such a heading, as "## Context" is one. Not measured.
_HEADING_BYTES = 32

_Messages = Sequence[Mapping[str, Any]]


class _WaitingCall(Struct, frozen=True):
    """A call of a client's tool without a result so far. Hashes and lengths are of texts without white space."""

    # The name of the called tool.
    tool_name: str
    # The lengths in bytes of the texts among the arguments, by the hashes of the texts.
    argument_bytes: Mapping[int, int]
    # The hash of the user's message for which the call was made.
    question_hash: int
    # The time at which the reply with the call came, in seconds since the epoch.
    made_at: float

    def quotes(self, text: bytes) -> bool:
        """Returns whether a text is one of the arguments, or begins with one argument and ends with another."""
        if self.argument_bytes.get(hash(text), 0) >= _MIN_BYTES:
            return True
        paired = self.argument_bytes.items() if len(self.argument_bytes) <= _MAX_PAIRED_ARGUMENTS else ()
        return any(
            first_bytes >= _MIN_BYTES
            and 0 <= len(text) - first_bytes - last_bytes <= _HEADING_BYTES
            and hash(text[:first_bytes]) == first_hash
            and hash(text[-last_bytes:]) == last_hash
            for (first_hash, first_bytes), (last_hash, last_bytes) in permutations(paired, 2)
        )


class DelegatedTasks:
    """Recognises tasks by the calls of clients' tools that wait for their results, which it notes by memory."""

    def __init__(self) -> None:
        # The calls without a result, by the scope of the memory, then by the id of the call. The newest scope is last.
        self._waiting_calls: OrderedDict[Scope, dict[str, _WaitingCall]] = OrderedDict()

    def note_calls(self, scope: Scope, body: Mapping[str, Any], reply: Mapping[str, Any], now: float) -> None:
        """Notes the calls of a reply.

        body: the body of the request.
        now: the time of the reply, in seconds since the epoch.
        """
        # A call that the client demanded is an answer for a program (a question rewritten for a search, which may then
        # be asked in the user's place), and never gets a result.
        if body.get("tool_choice") not in (None, "auto"):
            return
        question = next(_list_user_texts(body["messages"]), None)
        calls: dict[str, _WaitingCall] = {}
        for call in reply.get("tool_calls") or ():
            for tool, arguments in read_named_calls({"tool_calls": [call]}):
                texts = {
                    hash(text): len(text) for text in islice(_list_argument_texts(arguments), _MAX_TEXTS)
                }
                if question is not None and max(texts.values(), default=0) >= _MIN_BYTES:
                    calls[read_call_id(call)] = _WaitingCall(tool, texts, hash(question), now)
        if not calls:
            return
        waiting_calls = self._waiting_calls.setdefault(scope, {})
        waiting_calls.update(calls)
        while len(waiting_calls) > _MAX_CALLS:
            del waiting_calls[next(iter(waiting_calls))]
        self._waiting_calls.move_to_end(scope)
        if len(self._waiting_calls) > _MAX_MEMORIES:
            self._waiting_calls.popitem(last=False)

    def is_task(
        self, scope: Scope, messages: _Messages, now: float, *, offered_tools: Collection[str] = ()
    ) -> bool:
        """Returns whether the last user message of a list is a delegated task. Drops calls with a result in the list.

        offered_tools: the names of the tools of the list's request.
        """
        waiting_calls = self._waiting_calls.get(scope)
        if waiting_calls is None:
            return False
        for message in messages:
            if message.get("role") == "tool":
                waiting_calls.pop(read_result_id(message), None)
        if not waiting_calls:
            del self._waiting_calls[scope]
            return False
        texts = _list_user_texts(messages)
        task = next(texts, b"")
        question_hashes = [
            call.question_hash
            for call in waiting_calls.values()
            if call.tool_name not in offered_tools
            and now - call.made_at <= _WAIT_S
            and call.quotes(task)
            and hash(task) != call.question_hash
        ]
        if not question_hashes:
            return False
        earlier_hashes = [hash(text) for text in texts]
        # A handoff goes on in the caller's list, where the task directly follows the question.
        is_after_user = [message.get("role") for message in messages[-2:]] == ["user", "user"]
        return any(
            question_hash not in earlier_hashes or (is_after_user and question_hash == earlier_hashes[0])
            for question_hash in question_hashes
        )


def _list_user_texts(messages: _Messages) -> Iterator[bytes]:
    """Yields the user's messages without white space, the last one first."""
    return (
        without_space_utf8(read_own_words(read_text(message)))
        for message in reversed(messages)
        if message.get("role") == "user"
    )


def _list_argument_texts(arguments: object) -> Iterator[bytes]:
    """Yields the texts among a call's arguments, without white space.

    arguments: the arguments in JSON; for a custom tool the text itself.
    """
    try:
        value = orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        value = arguments
    values: Iterable[object] = value.values() if isinstance(value, dict) else ()
    if isinstance(value, str):
        values = (value,)
    for argument in values:
        for item in argument if isinstance(argument, list) else (argument,):
            text = read_text(item) if isinstance(item, dict) and "role" in item else item
            if isinstance(text, str) and (compact_text := without_space_utf8(text)):
                yield compact_text
