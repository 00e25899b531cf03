"""The sentences about an action of the command line, before it and after it.

The parameter `arguments` has the options of the command line that were given, by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.run.admin.plain_text import count_noun, escape_controls, quote_shell_word
from storage.records import DEFAULT_PROJECT

# The options that name the owner of a memory.
_OWNERS = ("user", "conversation", "agent")
# The parts of a memory that consist of one text.
_SINGLE_PARTS = ("fact", "passage")
# The parts of a memory that consist of messages.
_MESSAGE_PARTS = ("message", "exchange", "in")


def describe_forget_request(arguments: dict[str, Any]) -> str:
    """Returns the sentence about the texts that a `memory forget` is about to erase."""
    project = f" in the project {arguments['project']!r}" if arguments["project"] != DEFAULT_PROJECT else ""
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
        target = f"all that the project {arguments['project']!r} has, its users and its agents"
        project = ""
    return f"This erases {target}{profile}{project}."


def describe_going_facts(preview: dict[str, Any], keep: Sequence[int]) -> str:
    """Returns lines about the facts that are forgotten with a part, or "" if there are no such facts.

    preview: the answer of `ForgetOperations.preview`.
    keep: the numbers of the facts that stay.
    """
    facts = preview["facts"]
    if not facts:
        return ""
    lines = [
        f"{count_noun(preview['more_facts'], 'facts')} would go with it. --keep N keeps one that is true:"
    ]
    for fact in facts:
        state = " (stays)" if fact["seq"] in keep else "" if fact["is_true"] else " (no longer true)"
        lines.append(f"  {fact['seq']}{state}  {fact['text']}")
    if (more := preview["more_facts"] - len(facts)) > 0:
        lines.append(f"  and {more} older")
    return escape_controls("".join(f"{line}\n" for line in lines))


def describe_forget_result(arguments: dict[str, Any], memories: int, answer: dict[str, Any]) -> str:
    """Returns lines about the texts that a `memory forget` has erased, with the commands that forget their quotes.

    arguments: the command's arguments, with `config` and `db`, which the named commands repeat.
    memories: the number of memories that were forgotten, or that had the named part.
    answer: the answer of the first call of `ForgetOperations.forget`.
    """
    if part := _find_named(arguments, _SINGLE_PARTS):
        return f"Forgotten: 1 {part}." if memories else "There was nothing to forget."
    if _find_named(arguments, _MESSAGE_PARTS) is None:
        count = memories
        noun = "memory" if memories == 1 else "memories"
    elif answer["messages"] == 1:
        count = 1
        noun = "message, with what was learned from it"
    else:
        count = answer["messages"]
        noun = "messages, with what was learned from them"
    if not count:
        # With a count of 0, a call that is not done has found only the rest of an earlier, interrupted forgetting.
        is_all = answer["done"]
        return f"There was nothing to forget{'.' if is_all else ' but what was begun before; it is gone.'}"
    summary = f"Forgotten: {count} {noun}."
    if kept := len(arguments.get("keep", ())):
        summary += f" {count_noun(kept, 'facts')} stayed, on no message."
    seq = arguments.get("message", arguments.get("exchange"))
    return summary if seq is None else f"{summary} {_describe_possible_quotes(arguments, seq, answer)}"


def _describe_possible_quotes(arguments: dict[str, Any], seq: int, answer: dict[str, Any]) -> str:
    """Returns lines about messages that may quote a forgotten one, and the commands that forget or find them.

    seq: the number of the forgotten message or exchange.
    answer: the answer of the first call of `ForgetOperations.forget`.
    """
    names = ("config", "db", "project", "profile", *_OWNERS)
    options = [(name, arguments[name]) for name in names if arguments.get(name) is not None]
    # A name may begin with a dash, so each is one word with its option.
    flags = [
        quote_shell_word(f"--{name}={value}")
        for name, value in options
        if (name, value) != ("project", DEFAULT_PROJECT)
    ]
    forget, show = (" ".join(("mnemogate", "memory", verb, *flags)) for verb in ("forget", "show"))
    lines = ["What may quote it was kept:"]
    if answer["kept"]:
        lines.append(f"  its question or reply; to forget both: {forget} --exchange {seq}")
    lines.append(f"  other turns of the conversation; to forget all: {forget} --in {answer['conversation']}")
    lines.append(f"  replies in other conversations that mention it; to look for them: {show} --query WORDS")
    return "\n".join(lines)


def describe_export(arguments: dict[str, Any], messages: int, path: str, size: int) -> str:
    """Returns a sentence about a finished export.

    messages: the number of exported messages.
    size: the size of the file in bytes.
    """
    count = count_noun(messages, "messages")
    return escape_controls(f"Exported: {_count_owner(arguments)}, {count}, to {path} ({size:,} bytes).")


def describe_import(arguments: dict[str, Any], path: str | None, size: int) -> str:
    """Returns a sentence about a finished import.

    path: the path of the file; None: the standard input.
    size: the number of bytes that were read.
    """
    return escape_controls(
        f"Imported: {_count_owner(arguments)}, from {path or 'standard input'} ({size:,} bytes)."
    )


def _count_owner(arguments: dict[str, Any]) -> str:
    """Returns the owners of exported or imported memories, with their number: "1 user (alice)"."""
    owner = _find_named(arguments, _OWNERS)
    return f"1 {owner} ({arguments[owner]})" if owner else "1 user"


def describe_others(profiles: Sequence[str]) -> str:
    """Returns the remark that a user has more than one memory. profiles: the profiles of the other memories."""
    options = ", ".join(quote_shell_word(f"--profile={profile}") for profile in profiles)
    return f"This is one memory of several; the others have a profile of their own: {options}"


def describe_unswept(*, is_server: bool) -> str:
    """Returns the remark that the database still has old copies of forgotten texts, with the way to remove them.

    is_server: True if the database is PostgreSQL.
    """
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
    """Returns the first of some names for which there is an argument, or None."""
    return next((name for name in names if name in arguments), None)
