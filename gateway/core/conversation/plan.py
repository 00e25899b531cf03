"""Planning: what a request adds to the stored tree, once it is known where in the tree its list continues.

`plan_turn` finds what is new, what came back in another form and what the client left out at the front;
gateway/core/conversation/active.py decides what is active afterwards. Rules are numbered as in docs/conversations.md.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from gateway.core.conversation.amendments import Amendment, find_amendments
from gateway.core.conversation.canonical import is_user, is_user_or_text
from gateway.core.conversation.exchange import end_offset, ends_off_record, flat, is_tombstone
from gateway.core.conversation.hashed_list import HashedList, MessageSpan
from gateway.core.conversation.head import PathHead, find_head
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match import find_match
from gateway.core.conversation.match_query import Match, MemoryUse, Query
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import (
    RESULT_ROLES,
    WireMessage,
    is_system,
    text_of,
    without_space,
)
from gateway.core.words import transcript_words
from storage.records import REPLY, Atom, Exchange, State, message_key

# A quoted turn has at least so many characters, white space aside: "Hi" and "Hello" are in many messages that quote
# nothing. Chosen, not measured.
_MIN_QUOTE_CHARS = 16


class Plan(Struct, frozen=True):
    """The additions of a request to the tree, and what it needs from it."""

    query: Query
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
    # How many messages at the beginning of the list repeat the last reply as the user heard it.
    heard_count: int = 0
    # How many messages at the beginning of the list repeat a reply that is among `pending`; append mode alone.
    resent_count: int = 0
    # Indices in the exchange's input that are not stored.
    redactions: frozenset[int] = frozenset()
    # The request is off the record: memory is off or only read, or it repeats or continues such a turn.
    off_record: bool = False
    # The request quotes the last turn of its conversation.
    is_quote: bool = False
    # The ids of exchanges with tool results that an upstream has refused: they are sent without their text.
    refused_results: frozenset[int] = frozenset()

    @property
    def is_inactive(self) -> bool:
        """The exchange takes the place of no other exchange, and is active only once a later turn follows it."""
        return self.is_quote or self.query.mode is MemoryUse.APART

    @property
    def follows_head(self) -> bool:
        """Is true if the request goes on from the head of a stored conversation.

        In append mode it is false for a list that repeats stored replies, because that list is matched.
        """
        return self.query.kind is not ConversationKind.CLIENT and self.match.last < 0


class _Continuation(NamedTuple):
    """The place from which a request goes on, and its new messages. The fields are those of `Plan`."""

    match: Match
    new_indices: tuple[int, ...]
    omitted: Sequence[PathElement] = ()
    amendments: Sequence[Amendment] = ()
    pending: Sequence[WireMessage] = ()
    heard_count: int = 0
    resent_count: int = 0


def plan_turn(tree: Tree, query: Query) -> Plan:
    """Plans a request: returns what it will add. Nothing that is stored changes yet. Raises: Missing."""
    listing = query.listing
    match = find_match(tree, query)
    head = find_head(tree, query, match) if query.kind is ConversationKind.APPENDED else None
    continuation = (
        _continue_match(tree, listing, match) if head is None else _continue_head(tree, listing, head)
    )
    match_point, pending = continuation.match.match_point, continuation.pending
    messages = [*pending, *(listing.messages[i] for i in continuation.new_indices)]
    exchange = new_exchange(query, match_point, pending, continuation.new_indices)
    tree.provide_messages(0, messages)
    if match_point is not None:
        conversation_row: int | None = match_point.conversation_row
    elif query.is_named:
        conversation_row = query.conversation_row
    else:
        opening = find_opening(tree, exchange, query)
        conversation_row = opening.conversation_row if opening else None
    rivals = rivals_of(tree, match_point, conversation_row)
    is_list_alone = match_point is None and query.kind is ConversationKind.CLIENT
    return Plan(
        query=query,
        match=continuation.match,
        new_indices=continuation.new_indices,
        conversation_row=conversation_row,
        exchange=exchange,
        messages=messages,
        omitted=tuple(continuation.omitted),
        amendments=tuple(continuation.amendments),
        pending=tuple(pending),
        heard_count=continuation.heard_count,
        resent_count=continuation.resent_count,
        redactions=find_redactions(tree, exchange, messages, len(pending), rivals),
        off_record=query.mode not in (MemoryUse.ON, MemoryUse.APART)
        or _repeats_off_record(tree, exchange, match_point, rivals, follows_head=head is not None),
        is_quote=is_list_alone and _quotes_last_turn(tree, query, messages),
    )


def _continue_head(tree: Tree, listing: HashedList, head: PathHead) -> _Continuation:
    """Returns how a list of new messages goes on from the head of its conversation (append mode)."""
    omitted: Sequence[PathElement] = tree.elements(head.exchange)
    amendments: Sequence[Amendment] = ()
    if head.exchange is not None and head.heard_count:
        # The last reply came back as it was spoken, before the message that interrupted it.
        omitted = omitted[:-1]
        amendments = [Amendment(head.exchange.id, None, MessageSpan(0, head.heard_count))]
    return _Continuation(
        match=Match(head.exchange),
        new_indices=tuple(range(head.new_start, len(listing))),
        omitted=omitted,
        amendments=amendments,
        pending=head.pending,
        heard_count=head.heard_count,
        resent_count=head.resent_count,
    )


def _continue_match(tree: Tree, listing: HashedList, match: Match) -> _Continuation:
    """Returns how a client's list goes on from the stored reply that was found in it."""
    # Results of tools that came back within an altered reply are new as well.
    results = [i for i in range(match.first + 1, max(match.last, 0)) if listing.role(i) in RESULT_ROLES]
    new_indices = (*results, *range(match.last + 1, len(listing)))
    if match.match_point is None:
        return _Continuation(match, new_indices)
    amendments = [*find_amendments(tree, listing, match)]
    return _Continuation(
        match=match,
        new_indices=new_indices,
        omitted=_find_omitted(tree, listing, match, amendments),
        amendments=amendments,
    )


def lowest_change_depth(tree: Tree, plan: Plan) -> int | None:
    """Returns the depth from which on this request may change anything; None: nothing is known yet."""
    match_point = plan.match.match_point
    if match_point is None:
        return None
    amended = [tree.get(amendment.exchange_row) for amendment in plan.amendments]
    changed = [match_point, tree.turn_start(match_point), *(each for each in amended if each is not None)]
    return min(exchange.depth for exchange in changed)


def new_exchange(
    query: Query, match_point: Exchange | None, pending: Sequence[WireMessage], new_indices: Sequence[int]
) -> Exchange:
    """Returns the exchange of this request, with a temporary id that no stored exchange has."""
    listing, hasher = query.listing, query.listing.hasher
    inputs = [hasher.atoms(m) for m in pending] + [listing.atoms[i] for i in new_indices]
    media = [hasher.media_digest(m) for m in pending] + [listing.media_digest(i) for i in new_indices]
    return Exchange(
        id=0,
        conversation_row=0 if match_point is None else match_point.conversation_row,
        parent=None if match_point is None else match_point.id,
        depth=0 if match_point is None else match_point.depth + 1,
        offset=0 if match_point is None else end_offset(match_point),
        inputs=tuple(inputs),
        media=tuple(media),
        reply=None,
        path_hash=b"",
        reply_key=None,
        begun=query.now,
        touched=query.now,
        state=State.FINISHED,
    )


def find_opening(tree: Tree, exchange: Exchange, query: Query) -> Exchange | None:
    """Returns the opening that an exchange repeats or extends, if nothing had continued it when the exchange began.

    Both belong to one chat: a transcript grows, or a question is sent again within the idle time. An opening off the
    record may be continued, if the exchange repeats it.
    """
    openings = [other for other in tree if other.parent is None and other.begun <= exchange.begun]
    tree.group_for_loading(openings)

    def is_free(opening: Exchange) -> bool:
        # An opening that ended after the exchange began was under way then, so what continues it came later.
        end = tree.turn_end_or_now(opening, query.now)
        if query.now - end > query.idle_s:
            return False
        # What was off the record is so when it is asked again, whatever continued it meanwhile.
        is_off = opening.state is State.OFF and tree.is_same_input(opening, exchange)
        return end > query.now or is_off or not tree.is_continued(opening)

    repeated = [opening for opening in openings if is_free(opening) and tree.extends(exchange, opening)]
    if not repeated:
        return None

    def rank(opening: Exchange) -> tuple[int, int, float]:
        messages = tree.content(opening).messages
        return (
            len(opening.inputs),
            len(transcript_words(text_of(messages[-1]))) if messages else 0,
            opening.begun,
        )

    return max(repeated, key=rank)


def rivals_of(tree: Tree, match_point: Exchange | None, conversation_row: int | None) -> list[Exchange]:
    """Returns the exchanges that follow a match point already, or the roots of a conversation."""
    if match_point is not None:
        return tree.children(match_point)
    return [] if conversation_row is None else tree.roots(conversation_row)


def recorded_indices(exchange: Exchange, rivals: Iterable[Exchange]) -> set[int]:
    """Returns the indices of messages, without the last one, that another request at this position has stored."""
    stored: set[int] = set()
    for other in rivals:
        n = len(other.inputs)
        if n < len(exchange.inputs) and other.inputs == exchange.inputs[:n] and not is_tombstone(other):
            stored.update(i for i in range(n) if i not in other.redactions)
    return stored


def _repeats_off_record(
    tree: Tree,
    exchange: Exchange,
    match_point: Exchange | None,
    rivals: Iterable[Exchange],
    *,
    follows_head: bool,
) -> bool:
    """Returns whether a turn that was off the record is asked again, or gets results of its tools."""
    repeated = [other for other in rivals if is_asked_again(tree, other, exchange, follows_head=follows_head)]
    if match_point is not None and not any(map(is_user, exchange.inputs)):
        repeated.append(match_point)
    return any(map(ends_off_record, repeated))


def is_asked_again(tree: Tree, other: Exchange, exchange: Exchange, *, follows_head: bool) -> bool:
    """Returns whether a request repeats another at its position, so that both are on or off the record together.

    If the client sends new messages alone, a request off the record does not count, since each request decides for
    itself. A request off the record that began later, to ask about the same message, does not count either.
    """
    lacks_content = other.state is State.OFF and (follows_head or other.begun > exchange.begun)
    return tree.is_same_input(other, exchange) and not lacks_content


def _quotes_last_turn(tree: Tree, query: Query, messages: Sequence[WireMessage]) -> bool:
    """Returns whether a list of one message quotes the last turn of the conversation that it names.

    A front end asks for a title in this way, in whatever words and language.
    """
    spoken = [m for m in messages if not is_system(m)]
    if query.mode is not MemoryUse.ON or not query.is_named or query.conversation_row is None:
        return False
    if len(spoken) != 1 or spoken[0].get("role") != "user":
        return False
    answered = [
        exchange
        for exchange in tree
        if exchange.conversation_row == query.conversation_row
        and exchange.reply
        and not is_tombstone(exchange)
    ]
    last_exchange = max(
        (exchange for exchange in answered if tree.is_active(exchange, is_named=True)),
        key=lambda exchange: (tree.touched_at(exchange), exchange.begun, exchange.id),
        default=None,
    )
    if last_exchange is None:
        return False
    tree.group_for_loading((tree.turn_start(last_exchange), last_exchange))
    question = tree.question(last_exchange)
    reply = without_space(text_of(tree.content(last_exchange).shown_reply or {}))
    if not question or not reply or len(question) + len(reply) < _MIN_QUOTE_CHARS:
        return False
    text_before, quoted, text_after = without_space(text_of(spoken[0])).partition(question)
    return bool(quoted) and reply in text_after and len(text_before) + len(text_after) > len(reply)


def find_redactions(
    tree: Tree,
    exchange: Exchange,
    messages: Sequence[WireMessage],
    pending_count: int,
    rivals: Iterable[Exchange],
) -> frozenset[int]:
    """Returns the indices of the messages of an exchange that must not be stored.

    Such a message equals a forgotten message, or answers such a message. The last message is never among them: it is
    what is said now, and `Plan.off_record` decides of the whole turn whether that is on the record. The first
    `pending_count` messages are on the record, and so are messages that a rival has stored.
    """
    tombstone_atoms = _tombstone_atoms(tree, exchange.begun)
    if not tombstone_atoms and not tree.forgotten_hashes:
        return frozenset()
    recorded = recorded_indices(exchange, rivals)
    forgotten = {
        i
        for i, atoms in enumerate(exchange.inputs[:-1])
        if i >= pending_count
        and ((i not in recorded and atoms in tombstone_atoms) or message_key(atoms) in tree.forgotten_hashes)
    }
    return frozenset(redact_with_answers(forgotten, messages[:-1]))


def redact_with_answers(forgotten: Container[int], messages: Sequence[WireMessage]) -> set[int]:
    """Returns the indices of forgotten messages and of their answers, up to the user's next message."""
    redactions: set[int] = set()
    for i, message in enumerate(messages):
        if i in forgotten or (i - 1 in redactions and message.get("role") != "user"):
            redactions.add(i)
    return redactions


def _tombstone_atoms(tree: Tree, begun: float) -> set[tuple[Atom, ...]]:
    """Returns the atoms of the loaded messages that were forgotten, or off the record before a request began."""
    forgotten = (
        atoms
        for exchange in tree
        if (exchange.redactions or is_tombstone(exchange))
        and not (exchange.state is State.OFF and exchange.begun > begun)
        for i, atoms in (*enumerate(exchange.inputs), (REPLY, exchange.reply or ()))
        if is_tombstone(exchange) or i in exchange.redactions
    )
    return {atoms for atoms in forgotten if is_user_or_text(atoms)}


def _find_omitted(
    tree: Tree, listing: HashedList, match: Match, amendments: Iterable[Amendment]
) -> list[PathElement]:
    """Returns the front of the match point's path that the client left out before its list."""
    assert match.match_point is not None  # else the list continues nothing
    elements = as_they_came_back(tree.elements(match.match_point), listing, amendments)
    front = [atom for element in elements[:-1] for atom in element.atoms]
    if front and listing.flat(len(listing))[: len(front)] == front:
        # The list begins where the path begins, though the path may have the same messages twice.
        return []
    return trimmed_front(elements, listing.flat(match.last + 1))


def as_they_came_back(
    elements: Iterable[PathElement], listing: HashedList, amendments: Iterable[Amendment]
) -> list[PathElement]:
    """Returns a path with its replies, also cancelled ones, in the form in which they came back."""
    replies = {a.exchange_row: range(*a.reply) for a in amendments if a.reply}
    path: list[PathElement] = []
    for element in elements:
        exchange = element.exchange
        if element.message_index >= 0 or exchange.id not in replies:
            path.append(element)
        # An exchange without a stored reply ends with its last input.
        last_index = len(exchange.inputs) - 1 if exchange.reply is None else -1
        if exchange.id in replies and element.message_index == last_index:
            atoms = tuple(atom for i in replies[exchange.id] for atom in listing.atoms[i])
            path.append(PathElement(exchange, -1, atoms, exchange.offset + len(flat(exchange))))
    return path


def trimmed_front(elements: Sequence[PathElement], listed: Sequence[Atom]) -> list[PathElement]:
    """Returns the front of a path before a trimmed list; []: the list is no proper tail of the path.

    The first message of the tail has to be the same word for word.
    """
    # Each atom of the path with the index of its element.
    path = [(atom, index) for index, element in enumerate(elements) for atom in element.atoms]
    # The comparison is repeated without calls and results, because some clients drop tool rounds.
    for kinds in (b"uatc", b"ua"):
        if listed[:1] and listed[0][:1] not in kinds:
            continue  # the list begins within a tool round, so its client has not dropped those
        list_atoms = [atom for atom in listed if atom[:1] in kinds]
        path_atoms = [(atom, index) for atom, index in path if atom[:1] in kinds]
        if not list_atoms or len(list_atoms) >= len(path_atoms):
            continue
        tail = path_atoms[len(path_atoms) - len(list_atoms) :]
        first_atom, front_length = tail[0]
        if not (list_atoms[0] == first_atom == elements[front_length].atoms[0]):
            continue
        if all(
            _may_be_same(of_list, of_path) for of_list, (of_path, _) in zip(list_atoms, tail, strict=True)
        ):
            return list(elements[:front_length])
    return []


def _may_be_same(listed: Atom, stored: Atom) -> bool:
    """Returns whether a stored message may be the listed one: a user's template or a pruned result differs in words."""
    return listed == stored or (listed[:1] == stored[:1] and listed[:1] in b"ut")
