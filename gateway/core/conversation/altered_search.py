"""Finds the stored reply that came back in another form: cut to what was spoken of it, continued, or rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec.structs import replace

from gateway.core.conversation.canonical import is_assistant, is_user
from gateway.core.conversation.evidence import LONG_REPLY_CHARS, has_question_within, has_same_question
from gateway.core.conversation.exchange import count_prefill, is_tombstone
from gateway.core.conversation.hashed_list import MessageSpan
from gateway.core.conversation.match_query import AlteredReply, Match, Query
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import read_text, without_space
from gateway.core.words import is_beginning, join_heard_letters, join_letters
from storage.records import Atom, Exchange

# The number of last runs of assistant messages in a list that are tried as altered stored replies. Not measured: each
# run is compared by its letters, and an altered reply in an earlier run is not recognised.
_MAX_RUNS = 64

# The atoms of messages, one after the other.
Inputs = tuple[tuple[Atom, ...], ...]


class _Agreement(NamedTuple):
    """The agreement of the path from the match point to an exchange with the list; a better agreement is greater."""

    # The number of exchanges that agree one after the other, minus the exchanges that only the path or only the list
    # has.
    score: int
    # True: the path has the same questions as the list.
    is_equal: bool


class AlteredSearch:
    """Finds the next stored reply that came back cut (to what was spoken of it) or otherwise altered.

    A turn is recognised by its question. Its reply alone is enough only if no other question competes for it: "Well" is
    the beginning of many replies, and one turn would take the place of another in the tree.
    """

    def __init__(self, tree: Tree, query: Query, match: Match) -> None:
        """Prepares the search after a match. match: the last reply that came back word for word."""
        self._tree = tree
        self._query = query
        # The exchange of the last reply that came back word for word; None: no stored reply did.
        self._match_point = match.match_point
        # The index of the first message after that reply.
        self._start = match.last + 1
        # At index n: the number of user messages among the first n messages after that reply.
        messages_after = query.listing.atoms[self._start :]
        self._user_counts = [*accumulate(map(is_user, messages_after), initial=0)]
        # The exchanges after the match point that may take another form.
        self._candidates = [each for each in self._list_after_match_point() if tree.may_change(each)]

    def run(self) -> Match | None:
        """Returns the match of the last altered reply in the list; None: no altered reply follows the match point."""
        listing, start = self._query.listing, self._start
        if not self._candidates:
            return None
        # The indices of the list at which runs of assistant messages begin, the last one first.
        begins = [
            i
            for i in range(len(listing) - 1, start, -1)
            if listing.read_role(i) == "assistant"
            and (listing.read_role(i - 1) != "assistant" or i - 1 <= start)
        ]
        letters = self._list_reply_letters() if begins else {}
        for begin in begins[:_MAX_RUNS]:
            end = listing.skip_replies(begin)
            exchange = self._find_prefilled(begin, end) or self._find_reply(begin, end, letters)
            if exchange is not None:
                altered = AlteredReply(inputs=MessageSpan(start, begin), reply=MessageSpan(begin, end))
                return Match(exchange, begin, end - 1, altered)
        return self._find_greeting()

    def _find_greeting(self) -> Match | None:
        """Returns the match of a greeting, as far as it was heard, with which a list begins; None: no greeting matches.

        A greeting is a reply without a question. The words of a greeting that is off the record or forgotten are not
        known, so such a greeting is the match only if no other greeting matches.
        """
        listing, tree = self._query.listing, self._tree
        end = listing.skip_replies(0)
        if self._match_point is not None or not end:
            return None
        greetings = [
            each
            for each in self._candidates
            if each.parent is None and not each.inputs and self._may_be_meant(each)
        ]
        tree.contents.group(greetings)
        heard_letters = join_heard_letters("".join(map(listing.read_text, range(end))))
        possible_greetings = [
            each
            for each in greetings
            if is_tombstone(each)
            or is_beginning(heard_letters, join_letters(read_text(tree.contents.get(each).shown_reply or {})))
        ]
        if not possible_greetings:
            return None
        greeting = max(
            possible_greetings,
            key=lambda each: (not is_tombstone(each), tree.make_recency_key(each)),
        )
        return Match(greeting, 0, end - 1, AlteredReply(MessageSpan(0, 0), MessageSpan(0, end)))

    def _find_reply(self, begin: int, end: int, letters: Mapping[int, str]) -> Exchange | None:
        """Returns the exchange with a reply that came back as a run of assistant messages, or None.

        letters: the letters of the stored replies, by the ids of their exchanges.
        """
        tree, listing = self._tree, self._query.listing
        inputs = tuple(listing.atoms[self._start : begin])
        reply = "".join(listing.read_text(i) for i in range(begin, end))
        heard_letters = join_heard_letters(reply)
        same_questions = [candidate for candidate in self._candidates if self._has_inputs(candidate, inputs)]
        similar = self._list_similar(heard_letters, same_questions, letters)
        similar_ids = {candidate.id for candidate in similar}
        # The best evidence is question and reply together.
        best_candidates = [candidate for candidate in same_questions if candidate.id in similar_ids]
        if not best_candidates:
            is_long = len(without_space(reply)) >= LONG_REPLY_CHARS
            best_candidates = self._list_with_less_evidence(same_questions, similar, begin, is_long=is_long)
            if len({candidate.inputs[:1] for candidate in best_candidates}) > 1:
                return None
        return max(
            best_candidates,
            key=lambda candidate: (self._rate_agreement(candidate, inputs), tree.make_recency_key(candidate)),
            default=None,
        )

    def _list_with_less_evidence(
        self, same_questions: Sequence[Exchange], similar: Sequence[Exchange], begin: int, *, is_long: bool
    ) -> list[Exchange]:
        """Returns the candidates with the same question, or else those with a similar reply that is long enough.

        A short reply is enough if one of the two questions has a template around the other. No other question of the
        list may stand between a similar reply and its own question.

        begin: the index of the reply in the list.
        is_long: True if the reply in the list is long.
        """
        tree, listing = self._tree, self._query.listing
        return [candidate for candidate in same_questions if self._may_be_meant(candidate)] or [
            candidate
            for candidate in similar
            if self._may_be_meant(candidate)
            and (is_long or has_same_question(tree, candidate, listing, begin - 1))
            and not has_question_within(tree, candidate, listing, begin)
        ]

    def _list_similar(
        self, heard_letters: str, same_questions: Sequence[Exchange], letters: Mapping[int, str]
    ) -> list[Exchange]:
        """Returns the candidates with a reply that begins with the heard letters, or that was extended to them.

        same_questions: the candidates with the same question.
        letters: the letters of the stored replies, by the ids of their exchanges.
        """
        with_beginning = [
            candidate
            for candidate in self._candidates
            if candidate.id in letters and is_beginning(heard_letters, letters[candidate.id])
        ]
        with_extension = [
            candidate
            for candidate in same_questions
            if self._was_extended(candidate, heard_letters, letters.get(candidate.id, ""))
        ]
        return with_beginning + with_extension

    def _find_prefilled(self, begin: int, end: int) -> Exchange | None:
        """Returns the exchange with a reply that came back after the first words that its request gave, or None.

        An application may end its list with the first words of the reply, and later put these words and the reply into
        one message.
        """
        tree, listing = self._tree, self._query.listing
        inputs = tuple(listing.atoms[self._start : begin])
        candidates = [
            exchange
            for exchange in self._candidates
            if (count := count_prefill(exchange))
            and not is_tombstone(exchange)
            and self._has_inputs(replace(exchange, inputs=exchange.inputs[:-count]), inputs)
        ]
        if not candidates:
            return None
        tree.contents.group(candidates)
        heard_letters = join_heard_letters("".join(listing.read_text(i) for i in range(begin, end)))
        prefilled_exchanges = [
            exchange for exchange in candidates if self._is_prefilled_reply(exchange, heard_letters)
        ]
        return max(prefilled_exchanges, key=tree.make_recency_key, default=None)

    def _is_prefilled_reply(self, exchange: Exchange, heard_letters: str) -> bool:
        """Returns whether the heard letters are a reply with its first words, and not the first words alone."""
        content = self._tree.contents.get(exchange)
        prefill = join_letters("".join(map(read_text, (content.messages or [])[-count_prefill(exchange) :])))
        if len(heard_letters) <= len(prefill):
            return False
        reply = join_letters(read_text(content.shown_reply or {}))
        is_fresh = self._may_be_meant(exchange)
        # If the reply came back in this form before, it has its first words already.
        return any(
            heard_letters == whole
            or (is_fresh and is_beginning(heard_letters, whole))
            or self._was_extended(exchange, heard_letters, whole)
            for whole in (prefill + reply, reply)
        )

    def _was_extended(self, exchange: Exchange, heard_letters: str, stored_letters: str) -> bool:
        """Returns whether a reply came back with a continuation that the model has added.

        Front ends have a reply continued by a list that ends with it, and put both texts into one message.

        heard_letters: the letters of the reply that came back.
        stored_letters: the letters of the stored reply.
        """
        has_addition = any(not child.inputs for child in self._tree.list_children(exchange))
        return bool(stored_letters) and has_addition and heard_letters.startswith(stored_letters)

    def _list_after_match_point(self) -> list[Exchange]:
        """Returns the exchanges after the match point that have a reply, or a part of a reply.

        Without a match point these are all such exchanges. If requests were cancelled one after the other, each follows
        the one before, so the search goes on below each exchange that no later turn continued.
        """
        tree = self._tree
        if self._match_point is None:
            exchanges = list(tree)
        else:
            exchanges = []
            remaining_exchanges = tree.list_children(self._match_point)
            while remaining_exchanges:
                exchange = remaining_exchanges.pop()
                exchanges.append(exchange)
                children = tree.list_children(exchange)
                is_continued = tree.is_continued(exchange)
                remaining_exchanges += [
                    child for child in children if not is_continued or tree.is_mid_turn(child)
                ]
        return [
            exchange
            for exchange in exchanges
            if exchange.ended is not None
            or (exchange.stopped is not None and (exchange.size or is_tombstone(exchange)))
        ]

    def _may_be_meant(self, exchange: Exchange) -> bool:
        """Returns whether a list may go on from an exchange without the words that prove it.

        Without an id and without a match point, only an exchange from within the idle time may be meant.
        """
        query = self._query
        is_known = query.is_named or self._match_point is not None
        return is_known or query.now - self._tree.read_turn_end(exchange) <= query.idle_s

    def _list_reply_letters(self) -> dict[int, str]:
        """Returns the letters of the candidates' replies, by the ids of the exchanges."""
        tree = self._tree
        # The questions are loaded with the replies, since they are compared next (`has_same_question`).
        tree.contents.group([*self._candidates, *map(tree.locate_turn_start, self._candidates)])
        replies = {
            each.id: tree.contents.get(each).shown_reply
            for each in self._candidates
            if not is_tombstone(each)
        }
        return {
            exchange_id: join_letters(read_text(reply))
            for exchange_id, reply in replies.items()
            if reply is not None
        }

    def _has_inputs(self, candidate: Exchange, inputs: Inputs) -> bool:
        """Returns whether the messages before a reply are the candidate's inputs, or end like them.

        Without a match point, results of tools are no evidence, because many exchanges have the same results. If more
        user messages come before the inputs than the path has, the same words came again in a turn that is not stored.

        inputs: the messages between the match point and the reply.
        """
        for exchange in (candidate, self._tree.locate_turn_start(candidate)):
            own_inputs = exchange.inputs
            if self._match_point is None and not any(map(is_user, own_inputs)):
                continue
            if own_inputs[-len(inputs) :] == inputs:
                return True
            if own_inputs and inputs[-len(own_inputs) :] == own_inputs:
                listed_before = self._user_counts[len(inputs) - len(own_inputs)]
                return listed_before <= sum(map(is_user, self._walk_inputs_before(exchange)))
        return False

    def _walk_inputs_before(self, exchange: Exchange) -> Iterator[tuple[Atom, ...]]:
        """Yields the inputs of the exchanges between the match point and an exchange."""
        match_point = self._match_point
        ancestor = self._tree.find_parent(exchange)
        while ancestor is not None and (match_point is None or ancestor.id != match_point.id):
            yield from ancestor.inputs
            ancestor = self._tree.find_parent(ancestor)

    def _rate_agreement(self, candidate: Exchange, inputs: Inputs) -> _Agreement:
        """Returns the agreement of the path from the match point to a candidate with the list.

        inputs: the atoms of the list's messages between the match point and the candidate's reply.
        """
        match_point = self._match_point
        agreeing = only_on_path = 0
        # The end of the messages that were not compared yet.
        end = len(inputs)
        exchange: Exchange | None = candidate
        while exchange is not None and (end if match_point is None else exchange.id != match_point.id):
            start = end - len(exchange.inputs)
            if start >= 0 and inputs[start:end] == exchange.inputs and not only_on_path:
                agreeing += 1
                end = start
                # The replies between the questions are skipped, whatever their form.
                while end and (not inputs[end - 1] or is_assistant(inputs[end - 1])):
                    end -= 1
            else:
                only_on_path += 1
            exchange = self._tree.find_parent(exchange)
        only_in_list = self._user_counts[end]
        return _Agreement(agreeing - only_on_path - only_in_list, exchange is None and not only_in_list)
