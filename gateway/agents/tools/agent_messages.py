"""Tools with which an agent speaks to other agents of its project.

The caller passes the sender of messages (`AgentMessenger`), since this module must not import the runs of agents.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.turn.commands import RunTool
from gateway.run.tools.toolbox import ToolAnswer, cut_result

ASK: Final = "send_message_to_agent_and_wait_for_reply"
ASK_TAGGED: Final = "send_message_to_agents_matching_tags"
_SEND_ASYNC: Final = "send_message_to_agent_async"
# The least characters of an answer in JSON that is cut, however many agents have answered.
_MIN_ANSWER_CHARS = 200
# The most characters of an agent's name; a longer name is cut.
_NAME_CHARS = 80
_CUT = " [{left} more characters were cut off.]"


class AnswerFailure(StrEnum):
    """The reason why there is no answer. The model that has asked reads it as the answer's `type`."""

    # There is no such agent.
    MISSING = "missing"
    # The message has passed through too many agents already.
    DEPTH = "depth"
    # The other agent waits for this turn.
    DEADLOCK = "circle"
    # The other agent has too many sends.
    BUSY = "busy"
    # The other agent waits for a person.
    WAITING = "waiting"
    TIMEOUT = "timeout"
    # Any other reason.
    FAILED = "failed"


class AgentAnswer(Struct, frozen=True):
    """The answer of an agent to another agent's message."""

    # The public id of the agent.
    id: str
    # The name of the agent.
    name: str
    # The text of the answer.
    text: str = ""
    # The reason why there is no answer, as text; "": there is an answer.
    error: str = ""
    # The reason as a category; None: there is an answer.
    failure: AnswerFailure | None = None


class AgentMessenger(Protocol):
    """Sends messages of one turn of an agent. Failures are answers as well: nothing is raised for them."""

    async def ask(self, agent: str, text: str) -> AgentAnswer:
        """Returns the answer of an agent to a message. agent: the id or the name of the agent."""

    async def ask_tagged(
        self, match_all: Sequence[str], match_some: Sequence[str], text: str
    ) -> Sequence[AgentAnswer]:
        """Returns the answers of all agents with these tags.

        match_all: the tags that an agent must have.
        match_some: the tags of which an agent must have one; empty: none is required.
        """

    async def send(self, agent: str, text: str) -> AgentAnswer:
        """Has a message delivered, and does not wait for its run. Returns an answer without text."""


async def perform_call(messenger: AgentMessenger, call: RunTool, max_chars: int) -> ToolAnswer:
    """Returns the result of a call of one of these tools.

    max_chars: the most characters of the result. A result has more if so many agents have answered that each answer is
        cut to `_MIN_ANSWER_CHARS`. A single answer that is cut has the line of `cut_result` in addition.
    """
    text = str(call.arguments["message"])
    if call.name == ASK_TAGGED:
        match_all = tuple(map(str, call.arguments.get("match_all") or ()))
        match_some = tuple(map(str, call.arguments.get("match_some") or ()))
        answers = await messenger.ask_tagged(match_all, match_some, text)
        if not answers:
            return ToolAnswer.failed("Error: no other agent has these tags. Nothing was sent.")
        return ToolAnswer(_render_answers(answers, max_chars))
    other_agent = str(call.arguments["other_agent_id"])
    is_async = call.name == _SEND_ASYNC
    answer = await (messenger.send if is_async else messenger.ask)(other_agent, text)
    if answer.error:
        return ToolAnswer.failed(f"Error: {answer.error}")
    if is_async:
        return ToolAnswer(f"Sent to {answer.name}.")
    return ToolAnswer(cut_result(answer.text, max_chars) or f"{answer.name} answered without words.")


def _render_answers(answers: Sequence[AgentAnswer], max_chars: int) -> str:
    """Returns the answers as JSON. Long answers are cut to the same length, so that none is missing."""
    other_chars = _count_json_chars([_make_entry(answer, "") for answer in answers])
    chars_each = max(_MIN_ANSWER_CHARS, (max_chars - other_chars) // len(answers))
    entries = [_make_entry(answer, _cut_text(answer.error or answer.text, chars_each)) for answer in answers]
    return orjson.dumps(entries).decode()


def _make_entry(answer: AgentAnswer, text: str) -> Json:
    """Returns an answer as the model reads it. text: the text of the answer, or the reason why there is none."""
    entry: Json = {"agent_id": answer.id, "agent_name": answer.name[:_NAME_CHARS]}
    return entry | ({"error": text, "type": answer.failure} if answer.error else {"response": text})


def _cut_text(text: str, max_chars: int) -> str:
    """Returns a text with at most `max_chars` characters in JSON. If it is cut, it ends with a notice."""
    if _count_json_chars(text) <= max_chars:
        return text
    # `_CUT` is as long as the notice with a number of six digits.
    end = bisect_right(range(max_chars), max_chars - len(_CUT), key=lambda n: _count_json_chars(text[:n])) - 1
    return text[:end] + _CUT.format(left=len(text) - end)


def _count_json_chars(value: object) -> int:
    return len(orjson.dumps(value).decode())
