"""Questions about the order of events: they are known in several languages, and what asks is not searched for."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gateway.core.prompt.event_order import OrderQuestion, find_order_question, without_order_words
from gateway.core.prompt.note_choice import CUT_CHARS, ORDER_CHARS
from gateway.run.memory.find_messages import find_messages
from storage.errors import StoreTimeout
from storage.records import Message


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (
            "In which order did I choose the floor and find the rot?",
            "did I choose the floor and find the rot",
        ),
        (
            "Can you walk me through the order in which I brought up the different aspects of our wedding?",
            "Can you I our wedding",
        ),
        (
            "What is the order of the three trips I took in spring, from earliest to latest?",
            "What is the three trips I took in spring",
        ),
        ("In welcher Reihenfolge kamen die Küche und der Boden?", "kamen die Küche und der Boden"),
        ("Dans quel ordre ai-je choisi le sol ?", "ai-je choisi le sol"),
        ("我是按什么顺序装修厨房的？", "我是 装修厨房的？"),
        ("どんな順番で台所を直しましたか", "で台所を直しましたか"),
        ("Step by step?", "Step by step?"),
    ],
)
def test_the_words_that_ask_for_an_order_are_left_out(text: str, events: str) -> None:
    assert find_order_question(text) is OrderQuestion.ORDER
    assert without_order_words(text) == events


@pytest.mark.parametrize(
    ("text", "asked", "event"),
    [
        ("What came next after I had to find the rot?", OrderQuestion.NEXT, "find the rot"),
        ("After the wedding, what did we do?", OrderQuestion.NEXT, "the wedding, what did we do"),
        (
            "First the kitchen was planned - and then what?",
            OrderQuestion.NEXT,
            "First the kitchen was planned -",
        ),
        ("What happened just before the move?", OrderQuestion.PREVIOUS, "the move"),
        ("What was the step before the harvest?", OrderQuestion.PREVIOUS, "the harvest"),
        ("Was kam nach dem Umzug?", OrderQuestion.NEXT, "dem Umzug"),
        ("Was passierte, bevor der Schreiner kam?", OrderQuestion.PREVIOUS, "der Schreiner kam"),
        ("Qu'est-ce qui s'est passé après le mariage ?", OrderQuestion.NEXT, "le mariage"),
        ("¿Qué pasó después de la mudanza?", OrderQuestion.NEXT, "¿ de la mudanza"),
        ("Cosa abbiamo fatto prima del trasloco?", OrderQuestion.PREVIOUS, "del trasloco"),
        ("Wat gebeurde daarna met de keuken?", OrderQuestion.NEXT, "met de keuken"),
        ("Что мы делали после свадьбы?", OrderQuestion.NEXT, "свадьбы"),
        ("搬家之后我做了什么", OrderQuestion.NEXT, "搬家"),
        ("装修之前发生了什么", OrderQuestion.PREVIOUS, "装修"),
        ("引っ越しの後に何をしましたか", OrderQuestion.NEXT, "引っ越し しましたか"),
        ("이사한 다음에 뭘 했지", OrderQuestion.NEXT, "이사한 했지"),
    ],
)
def test_a_question_asks_for_what_came_next_or_before(text: str, asked: OrderQuestion, event: str) -> None:
    assert find_order_question(text) is asked
    assert without_order_words(text) == event


@pytest.mark.parametrize(
    "text",
    [
        "The day after tomorrow I fly to Rome.",
        "Before I forget: I need milk.",
        "What is the next train?",
        "Und dann gehen wir essen.",
        "Was mache ich vor dem Essen?",
        "After work I go for a run.",
        "Order a pizza for six.",
        "What did I order in Rome?",
        "Which steps lead to the attic?",
        "Bestell mir Tee.",
        "I bought it in order to learn Greek.",
        "in which order " * 100,
    ],
)
def test_other_texts_ask_for_no_order(text: str) -> None:
    assert find_order_question(text) is None


def test_each_way_of_asking_has_a_sign() -> None:
    """The signs are looked for first, and a question without one is not."""
    table = (Path(__file__).parents[3] / "gateway/data/order_words.txt").read_text("utf-8").splitlines()
    lines = [line.split(maxsplit=2) for line in table if not line.startswith("#")]
    signs = {language: text.split() for language, kind, text in lines if kind == "sign"}
    for language, kind, pattern in lines:
        if kind in ("order", "next", "previous"):
            # Alternatives of the whole expression: its groups are one letter each.
            flat = re.sub(
                r"\(\?:[^()]*(?:\([^()]*\)[^()]*)*\)", lambda found: found[0].replace("|", "/"), pattern
            )
            for way in flat.split("|"):
                assert any(sign in way for sign in signs[language]), way


def test_events_of_an_order_are_searched_for_by_their_words_and_replies_come_last() -> None:
    handed_in = Message(5, 5, "user", "Such a day! I handed the thesis in. It rained.", 5.0, 2)
    reply = Message(6, 5, "assistant", "You handed it in, well done.", 5.0, 2)
    subject = Message(1, 1, "user", "My thesis compares river names.", 0.0, 1)
    around = Message(3, 3, "user", "The weather was fine.", 3.0, 2)
    searched = []

    class Thesis:
        async def search(self, query: str) -> list[Message]:
            searched.append(query)
            return [subject, handed_in] if "thesis" in query else [reply, around, handed_in]

        async def select(self, query: str) -> list[Message]:
            raise AssertionError("the search finds something")

        async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
            raise AssertionError("the whole order is asked for")

    text = "In which order did I hand it in and find the subject?"
    found = asyncio.run(find_messages(text, text, Thesis()))
    assert searched == [
        "did I hand it in and find the subject",
        "did I hand it in and find the subject\nI handed the thesis in.",
    ]
    assert found.messages == [handed_in, around, subject, reply]


@pytest.mark.parametrize(
    "text", ["In which order did I hand it in and find it?", "What did I do after I handed it in?"]
)
def test_the_first_hits_stay_if_a_second_search_takes_too_long(text: str) -> None:
    event = Message(5, 5, "user", "I handed it in.", 5.0, 2)
    looks = []

    class Slow:
        async def search(self, query: str) -> list[Message]:
            looks.append(query)
            if len(looks) > 1:
                raise StoreTimeout("the search took too long")
            return [event]

        async def select(self, query: str) -> list[Message]:
            raise AssertionError("the search finds something")

        async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
            looks.append("")
            raise StoreTimeout("the search took too long")

    assert asyncio.run(find_messages(text, text, Slow())).messages == [event]
    assert len(looks) == 2


def test_a_note_for_an_order_of_events_has_shorter_lines() -> None:
    searched = []

    class Limestone:
        async def search(self, query: str) -> list[Message]:
            searched.append(query)
            return [Message(1, 1, "user", "We chose limestone.", 0.0, 1)]

        async def select(self, query: str) -> list[Message]:
            raise AssertionError("the search finds something")

        async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
            raise AssertionError("the whole order is asked for")

    def found(text: str) -> int:
        return asyncio.run(find_messages(text, text, Limestone())).choose_line_chars(1_000)

    assert found("In which order did we choose the floor and the rings?") == ORDER_CHARS
    assert found("Which floor did we choose?") == CUT_CHARS
    assert searched == ["did we choose the floor and the rings", "Which floor did we choose?"]
