"""The messages of a chat completion that repeat a stored conversation: all messages up to the last assistant message.

The repeated messages are not matched. They may show that the client asks the same again, or that the user has heard
only a part of a reply (a barge-in). A send of the agents API repeats nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson
from msgspec import Struct

from gateway.core.conversation.canonical import MessageHasher, has_calls, is_user
from gateway.core.conversation.stored_path import find_refused_ids
from gateway.core.conversation.wire_message import (
    WireMessage,
    count_leading_system,
    find_rest_after,
    has_result_role,
    join_texts,
    read_text,
)
from gateway.core.words import cut_remark, is_beginning, join_heard_letters, join_letters, list_lower_words
from storage.records import Atom, Exchange

# The most assistant messages in which the heard part of a reply is looked for. Not measured: a reply in more messages
# is recognised by the last of them.
_MAX_TEXTS = 8


def find_new_messages(messages: Sequence[WireMessage]) -> Sequence[WireMessage]:
    """Returns the new messages of a chat completion's list: the messages after its last assistant message.

    The system messages at the beginning of the list are the request's own prompt. A system message after the stored
    messages is new ("ask whether they are still there").
    """
    return messages[max(count_leading_system(messages), _index_last(messages, "assistant") + 1) :]


def find_last_reply_texts(messages: Sequence[WireMessage]) -> list[str]:
    """Returns the texts of the last reply in a chat completion's messages, as the client has them.

    The last reply is all assistant messages after the last question that has an answer.
    """
    repeated = messages[: _index_last(messages, "assistant") + 1]
    answers = repeated[_index_last(repeated, "user") + 1 :]
    replies = (message for message in answers if message.get("role") == "assistant")
    return [text for reply in replies if (text := read_text(reply))][-_MAX_TEXTS:]


def count_repeated_messages(
    path: Sequence[Exchange],
    hasher: MessageHasher,
    messages: Sequence[WireMessage],
    heard_texts: Sequence[str],
    initial: Sequence[WireMessage],
) -> int:
    """Returns the number of messages at the end of a list that repeat the question of the newest turn; 0: none do.

    It is 0 as well if the list asks more than this question. A client that repeats the question has the reply before
    it, and no reply to it.

    messages: the messages of the list after its last assistant message.
    heard_texts: the texts of the reply before these messages (`find_last_reply_texts`).
    initial: the messages with which each conversation of the agent begins.
    """
    # A list without a reply may be that of a client that sends its new messages alone.
    repeated_turns = _find_repeated_turns(path, hasher, messages, heard_texts or None, initial)
    counts = (each.message_count for each in repeated_turns)
    return min(len(_find_newest_turn(path)[0].inputs), len(messages)) if len(messages) in counts else 0


class CutStep(NamedTuple):
    """A step whose reply was cut."""

    # The exchange of the step.
    exchange: Exchange
    # The heard part of the reply; "": the user has heard none of it.
    heard: str


class BargeIn(Struct, frozen=True):
    """The replies that a user has interrupted, as a list reports them."""

    # Oldest first.
    cut_steps: Sequence[CutStep]
    # The number of messages at the beginning of the list that are stored already.
    stored_count: int


def detect_barge_in(
    path: Sequence[Exchange],
    hasher: MessageHasher,
    messages: Sequence[WireMessage],
    heard_texts: Sequence[str],
) -> BargeIn:
    """Returns the replies of a path that a barge-in has cut, and the number of the list's messages that are not new.

    path: the exchanges of the conversation with their contents, oldest first.
    messages: the messages of the list after its last assistant message.
    heard_texts: the texts of the reply before these messages (`find_last_reply_texts`). They cut nothing unless they
        are the beginning of the newest reply that was not left out.
    """
    refused_ids = find_refused_ids(path)
    path = [exchange for exchange in path if exchange.id not in refused_ids]
    unheard = _detect_unheard(path, hasher, messages, heard_texts)
    turn = _find_newest_text_turn(path[: len(path) - len(unheard.exchanges)])
    unheard_steps = [CutStep(each, "") for each in unheard.exchanges if each.shown_reply is not None]
    return BargeIn([*_cut_replies(turn, heard_texts), *unheard_steps], unheard.message_count)


class _RepeatedExchanges(NamedTuple):
    """Exchanges of a path whose messages a list repeats."""

    # The exchanges, oldest first.
    exchanges: Sequence[Exchange]
    # The number of their messages in the list.
    message_count: int


def _detect_unheard(
    path: Sequence[Exchange],
    hasher: MessageHasher,
    messages: Sequence[WireMessage],
    heard_texts: Sequence[str],
) -> _RepeatedExchanges:
    """Returns the newest exchanges with replies that the client lacks.

    The list repeats the tool results before such a step, and the question before such a turn.
    """
    results = tuple(map(hasher.make_atoms, messages[: _count_late_results(path, messages)]))
    turns, question_count = _detect_unheard_turns(path, hasher, messages[len(results) :], heard_texts)
    steps = _find_steps_from(_find_newest_turn(path[: len(path) - len(turns)]), results) if results else ()
    if results and not steps:
        # The results belong to the newest question, or are new.
        return _detect_unheard_turns(path, hasher, messages, heard_texts)
    return _RepeatedExchanges([*steps, *turns], len(results) + question_count)


def _count_late_results(path: Sequence[Exchange], messages: Sequence[WireMessage]) -> int:
    """Returns the number of tool results with which a list begins; 0 if the list has nothing else.

    It is 0 as well if a call of the path waits for them.
    """
    if path and has_calls(path[-1].reply):
        return 0
    return next((i for i, message in enumerate(messages) if not has_result_role(message)), 0)


def _detect_unheard_turns(
    path: Sequence[Exchange],
    hasher: MessageHasher,
    messages: Sequence[WireMessage],
    heard_texts: Sequence[str],
) -> _RepeatedExchanges:
    """Returns the newest turns if a list goes on after their questions without a reply to them.

    Turns with cancelled requests may come before the newest turn. A list that only repeats an answered question is a
    turn of its own.
    """
    unheard = [
        turns
        for turns in _find_repeated_turns(path, hasher, messages, heard_texts)
        if turns.message_count < len(messages) or not any(exchange.reply for exchange in turns.exchanges)
    ]
    return unheard[-1] if unheard else _RepeatedExchanges((), 0)


def _find_steps_from(turn: Sequence[Exchange], results: tuple[tuple[Atom, ...], ...]) -> Sequence[Exchange]:
    """Returns the steps of a turn, from the step that answers these results on; empty if no step does."""
    indexes = range(len(turn) - 1, 0, -1)
    return next((turn[n:] for n in indexes if turn[n].inputs[-len(results) :] == results), ())


def _find_repeated_turns(
    path: Sequence[Exchange],
    hasher: MessageHasher,
    messages: Sequence[WireMessage],
    heard_texts: Sequence[str] | None,
    initial: Sequence[WireMessage] = (),
) -> Iterator[_RepeatedExchanges]:
    """Yields the newest turns whose questions begin a list.

    The fewest turns come first. The client has the reply before the turns. Only the newest of them may have a text.

    heard_texts: the texts of the reply before the messages; None: the client may have a reply that it does not send.
    """
    turns: list[Exchange] = []
    list_atoms = tuple(map(hasher.make_atoms, messages))
    initial_atoms = tuple(map(hasher.make_atoms, initial))
    questions: tuple[tuple[Atom, ...], ...] = ()
    while turn := _find_newest_turn(path):
        path = path[: -len(turn)]
        if turns and any(map(_read_reply_text, turn)):
            return
        question = turn[0].inputs
        if initial_atoms and not path and question[: len(initial_atoms)] == initial_atoms:
            question = question[len(initial_atoms) :]
        turns, questions = [*turn, *turns], question + questions
        if len(list_atoms) < len(questions):
            return
        is_after_heard = heard_texts is None or _has_heard(heard_texts, _find_newest_turn(path))
        if questions == list_atoms[: len(questions)] and is_after_heard:
            yield _RepeatedExchanges(turns, len(questions))


def _has_heard(heard_texts: Sequence[str], turn: Sequence[Exchange]) -> bool:
    """Returns whether a client has a turn's reply or its beginning; without heard texts, whether it has no text."""
    reply = join_texts(map(_read_reply_text, turn))
    if not heard_texts:
        return not join_letters(reply)
    parts = (*_list_ends(heard_texts), *_list_beginnings(heard_texts))
    return any(_is_beginning_of(heard_text, reply) for heard_text in parts)


def _cut_replies(turn: Sequence[Exchange], heard_texts: Sequence[str]) -> list[CutStep]:
    """Returns the steps of a turn that were not heard to their end."""
    texts = list(map(_read_reply_text, turn))
    heard_text = _read_heard(texts, heard_texts)
    remaining_letters = join_heard_letters(heard_text)
    if not remaining_letters or remaining_letters == join_letters(join_texts(texts)):
        return []
    cut_steps, heard_before = [], ""
    for exchange, text in zip(turn, texts, strict=True):
        letters = join_letters(text)
        if remaining_letters.startswith(letters):
            remaining_letters = remaining_letters[len(letters) :]
            heard_before = join_texts((heard_before, text))
            continue
        # The text as the client has it. If the client writes it differently, the stored text up to the same letter.
        heard_rest = find_rest_after(heard_text, heard_before) if remaining_letters else ""
        heard_part = _take_letters(text, len(remaining_letters)) if heard_rest is None else heard_rest.strip()
        cut_steps.append(CutStep(exchange, heard_part))
        remaining_letters = ""
    return cut_steps


def _read_heard(step_texts: Sequence[str], heard_texts: Sequence[str]) -> str:
    """Returns the heard part of a reply; "" if the client's texts do not show it."""
    reply = join_texts(step_texts)
    for heard_text in _list_ends(heard_texts):
        if _is_beginning_of(heard_text, reply):
            return heard_text
    for heard_text in _list_beginnings(heard_texts):
        if _is_beginning_of(heard_text, reply):
            # The application's text after the end of a step may be the next step in other words: that step is not cut.
            ends = {join_letters(join_texts(step_texts[:end])) for end in range(1, len(step_texts) + 1)}
            return "" if join_heard_letters(heard_text) in ends else heard_text
    return ""


def _list_ends(heard_texts: Sequence[str]) -> Iterator[str]:
    """Yields the ends of these texts, longest first: the application may have spoken before the reply."""
    return (join_texts(heard_texts[n:]) for n in range(len(heard_texts)))


def _list_beginnings(heard_texts: Sequence[str]) -> Iterator[str]:
    """Yields the beginnings of these texts, longest first: the application may have spoken after the reply."""
    return (join_texts(heard_texts[:n]) for n in range(len(heard_texts) - 1, 0, -1))


def _is_beginning_of(heard_text: str, reply: str) -> bool:
    """Returns whether a heard text is a reply or its beginning: in whole words, or in too many letters for chance."""
    heard_text = cut_remark(heard_text)
    words = list_lower_words(heard_text)
    if not words:
        return not list_lower_words(reply)
    first_words = list_lower_words(reply)[: len(words)]
    return first_words == words or is_beginning(join_letters(heard_text), join_letters(reply))


def _find_newest_turn(path: Sequence[Exchange]) -> Sequence[Exchange]:
    """Returns the exchanges from the newest message of a user on; none without such a message."""
    index = next((i for i in reversed(range(len(path))) if any(map(is_user, path[i].inputs))), len(path))
    return path[index:]


def _find_newest_text_turn(path: Sequence[Exchange]) -> Sequence[Exchange]:
    """Returns the newest turn with a reply that has text; an empty sequence if there is none."""
    while (turn := _find_newest_turn(path)) and not any(map(_read_reply_text, turn)):
        path = path[: -len(turn)]
    return turn


def _read_reply_text(exchange: Exchange) -> str:
    """Returns the text of an exchange's reply as the client has it; "": there is no text."""
    return "" if exchange.shown_reply is None else read_text(orjson.loads(exchange.shown_reply))


def _take_letters(text: str, count: int) -> str:
    """Returns the beginning of a text that has so many letters."""
    return text[: bisect_left(range(len(text)), count, key=lambda end: len(join_letters(text[:end])))]


def _index_last(messages: Sequence[WireMessage], role: str) -> int:
    """Returns the index of the last message of a role; -1 if there is none."""
    return max((i for i, message in enumerate(messages) if message.get("role") == role), default=-1)
