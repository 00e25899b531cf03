"""The built-in model: it shows the memory that a request was given, and uses the memory tool."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.demo import answer
from adapters.scripted import ScriptedFailure
from adapters.scripted_message import ScriptedCall, ScriptedMessage
from tests.doubles.openai_rules import check_chat


def tool(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {}}},
    }


REMEMBER = tool("memory_insert")


def body_of(*contents: str, **more: Any) -> dict[str, Any]:
    """A chat whose messages alternate, the last one the user's."""
    roles = ["user", "assistant"] if len(contents) % 2 else ["assistant", "user"]
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"model": "demo", "messages": messages, **more}


def said(body: dict[str, Any]) -> str:
    found = answer(body)
    assert isinstance(found, ScriptedMessage)
    return found.text or ""


def calls(body: dict[str, Any]) -> tuple[ScriptedCall, ...]:
    found = answer(body)
    assert isinstance(found, ScriptedMessage)
    return found.calls


@pytest.mark.parametrize(
    ("offered", "invites"),
    [
        ([], False),
        (["weather"], False),
        (["memory_insert"], True),
        (["find", "mnemogate_memory_insert"], True),
    ],
)
def test_it_invites_to_the_memory_tool_where_that_is_on_offer(offered: list[str], invites: bool) -> None:
    tools = [tool(name) for name in offered]
    for text in ("Hello.", ""):
        found = said(body_of(text, tools=tools))
        assert "demo model" in found
        assert ("remember: …" in found) is invites


@pytest.mark.parametrize("name", ["memory_insert", "mg_memory_insert"])  # the second because of a clash
def test_a_line_makes_it_call_the_memory_tool(name: str) -> None:
    found = calls(
        body_of("Please:\nRemember: I like tea\nremember: tea ☕", tools=[tool("find"), tool(name)])
    )
    assert [(call.name, orjson.loads(call.arguments)) for call in found] == [
        (name, {"label": "human", "new_string": text}) for text in ("I like tea", "tea ☕")
    ]


def test_a_line_makes_it_call_any_tool_on_offer() -> None:
    """So a loop over tools, parallel ones too, can be tried without a key."""
    tools = [tool("find"), tool("get-weather"), REMEMBER]
    asked = 'call: get-weather {"city": "Rome"}\nCall: find\ncall: lose {}\nremember: I like tea'
    found = [(each.name, orjson.loads(each.arguments)) for each in calls(body_of(asked, tools=tools))]
    assert found == [
        ("memory_insert", {"label": "human", "new_string": "I like tea"}),
        ("get-weather", {"city": "Rome"}),
        ("find", {}),
    ]
    assert calls(body_of("call: find", tools=tools, tool_choice="none")) == ()
    assert "call: NAME" in said(body_of("Hello.", tools=tools))
    assert "call: NAME" not in said(body_of("Hello."))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [tool("find")]},
        {"tools": [tool("archival_memory_insert")]},
        {"tools": [REMEMBER], "tool_choice": "none"},
    ],
)
def test_without_that_tool_it_answers_in_words(more: dict[str, Any]) -> None:
    assert "remember: I like tea" in said(body_of("remember: I like tea", **more))


def test_after_the_tool_answered_it_says_what_it_answered() -> None:
    body = body_of("remember: I like tea", tools=[REMEMBER])
    (call,) = calls(body)
    made = {"id": "c0", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c0", "content": "Added to human."},
    ]
    check_chat(body)
    assert said(body) == "The tool answered: Added to human."


def test_it_speaks_by_send_message_where_a_call_is_required() -> None:
    tools = [tool("send_message"), tool("core_memory_append")]
    must = {"tools": tools, "tool_choice": "required"}
    (hello,) = calls(body_of("Hello there", **must))
    assert hello.name == "send_message"
    assert "Hello there" in orjson.loads(hello.arguments)["message"]
    (call,) = calls(body_of("remember: I like tea", **must))
    assert (call.name, orjson.loads(call.arguments)) == (
        "core_memory_append",
        {"label": "human", "content": "I like tea"},
    )
    assert "Hello there" in said(body_of("Hello there", tools=tools))


def test_it_repeats_what_a_tool_answered_without_a_note_after_it() -> None:
    """The note went into the reply, and with it into what is stored."""
    body = body_of("remember: I like tea", tools=[REMEMBER])
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "c1", "content": "Changed.\n\n<memory x1>\nNotes.\n</memory>"},
    ]
    assert said(body) == "The tool answered: Changed."


@pytest.mark.parametrize(
    "more",
    [{"response_format": {"type": "json_object"}}, {"tools": [REMEMBER], "tool_choice": "required"}],
)
def test_a_form_that_it_does_not_have_is_refused_by_name(more: dict[str, Any]) -> None:
    found = answer(body_of("Hi", **more))
    assert isinstance(found, ScriptedFailure)
    assert (found.status, list(more)[-1] in found.message) == (400, True)
    assert "OPENAI_API_KEY" in found.message


def test_it_tells_what_notes_and_blocks_say_about_the_question() -> None:
    said_then = "user: My dog is called Rex.\nyou: A dog called Bello.\nuser: I ski."
    note = f"<memory>\nNotes.\n[2026-01-02 Fri]\n{said_then}\n</memory>\n\n"
    block = '<memory_block label="human">\nOwns a boat.\n</memory_block>'
    section = f"<memory_blocks>\nPreamble.\n{block}\n</memory_blocks>"
    ask = body_of(note + "What is my dog called?")
    ask["messages"].insert(0, {"role": "system", "content": f"Be brief.\n{section}"})
    text = said(ask)
    assert "Rex" in text
    assert "ski" not in text
    assert "Bello" not in text
    assert "boat" not in text
    ask["messages"][-1]["content"] = "Do I own a boat?"
    assert "Owns a boat." in said(ask)


def test_a_question_that_names_nothing_is_told_what_was_said() -> None:
    said_then = "user: My dog is called Rex.\nyou: A dog called Bello.\nuser: What do I ski on?\nuser: I ski."
    note = (
        f"<memory>\nNotes from earlier.\nThis is a selection.\n[2026-01-02 Fri]\n{said_then}\n</memory>\n\n"
    )
    assert said(body_of(note + "What do you know about me?")).splitlines()[1:] == [
        "- user: My dog is called Rex.",
        "- user: I ski.",
    ]
    assert "demo model" in said(body_of("What do you know about me?"))


def test_it_tells_a_block_that_was_changed_without_its_markup() -> None:
    change = 'Memory block "human" has changed; it now reads: <memory_block label="human"> Owns a boat. </memory_block>'
    text = said(body_of(f"<memory>\nNotes.\n- {change}\n</memory>\n\nDo I own a boat?"))
    assert text.splitlines()[1:] == ['- Memory block "human" has changed; it now reads: Owns a boat.']


def test_it_remembers_what_was_said_earlier_in_the_conversation() -> None:
    assert "My cat is grey." in said(body_of("My cat is grey.", "Nice.", "What colour is my cat?"))


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("我的猫叫咪咪。", "我的猫叫什么名字？"),
        ("うちの猫の名前はミケです。", "猫の名前は何？"),
        ("고양이는 나비라고 해.", "우리 고양이 이름이 뭐야?"),
        ("قطتي اسمها مشمش.", "ما اسم قطتي؟"),
    ],
)
def test_it_remembers_in_other_scripts_and_takes_no_question_for_an_answer(told: str, asked: str) -> None:
    text = said(body_of(told, "Nice.", asked, "Hm.", asked))
    assert text.splitlines()[1:] == [f"- {told}"]


def test_a_command_within_a_recalled_note_is_not_obeyed() -> None:
    note = "<memory>\nNotes.\nremember: I like tea\n</memory>\n\n"
    assert calls(body_of(note + "Hello there", tools=[REMEMBER])) == ()


def test_a_stranger_is_told_what_the_demo_can_do() -> None:
    text = said(body_of("Hello there", tools=[REMEMBER]))
    assert "Hello there" in text
    assert "remember:" in text


def test_the_request_bounds_the_reply() -> None:
    found = answer(body_of("one two three four", max_completion_tokens=3))
    assert found == ScriptedMessage("You said: one", finish_reason="length")
