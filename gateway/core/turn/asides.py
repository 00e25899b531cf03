"""Asides: arguments added to the gateway's tools, and text that a tool speaks, read while they are written.

An aside is an argument for the gateway and not for the tool: a thought, a filler to be spoken before the tool runs, the
wish to be called again. Asides come first in a tool's schema and are required, since strict schemas demand that of
every argument. Models order keys as they like, so nothing depends on the order. Where the model leaves an aside out,
nothing is shown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Final

from msgspec import Struct, field

from adapters.types import Json
from gateway.core.turn.tool_call import CallOwner, ToolCall

THINKING = "thinking"
FILLER = "pre_exec_msg"
HEARTBEAT = "request_heartbeat"  # the wish of a model that speaks by a tool to be called again

# In the order in which they stand in a schema.
SCHEMAS: Final[Mapping[str, Json]] = MappingProxyType(
    {
        THINKING: {
            "type": "string",
            "description": "Your thoughts about this call; the user does not read them as your answer.",
        },
        FILLER: {
            "type": "string",
            "description": "What you say to the user while this runs: one short sentence, such as: Let me look. "
            'Empty ("") where nothing need be said.',
        },
        HEARTBEAT: {
            "type": "boolean",
            "description": "True if you want to go on after this call; false ends your turn.",
        },
    }
)


def with_asides(definition: Json, names: Collection[str]) -> Json:
    """Returns a tool's definition with these asides. One with the name of an argument of the tool is left out.

    definition: an entry of a request's `tools`.
    """
    function: Json = definition["function"]
    parameters: Json = function.get("parameters") or {"type": "object", "properties": {}}
    own = parameters.get("properties") or {}
    added = {name: schema for name, schema in SCHEMAS.items() if name in names and name not in own}
    if not added:
        return definition
    required = [*added, *(parameters.get("required") or ())]
    changed = {**parameters, "properties": {**added, **own}, "required": required}
    return {**definition, "function": {**function, "parameters": changed}}


class Voice(Enum):
    """The way in which the client gets an argument."""

    THOUGHT = "thought"
    # Its text is a part of the reply's text.
    WORDS = "words"
    FILLER = "filler"  # likewise, ahead of a tool


class Asides(Struct, frozen=True):
    """The arguments of a turn's tools that the gateway takes for itself or shows to the user."""

    # Tool -> its asides.
    by_tool: Mapping[str, Collection[str]] = field(default_factory=dict)
    # Tool -> its argument whose text is shown to the user.
    spoken_arguments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, definitions: Iterable[Json], names: Collection[str], spoken_arguments: Mapping[str, str]
    ) -> Asides:
        """Returns the asides of tools.

        definitions: of the tools, without asides (see `with_asides`).
        names: of the asides that are added.
        """
        by_tool: dict[str, frozenset[str]] = {}
        for definition in definitions:
            function = definition["function"]
            own = (function.get("parameters") or {}).get("properties") or {}
            # Ahead of words there is no silence to be filled.
            taken = {*own, FILLER} if function["name"] in spoken_arguments else own
            if added := frozenset(names) - frozenset(taken):
                by_tool[function["name"]] = added
        return cls(by_tool, spoken_arguments)

    def voices(self, tool: str) -> dict[str, Voice]:
        """Returns the arguments of a tool that are shown while they are written."""
        asides = self.by_tool.get(tool, ())
        voices = {name: voice for name, voice in _VOICES.items() if name in asides}
        if tool in self.spoken_arguments:
            voices[self.spoken_arguments[tool]] = Voice.WORDS
        return voices

    def asides_in(self, tools: Iterable[str]) -> dict[str, list[str]]:
        """Returns the asides of these tools as a message with their calls bears them."""
        return {tool: sorted(self.by_tool[tool]) for tool in tools if self.by_tool.get(tool)}

    def split(self, tool: str, arguments: Json) -> tuple[Json, Json]:
        """Returns a call's arguments as the tool gets them, and its asides."""
        names = self.by_tool.get(tool)
        if not names:
            return arguments, {}
        own = {name: value for name, value in arguments.items() if name not in names}
        return own, {name: value for name, value in arguments.items() if name in names}


def filler_asides(definitions: Iterable[Json]) -> Asides:
    """Returns the fillers of memory tools, by their definitions as they are offered."""
    names = [definition["function"]["name"] for definition in definitions]
    return Asides(dict.fromkeys(names, frozenset({FILLER})))


_VOICES: Final = {THINKING: Voice.THOUGHT, FILLER: Voice.FILLER}


class AsideReader:
    """Reads the shown arguments of one reply's calls while the model writes them."""

    def __init__(self, asides: Asides) -> None:
        self._asides = asides
        # The reader and the voices of each call, by the index of the call in the reply.
        self._calls: dict[int, tuple[StringReader, dict[str, Voice]]] = {}
        self._read: dict[int, int] = {}  # pieces of its arguments that were read

    def read(self, calls: Iterable[ToolCall]) -> list[tuple[int, Voice, str]]:
        """Returns the text that is new since the last call: (index of the call in the reply, voice, text)."""
        pieces: list[tuple[int, Voice, str]] = []
        for index, call in enumerate(calls):
            read_count = self._read.get(index, 0)
            if call.owner is not CallOwner.GATEWAY or len(call.arguments) == read_count:
                continue
            self._read[index] = len(call.arguments)
            text = "".join(call.arguments[read_count:])
            if not text:  # the name may not have come to its end
                continue
            if index not in self._calls:
                voices = self._asides.voices(call.name)
                self._calls[index] = (StringReader(voices), voices)
            reader, voices = self._calls[index]
            if voices:
                pieces += [(index, voices[name], piece) for name, piece in reader.feed(text)]
        return pieces


_PLAIN = re.compile(r'[^"\\]+')
_NO_STRUCTURE = re.compile(r'[^"{}\[\]:,]+')
_UNIT = re.compile(r"[0-9A-Fa-f]{4}")
_ESCAPED_CHARACTERS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LOST = "\ufffd"


class StringReader:
    """Reads named strings at the top level of a JSON object that comes in pieces. Broken JSON raises no error."""

    def __init__(self, names: Collection[str]) -> None:
        """Begins. names: of the members that are read."""
        self._names = frozenset(names)
        self._depth = 0
        self._is_object = False
        self._wants_key = False
        self._key: list[str] = []
        self._name = ""  # the key of the member that is read
        self._in_string = False
        self._escape = ""  # the beginning of an escape
        self._half = ""  # the first half of a pair of surrogates
        self._found: list[tuple[str, str]] = []

    def feed(self, text: str) -> list[tuple[str, str]]:
        """Returns (name, piece of its text) for what has come, in its order."""
        self._found = []
        at = 0
        while at < len(text):
            if self._in_string:
                at = self._read_string(text, at)
            elif match := _NO_STRUCTURE.match(text, at):
                at = match.end()
            else:
                self._read_structure(text[at])
                at += 1
        members = groupby(self._found, itemgetter(0))
        return [(name, "".join(piece for _, piece in pieces)) for name, pieces in members]

    def _read_structure(self, char: str) -> None:
        if char == '"':
            self._in_string = True
            if self._is_at_key:
                self._key = []
        elif char in "{[":
            self._depth += 1
            if self._depth == 1:
                self._is_object = self._wants_key = char == "{"
        elif char in "}]":
            self._depth -= 1
        elif self._depth == 1:
            self._wants_key = char == ","

    @property
    def _is_at_key(self) -> bool:
        return self._depth == 1 and self._is_object and self._wants_key

    def _read_string(self, text: str, at: int) -> int:
        """Reads on in a string. Returns the position after what it read."""
        if self._escape:
            self._escape += text[at]
            self._end_escape()
            return at + 1
        if match := _PLAIN.match(text, at):
            self._add(match.group())
            return match.end()
        if text[at] == "\\":
            self._escape = "\\"
        else:
            self._add("")  # half a pair stays alone
            self._in_string = False
            if self._is_at_key:
                self._name = "".join(self._key)
        return at + 1

    def _end_escape(self) -> None:
        """Adds the character that an escape stands for, when it is complete."""
        kind = self._escape[1]
        if kind != "u":
            self._add(_ESCAPED_CHARACTERS.get(kind, kind))
        elif len(self._escape) < 6:
            return
        else:
            self._add_unit(self._escape[2:])
        self._escape = ""

    def _add_unit(self, digits: str) -> None:
        """Adds a UTF-16 unit; two of them may make one character."""
        unit = int(digits, 16) if _UNIT.fullmatch(digits) else 0xFFFD
        if 0xD800 <= unit < 0xDC00:
            self._add("")
            self._half = chr(unit)
        elif 0xDC00 <= unit < 0xE000:
            half, self._half = self._half, ""
            pair = 0x10000 + ((ord(half) - 0xD800) << 10) + (unit - 0xDC00) if half else 0xFFFD
            self._add(chr(pair))
        else:
            self._add(chr(unit))

    def _add(self, text: str) -> None:
        if self._half:
            text, self._half = _LOST + text, ""
        if not text:
            return
        if self._is_at_key:
            self._key.append(text)
            return
        if self._depth == 1 and self._is_object and self._name in self._names:
            self._found.append((self._name, text))
