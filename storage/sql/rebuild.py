"""Blocks without what was forgotten: the versions that came from it go, and a new value is made of what is left."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain

import orjson
from msgspec import Struct
from msgspec.structs import replace

from storage.batch_records import call_of_origin
from storage.commands import Revised, Rules
from storage.database import Connection, Row
from storage.records import BlockOp
from storage.sql.blocks import FORGOTTEN_ORIGIN, get_block, write_block
from storage.sql.statements import load, rows_of

SQL = load("forget.sql")

_NO_SOURCES, _NO_ARGUMENTS = b"[]", b"{}"


async def erased_among(connection: Connection, exchanges: Iterable[int]) -> set[int]:
    """Returns those of these exchanges, of whatever memory, that are being forgotten."""
    return {row[0] for row in await rows_of(connection, SQL["erased_among"], sorted(set(exchanges)))}


def origins_of(exchange: int | None, sources: bytes) -> set[int]:
    """Returns the exchanges that something came from."""
    return {*orjson.loads(sources), *([] if exchange is None else [exchange])}


class _DividedVersions(Struct, frozen=True):
    """The versions of a block, divided at the first one that came from what is gone."""

    # By version, the values before the first such version.
    clean: dict[int, str]
    # The versions from it on. Each may hold words of what is gone, since it is written on top of the one before it.
    later: list[Revised]
    # The exchanges from which the rebuilt value comes.
    sources: set[int]
    # The block has such a version.
    has_gone: bool


async def rebuild_block(
    connection: Connection,
    agent: int,
    block: int,
    rules: Rules,
    now: float,
    texts: Collection[str] = frozenset(),
) -> bool:
    """Drops the versions of a block that came from what is gone, and all that were built on them. True: it had some.

    agent: the memory of which something is forgotten. What its items of batches have written without a turn goes, too.
    texts: in small letters. Versions with a line that has one of them are dropped, and that line with them.
    """
    await connection.rows(SQL["block_lock"], (block,))
    rows = await connection.rows(SQL["block_versions"], (block,))
    turnless = {row[0] for row in await connection.rows(SQL["versions_turnless"], (agent, block))}
    divided = await _divide_versions(connection, rows, turnless, texts)
    if not divided.has_gone:
        return False
    # The new value first counts as built on what stayed; only then are the values in between emptied.
    found = await get_block(connection, block)
    base = divided.clean[max(divided.clean)] if divided.clean else ""
    value = rules.rebuild_block(replace(found, value=base), divided.later)
    for version, _, origin, *_ in rows:
        if version not in divided.clean and origin != FORGOTTEN_ORIGIN:
            await connection.run(SQL["version_erase"], (FORGOTTEN_ORIGIN, block, version, _NO_SOURCES))
    sources = sorted(divided.sources)
    await write_block(
        connection, block, found.version, value, at=now, origin="forget", sources=sources, is_bounded=False
    )
    return True


async def _divide_versions(
    connection: Connection, rows: Sequence[Row], turnless: Collection[int], texts: Collection[str]
) -> _DividedVersions:
    """Divides the versions of a block, and empties the edits by which versions were made that are gone.

    rows: of `block_versions`, oldest first.
    turnless: versions that are gone though they came from no exchange.
    """
    origins = {version: origins_of(exchange, listed) for version, _, _, exchange, listed, _ in rows}
    erased = await erased_among(connection, chain.from_iterable(origins.values()))
    clean: dict[int, str] = {}
    later: list[Revised] = []
    # By version its index in `later`.
    later_index: dict[int, int] = {}
    sources: set[int] = set()
    last_clean_origins: set[int] = set()
    has_gone = False
    for version, restores, origin, exchange, _, value in rows:
        if origin == FORGOTTEN_ORIGIN:
            continue
        is_erased = version in turnless or bool(origins[version] & erased)
        left = _drop_lines(value, texts) if texts else value
        has_gone |= is_erased or left != value
        if has_gone:
            later_index[version] = len(later)
        if is_erased:
            later.append(Revised(value, is_erased=True, restores=later_index.get(restores)))
            if exchange is not None and (call := call_of_origin(origin)) is not None:
                # A sleeptime agent's; its own exchange stays.
                await connection.run(SQL["op_erase"], (exchange, call[1], _NO_ARGUMENTS))
        elif left != value:
            later.append(Revised(left, is_clean=True))
            sources |= origins[version]
        elif not later:
            clean[version] = value
            last_clean_origins = origins[version]
        elif restores in clean:
            # An undo that went back to an untouched value starts afresh from it.
            later.append(Revised(clean[restores], is_clean=True))
        else:
            op = await _find_edit(connection, exchange, origin)
            later.append(Revised(value, op=op, restores=later_index.get(restores)))
            sources |= origins[version]
    return _DividedVersions(clean, later, sources | last_clean_origins, has_gone)


def _drop_lines(value: str, texts: Collection[str]) -> str:
    lines = value.split("\n")
    return "\n".join(line for line in lines if not any(text in line.casefold() for text in texts))


async def _find_edit(connection: Connection, exchange: int | None, origin: str) -> BlockOp | None:
    """Returns the edit that made a version of a block, if a turn's tool did."""
    call = call_of_origin(origin)
    if exchange is None or call is None:
        return None
    row = await connection.row(SQL["op_done"], (exchange, call[1]))
    return None if row is None else BlockOp(*row)
