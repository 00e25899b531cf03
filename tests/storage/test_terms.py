"""The packed index: what is put in is found, what is forgotten is gone, and nobody else's memory matters."""

from __future__ import annotations

import math
import random
import re
import struct
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.search.blob import CHUNK, CorruptIndex, check_can_add, encode, forget, merge
from storage.search.document import Document, count_terms, list_distinct_terms
from storage.search.index import Index
from storage.search.rank import rank
from storage.search.tokens import (
    VERSION,
    list_names,
    list_terms,
    may_be_compound,
    split_compounds,
    split_words,
)
from tests.rows import each_row
from tests.stored import indexed_seqs, ranked

SECRET = b"s" * 32
ROLES = ("user", "assistant")
MAY = datetime(2026, 5, 17, 12, tzinfo=UTC).timestamp()  # a Sunday


def said(
    seq: int, text: str, role: str = "user", previous: int | None = None, speaker: str | None = None
) -> Document:
    return Document(seq, role, text, MAY, speaker, previous)


def found(query: str, *documents: Document, **options: object) -> list[int]:
    blobs = encode(documents, SECRET).values()
    return ranked(blobs, query, SECRET, **options)  # type: ignore[arg-type]


# Of each script that has rules of its own.
SAMPLE = """The dogs' owners were running in May 2026, get_user_id order ORD-4471-B cost 1,200 euros,
Düsseldorf café Łódź Işık Donau\u00addampf\u00adschiff שָׁלוֹם עולם 我最喜欢喝绿茶 東京タワーに行きました
저는 서울에서 살아요 ฉันชอบกินข้าวผัด Мы купили большие книги मुझे हिन्दी भाषा पसंद है Oslo’s
Καλημέρα κόσμε الكتب الجديدة Բարեւ ձեզ வணக்கம் straße ﬁx ½ ① e\u0301\u0301"""


def test_other_terms_are_another_version() -> None:
    # Indexes out there have these. Where this fails on purpose, raise words.VERSION, and pin what it is then.
    terms = "\n".join(
        [*list_terms(SAMPLE), *split_compounds(filter(may_be_compound, split_words(SAMPLE)))]
    ).encode()
    assert (VERSION, sha256(terms).hexdigest()[:8]) == (4, "34fd29c4")


def test_a_blob_of_other_terms_is_read_and_only_a_later_one_is_added_to() -> None:
    now, new = encode([said(1, "a dog")], SECRET)[0], encode([said(2, "a fox")], SECRET)[0]
    earlier, later = (now[:3] + bytes([VERSION + by]) + now[4:] for by in (-1, 1))
    assert ranked([earlier], "dog", SECRET) == ranked([later], "dog", SECRET) == [1]
    assert forget(earlier, [2]) == earlier
    with pytest.raises(CorruptIndex, match="terms"):
        merge(earlier, new)
    with pytest.raises(CorruptIndex, match="terms"):
        check_can_add(earlier, 0)
    assert merge(later, new) == merge(now, new)


@each_row(
    ("text", "query"),
    [
        ("My dogs were running", "a dog runs"),  # English stems
        ("a CAFÉ in Düsseldorf", "cafe dusseldorf"),  # case and accents, composed
        ("Işık IŞIK", "ışık ışık"),  # a capital of Turkish
        ("Łódź", "lodz"),  # a stroke
        ("Donau\u00addampf\u00adschiff", "donaudampfschiff"),  # pasted, with soft hyphens
        ("שָׁלוֹם עולם", "שלום"),  # Hebrew with its points
        ("cafe\u0301", "café"),  # combining accent
        ("order ORD-4471-B cost 1,200 euros", "what about 1200"),  # thousands
        ("order ORD-4471-B", "4471"),
        ("call get_user_id first", "get_user_id"),
        ("call get_user_id first", "the user"),
        ("the server is b2b at v1.29", "v1"),
        ("我最喜欢喝绿茶", "绿茶"),  # Chinese, inside a run
        ("我最喜欢喝绿茶", "茶"),  # a word of one character
        ("東京タワーに行きました", "タワー"),  # Japanese
        ("저는 서울에서 살아요", "서울"),  # Korean with a particle
        ("ฉันชอบกินข้าวผัด", "ข้าวผัด"),  # Thai
        ("Мы купили большие книги", "большая книга"),  # Russian stems
        ("मुझे हिन्दी भाषा पसंद है", "हिन्दी"),  # vowel signs stay in the word
        ("I live in Oslo’s old town", "oslo"),  # typographic apostrophe
        ("nothing about it", "what did I say in May?"),  # the date is searchable
        ("nothing about it", "sunday"),
    ],
)
def test_a_question_finds_the_message_that_answers_it(text: str, query: str) -> None:
    assert (
        found(query, said(1, "something else entirely, without a link", "assistant"), said(2, text))[0] == 2
    )


def test_a_speaker_is_found_by_name() -> None:
    assert found("what did Ingrid want", said(1, "tea"), said(2, "coffee", speaker="Ingrid")) == [2]


@pytest.mark.parametrize("query", ["", "   ", "?!…", "the and of", "\x00", "\ud800"])
def test_a_query_without_words_finds_nothing(query: str) -> None:
    assert found(query, said(1, "the dog and the cat"), tail=[said(2, "more")]) == []


def test_no_messages_no_hits() -> None:
    assert ranked([], "dog", SECRET) == []
    assert rank(Index([(0, b"")]), "dog", SECRET) == []


def test_function_words_are_left_out_and_repeated_words_counted() -> None:
    assert list_terms("The dog and the dogs aren't here, B2B") == ["dog", "dog", "aren", "b2b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 'quoted', isn''t it? Rock'n'roll, dogs' ''", "it's quoted isn t it rock'n'roll dogs"),
        ("1,234,567 or 1,23 or A_b\x1cC\x00d", "1234567 or 1 23 or a_b c d"),
        ("Größe's 'Straße’s' １，２３４", "grösse's strasse’s 1234"),
    ],
)
def test_a_text_is_split_at_what_no_word_has(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\uff9e\u0301", "\u0344\u0316"])
def test_only_the_first_of_endless_marks_count(marks: str) -> None:
    """Unicode sorts a run of marks in the square of its length: 80,000 characters took half a minute."""
    # Without the bound this does not end.
    few, many = (split_words(f"na{marks * times}ive" + " whale" * 50) for times in (15, 500_000))
    assert many == few
    assert many[1:] == ["whale"] * 50


@pytest.mark.parametrize("letter", ["க", "ه", "w"])
def test_only_the_beginning_of_an_endless_word_counts(letter: str) -> None:
    """Stemmers of some languages take the square of a word's length."""
    assert list_terms(letter * 1_000_000) == list_terms(letter * 64)


def test_a_sign_that_stands_for_a_sentence_makes_no_text_much_longer() -> None:
    [*_, last] = split_words("whale \ufdfa")
    assert last == "وسلم"
    assert len("".join(split_words("\ufdfa" * 1000))) < 4100


def test_no_word_is_lost_after_characters_that_stand_for_several() -> None:
    """A table of contents has such points in each line."""
    contents = "".join(f"Größe{'…' * 28}{page}\n" for page in range(30))
    assert split_words(f"{contents}Zebra")[-1] == "zebra"


def test_a_neighbour_is_found_by_the_turn_next_to_it_and_ranked_after_it() -> None:
    documents = [
        said(1, "What is the name of your dog?", "assistant"),
        said(2, "Rex", previous=1),
        said(3, "Something else"),
    ]
    hits = found("dog name", *documents)
    assert set(hits) == {1, 2}


def test_only_the_beginning_of_a_long_turn_speaks_for_its_neighbours() -> None:
    long = "filler words of no use. " * 20 + "zebra"
    assert found("zebra", said(1, long, "assistant"), said(2, "ok then", previous=1)) == [1]


def test_neighbours_are_found_across_chunks_and_gaps() -> None:
    documents = [said(63, "the zebra"), said(64, "that one", previous=63), said(1000, "no", previous=64)]
    assert set(found("zebra", *documents)) == {63, 64, 1000}


@each_row(
    ("between", "is_found"),
    [("Where is it?", True), ("The weather here is cold, grey and wet today. " * 8, False)],
)
def test_a_reply_is_found_beyond_a_short_turn(between: str, is_found: bool) -> None:
    documents = [
        said(1, "Half of my family is from another island."),
        said(2, between, "assistant", previous=1),
        said(3, "Puerto Rico", previous=2),
    ]
    assert (3 in found("Which island is my family from?", *documents)) == is_found


def test_a_word_that_all_around_repeat_counts_once() -> None:
    thanks = [said(n, "Thanks for the hint.", ROLES[n % 2], previous=n - 1) for n in range(2, 8)]
    query = "Could somebody give me a hint which violin teacher lives near Bergen?"
    assert found(query, said(1, "Thanks for the hint."), *thanks, only_strong=True) == []


@each_row(("times", "first"), [(1, 1), (30, 2)])
def test_common_words_tell_more_of_short_messages(times: int, first: int) -> None:
    said_by_her = said(1, "She wants to learn and write Latin.")
    rare = said(2, "His girlfriend has a green car.")
    others = [said(n, "The weather was fine on the lake. " * times) for n in range(10, 60)]
    hits = found("What does my girlfriend want to learn and write?", said_by_her, rare, *others)
    assert hits[0] == first


def test_a_reply_between_two_messages_with_a_word_ranks_after_them() -> None:
    talk = [
        said(1, "We bought a house with a large garden, two sheds, and an old walnut tree by the road."),
        said(2, "Noted.", "assistant"),
        said(3, "The garden needs a fence, new soil, some paint for the sheds, and somebody who has time."),
    ]
    assert set(found("garden", *talk)[:2]) == {1, 3}


def test_the_date_of_all_messages_tells_nothing() -> None:
    """A memory's first day has one date, and any word of it brought the whole day."""
    sunday = [
        said(n, text)
        for n, text in enumerate(
            ("The roof leaks again.", "Our cat hates the rain.", "The garden needs water.")
        )
    ]
    monday = Document(20, "user", "We painted the kitchen.", MAY + 86_400)
    assert found("Remind me on Sunday to call the plumber", *sunday, only_strong=True) == []
    assert found("What did I do on Monday?", *sunday, monday, only_strong=True) == [20]
    assert set(found("What did I do on Sunday?", *sunday, monday, only_strong=True)) == {0, 1, 2}


@each_row(
    ("query", "is_found"),
    [
        ("What did I tell you on 17 May?", True),
        ("What did I tell you on Sunday?", True),
        ("What did I tell you on 18 May?", False),
        ("What did I tell the plumber on Sunday?", False),
    ],
)
def test_the_only_day_of_a_memory_is_found_by_its_date(query: str, is_found: bool) -> None:
    day = [said(1, "The roof leaks again."), said(2, "Our cat hates the rain.")]
    assert bool(found(query, *day, only_strong=True)) == is_found


@each_row(
    ("query", "hits"),
    [
        ("Remind Alice to call the plumber", []),
        ("Did Alice buy the tickets?", []),
        ("What does Alice hate?", [2]),
        ("What did Alice say?", [3, 2, 1]),
        ("Is Bob better?", [20]),
    ],
)
@pytest.mark.parametrize("others", [0, 3])
def test_the_name_of_most_messages_tells_nothing(query: str, hits: list[int], others: int) -> None:
    """In a chat of several people each message has its speaker's name."""
    texts = ("The roof leaks again.", "Our cat hates the rain.", "The garden needs water.")
    chat = [said(n, text, speaker="Alice Miller") for n, text in enumerate(texts, 1)]
    chat += [said(n, "I sold it.", speaker="Carl") for n in range(10, 10 + others)]
    chat.append(said(20, "My tooth hurts.", speaker="Bob"))
    assert found(query, *chat, only_strong=True) == hits


def test_the_last_word_of_a_text_that_is_longer_than_a_head_is_no_name() -> None:
    text = f"{'We walked on and on through all of the town. ' * 4}At last we came upon a zebra."
    assert found("Where was the zebra of the zoo?", said(1, text), said(2, "I see."), only_strong=True) == [1]


def test_a_word_of_a_very_long_message_says_little() -> None:
    """So many words have one of any question among them by chance."""
    query, long = "Which brand of shampoo did I buy in Bergen?", " ".join(f"tool{n}" for n in range(300))
    assert found(query, said(1, "The brand from Oslo is the best one."), only_strong=True) == [1]
    assert found(query, said(1, f"Of each brand: {long}", "assistant"), only_strong=True) == []
    assert found(query, said(1, f"Of each brand a shampoo: {long}", "assistant"), only_strong=True) == [1]


def test_long_answers_do_not_crowd_out_what_the_user_said() -> None:
    advice = [said(n, "Berlin has flats, trains and museums. " * 3, "assistant") for n in range(2, 12)]
    assert (
        found("Berlin flats trains", said(1, "I look for a flat in Berlin near the train"), *advice)[0] == 1
    )


def test_words_of_the_assistant_alone_are_found_too() -> None:
    users = [said(n, f"I ate lunch number {n}") for n in range(2, 30)]
    assert found(
        "name of the quokka restaurant", said(1, "Try the Quokka restaurant", "assistant"), *users
    ) == [1]


def test_where_both_sides_talk_alike_the_user_has_no_precedence() -> None:
    talk = [said(n, f"We had lunch number {n} on the terrace.", ROLES[n % 2]) for n in range(2, 20)]
    answer = said(20, "The quokka lives on Rottnest Island.", "assistant")
    aside = said(21, "That island was far away, as islands go, and we had a long day of it.")
    assert found("where does the quokka live, on which island", answer, aside, *talk)[0] == 20


def test_the_longer_the_assistant_talks_the_more_the_users_turns_count() -> None:
    own, other = said(1, "My flat is in Berlin."), said(2, "Berlin, Berlin, a flat in Berlin!", "assistant")
    short = [said(n, "We had lunch on the terrace.", ROLES[n % 2]) for n in range(3, 40)]
    long = [
        said(n, "We had lunch on the terrace. " * (12 if n % 2 else 1), ROLES[n % 2]) for n in range(3, 40)
    ]
    assert found("a flat in Berlin", own, other, *short)[0] == 2
    assert found("a flat in Berlin", own, other, *long)[0] == 1


@pytest.mark.parametrize("mark", ["?", "？", "??", "?)"])
def test_a_question_is_ranked_after_an_answer(mark: str) -> None:
    asked = [said(n, f"Where does my sister Ingrid live now{mark}") for n in range(1, 9)]
    hits = found("Where does Ingrid live, my sister?", *asked, said(9, "Ingrid moved to Bergen, my sister."))
    assert hits[0] == 9
    assert len(hits) == 9


def test_a_reply_that_only_repeats_a_question_counts_as_one() -> None:
    asked = [said(n, "You said:\n> Where does my sister Ingrid live?", "assistant") for n in range(1, 9)]
    assert (
        found("Where does Ingrid live, my sister?", *asked, said(9, "Ingrid moved to Bergen, my sister."))[0]
        == 9
    )


def test_a_message_that_asks_and_states_is_not_ranked_lower() -> None:
    tells = said(1, "My sister Ingrid moved to Bergen. Where does yours live?")
    hits = found("Where does my sister Ingrid live?", said(2, "Ingrid, my sister, is here."), tells)
    assert found("Ingrid Bergen", said(2, "Is it Ingrid in Bergen?"), tells)[0] == 1
    assert set(hits) == {1, 2}


def test_a_question_is_ranked_after_its_answer_and_raises_nothing_above_it() -> None:
    talk = (
        said(1, "Nice weather today in these parts.", "assistant"),
        said(2, "What is your parrot called?", previous=1),
        said(3, "Kiki, from a film.", "assistant", previous=2),
    )
    filler = [said(n, f"We had lunch number {n} on the terrace.") for n in range(4, 30)]
    hits = found("the name of the parrot", *talk, *filler)
    assert hits == [3, 2]


def test_small_talk_is_found_only_as_an_answer() -> None:
    told = (said(1, "The vet looked at my parrot."), said(2, "Thanks, great!", "assistant", previous=1))
    asked = (
        said(3, "Can the parrot fly in the big aviary of the zoo, where the owls live?"),
        said(4, "Yes, sure!", "assistant", previous=3),
    )
    hits = found("my parrot and the vet", *told, *asked, only_strong=True)
    assert 2 not in hits
    assert hits.index(4) == hits.index(3) + 1


def test_a_question_of_two_parts_may_be_answered_by_two_messages() -> None:
    filler = [said(n, f"We had lunch number {n} on the terrace.") for n in range(3, 60)]
    query = "How high was the invoice for the surfboard, which plants grow on my balcony, and who mixed fertiliser?"
    parts = said(1, "The invoice for the surfboard was high."), said(2, "Figs grow on my balcony.")
    assert found(query, *filler, only_strong=True) == []
    assert set(found(query, *parts, *filler, only_strong=True)) >= {1, 2}


def chain_of_two(*, second: str) -> list[Document]:
    return [
        said(1, "Guess what, my sister Kofi moved to Porto with the kids."),
        *(said(n, f"We had lunch number {n} on the terrace.") for n in range(2, 100)),
        said(100, second),
    ]


@pytest.mark.parametrize("unread", [(), (1,), (1, 100)])
def test_a_second_look_asks_for_the_names_that_the_first_hits_add(unread: tuple[int, ...]) -> None:
    documents = chain_of_two(second="Then Kofi rang, in tears of joy: the chess cup!")
    blobs = encode([each for each in documents if each.seq not in unread], SECRET).values()
    tail = [each for each in documents if each.seq in unread]
    options = {"tail": tail, "only_strong": True}
    query = "What did my sister win?"
    assert 100 not in ranked(blobs, query, SECRET, **options)  # type: ignore[arg-type]
    assert ranked(blobs, query, SECRET, room=1000, **options)[:2] == [1, 100]  # type: ignore[arg-type]


def test_after_the_best_of_the_first_query_both_take_turns() -> None:
    _, *filler, wins = chain_of_two(second="Then Kofi rang, in tears of joy: the chess cup!")
    names = said(1, "My sister Kofi.")
    plates = [said(n, f"My sister has {n} plates on her shelf, from the market.") for n in range(200, 215)]
    documents, query = (names, *plates, *filler, wins), "What did my sister win?"
    first = found(query, *documents)
    both = found(query, *documents, room=1000)
    assert [seq for seq in both if seq != 100] == first
    assert 10 < both.index(100) < len(first)


def test_a_large_index_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = chain_of_two(second="Then Kofi rang, in tears of joy: the chess cup!")
    monkeypatch.setattr("storage.search.rank._MAX_BYTES_OF_SECOND_SEARCH", 100)
    assert 100 not in found("What did my sister win?", *documents, only_strong=True, room=1000)


def test_a_memory_that_is_found_whole_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    monkeypatch.setattr("storage.search.rank.find_names", lambda *given: looks.append(given))
    documents = said(1, "My sister Kofi has a dog."), said(2, "The dog barks at Kofi.")
    assert set(found("Whose dog is that?", *documents, room=1000)) == {1, 2}
    assert not looks
    assert set(found("Whose dog is that?", *documents, said(3, "Figs grow here."), room=1000)) == {1, 2}
    assert len(looks) == 1


def test_a_second_look_asks_for_no_common_words() -> None:
    documents = chain_of_two(second="Guess where the kids moved it.")
    assert found("What did my sister win?", *documents, only_strong=True, room=1000) == [1]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("My sister Kofi moved to Porto in 2019.", ["kofi", "porto", "2019"]),
        ("Nobody knows. But I do", []),
        ("the 7 dwarfs", []),
        ("Моя сестра Ольга", ["ольг"]),
        ("我的猫叫味噌", []),
    ],
)
def test_names_have_a_capital_inside_a_sentence(text: str, names: list[str]) -> None:
    assert list_names(text) == names


def test_names_are_those_that_one_plain_pattern_finds() -> None:
    """What is passed over quickly is passed over by the rule as well, whatever signs stand around it."""
    plain = re.compile(r"(?<!\w)(?<!^)(?<![.!?…:] )(?:[^\W\d_][\w'’-]{2,}|\d{2,})\b")
    chance = random.Random(5)
    ascii_signs = [*"aabZQ17__--'' .!?:,(\n\t", *"    "]
    for signs in (ascii_signs, [*ascii_signs, *"Éßı٣’…İЯя漢\u0301😀²ǅ"]):
        for _ in range(5_000):
            text = "".join(chance.choices(signs, k=chance.randrange(20)))
            names = [word for word in plain.findall(text) if word[0].isupper() or word[0].isdigit()]
            assert list_names(text) == list_terms(" ".join(names)), text


def test_room_is_filled_with_as_many_messages_as_are_short() -> None:
    short = [said(n, f"parrot {n}") for n in range(1, 60)]
    long = [said(n, f"parrot {n} " + "and so on to the lake and the hills " * 20) for n in range(1, 60)]
    assert len(found("parrot", *short, limit=5)) == 5
    assert 20 < len(found("parrot", *short, limit=5, room=500)) < 59
    assert len(found("parrot", *long, limit=5, room=200)) == 5


@pytest.mark.parametrize("query", ["hi", "Thanks, great!", "ok, go ahead", "good morning"])
def test_small_talk_recalls_nothing_unless_it_is_searched_for(query: str) -> None:
    documents = [said(1, "hi, thanks, great, ok, go ahead, good morning")]
    assert found(query, *documents, only_strong=True) == []
    assert found(query, *documents) == [1]


@pytest.mark.parametrize(
    "text", ["Let's start.", "Test.", "This is just a test", "Los geht's!", "开始吧", "テスト"]
)
def test_a_text_that_only_begins_or_tests_recalls_nothing(text: str) -> None:
    start, test = said(1, "I start at the bakery in May"), said(2, "my driving test is on Friday")
    unspaced = said(3, "我们开始吧测试テスト")
    assert found(text, start, test, unspaced, only_strong=True) == []
    assert found("When do I start?", start, test, only_strong=True) == [1]
    assert found("Remind me of my test", start, test, only_strong=True) == [2]
    assert found("test", start, test) == [2]


def test_a_question_of_which_memory_knows_little_recalls_nothing() -> None:
    documents = [said(n, f"lunch {n} was good on the terrace") for n in range(1, 20)]
    query = "explain congestion control windows sliding protocols throughput lunch"
    assert found(query, *documents, only_strong=True) == []
    assert found("where did I have lunch", *documents, only_strong=True) != []


def test_a_single_matching_word_must_be_a_larger_part_of_the_question_than_two() -> None:
    """Anything said has one word of a question about something else by chance."""
    apart = [
        said(1, "The marmot."),
        said(2, "Another marmot."),
        said(3, "The zither."),
        said(4, "My zither."),
    ]
    together = [said(5, "The trombone and the igloo."), said(6, "My trombone, my igloo.")]
    unheard = ["quokka", "obelisk", "gondola", "lychee", "toboggan", "walrus"]

    def is_found(*words: str) -> bool:
        return bool(found(" ".join(words), *apart, *together, only_strong=True))

    assert not is_found("marmot", *unheard[:3])
    # It asks for what is not there three times as much as for what is, too.
    assert is_found("trombone", "igloo", *unheard)
    assert is_found("marmot", *unheard[:2])
    # Who asks for several things finds each in another place.
    assert is_found("marmot", "zither", *unheard[:2])


def test_the_first_fact_of_a_new_user_is_recalled() -> None:
    documents = [said(1, "My dog is called Rex."), said(2, "Nice!", "assistant", previous=1)]
    assert found("What is the name of my dog?", *documents, only_strong=True)[0] == 1


def test_the_topic_of_a_small_memory_counts_as_known() -> None:
    texts = [
        "My cat is called Miso.",
        "A cat! How nice.",
        "What does a cat eat?",
        "Meat. Your cat is no vegetarian.",
    ]
    documents = [said(n, text, "user" if n % 2 else "assistant") for n, text in enumerate(texts, 1)]
    assert 1 in found("what is the cat's name", *documents, only_strong=True)


def test_the_tail_ranks_like_the_index() -> None:
    rng = random.Random(7)
    documents = [
        said(
            n,
            " ".join(rng.choices(["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen"], k=6)),
            rng.choice(["user", "assistant"]),
        )
        for n in range(1, 150)
    ]
    whole = ranked(encode(documents, SECRET).values(), "dog fox", SECRET)
    split = ranked(encode(documents[:100], SECRET).values(), "dog fox", SECRET, tail=documents[100:])
    assert split == whole


def test_the_tail_replaces_what_the_index_says_of_the_same_message() -> None:
    old, new = said(3, "a zebra"), said(3, "a horse")
    assert found("zebra", old, tail=[new]) == []
    assert found("horse", old, tail=[new]) == [3]


def test_merging_batches_gives_the_blob_of_all_at_once() -> None:
    documents = [said(n, f"word{n} common dog", previous=n - 1 or None) for n in range(1, 60)]
    blob = None
    for start in range(0, len(documents), 7):
        blob = merge(blob, encode(documents[start : start + 7], SECRET)[0])
    assert blob == encode(documents, SECRET)[0]
    assert merge(blob, encode(documents[3:9], SECRET)[0]) == blob


def test_another_chunk_is_not_merged() -> None:
    with pytest.raises(CorruptIndex):
        merge(encode([said(1, "a1")], SECRET)[0], encode([said(70, "b1")], SECRET)[1])


def test_forgetting_leaves_what_never_having_said_it_leaves() -> None:
    """Byte for byte: no entry, no length and no hash of a word that was only there or of a part of it, in the
    neighbours neither.
    """
    documents = [said(n, f"unique{n} shared words", previous=n - 1 or None) for n in range(1, 10)]
    documents[3] = said(4, "Zahnarzttermin", previous=3)
    kept = [document for document in documents if document.seq not in (4, 5)]
    assert forget(encode(documents, SECRET)[0], {4, 5, 900}) == encode(kept, SECRET)[0]


def test_forgetting_the_last_message_leaves_nothing() -> None:
    blob = encode([said(1, "secret"), said(2, "also")], SECRET)[0]
    assert indexed_seqs(blob) == [1, 2]
    assert indexed_seqs(forget(blob, [1])) == [2]
    assert forget(blob, [1, 2]) == b""
    assert forget(b"", [1]) == b""


def test_two_agents_share_no_hash() -> None:
    text = " ".join(f"word{n}" for n in range(200))
    one, other = (
        set(struct.unpack_from("<200I", encode([said(1, text)], secret)[0], 12 + CHUNK * 6))
        for secret in (b"a" * 32, b"b" * 32)
    )
    assert len(one & other) <= 1  # chance: 200 * 200 / 2**32
    assert ranked(encode([said(1, text)], b"a" * 32).values(), "word7", b"b" * 32) == []


def test_no_word_stands_in_a_blob() -> None:
    assert b"zebra" not in encode([said(1, "zebra", speaker="zebra")], SECRET)[0]


def test_order_of_the_blobs_does_not_matter() -> None:
    documents = [said(n, f"dog number {n % 7}") for n in range(1, 300)]
    blobs = list(encode(documents, SECRET).values())
    assert ranked(blobs, "dog 3", SECRET) == ranked(blobs[::-1], "dog 3", SECRET)


def test_a_very_long_query_is_bounded_and_keeps_its_rare_words() -> None:
    common = " ".join(f"w{n}" for n in range(200))
    documents = [said(n, common) for n in range(1, 20)] + [said(20, f"{common} zebra")]
    assert found(f"{common} zebra", *documents)[0] == 20


texts = st.text(max_size=60)


@given(st.lists(st.tuples(texts, st.sampled_from(["user", "assistant", "tool"])), max_size=8), texts)
def test_any_text_can_be_indexed_and_searched(messages: list[tuple[str, str]], query: str) -> None:
    documents = [said(seq, text, role, previous=seq - 1) for seq, (text, role) in enumerate(messages, 60)]
    hits = found(query, *documents)
    assert set(hits) <= {document.seq for document in documents}
    assert len(hits) == len(set(hits))
    for document in documents:
        if list_terms(document.text):
            assert document.seq in found(document.text, *documents)


GOOD = encode([said(n, f"dog {n} fox", previous=n - 1 or None) for n in range(1, 9)], SECRET)[0]


@example(278, b")", "overwrite")  # what is no document has a neighbour
@given(
    st.integers(0, len(GOOD) - 1),
    st.binary(min_size=1, max_size=6),
    st.sampled_from(["overwrite", "cut", "grow"]),
)
def test_a_damaged_blob_is_a_named_error_or_an_answer(at: int, noise: bytes, how: str) -> None:
    damaged = {
        "overwrite": (GOOD[:at] + noise + GOOD[at + len(noise) :])[: len(GOOD)],
        "cut": GOOD[: max(at, 1)],
        "grow": GOOD + noise,
    }[how]
    for use in (
        lambda: ranked([damaged], "dog fox 3", SECRET),
        lambda: forget(damaged, [3]),
        lambda: merge(damaged, encode([said(30, "new")], SECRET)[0]),
    ):
        try:
            result = use()
        except CorruptIndex:
            continue
        assert isinstance(result, (list, bytes))


@given(st.binary(max_size=500))
def test_noise_is_a_named_error(noise: bytes) -> None:
    if noise:
        with pytest.raises(CorruptIndex):
            ranked([noise], "dog", SECRET)


def test_times_no_calendar_has_are_indexed_without_a_date() -> None:
    documents = [
        Document(seq, "user", "dog", at) for seq, at in enumerate((-1e18, 1e18, float("inf"), float("nan")))
    ]
    assert len(found("dog", *documents)) == 4


def test_numpy_is_not_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, storage.search.rank; from storage.search.tokens import list_terms; list_terms('dog'); "
    )
    code += "sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        SAMPLE,
        "Der Zahnarzttermin meiner Schwester.",  # parts of compounds
        "An appointment at the otorhinolaryngologist, thanks.",  # none of English words
        f"{SAMPLE} {'Zahnarzttermin ' * 20}",  # in the head and after it
        " ".join(f"w{n}x" for n in range(5_000)),  # more than are counted
        "茶" * 300,
        "",
    ],
)
def test_a_text_has_the_terms_that_are_counted_in_it(text: str) -> None:
    assert list_distinct_terms(text) == {*count_terms(Document(1, "user", text, math.nan)).terms}


def test_a_message_with_more_words_of_the_query_comes_first() -> None:
    assert found("zebra horse", said(1, "zebra"), said(2, "zebra horse"), said(3, "cow")) == [2, 1]


def test_nothing_after_the_indexed_part_of_a_message_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def split(text: str) -> list[str]:
        read.append(len(text))
        return split_words(text)

    monkeypatch.setattr("storage.search.document.split_words", split)
    count_terms(said(1, "thanks" * 100_000))  # one word
    assert read == [200, 200_000]
