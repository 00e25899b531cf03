"""Random runs: whatever the model, the upstream, the client and the rules do, a turn keeps its steps and ends."""

from __future__ import annotations

import itertools
import random
from typing import Any, get_args

import orjson
import pytest

from gateway.agents.core.rule_guide import RuleGuide
from gateway.core.agent import SpeakingStyle
from gateway.core.tool_rule import read_rules
from gateway.core.turn.asides import Asides
from gateway.core.turn.calls import ResumedCalls
from gateway.core.turn.commands import CallModel, CloseUpstream, Command, Finish, RunTool, Save, SaveStep
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    StepSaved,
    Stopped,
    ToolFinished,
    TurnEvent,
)
from gateway.core.turn.machine import Turn
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.core.turn.tool_result import ToolResult
from gateway.dialects.chat.render import ChatView
from gateway.errors import UpstreamReplyBroken
from tests.agents.core.test_tool_rules import random_rules
from tests.core.turn.playbook import JSON, SSE, completion, make_stream
from tests.doubles.lines_view import LinesView

NAMES = ("a", "b", "c", "say", "client", "nobody")
MAX_STEPS = 8


def reply(dice: random.Random, ids: Any) -> list[TurnEvent]:
    """A random reply of the model, whole or in pieces, good or broken."""
    made = []
    for _ in range(dice.choice([0, 0, 1, 1, 2, 3])):
        arguments = dice.choice(
            ['{"message":"Hi."}', '{"message":"Hi.","request_heartbeat":true}', "{}", "{", ""]
        )
        made.append((dice.choice([f"id{next(ids)}", "same", ""]), dice.choice(NAMES), arguments))
    text, finish = dice.choice([None, "", "So."]), dice.choice([None, None, None, "stop", "length"])
    body = completion(text, tuple(made), finish, id=f"r{next(ids)}", tokens=dice.choice([None, (9, 3)]))
    fate = dice.random()
    if fate < 0.03:
        return [ReplyFailed(UpstreamReplyBroken("It broke."))]
    if fate < 0.06:
        return [
            ReplyStarted(dice.choice([500, 402, 200]), JSON),
            ReceivedWhole(b'{"error":{"message":"no"}}'),
        ]
    if dice.random() < 0.4:
        return [ReplyStarted(200, JSON), ReceivedWhole(orjson.dumps(body))]
    size = dice.choice([1, 2, 100])
    pieces = make_stream(body, lambda text: [text[n : n + size] for n in range(0, len(text), size)] or [""])
    if fate < 0.09:
        return [ReplyStarted(200, SSE), Received(pieces[:2]), ReplyFailed(UpstreamReplyBroken("It broke."))]
    return [ReplyStarted(200, SSE), *(Received([piece]) for piece in pieces), ReplyEnded()]


def play(seed: int) -> list[Command]:
    dice, ids = random.Random(seed), itertools.count()
    keeps, shows = dice.random() < 0.8, dice.random() < 0.5
    terms = TurnTerms(
        wants_usage=dice.random() < 0.5,
        gateway_tools=AllBut({"client"}),
        holds_end=True,
        saves_steps=keeps or shows,
        shows_steps=shows,
        asides=Asides({"say": {"request_heartbeat"}, "a": {"request_heartbeat"}}, {"say": "message"}),
        budget_tokens=dice.choice([None, None, 40]),
    )
    guide = RuleGuide(
        read_rules(random_rules(dice)),
        ("a", "b", "c", "say"),
        style=dice.choice(get_args(SpeakingStyle)),
        max_steps=MAX_STEPS,
        approval_tools=dice.choice([(), ("b",)]),
    )
    turn = Turn(terms, LinesView(terms) if shows else ChatView(terms), guide)
    seen: list[Command] = []
    todo: list[TurnEvent] = []
    running: list[RunTool] = []
    open_reply = False  # a reply is stored whose results are not

    def took(commands: list[Command]) -> None:
        nonlocal open_reply
        for command in commands:
            assert not any(isinstance(each, Finish) for each in seen), "something follows on the end"
            seen.append(command)
            match command:
                case SaveStep():
                    if command.reply is not None:
                        assert not open_reply
                        open_reply = True
                        calls = command.reply.get("tool_calls") or []
                        assert all(call["id"] for call in calls)
                    if command.results or command.nudge:
                        assert open_reply
                        open_reply = False
                    todo.append(StepSaved(1, 2))
                case RunTool():
                    assert open_reply or not terms.saves_steps, "a tool runs before its reply is kept"
                    running.append(command)
                case CallModel():
                    assert not open_reply
                    assert not terms.saves_steps or not command.messages
                    todo.extend(reply(dice, ids))
                case Save():
                    outcome = command.outcome
                    todo.append(Saved())
                    if terms.saves_steps:
                        assert not (open_reply and outcome.full_reply)
                    assert bool(outcome.waiting) <= (outcome.stop_reason is StopReason.REQUIRES_APPROVAL)

    if dice.random() < 0.2 and terms.saves_steps:
        open_reply = True
        calls = tuple(
            {"id": f"w{n}", "type": "function", "function": {"name": dice.choice("abc"), "arguments": "{}"}}
            for n in range(dice.randrange(1, 4))
        )
        took(turn.feed(ResumedCalls(calls, approved_ids=frozenset(call["id"] for call in calls))))
    else:
        todo.extend(reply(dice, ids))
    for _ in range(2_000):
        if any(isinstance(command, Finish) for command in seen):
            break
        if dice.random() < 0.002:
            took(turn.feed(dice.choice([ClientLeft(), Stopped(), Stopped(StopReason.ERROR)])))
        elif running and (not todo or dice.random() < 0.5):
            call = running.pop(dice.randrange(len(running)))
            took(turn.feed(ToolFinished(ToolResult(call.call_id, "x", dice.choice(["success", "error"])))))
        elif todo:
            took(turn.feed(todo.pop(0)))
        else:
            raise AssertionError("the turn waits for something that nobody was told of")
    # Whatever comes late changes nothing.
    for late in (Saved(), StepSaved(1, 2), ToolFinished(ToolResult("a", "x")), Stopped(), ReplyEnded()):
        assert turn.feed(late) == []
    return seen


@pytest.mark.parametrize("block", range(5))
def test_every_run_is_saved_once_and_ends_once(block: int) -> None:
    stops = set()
    for seed in range(block * 300, block * 300 + 300):
        seen = play(seed)
        saves = [command for command in seen if isinstance(command, Save)]
        assert len(saves) == 1, seed
        assert [isinstance(command, Finish) for command in seen].count(True) == 1
        # One step more than there may be: a resumed one was counted before.
        assert [isinstance(command, CallModel) for command in seen].count(True) <= MAX_STEPS
        stops.add(saves[0].outcome.stop_reason)
    assert {StopReason.END_TURN, StopReason.MAX_TOKENS, StopReason.REQUIRES_APPROVAL} <= stops


def test_an_error_closes_what_is_open() -> None:
    seen = [command for seed in range(200) for command in play(seed)]
    assert any(isinstance(command, CloseUpstream) for command in seen)
