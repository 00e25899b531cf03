"""Loads statements from .sql files. Each statement has a name, and a text for each database.

A file holds statements that begin with `-- name: <name>`, for both databases, or with `-- name: <name> (sqlite)` and
`-- name: <name> (postgres)` where the two must differ. `-- piece: <name>` begins text that statements use as `{name}`,
and may have two texts in the same way; pieces of pieces.sql can be used in every file. For what the two databases write
differently there is a notation:

    ?, ?3                 parameters, all of a statement numbered or none; `$3` in PostgreSQL
    {?1..4}               a run of them: ?1, ?2, ?3, ?4
    {in:2:BYTEA:64}       in the list that is parameter 2: `= ANY($2::BYTEA[])`; in SQLite IN with 64 placeholders
    {each:2:BIGINT:64}    the list as rows of one column: unnest; in SQLite VALUES
    {has:5:b.label}       the text contains parameter 5, which is in `lower_ascii`; all texts where that is NULL
    CROSS JOIN .. ON      a join that SQLite performs in this order; JOIN in PostgreSQL
    {clock:2}             the present time in seconds: parameter 2, or the database's own where that is NULL
    {postgres:FOR UPDATE} words for PostgreSQL alone
    LIMIT ?3              LIMIT CAST(?3 AS INTEGER) in SQLite, which from 3.47 on compiles a bare one for each value
    +name                 keeps SQLite from the index on this column; only the name in PostgreSQL
    {padded:35}           room and padding of a new row with the first 35 values as columns (sqlite/padding.py)
    {size:32}             how large the first 32 values are in a row. SQLite's connection fills in these two.
    {direction}           makes two statements of one: `<name>_up` with ASC in its place, `<name>_down` with DESC

A missing name fails at import, not in the middle of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from storage.database import Connection, Row, Statement

TextT = TypeVar("TextT", str, str | None)

_BEGIN = re.compile(r"^-- (name|piece): (\w+)(?: \((sqlite|postgres)\))?$", re.MULTILINE)
# Not LIKE, which compares each letter of the part at each position of the text: it takes minutes where thousands of
# letters are equal.
_HAS = re.compile(r"\{has:(\d+):([^}]+)\}")
_HAS_IN_SQLITE = r"(CAST(?\1 AS TEXT) IS NULL OR instr(lower(\2), ?\1) > 0)"
_HAS_IN_POSTGRES = _HAS_IN_SQLITE.replace("instr", "strpos")
_PIECE = re.compile(r"\{(\w+)\}")
_RUN = re.compile(r"\{\?(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{(in|each):(\d+):([A-Z]+):(\d+)\}")
_FILLED = re.compile(r"\{(padded|size):(\d+)\}")
_CLOCK = re.compile(r"\{clock:(\d+)\}")
_DATABASE_CLOCK = r"coalesce($\1::float8, extract(epoch FROM clock_timestamp())::float8)"
_POSTGRES_ONLY = re.compile(r"\s*\{postgres:([^}]+)\}")
_LIMIT = re.compile(r"\bLIMIT (\?\d*)")
_PARAMETER = re.compile(r"\?(\d*)")
_PLUS = re.compile(r"(?<=[\s(])\+(?=[a-z])")
# The ends of the names of the two statements of a list, as `Page.direction` has them.
_DIRECTIONS = {"up": "ASC", "down": "DESC"}


@cache
def load(file: str) -> Mapping[str, Statement]:
    """Returns the statements of a file by name. A file that several modules use is read once.

    Raises: ValueError: a file has a name twice, or a text for one database alone.
    """
    shared_pieces, _ = _parse("pieces.sql")
    own_pieces, texts = _parse(file)
    pieces = {**shared_pieces, **own_pieces}
    statements: dict[str, Statement] = {}
    for name, text in texts.items():
        if "{direction}" in text.sqlite:
            for end, direction in _DIRECTIONS.items():
                directed_pieces = {**pieces, "direction": _Text(direction, direction)}
                statements[f"{name}_{end}"] = _make_statement(f"{file}: {name}_{end}", text, directed_pieces)
        else:
            statements[name] = _make_statement(f"{file}: {name}", text, pieces)
    return MappingProxyType(statements)


class _Text(NamedTuple):
    """The text of a piece or a statement for each database, as the .sql file has it, without comments."""

    # The text for SQLite.
    sqlite: str
    # The text for PostgreSQL.
    postgres: str


@cache
def _parse(file: str) -> tuple[dict[str, _Text], dict[str, _Text]]:
    """Returns the pieces and the statements of a file by name. Raises: ValueError, as `load`."""
    # The texts by marker, by name, and by database ("": both).
    found: dict[str, dict[str, dict[str, str]]] = {"piece": {}, "name": {}}
    _, *parts = _BEGIN.split(resources.files(__package__).joinpath(file).read_text(encoding="utf-8"))
    for marker, name, database, body in zip(*(iter(parts),) * 4, strict=True):
        lines = (line for line in body.splitlines() if not line.startswith("--"))
        by_database = found[marker].setdefault(name, {})
        database = database or ""
        # A text for both databases ("") stands alone.
        if database in by_database or (by_database and "" in (database, *by_database)):
            raise ValueError(f"{file} has {name} twice")
        by_database[database] = "\n".join(lines).strip().rstrip(";")
    return _pair_texts(file, found["piece"]), _pair_texts(file, found["name"])


def _pair_texts(file: str, texts_by_database: Mapping[str, Mapping[str, str]]) -> dict[str, _Text]:
    """Returns texts by name. Raises: ValueError: a database lacks a text.

    texts_by_database: the texts by name and database; the database "" stands for both.
    """
    texts: dict[str, _Text] = {}
    for name, by_database in texts_by_database.items():
        common_text = by_database.get("", "")
        texts[name] = _Text(by_database.get("sqlite", common_text), by_database.get("postgres", common_text))
        if not all(texts[name]):
            raise ValueError(f"{file}: {name} is there for one database alone")
    return texts


def _make_statement(name: str, text: _Text, pieces: Mapping[str, _Text]) -> Statement:
    """Returns a statement of its texts in the .sql file. pieces: the file's pieces by name."""
    assembled = _assemble(text.sqlite, lambda name: pieces[name].sqlite)
    sqlite = _POSTGRES_ONLY.sub("", _CLOCK.sub(r"?\1", _HAS.sub(_HAS_IN_SQLITE, assembled)))
    sized_columns = 0
    is_padded = False
    if (match := _FILLED.search(sqlite)) is not None:
        sized_columns = int(match[2])
        is_padded = match[1] == "padded"
        # SQLite's connection adds these values after the parameters of both databases.
        next_number = 1 + max(int(number) for number in re.findall(r"\?(\d+)", sqlite))
        sqlite = _FILLED.sub(
            f"?{next_number}, ?{next_number + 1}" if is_padded else f"?{next_number}", sqlite
        )
    sqlite, sizes = _translate_for_sqlite(_LIMIT.sub(r"LIMIT CAST(\1 AS INTEGER)", sqlite))
    postgres = _translate_for_postgres(_assemble(text.postgres, lambda name: pieces[name].postgres))
    return Statement(
        sqlite=sqlite,
        name=name,
        postgres=postgres,
        sizes=sizes,
        sized_columns=sized_columns,
        is_padded=is_padded,
    )


def make_statement(name: str, text: str) -> Statement:
    """Returns a statement of this text in both databases, in SQLite's words."""
    return _make_statement(name, _Text(text, text), {})


def _assemble(text: str, get_piece: Callable[[str], str]) -> str:
    """Returns a text with the pieces and the runs of parameters that it names."""
    # A piece may name others.
    while _PIECE.search(text):
        text = _PIECE.sub(lambda match: get_piece(match[1]), text)
    return _RUN.sub(
        lambda run: ", ".join(f"?{number}" for number in range(int(run[1]), int(run[2]) + 1)), text
    )


def _translate_for_sqlite(text: str) -> tuple[str, Mapping[int, int]]:
    """Returns a text for SQLite, and the number of placeholders of each list, by the number of its parameter."""
    sizes = {int(number): int(size) for _, number, _, size in _LIST.findall(text)}
    if not sizes:
        return text, sizes

    def shift(number: int) -> int:
        # A list takes several placeholders, so the parameters after it have higher numbers.
        return number + sum(size - 1 for other, size in sizes.items() if other < number)

    def make_placeholders(match: re.Match[str]) -> str:
        first = shift(int(match[2]))
        # `?_` marks numbers that are final, so that `_PARAMETER` does not shift them.
        numbers = [f"?_{number}" for number in range(first, first + int(match[4]))]
        return f"IN ({', '.join(numbers)})" if match[1] == "in" else f"VALUES ({'), ('.join(numbers)})"

    text = _LIST.sub(make_placeholders, text)
    text = _PARAMETER.sub(lambda match: f"?{shift(int(match[1]))}" if match[1] else "?", text)
    return text.replace("?_", "?"), sizes


def _translate_for_postgres(text: str) -> str:
    """Returns a text for PostgreSQL."""

    def make_array(match: re.Match[str]) -> str:
        values = f"${match[2]}::{match[3]}[]"
        return f"= ANY({values})" if match[1] == "in" else f"SELECT unnest({values})"

    numbers = iter(range(1, 1000))
    text = _POSTGRES_ONLY.sub(r" \1", _CLOCK.sub(_DATABASE_CLOCK, _HAS.sub(_HAS_IN_POSTGRES, text)))
    text = _PARAMETER.sub(lambda match: f"${match[1] or next(numbers)}", _LIST.sub(make_array, text))
    return _PLUS.sub("", text.replace("CROSS JOIN", "JOIN"))


async def run_for_list(
    connection: Connection, statement: Statement, values: Sequence[object], *parameters: object
) -> None:
    """Runs a statement for a list of any length. The parameters are as in `load_rows`."""
    (size,) = statement.sizes.values()
    for start in range(0, len(values), size):
        await connection.run(statement, (*parameters, values[start : start + size]))


async def load_rows(
    connection: Connection, statement: Statement, values: Sequence[object], *parameters: object
) -> list[Row]:
    """Returns the rows of a statement for a list of any length. Each execution takes a part of the list.

    values: the list, which is the statement's last parameter.
    parameters: the values of the parameters before it.
    """
    (size,) = statement.sizes.values()
    rows: list[Row] = []
    for start in range(0, len(values), size):
        rows += await connection.fetch_rows(statement, (*parameters, values[start : start + size]))
    return rows


async def load_column(
    connection: Connection, statement: Statement, values: Sequence[object] = ()
) -> list[Any]:
    """Returns the first value of each row of a statement."""
    return [row[0] for row in await connection.fetch_rows(statement, values)]


def lower_ascii(text: TextT) -> TextT:
    """Returns a text with ASCII's capitals in lower case, as SQLite's lower() does, for `{has:..}`. None stays None."""
    if text is None:
        return None
    return "".join(character.lower() if character.isascii() else character for character in text)
