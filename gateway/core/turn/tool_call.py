"""A tool call of a reply while its pieces come, and the decision of who runs it: the gateway or the client."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from typing import Any

import orjson

from adapters.types import Json
from gateway.core.turn.json_pieces import merge_field

# The types of a call to a function; a call may not have named its type yet.
FUNCTION_TYPES = (None, "", "function")


class CallOwner(Enum):
    """The party that runs a call."""

    # The name has not been read to its end.
    UNKNOWN = "unknown"
    GATEWAY = "gateway"
    CLIENT = "client"


class AllBut(Collection[str]):
    """All names but these: gateway tools where an unknown name is an error and is not left to the client."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)

    def __contains__(self, name: object) -> bool:
        return name not in self.names

    def __iter__(self) -> Iterator[str]:
        raise TypeError("all names but a few cannot be listed")

    def __len__(self) -> int:
        return sys.maxsize


class ToolCall:
    """A tool call of a reply, of which pieces may still come."""

    __slots__ = (
        "argument_pieces",
        "client_index",
        "fields",
        "function",
        "index",
        "is_reindexed",
        "is_sent",
        "name",
        "new_id",
        "owner",
        "piece_count",
    )

    def __init__(self, index: Any) -> None:
        """Begins a call without pieces. index: the upstream's index, of any type; None: the upstream gives no index."""
        self.index = index
        # The fields of the call, without the fields of its function.
        self.fields: Json = {}
        # The fields of the call's function, without name and arguments.
        self.function: Json = {}
        self.name = ""
        # The id that the gateway has given the call in place of the upstream's; "": the upstream's id stays.
        self.new_id = ""
        # The pieces of the arguments' text.
        self.argument_pieces: list[str] = []
        # The party that runs the call.
        self.owner = CallOwner.UNKNOWN
        # The number of pieces that have come.
        self.piece_count = 0
        # The index among the client's calls; -1: not known yet, or a call of the gateway's.
        self.client_index = -1
        # Gateway calls come before this call, so the client gets it under another index than the upstream's.
        self.is_reindexed = False
        # The client has got the beginning of the call.
        self.is_sent = False

    @property
    def id(self) -> str:
        return self.new_id or self.upstream_id

    @property
    def upstream_id(self) -> str:
        """The id that the upstream has given the call; "": none."""
        value = self.fields.get("id")
        return value if isinstance(value, str) else ""

    @property
    def arguments_text(self) -> str:
        """The arguments as the model wrote them: JSON, as a rule."""
        return "".join(self.argument_pieces)

    def add(self, entry: Json) -> None:
        """Adds a piece of the call, an entry of a delta's `tool_calls`."""
        self.piece_count += 1
        for key, value in entry.items():
            if key == "function":
                if isinstance(value, dict):
                    self._add_function(value, repeats_id=bool(entry.get("id")) and bool(self.upstream_id))
            elif key == "id":
                if value or "id" not in self.fields:  # some upstreams send "" after the first piece
                    self.fields["id"] = value
            elif key != "index":
                merge_field(self.fields, key, value)

    def as_json(self) -> Json:
        """Returns the call as a message carries it (without `index`, which belongs to streams)."""
        # The fields have the order in which they came, as for a client that puts the stream together itself.
        call = dict(self.fields)
        if self.new_id:
            call["id"] = self.new_id
        if not call.get("type"):  # some upstreams send "" after the first piece
            call["type"] = "function"
        if self.name or self.argument_pieces or self.function or call["type"] == "function":
            call["function"] = {**self.function, "name": self.name, "arguments": self.arguments_text}
        return call

    def _add_function(self, function: Json, *, repeats_id: bool) -> None:
        """Adds the fields of the function of a piece. repeats_id: True if the piece has an id again."""
        for key, value in function.items():
            if key == "name":
                # Most upstreams send the name whole, some in pieces, and some (MiniMax's models at NVIDIA) whole with
                # every piece. Of the last kind the id comes again as well, or arguments come, before which a name has
                # ended; that distinguishes it from a name that goes on with the same letters.
                is_whole = repeats_id or bool(function.get("arguments")) or any(self.argument_pieces)
                if isinstance(value, str) and not (is_whole and value == self.name):
                    self.name += value
            elif key == "arguments":
                if isinstance(value, str):
                    self.argument_pieces.append(value)
                elif value is not None:  # an object instead of its text
                    self.argument_pieces.append(orjson.dumps(value).decode())
            else:
                merge_field(self.function, key, value)


def decide_owner(call: ToolCall, gateway_tools: Collection[str], *, is_complete: bool) -> CallOwner:
    """Decides the owner of a call, as early as its name allows.

    Gateway tools are functions: a call that names another type (OpenAI's `custom` tools) is the client's, whatever its
    name.

    is_complete: True if the name has ended, because arguments came after it or the reply is over. A name may come in
        pieces, so the beginning of a gateway tool's name is undecided until then.
    """
    if call.fields.get("type") not in FUNCTION_TYPES:
        return CallOwner.CLIENT
    listed_names = gateway_tools.names if isinstance(gateway_tools, AllBut) else gateway_tools
    if not is_complete and (not call.name or any(name.startswith(call.name) for name in listed_names)):
        return CallOwner.UNKNOWN
    return CallOwner.GATEWAY if call.name in gateway_tools else CallOwner.CLIENT
