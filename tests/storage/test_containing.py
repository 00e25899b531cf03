"""Every text with some words is found, in any of their forms, and no text without them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.forget_commands import ForgetTarget
from storage.search import segment, text_words
from storage.search.blob import CHUNK, encode
from storage.search.containing import find_containing
from storage.search.document import Document
from storage.search.index import Index
from storage.search.rank import hash_rare_terms
from storage.search.tail import Tail
from storage.search.text_words import (
    cut_around_words,
    find_spans_with_words,
    has_terms,
    has_words,
    list_lost_words,
    list_query_terms,
    list_written_words,
)
from storage.sql import recall
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.conftest import OpenStore
from tests.storage.test_page import fact, learn
from tests.storage.test_segments import SECRET, documents, index_of, postings
from tests.stored import Speaker, forget

# A Monday in January.
NOW = 1_000_000.0
TEXTS = (
    "I am allergic to peanuts.",
    "A peanut, and an allergy to it.",
    "The Zahnarzttermin meiner Schwester ist im Herbst in Köln.",
    "我对花生过敏。",
    "No nuts at all.",
)


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store(now=lambda: NOW)


@pytest.fixture
def alice(store: Store) -> Speaker:
    return Speaker(store, now=lambda: NOW)


async def texts(store: Store, alice: Speaker, query: str) -> list[str]:
    hits = await store.recall.find_containing(alice.agent, query)
    assert (hits.next, hits.is_incomplete) == (None, False)
    return [each.text for each in hits.messages]


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_all_words_are_looked_for_in_all_their_forms(
    store: Store, alice: Speaker, is_indexed: bool
) -> None:
    for text in TEXTS:
        await alice.say([user(text)], assistant("Noted."))
    await learn(store, alice.agent, 0, fact("Eats no peanuts."), fact("Grows peanut plants."))
    muted, _ = await store.facts.list_page(alice.agent.id)
    await store.facts.mute(alice.agent.id, muted.seq, NOW, is_muted=True)
    if is_indexed:
        while await store.search_index.advance(alice.agent.id):
            pass
    peanuts = ["Grows peanut plants.", "Eats no peanuts.", TEXTS[1], TEXTS[0]]
    for query, expected in {
        "Peanuts": peanuts,
        "my peanut": peanuts,
        "allergies peanut": [TEXTS[1]],
        "allergic, peanuts!": [TEXTS[0]],
        "Zahnarzt": [TEXTS[2]],
        "koln": [TEXTS[2]],
        "花生": [TEXTS[3]],
        "nuts": [TEXTS[4]],
        "noted": ["Noted."] * len(TEXTS),
        # The index has the words of dates, which are in no text.
        "January": [],
        "1970": [],
        "pean": [],
        "it": [],
        "": [],
    }.items():
        hits = await store.recall.find_containing(alice.agent, query)
        assert ([each.text for each in hits.messages], hits.next) == (expected, None), query
        assert not hits.is_incomplete


async def test_a_forgotten_message_is_not_found(store: Store, alice: Speaker) -> None:
    for text in TEXTS:
        await alice.say([user(text)], assistant("A peanut?"))
    while await store.search_index.advance(alice.agent.id):
        pass
    for left in (TEXTS[:2], TEXTS[1:2], ()):
        hits = await store.recall.find_containing(alice.agent, "peanuts")
        found = [each for each in hits.messages if each.role == "user"]
        assert [each.text for each in found] == [*reversed(left)]
        if found:
            await forget(store, alice.agent, ForgetTarget(message_seqs=[found[-1].seq]))


async def test_pages_go_on_below_the_last_number(
    store: Store, alice: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        await alice.say([user(f"Peanut {n}.")], assistant("Noted."))
    found, before = list[str](), 1 << 62
    for is_last in (False, False, True):
        hits = await store.recall.find_containing(alice.agent, "peanut", limit=2, before=before)
        found += [each.text for each in hits.messages]
        assert (hits.next is None) == is_last
        before = hits.next or 0
    assert found == [f"Peanut {n}." for n in reversed(range(6))]
    # Where the index names more than are checked at once, the rest follows.
    monkeypatch.setattr(recall, "_MAX_CHECKED_HITS", 4)
    dated = await store.recall.find_containing(alice.agent, "January")
    assert (dated.messages, dated.next) == ([], 9)


async def test_messages_that_no_search_knows_yet_are_reported_as_missing(
    store: Store, alice: Speaker
) -> None:
    for n in range(70):
        await alice.say([user(f"Message {n}.")], assistant("Noted."))
    assert (await store.recall.find_containing(alice.agent, "peanut")).is_incomplete
    while await store.search_index.advance(alice.agent.id):
        pass
    assert not (await store.recall.find_containing(alice.agent, "peanut")).is_incomplete


async def test_messages_beyond_those_that_are_cached_are_reported_as_missing(
    store: Store, alice: Speaker
) -> None:
    for n in range(64):
        await alice.say([user(f"Message {n}.")], assistant("Noted."), key=f"call-{n}")
        assert not (await store.recall.find_containing(alice.agent, "peanut")).is_incomplete
    await alice.say([user("A peanut.")], assistant("Noted."), key="call-64")
    hits = await store.recall.find_containing(alice.agent, "peanut")
    assert (hits.messages, hits.is_incomplete) == ([], True)


@pytest.mark.parametrize("numbers", [range(3), range(1, 3), range(1)])
@pytest.mark.parametrize("most_bytes", [1, 1 << 20])
def test_segments_hide_nothing(numbers: range, most_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words whose occurrences are too many to be read are left to the check of the texts."""
    monkeypatch.setattr(segment, "SEGMENT_CHUNKS", 2)
    monkeypatch.setattr(segment, "_READ_BYTES", most_bytes)
    listed = documents(450)
    index, made = index_of(encode(listed[:420], SECRET), numbers)
    for query in ("dog fox", "number 77", "ant", "dog fox hen ibis"):
        terms = list_query_terms(query)
        expected = [each.seq for each in reversed(listed) if has_terms(each.text, terms)]
        asked = postings(made, query)
        named = find_containing(
            index, terms, SECRET, tail=Tail(listed[420:]), before=1 << 62, limit=500, postings=[(0, asked)]
        )
        texts = {each.seq: each.text for each in listed}
        assert [seq for seq in named if has_terms(texts[seq], terms)] == expected
        assert most_bytes == 1 or named == expected
        below = find_containing(
            index, terms, SECRET, tail=Tail(listed[420:]), before=200, limit=500, postings=[(0, asked)]
        )
        assert below == [seq for seq in named if seq < 200]


def test_no_more_segments_are_opened_than_the_newest_hits_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SEGMENT_CHUNKS", 2)
    listed = documents(450)
    # The newest chunk and the oldest ones are in no segment.
    index, made = index_of(encode(listed[:440], SECRET), range(1, 3))
    (hash,) = hash_rare_terms("dog", SECRET)
    (bucket,) = segment.compute_buckets([hash])
    opened: list[int] = []
    buckets = segment.Buckets(
        [segment.SegmentBucket(bucket, n, 0, each.buckets[bucket]) for n, each in made.items()], {}, [hash]
    )

    def parts() -> Iterator[tuple[int, segment.Postings]]:
        for first, part in buckets.read_newest_first():
            opened.append(first)
            yield first, part

    expected = [each.seq for each in reversed(listed) if has_terms(each.text, ["dog"])]
    newest = sum(seq >= 2 * 2 * CHUNK for seq in expected)
    for limit, firsts in ((1, [4]), (newest, [4]), (newest + 1, [4, 0]), (500, [4, 0])):
        opened.clear()
        found = find_containing(
            index, ["dog"], SECRET, tail=Tail(listed[440:]), before=1 << 62, limit=limit, postings=parts()
        )
        assert (found, opened) == (expected[:limit], firsts)


def test_a_message_that_was_changed_counts_as_it_is_now() -> None:
    old, new = Document(1, "user", "A dog.", 0.0), Document(1, "user", "A cat.", 0.0)
    index = Index(encode([old], SECRET).items())
    tail = Tail([new])
    for query, expected in (("dog", []), ("cat", [1])):
        assert find_containing(index, [query], SECRET, tail=tail, before=9, limit=9) == expected


def test_the_words_of_a_text_are_named_as_they_are_written() -> None:
    for text, without, expected in (
        ("I am allergic to Peanuts.", "", ["allergic", "Peanuts"]),
        ("Priya is allergic to peanuts", "Priya is allergic to hazelnuts.", ["peanuts"]),
        ("Peanuts, peanut!", "", ["Peanuts"]),
        ("She sings.", "She can sing.", []),
        ("it was the", "", []),
        ("¿Dónde está “Köln”?", "", ["Dónde", "está", "Köln"]),
    ):
        assert list_written_words(text, without) == expected, text
    assert len(list_written_words(" ".join(f"word{n}" for n in range(1_000)))) == text_words._MAX_TERMS


def test_characters_of_a_sentence_without_spaces_that_a_later_text_lacks_are_lost() -> None:
    """The whole sentence was taken for one word, which no other text has."""
    for text, later, expected in (
        ("李伟住在上海。", "李伟住在北京。", ["上海"]),
        ("我住在上海，喜欢猫。", "我住在北京，喜欢狗。", ["上海", "猫"]),
        ("我住在杭州，我对花生过敏。", "李伟住在上海，对花生过敏。", ["我", "杭州"]),
        ("我喜欢苹果❤️，香蕉～", "我喜欢苹果", ["香蕉"]),
        ("我在￥北京～工作", "北京工作", ["我在"]),
        ("李伟住在上海", "Li Wei lives in Beijing.", ["李伟住在上海"]),
        ("李伟的猫叫Miso", "李伟的猫叫Mosi", ["Miso"]),
        ("ネコはソファで寝る", "ネコはベッドで寝る", ["ソファ"]),
        # One kana is found in no longer word, so the whole text is looked for.
        ("これはネコ", "これもネコ", ["これはネコ"]),
        ("上海海上", "上海，海上", ["上海海上"]),
        ("room-12", "room-13", ["room-12"]),
        ("ฉันชอบแมว", "ฉันชอบหมา", ["แมว"]),
    ):
        assert list_lost_words(text, later) == expected, text
        for word in expected:
            assert has_words(text, word), (text, word)


def test_a_long_text_is_shown_around_the_first_word() -> None:
    text = "one two three " * 40 + "peanuts " + "four five six " * 40
    shown = cut_around_words(text, "peanut", 100)
    assert "peanuts" in shown
    assert (shown[0], shown[-1], len(shown) <= 102) == ("…", "…", True)
    assert cut_around_words("Peanuts.", "peanut", 100) == "Peanuts."
    assert cut_around_words(text, "none", 10) == "one two th…"


@pytest.mark.parametrize(
    ("before", "word"),
    [("one two three ", "peanuts"), ("我今天去了市场，买了很多蔬菜和水果。", "花生")],
)
@pytest.mark.parametrize("times", [40, 5_000])
def test_a_long_text_is_shown_around_a_word_wherever_it_is(before: str, word: str, times: int) -> None:
    """A Chinese text may have no space at all, and a block may have 100,000 characters."""
    shown = cut_around_words(f"{before * times}{word}。{before * times}", word, 100)
    assert 20 < shown.index(word) < 80


def test_words_are_marked_by_their_stems_alone() -> None:
    for text, query, expected in (
        ("The roof of room 12, not the bathroom.", "Rooms", ["room"]),
        ("Peanuts! No peanut, “peanut-butter”.", "peanuts", ["Peanuts", "peanut", "peanut"]),
        ("Room-12 costs 1,204 and 204.", "12 1204", ["12", "1,204"]),
        ("Ich war in KÖLN, in Koln.", "köln", ["KÖLN", "Koln"]),
        ("I said: it was not me.", "it was", []),
        ("Anu’s sister, Anu.", "anu", ["Anu’s", "Anu"]),
        ("我的房间号是十二，厨房在那边。", "房间号", ["房间号"]),
        ("我的猫叫咪咪。", "猫", ["猫"]),
        ("set foo_bar", "foo", ["foo_bar"]),
        ("‘12’ or 12", "12", ["12", "12"]),
        ("", "12", []),
    ):
        found = [text[start:end] for start, end in find_spans_with_words(text, query)]
        assert found == expected, (text, query, found)
