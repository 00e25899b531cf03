"""The seven tools by which other programs use a person's memory over MCP: arguments, results, and the list of tools.

Calls are checked by the types, and the schemas are made of them. Nothing here performs a call
(`gateway/run/admin/mcp/mcp_memory.py`), and nothing speaks the protocol (`gateway/web/mcp`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.core.memory.fact_words import WRITTEN_FACT_CHARS
from gateway.errors import BadRequest

TextKind = Literal["message", "fact", "passage"]
# All kinds of texts.
KINDS: Final[tuple[TextKind, ...]] = ("message", "fact", "passage")
# The beginning of the origin of texts that came over MCP; the client's name and version follow.
ORIGIN: Final = "mcp"
# The most characters of a question.
QUERY_CHARS: Final = 1_000
# The most characters of a client's name with its version.
_CLIENT_CHARS: Final = 80
# The most facts that `memory_read` returns.
MAX_FACTS: Final = 100
# The form of an id.
_ID: Final = re.compile(r"(message|fact|passage):([1-9][0-9]{0,17})")
# The description of an argument that is a time.
_DATE: Final = "A date (2026-03-01) or a time (2026-03-01T10:00:00Z), in UTC where it names no zone."
_Text = Annotated[
    str,
    Meta(min_length=1, max_length=WRITTEN_FACT_CHARS, description="One sentence that makes sense alone."),
]
_Id = Annotated[
    str, Meta(max_length=40, description="As memory_search shows it: message:N, fact:N or passage:N.")
]
_FactId = Annotated[str, Meta(max_length=40, description="As memory_search shows it: fact:N.")]
_Label = Annotated[
    str, Meta(min_length=1, max_length=256, description="The label of a block, as in memory_read.")
]


class _Arguments(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a tool."""


class SearchArguments(_Arguments, frozen=True):
    """Arguments of `memory_search`."""

    query: Annotated[
        str, Meta(min_length=1, max_length=QUERY_CHARS, description="What to look for, in words.")
    ]
    limit: Annotated[int, Meta(ge=1, le=20, description="How many results at most.")] = 5
    kinds: Annotated[
        tuple[TextKind, ...], Meta(min_length=1, max_length=3, description="Only these kinds.")
    ] = KINDS
    after: Annotated[str, Meta(max_length=40, description=f"Not earlier than this. {_DATE}")] = ""
    before: Annotated[str, Meta(max_length=40, description=f"Earlier than this. {_DATE}")] = ""


class ReadArguments(_Arguments, frozen=True):
    """Arguments of `memory_read`: none."""


class ConversationArguments(_Arguments, frozen=True):
    """Arguments of `conversation_read`."""

    conversation: Annotated[
        str,
        Meta(
            max_length=256,
            description="Its id: the newest messages of it. Without one: the newest conversations.",
        ),
    ] = ""
    around: Annotated[
        str, Meta(max_length=40, description="message:N: the messages before and after this one.")
    ] = ""
    limit: Annotated[int, Meta(ge=1, le=50, description="How many at most.")] = 20


class RememberArguments(_Arguments, frozen=True):
    """Arguments of `memory_remember`."""

    text: _Text


class CorrectArguments(_Arguments, frozen=True):
    """Arguments of `memory_correct`."""

    id: _FactId
    text: _Text


class EditBlockArguments(_Arguments, frozen=True):
    """Arguments of `memory_edit_block`."""

    label: _Label
    value: Annotated[str, Meta(description="The whole new value.")]
    version: Annotated[int, Meta(ge=0, lt=1 << 62, description="The version that memory_read showed.")]


class ForgetArguments(_Arguments, frozen=True):
    """Arguments of `memory_forget`."""

    id: _Id
    confirm: Annotated[
        str,
        Meta(max_length=80, description="The word of the first answer, once the person agrees to what goes."),
    ] = ""


class FoundText(Struct, frozen=True):
    """A result of a search. A text over 4,000 characters is cut, and ends in an ellipsis."""

    # The kind and the number: message:N, fact:N or passage:N.
    id: str
    # The kind of the text.
    kind: TextKind
    # The text.
    text: str
    # The time of the text, in ISO 8601.
    at: str
    # The role of a message; None: the text is no message.
    role: str | None
    # The id of the conversation of a message; None: the text is no message.
    conversation: str | None


class SearchResult(Struct, frozen=True):
    """The result of `memory_search`."""

    # The texts that were found, best first.
    results: tuple[FoundText, ...]
    # True: not all of memory has answered in time.
    late: bool


class ReadBlock(Struct, frozen=True):
    """A memory block in the result of `memory_read`."""

    # The label of the block.
    label: str
    # The text of the block.
    value: str
    # The most characters of the value.
    limit: int
    # The number of the value, which counts up with each change.
    version: int
    # True: programs of this person may not change the block.
    read_only: bool


class ReadFact(Struct, frozen=True):
    """A fact that holds at present, in the result of `memory_read`."""

    # The id of the fact, fact:N.
    id: str
    # The text of the fact.
    text: str
    # The time from which on the fact holds, in ISO 8601.
    since: str


class ReadResult(Struct, frozen=True):
    """The result of `memory_read`."""

    # The name of the user.
    user: str
    # The memory blocks.
    blocks: tuple[ReadBlock, ...]
    # The facts that hold at present.
    facts: tuple[ReadFact, ...]
    # The number of conversations.
    conversations: int


class ConversationLine(Struct, frozen=True):
    """A conversation in the result of `conversation_read`."""

    # The id of the conversation.
    id: str
    # The time of its first message, in ISO 8601.
    begun: str
    # The time of its last message, in ISO 8601.
    last: str
    # The number of its messages.
    messages: int


class ReadMessage(Struct, frozen=True):
    """A message in the result of `conversation_read`. A text over 4,000 characters is cut, and ends in an ellipsis."""

    # The id of the message, message:N.
    id: str
    # The role of the message.
    role: str
    # The text of the message.
    text: str
    # The time of the message, in ISO 8601.
    at: str


class ConversationResult(Struct, frozen=True, omit_defaults=True):
    """The result of `conversation_read`: conversations, the newest first, or messages of one, oldest first."""

    # The newest conversations; unset: the messages of one were asked for.
    conversations: tuple[ConversationLine, ...] | UnsetType = UNSET
    # The id of the conversation with the messages.
    conversation: str | UnsetType = UNSET
    # The messages of the conversation.
    messages: tuple[ReadMessage, ...] | UnsetType = UNSET


class RememberResult(Struct, frozen=True):
    """The result of `memory_remember`."""

    # The id of the fact.
    id: str
    # True: the fact was remembered already.
    known: bool
    # True: the person has muted the fact: no program reads it until the person unmutes it.
    muted: bool


class CorrectResult(Struct, frozen=True):
    """The result of `memory_correct`."""

    # The id of the new fact.
    id: str
    # The id of the fact that it replaces.
    replaces: str


class EditBlockResult(Struct, frozen=True):
    """The result of `memory_edit_block`."""

    # The label of the block.
    label: str
    # The version of the new value.
    version: int


class ForgetAnswer(Struct, frozen=True):
    """The result of `memory_forget`."""

    # True: the texts are forgotten; False: a second call has to confirm it.
    forgotten: bool
    # The number of texts of each kind that go; null: too many to be counted.
    goes: dict[str, int | None]
    # The word with which the second call confirms; unset: nothing is to be confirmed.
    confirm: str | UnsetType = UNSET


class McpTool(Struct, frozen=True):
    """A tool as `tools/list` shows it."""

    # The name by which a program calls the tool.
    name: str
    # The name that people read.
    title: str
    # The description for the model.
    description: str
    # The type of the arguments.
    arguments: type[Struct]
    # The type of the result.
    result: type[Struct]
    # The opposite of MCP's readOnlyHint.
    writes: bool = False
    # MCP's destructiveHint.
    is_destructive: bool = False
    # MCP's idempotentHint.
    is_idempotent: bool = True


# The tools, in the order in which they are listed.
_TOOLS: Final = (
    McpTool(
        "memory_search",
        "Search memory",
        "Search what this person said before, in any program that shares this memory, and what is known of them: "
        "messages, facts and passages, best first. Look here before you ask the person for "
        "something that they may have told.",
        SearchArguments,
        SearchResult,
    ),
    McpTool(
        "memory_read",
        "Read memory",
        "Read what is always known of this person: the memory blocks and the newest facts.",
        ReadArguments,
        ReadResult,
    ),
    McpTool(
        "conversation_read",
        "Read conversations",
        "List this person's conversations, or read messages of one: the newest, or those around a message.",
        ConversationArguments,
        ConversationResult,
    ),
    McpTool(
        "memory_remember",
        "Remember",
        "Remember one fact about this person: something that they said or decided and that will matter later. One "
        "fact a call, with names and dates in place of words such as yesterday. No secrets. A fact that the person "
        "has muted stays muted.",
        RememberArguments,
        RememberResult,
        writes=True,
    ),
    McpTool(
        "memory_correct",
        "Correct a fact",
        "Put a new text in the place of a fact that is wrong or no longer true. The old one stays in the history.",
        CorrectArguments,
        CorrectResult,
        writes=True,
        is_idempotent=False,
    ),
    McpTool(
        "memory_edit_block",
        "Edit a memory block",
        "Give a memory block a new value. Read it first: the version has to be the present one.",
        EditBlockArguments,
        EditBlockResult,
        writes=True,
        is_idempotent=False,
    ),
    McpTool(
        "memory_forget",
        "Forget",
        "Erase a message, fact or passage, and all that was derived from it, for good. The first call changes "
        "nothing: it says what would go, and gives a word. Ask the person, then call again with it as `confirm`.",
        ForgetArguments,
        ForgetAnswer,
        writes=True,
        is_destructive=True,
        is_idempotent=False,
    ),
)  # fmt: skip
# The tools by their names.
TOOLS: Final[Mapping[str, McpTool]] = {tool.name: tool for tool in _TOOLS}
# The text that a program gets when it connects.
INSTRUCTIONS: Final = (
    "The long-term memory of one person, shared by all programs that they use. Search it when something of their past, "
    "work, people or tastes may matter, and remember what they tell that will matter later."
)


class McpCaller(Struct, frozen=True):
    """The caller of a tool."""

    # The project of the memory.
    project: str
    # The name of the memory's profile.
    profile: str
    # The user of the memory; None: the caller named no user.
    user: str | None
    # True: the caller may change memory: the mode is not `read`.
    may_write: bool = True
    # The id of the gateway key; 0: no key.
    key_id: int = 0
    # The name and version that the program gives; "": the program gives no name.
    client: str = ""

    @property
    def origin(self) -> str:
        """The origin of the texts that the caller writes."""
        return f"{ORIGIN}:{self.client}" if self.client else ORIGIN


class McpAnswer(Struct, frozen=True):
    """The answer to a call: a result, or an error."""

    # The result; None: the call has an error.
    value: dict[str, Any] | None = None
    # The error as a sentence; "": the call has a result.
    error: str = ""


def make_client_name(name: object, version: object) -> str:
    """Returns the name of a program with its version, as it is stored."""
    words = f"{name} {version}" if version else str(name)
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())[:_CLIENT_CHARS]


def describe_mcp_origin(origin: str) -> str | None:
    """Returns the words for the origin of a change that came through MCP; None for every other origin."""
    kind, _, client = origin.partition(":")
    if kind != ORIGIN:
        return None
    return f"through MCP ({client})" if client else "through MCP"


class TextId(NamedTuple):
    """The parts of an id such as `fact:7`."""

    # The kind of the text.
    kind: TextKind
    # The number of the text in its memory.
    seq: int


def parse_id(text_id: str, kinds: tuple[TextKind, ...] = KINDS, *, argument: str = "id") -> TextId:
    """Returns the parts of an id. Raises: BadRequest: it is no id of one of these kinds.

    argument: the name of the argument with the id, for the error.
    """
    match = _ID.fullmatch(text_id)
    kind = next((each for each in kinds if match is not None and each == match[1]), None)
    if match is None or kind is None:
        raise BadRequest(f"{argument} must be {' or '.join(f'{each}:N' for each in kinds)}.", param=argument)
    return TextId(kind, int(match[2]))


def make_schema(struct_type: type[Struct]) -> dict[str, Any]:
    """Returns the JSON Schema of a struct without references, which some clients cannot follow."""
    (schema,), parts = msgspec.json.schema_components([struct_type], ref_template="{name}")

    def inline(value: Any) -> Any:
        if isinstance(value, list):
            return [inline(part) for part in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inline(parts[value["$ref"]])
        return {
            name: inline(part) for name, part in value.items() if name != "title" or not isinstance(part, str)
        }

    inlined_schema: dict[str, Any] = inline(schema)
    inlined_schema.pop("description", None)
    return inlined_schema
