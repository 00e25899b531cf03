"""The canonical form: what a client may do to a message without making it another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.wire_message import (
    WireMessage,
    flag_results,
    make_shown_reply,
    read_named_calls,
    read_text,
    without_space,
)
from gateway.core.words import (
    cut_remark,
    is_beginning,
    is_grown_transcript,
    join_letters,
    list_lower_words,
)
from tests.core.conversations import assistant, call, picture, result, system, user
from tests.doubles.side_requests import OPENCLAW_CONTEXT

HASHER = MessageHasher(b"k" * 16)

texts = st.text(st.characters(codec="utf-8"), max_size=30)
scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts
arguments = st.dictionaries(
    texts, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)), max_size=4
)
spaces = st.sampled_from(["", " ", "\n", "\t ", "\u00a0"])


def flat(messages: list[WireMessage]) -> list[bytes]:
    return [a for m in messages for a in HASHER.make_atoms(m)]


# -- what makes no difference


@given(st.lists(st.tuples(texts, spaces), max_size=5), st.sampled_from(["user", "assistant", "tool"]))
def test_white_space_makes_no_difference(pieces: list[tuple[str, str]], role: str) -> None:
    plain = {"role": role, "content": "".join(text for text, _ in pieces)}
    spaced = {"role": role, "content": "".join(text + space for text, space in pieces)}
    assert HASHER.make_atoms(plain) == HASHER.make_atoms(spaced)


@given(st.text() | st.text(st.characters(categories=("Zs", "Zl", "Zp", "Cc", "Cs"))))
@example("".join(map(chr, range(0x10000))))
def test_white_space_is_what_python_calls_so(text: str) -> None:
    assert without_space(text) == "".join(text.split())


@given(st.lists(texts, max_size=4), st.sampled_from(["user", "assistant", "tool"]))
def test_text_in_parts_is_the_same_text(pieces: list[str], role: str) -> None:
    whole = {"role": role, "content": "".join(pieces)}
    parts: list[Any] = [{"type": "text", "text": p, "cache_control": {"type": "ephemeral"}} for p in pieces]
    assert HASHER.make_atoms(whole) == HASHER.make_atoms({"role": role, "content": parts})


@given(texts, arguments)
def test_text_and_call_in_one_message_or_two(text: str, args: dict[str, Any]) -> None:
    made = call("1", arguments=orjson.dumps(args).decode())
    assert flat([assistant(text, made)]) == flat([assistant(text), assistant(None, made)])


@given(arguments, texts)
def test_arguments_dumped_again_and_ids_renamed(args: dict[str, Any], id: str) -> None:
    ours = call("1", arguments=orjson.dumps(args).decode())
    turned = dict(reversed(args.items()))
    theirs = call(id, arguments=orjson.dumps(turned, option=orjson.OPT_INDENT_2).decode())
    assert flat([assistant(None, ours)]) == flat([assistant(None, theirs)])


@given(st.dictionaries(st.sampled_from(["reasoning", "refusal", "audio", "x"]), scalars, max_size=3))
def test_fields_that_are_not_words_make_no_difference(more: dict[str, Any]) -> None:
    assert HASHER.make_atoms({**assistant("Hello!"), **more}) == HASHER.make_atoms(assistant("Hello!"))


def test_the_older_function_call_is_the_same_call() -> None:
    older = {"role": "assistant", "content": None, "function_call": call("1")["function"]}
    assert HASHER.make_atoms(older) == HASHER.make_atoms(assistant(None, call("1")))
    answer = {"role": "function", "name": "get_weather", "content": "sunny"}
    assert HASHER.make_atoms(answer) == HASHER.make_atoms(result("1", "sunny"))


@given(st.text() | st.text(st.characters(max_codepoint=127)))
def test_words_are_runs_of_letters_and_digits_in_ascii_as_elsewhere(text: str) -> None:
    assert list_lower_words(text) == re.findall(r"\w+", text.lower())


def test_system_messages_have_no_atoms() -> None:
    assert (
        HASHER.make_atoms(system("The time is 12:00"))
        == HASHER.make_atoms({"role": "developer", "content": "x"})
        == ()
    )


def test_text_that_openclaw_sends_in_one_list_alone_has_no_atoms() -> None:
    assert HASHER.make_atoms(user(OPENCLAW_CONTEXT)) == ()
    assert HASHER.make_atoms(user(f"{OPENCLAW_CONTEXT}\nWhat is this?")) != ()
    assert HASHER.make_atoms(result("1", OPENCLAW_CONTEXT)) != ()


def test_a_message_that_says_nothing_has_no_atoms() -> None:
    assert HASHER.make_atoms(assistant(None)) == HASHER.make_atoms(assistant(" \n")) == ()


# -- what does


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (user("a"), user("b")),
        (user("a"), assistant("a")),  # who said it
        (user("a"), result("1", "a")),
        (user("a", name="Ann"), user("a", name="Bob")),  # who of several users
        (user("a"), picture("a", "data:1")),  # whether there was a picture
        (assistant(None, call("1", "f")), assistant(None, call("1", "g"))),
        (assistant(None, call("1", "f", '{"a":1}')), assistant(None, call("1", "f", '{"a":2}'))),
        (assistant("f"), assistant(None, call("1", "f"))),
    ],
)
def test_words_speakers_and_calls_make_a_difference(one: WireMessage, other: WireMessage) -> None:
    assert HASHER.make_atoms(one) != HASHER.make_atoms(other)


def test_pictures_have_the_same_atoms_and_other_digests() -> None:
    one, other = picture("what is this?", "data:1"), picture("what is this?", "data:2")
    assert HASHER.make_atoms(one) == HASHER.make_atoms(other)
    assert HASHER.digest_media(one) != HASHER.digest_media(other)
    assert HASHER.digest_media(user("what is this?")) == b""


def test_another_secret_makes_other_hashes() -> None:
    assert MessageHasher(b"x" * 16).make_atoms(user("a")) != HASHER.make_atoms(user("a"))


def test_parts_of_a_text_cannot_be_shifted_into_a_name() -> None:
    assert HASHER.make_atoms(user("bc", name="a")) != HASHER.make_atoms(user("c", name="ab"))


# -- whatever clients send


@given(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "function", "other"])},
        optional={
            "content": scalars
            | st.lists(scalars | st.dictionaries(st.sampled_from(["type", "text"]), scalars)),
            "name": scalars,
            "tool_calls": scalars
            | st.lists(
                scalars
                | st.fixed_dictionaries(
                    {},
                    optional={
                        "id": scalars,
                        "function": scalars
                        | st.fixed_dictionaries({}, optional={"name": scalars, "arguments": scalars}),
                    },
                ),
                max_size=3,
            ),
        },
    )
)
def test_any_message_has_a_canonical_form(message: WireMessage) -> None:
    atoms = HASHER.make_atoms(message)
    assert atoms == HASHER.make_atoms(orjson.loads(orjson.dumps(message)))
    assert all(len(a) == 12 and a[:1] in b"uatc" for a in atoms)
    read_text(message), read_named_calls(message), HASHER.digest_media(message)


def test_broken_arguments_and_lone_surrogates_are_hashed_as_they_are() -> None:
    broken = assistant(None, call("1", arguments='{"city": "Par'))
    assert HASHER.make_atoms(broken) == HASHER.make_atoms(
        assistant(None, call("2", arguments='{"city":"Par'))
    )
    assert HASHER.make_atoms(user("\ud83d")) != HASHER.make_atoms(user("\ud83e"))


# -- a list


def test_a_listing_leaves_system_messages_aside_and_knows_where_the_rest_was() -> None:
    listing = HashedList(HASHER, [system("s"), user("a"), system("t"), assistant("b"), user("c")])
    assert [*listing.positions] == [1, 3, 4]
    assert listing.answered_count == 2
    assert len(listing) == 3
    assert listing.new_atoms == (HASHER.make_atoms(user("c")),)
    assert listing.list_atoms(2) == flat([user("a"), assistant("b")])


@pytest.mark.parametrize("messages", [[], [user("a")], [system("s")]])
def test_a_list_without_a_reply_has_said_nothing(messages: list[WireMessage]) -> None:
    assert HashedList(HASHER, messages).answered_count == 0


@pytest.mark.parametrize("at", [0, 2, 4, 6])
def test_a_listing_goes_on_from_the_front_of_its_list(at: int) -> None:
    calls = assistant("b", call("1"), call("2"))
    messages = [
        system("s"),
        user("a"),
        calls,
        system("t"),
        assistant(None),
        user("c"),
        assistant("d"),
        user("e"),
    ]
    whole = HashedList(HASHER, messages)
    hashed: list[WireMessage] = []

    class Counting(MessageHasher):
        def make_atoms(self, message: Mapping[str, Any]) -> tuple[bytes, ...]:
            hashed.append(dict(message))
            return super().make_atoms(message)

    front = HashedList(HASHER, messages[:at]).as_prefix()
    found = HashedList(Counting(HASHER.secret), messages, front)
    assert hashed == [m for m in messages[at:] if m["role"] != "system"]
    assert (found.positions, found.messages, found.atoms) == (whole.positions, whole.messages, whole.atoms)
    assert (found.answered_count, found.offsets, found.new_atoms) == (
        whole.answered_count,
        whole.offsets,
        whole.new_atoms,
    )
    assert [found.hash_path(n) for n in (5, 2, 3)] == [whole.hash_path(n) for n in (5, 2, 3)]


@given(st.lists(st.binary(min_size=12, max_size=12), max_size=6), st.integers(0, 6))
def test_a_path_is_one_hash_however_it_is_cut(atoms: list[bytes], at: int) -> None:
    assert HASHER.hash_path(atoms) == HASHER.hash_path(atoms[at:], HASHER.hash_path(atoms[:at]))


def test_a_reply_is_looked_up_by_its_text_else_by_its_calls() -> None:
    with_text = HASHER.make_atoms(assistant("Let me look.", call("1")))
    assert HASHER.make_reply_key(with_text) == HASHER.make_reply_key(
        HASHER.make_atoms(assistant("Let me look."))
    )
    calls = HASHER.make_atoms(assistant(None, call("1")))
    assert (
        HASHER.make_reply_key(calls)
        == HASHER.make_reply_key(HASHER.make_atoms(assistant("", call("2"))))
        is not None
    )
    assert HASHER.make_reply_key(()) is None


# -- transcripts


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("I would like", "I would"),
        ("I would like", "i would li"),  # the last word was completed
        ("I would like a table", "I would."),
        ("I would", "I would"),
    ],
)
def test_a_transcript_that_went_on(new: str, old: str) -> None:
    assert is_grown_transcript(new, old)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("Hire me", "Hi"),  # one word alone is not completed
        ("My key number 2 is", "My key number 1 is"),
        ("I would", "I would like"),
        ("Translate banana", "Translate apple"),
        ("anything", ""),
        ("anything", "..."),
    ],
)
def test_another_text_is_no_transcript_that_went_on(new: str, old: str) -> None:
    assert not is_grown_transcript(new, old)


def is_cut_of(spoken: str, ours: str) -> bool:
    return is_beginning(join_letters(cut_remark(spoken)), join_letters(ours))


def test_a_text_too_long_to_be_spoken_is_no_transcript() -> None:
    """Its words would be counted with each request of the idle time, for seconds where it has megabytes."""
    spoken = "so " * 33_000
    assert is_grown_transcript(spoken + "it goes", spoken)
    assert not is_grown_transcript(spoken * 2, spoken)
    assert not is_grown_transcript(spoken * 2 + "it goes", spoken * 2)


@pytest.mark.parametrize(
    "spoken",
    [
        "I booked a hotel",
        "I booked a hotel...",
        "I booked a ho-",
        "I  booked\na hotel…",
        "i booked a hotel [interrupted]",
        "I booked a (laughs)",
        "I booked a *sighs* …",
        "I booked a hotel.",
    ],
)
def test_the_spoken_part_of_a_reply(spoken: str) -> None:
    assert is_cut_of(spoken, "I booked a hotel. It is the Ritz.")


@pytest.mark.parametrize(
    ("spoken", "ours"),
    [
        ("Sure! Here is a joke", "Sure! Here is a poem"),
        ("Ok then", "Ok"),  # longer
        ("I", "I booked a hotel"),  # too little to tell
        ("...", "I booked a hotel"),
        ("", "I booked a hotel"),
    ],
)
def test_another_text_was_not_spoken_of_a_reply(spoken: str, ours: str) -> None:
    assert not is_cut_of(spoken, ours)


def test_arguments_too_deep_to_be_written_are_compared_as_text() -> None:
    deep = "[" * 1000 + "]" * 1000
    first, second, other = (
        MessageHasher(b"s").make_atoms(assistant(None, call("1", arguments=text)))
        for text in (deep, f" {deep}", "[]")
    )
    assert first == second != other


def test_brackets_that_never_close_take_no_time() -> None:
    """One expression for a remark at the end takes the square of their number: half an hour for these."""
    assert not is_cut_of("I booked a " + "[" * 300_000 + " hotel", "I booked a room.")
    assert is_cut_of("I booked a hotel " + "[" * 300_000 + "interrupted]", "I booked a hotel.")


@given(texts)
def test_a_whole_reply_was_spoken(text: str) -> None:
    assert is_cut_of("abcd" + text, "abcd" + text)


def test_the_client_is_shown_the_streamed_text_and_its_own_calls() -> None:
    full = [assistant("One. ", call("m", "memory_insert"), call("w")), result("m", "ok"), assistant("Two.")]
    assert make_shown_reply(full, {"m"}) == assistant("One. Two.", call("w"))
    assert make_shown_reply([assistant("One."), assistant(None), assistant("Two.")]) == assistant("One. Two.")
    assert make_shown_reply([assistant(None)], ()) == assistant("")


def test_media_after_a_result_belong_to_it() -> None:
    image = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a"}}],
    }
    message = {"role": "user", "content": [*image["content"], {"type": "text", "text": "Look."}]}
    result = {"role": "tool", "tool_call_id": "a", "content": "Here."}
    assert flag_results([image, result, image, image, message, image]) == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
