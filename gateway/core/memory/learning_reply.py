"""The reply of the background model, read as edits. Calls that make no sense or are too many are only counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.conversation.wire_message import read_named_call
from gateway.core.json_limits import is_too_deep
from gateway.core.lenient import as_list, as_text
from gateway.core.memory import memory_tools
from gateway.core.memory.block_edit import BlockEdit
from gateway.core.memory.call_arguments import find_argument_error, read_arguments
from gateway.core.memory.fact_words import FACT_CHARS
from gateway.core.memory.transcript import on_one_line

# The most edits that are read of one reply, which may never end.
MAX_EDITS = 32

# The most characters of a fact's subject, which is asked for in a word or two.
_SUBJECT_CHARS = 60
# A character of a word; a text without one has no meaning.
_WORD_CHARACTER = re.compile(r"\w")


class FactEdit(Struct, frozen=True):
    """A fact that the model wants to be stored. It may name numbers that no fact or message has."""

    # The text of the fact.
    text: str
    # The subject of the fact, in a word or two.
    subject: str = ""
    # The numbers of the known facts that this fact replaces.
    replaces: tuple[int, ...] = ()
    # The numbers of the messages from which the fact comes.
    messages: tuple[int, ...] = ()
    # True: the fact always holds for the user.
    is_standing: bool = False


class ReplyEdits(Struct, frozen=True):
    """The edits that a reply asks for."""

    # The edits, in the order of the calls.
    edits: tuple[BlockEdit | FactEdit, ...]
    # The number of the reply's calls that were left out: they made no sense, or came after `MAX_EDITS` calls.
    ignored: int = 0


def read_reply_calls(message: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the name and the arguments of each call of a reply, which are all that `read_edits` needs."""
    names_and_arguments = []
    for name, arguments in map(read_named_call, as_list(message.get("tool_calls"))):
        # Some servers send the object itself.
        if isinstance(arguments, dict) and not is_too_deep(arguments):
            arguments = orjson.dumps(arguments).decode()
        names_and_arguments.append({"name": name, "arguments": as_text(arguments)})
    return names_and_arguments


def read_edits(calls: Sequence[Mapping[str, str]]) -> ReplyEdits:
    """Reads the calls of a reply. calls: the calls, from `read_reply_calls`."""
    edits: list[BlockEdit | FactEdit] = []
    for call in calls[:MAX_EDITS]:
        edit = _read_edit(call.get("name", ""), call.get("arguments", ""))
        if edit is not None:
            edits.append(edit)
    return ReplyEdits(tuple(edits), len(calls) - len(edits))


def _read_edit(name: str, text: str) -> BlockEdit | FactEdit | None:
    """Returns the edit that a call asks for.

    Returns None if the arguments are no JSON object or do not fit the tool, or no tool has this name.

    name: the name of the called tool.
    text: the arguments of the call.
    """
    arguments = read_arguments(text)
    if arguments is None:
        return None
    if name in memory_tools.BLOCK_TOOLS:
        error = find_argument_error(name, arguments)
        return None if error else BlockEdit(memory_tools.BLOCK_TOOLS[name], arguments)
    if name != "remember_fact":
        return None
    fact_text = arguments.get("text")
    if not isinstance(fact_text, str) or not _WORD_CHARACTER.search(fact_text) or len(fact_text) > FACT_CHARS:
        return None
    return FactEdit(
        text=on_one_line(fact_text),
        subject=on_one_line(as_text(arguments.get("about")))[:_SUBJECT_CHARS],
        replaces=_read_numbers(arguments.get("replaces")),
        messages=_read_numbers(arguments.get("messages")),
        is_standing=arguments.get("always") is True,
    )


def _read_numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(n for n in value if isinstance(n, int) and not isinstance(n, bool))
