"""Rebuilds blocks after a forgetting.

Versions that came from erased content are dropped, and the versions that were built on a dropped one are made again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from storage.database import Connection, Row
from storage.forget_commands import RevisedValue
from storage.records import MANUAL_ORIGINS, Block
from storage.row_bytes import count_text_bytes
from storage.search.common_words import is_function_word
from storage.search.text_words import has_whole_words
from storage.sql.block_history import (
    BlockVersion,
    EditKey,
    collect_lost_lines,
    collect_mixed_sources,
    load_versions,
)
from storage.sql.blocks import FORGET_ORIGIN, FORGOTTEN_ORIGIN, get_block, write_block
from storage.sql.erasing_work import ForgottenProfile
from storage.sql.exchange_rows import make_shown_exchanges
from storage.sql.statements import load, load_column, load_rows
from storage.sql.turn_edits import make_edit
from storage.store_rules import Rules

SQL = load("rebuild.sql")

# The most exchanges of which remaining messages are read for a block: this takes milliseconds, while the writer waits.
_MAX_REMAINING = 64
# No sources, and no arguments of a call, as JSON.
_NO_SOURCES = b"[]"
_NO_ARGUMENTS = b"{}"


async def select_erased_rows(connection: Connection, exchange_rows: Iterable[int]) -> set[int]:
    """Returns the rows of those exchanges that are being forgotten, in any memory."""
    return {row[0] for row in await load_rows(connection, SQL["select_erased"], sorted(set(exchange_rows)))}


async def load_remaining_texts(
    connection: Connection,
    agent_row: int,
    exchange_rows: Iterable[int],
    rules: Rules,
    going_seqs: Collection[int] = frozenset(),
) -> dict[int, list[str]]:
    """Returns the texts of the user's messages that stay in exchanges, by the exchange's row.

    exchange_rows: the rows of the exchanges, of which the newest `_MAX_REMAINING` are read.
    rules: the rules that make messages of an exchange.
    going_seqs: the numbers of messages that will be erased, and are left out.
    """
    newest_rows = sorted(exchange_rows)[-_MAX_REMAINING:]
    rows = await load_rows(connection, SQL["remaining"], newest_rows, agent_row)
    return {
        exchange.id: [
            message.text
            for message in rules.list_messages(exchange, is_shared, previous, None)
            if message.role == "user" and message.seq not in going_seqs
        ]
        for exchange, is_shared, previous in make_shown_exchanges(rows)
    }


class WritableBlock(NamedTuple):
    """A block that a memory's agent could write."""

    # The row of the block.
    row: int
    # The row of the memory that owns the block; None: no memory owns it.
    owner: int | None


async def load_writable_blocks(
    connection: Connection, agent_row: int, forgotten_profile: ForgottenProfile | None = None
) -> list[WritableBlock]:
    """Returns the blocks that a memory's agent could write, in the order in which they are locked.

    forgotten_profile: the profile of a memory that is forgotten as a whole; None: the memory has its row.
    """
    profile = forgotten_profile or await connection.fetch_row(SQL["profile_of"], (agent_row,))
    if profile is None:
        return []
    rows = await connection.fetch_rows(SQL["writable_blocks"], (agent_row, *profile))
    return [WritableBlock(*row) for row in rows]


async def rebuild_block(
    connection: Connection,
    agent_row: int,
    block_row: int,
    rules: Rules,
    now: float,
    texts: Collection[str] = frozenset(),
) -> bool:
    """Drops the versions of a block that came from erased content, and remakes the versions that were built on these.

    A pending edit that may bring the content back is emptied: its turn may have seen the old block during the
    forgetting.

    agent_row: the agent from whose memory something is forgotten. Versions that its batch items have written without a
        turn are dropped, too.
    rules: the rules that make the new values.
    now: the time of the forgetting, in seconds since the epoch.
    texts: texts in small letters. Lines that have one of the texts as whole words are dropped from all versions.

    Returns whether the block had any version to drop.
    """
    await connection.fetch_rows(SQL["block_lock"], (block_row,))
    division = await _divide_versions(connection, agent_row, block_row, rules, texts)
    await erase_edits(connection, division.edits_to_erase)
    later = division.later
    if not later:
        return False
    block = await get_block(connection, block_row)
    rows = await connection.fetch_rows(SQL["edits_pending_in_block"], (block_row, block.label))
    pending_edits = [make_edit(row) for row in rows]
    base = division.base
    values, repeating_edits = rules.rebuild_block(
        replace(block, value=base),
        [revised_value for _, revised_value in later],
        pending_edits,
        is_function_word,
    )
    await erase_edits(connection, [EditKey(edit.exchange_row, edit.call_id) for edit in repeating_edits])
    dropped_numbers = _list_dropped(base, later, values)
    if not dropped_numbers and values == [version.value for version, _ in later]:
        return False
    rewritten = await _rewrite_rows(connection, block_row, later, values, dropped_numbers)
    await _write_following(connection, block, division.clean, rewritten, final_value=values[-1], now=now)
    return True


async def _divide_versions(
    connection: Connection, agent_row: int, block_row: int, rules: Rules, texts: Collection[str]
) -> _Division:
    """Returns the versions of a block, divided for a forgetting. The parameters are as in `rebuild_block`."""
    versions = await load_versions(connection, block_row)
    turnless_numbers = set(await load_column(connection, SQL["versions_turnless"], (agent_row, block_row)))
    erased_rows = await select_erased_rows(
        connection, chain.from_iterable(version.source_rows for version in versions)
    )
    remaining_texts = await load_remaining_texts(
        connection, agent_row, collect_mixed_sources(versions, erased_rows), rules
    )
    division = _Division(erased_rows, turnless_numbers, texts, remaining_texts)
    await division.add_all(connection, versions)
    return division


async def remove_lost_lines(
    connection: Connection, block_row: int, numbers: Collection[int], now: float
) -> bool:
    """Removes the lines of versions that the block no longer has from all versions. Returns False if there are none.

    The versions stay with their other lines, so that each line keeps its sources.
    """
    await connection.fetch_rows(SQL["block_lock"], (block_row,))
    versions = [
        version
        for version in await load_versions(connection, block_row)
        if version.origin != FORGOTTEN_ORIGIN
    ]
    lost_lines = collect_lost_lines(versions, numbers)
    if not lost_lines.later:
        return False
    await erase_edits(connection, [version.edit for version in lost_lines.later if version.edit is not None])
    values = [version.value for version in lost_lines.later_without]
    later = [_RevisedVersion(version, RevisedValue(version.value)) for version in lost_lines.later]
    rewritten = await _rewrite_rows(connection, block_row, later, values, _list_dropped("", later, values))
    clean = versions[: len(versions) - len(later)]
    block = await get_block(connection, block_row)
    await _write_following(connection, block, clean, rewritten, final_value=block.value, now=now)
    return True


async def erase_edits(connection: Connection, edits: Iterable[EditKey]) -> None:
    """Empties the arguments of edits."""
    for edit in edits:
        await connection.run(SQL["edit_of_call_erase"], (*edit, _NO_ARGUMENTS))


class _RewrittenVersion(NamedTuple):
    """A version of a block, and its new value."""

    # The version.
    version: BlockVersion
    # The new value.
    value: str


def _list_dropped(base: str, later: Sequence[_RevisedVersion], values: Sequence[str]) -> set[int]:
    """Returns the numbers of the later versions of which nothing is left.

    base: the value before the later versions.
    values: the new value of each later version.
    """
    return {
        version.number
        for (version, revised_value), value_before, value in zip(
            later, [base, *values[:-1]], values, strict=True
        )
        if version.is_remainder
        or (revised_value.is_erased and (value == value_before or not revised_value.remaining))
    }


class _RewrittenVersions(NamedTuple):
    """The later versions of a block that are not dropped."""

    # The versions that stay in their rows.
    staying: list[_RewrittenVersion]
    # The versions to be written again, as new versions: from the first one on whose row has no room for its new value.
    following: list[_RewrittenVersion]


async def _rewrite_rows(
    connection: Connection,
    block_row: int,
    later: Sequence[_RevisedVersion],
    values: Sequence[str],
    dropped_numbers: Collection[int],
) -> _RewrittenVersions:
    """Writes new values into the rows of versions as far as they fit, and empties the rows of all others.

    values: the new value of each version in `later`.
    dropped_numbers: the numbers of the versions that do not stay.
    """
    rewritten = _RewrittenVersions([], [])
    for (version, _), value in zip(later, values, strict=True):
        is_dropped = version.number in dropped_numbers
        sources = None if is_dropped or rewritten.following else _make_padded_sources(version, value)
        if sources is None:
            await connection.run(
                SQL["version_erase"], (FORGOTTEN_ORIGIN, block_row, version.number, _NO_SOURCES)
            )
            if not is_dropped:
                rewritten.following.append(_RewrittenVersion(version, value))
            continue
        if value != version.value:
            await connection.run(SQL["version_rewrite"], (value, sources, block_row, version.number))
        rewritten.staying.append(_RewrittenVersion(version, value))
    return rewritten


class BlockPreview(NamedTuple):
    """A block as a forgetting would leave it."""

    # The value that the block would have.
    value: str
    # The number of versions that came from erased content and would not stay.
    erased_count: int
    # The number of versions that would stay with another value.
    rebuilt_count: int


async def preview_block(
    connection: Connection,
    block: Block,
    versions: Sequence[BlockVersion],
    rules: Rules,
    erased_rows: Collection[int],
    texts: Collection[str],
    remaining_texts: Mapping[int, Sequence[str]],
) -> BlockPreview:
    """Returns the value that a block would have after a forgetting. Nothing is written.

    versions: all versions of the block, oldest first.
    rules: the rules that make the new values.
    erased_rows: the rows of the exchanges that would be erased.
    texts: texts in small letters. Lines that have one of them as whole words are dropped.
    remaining_texts: the texts of the user's messages that stay, by exchange, as `load_remaining_texts` returns them.
    """
    division = _Division(erased_rows, (), texts, remaining_texts)
    await division.add_all(connection, versions)
    base, later = division.base, division.later
    if not later:
        return BlockPreview(block.value, 0, 0)
    values, _ = rules.rebuild_block(
        replace(block, value=base), [revised_value for _, revised_value in later], (), is_function_word
    )
    dropped_numbers = _list_dropped(base, later, values)
    rebuilt_count = sum(
        version.number not in dropped_numbers and version.value != value
        for (version, _), value in zip(later, values, strict=True)
    )
    erased_count = sum(
        revised_value.is_erased and version.number in dropped_numbers for version, revised_value in later
    )
    return BlockPreview(values[-1], erased_count, rebuilt_count)


async def _write_following(
    connection: Connection,
    block: Block,
    clean: Iterable[BlockVersion],
    rewritten: _RewrittenVersions,
    final_value: str,
    now: float,
) -> None:
    """Writes the following versions again, and after them the version with which a forgetting ends.

    clean: the versions before the rewritten ones.
    final_value: the value of the last version.
    now: the time of the forgetting, in seconds since the epoch.
    """
    staying = [*(_RewrittenVersion(version, version.value) for version in clean), *rewritten.staying]
    number = block.version
    # The present numbers of versions, by their numbers before.
    numbers: dict[int | None, int] = {version.number: version.number for version, _ in staying}
    for version, value in rewritten.following:
        await write_block(
            connection, block.id, number, value, at=version.at, origin=version.origin,
            exchange_row=version.exchange_row, sources=orjson.loads(version.sources),
            restores=numbers.get(version.restores), is_bounded=False,
        )  # fmt: skip
        number += 1
        numbers[version.number] = number
    newest_first = reversed([*staying, *rewritten.following])
    restored = next((version for version, value in newest_first if value == final_value), None)
    await write_block(
        connection, block.id, number, final_value, at=now, origin=FORGET_ORIGIN,
        sources=[] if restored is None else sorted(restored.source_rows),
        restores=None if restored is None else numbers[restored.number], is_bounded=False,
    )  # fmt: skip


def _make_padded_sources(version: BlockVersion, value: str) -> bytes | None:
    """Returns padded sources, with which a version's row has the same length with another value; None: none fit.

    Over SQLite a shorter row would move its neighbours, and leave copies of them in the file.
    """
    room = (
        count_text_bytes(version.value.encode())
        - count_text_bytes(value.encode())
        + count_text_bytes(version.sources)
    )
    # The length itself takes up to three bytes.
    for length in range(max(room - 3, len(version.sources)), room + 1):
        padded = version.sources.ljust(length)
        if count_text_bytes(padded) == room:
            return padded
    return None


class _RevisedVersion(NamedTuple):
    """A version of a block from the first one on that has erased content."""

    # The version.
    version: BlockVersion
    # The facts by which its value is made again.
    revised_value: RevisedValue


class _Division:
    """The versions of a block, divided at the first version that has erased content. It writes nothing."""

    def __init__(
        self,
        erased_rows: Collection[int],
        turnless_numbers: Collection[int],
        texts: Collection[str],
        remaining_texts: Mapping[int, Sequence[str]],
    ) -> None:
        """Begins without a version.

        erased_rows: the rows of the erased exchanges.
        turnless_numbers: the numbers of the versions that are erased though they came from no exchange.
        texts: texts in small letters. Lines that have one of them as whole words are dropped.
        remaining_texts: the texts of the user's messages that stay, by exchange, from `load_remaining_texts`.
        """
        # The versions before the first version with erased content.
        self.clean: list[BlockVersion] = []
        # The first version with erased content and all later versions, each of which may have erased words.
        self.later: list[_RevisedVersion] = []
        # The edits that brought erased content into versions.
        self.edits_to_erase: list[EditKey] = []
        self._erased_rows = erased_rows
        self._turnless_numbers = turnless_numbers
        self._texts = texts
        self._remaining_texts = remaining_texts
        # The values of clean versions, by their numbers.
        self._clean_values: dict[int | None, str] = {}
        # The indexes of the later versions in `later`, by their numbers.
        self._later_indexes: dict[int | None, int] = {}
        # The lines of the version before.
        self._lines_before = frozenset[str]()

    @property
    def base(self) -> str:
        """The value before the later versions."""
        return self.clean[-1].value if self.clean else ""

    async def add_all(self, connection: Connection, versions: Iterable[BlockVersion]) -> None:
        """Adds the versions of the block, oldest first."""
        for version in versions:
            if version.origin != FORGOTTEN_ORIGIN:
                await self._add_version(connection, version)

    async def _add_version(self, connection: Connection, version: BlockVersion) -> None:
        """Adds the next version of the block to `clean`, or to `later` from the first erased content on."""
        lines = version.value.split("\n")
        quoting_lines = {
            line for line in lines if any(has_whole_words(line.casefold(), text) for text in self._texts)
        }
        is_erased = version.number in self._turnless_numbers or not version.source_rows.isdisjoint(
            self._erased_rows
        )
        brings_erased = is_erased or bool(quoting_lines - self._lines_before)
        self._lines_before = frozenset(lines)
        if not (self.later or brings_erased):
            self.clean.append(version)
            self._clean_values[version.number] = version.value
            return
        edit_key = version.edit
        if edit_key is not None and brings_erased:
            # Its exchange may stay, so that the phase of exchanges does not empty the edit: the edit has one of the
            # texts, or its exchange is a sleeptime agent's.
            self.edits_to_erase.append(edit_key)
            edit_key = None
        if not is_erased and version.restores in self._clean_values:
            # An undo restored a clean value, from which the later versions follow.
            revised_value = RevisedValue(self._clean_values[version.restores], is_clean=True)
        else:
            edit_row = None if edit_key is None else await connection.fetch_row(SQL["edit_of_call"], edit_key)
            # An erased value has all of its lines: they show which words it has brought in.
            staying_lines = lines if is_erased else [line for line in lines if line not in quoting_lines]
            revised_value = self._revise(version, staying_lines, edit_row, is_erased=is_erased)
        self._later_indexes[version.number] = len(self.later)
        self.later.append(_RevisedVersion(version, revised_value))

    def _revise(
        self, version: BlockVersion, staying_lines: Sequence[str], edit_row: Row | None, *, is_erased: bool
    ) -> RevisedValue:
        """Returns the value of a version with the lines that stay.

        edit_row: the row of the edit that made the version; None: no edit made it, or the edit is to be erased.
        """
        return RevisedValue(
            "\n".join(staying_lines),
            is_erased,
            remaining=[
                text
                for row in version.source_rows & self._remaining_texts.keys()
                for text in self._remaining_texts[row]
            ],
            edit=None if edit_row is None else make_edit(edit_row),
            restores=self._later_indexes.get(version.restores),
            is_manual=version.origin in MANUAL_ORIGINS,
        )
