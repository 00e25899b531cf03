"""The lists that the command line shows: the columns of each kind, in a table and in a line for scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gateway.run.admin.plain_text import count_noun, quote_shell_word

Record = dict[str, Any]
# The format, for `strftime`, of a time to the minute.
_MINUTES = "%Y-%m-%d %H:%M"
# The format of a time to the second.
_SECONDS = "%Y-%m-%d %H:%M:%S"


class Column(NamedTuple):
    """A column of a list."""

    heading: str
    # Returns a record's text in a table.
    cell: Callable[[Record], str]
    # Returns a record's text in a line for scripts, or None to leave it out. Without a function it is the cell's text.
    line: Callable[[Record], str | None] | None = None
    is_number: bool = False


class RecordList(NamedTuple):
    """A kind of list: its columns, and the remark that is printed if the list is empty."""

    columns: tuple[Column, ...]
    empty: str


def _render_key_state(key: Record) -> str:
    if key["revoked"] is not None:
        return "revoked"
    expires = key["expires"]
    return "expired" if expires is not None and expires <= datetime.now(UTC).timestamp() else "active"


def _render_time(seconds: float, form: str = _MINUTES) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def _make_text_column(name: str) -> Column:
    """Makes a column of a field that is a text, under its name."""
    return Column(name, lambda record: str(record[name] or ""))


def _make_labelled_column(heading: str, cell: Callable[[Record], str]) -> Column:
    """Makes a column with its heading before its text in a line; a line without such a text leaves both out."""
    return Column(heading, cell, lambda record: f"{heading} {cell(record)}" if cell(record) else None)


def _make_count_column(name: str) -> Column:
    """Makes a column of a field that is a number of things, which are named like the field."""
    return Column(
        name, lambda record: str(record[name]), lambda record: count_noun(record[name], name), is_number=True
    )


def _render_kilobytes(record: Record) -> str:
    return str(-(-record["bytes"] // 1000))


def _render_last_use(key: Record) -> str:
    return _render_time(key["used"]) if key["used"] else "never"


_ID_COLUMN = Column("id", lambda record: str(record["id"]), is_number=True)
_FORGET_COLUMN = Column("memory forget", lambda each: " ".join(map(quote_shell_word, each["forget"])))
_SIZE_COLUMNS = (
    Column("last turn", lambda each: "-" if each["last_turn"] is None else _render_time(each["last_turn"])),
    _make_count_column("messages"),
    Column("kB", _render_kilobytes, lambda each: f"{_render_kilobytes(each)} kB", is_number=True),
)
_EMPTY_REMARK = "There is nothing to list."

KEYS = RecordList(
    (
        _ID_COLUMN,
        Column("key", lambda key: f"{key['prefix']}…"),
        Column("project", lambda key: key["project"] or "(all)"),
        _make_text_column("name"),
        Column("state", _render_key_state),
        _make_labelled_column("made", lambda key: _render_time(key["created"])),
        Column(
            "last used",
            _render_last_use,
            lambda key: f"last used {_render_last_use(key)}" if key["used"] else "never used",
        ),
        _make_labelled_column("memory", lambda key: key["memory"] or ""),
        Column(
            "opens",
            lambda key: key["opens"] or "",
            lambda key: f"{key['opens']} only" if key["opens"] else None,
        ),
        _make_labelled_column("expires", lambda key: _render_time(key["expires"]) if key["expires"] else ""),
        _make_labelled_column("models", lambda key: ",".join(key["models"] or ())),
        _make_labelled_column("user", lambda key: key["user"] or ""),
    ),
    "There are no keys; only this machine can use the gateway.",
)
JOBS = RecordList(
    (
        _ID_COLUMN,
        _make_text_column("state"),
        _make_text_column("kind"),
        _make_labelled_column("memory", lambda job: str(job["agent"])),
        _make_text_column("key"),
        _make_labelled_column("tries", lambda job: str(job["tries"])),
        _make_labelled_column("due", lambda job: _render_time(job["due"], _SECONDS)),
        _make_text_column("error"),
    ),
    "There are no jobs to show.",
)
BATCHES = RecordList(
    (
        _make_text_column("id"),
        _make_text_column("state"),
        _make_text_column("project"),
        Column("created", lambda batch: _render_time(batch["created"], _SECONDS)),
        Column("items", lambda batch: " ".join(f"{name} {n}" for name, n in batch["counts"].items() if n)),
    ),
    "There are no batches.",
)
USERS = RecordList(
    (
        *_SIZE_COLUMNS,
        *map(_make_count_column, ("conversations", "blocks", "facts", "passages")),
        _FORGET_COLUMN,
    ),
    _EMPTY_REMARK,
)


def _make_imported_column(name: str) -> Column:
    """Makes a column "3 of 4": how many items of the file the memory has now, and how many the file has."""

    def cell(record: Record) -> str:
        counts = record[name]
        return f"{counts['new'] + counts['known']} of {counts['found']}"

    return Column(name, cell, lambda record: f"{cell(record)} {name}")


IMPORTS = RecordList(
    (
        _make_text_column("id"),
        _make_text_column("status"),
        _make_text_column("format"),
        _make_text_column("user"),
        Column("at", lambda each: _render_time(each["created_at"])),
        *map(_make_imported_column, ("conversations", "messages", "facts")),
    ),
    "Nothing was imported.",
)
CONVERSATIONS = RecordList(
    (*_SIZE_COLUMNS, Column("client's id", lambda each: each["client_id"] or "-"), _FORGET_COLUMN),
    _EMPTY_REMARK,
)
REQUESTS = RecordList(
    (
        Column("at", lambda each: _render_time(each["at"], _SECONDS)),
        _make_text_column("id"),
        _make_text_column("name"),
        _make_text_column("model"),
        _make_labelled_column("memory", lambda each: each["mode"]),
        Column("status", lambda each: "-" if each["status"] is None else str(each["status"])),
        Column("ms", lambda each: f"{each['ms']:.0f}", lambda each: f"{each['ms']:.0f} ms", is_number=True),
        Column(
            "added",
            lambda each: f"{each['added_ms']:.1f}",
            lambda each: f"{each['added_ms']:.1f} ms added",
            is_number=True,
        ),
        Column(
            "recalled",
            lambda each: str(each["recalled"]),
            lambda each: f"{each['recalled']} recalled",
            is_number=True,
        ),
    ),
    "There are no requests to show: the process that serves has none, or no process serves. Over PostgreSQL the "
    "page of each gateway shows its own.",
)
LIMITS = RecordList(
    (
        Column("id", lambda each: str(each["id"]), is_number=True),
        _make_text_column("project"),
        Column("key", lambda each: str(each["key"] or "-")),
        Column("user", lambda each: each["user"] or "-"),
        _make_text_column("unit"),
        Column("per", lambda each: each["per"] or "-"),
        Column("most", lambda each: f"{each['most']}", is_number=True),
        _make_text_column("then"),
    ),
    "There are no limits.",
)
# The counters that a table shows; JSON and CSV have all.
_USAGE_COUNTERS = (
    "requests",
    "refused",
    "calls",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "injected_tokens",
    "evicted_tokens",
    "background_input_tokens",
    "background_output_tokens",
    "unpriced_tokens",
)


def make_usage_list(by: Sequence[str], keys: Mapping[int, str]) -> RecordList:
    """Returns the list of usage, grouped by some columns. keys: number of a gateway key -> its name.

    A counter of 0 is blank in a table, which leaves out columns without any text.
    """

    def cell(record: Record, name: str) -> str:
        value = record[name]
        if name != "key":
            return str(value) or "-"
        return f"{value} {keys.get(value, '')}".rstrip() if value else "-"

    groups = [Column(name, lambda each, name=name: cell(each, name)) for name in by]  # type: ignore[misc]
    counters = [
        Column(
            name.removesuffix("_tokens").replace("_", " "),
            lambda each, name=name: str(each[name] or ""),  # type: ignore[misc]
            lambda each, name=name: f"{each[name]} {name.replace('_', ' ')}",  # type: ignore[misc]
            is_number=True,
        )
        for name in _USAGE_COUNTERS
    ]
    cost = Column(
        "cost",
        lambda each: f"{each['cost']:.6f}" if each["cost"] else "",
        lambda each: f"cost {each['cost']:.6f}",
        is_number=True,
    )
    return RecordList((*groups, *counters, cost), "Nothing was used in these days.")


AUDIT = RecordList(
    (
        Column("at", lambda each: _render_time(each["at"], _SECONDS)),
        _make_text_column("who"),
        _make_text_column("action"),
        _make_labelled_column("memory", lambda each: each["memory"] or ""),
        _make_text_column("what"),
    ),
    "Nothing is noted.",
)
