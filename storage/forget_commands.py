"""Parameters and results of the transactions of forgetting, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from storage.records import MemoryEdit


class BlockVersionKey(NamedTuple):
    """The key of an earlier version of a block."""

    # The row of the block.
    block_row: int
    # The number of the version among those of the block.
    number: int


class ForgetTarget(
    Struct,
    frozen=True,
    rename={
        "message_seqs": "messages",
        "passage_seqs": "passages",
        "fact_seqs": "facts",
        "file_rows": "files",
        "exchange_rows": "exchanges",
        "conversation_row": "conversation",
        "block_versions": "versions",
        "import_row": "imported",
    },
):
    """The part of one memory that is to be forgotten. It is stored as JSON with the names of `rename`."""

    # The numbers of messages.
    message_seqs: Sequence[int] = ()
    # The numbers of passages.
    passage_seqs: Sequence[int] = ()
    # The numbers of facts; the messages that the facts came from stay.
    fact_seqs: Sequence[int] = ()
    # The rows of files.
    file_rows: Sequence[int] = ()
    # The rows of exchanges.
    exchange_rows: Sequence[int] = ()
    # The row of a conversation.
    conversation_row: int | None = None
    # Earlier versions of blocks. Of each, the lines that its block no longer has are forgotten.
    block_versions: Sequence[BlockVersionKey] = ()
    # The time, in seconds since the epoch, before which the whole content is forgotten.
    before: float | None = None
    # The row of an import, of which all exchanges and facts that it has added are forgotten.
    import_row: int | None = None
    # True for the whole memory with its secret.
    is_all: bool = False
    # True if facts and passages that came from the target stay.
    keeps_memory: bool = False
    # True if finished turns that the exchanges have replaced stay, since clients have their ids.
    keeps_replaced: bool = False


class Extent(Struct, frozen=True):
    """The size of a target before it is forgotten."""

    # The number of messages that will be forgotten; the messages of a whole memory are not counted.
    messages: int = 0
    # The number of messages that stay in exchanges of which a part is forgotten.
    remaining: int = 0
    # The public id of the conversation that is the target; None: another target.
    conversation_uid: str | None = None


class ErasedMarks(Struct, frozen=True):
    """Marks of erased content, by which notes that may quote that content are found."""

    # The days of the erased messages, counted since 1970, UTC.
    days: frozenset[int]
    # True if a block or an edit was erased.
    has_blocks: bool = False


class RevisedValue(Struct, frozen=True):
    """A later value of a block, built on erased content."""

    # The text of the value.
    value: str
    # True if the value itself came from erased content.
    is_erased: bool = False
    # The texts of the user's messages that the value came from and that stay.
    remaining: Sequence[str] = ()
    # The edit that made the value, if its turn stays.
    edit: MemoryEdit | None = None
    # True if an undo brought back a value from before the erased content.
    is_clean: bool = False
    # The index of the later value that an undo brought back; None: no undo made the value.
    restores: int | None = None
    # True if an operator or the person has written the value.
    is_manual: bool = False


class RebuiltValues(NamedTuple):
    """The later values of a block, without erased content."""

    # The values, oldest first, beginning with the first that was built on erased content.
    values: Sequence[str]
    # The pending edits that may bring back erased content.
    repeating_edits: Sequence[MemoryEdit]
