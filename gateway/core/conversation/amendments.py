"""Amendments: stored exchanges that came back in another form, such as without a template or with a cut reply.

A list is read backwards along the path on which it was matched, one exchange a step. An example: the path is
`u1 a1`, `u2 a2` (two exchanges, each a question and its reply), and the list `[u1, a1', u2', a2, u3]` was matched at
`a2`. The first step finds `u2'` as the input of the second exchange, and the next step `a1'` as the reply of the first.
apply_amendments.py applies the two amendments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import is_assistant, is_call, is_question, is_result, is_user
from gateway.core.conversation.exchange import count_atoms_to_end, count_prefill, is_tombstone
from gateway.core.conversation.hashed_list import HashedList, MessageSpan
from gateway.core.conversation.head import was_heard
from gateway.core.conversation.match_query import Match
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import read_text, without_space
from gateway.core.roles import RESULT_ROLES
from gateway.core.words import join_letters
from storage.records import Atom, Exchange


class Amendment(Struct, frozen=True):
    """The form in which a stored exchange came back."""

    # The id of the exchange.
    exchange_row: int
    # The messages of the exchange's input in the list; None: the messages came back as they are stored.
    inputs: MessageSpan | None
    # The messages of the exchange's reply in the list; None: the reply came back as it is stored.
    reply: MessageSpan | None
    # The digests of the images and sounds of the input, one for each message; (): `inputs` is None.
    media: tuple[bytes, ...] = ()


def find_amendments(tree: Tree, listing: HashedList, match: Match) -> Iterable[Amendment]:
    """Yields the other form in which exchanges came back (a template gone, a reply cut), the last exchange first.

    Only exchanges that no later turn has continued may change.
    """
    return _AmendmentSearch(tree, listing, match).run()


class _Step(NamedTuple):
    """An exchange of the path, and the messages of the list in which its reply may have come back."""

    # The exchange.
    exchange: Exchange
    # The index of the reply's first message in the list. The exchange's inputs end before it.
    reply_start: int
    # The index after the reply's last message.
    reply_end: int
    # The messages of the reply if it came back in another form; None: it came back as it is stored, or not at all.
    altered_reply: MessageSpan | None = None
    # True: `altered_reply` was guessed by its position alone. (The reply of the match point was found by the match.)
    is_guess: bool = False


class _Inputs(NamedTuple):
    """The messages of a list that may be the inputs of an exchange."""

    # The span of the messages in the list.
    span: MessageSpan
    # True: the messages are the inputs of the exchange.
    fits: bool
    # True: the messages came back as they are stored.
    is_as_stored: bool


class _AmendmentSearch:
    """Reads a list backwards along the path on which it was matched."""

    def __init__(self, tree: Tree, listing: HashedList, match: Match) -> None:
        self._tree = tree
        self._listing = listing
        self._match = match
        # True: the list is shorter than the path.
        self._is_short = match.match_point is not None and (
            listing.offsets[match.last + 1] < count_atoms_to_end(match.match_point)
        )

    def run(self) -> Iterator[Amendment]:
        """Yields the amendments, the last exchange's first."""
        step = self._make_last_step()
        while step is not None and self._tree.may_change(step.exchange):
            is_turn = any(map(is_user, step.exchange.inputs))
            inputs = self._locate_inputs(step, is_turn=is_turn)
            reply = self._find_altered_reply(step, inputs, is_turn=is_turn)
            altered_inputs = inputs.span if inputs.fits and not inputs.is_as_stored else None
            if altered_inputs or reply:
                # Pictures are hashed here, because the cache of a list must not be used in the writer's thread.
                indices = range(*altered_inputs) if altered_inputs else ()
                media = tuple(map(self._listing.digest_media, indices))
                yield Amendment(step.exchange.id, altered_inputs, reply, media)
            # If the question of an exchange is not found in the list, nothing before it is found either.
            if is_turn and not inputs.fits:
                return
            step = self._make_earlier_step(step, inputs)

    def _make_last_step(self) -> _Step | None:
        """Returns the step of the match point; None: no stored reply was matched."""
        match = self._match
        if match.match_point is None:
            return None
        altered_reply = match.altered.reply if match.altered else None
        return _Step(match.match_point, match.first, match.last + 1, altered_reply)

    def _make_earlier_step(self, step: _Step, inputs: _Inputs) -> _Step | None:
        """Returns the step of the exchange before; None: the path is at its beginning.

        inputs: the inputs of the present step's exchange.
        """
        listing = self._listing
        exchange = self._tree.find_parent(step.exchange)
        if exchange is None:
            return None
        end = inputs.span.start
        if not inputs.fits:
            # Results here belong to this round, even if some are missing: the list may begin between two results.
            start = inputs.span.end
            while start and listing.read_role(start - 1) in RESULT_ROLES:
                start -= 1
            return _Step(exchange, start, step.reply_end)
        start = _locate_reply_start(exchange, self._tree.find_parent(exchange), listing, end)
        if start < end and _is_new_form(exchange, listing, start, end):
            return _Step(exchange, start, end, MessageSpan(start, end), is_guess=True)
        return _Step(exchange, start, end)

    def _locate_inputs(self, step: _Step, *, is_turn: bool) -> _Inputs:
        """Returns the messages that may be an exchange's inputs. is_turn: True if a user's message is among them."""
        tree = self._tree
        listing = self._listing
        exchange = step.exchange
        end = self._locate_question_end(step.reply_start) if is_turn else step.reply_start
        # The application's first words of a reply are among the messages of that reply.
        prefill = count_prefill(exchange) if is_turn else 0
        count = len(exchange.inputs) - prefill
        exchange = replace(exchange, inputs=exchange.inputs[:count], media=exchange.media[:count])
        span = MessageSpan(max(0, end - count), end)
        fits = _may_be_inputs(exchange, tree.find_parent(exchange), listing, span, step.reply_end)
        is_as_stored = _is_as_stored(exchange, listing, *span)
        # A client may put its own summary, with an answer to it, in place of older messages. So the messages are of
        # another turn if both question and reply differ, or if the question differs and the list is shorter than the
        # path.
        if fits and is_turn and not is_as_stored:
            is_doubtful = self._is_short or step.is_guess
            fits = _may_be_question(tree, exchange, listing.read_text(end - 1), is_doubtful=is_doubtful)
        return _Inputs(span, fits, is_as_stored or bool(prefill))

    def _locate_question_end(self, end: int) -> int:
        """Returns the index after the last user message before `end`.

        Between question and reply the list may have more than is stored, such as a tool round of the client.
        """
        while end and self._listing.read_role(end - 1) != "user":
            end -= 1
        return end

    def _find_altered_reply(self, step: _Step, inputs: _Inputs, *, is_turn: bool) -> MessageSpan | None:
        """Returns the messages of the exchange's reply if they are another form of it, or else None."""
        reply = step.altered_reply
        if is_turn and self._has_words_after_question(step.exchange, inputs.span.end, step.reply_start):
            # The heard part of the turn before may come after this question (Pipecat, on a busy machine).
            reply = MessageSpan(inputs.span.end, step.reply_end)
        needs_proof = step.is_guess and not inputs.fits and (self._is_short or is_turn)
        if reply and needs_proof and not was_heard(self._tree, step.exchange, self._listing, *reply):
            return None
        return reply

    def _has_words_after_question(self, exchange: Exchange, start: int, end: int) -> bool:
        """Returns whether words of the assistant that the reply lacks stand between its question and its messages.

        The words may be in one message with the first call of the reply. They do not count if they are the reply of a
        sibling. Nor do they if a sibling is off the record or forgotten: they may be of its reply.

        start: the index after the question.
        end: the index of the reply's first message.
        """
        atoms = self._listing.atoms
        if not start or atoms[start - 1] != exchange.inputs[-1]:
            return False
        if start == end:
            text, *calls = atoms[start] or (b"",)
            has_words = bool(calls) and not is_call(text) and text not in (exchange.reply or ())
        else:
            has_words = all(
                is_assistant(message) and not any(map(is_call, message)) for message in atoms[start:end]
            )
        words = tuple(atom for message in atoms[start:end] for atom in message)
        siblings = self._tree.list_siblings(exchange)
        is_private = exchange.redactions or any(map(is_tombstone, siblings))
        # A sibling with the same question does not count: this exchange will supersede it.
        is_of_sibling = any(
            sibling.reply == words
            and not sibling.superseded
            and not self._tree.extends(sibling, exchange)
            and not self._tree.extends(exchange, sibling)
            for sibling in siblings
        )
        return has_words and not is_private and not is_of_sibling


def _may_be_question(tree: Tree, exchange: Exchange, text: str, *, is_doubtful: bool) -> bool:
    """Returns whether a text may be the question of an exchange in another form.

    A message without words is no form of a question with words: a framework puts one before a reply that begins its
    list.

    is_doubtful: True if more than the question differs from the stored turn.
    """
    return bool(join_letters(text) and not is_doubtful) or _was_within(tree, exchange, text)


def _may_be_inputs(
    exchange: Exchange, parent: Exchange | None, listing: HashedList, span: MessageSpan, reply_end: int
) -> bool:
    """Returns whether messages have the number and roles of an exchange's inputs, after a reply or at the beginning.

    parent: the exchange before; None: the exchange begins its path.
    span: the messages in the list.
    reply_end: the index after the exchange's reply in the list.
    """
    start, end = span
    has_same_roles = end - start == len(exchange.inputs) and all(
        _has_role(listing.read_role(start + i), atoms) for i, atoms in enumerate(exchange.inputs)
    )
    if not has_same_roles or not (start == 0 or listing.read_role(start - 1) == "assistant"):
        return False
    earlier_reply = None if parent is None else parent.reply
    if not earlier_reply:
        return True
    messages = listing.atoms[start:end]
    # The earlier reply stands among the messages: the client has left out messages of its own (aider: the files in the
    # chat), and the first of these messages belong to the turn before.
    if messages.count(earlier_reply) > exchange.inputs.count(earlier_reply):
        return False
    # The earlier reply comes after messages that are not the stored ones: the client has dropped the question ("the
    # user is silent, you would say:").
    reply_count = listing.atoms[end:reply_end].count(earlier_reply)
    is_earlier_reply_after = reply_count > (exchange.reply == earlier_reply)
    return not is_earlier_reply_after or tuple(messages) == exchange.inputs


def _was_within(tree: Tree, exchange: Exchange, text: str) -> bool:
    """Returns whether a text is the last message of an exchange's inputs without its template.

    The words of a tombstone are not known, so any text may be this message: a text that comes back in its place is off
    the record, too.
    """
    if is_tombstone(exchange):
        return True
    stored_text = "".join(
        map(read_text, (tree.contents.get(exchange).messages or ())[: len(exchange.inputs)][-1:])
    )
    return without_space(text) in without_space(stored_text) and bool(
        join_letters(text) or not join_letters(stored_text)
    )


def _locate_reply_start(exchange: Exchange, parent: Exchange | None, listing: HashedList, end: int) -> int:
    """Returns the index of the first message in which a reply came back.

    These messages are all assistant messages after the question. If an exchange has no question (a system message asked
    for its reply), the messages before its reply belong to another reply or to a prefix, and the reply is known by its
    words alone. After results of tools, the text before the calls may come, too: Pipecat sends it once it is spoken.

    end: the end of the reply, which is returned if the reply came back in no message.
    """
    has_question = any(map(is_question, exchange.inputs[-1:]))
    reply_before = () if parent is None or any(map(is_user, exchange.inputs)) else (parent.reply or ())[:1]
    start = end
    while start and listing.read_role(start - 1) == "assistant":
        if start < end and reply_before and tuple(listing.atoms[start - 1]) == reply_before:
            return start
        start -= 1
        if not has_question and not _is_new_form(exchange, listing, start, end):
            return start
    return start if has_question or count_prefill(exchange) else end


def _is_as_stored(exchange: Exchange, listing: HashedList, start: int, end: int) -> bool:
    media = tuple(listing.digest_media(i) for i in range(start, end))
    return tuple(listing.atoms[start:end]) == exchange.inputs and media == exchange.media


def _is_new_form(exchange: Exchange, listing: HashedList, start: int, end: int) -> bool:
    """Returns whether messages are a reply in another form, or for the first time, since its request was cancelled."""
    if exchange.reply is None:
        return True
    return (
        bool(exchange.size)
        and tuple(atom for atoms in listing.atoms[start:end] for atom in atoms) != exchange.reply
    )


def _has_role(role: str, atoms: tuple[Atom, ...]) -> bool:
    if is_user(atoms):
        return role == "user"
    return role in RESULT_ROLES if is_result(atoms) else role == "assistant"
