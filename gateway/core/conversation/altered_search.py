"""Finds the stored reply that came back in another form: cut to what was spoken of it, continued, or rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from msgspec.structs import replace

from gateway.core.conversation.canonical import is_assistant, is_user, text_of, without_space
from gateway.core.conversation.evidence import LONG_REPLY, has_akin_question, has_question_within
from gateway.core.conversation.match_query import AlteredReply, Match, Query
from gateway.core.conversation.tree import Tree, count_prefill, is_tombstone
from gateway.core.words import heard_letters, is_beginning, letters_of
from storage.records import Atom, Exchange

# The last runs of assistant messages in a list that are tried as altered stored replies; no measurement.
_MAX_RUNS = 64

# The atoms of messages, one after the other.
Inputs = tuple[tuple[Atom, ...], ...]


class AlteredSearch:
    """Finds the next stored reply that came back cut (to what was spoken of it) or otherwise altered.

    A turn is recognised by its question. Its reply alone is enough only if no other question competes for it: "Well" is
    the beginning of many replies, and one turn would take the place of another in the tree.
    """

    def __init__(self, tree: Tree, query: Query, match: Match) -> None:
        """Begins. match: the last reply that came back word for word."""
        self._tree = tree
        self._query = query
        self._match_point = match.match_point
        # The index of the first message after that reply.
        self._start = match.last + 1
        # How many of the messages from there on are a user's, by the number of messages.
        rest = query.listing.atoms[self._start :]
        self._user_counts = [*accumulate(map(is_user, rest), initial=0)]
        self._candidates = [each for each in self._after_match_point() if tree.may_change(each)]

    def run(self) -> Match | None:
        """Returns the match of the last altered reply in the list; None: no altered reply follows the match point."""
        listing, start = self._query.listing, self._start
        if not self._candidates:
            return None
        # The indices of the list at which runs of assistant messages begin, the last one first.
        begins = [
            i
            for i in range(len(listing) - 1, start, -1)
            if listing.role(i) == "assistant" and (listing.role(i - 1) != "assistant" or i - 1 <= start)
        ]
        letters = self._letters_of_replies() if begins else {}
        for begin in begins[:_MAX_RUNS]:
            end = next(
                (i for i in range(begin, len(listing)) if listing.role(i) != "assistant"), len(listing)
            )
            exchange = self._find_prefilled(begin, end) or self._find_reply(begin, end, letters)
            if exchange is not None:
                return Match(exchange, begin, end - 1, AlteredReply((start, begin), (begin, end)))
        return self._find_greeting()

    def _find_greeting(self) -> Match | None:
        """Returns the match of a greeting that nobody asked for, with which a list begins as far as it was heard.

        Of one that is off the record or forgotten no words are known: it is found where no other is.
        """
        listing, tree = self._query.listing, self._tree
        end = next((i for i in range(len(listing)) if listing.role(i) != "assistant"), len(listing))
        if self._match_point is not None or not end:
            return None
        greetings = [
            each
            for each in self._candidates
            if each.parent is None and not each.inputs and self._may_be_meant(each)
        ]
        tree.group_for_loading(greetings)
        heard = heard_letters("".join(map(listing.text, range(end))))
        cut = [
            each
            for each in greetings
            if is_tombstone(each)
            or is_beginning(heard, letters_of(text_of(tree.content(each).shown_reply or {})))
        ]
        if not cut:
            return None
        greeting = max(
            cut, key=lambda each: (not is_tombstone(each), tree.touched_at(each), each.begun, each.id)
        )
        return Match(greeting, 0, end - 1, AlteredReply((0, 0), (0, end)))

    def _find_reply(self, begin: int, end: int, letters: Mapping[int, str]) -> Exchange | None:
        """Returns the exchange with the reply that a run of assistant messages is.

        letters: of the stored replies, by the ids of their exchanges.
        """
        tree, listing = self._tree, self._query.listing
        inputs = tuple(listing.atoms[self._start : begin])
        reply = "".join(listing.text(i) for i in range(begin, end))
        heard, is_long = heard_letters(reply), len(without_space(reply)) >= LONG_REPLY
        asked_candidates = [candidate for candidate in self._candidates if self._was_asked(candidate, inputs)]
        similar = [
            candidate
            for candidate in self._candidates
            if candidate.id in letters and is_beginning(heard, letters[candidate.id])
        ]
        similar += [
            candidate
            for candidate in asked_candidates
            if self._was_extended(candidate, heard, letters.get(candidate.id, ""))
        ]
        similar_ids = {candidate.id for candidate in similar}
        # The best evidence is question and reply together. Next comes the question alone, then the reply alone, if it
        # is long or if the question is akin.
        meant = [candidate for candidate in asked_candidates if candidate.id in similar_ids]
        if not meant:
            meant = [candidate for candidate in asked_candidates if self._may_be_meant(candidate)] or [
                candidate
                for candidate in similar
                if self._may_be_meant(candidate)
                and (is_long or has_akin_question(tree, candidate, listing, begin - 1))
                and not has_question_within(tree, candidate, listing, begin)
            ]
            if len({candidate.inputs[:1] for candidate in meant}) > 1:
                return None
        return max(
            meant,
            key=lambda candidate: (
                self._agreement(candidate, inputs),
                tree.touched_at(candidate),
                candidate.begun,
                candidate.id,
            ),
            default=None,
        )

    def _find_prefilled(self, begin: int, end: int) -> Exchange | None:
        """Returns the exchange of which a run of assistant messages is the reply, with its first words from the input.

        An application may end its list with the first words of the reply, and put both into one message.
        """
        tree, listing = self._tree, self._query.listing
        inputs = tuple(listing.atoms[self._start : begin])
        candidates = [
            exchange
            for exchange in self._candidates
            if (count := count_prefill(exchange))
            and not is_tombstone(exchange)
            and self._was_asked(replace(exchange, inputs=exchange.inputs[:-count]), inputs)
        ]
        if not candidates:
            return None
        tree.group_for_loading(candidates)
        heard = heard_letters("".join(listing.text(i) for i in range(begin, end)))
        prefilled = [exchange for exchange in candidates if self._is_prefilled_reply(exchange, heard)]
        return max(
            prefilled,
            key=lambda exchange: (tree.touched_at(exchange), exchange.begun, exchange.id),
            default=None,
        )

    def _is_prefilled_reply(self, exchange: Exchange, heard: str) -> bool:
        """Returns whether letters are those of a reply and its first words, and not of these words alone."""
        content = self._tree.content(exchange)
        prefill = letters_of("".join(map(text_of, (content.messages or [])[-count_prefill(exchange) :])))
        if len(heard) <= len(prefill):
            return False
        reply = letters_of(text_of(content.shown_reply or {}))
        is_fresh = self._may_be_meant(exchange)
        # A reply that came back so before has these words already.
        return any(
            heard == whole
            or (is_fresh and is_beginning(heard, whole))
            or self._was_extended(exchange, heard, whole)
            for whole in (prefill + reply, reply)
        )

    def _was_extended(self, exchange: Exchange, heard: str, stored: str) -> bool:
        """Returns whether a reply came back with what the model has added to it.

        Front ends have a reply continued by a list that ends with it, and put both texts into one message.

        heard, stored: letters, of what came back and of what is stored.
        """
        has_addition = any(not child.inputs for child in self._tree.children(exchange))
        return bool(stored) and has_addition and heard.startswith(stored)

    def _after_match_point(self) -> list[Exchange]:
        """Returns the exchanges after the match point, or all without one, that have a reply or a part of one.

        Requests that were cancelled one after the other hang below each other, so the search goes on below each
        exchange that no later turn continued.
        """
        tree = self._tree
        if self._match_point is None:
            exchanges = list(tree)
        else:
            exchanges, todo = [], tree.children(self._match_point)
            while todo:
                exchange = todo.pop()
                exchanges.append(exchange)
                children, is_continued = tree.children(exchange), tree.is_continued(exchange)
                todo += [child for child in children if not is_continued or tree.continues_turn(child)]
        return [
            exchange
            for exchange in exchanges
            if exchange.ended is not None
            or (exchange.stopped is not None and (exchange.size or is_tombstone(exchange)))
        ]

    def _may_be_meant(self, exchange: Exchange) -> bool:
        # Without an id and without a match point, only a conversation from within the idle time is continued.
        query = self._query
        is_known = query.is_named or self._match_point is not None
        return is_known or query.now - self._tree.turn_end(exchange) <= query.idle_s

    def _letters_of_replies(self) -> dict[int, str]:
        """Returns id -> the letters of a reply. They are made once, since each is compared with many messages."""
        tree = self._tree
        # The question of each turn is compared next (`has_akin_question`).
        tree.group_for_loading([*self._candidates, *map(tree.turn_start, self._candidates)])
        replies = {
            each.id: tree.content(each).shown_reply for each in self._candidates if not is_tombstone(each)
        }
        return {id: letters_of(text_of(reply)) for id, reply in replies.items() if reply is not None}

    def _was_asked(self, candidate: Exchange, inputs: Inputs) -> bool:
        """Returns whether the messages before a reply are those that a candidate brought, or end like them.

        Without a match point the results of tools are no evidence, because many exchanges have the same ones. Where
        more user messages precede them than the path has, the same words came once more in a turn that is not stored.
        """
        for exchange in (candidate, self._tree.turn_start(candidate)):
            stored = exchange.inputs
            if self._match_point is None and not any(map(is_user, stored)):
                continue
            if stored[-len(inputs) :] == inputs:
                return True
            if stored and inputs[-len(stored) :] == stored:
                listed = self._user_counts[len(inputs) - len(stored)]
                return listed <= sum(map(is_user, self._inputs_before(exchange)))
        return False

    def _inputs_before(self, exchange: Exchange) -> Iterator[tuple[Atom, ...]]:
        """Yields the messages that the exchanges between the match point and this one brought."""
        match_point, ancestor = self._match_point, self._tree.parent(exchange)
        while ancestor is not None and (match_point is None or ancestor.id != match_point.id):
            yield from ancestor.inputs
            ancestor = self._tree.parent(ancestor)

    def _agreement(self, candidate: Exchange, inputs: Inputs) -> tuple[int, bool]:
        """Returns how well the path from the match point to a candidate agrees with the list, and whether as a whole.

        The number counts the exchanges that agree one after the other, minus those that only the path or the list has.
        """
        match_point, agree, over, end = self._match_point, 0, 0, len(inputs)
        exchange: Exchange | None = candidate
        while exchange is not None and (end if match_point is None else exchange.id != match_point.id):
            start = end - len(exchange.inputs)
            if start >= 0 and inputs[start:end] == exchange.inputs and not over:
                agree, end = agree + 1, start
                # The replies between the questions are skipped, whatever their form.
                while end and (not inputs[end - 1] or is_assistant(inputs[end - 1])):
                    end -= 1
            else:
                over += 1
            exchange = self._tree.parent(exchange)
        left = self._user_counts[end]
        return agree - over - left, exchange is None and not left
