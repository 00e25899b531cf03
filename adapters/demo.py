"""The model that answers when no other is configured: a few rules, enough to watch a memory at work.

A pure function from a chat completion's body to what is said. It repeats what it was told about the question's words,
wherever in the request that stands, and calls tools when asked to, each command on a line of its own:

    remember: I like tea            memory_insert                  (label "human")
    archive: the flat is no. 7      archival_memory_insert
    search: tea                     conversation_search and archival_memory_search, those of them on offer
    replace: tea -> coffee          memory_replace                 (label "human")
    rethink: Likes coffee.          memory_rethink                 (label "human")
    call NAME {"some": "json"}      any tool on offer, the application's own included
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Said", "ScriptedCall", "answer"]


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """arguments: JSON text. id: made up where it is None."""

    name: str
    arguments: str = "{}"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What an assistant message says. finish_reason: None for the one that fits."""

    text: str | None
    calls: tuple[ScriptedCall, ...] = ()
    finish_reason: str | None = None


_CALL: Final = re.compile(r"^\s*call\s+([\w.-]+)\s*(\{.*\})?\s*$", re.I)
_COMMAND: Final = re.compile(r"^\s*(remember|archive|search|replace|rethink)\s*:\s*(\S.*?)\s*$", re.I)
_NOTE: Final = re.compile(r"<memory>.*?(?:</memory>|\Z)", re.S)
_SECTION: Final = re.compile(r"<(memory_blocks|memory|summary)\b[^>]*>(.*?)(?:</\1>|\Z)", re.S)
_TAG_LINE: Final = re.compile(r"^\s*</?[a-z_]+[^>]*>\s*$")
_BY_ASSISTANT: Final = re.compile(r"^\[[^\]]*\bassistant\]")
_WORD: Final = re.compile(r"\w+")
_PLAIN_WORDS: Final = frozenset(
    (
        *(
            "a",
            "about",
            "all",
            "am",
            "an",
            "and",
            "any",
            "are",
            "as",
            "at",
            "be",
            "but",
            "by",
            "can",
            "could",
            "did",
        ),
        *(
            "do",
            "does",
            "for",
            "from",
            "had",
            "has",
            "have",
            "he",
            "her",
            "his",
            "how",
            "i",
            "if",
            "in",
            "is",
            "it",
        ),
        *(
            "its",
            "know",
            "me",
            "my",
            "not",
            "of",
            "on",
            "or",
            "our",
            "please",
            "remember",
            "s",
            "say",
            "she",
            "so",
        ),
        *(
            "tell",
            "that",
            "the",
            "their",
            "them",
            "they",
            "this",
            "to",
            "was",
            "we",
            "were",
            "what",
            "when",
            "where",
        ),
        *("which", "who", "why", "will", "with", "would", "you", "your"),
    )
)
_SHOWN: Final = 3  # lines told of what is remembered
_HELP: Final = (
    "I am the built-in demo model, no more than a few rules. Tell me something, and ask about it later, in another "
    "conversation too."
)
_TRIES: Final = (
    ("remember", "memory_insert"),
    ("search", "conversation_search"),
    ("archive", "archival_memory_insert"),
)


def answer(body: Mapping[str, Any]) -> Said:
    """Reply to a request. messages that are not what the API takes are read as far as they go."""
    messages = [m for m in body.get("messages") or [] if isinstance(m, dict)]
    tools = _offered(body)
    question = _question(messages)
    if messages and messages[-1].get("role") == "tool":
        return _cut(_tell_results(messages), body)
    if tools and (calls := _forced(body, tools, question)):
        return Said(None, calls)
    calls, missing = _commands(question, tools)
    if calls:
        return Said(None, calls)
    if missing:
        offered = ", ".join(sorted(tools)) or "none"
        return _cut(f"{missing} is not among the tools of this request (on offer: {offered}).", body)
    text = _tell_memory(messages, question) or _introduce(messages, question, list(tools))
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") in ("json_object", "json_schema"):
        schema = (form.get("json_schema") or {}).get("schema") or {
            "properties": {"reply": {"type": "string"}}
        }
        return Said(json.dumps(_fill(schema, text), ensure_ascii=False))
    return _cut(text, body)


def _cut(text: str, body: Mapping[str, Any]) -> Said:
    """Keep to the request's bound on the completion, a word for a token."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    words = re.findall(r"\s*\S+", text)
    if isinstance(limit, int) and 0 < limit < len(words):
        return Said("".join(words[:limit]), finish_reason="length")
    return Said(text)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(text for text in parts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _question(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last user message's own words: a recalled note could repeat an old command."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return _NOTE.sub("", _text(message)).strip()
    return ""


def _offered(body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Function tools by name."""
    if body.get("tool_choice") == "none":
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for tool in body.get("tools") or []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            found[function["name"]] = function
    return found


def _forced(
    body: Mapping[str, Any], tools: Mapping[str, Mapping[str, Any]], text: str
) -> tuple[ScriptedCall, ...]:
    choice = body.get("tool_choice")
    name: str | None = next(iter(tools)) if choice == "required" else None
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
    if name is None or name not in tools:
        return ()
    given, _ = _commands(text, {name: tools[name]} if choice != "required" else tools)
    arguments = json.dumps(_fill(tools[name].get("parameters") or {}, text), ensure_ascii=False)
    return given or (ScriptedCall(name, arguments),)


def _commands(text: str, tools: Iterable[str]) -> tuple[tuple[ScriptedCall, ...], str | None]:
    """The calls that a user's lines ask for, in order, and the name of one that is not on offer."""
    calls: list[ScriptedCall] = []
    missing: str | None = None
    names = list(tools)
    for line in text.splitlines():
        wanted: list[tuple[str, str]] = []
        if asked := _CALL.match(line):
            wanted = [(asked[1], asked[2] or "{}")]
        elif asked := _COMMAND.match(line):
            wanted = [
                (name, json.dumps(arguments, ensure_ascii=False))
                for name, arguments in _memory_calls(asked[1].lower(), asked[2])
            ]
        found = [
            ScriptedCall(name, arguments) for wish, arguments in wanted if (name := _resolve(wish, names))
        ]
        calls += found
        if wanted and not found:
            missing = missing or wanted[0][0]
    return tuple(calls), missing


def _resolve(wish: str, names: Sequence[str]) -> str | None:
    """The tool of that name, or the one whose name was lengthened because of a clash."""
    if wish in names:
        return wish
    return next((name for name in names if wish in name), None)


def _memory_calls(command: str, text: str) -> list[tuple[str, dict[str, str]]]:
    match command:
        case "remember":
            return [("memory_insert", {"label": "human", "new_string": text})]
        case "archive":
            return [("archival_memory_insert", {"content": text})]
        case "search":
            return [("conversation_search", {"query": text}), ("archival_memory_search", {"query": text})]
        case "replace":
            old, _, new = text.partition("->")
            return [
                ("memory_replace", {"label": "human", "old_string": old.strip(), "new_string": new.strip()})
            ]
        case _:
            return [("memory_rethink", {"label": "human", "new_memory": text})]


def _tell_results(messages: Sequence[Mapping[str, Any]]) -> str:
    names: dict[Any, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or []:
            names[call.get("id")] = (call.get("function") or {}).get("name", "the tool")
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.append(
            f"{names.get(message.get('tool_call_id'), 'the tool')} answered: {_text(message).strip()}"
        )
    return "\n".join(reversed(results))


def _tell_memory(messages: Sequence[Mapping[str, Any]], question: str) -> str:
    """ "" where nothing is known that the question is about."""
    asked = _stems(question)
    scored = []
    for line in _known_lines(messages):
        shared = len(asked & _stems(line))
        if shared:
            scored.append((shared, line))
    best = max((shared for shared, _ in scored), default=0)
    lines = list(dict.fromkeys(line for shared, line in scored if shared * 2 > best))[-_SHOWN:]
    if lines:
        return "\n".join(["This is what I remember about that:", *(f"- {line}" for line in lines)])
    return ""


def _introduce(messages: Sequence[Mapping[str, Any]], question: str, tools: Sequence[str]) -> str:
    """What there is to say where nothing is known. It invites to no tool that is not on offer."""
    tries = [f"“{command}: …”" for command, tool in _TRIES if _resolve(tool, tools)]
    such = f" Lines such as {' or '.join(tries[:2])} make me use the memory tools on offer." if tries else ""
    if not question:
        return _HELP + such
    said = question if len(question) <= 300 else question[:300] + "…"
    first = sum(message.get("role") == "assistant" for message in messages) == 0
    return f"You said: {said}\n\n{_HELP}{such}" if first else f"You said: {said}"


def _known_lines(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that could hold an answer, oldest first: of memory sections and notes, and what the user said before."""
    lines: list[str] = []
    users = [m for m in messages if m.get("role") == "user"]
    for message in messages:
        text = _text(message)
        role = message.get("role")
        if role in ("system", "developer", "user"):
            lines += [line for section in _SECTION.finditer(text) for line in section[2].splitlines()]
        if role == "user" and message is not users[-1]:
            lines += _NOTE.sub("", text).splitlines()
    kept = (line.strip() for line in lines if not _TAG_LINE.match(line) and not _BY_ASSISTANT.match(line))
    return [line for line in kept if line and not line.endswith("?")]


def _stems(text: str) -> set[str]:
    return {word[:5] for word in _WORD.findall(text.casefold()) if word not in _PLAIN_WORDS}


def _fill(schema: Any, text: str) -> Any:
    """A value that fits a JSON schema as far as its plain parts go."""
    if not isinstance(schema, dict):
        return text
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    match kind:
        case "object":
            properties: dict[str, Any] = schema.get("properties") or {}
            wanted = schema.get("required") or list(properties)
            return {key: _fill(properties[key], text) for key in wanted if key in properties}
        case "array":
            return [_fill(schema.get("items") or {}, text)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return text
