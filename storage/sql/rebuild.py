"""Blocks without what was forgotten: the versions that came from it go, and a new value is made of what is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import orjson

from storage.batches import call_of_origin
from storage.commands import Revised, Rules
from storage.database import Connection
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


async def rebuild_block(connection: Connection, agent: int, block: int, rules: Rules, now: float) -> bool:
    """Drops the versions of a block that came from what is gone, and all that were built on them. True: it had some.

    agent: whose memory something is gone from. What its items of batches have written that have no turn goes too.
    """
    rows = await connection.rows(SQL["block_versions"], (block,))
    turnless = {row[0] for row in await connection.rows(SQL["versions_turnless"], (agent, block))}
    origins = {version: origins_of(exchange, listed) for version, _, _, exchange, listed, _ in rows}
    erased = await erased_among(connection, chain.from_iterable(origins.values()))
    # The versions before the first one that came from what is gone stay as they are. From that one on each may hold
    # words of it, since a version is written on top of the one before it.
    clean: dict[int, str] = {}
    later: list[Revised] = []
    sources: set[int] = set()
    kept: set[int] = set()
    for version, restores, origin, exchange, _, value in rows:
        if origin == FORGOTTEN_ORIGIN:
            continue
        is_erased = version in turnless or bool(origins[version] & erased)
        if not later and not is_erased:
            clean[version] = value
            kept = origins[version]
            continue
        # An undo that went back to an untouched value starts afresh from it.
        if restores in clean and not is_erased:
            later.append(Revised(clean[restores], is_whole=True))
            continue
        op = await _op_of(connection, exchange, origin) if not is_erased else None
        later.append(Revised(value, is_erased=is_erased, op=op))
        if is_erased and exchange is not None and (call := call_of_origin(origin)) is not None:
            # A sleeptime agent's, whose own exchange stays.
            await connection.run(SQL["op_erase"], (exchange, call[1], _NO_ARGUMENTS))
        if not is_erased:
            sources |= origins[version]
    if not any(r.is_erased for r in later):
        return False
    # The new value first counts as built on what stayed; only then are the values in between emptied.
    found = await get_block(connection, block)
    base = clean[max(clean)] if clean else ""
    value = rules.rebuild(replace(found, value=base), later)
    for version, _, origin, *_ in rows:
        if version not in clean and origin != FORGOTTEN_ORIGIN:
            await connection.run(SQL["version_erase"], (FORGOTTEN_ORIGIN, block, version, _NO_SOURCES))
    origin, sources = "forget", sources | kept
    await write_block(
        connection,
        block,
        found.version,
        value,
        at=now,
        origin=origin,
        sources=sorted(sources),
        is_bounded=False,
    )
    return True


async def _op_of(connection: Connection, exchange: int | None, origin: str) -> BlockOp | None:
    """Returns the edit that made a version of a block, if a turn's tool did."""
    call = call_of_origin(origin)
    if exchange is None or call is None:
        return None
    row = await connection.row(SQL["op_done"], (exchange, call[1]))
    return None if row is None else BlockOp(*row)
