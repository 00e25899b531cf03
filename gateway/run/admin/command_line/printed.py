"""Prints the answers of operations: lines, tables or JSON on stdout, remarks on stderr.

Tables and colours are printed only on a terminal, so that scripts read plain lines.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import click

from gateway.core.dates import render_minute
from gateway.run.admin.command_line.record_lists import Record, RecordList
from gateway.run.admin.plain_text import escape_controls, escape_field

# A move without a terminal reports its progress after so many memories.
_PROGRESS_EVERY = 100
# The characters that are printed of a hit, so that each stays on one or two lines of a terminal.
_HIT_CHARS = 100


def print_error(message: str, path: str = "mnemogate") -> None:
    """Prints an error or a warning on stderr. path: the command, such as "mnemogate memory forget"."""
    path = f"{path}:"
    print(click.style(path, "red", bold=True) if wants_colour(sys.stderr) else path, message, file=sys.stderr)


def wants_colour(stream: IO[str] | None = None) -> bool:
    """Returns whether colours are wanted (https://no-color.org). stream: a place that must be a terminal."""
    is_terminal = stream is None or stream.isatty()
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_list(listing: RecordList, records: Iterable[Record], *, as_json: bool = False) -> None:
    """Prints records: as JSON, as a table on a terminal, or as lines of fields between tabs."""
    count = 0
    if sys.stdout.isatty() and not as_json:
        from gateway.run.admin.command_line import terminal

        headings = [terminal.Heading(column.heading, column.is_number) for column in listing.columns]
        rows = ([escape_field(column.cell(record)) for column in listing.columns] for record in records)
        count = terminal.show_table(headings, rows)
    else:
        for count, record in enumerate(records, 1):  # noqa: B007  # how many there were
            print(json.dumps(record) if as_json else _render_record_line(listing, record))
    if not count:
        print(listing.empty, file=sys.stderr)


def show_record(listing: RecordList, record: Record) -> None:
    """Prints one record as a list with it alone."""
    show_list(listing, [record])


def _render_record_line(listing: RecordList, record: Record) -> str:
    texts = ((column.line or column.cell)(record) for column in listing.columns)
    return "\t".join(escape_field(text) for text in texts if text is not None)


def show_json(value: Any) -> None:
    """Prints a value as indented JSON, in colours where they are wanted."""
    text = json.dumps(value, indent=2, default=str)
    if wants_colour(sys.stdout):
        from gateway.run.admin.command_line import terminal

        terminal.show_coloured_json(text)
    else:
        print(text)


def show_line(text: str) -> None:
    """Prints a text on one line."""
    print(escape_controls(text.replace("\n", " ")), flush=True)


def show_new_key(key: dict[str, Any]) -> None:
    """Prints the secret of a new key, and on stderr remarks about the key."""
    print(key["secret"])
    project = f"project {key['project']!r}" if key["project"] else "all projects"
    print(f"Key {key['id']} for {project}. It is not shown again.", file=sys.stderr)
    if key["is_new"]:
        print(f"This project is new: no other key and no setting names {key['project']!r}.", file=sys.stderr)
    if key["is_first"]:
        print(
            "It is the first key: from now on every request needs one, even after all are revoked.",
            file=sys.stderr,
        )


def show_revoked_key(key: dict[str, Any]) -> None:
    print(f"Key {key['id']} ({key['name']}) is revoked.", file=sys.stderr)


def show_memory(answer: dict[str, str]) -> None:
    """Prints what `memory show` has found."""
    text = escape_controls(answer["text"])
    if sys.stdout.isatty():
        from gateway.run.admin.command_line import terminal

        terminal.show_text(text)
    else:
        print(text)


def show_import(record: dict[str, Any], *, as_json: bool) -> None:
    """Prints an import: as JSON, or its counts, and on stderr its warnings."""
    if as_json:
        print(json.dumps(record))
        return
    owner = f"{record['user']} (project {record['project']}, profile {record['profile']})"
    print(f"{record['id']}  {record['status']}  {record['format']}, for {escape_controls(owner)}")
    for name in ("conversations", "messages", "facts"):
        counts = record[name]
        if counts["found"]:
            known_text = f"{counts['known']} known, {counts['skipped']} skipped"
            print(f"{name}: {counts['found']} found, {counts['new']} new, {known_text}")
    if record["first_at"]:
        print(f"from {record['first_at']} to {record['last_at']}")
    if record["status"] == "preview":
        if record["learn_tokens"]:
            print(f"With --learn the background model would read some {record['learn_tokens']} tokens.")
        print("Nothing was written: without --preview it is imported.")
    elif record["status"] == "done":
        print(f"To take it away again: mnemogate imports undo {record['id']}")
    for warning in record["warnings"]:
        print_error(escape_controls(warning))
    if record["status"] == "stopped":
        print_error("It was stopped before its end: import the same file again, and it goes on.")
    if record["error"]:
        print_error(escape_controls(record["error"]["message"]))


def show_block(block: dict[str, Any]) -> None:
    """Prints the value of a block, and on stderr its version and size."""
    # An empty line alone does not show that the block is empty.
    size = len(block["value"])
    print(f"{block['label']} (version {block['version']}, {size} characters)", file=sys.stderr)
    print(escape_controls(block["value"]))
    if waiting := block["waiting"]:
        edits_are = "edit of it is" if waiting == 1 else "edits of it are"
        print(
            f"{waiting} newer {edits_are} not in the block until confirmed, and can be undone then.",
            file=sys.stderr,
        )


def show_request(explained: dict[str, Any], *, as_json: bool) -> None:
    """Prints why a reply recalled what it did. explained: an `ExplainedRequest` as JSON."""
    if as_json:
        print(json.dumps(explained, ensure_ascii=False))
        return
    names = (explained["name"], explained["conversation"], explained["model"], str(explained["status"]))
    heading = (
        f"Request {explained['id']}  {render_minute(explained['at'])}  {' · '.join(filter(None, names))}"
    )
    lines = [heading, "", explained["sentence"]]
    for title, hits in (("Recalled", explained["chosen"]), ("Left out", explained["left_out"])):
        lines += ["", title, *map(_render_hit, hits)] if hits else []
    if explained["note"]:
        note_lines = explained["note"].strip().splitlines()
        lines += ["", "What the model was told", *(f"  {line}" for line in note_lines)]
    window = explained["window"]
    if parts := [f"{part['part']} {part['tokens']}" for part in window["parts"] if part["tokens"]]:
        size = f" of {window['context']} tokens" if window["context"] else ""
        lines += ["", f"Window{size}: {' · '.join(parts)}"]
    times = f"added {explained['added_ms']:.1f} ms · {explained['ms']:.0f} ms in all"
    usage = explained["usage"]
    if usage:
        times += f" · {usage['input']} in ({usage['cached']} cached), {usage['output']} out"
    print(escape_controls("\n".join([*lines, "", times])))


def _render_hit(hit: dict[str, Any]) -> str:
    """Returns the line of a hit in the explanation of a request."""
    if hit["text"] is None:
        text = "(forgotten)" if hit["forgotten"] else "(no longer current)"
    else:
        text = " ".join(hit["text"].split())[:_HIT_CHARS]
    scores = " ".join(
        f"{name} {hit[name]:.2f}" for name in ("words", "meaning", "score") if hit[name] is not None
    )
    reason = f"  {hit['reason']}" if "reason" in hit else ""
    return f"  {hit['rank']}  {hit['kind']} {hit['seq']}  {text}  {scores}  {hit['tokens']} tokens{reason}"


def show_fact(fact: dict[str, Any]) -> None:
    """Prints the text of a fact, and on stderr its number."""
    print(f"Fact {fact['seq']}{' (muted)' if fact['muted'] else ''}", file=sys.stderr)
    print(escape_controls(fact["text"]))


def show_cancelled_job(job: dict[str, Any]) -> None:
    print(f"Job {job['id']} ({job['kind']}) is gone.", file=sys.stderr)


def show_progress(done: int, count: int) -> None:
    """Prints how many memories a move has done, after each `_PROGRESS_EVERY` memories."""
    if done % _PROGRESS_EVERY == 0:
        print(f"{done} of {count} memories", file=sys.stderr)


def show_move(moved: int, already_there: int, refused: Sequence[str]) -> None:
    """Prints how many memories a move has moved. refused: a reason for each memory that was not moved."""
    print(f"Moved: {moved} {'memory' if moved == 1 else 'memories'}; {already_there} were there already.")
    for reason in refused:
        print(escape_controls(f"Not moved: {reason}"))


def show_agents_move(moved: int, already_there: int, failed: int, models: Mapping[str, int]) -> None:
    """Prints how many agents a move from another server has brought, and how many agents use each model."""
    print(f"{moved} moved, {already_there} here before, {failed} not moved.", file=sys.stderr)
    if models:
        counts = ", ".join(f"{escape_controls(model)} ({count})" for model, count in sorted(models.items()))
        print(f"Their models: {counts}. The gateway's upstreams must serve these.", file=sys.stderr)
