"""What a model writes to a sub-agent is known while its call waits for a result."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.memory.delegated import DelegatedTasks
from storage.records import Scope
from tests.rows import each_row

ANN, BOB = Scope("p", "default", "user:ann"), Scope("p", "default", "user:bob")
ASKED = "My trip goes to Zanzibar. Plan it."
TASK = "Find the best dive sites of Zanzibar."
NOW = 1e9


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(*arguments: Any, id: str = "1", kind: str = "function") -> dict[str, Any]:
    field = "arguments" if kind == "function" else "input"
    calls = [
        {"id": f"{id}{n or ''}", "type": kind, kind: {"name": "research", field: text}}
        for n, text in enumerate(arguments)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


CALL = reply(json.dumps({"place": "sea", "task": TASK}))
CONTEXT = "The user dives since 2019 and likes wrecks."
GUIDED = reply(json.dumps({"task": TASK, "context": CONTEXT, "background": False}))
OWN = [user(ASKED)]


def after(*replies: dict[str, Any], **fields: Any) -> DelegatedTasks:
    found = DelegatedTasks()
    for each in replies:
        found.note_calls(ANN, {"messages": OWN, **fields}, each, NOW)
    return found


@each_row(
    ("made", "messages", "is_task"),
    [
        (CALL, [user(TASK)], True),
        (
            CALL,
            [{"role": "system", "content": "You research."}, user([{"type": "text", "text": TASK}])],
            True,
        ),
        (
            CALL,
            [user(TASK), reply("{}", id="x"), {"role": "tool", "tool_call_id": "x", "content": "3"}],
            True,
        ),
        (CALL, [user("An older task."), {"role": "assistant", "content": "Done."}, user(f" {TASK}\n")], True),
        (reply("{}", json.dumps({"task": TASK})), [user(TASK)], True),  # the second of two
        (reply(TASK, kind="custom"), [user(TASK)], True),
        # CrewAI's template; LlamaIndex's, where a query engine is a tool
        (
            CALL,
            [user(f"\nCurrent Task: {TASK}\n\nThis is the expected criteria for your final answer: A list.")],
            True,
        ),
        (
            CALL,
            [user(f"Context information is below.\n---\nThe sea is warm.\n---\nQuery: {TASK}\nAnswer: ")],
            True,
        ),
        # an argument of messages (Haystack), of tasks (AG2), of other things
        (reply(json.dumps({"messages": [user([{"text": TASK}])]})), [user(TASK)], True),
        (reply(json.dumps({"messages": [{"content": "Be brief."}, user(TASK)]})), [user(TASK)], True),
        (reply(json.dumps({"tasks": ["Buy the tickets.", TASK, None]})), [user(TASK)], True),
        (reply(json.dumps({"choices": [{"label": TASK}]})), [user(TASK)], False),
        # a heading between two arguments (Open WebUI), however short the second one is
        (GUIDED, [user(f"{TASK}\n\n## Context\n{CONTEXT}")], True),
        (CALL, [user(f"{TASK}\n\n## Context\nsea")], True),
        (GUIDED, [user(f"{CONTEXT}\n\nTask: {TASK}")], True),
        (GUIDED, [user(f"{TASK}\n\n## Context\n{CONTEXT} And cheap.")], False),
        (GUIDED, [user(f"{TASK} That is what I was asked for, and I wonder why. {CONTEXT}")], False),
        (GUIDED, [user(f"So: {TASK}\n\n## Context\n{CONTEXT}")], False),
        (GUIDED, [user(f"{TASK}\n\n{TASK}")], False),
        (reply(json.dumps({"a": "Is it", "b": "warm?", "task": TASK})), [user("Is it warm?")], False),
        (CALL, [user(f"{TASK} Today.")], False),
        (CALL, [user("sea")], False),  # too short to tell
        (CALL, [user(TASK), {"role": "assistant", "content": "Done."}, user("Thanks.")], False),
        (CALL, OWN, False),
        (CALL, [*OWN, {"role": "assistant", "content": "Shall I?"}, user(TASK)], False),  # it was suggested
        # a handoff (LibreChat), with what was said before; what was said further up is the user's
        (CALL, [user("Hi."), {"role": "assistant", "content": "Hello."}, *OWN, user(TASK)], True),
        (CALL, [*OWN, user("Wait."), user(TASK)], False),
        (reply(json.dumps({"task": ASKED})), OWN, False),  # the user's own words
        (reply(json.dumps([TASK])), [user(TASK)], False),
        (reply("{"), [user(TASK)], False),
        (reply(None), [user(TASK)], False),
        (CALL, [], False),
    ],
)
def test_a_list_is_a_sub_agents_by_its_last_words(
    made: dict[str, Any], messages: list[dict[str, Any]], is_task: bool
) -> None:
    assert after(made).is_task(ANN, messages, NOW + 5) is is_task


def test_not_where_the_called_tool_is_offered() -> None:
    """A user of the same application says what a model has called the tool with: the corrected question, a button."""
    found = after(CALL)
    assert not found.is_task(ANN, [user(TASK)], NOW, offered_tools=("look", "research"))
    assert found.is_task(ANN, [user(TASK)], NOW, offered_tools=("look",))


def test_only_while_the_call_waits() -> None:
    found = after(CALL)
    assert found.is_task(ANN, [user(TASK)], NOW + 3000)
    assert not found.is_task(ANN, [user(TASK)], NOW + 4000)
    assert not found.is_task(
        ANN, [*OWN, CALL, {"role": "tool", "tool_call_id": "1", "content": "Chumbe"}], NOW
    )
    assert not found.is_task(ANN, [user(TASK)], NOW)


@pytest.mark.parametrize(
    ("choice", "is_task"),
    [
        ("auto", True),
        (None, True),
        ("required", False),
        ({"type": "function", "function": {"name": "x"}}, False),
    ],
)
def test_only_of_a_call_that_the_model_chose_to_make(choice: Any, is_task: bool) -> None:
    assert after(CALL, tool_choice=choice).is_task(ANN, [user(TASK)], NOW) is is_task


def test_of_no_other_memory() -> None:
    assert not after(CALL).is_task(BOB, [user(TASK)], NOW)


def test_the_newest_calls_and_memories_are_retained() -> None:
    tasks = [f"The task of the number {n}." for n in range(70)]
    found = after(*(reply(json.dumps({"task": text}), id=text) for text in tasks))
    assert [found.is_task(ANN, [user(text)], NOW) for text in tasks] == [False] * 6 + [True] * 64
    for n in range(1024):
        found.note_calls(Scope("p", "default", f"user:{n}"), {"messages": OWN}, CALL, NOW)
    assert not found.is_task(ANN, [user(tasks[-1])], NOW)
    assert found.is_task(Scope("p", "default", "user:0"), [user(TASK)], NOW)
