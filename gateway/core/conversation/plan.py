"""Planning: the additions of a request to the stored tree, after the match point of its list.

`plan_turn` finds the new messages, the exchanges that came back in another form and the part that the client left out
at the front; gateway/core/conversation/active.py decides which exchanges are active afterwards. Rules are numbered as
in docs/conversations.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from gateway.core.conversation.amendments import Amendment, find_amendments
from gateway.core.conversation.exchange import count_atoms_to_end, is_same_input, is_tombstone
from gateway.core.conversation.hashed_list import HashedList, MessageSpan
from gateway.core.conversation.head import PathHead, find_head, repeats
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match import match_list
from gateway.core.conversation.match_query import Match, MemoryUse, Query
from gateway.core.conversation.off_record import find_redactions, repeats_off_record
from gateway.core.conversation.omitted_front import find_omitted_front
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import WireMessage, is_system, read_text, without_space
from gateway.core.roles import RESULT_ROLES
from gateway.core.words import list_transcript_words
from storage.records import Exchange, ExchangeState

# A quoted turn has at least so many characters, white space aside: "Hi" and "Hello" are in many messages that quote
# nothing. Not measured: with more, a short turn that is quoted is not recognised.
_MIN_QUOTE_CHARS = 16


class Plan(Struct, frozen=True):
    """The additions of a request to the tree, and the stored exchanges that it needs."""

    # The facts of the request.
    query: Query
    # The place in the tree where its list goes on.
    match: Match
    # Indices of the list's new messages.
    new_indices: tuple[int, ...]
    # The row of the conversation; None: the request begins one.
    conversation_row: int | None
    # The exchange that the turn will write. It has the id 0 until then.
    exchange: Exchange
    # The input of that exchange: the messages of `pending`, then the new ones of the list.
    messages: list[WireMessage]
    # The part of the path that the client left out before its list.
    omitted: tuple[PathElement, ...] = ()
    # Stored exchanges that came back in another form.
    amendments: tuple[Amendment, ...] = ()
    # Messages that come before the new ones and have no reply yet: of cancelled sends (append mode), or results of
    # tools (a step of an agent).
    pending: tuple[WireMessage, ...] = ()
    # The number of messages at the beginning of the list that repeat the last reply as the user heard it.
    heard_count: int = 0
    # The number of messages at the beginning of the list that repeat a reply among `pending`; append mode alone.
    resent_count: int = 0
    # Indices in the exchange's input that are not stored.
    redactions: frozenset[int] = frozenset()
    # True: the request is off the record: memory is off or only read, or it repeats or continues such a turn.
    is_off_record: bool = False
    # True: the request quotes the last turn of its conversation.
    is_quote: bool = False
    # The ids of exchanges with tool results that an upstream has refused: they are sent without their text.
    refused_results: frozenset[int] = frozenset()

    @property
    def is_inactive(self) -> bool:
        """True if the exchange supersedes no other one, and is active only once a later turn follows it."""
        return self.is_quote or self.query.mode is MemoryUse.APART

    @property
    def follows_head(self) -> bool:
        """True if the request goes on from the head of a stored conversation.

        In append mode a list that repeats stored replies does not, because that list is matched.
        """
        return self.query.kind is not ConversationKind.CLIENT and self.match.last < 0


class _Continuation(NamedTuple):
    """The stored path that a request continues, and its new messages. The fields are those of `Plan`."""

    match: Match
    new_indices: tuple[int, ...]
    omitted: tuple[PathElement, ...] = ()
    amendments: tuple[Amendment, ...] = ()
    pending: tuple[WireMessage, ...] = ()
    heard_count: int = 0
    resent_count: int = 0


def plan_turn(tree: Tree, query: Query) -> Plan:
    """Plans a request: returns what it will add. Nothing that is stored changes yet. Raises: MissingContents."""
    listing = query.listing
    match = match_list(tree, query)
    head = find_head(tree, query, match) if query.kind is ConversationKind.APPENDED else None
    continuation = (
        _continue_match(tree, listing, match) if head is None else _continue_head(tree, listing, head)
    )
    match_point, pending = continuation.match.match_point, continuation.pending
    messages = [*pending, *(listing.messages[i] for i in continuation.new_indices)]
    exchange = draft_exchange(query, match_point, pending, continuation.new_indices)
    tree.contents.provide_messages(0, messages)
    conversation_row = _find_conversation_row(tree, query, exchange, match_point)
    rivals = list_rivals(tree, match_point, conversation_row)
    is_list_alone = match_point is None and query.kind is ConversationKind.CLIENT
    return Plan(
        **continuation._asdict(),
        query=query,
        conversation_row=conversation_row,
        exchange=exchange,
        messages=messages,
        redactions=find_redactions(tree, query, exchange, messages, len(pending), rivals),
        is_off_record=query.mode not in (MemoryUse.ON, MemoryUse.APART)
        or repeats_off_record(
            tree, query, exchange, messages, match_point, rivals, follows_head=head is not None
        ),
        is_quote=is_list_alone and _quotes_last_turn(tree, query, messages),
    )


def _find_conversation_row(
    tree: Tree, query: Query, exchange: Exchange, match_point: Exchange | None
) -> int | None:
    """Returns the row of the conversation that an exchange belongs to; None: the exchange begins one."""
    if match_point is not None:
        return match_point.conversation_row
    if query.is_named:
        return query.conversation_row
    opening = find_opening(tree, exchange, query)
    return opening.conversation_row if opening else None


def _continue_head(tree: Tree, listing: HashedList, head: PathHead) -> _Continuation:
    """Returns the continuation of a conversation's head by a list of new messages (append mode)."""
    omitted = tree.list_path_elements(head.exchange)
    amendments: tuple[Amendment, ...] = ()
    if head.exchange is not None and head.heard_count:
        # The last reply came back as it was spoken, before the message that interrupted it.
        omitted = omitted[:-1]
        amendments = (Amendment(head.exchange.id, None, MessageSpan(0, head.heard_count)),)
    return _Continuation(
        match=Match(head.exchange),
        new_indices=tuple(range(head.new_start, len(listing))),
        omitted=omitted,
        amendments=amendments,
        pending=tuple(head.pending),
        heard_count=head.heard_count,
        resent_count=head.resent_count,
    )


def _continue_match(tree: Tree, listing: HashedList, match: Match) -> _Continuation:
    """Returns the continuation of the stored reply that was found in a client's list."""
    # Results of tools that came back within an altered reply are new as well.
    results = [i for i in range(match.first + 1, max(match.last, 0)) if listing.read_role(i) in RESULT_ROLES]
    new_indices = (*results, *range(match.last + 1, len(listing)))
    if match.match_point is None:
        return _Continuation(match, new_indices)
    amendments = tuple(find_amendments(tree, listing, match))
    return _Continuation(
        match=match,
        new_indices=new_indices,
        omitted=tuple(find_omitted_front(tree, listing, match, amendments)),
        amendments=amendments,
    )


def find_lowest_change_depth(tree: Tree, plan: Plan) -> int | None:
    """Returns the depth from which on this request may change anything; None: the depth is not known yet."""
    match_point = plan.match.match_point
    if match_point is None:
        return None
    amended_exchanges = [tree.get(amendment.exchange_row) for amendment in plan.amendments]
    changed_exchanges = [
        match_point,
        tree.locate_turn_start(match_point),
        *(each for each in amended_exchanges if each is not None),
    ]
    return min(exchange.depth for exchange in changed_exchanges)


def draft_exchange(
    query: Query, match_point: Exchange | None, pending: Sequence[WireMessage], new_indices: Sequence[int]
) -> Exchange:
    """Returns the exchange of this request, with a temporary id that no stored exchange has."""
    listing, hasher = query.listing, query.listing.hasher
    inputs = [hasher.make_atoms(message) for message in pending] + [listing.atoms[i] for i in new_indices]
    media = [hasher.digest_media(m) for m in pending] + [listing.digest_media(i) for i in new_indices]
    return Exchange(
        id=0,
        conversation_row=0 if match_point is None else match_point.conversation_row,
        parent=None if match_point is None else match_point.id,
        depth=0 if match_point is None else match_point.depth + 1,
        offset=0 if match_point is None else count_atoms_to_end(match_point),
        inputs=tuple(inputs),
        media=tuple(media),
        reply=None,
        path_hash=b"",
        reply_key=None,
        begun=query.now,
        touched=query.now,
        state=ExchangeState.FINISHED,
    )


def find_opening(tree: Tree, exchange: Exchange, query: Query) -> Exchange | None:
    """Returns the opening that an exchange repeats or extends, if nothing had continued it when the exchange began.

    Both belong to one chat: a transcript grows, or a question is sent again within the idle time. An opening off the
    record may be continued, if the exchange repeats it.
    """
    openings = [other for other in tree if other.parent is None and other.begun <= exchange.begun]
    tree.contents.group(openings)

    def is_free(opening: Exchange) -> bool:
        # An opening that ended after the exchange began was under way then, so its continuation came later.
        end = tree.read_turn_end_or_now(opening, query.now)
        if query.now - end > query.idle_s:
            return False
        # A question off the record stays off the record when it is asked again, whatever continued it meanwhile.
        is_off = opening.state is ExchangeState.OFF and is_same_input(opening, exchange)
        return end > query.now or is_off or not tree.is_continued(opening)

    repeated_openings = [
        opening for opening in openings if is_free(opening) and tree.extends(exchange, opening)
    ]
    if not repeated_openings:
        return None

    def rank(opening: Exchange) -> tuple[int, int, float]:
        messages = tree.contents.get(opening).messages
        return (
            len(opening.inputs),
            len(list_transcript_words(read_text(messages[-1]))) if messages else 0,
            opening.begun,
        )

    return max(repeated_openings, key=rank)


def was_sent_again(tree: Tree, plan: Plan, arrived_at: float) -> bool:
    """Returns whether an exchange of the path that ended after the request arrived has the request's new messages.

    The last of them may be a transcript that has grown there. (The exchange may have begun before the request arrived:
    a busy gateway may read it late.)

    plan: a plan that follows the head of its conversation.
    arrived_at: the time at which the request arrived, in seconds since the epoch.
    """
    new_messages = plan.messages[len(plan.pending) :]
    hasher = plan.query.listing.hasher
    if not new_messages:
        return False
    exchange = plan.match.match_point
    while exchange is not None and (exchange.ended or exchange.begun) > arrived_at:
        last_messages = (tree.contents.get(exchange).messages or [])[-len(new_messages) :]
        is_as_long = len(last_messages) == len(new_messages)
        if is_as_long and repeats(hasher, last_messages, new_messages, may_grow=True):
            return True
        exchange = tree.find_parent(exchange)
    return False


def list_rivals(tree: Tree, match_point: Exchange | None, conversation_row: int | None) -> list[Exchange]:
    """Returns the exchanges that follow a match point already, or the roots of a conversation."""
    if match_point is not None:
        return tree.list_children(match_point)
    return [] if conversation_row is None else tree.list_roots(conversation_row)


def _quotes_last_turn(tree: Tree, query: Query, messages: Sequence[WireMessage]) -> bool:
    """Returns whether a list of one message quotes the last turn of the conversation that it names.

    A front end asks for a title in this way, in whatever words and language.
    """
    own_messages = [message for message in messages if not is_system(message)]
    if query.mode is not MemoryUse.ON or not query.is_named or query.conversation_row is None:
        return False
    if len(own_messages) != 1 or own_messages[0].get("role") != "user":
        return False
    answered_exchanges = [
        exchange
        for exchange in tree
        if exchange.conversation_row == query.conversation_row
        and exchange.reply
        and not is_tombstone(exchange)
    ]
    last_exchange = max(
        (exchange for exchange in answered_exchanges if tree.is_active(exchange, is_named=True)),
        key=tree.make_recency_key,
        default=None,
    )
    if last_exchange is None:
        return False
    tree.contents.group((tree.locate_turn_start(last_exchange), last_exchange))
    question = tree.read_question(last_exchange)
    reply = without_space(read_text(tree.contents.get(last_exchange).shown_reply or {}))
    if not question or not reply or len(question) + len(reply) < _MIN_QUOTE_CHARS:
        return False
    text_before, quotation, text_after = without_space(read_text(own_messages[0])).partition(question)
    return bool(quotation) and reply in text_after and len(text_before) + len(text_after) > len(reply)
