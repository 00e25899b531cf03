"""How the command line shows the answers of operations, and what it says beside them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.run.admin.move import Moved

# Memories between two lines of a move's progress.
_TOLD = 100

# Characters that a terminal obeys (ECMA-48) or that reorder a line (Unicode's TR9). Users and models wrote what is
# printed, and must not control the operator's terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show_new_key(key: dict[str, Any]) -> None:
    print(key["secret"])
    print(f"Key {key['id']} for project {key['project']!r}. It is not shown again.", file=sys.stderr)
    if key.get("is_new"):  # a gateway of an older version does not say
        print(f"This project is new: no other key and no setting names {key['project']!r}.", file=sys.stderr)
    if key.get("is_first"):
        now = "It is the first key: from now on every request needs one, also when all are revoked."
        print(now, file=sys.stderr)


def show_keys(keys: list[dict[str, Any]]) -> None:
    for key in keys:
        state = "revoked" if key["revoked"] is not None else "active"
        may = [f"memory {key['memory']}"] if key["memory"] else []
        may += [f"{key['opens']} only"] if key["opens"] else []
        used = key.get("used")  # a gateway of an older version does not record it
        times = (f"made {_minute(key['created'])}", f"last used {_minute(used)}" if used else "never used")
        fields = (str(key["id"]), f"{key['prefix']}…", key["project"], key["name"], state, *times, *may)
        print("\t".join(fields))
    if not keys:
        print("There are no keys; only this machine can use the gateway.", file=sys.stderr)


def show_revoked(key: dict[str, Any]) -> None:
    print(f"Key {key['id']} ({key['name']}) is revoked.", file=sys.stderr)


def show_memory(shown: dict[str, str]) -> None:
    print(plain(shown["text"]))


def show_block(block: dict[str, Any]) -> None:
    size = len(block["value"])  # an empty line alone would not tell that the block is empty
    print(f"{block['label']} (version {block['version']}, {size} characters)", file=sys.stderr)
    print(plain(block["value"]))
    if waiting := block.get("waiting"):  # a gateway of an older version does not say
        edits, are = ("edit", "is") if waiting == 1 else ("edits", "are")
        late = (
            f"{waiting} newer {edits} of it {are} not in the block until confirmed, and can be undone then."
        )
        print(late, file=sys.stderr)


def show_enqueued(answer: dict[str, int]) -> None:
    print(f"Job {answer['job']}; `mnemogate jobs` shows it until it is done.", file=sys.stderr)


def show_jobs(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        show_job(job)
    if not jobs:
        print("There are no jobs to show.", file=sys.stderr)


def show_job(job: dict[str, Any]) -> None:
    due = datetime.fromtimestamp(job["due"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    fields = (job["id"], job["state"], job["kind"], f"memory {job['agent']}", job["key"])
    print(*fields, f"tries {job['tries']}", f"due {due}", job["error"] or "", sep="\t")


def show_batches(batches: list[dict[str, Any]]) -> None:
    for batch in batches:
        show_batch(batch)
    if not batches:
        print("There are no batches.", file=sys.stderr)


def show_batch(batch: dict[str, Any]) -> None:
    created = datetime.fromtimestamp(batch["created"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    counts = " ".join(f"{name} {count}" for name, count in batch["counts"].items() if count)
    print(batch["id"], batch["state"], batch["project"], created, counts, sep="\t")


def show_as_json(job: dict[str, Any]) -> None:
    print(json.dumps(job, indent=2))


def show_cancelled(job: dict[str, Any]) -> None:
    print(f"Job {job['id']} ({job['kind']}) is gone.", file=sys.stderr)


def describe_forgetting(wanted: dict[str, Any]) -> str:
    """Returns what a `memory forget` is about to do. wanted: as the command line gave it."""
    project = f" in the project {wanted['project']!r}" if wanted["project"] != "default" else ""
    profile = f" in the profile {wanted['profile']!r}" if "profile" in wanted else ""
    subject = next(
        (f" of the {kind} {wanted[kind]!r}" for kind in ("user", "conversation", "agent") if kind in wanted),
        "",
    )
    if "message" in wanted:
        what = f"the message {wanted['message']}{subject}"
    elif "exchange" in wanted:
        what = f"the message {wanted['exchange']}{subject}, with its question or answer"
    elif "in" in wanted:
        what = f"the conversation {wanted['in']!r}{subject}"
    elif subject:
        what = f"all that is remembered{subject}"
    elif profile:
        what = "all that is remembered of all users"
    else:
        what, project = f"all that the project {wanted['project']!r} has, its users and its agents", ""
    return f"This erases {what}{profile}{project}."


def describe_forgotten(wanted: dict[str, Any], memories: int, answer: dict[str, Any]) -> str:
    """Says what is gone, and which commands forget what may still quote it.

    wanted: as the command line gave it, `config` and `db` too.
    """
    number = wanted.get("message", wanted.get("exchange"))
    if number is None and "in" not in wanted:
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
    given = [(name, wanted[name]) for name in names if wanted.get(name) is not None]
    named = [each for each in given if each != ("project", "default")]
    # A name may begin with a dash, so each is one word with its option.
    flags = [argument(f"--{name}={value}") for name, value in named]
    command, look = (" ".join(("mnemogate", "memory", verb, *flags)) for verb in ("forget", "show"))
    lines = [f"{summary} What may quote it was kept:"]
    if answer["kept"]:
        lines.append(f"  its question or reply; to forget both: {command} --exchange {number}")
    lines.append(f"  other turns of the conversation; to forget all: {command} --in {answer['conversation']}")
    lines.append(f"  replies in other conversations that mention it; to look for them: {look} --query WORDS")
    return "\n".join(lines)


def describe_exported(wanted: dict[str, Any], messages: int | None, file: str, bytes: int) -> str:
    """Returns what an export has written. messages: None: it is not known."""
    kind = next((each for each in ("user", "conversation", "agent") if each in wanted), None)
    subject = f"1 {kind} ({wanted[kind]})" if kind else "1 user"
    said = "" if messages is None else f", {counted(messages, 'messages')}"
    return plain(f"Exported: {subject}{said}, to {file} ({bytes:,} bytes).")


def describe_others(profiles: Sequence[str]) -> str:
    """Says that what was named is not all of a person. profiles: those in which there are other memories."""
    named = ", ".join(argument(f"--profile={each}") for each in profiles)
    return f"This is one memory of several; the others have a profile of their own: {named}"


def describe_unswept(is_server: bool) -> str:
    """Says that the database still has old copies of what is gone, and what takes them out."""
    if is_server:
        return (
            "The server still has old versions of it: somebody sees them in a transaction that is older, or the role "
            "may not VACUUM. Run VACUUM when that has ended."
        )
    return (
        "The log of the file still has it, because another program reads the file. It is emptied when that has ended: "
        "by the gateway, or by the next command that opens the file."
    )


def size(each: dict[str, Any]) -> tuple[str, ...]:
    """Says when the last turn was and how much was said."""
    at = each["last_turn"]
    last = "-" if at is None else _minute(at)
    return last, counted(each["messages"], "messages"), f"{-(-each['bytes'] // 1000)} kB"


def _minute(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def counted(number: int, name: str) -> str:
    """Says how many there are. name: in the plural."""
    return f"{number} {name.removesuffix('s') if number == 1 else name}"


def argument(text: str) -> str:
    """Quotes a word for the shell, one that would give the terminal orders by its escapes."""
    if not _CONTROLS.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{plain(escaped)}'"


def plain(text: str) -> str:
    """Replaces control characters by their escapes."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def show_progress(done: Moved, count: int) -> None:
    """Says how far a move is, now and then."""
    seen = done.moved + done.there + len(done.refused)
    if seen % _TOLD == 0:
        print(f"{seen} of {count} memories", file=sys.stderr)


def describe_moved(done: Moved) -> str:
    """Says what a move has done, and what it left behind."""
    what = "memory" if done.moved == 1 else "memories"
    lines = [f"Moved: {done.moved} {what}; {done.there} were there already."]
    lines += [plain(f"Not moved: {why}") for why in done.refused]
    return "\n".join(lines)
