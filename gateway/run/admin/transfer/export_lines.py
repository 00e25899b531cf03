"""The shape of the lines of an export: the fields of each part, with their types and bounds.

A file may come from anywhere. A value that no gateway writes would be stored and fail later: in each list that shows
it, or in an index that cannot count so far. A field that is not named here is ignored.

A field without a comment is the field of that name in the part's record (`storage.records`). A line has no rows of the
database: it names an exchange, a passage or a fact by the number (`seq`), and all else by the public id (`uid`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.core.conversation.private import PrivateFields
from gateway.core.conversation.wire_message import PRIVATE
from gateway.core.definition import (
    AgentDefinition,
    ConversationDefinition,
    IdentityDefinition,
    ToolDefinition,
)
from gateway.core.tool_rule import RawRule
from gateway.run.admin.imports.import_progress import ImportProgress
from gateway.run.admin.records.memory_records import FactOrigin
from gateway.validation import InvalidValue, convert
from storage.definition_records import DefinitionKind
from storage.file_records import FileState
from storage.records import REPLY, EditState, ExchangeState
from storage.run_records import RunState

# The fields of conversations and exchanges in exports of formats 1 and 2, with their present names.
FORMER_NAMES = {
    "ours": "is_stored",
    "carried": "continued",
    "standing": "active",
    "said": "shown_reply",
    "had": "has_reply",
    "hush": "redactions",
}
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Digest = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Number = Annotated[int, Meta(ge=1, lt=2**31)]  # the search index has places for no more
_Moment = Annotated[float, Meta(ge=-62_135_596_800, lt=253_402_300_800)]  # the years 1 to 9999
_Uid = Annotated[str, Meta(pattern="^[ -~]{1,200}$")]  # it stands in headers
_Kinds = Annotated[str, Meta(pattern="^[a-z]*$")]


class MalformedLine(Exception):
    """A line is no line of an export. The message names the field at fault."""


class ExportHeader(msgspec.Struct):
    """The first line, of the memory."""

    # One of `READ_FORMATS`.
    format: int
    # The number after those that the memory has given out.
    next_seq: _Number
    # The time at which the memory began.
    created: _Moment
    # The public id of the memory; None: the file has no id.
    uid: _Uid | None = None


class _Conversation(msgspec.Struct):
    """A conversation."""

    uid: _Uid
    key: str | None
    begun: _Moment
    # The time of its last change.
    last_at: _Moment
    # Up to when its pending edits were merged.
    settled_at: _Moment
    # True: the gateway has the history, and the client sends new messages only.
    is_stored: bool = False


class _Definition(msgspec.Struct):
    """The definition of the agent, or of one of its conversations."""

    kind: DefinitionKind
    # An agent's definition gets the uid of the header instead.
    uid: str
    name: str
    created: _Moment
    updated: _Moment
    body: dict[str, Any]


class _Exchange(msgspec.Struct):
    """The fields that all exchanges have."""

    conversation: _Uid
    parent: _Number | None
    prior: _Number | None
    seq: _Number
    # `gapless_from`.
    run: _Count
    begun: _Moment
    touched: _Moment
    ended: _Moment | None
    stopped: _Moment | None
    superseded: bool
    continued: bool
    active: bool
    edits: bool
    opaque: bool
    model: str
    merged: str
    size: _Count
    # `prefix_length`.
    head: _Count
    state: ExchangeState


class _Tombstone(_Exchange):
    """An exchange that was forgotten, or is off the record: its hashes are made at random by their kinds."""

    # The kinds of the atoms of each message that the client sent.
    kinds: list[_Kinds]
    # The kinds of the atoms of the reply; None: the exchange has no reply.
    reply: _Kinds | None


class _Private(PrivateFields, total=False):
    """The private fields of a message."""

    # `own_length` in rows that were written before it was renamed.
    said: _Count


class _Message(msgspec.Struct):
    """The checked fields of a message. The other ones may have any type, as those of a client's message."""

    role: str | None = None
    private: _Private | None = msgspec.field(name=PRIVATE, default=None)


class _Reply(_Message):
    """The checked fields of a message that the gateway has put together from a model's reply, or of a tool's result."""

    tool_calls: list[dict[str, Any]] | None = None


class _FullReply(msgspec.Struct):
    """A reply with its hidden rounds."""

    messages: list[_Reply]
    gateway_calls: list[str]


class _FullExchange(_Exchange):
    """An exchange with its content."""

    input: list[_Message] | None
    shown_reply: _Reply | None
    full: _FullReply | None
    has_reply: bool
    notes: dict[int, str]
    # The kinds of the atoms of each message that is not stored.
    redactions: dict[int, _Kinds]


# The fields of an exchange that has ended, and of which nothing was changed, edited or forgotten.
UNCHANGED_EXCHANGE: Mapping[str, Any] = {
    "head": 0,
    "stopped": None,
    "state": "finished",
    "superseded": False,
    "continued": True,
    "active": True,
    "edits": False,
    "merged": "",
    "notes": {},
    "redactions": {},
}


class _BlockDetails(msgspec.Struct):
    """The fields of a block that a turn does not need."""

    metadata: dict[str, Any] = {}
    tags: list[str] = []
    hidden: bool = False
    name: str | None = None


class _Block(msgspec.Struct):
    """A block, without its value: its versions have that."""

    label: str
    description: str
    limit: _Count
    read_only: bool
    uid: _Uid | None = None
    details: _BlockDetails | None = None


class _Version(msgspec.Struct):
    """A version of a block's value (`Revision`)."""

    # The label of the block.
    block: str
    version: _Number
    restores: _Number | None
    at: _Moment
    origin: str
    exchange: _Number | None
    sources: list[_Number | None]
    value: str


class _File(msgspec.Struct):
    """A file of a folder. Its text is in passages."""

    uid: _Uid
    state: FileState
    bytes: _Count
    created: _Moment
    type: str
    name: str


class _Passage(msgspec.Struct):
    """A passage of an archive, or of a file."""

    seq: _Number
    at: _Moment
    exchange: _Number | None
    sources: list[_Number | None]
    text: str
    tags: list[str] | None = None
    file: str | None = None
    metadata: dict[str, Any] | None = None


class _Fact(msgspec.Struct):
    """A fact, true or not."""

    seq: _Number
    at: _Moment
    valid_from: _Moment
    exchange: _Number | None
    sources: list[_Number | None]
    about: str
    text: str
    origin: Annotated[str, Meta(pattern=rf"^({'|'.join(get_args(FactOrigin))})(:|\Z)")] = "learned"
    muted: bool = False
    standing: bool = False


class _Ended(msgspec.Struct):
    """The end of a fact."""

    fact: _Number
    at: _Moment
    successor: _Number | None


class _Learned(msgspec.Struct):
    """How far facts were learned."""

    seq: _Number
    reader: Literal["learner", "rule"] = "learner"


class _Edit(msgspec.Struct):
    """A memory edit (`MemoryEdit`)."""

    exchange: _Number
    call: str
    state: EditState
    at: _Moment
    op: str
    label: str
    arguments: dict[str, Any]
    seen: _Digest | None = None


class _Tag(msgspec.Struct):
    """A tag of the agent."""

    tag: str


class _Attached(msgspec.Struct):
    """A built-in tool that is attached to an agent, or a record that is attached by its public id."""

    kind: str
    # The number of one of the gateway's own tools.
    built_in: _Number | UnsetType = UNSET
    # Not set: a built-in tool, or something that was deleted while the memory was exported.
    uid: _Uid | UnsetType = UNSET


class _AttachedTool(msgspec.Struct):
    """The further fields of a tool that is not built in."""

    name: str
    body: ToolDefinition


class _AttachedIdentity(msgspec.Struct):
    """The further fields of an identity."""

    name: str
    body: IdentityDefinition


class _AttachedBlock(msgspec.Struct):
    """The further fields of a block."""

    label: str
    description: str
    limit: _Count
    read_only: bool
    value: str
    details: _BlockDetails | None = None


# The further fields of records that are attached by their public id, by kind.
_ATTACHED_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "archive": _Attached,
    "folder": _Attached,
    "tool": _AttachedTool,
    "identity": _AttachedIdentity,
    "block": _AttachedBlock,
}


class _Run(msgspec.Struct):
    """A run of the agent."""

    uid: _Uid
    conversation: _Uid
    state: RunState
    stop: str | None
    depth: _Count
    background: bool
    created: _Moment
    begun: _Moment | None
    ended: _Moment | None


class _Step(msgspec.Struct):
    """A step of a run. Its tokens are those of its call of the model."""

    exchange: _Number
    run: _Uid
    number: _Count
    begun: _Moment
    ended: _Moment | None
    prompt: _Count
    completion: _Count
    cached: _Count
    written: _Count
    reasoning: _Count
    stop: str | None
    feedback: str | None
    error: str | None


class _Import(msgspec.Struct):
    """An import of another application's export."""

    uid: _Uid
    format: Annotated[str, Meta(pattern="^[a-z0-9]{1,20}$")]
    status: Literal["running", "done", "stopped", "failed", "undone"]
    learns: bool
    created: _Moment
    touched: _Moment
    data: ImportProgress


class _Imported(msgspec.Struct):
    """An exchange that an import has written."""

    exchange: _Number
    # The uid of an import, from a line before this one.
    import_: _Uid = msgspec.field(name="import")
    what: Literal["exchange", "stub"]
    learns: bool


class _ImportedFact(msgspec.Struct):
    """A fact that an import has written."""

    fact: _Number
    import_: _Uid = msgspec.field(name="import")


_STRUCTS_BY_PART: dict[str, type[msgspec.Struct]] = {
    "conversation": _Conversation,
    "definition": _Definition,
    "exchange": _FullExchange,
    "block": _Block,
    "version": _Version,
    "file": _File,
    "passage": _Passage,
    "fact": _Fact,
    "ended": _Ended,
    "learned": _Learned,
    "edit": _Edit,
    "tag": _Tag,
    "attached": _Attached,
    "run": _Run,
    "step": _Step,
    "import": _Import,
    "imported": _Imported,
    "imported_fact": _ImportedFact,
}


def with_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line's part with the names that its fields have in the present format."""
    present = {FORMER_NAMES.get(name, name): value for name, value in values.items()}
    full = present.get("full")
    if isinstance(full, dict) and "ours" in full:
        present["full"] = {
            ("gateway_calls" if name == "ours" else name): value for name, value in full.items()
        }
    return present


def check_line(part: str, values: Mapping[str, Any], *, is_for_tombstone: bool = False) -> None:
    """Checks the fields of a line.

    part: the kind of the line, one of `PARTS`.
    is_for_tombstone: True: the fields are of an exchange that was forgotten or is off the record.

    Raises: MalformedLine.
    """
    _check(part, values, _Tombstone if is_for_tombstone else _STRUCTS_BY_PART[part])
    if part == "definition":
        _check_definition(values)
    elif part == "exchange" and not is_for_tombstone:
        _check_redactions(values)
    elif part == "version" and values["restores"] is not None and values["restores"] >= values["version"]:
        # An undo follows `restores` from version to version, and would follow a circle for ever.
        raise MalformedLine("version: `restores` is not the number of an earlier version")
    elif part == "attached" and "uid" in values:
        if values["kind"] not in _ATTACHED_STRUCTS:
            raise MalformedLine(f"nothing of the kind {values['kind']!r} is attached")
        _check(part, values, _ATTACHED_STRUCTS[values["kind"]])


def check_header(values: Any) -> None:
    """Checks the fields of the first line. Raises: MalformedLine."""
    _check("memory", values, ExportHeader)


def _check_redactions(values: Mapping[str, Any]) -> None:
    """Checks that the messages that an exchange does not store are its own. Raises: MalformedLine."""
    message_count = len(values["input"] or ())
    for index in values["redactions"]:
        if not REPLY <= int(index) < message_count:
            raise MalformedLine(
                f"exchange: `redactions` names the message {index}, but the exchange has {message_count}"
            )


def _check_definition(values: Mapping[str, Any]) -> None:
    if values["kind"] == "conversation":
        _check("body", values["body"], ConversationDefinition)
    elif values["kind"] == "agent":
        _check("body", values["body"], AgentDefinition)
        for index, rule in enumerate(values["body"].get("rules", ())):
            _check(f"body.rules[{index}]", rule, RawRule)


def _check(path: str, values: Any, value_type: Any) -> None:
    """Checks values of a line. path: the path to the values, for errors. Raises: MalformedLine: a wrong type."""
    try:
        convert(values, value_type, str_keys=True)
    except InvalidValue as error:
        raise MalformedLine(f"{path}: {error}") from error
