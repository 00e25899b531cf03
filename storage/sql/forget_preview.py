"""Previews of forgettings: counts the content that a forgetting would erase (storage/sql/erase.py)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from storage.database import Connection, Database
from storage.forget_commands import BlockVersionKey, ErasedMarks, ForgetTarget
from storage.listing import LAST_NUMBER
from storage.operator_records import ErasedFact, ForgetCounts, RebuiltBlock
from storage.sql.additions import DAY_S
from storage.sql.block_history import collect_lost_lines, load_versions
from storage.sql.exchange_rows import unpack_notes
from storage.sql.exchanges import find_exchange_row
from storage.sql.forget_targets import list_remaining_seqs
from storage.sql.group import StoreGroup, long_reads
from storage.sql.preview_content import (
    MAX_EXCHANGES,
    NO_CONVERSATION,
    ErasedContent,
    ErasedExchanges,
    ErasedSpan,
    find_erased_spans,
)
from storage.sql.preview_notes import choose_newest_rows, count_notes, count_quoting_notes
from storage.sql.preview_versions import count_versions_from_exchanges, count_versions_with_texts
from storage.sql.replaced_exchanges import find_occurrences, find_replaced
from storage.sql.statements import load, load_column, load_rows
from storage.store_rules import Rules

SQL = load("forget_preview.sql")
_ERASE_SQL = load("erase.sql")

# The most exchanges that a statement takes as a list; a target that names more is counted by the first of them.
_LISTED_EXCHANGES = 64
# The exchanges by which a turn is followed back from a reply: answers of earlier steps may be repeated. Chosen: more
# steps than a loop of tools has.
_MAX_STEPS = 50
# The most facts of which a preview has the texts.
_LISTED_FACTS = 20


class ErasedFacts(NamedTuple):
    """Facts that are erased with messages."""

    # The newest facts, the newest first.
    newest: Sequence[ErasedFact]
    # The number of all such facts.
    total: int


class PreviewedCounts(NamedTuple):
    """The number of records that are erased with a target, and further numbers of a preview."""

    # The number of records of each kind.
    counts: ForgetCounts
    # The newest facts that are erased with messages.
    facts: Sequence[ErasedFact] = ()
    # The number of versions of blocks that stay, without the lines that came from the target.
    rebuilt_count: int = 0
    # The blocks that change, as far as they were rebuilt.
    changes: Sequence[RebuiltBlock] = ()
    # The rows of the newest exchanges that stay and lose a note, the newest first.
    noted_rows: Sequence[int] = ()
    # The numbers of messages that are erased as well, since the target replaced them.
    replaced_seqs: Collection[int] = ()


class _TargetExchanges(NamedTuple):
    """The exchanges that are erased with a target, and the messages that the target does not name."""

    # The exchanges.
    exchanges: ErasedExchanges
    # The numbers of messages that are erased as well, since the target replaced them.
    replaced_seqs: Collection[int]


class _RowRange(NamedTuple):
    """The first and the last row between which all exchanges of a target are."""

    first_row: int
    last_row: int


class ForgetPreviews(StoreGroup):
    """Counts the records that forgettings would erase now."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    @long_reads
    async def count(
        self, connection: Connection, agent_row: int, target: ForgetTarget, message_count: int
    ) -> PreviewedCounts:
        """Returns the number of records that would be erased with a target.

        A version or a note that is erased with several facts, or with facts and with messages, counts more than once.

        target: the target, perhaps with the rows of its messages' exchanges, which then need not be looked up.
        message_count: the number of the target's messages, as `ForgetTargets.measure` returns it. The messages of a
            whole memory are counted here, and so are messages that the target has replaced.
        """
        if target.is_all:
            return PreviewedCounts(await _count_whole(connection, agent_row))
        if not target.block_versions:
            return await self._count_content(connection, agent_row, target, message_count)
        version_counts = await self._count_lost_lines(connection, agent_row, target.block_versions)
        content_counts = await self._count_content(connection, agent_row, target, message_count)
        return _add_counts(content_counts, version_counts, ForgetTarget())

    async def _count_content(
        self, connection: Connection, agent_row: int, target: ForgetTarget, message_count: int
    ) -> PreviewedCounts:
        """Counts the records that would be erased with a target, except for the versions of blocks that it names.

        message_count: the number of the target's messages.
        """
        erased, replaced_seqs = await self._load_target_exchanges(connection, agent_row, target)
        message_count += len(replaced_seqs)
        texts = await _read_named_texts(connection, agent_row, target)
        seqs = {*target.message_seqs, *replaced_seqs} if target.message_seqs else ()
        content = ErasedContent(erased, texts, seqs, target.block_versions)
        named_counts = None
        if target.fact_seqs or target.passage_seqs:
            named_counts = await self._count_named(connection, agent_row, target, content)
            if not erased.exchange_rows:
                return named_counts
        message_counts = await self._count_erased(connection, agent_row, content, message_count)
        message_counts = message_counts._replace(replaced_seqs=replaced_seqs)
        return message_counts if named_counts is None else _add_counts(message_counts, named_counts, target)

    @long_reads
    async def list_facts(
        self, connection: Connection, agent_row: int, target: ForgetTarget, limit: int | None
    ) -> ErasedFacts:
        """Returns the newest facts that would be erased with the messages of a target, and the number of all.

        A fact that the target names is among them only if it is erased with the messages, too.

        limit: the most facts that are returned; None: all.
        """
        erased, _ = await self._load_target_exchanges(connection, agent_row, target)
        spans = await find_erased_spans(connection, erased)
        return await _read_facts(connection, (*erased, *_measure_row_range(spans)), limit)

    async def _load_target_exchanges(
        self, connection: Connection, agent_row: int, target: ForgetTarget
    ) -> _TargetExchanges:
        """Returns the exchanges that are erased with a target, also the exchanges that these replaced."""
        if target.conversation_row is not None:
            return _TargetExchanges(ErasedExchanges(agent_row, target.conversation_row, []), ())
        exchange_rows = target.exchange_rows or [
            row for seq in target.message_seqs if (row := await find_exchange_row(connection, agent_row, seq))
        ]
        rows = {*sorted({*exchange_rows})[:_LISTED_EXCHANGES]}
        values = (agent_row, _MAX_STEPS, sorted(rows))
        replacing_rows = await load_column(connection, SQL["replacing"], values) if rows else []
        # The exchanges that replaced others, each with the number of the message that it loses; None: it is erased.
        occurrences: list[tuple[int, int | None]] = [(row, None) for row in replacing_rows]
        if replacing_rows and target.message_seqs:
            occurrences = [
                occurrence
                for seq in target.message_seqs
                for occurrence in await find_occurrences(connection, agent_row, seq)
            ]
        seqs = {seq for _, seq in occurrences if seq is not None}
        for row, seq in occurrences:
            rows.add(row)
            for exchange, is_whole in await find_replaced(connection, self._rules, agent_row, row, seq):
                rows.add(exchange.id)
                remaining_seqs = list_remaining_seqs(exchange)
                seqs.update(remaining_seqs if is_whole else {exchange.reply_seq}.intersection(remaining_seqs))
        erased = ErasedExchanges(agent_row, NO_CONVERSATION, sorted(rows)[:_LISTED_EXCHANGES])
        return _TargetExchanges(erased, seqs.difference(target.message_seqs))

    async def _count_erased(
        self,
        connection: Connection,
        agent_row: int,
        content: ErasedContent,
        message_count: int,
    ) -> PreviewedCounts:
        """Counts the records that would be erased with exchanges. message_count: as in `count`."""
        erased = content.exchanges
        spans = await find_erased_spans(connection, erased)
        values = (*erased, *_measure_row_range(spans))
        versions = await count_versions_from_exchanges(connection, self._rules, content, values)
        # With facts that are named as well, all are read, so that none counts twice.
        facts = await _read_facts(connection, values, None if content.fact_texts else _LISTED_FACTS)
        notes = await count_notes(
            connection, self._rules, erased, spans, has_blocks=versions.erased_count > 0
        )
        counts = ForgetCounts(
            messages=message_count,
            facts=facts.total,
            passages=await connection.fetch_value(SQL["passages"], values),
            versions=versions.erased_count,
            summaries=await _count_summaries(connection, agent_row, spans),
            notes=notes.total,
        )
        return PreviewedCounts(
            counts, facts.newest, versions.rebuilt_count, versions.changes, notes.exchange_rows
        )

    async def _count_lost_lines(
        self, connection: Connection, agent_row: int, named_versions: Sequence[BlockVersionKey]
    ) -> PreviewedCounts:
        """Counts the versions that have lines of named versions that their blocks no longer have."""
        shortened_count = 0
        for block_row in {row for row, _ in named_versions}:
            versions = await load_versions(connection, block_row)
            numbers = [number for row, number in named_versions if row == block_row]
            shortened_count += len(collect_lost_lines(versions, numbers).with_lines)
        notes = await count_quoting_notes(
            connection, self._rules, agent_row, ErasedMarks(frozenset(), has_blocks=True)
        )
        counts = ForgetCounts(
            messages=0, facts=0, passages=0, versions=shortened_count, summaries=0, notes=notes.total
        )
        return PreviewedCounts(counts, noted_rows=notes.exchange_rows)

    async def _count_named(
        self,
        connection: Connection,
        agent_row: int,
        target: ForgetTarget,
        content: ErasedContent,
    ) -> PreviewedCounts:
        """Counts the records that would be erased with the facts and passages that a target names."""
        versions = await count_versions_with_texts(connection, self._rules, content)
        days = await load_rows(
            connection, SQL["days_named"], [*target.fact_seqs, *target.passage_seqs], agent_row
        )
        marks = ErasedMarks(frozenset(int(at // DAY_S) for (at,) in days), versions.erased_count > 0)
        notes = await count_quoting_notes(
            connection, self._rules, agent_row, marks, content.exchanges.exchange_rows
        )
        counts = ForgetCounts(
            messages=0,
            facts=len(content.fact_texts),
            passages=len(target.passage_seqs),
            versions=versions.erased_count,
            summaries=0,
            notes=notes.total,
        )
        return PreviewedCounts(counts, (), versions.rebuilt_count, versions.changes, notes.exchange_rows)


def _add_counts(
    message_counts: PreviewedCounts, named_counts: PreviewedCounts, target: ForgetTarget
) -> PreviewedCounts:
    """Returns the sum of the counts for messages, and for the named entries of a target: facts, passages, versions.

    target: the target; its facts are not counted yet.
    """
    erased_seqs = {fact.seq for fact in message_counts.facts}
    message_totals, named_totals = message_counts.counts, named_counts.counts
    counts = ForgetCounts(
        messages=message_totals.messages,
        facts=message_totals.facts + sum(seq not in erased_seqs for seq in target.fact_seqs),
        passages=message_totals.passages + named_totals.passages,
        versions=message_totals.versions + named_totals.versions,
        summaries=message_totals.summaries,
        notes=None
        if message_totals.notes is None or named_totals.notes is None
        else message_totals.notes + named_totals.notes,
    )
    changes = tuple(dict.fromkeys((*message_counts.changes, *named_counts.changes)))
    rebuilt_count = message_counts.rebuilt_count + named_counts.rebuilt_count
    noted_rows = choose_newest_rows(
        sorted((*message_counts.noted_rows, *named_counts.noted_rows), reverse=True)
    )
    facts = message_counts.facts[:_LISTED_FACTS]
    return message_counts._replace(
        counts=counts, facts=facts, rebuilt_count=rebuilt_count, changes=changes, noted_rows=noted_rows
    )


def _measure_row_range(spans: Sequence[ErasedSpan]) -> _RowRange:
    """Returns the range of rows in which the exchanges of a target lie, which may be all rows."""
    if any(span.exchange_count > MAX_EXCHANGES for span in spans):
        return _RowRange(0, LAST_NUMBER)
    rows = [row for span in spans for row in (span.first_row, span.last_row)]
    return _RowRange(min(rows, default=0), max(rows, default=0))


async def _read_facts(connection: Connection, values: Sequence[object], limit: int | None) -> ErasedFacts:
    """Returns the newest facts that are erased with messages.

    values: the parameters of the statements: the erased exchanges, and the range of their rows.
    limit: the most facts that are returned; None: all.
    """
    count = await connection.fetch_value(SQL["fact_count"], values)
    read_count = count if limit is None else min(count, limit)
    rows = await connection.fetch_rows(SQL["facts"], (*values, read_count)) if read_count else []
    return ErasedFacts(
        [ErasedFact(seq, text, origin, bool(is_true)) for seq, text, origin, is_true in rows], count
    )


async def _count_summaries(connection: Connection, agent_row: int, spans: Sequence[ErasedSpan]) -> int:
    """Counts the summaries of paths on which an exchange is erased."""
    count = 0
    for span in spans:
        count += await connection.fetch_value(
            SQL["summaries"], (agent_row, span.conversation_row, span.depth, span.seq)
        )
    return count


async def _count_whole(connection: Connection, agent_row: int) -> ForgetCounts:
    """Counts all records of a memory."""
    row = await connection.fetch_row(SQL["whole"], (agent_row,))
    messages, facts, passages, versions, summaries = row or (0, 0, 0, 0, 0)
    notes = None
    if messages <= MAX_EXCHANGES:
        rows = await connection.fetch_rows(SQL["notes"], (agent_row, 0, MAX_EXCHANGES))
        notes = sum(bool(text) for _, packed in rows for text in unpack_notes(packed).values())
    return ForgetCounts(
        messages=messages,
        facts=facts,
        passages=passages,
        versions=versions,
        summaries=summaries,
        notes=notes,
    )


async def _read_named_texts(connection: Connection, agent_row: int, target: ForgetTarget) -> list[str]:
    """Returns the texts of the facts that a target names."""
    return [
        row[0] for row in await load_rows(connection, _ERASE_SQL["facts_named"], target.fact_seqs, agent_row)
    ]
