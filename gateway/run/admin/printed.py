"""The answers of operations as the command line shows them: lines, tables or JSON on stdout, remarks on stderr.

Tables and colours are for a terminal. What a script may read has no part of them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any, NamedTuple

import click

from gateway.core.dates import minute_text

# Memories after which a move reports, where there is no terminal.
_PROGRESS_EVERY = 100

# Characters that a terminal obeys (ECMA-48) or that reorder a line (Unicode's TR9). Users and models wrote what is
# printed, and must not control the operator's terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Those, and what would end a field or a line.
_FIELD_CONTROLS = re.compile(f"[\\t\\n]|{_CONTROLS.pattern}")

Record = dict[str, Any]


class Column(NamedTuple):
    """One thing that a list shows of its records."""

    heading: str
    # Returns its text in a table.
    cell: Callable[[Record], str]
    # Returns its text in a line for scripts; None: the cell's. A text of None has no place in the line.
    line: Callable[[Record], str | None] | None = None
    is_number: bool = False


class RecordList(NamedTuple):
    """A kind of list: its columns, and the remark where it is empty."""

    columns: tuple[Column, ...]
    empty: str


def print_error(message: str, path: str = "mnemogate") -> None:
    """Prints an error or a warning on stderr. path: the command's."""
    path = f"{path}:"
    print(click.style(path, "red", bold=True) if wants_colour(sys.stderr) else path, message, file=sys.stderr)


def wants_colour(stream: IO[str] | None = None) -> bool:
    """Returns whether colours are wanted, on a stream if one is given (https://no-color.org)."""
    is_terminal = stream is None or stream.isatty()
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_list(listing: RecordList, records: Iterable[Record], *, as_json: bool = False) -> None:
    """Prints records: as JSON, as a table on a terminal, or as lines of fields between tabs."""
    count = 0
    if sys.stdout.isatty() and not as_json:
        from gateway.run.admin import terminal

        headings = [terminal.Heading(column.heading, column.is_number) for column in listing.columns]
        rows = ([_escape_field(column.cell(record)) for column in listing.columns] for record in records)
        count = terminal.show_table(headings, rows)
    else:
        for count, record in enumerate(records, 1):  # noqa: B007  # how many there were
            print(json.dumps(record) if as_json else _record_line(listing, record))
    if not count:
        print(listing.empty, file=sys.stderr)


def show_record(listing: RecordList, record: Record) -> None:
    """Prints one record as a list of its kind."""
    show_list(listing, [record])


def _record_line(listing: RecordList, record: Record) -> str:
    texts = ((column.line or column.cell)(record) for column in listing.columns)
    return "\t".join(_escape_field(text) for text in texts if text is not None)


def show_json(value: Any) -> None:
    """Prints a value as indented JSON, in colours where they are wanted."""
    text = json.dumps(value, indent=2, default=str)
    if wants_colour(sys.stdout):
        from gateway.run.admin import terminal

        terminal.show_json(text)
    else:
        print(text)


def show_line(text: str) -> None:
    """Prints a text on one line."""
    print(escape_controls(text.replace("\n", " ")), flush=True)


def show_new_key(key: dict[str, Any]) -> None:
    """Prints the secret of a new key, and on stderr what the operator has to know of it."""
    print(key["secret"])
    project = f"project {key['project']!r}" if key["project"] else "all projects"
    print(f"Key {key['id']} for {project}. It is not shown again.", file=sys.stderr)
    if key.get("is_new"):  # a gateway of an older version leaves it out
        print(f"This project is new: no other key and no setting names {key['project']!r}.", file=sys.stderr)
    if key.get("is_first"):
        now = "It is the first key: from now on every request needs one, also when all are revoked."
        print(now, file=sys.stderr)


def show_revoked(key: dict[str, Any]) -> None:
    print(f"Key {key['id']} ({key['name']}) is revoked.", file=sys.stderr)


def show_memory(shown: dict[str, str]) -> None:
    """Prints what `memory show` has found."""
    text = escape_controls(shown["text"])
    if sys.stdout.isatty():
        from gateway.run.admin import terminal

        terminal.show_text(text)
    else:
        print(text)


def show_import(shown: dict[str, Any], *, as_json: bool) -> None:
    """Prints an import: as JSON, or its counts, and on stderr its warnings."""
    if as_json:
        print(json.dumps(shown))
        return
    of = f"{shown['user']} (project {shown['project']}, profile {shown['profile']})"
    print(f"{shown['id']}  {shown['status']}  {shown['format']}, for {escape_controls(of)}")
    for name in ("conversations", "messages", "facts"):
        counts = shown[name]
        if counts["found"]:
            known = f"{counts['known']} known, {counts['skipped']} skipped"
            print(f"{name}: {counts['found']} found, {counts['new']} new, {known}")
    if shown["first_at"]:
        print(f"from {shown['first_at']} to {shown['last_at']}")
    if shown["status"] == "preview":
        if shown["learn_tokens"]:
            print(f"With --learn the background model would read some {shown['learn_tokens']} tokens.")
        print("Nothing was written: without --preview it is imported.")
    elif shown["status"] == "done":
        print(f"To take it away again: mnemogate imports undo {shown['id']}")
    for warning in shown["warnings"]:
        print_error(escape_controls(warning))
    if shown["status"] == "stopped":
        print_error("It was stopped before its end: import the same file again, and it goes on.")
    if shown["error"]:
        print_error(escape_controls(shown["error"]["message"]))


def show_block(block: dict[str, Any]) -> None:
    """Prints the value of a block, and on stderr its version and size."""
    size = len(block["value"])  # an empty line alone does not show that the block is empty
    print(f"{block['label']} (version {block['version']}, {size} characters)", file=sys.stderr)
    print(escape_controls(block["value"]))
    if waiting := block.get("waiting"):  # a gateway of an older version leaves it out
        edits, are = ("edit", "is") if waiting == 1 else ("edits", "are")
        late = (
            f"{waiting} newer {edits} of it {are} not in the block until confirmed, and can be undone then."
        )
        print(late, file=sys.stderr)


def show_request(found: dict[str, Any], *, as_json: bool) -> None:
    """Prints why a reply recalled what it did: `ExplainedRequest`."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    who = " · ".join(
        filter(None, (found["name"], found["conversation"], found["model"], str(found["status"])))
    )
    lines = [f"Request {found['id']}  {minute_text(found['at'])}  {who}", "", found["sentence"]]
    for title, hits in (("Recalled", found["chosen"]), ("Left out", found["left_out"])):
        lines += ["", title, *map(_hit_line, hits)] if hits else []
    if found["note"]:
        lines += [
            "",
            "What the model was told",
            *(f"  {line}" for line in found["note"].strip().splitlines()),
        ]
    parts = [f"{each['part']} {each['tokens']}" for each in found["window"]["parts"] if each["tokens"]]
    context = found["window"]["context"]
    if parts:
        lines += ["", f"Window{f' of {context} tokens' if context else ''}: {' · '.join(parts)}"]
    times = f"added {found['added_ms']:.1f} ms · {found['ms']:.0f} ms in all"
    usage = found["usage"]
    if usage:
        times += f" · {usage['input']} in ({usage['cached']} cached), {usage['output']} out"
    print(escape_controls("\n".join([*lines, "", times])))


def _hit_line(hit: dict[str, Any]) -> str:
    """Returns the line of a hit in the explanation of a request."""
    gone = "(forgotten)" if hit["forgotten"] else "(no longer current)"
    text = gone if hit["text"] is None else " ".join(hit["text"].split())[:100]
    scores = " ".join(
        f"{name} {hit[name]:.2f}" for name in ("words", "meaning", "score") if hit[name] is not None
    )
    reason = f"  {hit['reason']}" if "reason" in hit else ""
    return f"  {hit['rank']}  {hit['kind']} {hit['seq']}  {text}  {scores}  {hit['tokens']} tokens{reason}"


def show_fact(fact: dict[str, Any]) -> None:
    """Prints the text of a fact, and on stderr its number."""
    print(f"Fact {fact['seq']}{' (muted)' if fact['muted'] else ''}", file=sys.stderr)
    print(escape_controls(fact["text"]))


def show_cancelled(job: dict[str, Any]) -> None:
    print(f"Job {job['id']} ({job['kind']}) is gone.", file=sys.stderr)


def describe_forgetting(arguments: dict[str, Any]) -> str:
    """Returns what a `memory forget` is about to do. arguments: as the command line gave them."""
    project = f" in the project {arguments['project']!r}" if arguments["project"] != "default" else ""
    profile = f" in the profile {arguments['profile']!r}" if "profile" in arguments else ""
    subject = next(
        (
            f" of the {kind} {arguments[kind]!r}"
            for kind in ("user", "conversation", "agent")
            if kind in arguments
        ),
        "",
    )
    if "message" in arguments:
        what = f"the message {arguments['message']}{subject}"
    elif "exchange" in arguments:
        what = f"the message {arguments['exchange']}{subject}, with its question or answer"
    elif part := next((kind for kind in ("fact", "passage") if kind in arguments), None):
        what = f"the {part} {arguments[part]}{subject}"
    elif "in" in arguments:
        what = f"the conversation {arguments['in']!r}{subject}"
    elif subject:
        what = f"all that is remembered{subject}"
    elif profile:
        what = "all that is remembered of all users"
    else:
        what, project = f"all that the project {arguments['project']!r} has, its users and its agents", ""
    return f"This erases {what}{profile}{project}."


def describe_forgotten(arguments: dict[str, Any], memories: int, answer: dict[str, Any]) -> str:
    """Describes what is gone, and names the commands that forget what may still quote it.

    arguments: as the command line gave them, `config` and `db` too.
    """
    if part := next((kind for kind in ("fact", "passage") if kind in arguments), None):
        return f"Forgotten: 1 {part}." if memories else "There was nothing to forget."
    number = arguments.get("message", arguments.get("exchange"))
    if number is None and "in" not in arguments:
        count, what = memories, "memory" if memories == 1 else "memories"
    elif answer["messages"] == 1:
        count, what = 1, "message, with what was learned from it"
    else:
        count, what = answer["messages"], "messages, with what was learned from them"
    if not count:
        return "There was nothing to forget" + (
            "." if answer["done"] else " but what was begun before; it is gone."
        )
    summary = f"Forgotten: {count} {what}."
    if number is None:
        return summary
    names = ("config", "db", "project", "profile", "user", "conversation", "agent")
    given = [(name, arguments[name]) for name in names if arguments.get(name) is not None]
    named = [each for each in given if each != ("project", "default")]
    # A name may begin with a dash, so each is one word with its option.
    flags = [shell_word(f"--{name}={value}") for name, value in named]
    command, look = (" ".join(("mnemogate", "memory", verb, *flags)) for verb in ("forget", "show"))
    lines = [f"{summary} What may quote it was kept:"]
    if answer["kept"]:
        lines.append(f"  its question or reply; to forget both: {command} --exchange {number}")
    lines.append(f"  other turns of the conversation; to forget all: {command} --in {answer['conversation']}")
    lines.append(f"  replies in other conversations that mention it; to look for them: {look} --query WORDS")
    return "\n".join(lines)


def describe_exported(arguments: dict[str, Any], messages: int | None, file: str, bytes: int) -> str:
    """Returns what an export has written. messages: None: it is not known."""
    count = "" if messages is None else f", {plural(messages, 'messages')}"
    return escape_controls(f"Exported: {_transferred(arguments)}{count}, to {file} ({bytes:,} bytes).")


def describe_imported(arguments: dict[str, Any], file: str | None, bytes: int) -> str:
    """Returns what an import has read. file: None: the standard input."""
    return escape_controls(
        f"Imported: {_transferred(arguments)}, from {file or 'standard input'} ({bytes:,} bytes)."
    )


def _transferred(arguments: dict[str, Any]) -> str:
    kind = next((each for each in ("user", "conversation", "agent") if each in arguments), None)
    return f"1 {kind} ({arguments[kind]})" if kind else "1 user"


def describe_others(profiles: Sequence[str]) -> str:
    """Describes that one memory of a user is not all. profiles: those that have the others."""
    named = ", ".join(shell_word(f"--profile={each}") for each in profiles)
    return f"This is one memory of several; the others have a profile of their own: {named}"


def describe_unswept(is_server: bool) -> str:
    """Describes that the database still has old copies of what is gone, and what takes them out."""
    if is_server:
        return (
            "The server still has old versions of it: another session sees them in an older transaction, or the role "
            "may not VACUUM. Run VACUUM when that has ended."
        )
    return (
        "The log of the file still has it, because another program reads the file. It is emptied when that has ended: "
        "by the gateway, or by the next command that opens the file."
    )


def show_progress(seen: int, count: int) -> None:
    """Prints how far a move is, now and then."""
    if seen % _PROGRESS_EVERY == 0:
        print(f"{seen} of {count} memories", file=sys.stderr)


def show_moved(moved: int, there: int, refused: Sequence[str]) -> None:
    """Prints what a move has done. refused: why memories were not moved."""
    print(f"Moved: {moved} {'memory' if moved == 1 else 'memories'}; {there} were there already.")
    for why in refused:
        print(escape_controls(f"Not moved: {why}"))


def show_moved_agents(moved: int, there: int, failed: int, models: Mapping[str, int]) -> None:
    """Prints how many agents a move from another server has brought, and how many of them each model has."""
    print(f"{moved} moved, {there} here before, {failed} not moved.", file=sys.stderr)
    if models:
        named = ", ".join(f"{escape_controls(model)} ({n})" for model, n in sorted(models.items()))
        print(f"Their models: {named}. The gateway's upstreams must serve these.", file=sys.stderr)


def plural(number: int, name: str) -> str:
    """Returns a number with its noun: 1 turn, 2 turns. name: the noun in the plural."""
    return f"{number} {name.removesuffix('s') if number == 1 else name}"


def shell_word(text: str) -> str:
    """Quotes a word for the shell. Its control characters, which a terminal would obey, become escapes."""
    if not _FIELD_CONTROLS.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_escape_field(escaped)}'"


def escape_controls(text: str) -> str:
    """Replaces control characters but tabs and line feeds by their escapes."""
    return _CONTROLS.sub(_escape, text)


def _escape_field(text: str) -> str:
    """Replaces all control characters by their escapes."""
    return _FIELD_CONTROLS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def _key_state(key: Mapping[str, Any]) -> str:
    if key["revoked"] is not None:
        return "revoked"
    expires = key.get("expires")
    return "expired" if expires is not None and expires <= datetime.now(UTC).timestamp() else "active"


def _key_expiry(key: Mapping[str, Any]) -> str:
    return _time(key["expires"]) if key.get("expires") else ""


def _time(seconds: float, form: str = "%Y-%m-%d %H:%M") -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def _text_column(name: str) -> Column:
    """Makes a column of a field that is a text, under its name."""
    return Column(name, lambda record: str(record[name] or ""))


def _labelled_column(heading: str, cell: Callable[[Record], str]) -> Column:
    """Makes a column with the heading before its text in a line, if there is a text."""
    return Column(heading, cell, lambda record: f"{heading} {cell(record)}" if cell(record) else None)


def _count_column(name: str) -> Column:
    return Column(name, lambda each: str(each[name]), lambda each: plural(each[name], name), True)


def _kilobytes(each: Record) -> str:
    return str(-(-each["bytes"] // 1000))


def _last_used(key: Record) -> str:
    used = key.get("used")  # a gateway of an older version does not record it
    return _time(used) if used else "never"


_ID = Column("id", lambda record: str(record["id"]), is_number=True)
_FORGET = Column("memory forget", lambda each: " ".join(map(shell_word, each["forget"])))
_SIZE_COLUMNS = (
    Column("last turn", lambda each: "-" if each["last_turn"] is None else _time(each["last_turn"])),
    _count_column("messages"),
    Column("kB", _kilobytes, lambda each: f"{_kilobytes(each)} kB", True),
)
_EMPTY = "There is nothing to list."

KEYS = RecordList(
    (
        _ID,
        Column("key", lambda key: f"{key['prefix']}…"),
        Column("project", lambda key: key["project"] or "(all)"),
        _text_column("name"),
        Column("state", _key_state),
        _labelled_column("made", lambda key: _time(key["created"])),
        Column(
            "last used",
            _last_used,
            lambda key: f"last used {_last_used(key)}" if key.get("used") else "never used",
        ),
        _labelled_column("memory", lambda key: key["memory"] or ""),
        Column(
            "opens",
            lambda key: key["opens"] or "",
            lambda key: f"{key['opens']} only" if key["opens"] else None,
        ),
        Column(
            "expires", _key_expiry, lambda key: f"expires {_key_expiry(key)}" if key.get("expires") else None
        ),
        _labelled_column("models", lambda key: ",".join(key.get("models") or ())),
        _labelled_column("user", lambda key: key.get("user") or ""),
    ),
    "There are no keys; only this machine can use the gateway.",
)
JOBS = RecordList(
    (
        _ID,
        _text_column("state"),
        _text_column("kind"),
        _labelled_column("memory", lambda job: str(job["agent"])),
        _text_column("key"),
        _labelled_column("tries", lambda job: str(job["tries"])),
        _labelled_column("due", lambda job: _time(job["due"], "%Y-%m-%d %H:%M:%S")),
        _text_column("error"),
    ),
    "There are no jobs to show.",
)
BATCHES = RecordList(
    (
        _text_column("id"),
        _text_column("state"),
        _text_column("project"),
        Column("created", lambda batch: _time(batch["created"], "%Y-%m-%d %H:%M:%S")),
        Column("items", lambda batch: " ".join(f"{name} {n}" for name, n in batch["counts"].items() if n)),
    ),
    "There are no batches.",
)
USERS = RecordList(
    (*_SIZE_COLUMNS, *map(_count_column, ("conversations", "blocks", "facts", "passages")), _FORGET), _EMPTY
)


def _imported_column(name: str) -> Column:
    """Makes a column of how many are there of those that were found: new ones, and known ones."""

    def cell(each: Record) -> str:
        return f"{each[name]['new'] + each[name]['known']} of {each[name]['found']}"

    return Column(name, cell, lambda each: f"{cell(each)} {name}")


IMPORTS = RecordList(
    (
        _text_column("id"),
        _text_column("status"),
        _text_column("format"),
        _text_column("user"),
        Column("at", lambda each: _time(each["created_at"])),
        *map(_imported_column, ("conversations", "messages", "facts")),
    ),
    "Nothing was imported.",
)
CONVERSATIONS = RecordList(
    (*_SIZE_COLUMNS, Column("client's id", lambda each: each["client_id"] or "-"), _FORGET), _EMPTY
)
REQUESTS = RecordList(
    (
        Column("at", lambda each: _time(each["at"], "%Y-%m-%d %H:%M:%S")),
        _text_column("id"),
        _text_column("name"),
        _text_column("model"),
        _labelled_column("memory", lambda each: each["mode"]),
        Column("status", lambda each: "-" if each["status"] is None else str(each["status"])),
        Column("ms", lambda each: f"{each['ms']:.0f}", lambda each: f"{each['ms']:.0f} ms", True),
        Column(
            "added",
            lambda each: f"{each['added_ms']:.1f}",
            lambda each: f"{each['added_ms']:.1f} ms added",
            True,
        ),
        Column(
            "recalled", lambda each: str(each["recalled"]), lambda each: f"{each['recalled']} recalled", True
        ),
    ),
    "There are no requests to show: the process that serves has none, or no process serves. Over PostgreSQL the "
    "page of each gateway shows its own.",
)
LIMITS = RecordList(
    (
        Column("id", lambda each: str(each["id"]), is_number=True),
        _text_column("project"),
        Column("key", lambda each: str(each["key"] or "-")),
        Column("user", lambda each: each["user"] or "-"),
        _text_column("unit"),
        Column("per", lambda each: each["per"] or "-"),
        Column("most", lambda each: f"{each['most']}", is_number=True),
        _text_column("then"),
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


def usage_list(by: Sequence[str], keys: Mapping[int, str]) -> RecordList:
    """Returns the list of usage by some columns. keys: the names of gateway keys by their numbers.

    A counter of 0 is left blank in a table, which has no column without any text.
    """

    def cell(record: Record, name: str) -> str:
        value = record[name]
        if name != "key":
            return str(value) or "-"
        return f"{value} {keys.get(value, '')}".rstrip() if value else "-"

    of = [Column(name, lambda each, name=name: cell(each, name)) for name in by]  # type: ignore[misc]
    numbers = [
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
        True,
    )
    return RecordList((*of, *numbers, cost), "Nothing was used in these days.")


AUDIT = RecordList(
    (
        Column("at", lambda each: _time(each["at"], "%Y-%m-%d %H:%M:%S")),
        _text_column("who"),
        _text_column("action"),
        _labelled_column("memory", lambda each: each["memory"] or ""),
        _text_column("what"),
    ),
    "Nothing is noted.",
)
