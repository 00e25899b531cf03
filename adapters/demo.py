"""The model that answers when no other is configured: a few rules, enough to watch a memory at work.

The model repeats the lines of a request that share words with the question: lines of recalled notes, of memory blocks
and of earlier messages. A question of common words alone ("What do you know about me?") gets the newest lines. A line
"remember: I like tea" calls the tool `memory_insert` or `core_memory_append`, and a line `call: find {"name": "tea"}`
any tool, where the request offers the tool. Agents of Letta's older types require a call and offer `send_message`;
there the model replies by this tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from adapters.scripted import Scripted, ScriptedFailure, ScriptedProvider
from adapters.scripted_message import ScriptedCall, ScriptedMessage

_REMEMBER: Final = re.compile(r"^[^\S\n]*+remember\s*+:\s*+(\S.*)$", re.I | re.M)
_CALL: Final = re.compile(r"^[^\S\n]*+call[^\S\n]*+:[^\S\n]*+([\w-]+)[^\S\n]*(\{.*\})?[^\S\n]*$", re.I | re.M)
_NOTE: Final = re.compile(r"<memory\b[^<>]*>.*?(?:</memory>|\Z)", re.S)
_SECTION: Final = re.compile(r"<(memory_blocks|memory|summary)\b[^<>]*>(.*?)(?:</\1>|\Z)", re.S)
# A tag within a line, where a note shows a block again.
_BLOCK_TAG: Final = re.compile(r" ?</?memory_block\b[^<>]*>")
_TAG_LINE: Final = re.compile(r"^\s*</?[a-z_][^>]*>\s*$")
# A section's introduction, before its content.
_HEADING: Final = re.compile(r"\A(?:\s*+(?!\[|- |user: |<)[^\n]*\n)+")
# A line of a note that quotes the assistant, in the present form and in earlier ones, and the line of a day.
_ASSISTANT_LINE: Final = re.compile(r"^(?:\[[^\]]*\bassistant\]|you: |\[[^\]]*\]$)")
# The gateway's tool has a longer name where the application has one of the same name.
_INSERT_TOOL: Final = re.compile(r"(?<!archival_)memory_insert|core_memory_append")
_SPEAKING_TOOL: Final = "send_message"
# Chinese, Japanese and Korean are compared sign by sign: they put no blank between words, or hang endings onto them.
_SIGNS: Final = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_WORD: Final = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")
_QUESTION_MARKS: Final = ("?", "？", "؟")
_STOP_WORDS: Final = frozenset(
    _WORD.findall(
        """
        a about all am an and any are as at be but by can could did do does for from had has have he her his how i if
        in is it its know me my not of on or our please remember s say she so tell that the their them they this to
        was we were what when where which who why will with would you your
        """
    )
)
# The most lines of an answer.
_MAX_LINES: Final = 3
# The most characters of a question that an answer repeats.
_QUOTED_CHARS: Final = 300
# The first letters of a word that stand for its forms: "colour" finds "colours".
_STEM_CHARS: Final = 5
_HELP: Final = (
    "I am the built-in demo model, no more than a few rules. Tell me something, and ask about it later, in another "
    "conversation too."
)


class DemoProvider(ScriptedProvider):
    """The built-in model of a gateway without a key."""

    # This provider serves for days, and stored requests would pile up.
    keeps_requests = False

    def __init__(self, name: str = "demo") -> None:
        # The pause between two events makes a stream look like one.
        super().__init__(name, script=_try_to_answer, pause_s=0.01)


def answer(body: Mapping[str, Any]) -> ScriptedMessage | ScriptedFailure:
    """Returns the reply to a request. Parts of messages that the API would refuse are ignored."""
    tools = _read_offered_tools(body)
    speaks_by_tool = body.get("tool_choice") == "required" and _SPEAKING_TOOL in tools
    if field := _find_unsupported_field(body, speaks_by_tool=speaks_by_tool):
        message = (
            f"The demo model cannot follow this `{field}`. "
            "With OPENAI_API_KEY or `--upstream URL` that upstream answers."
        )
        return ScriptedFailure(400, message, "unsupported_parameter")
    messages = [message for message in body.get("messages") or [] if isinstance(message, dict)]
    if messages and messages[-1].get("role") == "tool":
        text = f"The tool answered: {_NOTE.sub('', _read_text(messages[-1])).strip()}"
        return _make_reply(text, body, speaks_by_tool=speaks_by_tool)
    question = _read_question(messages)
    memory_tool = next((name for name in tools if _INSERT_TOOL.search(name)), None)
    if calls := (*_make_memory_calls(question, memory_tool), *_make_requested_calls(question, tools)):
        return ScriptedMessage(None, calls)
    text = _select_lines_about(messages, question) or _make_introduction(
        messages, question, has_memory_tool=memory_tool is not None, has_tools=bool(tools)
    )
    return _make_reply(text, body, speaks_by_tool=speaks_by_tool)


def _try_to_answer(body: Mapping[str, Any]) -> Scripted:
    """Returns the reply to a request, or the error of a request that cannot be read."""
    try:
        return answer(body)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        return ScriptedFailure(400, f"The demo model cannot read this request: {error}.")


def _make_memory_calls(question: str, tool: str | None) -> Iterator[ScriptedCall]:
    """Yields a call of the memory tool for each line "remember: ..."."""
    if tool is not None:
        parameter = "content" if "append" in tool else "new_string"
        for fact in _REMEMBER.findall(question):
            yield _make_call(tool, {"label": "human", parameter: fact.rstrip()})


def _make_requested_calls(question: str, tools: Sequence[str]) -> Iterator[ScriptedCall]:
    """Yields the call that each line "call: ..." asks for, if the request offers the tool."""
    for name, arguments in _CALL.findall(question):
        if name in tools:
            yield ScriptedCall(name, arguments or "{}")


def _find_unsupported_field(body: Mapping[str, Any], *, speaks_by_tool: bool) -> str | None:
    """Returns the field that asks for a form of answer which this model does not have; None: there is no such field."""
    response_format, tool_choice = body.get("response_format"), body.get("tool_choice")
    if isinstance(response_format, dict) and response_format.get("type") not in (None, "text"):
        return "response_format"
    if tool_choice not in (None, "none", "auto") and not speaks_by_tool:
        return "tool_choice"
    return None


def _read_offered_tools(body: Mapping[str, Any]) -> list[str]:
    """Returns the names of the tools that may be called."""
    if body.get("tool_choice") == "none":
        return []
    functions = [tool.get("function") or {} for tool in body.get("tools") or () if isinstance(tool, dict)]
    return [function["name"] for function in functions if isinstance(function.get("name"), str)]


def _make_call(tool: str, arguments: Mapping[str, str]) -> ScriptedCall:
    return ScriptedCall(tool, json.dumps(arguments, ensure_ascii=False))


def _make_reply(text: str, body: Mapping[str, Any], *, speaks_by_tool: bool) -> ScriptedMessage:
    """Returns a reply with a text, which the model sends by a tool if it has to."""
    reply = _limit_words(text, body)
    if not speaks_by_tool:
        return reply
    return ScriptedMessage(None, (_make_call(_SPEAKING_TOOL, {"message": reply.text or ""}),))


def _limit_words(text: str, body: Mapping[str, Any]) -> ScriptedMessage:
    """Cuts a reply to the request's limit of tokens, each word counted as one."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    words = re.findall(r"\s*\S+", text)
    if isinstance(limit, int) and 0 < limit < len(words):
        return ScriptedMessage("".join(words[:limit]), finish_reason="length")
    return ScriptedMessage(text)


def _read_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, of whatever form its content is."""
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(text for text in parts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _read_question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns the last user message's own words, without a recalled note, which could repeat an old command."""
    user_messages = [message for message in messages if message.get("role") == "user"]
    return _NOTE.sub("", _read_text(user_messages[-1])).strip() if user_messages else ""


def _select_lines_about(messages: Sequence[Mapping[str, Any]], question: str) -> str:
    """Returns an answer with the lines that share most words with the question; "": no line shares any."""
    stems = _find_stems(question)
    if not stems and question.endswith(_QUESTION_MARKS):
        return _list_lines(_find_candidate_lines(messages)[-_MAX_LINES:])
    scored = [(len(stems & _find_stems(line)), line) for line in _find_candidate_lines(messages)]
    best_count = max((shared_count for shared_count, _ in scored), default=0)
    lines = list(dict.fromkeys(line for shared_count, line in scored if shared_count * 2 > best_count))
    return _list_lines(lines[-_MAX_LINES:]) if best_count else ""


def _list_lines(lines: Sequence[str]) -> str:
    """Returns an answer that lists lines; "": there are no lines."""
    if not lines:
        return ""
    return "\n".join(["This is what I remember about that:", *(f"- {line}" for line in lines)])


def _make_introduction(
    messages: Sequence[Mapping[str, Any]], question: str, *, has_memory_tool: bool, has_tools: bool
) -> str:
    """Returns an answer for a question that no line answers. It mentions only tools that the request offers."""
    invitation = " A line “remember: …” makes me use the memory tool on offer." if has_memory_tool else ""
    if has_tools:
        invitation += " A line `call: NAME {…}` makes me call any tool on offer."
    if not question:
        return _HELP + invitation
    quotation = question if len(question) <= _QUOTED_CHARS else question[:_QUOTED_CHARS] + "…"
    acknowledgement = f"You said: {quotation}"
    is_first = all(message.get("role") != "assistant" for message in messages)
    return f"{acknowledgement}\n\n{_HELP}{invitation}" if is_first else acknowledgement


def _find_candidate_lines(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of memory sections, notes and earlier user messages that may be an answer."""
    lines: list[str] = []
    user_messages = [message for message in messages if message.get("role") == "user"]
    for message in messages:
        text = _read_text(message)
        role = message.get("role")
        if role in ("system", "developer", "user"):
            for section in _SECTION.finditer(text):
                content = section[2] if section[1] == "summary" else _HEADING.sub("", section[2])
                lines += _read_section_lines(content)
        if role == "user" and message is not user_messages[-1]:
            lines += _NOTE.sub("", text).splitlines()
    # A question or a command is no answer, and the assistant's own lines would repeat its guesses.
    statements = (
        line.strip() for line in lines if not _TAG_LINE.match(line) and not _ASSISTANT_LINE.match(line)
    )
    return [
        line
        for line in statements
        if line and not line.endswith(_QUESTION_MARKS) and not _CALL.match(line.removeprefix("user: "))
    ]


def _read_section_lines(text: str) -> list[str]:
    """Returns the lines of a memory section, without tags of blocks and list marks."""
    return [line.removeprefix("- ") for line in _BLOCK_TAG.sub("", text).splitlines()]


def _find_stems(text: str) -> set[str]:
    """Returns the beginnings of a text's words, without common words."""
    return {word[:_STEM_CHARS] for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS}
