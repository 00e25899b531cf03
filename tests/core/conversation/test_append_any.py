"""Append mode with random clients that leave, lose replies, resend and report what was heard.

Whatever happens, the model gets each message of the user once, in order, and of a reply what was heard.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from gateway.core.conversation.wire_message import WireMessage, read_text
from storage.records import ExchangeState
from tests.core.conversations import Request, World, assistant, call, extends_prompt, result, user
from tests.doubles.openai_rules import check_chat
from tests.rows import each_row


class Talker:
    """A client that sends its new message alone, and reports before it what was heard of the last reply that it got."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.world = World()
        self.said: list[str] = []
        self.cut: list[str] = []
        self.answer = self.reply = self.heard = self.lost = ""

    def talk(self) -> None:
        for _ in range(self.chance.randint(3, 9)):
            self.turn(f"message {len(self.said)}.")

    def turn(self, text: str) -> None:
        messages = [user(text)]
        if self.reply and self.chance.random() < 0.5:
            if not self.heard:
                self.heard = self.reply[: self.chance.randint(10, len(self.reply) - 1)].rstrip()
                self.cut.append(self.reply)
            messages = [assistant(self.heard), *messages]
        self.said.append(text)
        retry = False
        while not self.is_answered(messages, text, retry=retry):
            if self.chance.random() < 0.5:
                return
            retry = True

    def is_answered(self, messages: list[WireMessage], text: str, *, retry: bool) -> bool:
        request = self.world.begin(messages, "c1", append=True, retry=retry)
        sent = [m for _, m in request.sent]
        assert [read_text(m) for m in sent if m["role"] == "user"] == self.said
        replies = [read_text(m) for m in sent if m["role"] == "assistant"]
        assert not set(replies) & set(self.cut)
        assert len(messages) == 1 or self.heard in replies
        if self.chance.random() < 0.3:
            self.world.cancel(request)
            return False
        if text not in self.answer or self.chance.random() < 0.5:
            self.answer = f"{self.world.now:.0f} is when I answer {text} And there is more."
        self.world.finish(request, answer := self.answer)
        assert ExchangeState.OPEN not in [e.state for e in self.world.memory().records.values()]
        # Two replies in a row that got lost look like a conversation that goes on from an older place.
        if self.lost in ("", text) and self.chance.random() < 0.3:
            self.lost = text
            return False
        self.reply, self.heard, self.lost = answer, "", ""
        return True


@each_row("seed", range(100))
def test_each_message_is_there_once_and_of_a_reply_what_was_heard(seed: int) -> None:
    Talker(seed).talk()


def barge_in(seed: int) -> None:
    """A caller who interrupts an assistant of few words, and whose client reports of each reply what was heard.

    It reports the same once more with the next message where nothing was heard of an answer to the last one. Into a
    silence the application may speak by itself, after what was heard.
    """
    chance, world = Random(seed), World()
    talk: list[str] = []
    heard, is_told = "", True
    for number in range(30):
        text = f"message {number}."
        asked = ["Are you there?"] if heard and chance.random() < 0.3 else []
        talk += [*([] if is_told else [heard]), *asked, text]
        reply, is_told = chance.choice(["Ok.", "Sure.", "One moment.", f"This is number {number}."]), True
        for _ in range(chance.choice([1, 1, 1, 2])):
            messages = [*map(assistant, [heard, *asked] if heard else []), user(text)]
            request = world.begin(messages, "c1", append=True)
            assert request.texts == talk
            end = chance.choice(["finished", "finished", "cut", "lost"])
            if end == "finished":
                world.finish(request, reply)
                heard = chance.choice([reply, reply.split()[0], ""])
                talk.append(heard or reply)
                break
            world.cancel(request, [assistant(reply)] if end == "cut" else [])
        if end == "cut":
            heard, is_told = chance.choice([reply, reply.split()[0]]), False


@each_row("seed", range(20))
def test_the_heard_part_of_a_cut_reply_is_stored_once_and_matches_no_older_reply(
    seed: int,
) -> None:
    barge_in(seed)


@pytest.mark.parametrize("next_words", ["message 1.", "message 1. And more", "message 2."])
@pytest.mark.parametrize("above", [False, True])
def test_the_heard_part_of_a_cut_reply_is_sent_again_if_the_answer_was_lost(
    next_words: str, *, above: bool
) -> None:
    world = World()
    before = ["message of before.", "A reply to that."] if above else []
    if above:
        world.finish(world.begin([user(before[0])], "c1", append=True), before[1])
    cut = world.begin([user("message 0.")], "c1", append=True)
    world.cancel(cut, [assistant("This is number 0, as heard")])
    told = assistant("This is number 0")
    lost = world.begin([told, user("message 1.")], "c1", append=True)
    world.finish(lost, "This reply gets lost.")
    again = world.begin([told, user(next_words)], "c1", append=True)
    unheard = [] if next_words.startswith("message 1.") else ["message 1."]
    talk = [*before, "message 0.", "This is number 0", *unheard, next_words]
    assert again.texts == talk
    world.finish(again, "This one arrives.")
    next_one = world.begin([assistant("This one"), user("message 3.")], "c1", append=True)
    assert next_one.texts == [*talk, "This one", "message 3."]


@pytest.mark.parametrize("above", [False, True])
def test_a_retry_reports_what_was_heard_of_the_cut_reply_though_all_replies_begin_alike(
    *, above: bool
) -> None:
    world = World()
    before = ["message of before.", "Well, that is before."] if above else []
    if above:
        world.finish(world.begin([user(before[0])], "c1", append=True), before[1])
    cut = world.begin([user("message 0.")], "c1", append=True)
    world.cancel(cut, [assistant("Well, this is number 0")])
    messages = [assistant("Well,"), user("message 1.")]
    lost = world.begin(messages, "c1", append=True)
    world.finish(lost, "Well, this reply gets lost.")
    again = world.begin(messages, "c1", append=True, retry=True)
    assert again.texts == [*before, "message 0.", "Well,", "message 1."]


def test_a_retry_reports_the_newer_of_two_replies_with_the_same_words() -> None:
    world = World()
    world.cancel(world.begin([user("message 0.")], "c1", append=True), [assistant("Ok.")])
    first, second = assistant("Ok. —"), assistant("Ok. [interrupted]")
    world.cancel(world.begin([first, user("message 1.")], "c1", append=True), [assistant("Ok.")])
    messages = [second, user("message 2.")]
    world.finish(world.begin(messages, "c1", append=True), "This reply gets lost.")
    again = world.begin(messages, "c1", append=True, retry=True)
    assert again.texts == ["message 0.", "Ok. —", "message 1.", "Ok. [interrupted]", "message 2."]


def wander(seed: int) -> None:
    """A client that sends its whole list, its end or its new message alone, edits and asks again anywhere but in its
    first message, and returns to what it had left."""
    chance, world = Random(seed), World()
    talk = world.chat(("message 0.", "This is the first answer."), key="c1")
    left = [talk]
    for number in range(1, 20):
        sends = chance.choice(["alone", "alone", "whole", "end"])
        question, reply = f"message {number}.", chance.choice(["Ok.", f"This is the answer to {number}."])
        if chance.random() < 0.4:
            sends = "whole"
            left.append(talk)
            talk = chance.choice(left)
            back = chance.randrange(2, len(talk) + 1, 2)
            if chance.random() < 0.5 and back < len(talk):  # the same again, which may have the same answer
                question = read_text(talk[back])
                reply = chance.choice([reply, read_text(talk[back + 1])])
            talk = talk[:back]
        talk = [*talk, user(question)]
        listed = talk[{"alone": -1, "end": -5}.get(sends, 0) :]
        request = world.begin(listed, "c1", append=sends == "alone")
        assert request.texts == [read_text(m) for m in talk]
        world.finish(request, reply)
        talk = [*talk, assistant(reply)]


@each_row("seed", range(40))
def test_whatever_a_client_sends_of_its_list_the_model_gets_all_of_it(seed: int) -> None:
    wander(seed)


def check_sent(request: Request) -> None:
    """Checks that an upstream takes the messages, and has a reply to make to them."""
    messages = [m for _, m in request.sent]
    check_chat({"model": "m", "messages": messages})
    assert messages[-1]["role"] != "assistant"


def end_send(world: World, sent: Request, end: str) -> None:
    """Ends a send whose answer the client does not get: "cancelled", "lost" on its way, or "open", not at all yet."""
    if end == "cancelled":
        world.cancel(sent)
    elif end == "lost":
        world.finish(sent, "This reply gets lost.")


@pytest.mark.parametrize("end", ["cancelled", "open", "lost"])
@pytest.mark.parametrize("told", [["First."], []])
@pytest.mark.parametrize("next_words", [["two", "three"], ["two", "three", "four"], ["two and", "three"]])
def test_a_message_that_is_resent_before_the_next_one_is_there_once(
    end: str, told: list[str], next_words: list[str]
) -> None:
    world = World()
    world.say([user("one")], "First.", "c1", append=True)
    sent = world.begin([user("two")], "c1", append=True)
    end_send(world, sent, end)
    if end == "lost":
        told = ["First."]  # without it "two" would be the next message
    again = world.begin([*map(assistant, told), *map(user, next_words)], "c1", append=True)
    talk = ["one", "First.", *next_words]
    assert again.texts == talk
    world.finish(again, "This one arrives.")
    later = world.begin([user("last")], "c1", append=True)
    assert later.texts == [*talk, "This one arrives.", "last"]


@pytest.mark.parametrize("end", ["cancelled", "open", "lost"])
@pytest.mark.parametrize("more", [[], ["two"]])
def test_a_result_that_is_sent_again_is_there_once(end: str, more: list[str]) -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"))], "c1", append=True)
    sent = world.begin([result("k1", "sunny")], "c1", append=True)
    end_send(world, sent, end)
    again = world.begin([result("k1", "sunny"), *map(user, more)], "c1", append=True)
    assert again.texts == ["one", "Let me look.", "sunny", *more]


@pytest.mark.parametrize(("second_id", "retry"), [("k2", True), ("k1", False)])
def test_a_result_with_the_words_of_the_one_before_it_is_another(second_id: str, *, retry: bool) -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"))], "c1", append=True)
    world.say([result("k1", "sunny")], [assistant("Once more.", call(second_id))], "c1", append=True)
    request = world.begin([result(second_id, "sunny")], "c1", append=True, retry=retry)
    ids = [m["tool_call_id"] for _, m in request.sent if m["role"] == "tool"]
    assert ids == ["k1", second_id]


@pytest.mark.parametrize("told", [[], ["Still looking."], ["Still"], ["Still", "Are you there?"]])
@pytest.mark.parametrize("also", [[], ["three"]])
def test_a_result_that_comes_after_the_next_answer_is_sent_with_its_call(
    told: list[str], also: list[str]
) -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"), call("k2"))], "c1", append=True)
    world.say([result("k2", "windy")], "It is windy.", "c1", append=True)
    before = world.say([user("two")], "Still looking.", "c1", append=True)
    late = [*map(assistant, told), result("k1", "sunny"), *map(user, also)]
    request = world.begin(late, "c1", append=True)
    heard = told or ["Still looking."]
    asked = ["one", "Let me look.", "No result was given.", "windy", "It is windy.", "two"]
    assert request.texts == [*asked, *heard, "sunny", *also]
    check_sent(request)
    assert extends_prompt(request, before)
    world.finish(request, "It is sunny.")
    later = world.begin([user("four")], "c1", append=True)
    assert later.texts == [*request.texts, "It is sunny.", "four"]
    assert extends_prompt(later, request)


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize("ends", ["finished", "cancelled"])
def test_a_result_may_come_after_words_of_the_same_send(ends: str, *, is_answered: bool) -> None:
    world = World(recall=lambda question: f"<{question}>")
    reply = [assistant("Let me look.", call("k1"))]
    first = world.say([user("one")], reply, "c1", append=True)
    if is_answered:
        first = world.say([user("two")], "Still looking.", "c1", append=True)
    request = world.begin([user("three"), result("k1", "sunny")], "c1", append=True)
    between = ["No result was given.", "<two>two", "Still looking."] if is_answered else []
    assert request.texts == ["<one>one", "Let me look.", *between, "sunny", "three"]
    check_sent(request)
    assert extends_prompt(request, first)
    if ends == "finished":
        world.finish(request, "It is sunny.")
    else:
        world.cancel(request)
    later = world.begin([user("four")], "c1", append=True)
    assert extends_prompt(later, request)


@pytest.mark.parametrize("end", ["cancelled", "open"])
@pytest.mark.parametrize("again", ["sunny", "windy"])
def test_a_result_of_a_send_that_is_held_is_there_once_if_it_comes_again_alone(end: str, again: str) -> None:
    """The words of that send come with the next message, without the result, which is answered by then."""
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"))], "c1", append=True)
    sent = world.begin([result("k1", "sunny"), user("two")], "c1", append=True)
    end_send(world, sent, end)
    answered = world.say([result("k1", again)], "It is sunny.", "c1", append=True)
    assert answered.texts == ["one", "Let me look.", again]
    later = world.begin([user("three")], "c1", append=True)
    assert later.texts == [*answered.texts, "It is sunny.", "two", "three"]
    check_sent(later)


def test_a_held_send_of_a_long_tool_loop_takes_one_read() -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k0"))], "c1", append=True)
    for n in range(8):
        reply = [assistant("Let me look.", call(f"k{n + 1}"))]
        world.say([result(f"k{n}", f"sunny {n}")], reply, "c1", append=True)
    world.cancel(world.begin([result("k8", "sunny"), user("two")], "c1", append=True))
    world.say([result("k8", "sunny")], "It is sunny.", "c1", append=True)
    later = world.begin([user("three")], "c1", append=True)
    assert later.texts[-3:] == ["It is sunny.", "two", "three"]
    check_sent(later)


def test_a_result_that_comes_again_with_other_words_is_there_once() -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"))], "c1", append=True)
    world.cancel(world.begin([result("k1", "sunny"), user("two")], "c1", append=True))
    request = world.say([result("k1", "sunny"), user("three")], "It is sunny.", "c1", append=True)
    assert request.texts == ["one", "Let me look.", "sunny", "two", "three"]
    later = world.begin([user("four")], "c1", append=True)
    assert extends_prompt(later, request)
    check_sent(later)


@pytest.mark.parametrize("id", ["", None])
def test_a_result_without_an_id_is_that_of_a_call_without_one(id: Any) -> None:
    """Some servers of open models give their calls no ids."""
    world = World()
    world.say([user("one")], [assistant("Let me look.", {**call(""), "id": id})], "c1", append=True)
    request = world.begin([result(id, "sunny")], "c1", append=True)
    assert request.texts == ["one", "Let me look.", "sunny"]


@pytest.mark.parametrize("ends", ["finished", "cancelled"])
@pytest.mark.parametrize("before", [[], ["zero", "Null."]])
def test_what_was_heard_of_a_forgotten_reply_is_not_stored(ends: str, before: list[str]) -> None:
    world = World()
    if before:
        world.say([user(before[0])], before[1], "c1", append=True)
    request = world.begin([user("one")], "c1", append=True)
    if ends == "finished":
        world.finish(request, "Quetzal is her name.")
    else:
        world.cancel(request, [assistant("Quetzal is her")])
    world.forget(max(world.memory().records))
    world.say([assistant("Quetzal is"), user("two")], "Fine.", "c1", append=True)
    assert world.begin([user("three")], "c1", append=True).texts == [*before, "two", "Fine.", "three"]


def test_a_result_whose_call_was_forgotten_is_left_out() -> None:
    world = World()
    first = world.say([user("one")], [assistant("Let me look.", call("k1"))], "c1", append=True)
    world.say([user("two")], "Still looking.", "c1", append=True)
    world.say([result("k1", "sunny")], "It is sunny.", "c1", append=True)
    world.forget(first.exchange_row)
    request = world.begin([user("three")], "c1", append=True)
    assert request.texts == ["two", "Still looking.", "It is sunny.", "three"]
    check_sent(request)


@pytest.mark.parametrize("greeting", ["Hello, how can I help you today?", "Yes."])
@pytest.mark.parametrize("before", [[], ["I will"]])
def test_words_of_the_application_that_an_old_reply_has_too_lead_not_back_to_it(
    greeting: str, before: list[str]
) -> None:
    world = World()
    world.say([user("(call begins)")], greeting, "c1", append=True)
    world.say([user("My name is Ann.")], "Nice to meet you.", "c1", append=True)
    world.say([user("I am allergic to nuts.")], "I will remember that.", "c1", append=True)
    last = before or ["I will remember that."]
    messages = [*map(assistant, [*before, greeting]), user("What may I eat?")]
    request = world.say(messages, "Fruit.", "c1", append=True)
    talk = [
        "(call begins)",
        greeting,
        "My name is Ann.",
        "Nice to meet you.",
        "I am allergic to nuts.",
        *last,
    ]
    assert request.texts == [*talk, greeting, "What may I eat?"]
    later = world.begin([user("And what is my name?")], "c1", append=True)
    assert later.texts[:-2] == [*talk, greeting, "What may I eat?"]


def test_the_heard_part_of_a_reply_that_a_kill_lost_matches_no_older_reply() -> None:
    world = World()
    for question, answer in (("one", "Yes."), ("two", "Second."), ("three", "Third.")):
        world.say([user(question)], answer, "c1", append=True)
    world.begin([user("four")], "c1", append=True)
    request = world.begin([assistant("Yes."), user("five")], "c1", append=True)
    talk = ["one", "Yes.", "two", "Second.", "three", "Third."]
    assert request.texts == [*talk, "four", "Yes.", "five"]


@pytest.mark.parametrize("parts", [["Let me note that. It is noted"], ["Let me note that.", "It is noted"]])
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_heard_part_of_a_reply_has_its_hidden_rounds(parts: list[str], *, is_cut: bool) -> None:
    world = World()
    reply = [
        assistant("Let me note that.", call("m1", "memory_insert")),
        result("m1", "Done."),
        assistant("It is noted, and what else may I do?"),
    ]
    first = world.say([user("I like tea")], reply, "c1", append=True)
    heard = world.begin([*map(assistant, parts), user("two")], "c1", append=True)
    talk = ["I like tea", "Let me note that.", "Done.", "It is noted", "two"]
    assert heard.texts == talk
    assert extends_prompt(heard, first)
    if is_cut:
        world.cancel(heard)
    else:
        world.finish(heard, "Fine then.")
    again = world.begin([*map(assistant, parts if is_cut else []), user("three")], "c1", append=True)
    assert extends_prompt(again, heard)
    assert heard.composition.unrestored_rounds == again.composition.unrestored_rounds == 0


def test_rounds_of_a_reply_that_was_not_heard_so_far_are_counted_once() -> None:
    world = World()
    reply = [
        assistant("Let me note that.", call("m1", "memory_insert")),
        result("m1", "Done."),
        assistant("It is noted."),
    ]
    world.say([user("I like tea")], reply, "c1", append=True)
    heard = world.say([assistant("Let me"), user("two")], "Fine then.", "c1", append=True)
    assert heard.texts == ["I like tea", "Let me", "two"]
    later = world.begin([user("three")], "c1", append=True)
    assert extends_prompt(later, heard)
    counts = heard.composition.unrestored_rounds, later.composition.unrestored_rounds
    assert counts == (1, 0)


def test_all_that_a_list_may_repeat_is_asked_for_at_once() -> None:
    """`World` lets the rules ask for contents as often as the store does."""
    world = World()
    for question, answer in (("one", "First."), ("two", "Second.")):
        world.say([user(question)], [assistant(answer, call("w1"))], "c1", append=True)
    for sent in (user("three"), result("w1", "sunny")):
        world.cancel(world.begin([sent], "c1", append=True))
    request = world.begin([assistant("Are you there?"), user("four")], "c1", append=True)
    assert request.lines[-4:] == [
        "+ tool: =sunny",
        "+ user: three",
        "assistant: Are you there?",
        "user: four",
    ]


@pytest.mark.parametrize("told", [[], ["Still looking."]])
def test_a_system_message_does_not_part_a_late_result_from_its_call(told: list[str]) -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"))], "c1", append=True)
    world.say([user("two")], "Still looking.", "c1", append=True)
    system = {"role": "system", "content": "Be brief."}
    sent = [*map(assistant, told), user("three"), system, assistant("", call("k2"))]
    request = world.begin([*sent, result("k2", "windy"), result("k1", "sunny")], "c1", append=True)
    check_sent(request)
    assert request.texts[-6:] == ["Still looking.", "three", "", "windy", "sunny", "Be brief."]


def test_a_system_message_does_not_part_results_of_one_reply() -> None:
    world = World()
    world.say([user("one")], [assistant("Let me look.", call("k1"), call("k2"))], "c1", append=True)
    system = {"role": "system", "content": "Be brief."}
    sent = [result("k1", "sunny"), system, result("k2", "windy"), user("two")]
    request = world.begin(sent, "c1", append=True)
    check_sent(request)
    assert request.texts == ["one", "Let me look.", "sunny", "windy", "Be brief.", "two"]
