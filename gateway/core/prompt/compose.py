"""Composing: puts stored messages, notes and hidden tool rounds around the messages of the client's list.

The client's own messages go upstream contiguous and unchanged, but for results of tools that come late in a stored
conversation: they move to their calls. A note hangs before a user message's text; a hidden round takes the place of the
assistant message in which the client has only what was streamed, and together they say the same. Everything is found
by its place on the path, so that the bytes of one turn are the beginning of the next's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import (
    PRIVATE,
    HashedList,
    WireMessage,
    call_id,
    call_objects,
    is_user,
    join_texts,
    rest_after,
    text_of,
    visible_reply,
    without_space,
)
from gateway.core.conversation.fillers import with_fillers_of, without_fillers
from gateway.core.conversation.plan import Plan, rivals_of
from gateway.core.conversation.private import (
    PrivateFields,
    is_nudge,
    private_of,
    without_private,
)
from gateway.core.conversation.provider_fields import (
    FIELDS,
    for_another_model,
    refilled,
    refilled_calls,
    with_stand_in,
)
from gateway.core.conversation.tree import Content, PathElement, Tree, end_offset, is_tombstone
from gateway.core.message_text import with_text_before, without_text_before
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, Shown, last_shown, shown_by_note
from gateway.core.subsequence import lcs
from storage.commands import Additions
from storage.records import Atom, Exchange

UNANSWERED = "No result was given."
REFUSED_RESULT = "The call was made. Its result cannot be told: the provider of the model refused to read it."
# The most stretches of `subsequence.LCS_ATOMS` in which a list is compared with its path. Lists differ in more than one
# where a client has pruned results. Not measured: it bounds the time.
_MAX_STRETCHES = 8
# The result of a call with an unknown name begins so.
NO_TOOL = "Error: there is no tool"


class InsertedMessage(Struct, frozen=True):
    """A message that is inserted before the client's, stored or moved from its list, with the note before its text."""

    message: WireMessage
    # Its content, without the note.
    atoms: tuple[Atom, ...]
    # Its offset on the path (`PathElement.at`); None: it has none yet.
    at: tuple[int, int] | None = None
    note: str = ""
    # The private fields of the stored message.
    private: PrivateFields = msgspec.field(default_factory=PrivateFields)
    # What it shows of memory blocks, with its note.
    shown: Shown = msgspec.field(default_factory=dict)

    @classmethod
    def of(
        cls, message: WireMessage, atoms: tuple[Atom, ...], at: tuple[int, int] | None, note: str = ""
    ) -> InsertedMessage:
        if not note and PRIVATE not in message:  # as nearly all of a history
            return cls(with_stand_in(message), atoms, at)
        shown = shown_by_note(note) if note else _shown_in(message)
        sent = with_text_before(with_stand_in(without_private(message)), note)
        return cls(sent, atoms, at, note, private_of(message), shown)

    @property
    def is_nudge(self) -> bool:
        """True for a message of an agent's rules to the model, which opens no turn."""
        return is_nudge({PRIVATE: self.private})


class Composition(Struct):
    """The gateway's messages and texts around the client's list. Indices are those of the request's own `messages`."""

    # Messages before the first of the client's that is not a system message.
    inserted: Sequence[InsertedMessage] = ()
    # The element of the path that each client message is; empty where the list is the path word for word.
    list_at: dict[int, PathElement] = msgspec.field(default_factory=dict)
    # The notes before the texts of these messages.
    notes: dict[int, str] = msgspec.field(default_factory=dict)
    # Of all notes, by estimate.
    note_tokens: int = 0
    # The messages that replace a client message; an empty list where `inserted` has it.
    replacements: dict[int, list[WireMessage]] = msgspec.field(default_factory=dict)
    # The hidden rounds among these, with their private fields.
    stored_rounds: dict[int, list[WireMessage]] = msgspec.field(default_factory=dict)
    # Hidden rounds stand after other messages than they did: the client has left some out, or put a summary there.
    moves_rounds: bool = False
    # How many hidden rounds of the last prompt could not be restored, so that its stable prefix is broken.
    unrestored_rounds: int = 0
    # What notes and hidden rounds show of memory blocks.
    shown: dict[int, Shown] = msgspec.field(default_factory=dict)

    def without_notes(self) -> Composition:
        """Returns the composition without its notes."""
        inserted = [
            replace(each, message=without_text_before(each.message, each.note), note="")
            if each.note
            else each
            for each in self.inserted
        ]
        return replace(self, inserted=inserted, notes={}, note_tokens=0)

    def without_results(self, *, last: bool) -> Composition:
        """Returns the composition without the results of tools that a reply has followed; itself if it has none.

        last: without those after the last reply instead.
        """
        replies = (n for n, each in enumerate(self.inserted) if each.message.get("role") == "assistant")
        end = max(replies, default=0)
        inserted = [
            replace(each, message=without_result(each.message)) if last is (n >= end) else each
            for n, each in enumerate(self.inserted)
        ]
        replacements = self.replacements if last else without_results(self.replacements)
        if (inserted, replacements) == ([*self.inserted], self.replacements):
            return self
        return replace(self, inserted=inserted, replacements=replacements)

    def put_note(self, index: int, note: str, tokens: int, shown: Shown | None = None) -> None:
        """Puts a note before a message.

        tokens: the estimated tokens of the note.
        shown: the blocks that it shows; None: they are read from the note.
        """
        self.notes[index] = note
        self.note_tokens += tokens
        if shown := shown_by_note(note) if shown is None else shown:
            self.shown[index] = shown


def leaves_earlier_unread(reply: WireMessage | None) -> bool:
    """Returns whether a reply was made without the results before the reply before it: its upstream refused them."""
    return reply is not None and bool(private_of(reply).get("unread_earlier"))


def without_result(message: WireMessage) -> WireMessage:
    """Returns the message; a tool's result as one that an upstream has refused to read."""
    return {**message, "content": REFUSED_RESULT} if message.get("role") == "tool" else message


def without_results(rounds: Mapping[int, Sequence[WireMessage]]) -> dict[int, list[WireMessage]]:
    """Returns hidden rounds, by the index of the message that they replace, with their results as `without_result`."""
    return {index: [*map(without_result, messages)] for index, messages in rounds.items()}


def _shown_in(message: WireMessage) -> Shown:
    """Returns what a gateway message shows of memory blocks: the result of an edit, or a change within a turn."""
    shown = private_of(message).get("shown_blocks")
    return shown if isinstance(shown, dict) else NOTHING_SHOWN


def _shown_in_rounds(content: Content) -> Shown:
    """Returns what the hidden rounds of a reply show of memory blocks."""
    return last_shown(map(_shown_in, content.full or ()), NOTHING_SHOWN)


def known_note(tree: Tree, plan: Plan, index: int) -> str | None:
    """Returns the note that the i-th new message has already; "" if nothing was found for it, None if it has none."""
    prefix = plan.exchange.inputs[: index + 1]
    rivals = rivals_of(tree, plan.match.match_point, plan.conversation)
    alike = [other for other in rivals if index in other.notes and other.inputs[: index + 1] == prefix]
    if not alike:
        return None
    return max(alike, key=lambda other: (tree.touched_at(other), other.begun, other.id)).notes[index]


def compose(
    tree: Tree,
    plan: Plan,
    offered: Container[str],
    fresh: Mapping[int, str],
    additions: Additions | None = None,
) -> Composition:
    """Returns what goes around the client's list.

    offered: names of the gateway tools in this request.
    fresh: index among the new messages -> note.
    additions: to a list that equals its path word for word; positions are counted then. None: what stands
        where is found by comparing list and path.

    Raises: Missing.
    """
    if plan.follows_head:
        return _compose_after_head(tree, plan, offered, fresh)
    listing, match = plan.query.listing, plan.match
    composition = Composition([*_omitted_messages(tree, plan, offered)] if plan.omitted else ())
    for i, note in fresh.items():
        if note:
            composition.put_note(listing.positions[plan.new[i]], note, estimate_tokens(note))
    if match.match_point is None:
        return composition
    if additions is not None:
        replies = _put_notes_by_count(listing, additions, composition)
    else:
        path = tree.elements(match.match_point)
        replies = _put_notes_by_comparison(listing, match.last + 1, path, composition)
    if match.altered:
        replies[match.last] = match.match_point
    # Where only cancelled requests went on after an altered reply, its stored words are still those that were made.
    for amendment in plan.amendments:
        exchange = tree.get(amendment.exchange)
        if amendment.reply and exchange is not None and exchange.id != match.match_point.id:
            replies.update(dict.fromkeys(range(*amendment.reply), exchange))
    if replies:
        _restore_rounds(tree, plan, replies, offered, composition)
    return composition


def _put_notes_by_count(
    listing: HashedList, additions: Additions, composition: Composition
) -> dict[int, Exchange]:
    """Puts the notes of a path into its list, which is that path word for word. Returns replies by their messages.

    Both have the same atoms, so the number of those before a message identifies it.
    """
    replies: dict[int, Exchange] = {}
    for earlier in additions.notes:
        text = earlier.utf8.decode("utf-8", "surrogatepass")
        if not earlier.tokens:  # cached: the next turn has the same notes
            earlier.tokens, earlier.shown = estimate_tokens(text), shown_by_note(text) or None
        index = listing.positions[listing.message_at(earlier.at)]
        composition.put_note(index, text, earlier.tokens, earlier.shown or NOTHING_SHOWN)
    for exchange in additions.rounds:
        # Clients may keep a reply in several messages; it has a place of its own only if it is one.
        end = end_offset(exchange)
        first = listing.message_at(end - len(exchange.reply or ()))
        replies.update(dict.fromkeys(range(first, listing.message_at(end - 1) + 1), exchange))
    return replies


def _put_notes_by_comparison(
    listing: HashedList, end: int, path: Sequence[PathElement], composition: Composition
) -> dict[int, Exchange]:
    """Puts the notes of a path into any list, before message `end`. Returns the replies by their messages."""
    replies: dict[int, Exchange] = {}
    for i, element in _aligned(listing, end, path):
        composition.list_at.setdefault(listing.positions[i], element)
        if element.position == -1:
            replies[i] = element.exchange
        elif is_user(element.atoms) and (note := element.exchange.notes.get(element.position)):
            composition.put_note(listing.positions[i], note, 0)
    # One message may be met for several atoms.
    composition.note_tokens = sum(map(estimate_tokens, composition.notes.values()))
    return replies


def _aligned(listing: HashedList, end: int, elements: Sequence[PathElement]) -> list[tuple[int, PathElement]]:
    """Returns pairs of a message of the list and the path's element that is equal to it, oldest first."""
    path = [(atom, element) for element in elements for atom in element.atoms]
    pairs = lcs(listing.flat(end), [atom for atom, _ in path], _MAX_STRETCHES)
    return [(listing.message_at(i), path[j][1]) for i, j in reversed(pairs)]


def _sendable(elements: Sequence[PathElement], listing: HashedList) -> list[PathElement]:
    """Returns the elements that may be sent: without what was forgotten or off the record, and what needs that.

    Chat templates refuse an answer without its question, two questions in a row, and a result without its call.
    """
    if not any(map(_is_gone, elements)):
        return [*elements]
    # Each group has a user's messages and what answers them.
    groups: list[list[PathElement]] = []
    for element in elements:
        if not groups or (is_user(element.atoms) and not is_user(groups[-1][-1].atoms)):
            groups.append([])
        groups[-1].append(element)
    sendable: list[PathElement] = []
    is_continued_by_list = bool(len(listing)) and not is_user(listing.atoms[0])
    # If a message of a group is gone, the whole group is left out, unless the other messages can stand alone.
    for group in groups:
        left = [element for element in group if not _is_gone(element)]
        gone = [element for element in group if _is_gone(element)]
        if not gone or (
            all(is_user(element.atoms) for element in gone) and is_user(left[0].atoms if left else ())
        ):
            sendable += left
        elif is_continued_by_list and group is groups[-1]:
            # What the list begins with belongs to this group, so nothing older may stand right before it.
            return []
    return sendable


def is_resent(plan: Plan, exchange: Exchange) -> bool:
    """Returns whether a reply of the path goes upstream again: not where the question that it answers is gone."""
    return any(each.exchange.id == exchange.id for each in _sendable(plan.omitted, plan.query.listing))


def _is_gone(element: PathElement) -> bool:
    exchange = element.exchange
    return element.position in exchange.redactions or is_tombstone(exchange)


def _heard_with_rounds(tree: Tree, plan: Plan, offered: Container[str]) -> list[WireMessage] | None:
    """Returns the last reply as it was heard, with its hidden rounds, as it is sent from now on (append mode).

    None: it has no hidden rounds, or they cannot be put back.
    """
    match_point, messages = plan.match.match_point, plan.query.listing.messages[: plan.heard_count]
    if match_point is None or not match_point.has_full or not messages:
        return None
    reply = _as_clients_resend(visible_reply(messages) if len(messages) > 1 else messages[0])
    is_same = _is_of_same_model(match_point, plan)
    return put_back(tree.content(match_point), reply, None, offered, is_same_model=is_same)


class _SentMessage(NamedTuple):
    """A message that is sent after the head of a stored conversation, or before it."""

    content: InsertedMessage
    # Its index in the client's list, where it may stay as it came; None: the gateway inserts it.
    list_index: int | None = None

    @property
    def role(self) -> object:
        return self.content.message.get("role")

    @property
    def result_id(self) -> str:
        """The id of the call that it answers, as `call_id` returns it: some models give their calls none."""
        return str(self.content.message.get("tool_call_id"))


def _compose_after_head(
    tree: Tree, plan: Plan, offered: Container[str], fresh: Mapping[int, str]
) -> Composition:
    """Returns what goes around a list that goes on from a head. The end of the list that is in order stays there."""
    listing, match_point = plan.query.listing, plan.match.match_point
    heard = _heard_with_rounds(tree, plan, offered)
    sent = [_SentMessage(each) for each in _omitted_messages(tree, plan, offered)]
    sent += _heard_messages(plan, heard)
    sent += _messages_without_reply(plan, fresh)
    sent = _with_calls_and_results(sent)
    is_unrestored = (
        match_point is not None and match_point.has_full and plan.heard_count > 0 and heard is None
    )
    composition = Composition(unrestored_rounds=int(is_unrestored))
    moved = set(range(len(listing)))
    next_index = len(listing)
    while sent and (index := sent[-1].list_index) is not None and index < next_index:
        message = sent.pop().content
        if message.note:
            tokens = estimate_tokens(message.note)
            composition.put_note(listing.positions[index], message.note, tokens, message.shown)
        moved.remove(index)
        next_index = index
    composition.inserted = [each.content for each in sent]
    composition.replacements = {listing.positions[i]: [] for i in moved}
    return composition


def _heard_messages(plan: Plan, with_rounds: Sequence[WireMessage] | None) -> Iterator[_SentMessage]:
    """Yields the last reply as it was heard. with_rounds: with its hidden rounds; None: without any."""
    match_point, listing = plan.match.match_point, plan.query.listing
    if match_point is None or not plan.heard_count:
        return
    at = match_point.depth, plan.exchange.offset - len(match_point.reply or ())
    atoms = tuple(listing.flat(plan.heard_count))
    messages = listing.messages[: plan.heard_count] if with_rounds is None else with_rounds
    is_same = _is_of_same_model(match_point, plan)
    for i, message in enumerate(messages if is_same else map(for_another_model, messages)):
        yield _SentMessage(InsertedMessage.of(message, atoms, at), i if with_rounds is None else None)


def _messages_without_reply(plan: Plan, fresh: Mapping[int, str]) -> Iterator[_SentMessage]:
    """Yields the messages that have no reply yet: held ones, then those of the list that do not repeat the last one."""
    listing, exchange, pending = plan.query.listing, plan.exchange, len(plan.pending)
    ends = accumulate(map(len, exchange.inputs), initial=exchange.offset)
    inputs = [
        InsertedMessage.of(message, atoms, (exchange.depth, offset), fresh.get(i, ""))
        for i, (message, atoms, offset) in enumerate(zip(plan.messages, exchange.inputs, ends, strict=False))
    ]
    yield from map(_SentMessage, inputs[:pending])
    start = plan.heard_count or plan.resent_count
    # What may be heard of a reply that was off the record is sent, and not stored.
    unstored = range(start, len(listing) - len(plan.new))
    others = [InsertedMessage.of(listing.messages[i], listing.atoms[i], None) for i in unstored]
    for i, message in enumerate([*others, *inputs[pending:]], start):
        yield _SentMessage(message, i)


def _omitted_messages(tree: Tree, plan: Plan, offered: Container[str]) -> list[InsertedMessage]:
    """Returns the messages of the path that the client's list has left out, as they are sent."""
    elements = _sendable(plan.omitted, plan.query.listing)
    tree.group_for_loading(element.exchange for element in elements)
    found: list[InsertedMessage] = []
    stored: _StoredExchange | None = None
    for element in elements:
        if stored is None or element.exchange is not stored.exchange:
            stored = _StoredExchange.of(tree, plan, element.exchange)
            if stored.private.get("unread_earlier"):
                found = [replace(each, message=without_result(each.message)) for each in found]
        note = ""
        if element.position >= 0:
            messages = stored.input(element.position)
            if is_user(element.atoms):
                note = element.exchange.notes.get(element.position, "")
        else:
            messages = stored.reply(offered)
        for each in messages:
            message = each if stored.is_same_model else for_another_model(each)
            found.append(InsertedMessage.of(message, element.atoms, element.at, note))
    return found


class _StoredExchange(NamedTuple):
    """An exchange of which messages are sent from what is stored."""

    exchange: Exchange
    content: Content
    # Of its reply.
    private: PrivateFields
    # The model that answers has made the reply.
    is_same_model: bool
    # The upstream does not take the results of tools in its input.
    has_refused_results: bool

    @classmethod
    def of(cls, tree: Tree, plan: Plan, exchange: Exchange) -> _StoredExchange:
        content = tree.content(exchange)
        private = private_of(content.shown_reply or {})
        has_refused = exchange.id in plan.refused_results or bool(private.get("unread"))
        return cls(exchange, content, private, _is_of_same_model(exchange, plan), has_refused)

    def input(self, position: int) -> list[WireMessage]:
        """Returns one message of the input; []: it is not stored."""
        if self.content.messages is None:
            return []
        message = self.content.messages[position]
        # The call itself stays, so its model has read what it made of a block.
        return [without_result(message) if self.has_refused_results else message]

    def reply(self, offered: Container[str]) -> list[WireMessage]:
        """Returns the reply with its hidden rounds, as far as these can be put back; []: there is none."""
        content = self.content
        if content.shown_reply is None:
            return []
        if content.is_step:
            return [*map(_as_clients_resend, content.full or ())]
        reply = _as_clients_resend(content.shown_reply)
        with_rounds = None
        if content.full:
            with_rounds = put_back(content, reply, None, offered, is_same_model=self.is_same_model)
        return with_rounds or [reply]


def _is_of_same_model(exchange: Exchange, plan: Plan) -> bool:
    return bool(plan.query.model) and exchange.model == plan.query.model


def _as_clients_resend(shown_reply: WireMessage) -> WireMessage:
    """Returns a reply as clients send it back, without fields that say nothing (`refusal: null`, no annotations)."""
    return {
        name: value
        for name, value in without_private(shown_reply).items()
        if name in ("role", "content") or value not in (None, [])
    }


def _with_calls_and_results(sent: Sequence[_SentMessage]) -> list[_SentMessage]:
    """Puts results of tools right after their calls, because servers refuse a call without its result, and a result
    without its call.

    A stored call without a result gets one, which is found there again with the next request. A result that comes
    after a later reply has its call in that reply, too. Stored results without a call, or too many, are left out.
    """
    if not any(each.role == "tool" or "tool_calls" in each.content.message for each in sent):
        return [*sent]  # as nearly always, and a history may have thousands
    calls: dict[str, Any] = {}
    starts = [i for i, each in enumerate(sent) if each.role == "assistant"]
    first = sent[: starts[0]] if starts else sent
    ordered = [each for each in first if each.role != "tool" or each.list_index is not None]
    for start, end in pairwise([*starts, len(sent)]):
        ordered += _with_results_first(sent[start], sent[start + 1 : end], calls)
    return ordered


def _with_results_first(
    reply: _SentMessage, following: Sequence[_SentMessage], calls: dict[str, Any]
) -> Sequence[_SentMessage]:
    """Returns a reply, the results of its calls, and the other messages that follow it.

    calls: those of the replies before, by their ids. This reply's are added.
    """
    results = [each for each in following if each.role == "tool"]
    own = {call_id(call) for call in call_objects(reply.content.message)}
    late = {id: calls[id] for each in results if (id := each.result_id) in calls and id not in own}
    with_late = _with_calls(reply, [*late.values()])
    made = call_objects(with_late.content.message)
    calls.update((call_id(call), call) for call in made)
    open_calls = Counter(map(call_id, made))
    answers: list[_SentMessage] = []
    # Of several results of a call the newest one is sent.
    for each in reversed(results):
        if open_calls[each.result_id] > 0 or each.list_index is not None:
            open_calls[each.result_id] -= 1
            answers.insert(0, each)
    missing = open_calls.elements() if reply.list_index is None else ()
    unanswered = [_missing_result(calls[id], reply) for id in missing]
    return [with_late, *unanswered, *answers, *(each for each in following if each.role != "tool")]


def _missing_result(call: Mapping[str, Any], reply: _SentMessage) -> _SentMessage:
    """Returns the result of a stored call that has none."""
    message = {"role": "tool", "tool_call_id": call.get("id"), "content": UNANSWERED}
    return _SentMessage(InsertedMessage(message, (), reply.content.at))


def _with_calls(reply: _SentMessage, more: Sequence[Any]) -> _SentMessage:
    """Returns a reply with more calls. Those of a stored one can be read then: strict servers refuse others."""
    if reply.list_index is not None and not more:
        return reply
    message = reply.content.message
    own = call_objects(message)
    calls = [*(map(_readable, own) if reply.list_index is None else own), *more]
    if calls == (message.get("tool_calls") or []):
        return reply
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return _SentMessage(replace(reply.content, message={**rest, "tool_calls": calls} if calls else rest))


def _readable(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    text = function.get("arguments")
    try:
        is_readable = not isinstance(text, str) or isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        is_readable = False
    return call if is_readable else {**call, "function": {**function, "arguments": "{}"}}


def _restore_rounds(
    tree: Tree, plan: Plan, replies: dict[int, Exchange], offered: Container[str], composition: Composition
) -> None:
    """Puts back hidden rounds and provider fields, where a reply is one message of the list."""
    listing = plan.query.listing
    restored: list[tuple[int, Exchange]] = []
    for i, exchange in replies.items():
        if not (exchange.has_full or exchange.opaque):
            continue
        if _is_one_message(i, exchange, replies):
            restored.append((i, exchange))
        else:
            # What the client has in two messages stays so, and breaks the provider's cache once, too.
            composition.unrestored_rounds += exchange.has_full and i == plan.match.last
    tree.group_for_loading(exchange for _, exchange in restored)
    # The results before this message are not sent again.
    read_from = max(
        (i for i, each in restored if leaves_earlier_unread(tree.content(each).shown_reply)), default=0
    )
    for i, exchange in restored:
        message, content = listing.messages[i], tree.content(exchange)
        is_same = _is_of_same_model(exchange, plan) and listing.atoms[i] == exchange.reply
        if exchange.has_full:
            messages = put_back(content, message, listing.messages[i + 1 :], offered, is_same_model=is_same)
            # A reply that came back cut is sent cut from then on, so that it breaks the provider's cache once: in the
            # request that follows it directly. A tool that is missing breaks it in each request.
            is_new = i == plan.match.last or not _is_offered(content, offered)
            composition.unrestored_rounds += messages is None and is_new
        else:
            full = refilled(message, content.shown_reply or {}) if is_same else None
            messages = None if full is None else [full]
        if messages is None:
            continue
        position = listing.positions[i]
        sent = map(without_result, messages) if i < read_from else messages
        composition.replacements[position] = [*map(without_private, sent)]
        if exchange.has_full:
            composition.stored_rounds[position] = messages
            if listing.message_at(end_offset(exchange) - len(exchange.reply or ())) != i:
                composition.moves_rounds = True
        if shown := _shown_in_rounds(content):
            composition.shown[position] = shown


def _is_one_message(index: int, exchange: Exchange, replies: Mapping[int, Exchange]) -> bool:
    """Returns whether the client has a reply in the one message `index`. replies: by their messages."""
    neighbours = replies.get(index - 1), replies.get(index + 1)
    return all(neighbour is None or neighbour.id != exchange.id for neighbour in neighbours)


def put_back(
    content: Content,
    message: WireMessage,
    after: Sequence[WireMessage] | None,
    offered: Container[str],
    *,
    is_same_model: bool = True,
) -> list[WireMessage] | None:
    """Returns the hidden rounds of a reply, and then the rest of it; None: the message has to stay as it is.

    The rest is what the client's text has beyond what was streamed before the rounds. White space does not count, since
    clients strip it, nor do fillers, which no model is shown: they may be cut or gone. Of a mixed round both halves go
    back or none: results of the client's own calls have to follow.

    message: the reply as the client has it.
    after: the messages after it; None: the history is stored here.
    is_same_model: what only the provider reads may go with it.
    """
    full = content.full or []
    end = 1 + max((i for i, each in enumerate(full) if each["role"] == "tool"), default=-1)
    rounds = full[:end]
    if not is_same_model:
        message, rounds = for_another_model(message), [*map(for_another_model, rounds)]
    if not rounds or not _is_offered(content, offered):
        return None
    rest = _text_after_rounds(content, message, rounds)
    if rest is None:
        return None
    client_made: list[dict[str, Any]] = message.get("tool_calls") or []
    calls = [call for each in rounds for call in each.get("tool_calls") or []]
    client_calls = [call for call in calls if call_id(call) not in content.gateway_calls]
    # A mixed round: the client has its own calls, and the results to them, in its list.
    if client_calls:
        return _put_back_mixed(rounds, client_made, client_calls, after, is_longer=bool(rest))
    if rest:
        # The rest begins with the white space that the model wrote, so that it is sent as the provider has cached it.
        stored = join_texts(map(text_of, full[end:]))
        rest = stored[: len(stored) - len(stored.lstrip())] + rest
    # The client got the provider fields of all rounds in one message; those of the last message come from the store.
    reply = {**_without_provider_fields(message), "content": rest}
    last = full[-1]
    if without_space(rest) != without_space(text_of(without_fillers(last))):
        # Its blocks as they came would bring back what the client has cut, or what came after that.
        last = _without_provider_fields(last)
    if is_same_model and (whole := refilled(reply, last)) is not None:
        return [*rounds, whole]
    return [*rounds, reply] if rest or client_made else [*rounds]


def _text_after_rounds(content: Content, message: WireMessage, rounds: Sequence[WireMessage]) -> str | None:
    """Returns what a reply says after its hidden rounds; None: it does not begin with what was streamed before them."""
    streamed = join_texts(
        text for each in rounds if each["role"] == "assistant" for text in _visible_texts(each)
    )
    text = text_of(without_fillers(with_fillers_of(message, content.shown_reply or {})))
    rest = rest_after(text, streamed)
    return None if rest is None else rest.lstrip()


def _without_provider_fields(message: WireMessage) -> WireMessage:
    return {key: value for key, value in message.items() if key not in FIELDS}


def _is_offered(content: Content, offered: Container[str]) -> bool:
    """Returns whether the tools of a reply's hidden rounds are all there."""
    full = content.full or []
    # Calls by a name that no tool had: none can be offered now, and none was then.
    without_result = {
        str(message.get("tool_call_id"))
        for message in full
        if message["role"] == "tool" and text_of(message).startswith(NO_TOOL)
    }
    gateway_calls = content.gateway_calls - without_result
    calls = (call for message in full for call in message.get("tool_calls") or [])
    return all(call["function"]["name"] in offered for call in calls if call_id(call) in gateway_calls)


def _visible_texts(message: WireMessage) -> tuple[str, str]:
    """Returns what a reader got of a message, fillers aside: its text, followed by the text of its speaking calls."""
    return text_of(message), str(private_of(message).get("spoken", ""))


def _put_back_mixed(
    rounds: Sequence[WireMessage],
    client_made: list[dict[str, Any]],
    client_calls: list[dict[str, Any]],
    after: Sequence[WireMessage] | None,
    *,
    is_longer: bool,
) -> list[WireMessage] | None:
    """Returns the rounds with the client's calls as it has them; None: it lacks some of them, or their results."""
    ids = {call_id(call) for call in client_made}
    answers = {str(each.get("tool_call_id")) for each in after or () if each.get("role") == "tool"}
    if is_longer or len(client_made) != len(client_calls) or not (after is None or ids <= answers):
        return None
    back: list[WireMessage] = []
    for each in rounds:
        calls = each.get("tool_calls") or []
        if any(call in client_calls for call in calls):
            # In the order of the reply: Claude's thoughts stand between the calls.
            given = iter(refilled_calls(client_made, calls))
            each = {
                **each,
                "tool_calls": [next(given, call) if call in client_calls else call for call in calls],
            }
        back.append(each)
    return back
