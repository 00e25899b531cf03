"""The phases of forgetting, each of which takes a page of rows in a transaction and can be done again.

A forgetting that leaves facts and passages of a conversation (`ForgetTarget.keeps_memory`) skips phases with a star.

    exchanges  the content of exchanges is erased in place, with its words in the index and its vectors; the row stays
               as a tombstone that matches by hashes; a named exchange takes along the exchanges that it replaced;
               of a named message the exchange stays, and the message is among its `redactions` (`erase_exchanges.py`)
    versions*  the lines of named versions of blocks that the blocks no longer have leave all their versions. Before
               blocks are rebuilt, which may number versions again
    blocks*    versions of blocks that came from an erased exchange, and the versions built on these; a new value is
               made of what is left. Early, since turns that begin and end before this phase see the old value
    items      items of the Responses API that wait for a conversation's next response, and each response's own items
    readings   texts of the memory that runs of its sleeptime agents hold
    run_texts  texts that runs of the memory hold besides their exchanges
    files*     files that are too old; named files have gone with the intention
    unlearned* named facts are marked, so that they are not learned again; their sentences leave blocks and edits
    passages*  passages that are too old, came from an erased exchange, or belong to an erased file
    facts*     facts, likewise
    additions  notes and hidden rounds that may quote erased content
    foreign*   notes and rounds that showed other agents a shared block of the memory that lost something
    recalls    hits in the records of recalls that are erased
    released   rows of an undone import that nothing follows
    end        the marks and the intention are deleted

A whole memory, without its row in `agents`, which went with the intention, has phases of its own:

    handed     blocks that other agents see are left to these agents
    shared     versions that came from the memory in blocks that other agents see, and the versions built on these
    wipe_...   the rows of one table each, tables with text first

The store's `Rules` decide whether a text quotes another, and make the value that is left of a block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, takewhile
from typing import NamedTuple

import orjson

from storage.database import Connection
from storage.recall_record import overwrite_forgotten, read_hits
from storage.records import API_PROFILE, REPLY, MarkKind
from storage.search.text_words import has_whole_words
from storage.sql import exchanges
from storage.sql.additions import DAY_S, erase_additions, erase_foreign_additions
from storage.sql.agents_api.blocks import hand_over_blocks
from storage.sql.agents_api.definitions import change_definition, get_definition
from storage.sql.agents_api.run_texts import erase_texts
from storage.sql.agents_api.sleeptime_agents import empty_readings
from storage.sql.block_history import EditKey, collect_source_rows
from storage.sql.erase_exchanges import empty_sections_with_edits, erase_exchanges
from storage.sql.erasing_work import PAGE_ROWS, ErasingPhase, ErasingWork, StoredTarget
from storage.sql.fact_writes import mark_unlearned
from storage.sql.job_rows import raise_epoch
from storage.sql.rebuild import (
    erase_edits,
    load_writable_blocks,
    rebuild_block,
    remove_lost_lines,
    select_erased_rows,
)
from storage.sql.recalls import delete_recall
from storage.sql.sections import empty_sections, empty_sections_showing
from storage.sql.statements import load, load_column, load_rows, run_for_list
from storage.sql.vector_chunks import forget_indexed

SQL = load("erase.sql")

# The rows of one transaction that reads more rows than it erases.
_READ_PAGE_ROWS = 128
# The rows that one transaction deletes. Some have 20 kB.
_DELETED_PAGE_ROWS = 128
# The conversations of one transaction, whose runs of sleeptime agents hold texts.
_CONVERSATION_PAGE_ROWS = 4

# The kinds of hits. A hit of the kind `any` may have each of them.
_HIT_KINDS = ("message", "fact", "passage")
# Tables of rows with text: a page of `PAGE_ROWS` is emptied at a time.
_PAGED_TABLES = (
    "versions", "passages", "facts", "ops", "snapshots", "run_texts", "exchanges", "conversations", "vectors",
    "run_steps", "runs", "files",
)  # fmt: skip
# Tables that grow with each turn: a page of `_DELETED_PAGE_ROWS` is deleted at a time.
_DELETED_TABLES = ("imported", "marks", "terms", "segments")
# Tables that are deleted at once, blocks when their versions are empty.
_WHOLE_TABLES = (
    "block_texts", "block_details", "block_sharing", "blocks", "attached", "imports", "ended", "muted", "recalls",
    "links", "readers", "forks", "embedded",
)  # fmt: skip


class _SourcedRow(NamedTuple):
    """A passage or a fact with its sources, as `passages_of` and `facts_of` read it."""

    # The row of the passage or fact.
    id: int
    # The number of the passage or fact.
    seq: int
    # The time at which the passage was written, or from which on the fact is true, in seconds since the epoch.
    at: float
    # The row of the exchange in which the passage was made; None: a fact, or a passage that no turn has made.
    exchange_row: int | None
    # The rows of the exchanges that the passage or fact came from, as JSON.
    sources: bytes
    # The row of the file that a passage is a part of; None: it is a part of no file.
    file: int | None


async def _erase_passages(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of passages that are too old, came from an erased exchange, or belong to an erased file.

    position: the row of the last passage on the previous page.
    """
    rows = await _load_sourced_rows(connection, "passages_of", work.agent_row, position)
    target = work.target
    named_rows = {row.id for row in rows if row.seq in target.passage_seqs or row.file in target.file_rows}
    erased_rows = await _select_rows_to_erase(connection, rows, named_rows, target.before)
    for row in erased_rows:
        await connection.run(SQL["passage_erase"], (row.id, work.agent_row))
        await _erase_from_index(connection, work.agent_row, row)
    if erased_rows:
        # A turn that has recalled one of these passages must not commit.
        await raise_epoch(connection, work.agent_row)
    return rows[-1].id if len(rows) == _READ_PAGE_ROWS else None


async def _erase_facts(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of facts that the target has, that came from an erased exchange, or that are too old.

    position: the row of the last fact on the previous page.
    """
    rows = await _load_sourced_rows(connection, "facts_of", work.agent_row, position)
    named_rows = {row.id for row in rows if row.seq in work.target.fact_seqs}
    if work.target.import_row is not None and rows:
        ids = [row.id for row in rows]
        imported_facts = await load_rows(connection, SQL["imported_facts"], ids, work.target.import_row)
        named_rows.update(fact_row for (fact_row,) in imported_facts)
    erased_rows = await _select_rows_to_erase(connection, rows, named_rows, work.target.before)
    for row in erased_rows:
        for statement in ("fact_erase", "fact_ended_erase", "fact_mute_erase"):
            await connection.run(SQL[statement], (row.id, work.agent_row))
        await _erase_from_index(connection, work.agent_row, row)
    if erased_rows:
        # A turn that has recalled one of these facts must not commit. A memory section may show such a fact, too.
        await raise_epoch(connection, work.agent_row)
        await empty_sections(connection, work.agent_row)
    return rows[-1].id if len(rows) == _READ_PAGE_ROWS else None


async def _load_sourced_rows(
    connection: Connection, statement: str, agent_row: int, last_row: int
) -> list[_SourcedRow]:
    """Returns a page of passages or facts. last_row: the row of the last one on the previous page."""
    rows = await connection.fetch_rows(SQL[statement], (agent_row, last_row, _READ_PAGE_ROWS))
    return [_SourcedRow._make(row) for row in rows]


async def _select_rows_to_erase(
    connection: Connection, rows: Sequence[_SourcedRow], named_rows: Collection[int], before: float | None
) -> list[_SourcedRow]:
    """Returns the rows that the target names, rows from before a time, and rows that came from an erased exchange.

    named_rows: the ids of the rows that the target names.
    before: the time, in seconds since the epoch; None: no row is too old.
    """
    sources = {row.id: collect_source_rows(row.exchange_row, row.sources) for row in rows}
    erased_sources = await select_erased_rows(connection, chain.from_iterable(sources.values()))
    return [
        row
        for row in rows
        if row.id in named_rows
        or (before is not None and row.at < before)
        or sources[row.id] & erased_sources
    ]


async def _erase_from_index(connection: Connection, agent_row: int, row: _SourcedRow) -> None:
    """Removes a passage or a fact from the index. Its day is stored until everything that quotes it is erased, too."""
    await exchanges.add_marks(connection, agent_row, MarkKind.DAY, (b"",), int(row.at // DAY_S))
    await forget_indexed(connection, agent_row, [row.seq])


async def _erase_files(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases the files that are too old."""
    if work.target.before is not None:
        await connection.run(SQL["files_before"], (work.agent_row, work.target.before))
    return None


async def _unlearn(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Marks named facts, so that they are not learned again, and takes their sentences out of blocks and edits."""
    rows = await load_rows(connection, SQL["facts_named"], work.target.fact_seqs, work.agent_row)
    for _, key, exchange_row, sources in rows:
        await mark_unlearned(connection, work.agent_row, key, exchange_row, sources)
    if rows:
        texts = frozenset(text.strip().casefold() for text, *_ in rows) - {""}
        await _rebuild_all(connection, work, texts)
        await _erase_pending_edits(connection, work.agent_row, texts)
    return None


async def _erase_pending_edits(connection: Connection, agent_row: int, texts: Collection[str]) -> None:
    """Empties the edits that would add these texts when their turns are confirmed. texts: texts in small letters."""
    edits: list[EditKey] = []
    for exchange_row, call_id, arguments in await connection.fetch_rows(SQL["edits_pending"], (agent_row,)):
        words = "\n".join(map(str, orjson.loads(arguments).values())).casefold()
        if any(has_whole_words(words, text) for text in texts):
            edits.append(EditKey(exchange_row, call_id))
    await erase_edits(connection, edits)
    if edits:
        await empty_sections_with_edits(connection, agent_row)
        await raise_epoch(connection, agent_row)


async def _erase_recalls(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Overwrites the forgotten hits in a page of recalls, and deletes the recalls of forgotten turns.

    position: the row of the last exchange on the previous page.
    """
    agent_row = work.agent_row
    rows = await connection.fetch_rows(SQL["recalls_of"], (agent_row, position, PAGE_ROWS))
    seqs_by_kind: dict[str, set[int]] = {kind: set() for kind in _HIT_KINDS}
    remaining_rows: set[int] = set()
    for exchange_row, data in rows:
        exchange = await exchanges.find_exchange(connection, agent_row, exchange_row)
        if exchange is None or exchange.is_forgotten or REPLY in exchange.redactions:
            await delete_recall(connection, agent_row, exchange_row)
            continue
        remaining_rows.add(exchange_row)
        for kind, seq in read_hits(data):
            for possible_kind in _HIT_KINDS if kind == "any" else (kind,):
                seqs_by_kind[possible_kind].add(seq)
    existing_hits = await _find_existing_hits(connection, agent_row, seqs_by_kind)
    for exchange_row, data in rows:
        if exchange_row not in remaining_rows:
            continue
        overwritten = overwrite_forgotten(data, lambda kind, seq: (kind, seq) in existing_hits)
        if overwritten != data:
            await connection.run(SQL["recall_set"], (overwritten, exchange_row, agent_row))
    return rows[-1][0] if len(rows) == PAGE_ROWS else None


async def _find_existing_hits(
    connection: Connection, agent_row: int, seqs_by_kind: Mapping[str, Collection[int]]
) -> set[tuple[str, int]]:
    """Returns the kind and the number of each hit that exists, and each once more with the kind `any`.

    seqs_by_kind: the numbers of the hits.
    """
    existing_hits: set[tuple[str, int]] = set()
    for kind in ("fact", "passage"):
        rows = await load_rows(connection, SQL[f"{kind}s_there"], sorted(seqs_by_kind[kind]), agent_row)
        existing_hits.update((kind, seq) for (seq,) in rows)
    messages = await load_rows(connection, SQL["messages_there"], sorted(seqs_by_kind["message"]), agent_row)
    for seq, first_seq, span, redactions in messages:
        index = seq - first_seq if seq < first_seq + span - 1 else REPLY
        if index not in orjson.loads(redactions or b"[]"):
            existing_hits.add(("message", seq))
    return existing_hits | {("any", seq) for _, seq in existing_hits}


async def _rebuild_blocks(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Rebuilds all blocks that an agent could write, at once, since they are few."""
    await _rebuild_all(connection, work)
    return None


async def _rebuild_all(
    connection: Connection, work: ErasingWork, texts: Collection[str] = frozenset()
) -> None:
    """Rebuilds all blocks. texts: further texts that are erased, in small letters."""
    for block_row, owner in await load_writable_blocks(connection, work.agent_row, work.target.all):
        if await rebuild_block(connection, work.agent_row, block_row, work.rules, work.now, texts):
            await _invalidate_block(connection, work, block_row, owner)


async def _shorten_versions(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Removes the lines of named versions that their blocks no longer have from all versions of these blocks."""
    numbers_by_block: dict[int, set[int]] = {}
    for block_row, number in work.target.block_versions:
        numbers_by_block.setdefault(block_row, set()).add(number)
    if not numbers_by_block:
        return None
    for block_row, owner in await load_writable_blocks(connection, work.agent_row, work.target.all):
        numbers = numbers_by_block.get(block_row, ())
        if numbers and await remove_lost_lines(connection, block_row, numbers, work.now):
            await _invalidate_block(connection, work, block_row, owner)
    return None


async def _invalidate_block(
    connection: Connection, work: ErasingWork, block_row: int, owner: int | None
) -> None:
    """Erases the sections that show an old value of a block, and has turns and jobs read the block again.

    owner: the row of the memory that owns the block; None: no memory owns it.
    """
    await exchanges.add_marks(connection, work.agent_row, MarkKind.BLOCKS, (b"",), block_row)
    await empty_sections_showing(connection, block_row)
    if owner == work.agent_row:
        await raise_epoch(connection, work.agent_row)
    else:
        for statement in ("raise_epochs_seeing", "steps_seeing", "renew_seeing"):
            await connection.run(SQL[statement], (block_row,))


async def _hand_over_blocks(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Leaves blocks that other agents see to these agents, with the values that the forgotten agent wrote.

    This is for agents of the agents API only: forgetting a person erases what came from their messages in every block.
    """
    assert work.target.all is not None  # it is a phase of a whole memory
    profile = work.target.all.profile
    if profile == API_PROFILE:
        await hand_over_blocks(connection, work.agent_row)
        await connection.run(SQL["wipe_attached"], (work.agent_row,))
    return None


async def _erase_run_texts(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of the texts of runs."""
    return await erase_texts(connection, work.agent_row, position, PAGE_ROWS)


async def _empty_items(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Empties a page of the target's conversations that hold items.

    position: the row of the last definition on the previous page.
    """
    target = work.target
    values = (work.agent_row, position, target.conversation_row, target.before, PAGE_ROWS)
    definition_rows = await load_column(connection, SQL["item_holders"], values)
    for definition_row in definition_rows:
        definition = await get_definition(connection, definition_row)
        await change_definition(connection, definition, {**definition.body, "items": []}, at=work.now)
    return definition_rows[-1] if len(definition_rows) == PAGE_ROWS else None


async def _empty_readings(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Empties a page of the texts of the memory that runs of sleeptime agents hold. position: the page's number."""
    return position + 1 if await empty_readings(connection, work.agent_row, _CONVERSATION_PAGE_ROWS) else None


async def _erase_additions(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of notes and hidden rounds that may quote erased content."""
    return await erase_additions(connection, work.agent_row, work.rules, work.reading, position, PAGE_ROWS)


async def _erase_foreign_additions(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Erases a page of additions that showed a block with erased content to other agents."""
    return await erase_foreign_additions(
        connection, work.agent_row, work.rules, work.reading, position, PAGE_ROWS
    )


async def _release_imported(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Releases a page of the rows that an import has added, except rows that others follow.

    position: the row of the last conversation that is released.
    """
    import_row = work.target.import_row
    if import_row is None:
        return None
    conversation_row = await connection.fetch_value(SQL["imported_conversation"], (import_row, position))
    if conversation_row is not None:
        is_released = await _release_page(connection, work.agent_row, conversation_row, import_row)
        return int(conversation_row) if is_released else position
    await connection.run(SQL["facts_released"], (import_row,))
    await connection.run(SQL["undone"], (import_row, work.agent_row))
    return None


async def _release_page(
    connection: Connection, agent_row: int, conversation_row: int, import_row: int
) -> bool:
    """Erases a page of the deepest exchanges of a conversation that an import has added.

    Returns whether the conversation has no further exchange to erase.
    """
    rows = await connection.fetch_rows(SQL["deepest"], (agent_row, conversation_row, import_row, PAGE_ROWS))
    exchange_rows = [exchange_row for exchange_row, _ in takewhile(lambda row: row[1], rows)]
    await run_for_list(connection, SQL["release"], exchange_rows, agent_row)
    await run_for_list(connection, SQL["released"], exchange_rows, import_row)
    if len(exchange_rows) == PAGE_ROWS:
        return False
    await connection.run(SQL["stubbed"], (import_row, conversation_row))
    await connection.run(SQL["conversation_released"], (conversation_row, agent_row))
    return True


async def _end_forgetting(connection: Connection, work: ErasingWork, position: int) -> int | None:
    """Deletes the marks of this forgetting, and raises the epoch, so that no turn commits that began meanwhile."""
    await raise_epoch(connection, work.agent_row)
    await connection.run(SQL["erased_done"], (work.agent_row, work.id))
    return None


# -- a whole memory


def _make_wiping_phase(name: str) -> ErasingPhase:
    """Makes a phase that erases the rows of a table, a page or all of them at once. name: the name of the table."""

    async def wipe(connection: Connection, work: ErasingWork, position: int) -> int | None:
        if name in _WHOLE_TABLES:
            await connection.run(SQL[f"wipe_{name}"], (work.agent_row,))
            return None
        page_rows = PAGE_ROWS if name in _PAGED_TABLES else _DELETED_PAGE_ROWS
        count = await connection.run(SQL[f"wipe_{name}"], (work.agent_row, page_rows))
        return position + count if count == page_rows else None

    return wipe


async def wipe_shared(connection: Connection, project: str) -> bool:
    """Empties a page of the blocks that a project's users shared. Returns whether there are more."""
    count = await connection.run(SQL["wipe_shared_versions"], (project, PAGE_ROWS))
    if count < PAGE_ROWS:
        await connection.run(SQL["wipe_shared_blocks"], (project,))
        await connection.run(SQL["wipe_project_texts"], (project,))
        await connection.run(SQL["wipe_project_definitions"], (project,))
    return count == PAGE_ROWS


_ERASING_PHASES: dict[str, ErasingPhase] = {
    "exchanges": erase_exchanges,
    "versions": _shorten_versions,
    "blocks": _rebuild_blocks,
    "items": _empty_items,
    "readings": _empty_readings,
    "run_texts": _erase_run_texts,
    "files": _erase_files,
    "unlearned": _unlearn,
    "passages": _erase_passages,
    "facts": _erase_facts,
    "additions": _erase_additions,
    "foreign": _erase_foreign_additions,
    "recalls": _erase_recalls,
    "released": _release_imported,
    "end": _end_forgetting,
}
_WIPING_PHASES: dict[str, ErasingPhase] = {
    "handed": _hand_over_blocks,
    "shared": _rebuild_blocks,
    **{
        f"wipe_{name}": _make_wiping_phase(name)
        for name in (*_PAGED_TABLES, *_DELETED_TABLES, *_WHOLE_TABLES)
    },
}


def list_phases(target: StoredTarget) -> dict[str, ErasingPhase]:
    """Returns the phases of forgetting a target, in order."""
    if target.all is not None:
        return _WIPING_PHASES
    if target.keeps_memory:
        return {
            name: phase
            for name, phase in _ERASING_PHASES.items()
            if name not in ("files", "versions", "unlearned", "passages", "facts", "blocks", "foreign")
        }
    return _ERASING_PHASES
