"""Words of a command for what it is about to do, and for what it has done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.run.admin.plain_text import escape_controls, plural, shell_word

# The options that name the owner of a memory.
_OWNERS = ("user", "conversation", "agent")
# The parts of a memory that are forgotten by themselves, of which nothing else quotes.
_SINGLE_PARTS = ("fact", "passage")


def describe_forget_request(arguments: dict[str, Any]) -> str:
    """Returns what a `memory forget` is about to do. arguments: those of the command line."""
    project = f" in the project {arguments['project']!r}" if arguments["project"] != "default" else ""
    profile = f" in the profile {arguments['profile']!r}" if "profile" in arguments else ""
    owner = _find_named(arguments, _OWNERS)
    subject = "" if owner is None else f" of the {owner} {arguments[owner]!r}"
    if "message" in arguments:
        target = f"the message {arguments['message']}{subject}"
    elif "exchange" in arguments:
        target = f"the message {arguments['exchange']}{subject}, with its question or answer"
    elif part := _find_named(arguments, _SINGLE_PARTS):
        target = f"the {part} {arguments[part]}{subject}"
    elif "in" in arguments:
        target = f"the conversation {arguments['in']!r}{subject}"
    elif subject:
        target = f"all that is remembered{subject}"
    elif profile:
        target = "all that is remembered of all users"
    else:
        target, project = f"all that the project {arguments['project']!r} has, its users and its agents", ""
    return f"This erases {target}{profile}{project}."


def describe_forget_result(arguments: dict[str, Any], memories: int, answer: dict[str, Any]) -> str:
    """Describes what is gone, and names the commands that forget what may still quote it.

    arguments: those of the command line, `config` and `db` too.
    """
    if part := _find_named(arguments, _SINGLE_PARTS):
        return f"Forgotten: 1 {part}." if memories else "There was nothing to forget."
    number = arguments.get("message", arguments.get("exchange"))
    if number is None and "in" not in arguments:
        count, noun = memories, "memory" if memories == 1 else "memories"
    elif answer["messages"] == 1:
        count, noun = 1, "message, with what was learned from it"
    else:
        count, noun = answer["messages"], "messages, with what was learned from them"
    if not count:
        return "There was nothing to forget" + (
            "." if answer["done"] else " but what was begun before; it is gone."
        )
    summary = f"Forgotten: {count} {noun}."
    if number is None:
        return summary
    names = ("config", "db", "project", "profile", *_OWNERS)
    options = [(name, arguments[name]) for name in names if arguments.get(name) is not None]
    # A name may begin with a dash, so each is one word with its option.
    flags = [
        shell_word(f"--{name}={value}") for name, value in options if (name, value) != ("project", "default")
    ]
    forget, show = (" ".join(("mnemogate", "memory", verb, *flags)) for verb in ("forget", "show"))
    lines = [f"{summary} What may quote it was kept:"]
    if answer["kept"]:
        lines.append(f"  its question or reply; to forget both: {forget} --exchange {number}")
    lines.append(f"  other turns of the conversation; to forget all: {forget} --in {answer['conversation']}")
    lines.append(f"  replies in other conversations that mention it; to look for them: {show} --query WORDS")
    return "\n".join(lines)


def describe_export(arguments: dict[str, Any], messages: int | None, file: str, bytes: int) -> str:
    """Returns what an export has written. messages: None: it is not known."""
    count = "" if messages is None else f", {plural(messages, 'messages')}"
    return escape_controls(f"Exported: {_count_owner(arguments)}{count}, to {file} ({bytes:,} bytes).")


def describe_import(arguments: dict[str, Any], file: str | None, bytes: int) -> str:
    """Returns what an import has read. file: None: the standard input."""
    return escape_controls(
        f"Imported: {_count_owner(arguments)}, from {file or 'standard input'} ({bytes:,} bytes)."
    )


def _count_owner(arguments: dict[str, Any]) -> str:
    """Returns of whom a memory was moved."""
    owner = _find_named(arguments, _OWNERS)
    return f"1 {owner} ({arguments[owner]})" if owner else "1 user"


def describe_others(profiles: Sequence[str]) -> str:
    """Describes that one memory of a user is not all. profiles: those that have the others."""
    options = ", ".join(shell_word(f"--profile={profile}") for profile in profiles)
    return f"This is one memory of several; the others have a profile of their own: {options}"


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


def _find_named(arguments: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Returns the first of some names for which there is an argument; None: there is none for any."""
    return next((name for name in names if name in arguments), None)
