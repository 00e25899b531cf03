"""Which notes may quote what is gone, and what of a block is left."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.core.conversation.private import with_private
from gateway.core.memory.forgetting_rules import drop_quotations, may_quote, rebuild_block
from gateway.core.prompt.note_text import NoteHit, render_note
from storage.forget_commands import ErasedMarks, RevisedValue
from storage.records import Block, Exchange, ExchangeState, MemoryEdit, Message
from storage.search.common_words import is_function_word

DAY = 20_000  # 2024-10-04
BLOCK = Block(1, "human", "The user", "has a cat", 1000)


def note(day: int, changes: tuple[str, ...] = ()) -> str:
    message = Message(1, 1, "user", "something", day * 86_400.0 + 50, 1)
    return render_note([NoteHit.of(message, "something")], changes, (DAY + 9) * 86_400.0, mark="a2b3c4d5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (note(DAY), True),
        (note(DAY - 1), False),
        (note(DAY - 1, ("human: has a dog",)), False),
        ("- [2024-10-04, user] as a search shows it", True),
        ("", False),
    ],
)
def test_a_note_is_known_by_the_day_of_what_it_quotes(text: str, expected: bool) -> None:
    assert may_quote(text, ErasedMarks(frozenset({DAY}))) is expected


def test_a_day_without_its_year_is_recognised() -> None:
    messages = [Message(n, n, "user", "something", day * 86_400.0, 1) for n, day in enumerate((DAY - 1, DAY))]
    told = render_note(
        [NoteHit.of(each, "something") for each in messages], (), DAY * 86_400.0, mark="a2b3c4d5"
    )
    assert "2024-10-04" not in told.partition("\n[")[2]
    assert may_quote(told, ErasedMarks(frozenset({DAY})))


@pytest.mark.parametrize(
    ("text", "expected"), [("[undated]\nuser: something", True), ("- [ ] buy milk", False)]
)
def test_a_day_that_no_calendar_has_is_recognised(text: str, expected: bool) -> None:
    assert may_quote(text, ErasedMarks(frozenset({10**9}))) is expected


def test_search_hits_and_the_notes_after_them_are_removed_from_results() -> None:
    empty = Exchange(1, 1, None, 0, 0, (), (), (), b"", None, 1.0, 1.0)
    calls = [
        {"id": name, "function": {"name": name, "arguments": "{}"}}
        for name in ("conversation_search", "look")
    ]
    above = replace(
        empty, shown_reply=orjson.dumps({"role": "assistant", "content": None, "tool_calls": calls})
    )
    hit = "- [2024-10-04, user] My cat is called Miso."
    told = "Done.\n\n" + note(DAY - 1, ('Memory block "human" has changed',))
    results = [
        {"role": "tool", "tool_call_id": "conversation_search", "content": hit},
        {"role": "tool", "tool_call_id": "look", "content": hit},  # somebody else's words
        with_private({"role": "tool", "tool_call_id": "look", "content": told}, said=5),
        {"role": "user", "content": hit},
    ]
    step = replace(empty, input=orjson.dumps(results))
    for erased, changes in (
        (ErasedMarks(frozenset({DAY})), {0: "(forgotten)"}),
        (ErasedMarks(frozenset({DAY - 5}), has_blocks=True), {2: "Done."}),
        (ErasedMarks(frozenset({DAY - 5})), {}),
    ):
        left = orjson.loads(drop_quotations(step, above, erased).input or b"")
        assert {n: m["content"] for n, m in enumerate(left) if m != results[n]} == changes
    for gone in (
        replace(above, shown_reply=None, state=ExchangeState.FORGOTTEN),
        replace(above, redactions=frozenset({-1})),
    ):
        left = orjson.loads(drop_quotations(step, gone, ErasedMarks(frozenset({DAY - 5}))).input or b"")
        assert [m["content"] for m in left] == ["(forgotten)"] * 3 + [hit]


def test_a_message_that_mentions_blocks_goes_when_a_block_lost_text() -> None:
    assert may_quote(note(DAY - 1, ("human: has a dog",)), ErasedMarks(frozenset(), has_blocks=True))
    assert not may_quote(note(DAY - 1), ErasedMarks(frozenset(), has_blocks=True))


def op(kind: str, **arguments: str | int) -> MemoryEdit:
    return MemoryEdit(1, 1, "c", kind, "human", orjson.dumps({"label": "human", **arguments}))


def rebuilt(block: Block, later: list[RevisedValue]) -> str:
    """Returns the last value of a block without what was erased."""
    return rebuild_block(block, later, (), is_function_word).values[-1]


@pytest.mark.parametrize(
    ("erased", "later", "left"),
    [
        # A name of three letters, an abbreviation, and the commonest words of English and of German.
        ("Partner: Amy", "Married to Amy\nPlays chess", "Plays chess"),
        ("Has HIV", "Takes pills for HIV\nHas the flat", "Has the flat"),
        ("Partnerin: Amy, arbeitet bei Bosch", "Wohnt bei Bern\nAmy ist Lehrerin", "Wohnt bei Bern"),
        ("Sie hat HIV", "Hat zwei Hunde", "Hat zwei Hunde"),
        ("Ist in der Bank", "Ist im Chor der Stadt", "Ist im Chor der Stadt"),
        # Longer function words of English, and short ones of another alphabet. "Will" is a name as well.
        ("Has moved from Rome", "Has been away from Bern\nBorn in Rome", "Has been away from Bern"),
        ("Lives with Will", "Plays with Tom\nMarried to Will", "Plays with Tom"),
        ("Живёт в Москве", "Играет в шахматы\nРодился в Москве", "Играет в шахматы"),
        ("Её муж - Лев", "Лев и она", ""),
    ],
)
def test_a_word_is_erased_unless_most_texts_have_it(erased: str, later: str, left: str) -> None:
    block = replace(BLOCK, value="")
    assert rebuilt(block, [RevisedValue(erased, is_erased=True), RevisedValue(later)]) == left


def test_a_pending_edit_stays_that_has_only_function_words_of_what_is_gone() -> None:
    later = [RevisedValue("Has moved from Rome", is_erased=True)]
    pending = [op("insert", new_string=text) for text in ("Has a friend from Bern", "Was in Rome")]
    rebuilt_values = rebuild_block(replace(BLOCK, value=""), later, pending, is_function_word)
    assert rebuilt_values.repeating_edits == pending[1:]


GONE = RevisedValue("has a cat\nlikes tea", is_erased=True)


@pytest.mark.parametrize(
    ("later", "left"),
    [
        ([GONE], "has a cat"),
        # an edit of another turn is done again
        (
            [GONE, RevisedValue("has a cat\nlikes tea\nrides", edit=op("insert", new_string="rides"))],
            "has a cat\nrides",
        ),
        # also where lines before its place are gone
        (
            [GONE, RevisedValue("x", edit=op("insert", new_string="rides", insert_line=2))],
            "has a cat\nrides",
        ),
        # one that changed what is gone has nothing left to change
        (
            [GONE, RevisedValue("x", edit=op("replace", old_string="likes tea", new_string="likes mate"))],
            "has a cat",
        ),
        # a value written as a whole keeps the lines that say nothing of it
        ([GONE, RevisedValue("has a cat\nloves tea and likes it\nrides a bike")], "has a cat\nrides a bike"),
        ([GONE, RevisedValue("all likes at once", edit=op("rethink", new_memory="all likes at once"))], ""),
        # and the lines that an edit which was done again has brought in
        (
            [
                GONE,
                RevisedValue(
                    "has a cat\nlikes tea\nlikes to ride", edit=op("insert", new_string="likes to ride")
                ),
                RevisedValue("has a cat\nlikes to ride\nlikes mate\nswims"),
            ],
            "has a cat\nlikes to ride\nswims",
        ),
        # but for lines by hand that say something else
        (
            [
                GONE,
                RevisedValue(
                    "drinks tea since the diagnosis, no coffee\nlikes tea a lot\nrides", is_manual=True
                ),
            ],
            "drinks tea since the diagnosis, no coffee\nrides",
        ),
        ([GONE, RevisedValue("likes coffee", is_manual=True)], "likes coffee"),
        # which a later value may have, too; what was there before was not written by hand
        (
            [
                GONE,
                RevisedValue("likes tea\nlikes and loves mate", is_manual=True),
                RevisedValue("likes tea\nlikes and loves mate\nlikes to swim"),
            ],
            "likes and loves mate",
        ),
        # the lines stay that the question says as well, whatever the reply said of it
        ([replace(GONE, remaining=["I like tea."])], "has a cat\nlikes tea"),
        ([replace(GONE, remaining=["My brother's favourite tea?"])], "has a cat"),
        ([RevisedValue("Code 4711B", is_erased=True, remaining=["Code 4711A"])], "has a cat"),
        ([RevisedValue("Room 4B", is_erased=True, remaining=["Room 4A"])], "has a cat"),
        (
            [
                RevisedValue(
                    "has a cat\nlikes tea\nin 52001",
                    is_erased=True,
                    remaining=["Tea is what I like, in 52002."],
                )
            ],
            "has a cat\nlikes tea",
        ),
        # one message has to say all of a line
        ([replace(GONE, remaining=["I like it.", "Some tea!"])], "has a cat"),
        # what it replaced comes back if not all of its own lines stay
        (
            [RevisedValue("likes tea", is_erased=True, remaining=["I like tea, and the cat has left."])],
            "likes tea",
        ),
        (
            [RevisedValue("likes tea\nsmokes", is_erased=True, remaining=["I like tea."])],
            "has a cat\nlikes tea",
        ),
        # a later value loses the lines that the reply alone said
        (
            [
                RevisedValue("has a cat\nlikes tea\nsmokes", is_erased=True, remaining=["I like tea."]),
                RevisedValue("has a cat\nlikes tea a lot\nsmokes often"),
            ],
            "has a cat\nlikes tea a lot",
        ),
        # an undo back to before it
        ([GONE, RevisedValue("has a cat", is_clean=True)], "has a cat"),
        # an undo back to it takes along what stood in between
        (
            [
                GONE,
                RevisedValue("has a dog"),
                RevisedValue("has a cat\nlikes tea", is_erased=True, restores=0),
            ],
            "has a cat",
        ),
        # and back to one that was built on it, to what is left of that one
        (
            [
                GONE,
                RevisedValue("likes tea\nrides"),
                RevisedValue("swims"),
                RevisedValue("likes tea\nrides", restores=1),
            ],
            "rides",
        ),
    ],
)
def test_a_block_is_rebuilt_of_what_is_left(later: list[RevisedValue], left: str) -> None:
    assert rebuilt(BLOCK, later) == left


@pytest.mark.parametrize("since", [{"read_only": True}, {"limit": 10}, {"label": "person"}])
def test_a_later_value_of_a_block_takes_no_edit_from_it(since: dict[str, Any]) -> None:
    later = [GONE, RevisedValue("x", edit=op("insert", new_string="rides"))]
    assert rebuilt(replace(BLOCK, **since), later) == "has a cat\nrides"


def test_an_edit_in_each_place_does_not_grow_without_end() -> None:
    long = "a" * 50
    many = RevisedValue(long, edit=op("replace", old_string="a", new_string=long, every=True))
    one = RevisedValue("a", edit=op("replace", old_string=long, new_string="a"))
    block = replace(BLOCK, value=long, limit=50)
    assert len(rebuilt(block, [RevisedValue("a", is_erased=True), many, one, many, one, many])) < 300


@pytest.mark.parametrize(
    ("gone", "again"),
    [
        ("moved to Rome🎉", "lives in Rome"),
        ("earns $52000", "has an income of 52000"),
        ("#diabetes", "has diabetes"),
        ("works for Siemens+Bosch", "is at Siemens"),
        ("ผมชื่อวิน", "ชื่อวิน"),  # my name is Win, the name is Win
    ],
)
def test_a_sign_at_a_word_does_not_keep_it(gone: str, again: str) -> None:
    later = [RevisedValue(f"has a cat\n{gone}", is_erased=True), RevisedValue(f"has a cat\n{again}")]
    assert rebuilt(BLOCK, later) == "has a cat"
