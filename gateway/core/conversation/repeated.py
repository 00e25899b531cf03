"""Repeats: the part of a chat completion's list that a stored conversation has, up to its last assistant message.

That part is not matched. It may show that the client has asked the same before, or has heard a part of a reply alone.
All of a REST send is new.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import orjson
from msgspec import Struct

from gateway.core.conversation.canonical import (
    RESULTS,
    Canon,
    WireMessage,
    first_spoken,
    has_calls,
    is_user,
    join_texts,
    rest_after,
    text_of,
)
from gateway.core.conversation.stored_path import refused_ids
from gateway.core.words import heard_letters, is_beginning, letters_of, lower_words, without_remark
from storage.records import Atom, Exchange

# The messages before the new ones in which what was heard of a reply is looked for, at most; no measurement.
_MAX_TEXTS = 8


def repeated_indices(messages: Sequence[WireMessage]) -> list[int]:
    """Returns the indices of what a chat completion's list repeats: all up to its last assistant message.

    The system messages at its beginning stay: they are the request's own prompt.
    """
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=-1)
    return list(range(first_spoken(messages), last + 1))


def last_reply_texts(messages: Sequence[WireMessage]) -> list[str]:
    """Returns the texts of the reply before the new messages in a chat completion's list, as its client has them.

    They are those of the assistant's messages after the question before it, the newest few.
    """
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=-1)
    begun = max((i for i in range(last) if messages[i].get("role") == "user"), default=-1)
    replies = (m for m in messages[begun + 1 : last + 1] if m.get("role") == "assistant")
    return [text for m in replies if (text := text_of(m))][-_MAX_TEXTS:]


def count_asked_again(
    path: Sequence[Exchange],
    canon: Canon,
    messages: Sequence[WireMessage],
    heard: Sequence[str],
    initial: Sequence[WireMessage],
) -> int:
    """Returns how many messages at the end of a list are those of the newest turn, sent again; 0: something is new.

    Its client has the reply before them, and none to them.

    messages, heard: as in `find_barge_in`.
    initial: messages with which a conversation begins.
    """
    if all(count < len(messages) for _, count in _repeated_turns(path, canon, messages, heard, initial)):
        return 0
    return min(len(_newest_turn(path)[0].inputs), len(messages))


class BargeIn(Struct, frozen=True):
    """The replies that a user has interrupted, as a list reports them."""

    # The steps whose replies were cut, oldest first, each with what was heard of it; "": nothing.
    cut: Sequence[tuple[Exchange, str]]
    # How many messages at the beginning of the list are stored already.
    stored: int


def find_barge_in(
    path: Sequence[Exchange], canon: Canon, messages: Sequence[WireMessage], heard: Sequence[str]
) -> BargeIn:
    """Returns which replies of a path a barge-in has cut, and which messages of the list are not new.

    path: oldest first, with contents.
    messages: the messages of the list after its last assistant message.
    heard: the texts of the reply before them (`last_reply_texts`). They cut nothing unless they are a beginning of the
        newest reply that was not left out.
    """
    withheld = refused_ids(path)
    path = [exchange for exchange in path if exchange.id not in withheld]
    results = _count_late_results(path, messages)
    unheard, asked = _unheard(path, canon, messages[results:], heard)
    steps = _steps_after(path[: len(path) - len(unheard)], tuple(map(canon.atoms, messages[:results])))
    if results and not steps:
        results, (unheard, asked) = 0, _unheard(path, canon, messages, heard)
    unheard = [*steps, *unheard]
    path = path[: len(path) - len(unheard)]
    while (turn := _newest_turn(path)) and not any(map(_words_of, turn)):
        path = path[: -len(turn)]
    silent = [(exchange, "") for exchange in unheard if exchange.shown_reply is not None]
    return BargeIn([*_cut_replies(turn, heard), *silent], results + asked)


def _cut_replies(turn: Sequence[Exchange], heard_texts: Sequence[str]) -> list[tuple[Exchange, str]]:
    """Returns the steps of a turn that were heard in part or not at all, each with what was heard of it."""
    texts = list(map(_words_of, turn))
    whole, heard = join_texts(texts), _find_heard(texts, heard_texts)
    unplaced = heard_letters(heard)
    if not unplaced or unplaced == letters_of(whole):
        return []
    found, before = [], ""
    for exchange, text in zip(turn, texts, strict=True):
        own = letters_of(text)
        if unplaced.startswith(own):
            unplaced, before = unplaced[len(own) :], join_texts((before, text))
            continue
        # The client's own form counts; where it is written otherwise, the stored one up to the same letter.
        rest = rest_after(heard, before) if unplaced else ""
        found.append((exchange, _first_letters(text, len(unplaced)) if rest is None else rest.strip()))
        unplaced = ""
    return found


def _find_heard(texts: Sequence[str], heard_texts: Sequence[str]) -> str:
    """Returns what was heard of a reply; "": nothing is known of that.

    texts: of its steps.
    heard_texts: as in `find_barge_in`.
    """
    whole = join_texts(texts)
    for n, heard in enumerate(_possible_parts(heard_texts)):
        if _is_heard(heard, whole):
            # The application's text after the end of a step may be the next step in other words: that is no cut.
            ends = (
                {letters_of(join_texts(texts[:end])) for end in range(1, len(texts) + 1)}
                if n >= len(heard_texts)
                else ()
            )
            return "" if heard_letters(heard) in ends else heard
    return ""


def _unheard(
    path: Sequence[Exchange], canon: Canon, messages: Sequence[WireMessage], heard: Sequence[str]
) -> tuple[Sequence[Exchange], int]:
    """Returns the newest turns, if a list goes on after their questions without any reply to them, and how many
    messages these are. Before the newest one there may be others with cancelled requests.

    messages: what is new of the list, which begins with those questions.
    heard: the reply before them. A list that only asks again what was answered is another turn.
    """
    found = [
        (turns, count)
        for turns, count in _repeated_turns(path, canon, messages, heard)
        if count < len(messages) or not any(exchange.reply for exchange in turns)
    ]
    return found[-1] if found else ((), 0)


def _count_late_results(path: Sequence[Exchange], messages: Sequence[WireMessage]) -> int:
    """Returns how many results of tools come before anything else in a list, if no call waits for any."""
    if path and has_calls(path[-1].reply):
        return 0
    return next((i for i, m in enumerate(messages) if m.get("role") not in RESULTS), 0)


def _steps_after(path: Sequence[Exchange], results: tuple[tuple[Atom, ...], ...]) -> Sequence[Exchange]:
    """Returns the steps of the newest turn from the one on that began with these results; none: no step did."""
    turn = _newest_turn(path)
    steps = range(len(turn) - 1, 0, -1) if results else ()
    at = next((n for n in steps if turn[n].inputs[-len(results) :] == results), None)
    return () if at is None else turn[at:]


def _repeated_turns(
    path: Sequence[Exchange],
    canon: Canon,
    messages: Sequence[WireMessage],
    heard: Sequence[str],
    initial: Sequence[WireMessage] = (),
) -> Iterator[tuple[Sequence[Exchange], int]]:
    """Yields the newest turns with questions at a list's beginning, and their number of messages, the fewest first."""
    found: list[Exchange] = []
    sent, begun = tuple(map(canon.atoms, messages)), tuple(map(canon.atoms, initial))
    asked: tuple[tuple[Atom, ...], ...] = ()
    while turn := _newest_turn(path):
        path = path[: -len(turn)]
        if found and any(map(_words_of, turn)):
            return
        question = turn[0].inputs
        if begun and not path and question[: len(begun)] == begun:
            question = question[len(begun) :]
        found, asked = [*turn, *found], question + asked
        if len(sent) < len(asked):
            return
        above = join_texts(map(_words_of, _newest_turn(path)))
        is_above = (
            any(_is_heard(each, above) for each in _possible_parts(heard)) if heard else not letters_of(above)
        )
        if asked == sent[: len(asked)] and is_above:
            yield found, len(asked)


def _possible_parts(heard_texts: Sequence[str]) -> Iterator[str]:
    """Yields what may have been heard of a reply, since the application may have spoken before it or after it."""
    yield from (join_texts(heard_texts[n:]) for n in range(len(heard_texts)))
    yield from (join_texts(heard_texts[:n]) for n in range(len(heard_texts) - 1, 0, -1))


def _is_heard(heard: str, text: str) -> bool:
    """Returns whether what was heard is all of a reply, or its beginning."""
    return heard_letters(heard) == letters_of(text) or _is_begun(heard, text)


def _is_begun(heard: str, text: str) -> bool:
    """Returns whether a reply begins with what was heard: so many letters that it is none by chance, or whole words."""
    heard = without_remark(heard)
    spoken = lower_words(heard)
    return is_beginning(letters_of(heard), letters_of(text)) or (
        bool(spoken) and lower_words(text)[: len(spoken)] == spoken
    )


def _newest_turn(path: Sequence[Exchange]) -> Sequence[Exchange]:
    """Returns the exchanges from the newest message of a user on."""
    begun = next((n for n in range(len(path), 0, -1) if any(map(is_user, path[n - 1].inputs))), 0)
    return path[begun - 1 :] if begun else ()


def _words_of(exchange: Exchange) -> str:
    """Returns the reply of an exchange as its reader has it; "" where it has none."""
    return "" if exchange.shown_reply is None else text_of(orjson.loads(exchange.shown_reply))


def _first_letters(text: str, count: int) -> str:
    """Returns the beginning of a text that has so many letters."""
    return text[: bisect_left(range(len(text)), count, key=lambda end: len(letters_of(text[:end])))]
