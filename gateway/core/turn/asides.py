"""Asides: arguments that the gateway adds to its tools. Asides and spoken texts are read while the model writes them.

An aside is an argument for the gateway and not for the tool: a thought, a filler to be spoken before the tool runs, the
wish to be called again. Asides are required, since strict schemas demand that of every argument. They come first in a
tool's schema, but models order keys as they like, so nothing depends on the order. If the model leaves an aside out,
nothing is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from msgspec import Struct, field

from adapters.types import Json
from gateway.core.turn.string_reader import StringReader
from gateway.core.turn.tool_call import CallOwner, ToolCall

# The thoughts of the model about a call.
THINKING = "thinking"
# The sentence that the user hears before the tool runs.
FILLER = "pre_exec_msg"
HEARTBEAT = "request_heartbeat"  # the wish of a model that speaks by a tool to be called again

# The asides in the order in which they stand in a schema.
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
    """Returns a tool's definition with these asides. An aside with the name of a tool's own argument is left out.

    definition: an entry of a request's `tools`.
    """
    function: Json = definition["function"]
    parameters: Json = function.get("parameters") or {"type": "object", "properties": {}}
    properties = parameters.get("properties") or {}
    asides = {name: schema for name, schema in SCHEMAS.items() if name in names and name not in properties}
    if not asides:
        return definition
    required = [*asides, *(parameters.get("required") or ())]
    parameters = {**parameters, "properties": {**asides, **properties}, "required": required}
    return {**definition, "function": {**function, "parameters": parameters}}


class Voice(Enum):
    """The way in which the client gets the text of an argument."""

    # The text is a thought.
    THOUGHT = "thought"
    # The text is a part of the reply's text.
    WORDS = "words"
    # The text is a part of the reply's text, and is sent before a tool runs.
    FILLER = "filler"


class SplitArguments(NamedTuple):
    """The arguments of a call."""

    # The arguments that the tool gets.
    own: Json
    # The arguments that the gateway takes for itself.
    asides: Json


class Asides(Struct, frozen=True):
    """The arguments of a turn's tools that the gateway takes for itself or shows to the user."""

    # The asides by the names of their tools.
    by_tool: Mapping[str, Collection[str]] = field(default_factory=dict)
    # The arguments with the text that is shown to the user, by the names of their tools.
    spoken_arguments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, definitions: Iterable[Json], names: Collection[str], spoken_arguments: Mapping[str, str]
    ) -> Asides:
        """Returns the asides of tools.

        definitions: the definitions of the tools, without asides.
        names: the names of the asides that are added.
        """
        by_tool: dict[str, frozenset[str]] = {}
        for definition in definitions:
            function = definition["function"]
            own_names = {*((function.get("parameters") or {}).get("properties") or {})}
            # A tool that speaks leaves no silence for a filler.
            speech = {FILLER} if function["name"] in spoken_arguments else set()
            if aside_names := frozenset(names) - own_names - speech:
                by_tool[function["name"]] = aside_names
        return cls(by_tool, spoken_arguments)

    def find_voices(self, tool: str) -> dict[str, Voice]:
        """Returns the arguments of a tool that are shown while they are written."""
        asides = self.by_tool.get(tool, ())
        voices = {name: voice for name, voice in _VOICES.items() if name in asides}
        if tool in self.spoken_arguments:
            voices[self.spoken_arguments[tool]] = Voice.WORDS
        return voices

    def map_asides(self, tools: Iterable[str]) -> dict[str, list[str]]:
        """Returns tool -> the names of its asides, for the message that has calls of these tools."""
        return {tool: sorted(self.by_tool[tool]) for tool in tools if self.by_tool.get(tool)}

    def split(self, tool: str, arguments: Json) -> SplitArguments:
        """Splits the arguments of a call into the tool's own and the asides."""
        names = self.by_tool.get(tool)
        if not names:
            return SplitArguments(arguments, {})
        own = {name: value for name, value in arguments.items() if name not in names}
        return SplitArguments(own, {name: value for name, value in arguments.items() if name in names})


def make_filler_asides(definitions: Iterable[Json]) -> Asides:
    """Returns the fillers of memory tools, by their definitions as they are offered."""
    names = [definition["function"]["name"] for definition in definitions]
    return Asides(dict.fromkeys(names, frozenset({FILLER})))


# The voices of the asides that are shown.
_VOICES: Final = {THINKING: Voice.THOUGHT, FILLER: Voice.FILLER}


class AsidePiece(NamedTuple):
    """New text of an argument that is shown."""

    # The index of the call in the reply.
    call_index: int
    # The way in which the client gets the text.
    voice: Voice
    # The new text.
    text: str


class _CallReader:
    """Reads the shown arguments of one call."""

    def __init__(self, voices: Mapping[str, Voice]) -> None:
        # The arguments that are shown, with the way in which the client gets each.
        self.voices = voices
        # Reads these arguments.
        self.strings = StringReader(voices)


class AsideReader:
    """Reads the shown arguments of one reply's calls while the model writes them."""

    def __init__(self, asides: Asides) -> None:
        self._asides = asides
        # The readers of arguments, by the indices of the reply's calls.
        self._readers: dict[int, _CallReader] = {}
        # The numbers of pieces of arguments that were read, by the indices of the reply's calls.
        self._read_counts: dict[int, int] = {}

    def read(self, calls: Iterable[ToolCall]) -> list[AsidePiece]:
        """Returns the text that is new since the last time. calls: the calls of the reply, as far as they have come."""
        pieces: list[AsidePiece] = []
        for index, call in enumerate(calls):
            read_count = self._read_counts.get(index, 0)
            if call.owner is not CallOwner.GATEWAY or len(call.argument_pieces) == read_count:
                continue
            self._read_counts[index] = len(call.argument_pieces)
            text = "".join(call.argument_pieces[read_count:])
            if not text:  # the name may not have come to its end
                continue
            reader = self._readers.get(index)
            if reader is None:
                reader = self._readers[index] = _CallReader(self._asides.find_voices(call.name))
            if reader.voices:
                pieces += [
                    AsidePiece(index, reader.voices[name], piece) for name, piece in reader.strings.feed(text)
                ]
        return pieces
