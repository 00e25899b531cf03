"""Composing: puts stored messages, notes and hidden tool rounds around the messages of the client's list.

The client's own messages go upstream contiguous and unchanged. A note hangs before a user message's text; a hidden
round takes the place of the assistant message in which the client has only what was streamed, and together they say
the same. Everything is found by its place on the path, so that the bytes of one turn are the beginning of the next's.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import (
    Listing,
    WireMessage,
    call_id,
    is_user,
    join_texts,
    rest_after,
    text_of,
)
from gateway.core.conversation.fillers import with_fillers_from, without_fillers
from gateway.core.conversation.plan import Plan, rivals_of
from gateway.core.conversation.private import is_nudge, private_of, without_private
from gateway.core.conversation.provider_fields import FIELDS, refilled, refilled_calls, without_opaque
from gateway.core.conversation.tree import Content, PathElement, Tree, end_offset, is_tombstone
from gateway.core.message_text import with_text_before
from gateway.core.prompt.note import estimate_tokens
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, Shown, last_shown, shown_in_note
from gateway.core.subsequence import lcs
from storage.commands import Additions
from storage.records import Atom, Exchange

UNANSWERED = "No result was given."
WITHHELD = "The call was made. Its result cannot be told: the provider of the model refused to read it."
# The most stretches of `LCS_ATOMS` in which a list is compared with its path. Lists differ in more than one where a
# client has pruned results. Not measured: it bounds the time.
_TABLES = 8
# The result of a call with an unknown name begins so.
NO_TOOL = "Error: there is no tool"


class FilledMessage(Struct, frozen=True):
    """A stored message that is inserted before the client's, with the note before its text."""

    message: WireMessage
    # Its content, without the note.
    atoms: tuple[Atom, ...]
    # Its offset on the path (`PathElement.at`); None: it has none yet.
    at: tuple[int, int] | None = None
    note: str = ""
    # It comes from an agent's rules, for the model, and opens no turn.
    is_nudge: bool = False
    # What it shows of memory blocks, with its note.
    shown: Shown = msgspec.field(default_factory=dict)

    @classmethod
    def of(
        cls, message: WireMessage, atoms: tuple[Atom, ...], at: tuple[int, int] | None, note: str = ""
    ) -> FilledMessage:
        shown = shown_in_note(note) if note else _shown_in(message)
        return cls(
            with_text_before(without_private(message), note), atoms, at, note, is_nudge(message), shown
        )


class Composition(Struct):
    """The gateway's messages and texts around the client's list. Indices are those of the request's own `messages`."""

    # Messages before the first of the client's that is not a system message.
    fill: Sequence[FilledMessage] = ()
    # The element of the path that each client message is; empty where the list is the path word for word.
    list_at: dict[int, PathElement] = msgspec.field(default_factory=dict)
    # The notes before the texts of these messages.
    notes: dict[int, str] = msgspec.field(default_factory=dict)
    # Of all notes, by estimate.
    note_tokens: int = 0
    # The messages that replace a client message; an empty list where `fill` has it.
    hidden: dict[int, list[WireMessage]] = msgspec.field(default_factory=dict)
    # Hidden rounds stand after other messages than they did: the client has left some out, or put a summary there.
    moves_rounds: bool = False
    # How many hidden rounds of the last prompt could not be restored, so that its stable prefix is broken.
    breaks: int = 0
    # What notes and hidden rounds show of memory blocks.
    shown: dict[int, Shown] = msgspec.field(default_factory=dict)

    def put_note(self, index: int, note: str, tokens: int, shown: Shown | None = None) -> None:
        """Puts a note before a message.

        tokens: the estimated tokens of the note.
        shown: the blocks that it shows; None: they are read from the note.
        """
        self.notes[index] = note
        self.note_tokens += tokens
        if shown := shown_in_note(note) if shown is None else shown:
            self.shown[index] = shown


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
    listing, place = plan.query.listing, plan.match
    held = len(plan.held)
    found = Composition(_fill(tree, plan, offered, fresh) if plan.fill or held else ())
    if held:
        # They follow the reply as it was heard, which comes back at the head of the list, or have it among them.
        found.hidden.update((listing.positions[i], []) for i in range(plan.heard or plan.resent))
    for i, note in fresh.items():
        if i >= held and note:
            found.put_note(listing.positions[plan.new[i - held]], note, estimate_tokens(note))
    if place.match_point is None or plan.follows_head:
        return found
    if additions is not None:
        replies = _place_counted(listing, additions, found)
    else:
        replies = _place_compared(listing, place.last + 1, tree.elements(place.match_point), found)
    if place.altered:
        replies[place.last] = place.match_point
    if replies:
        _restore_rounds(tree, plan, replies, offered, found)
    return found


def _place_counted(listing: Listing, additions: Additions, found: Composition) -> dict[int, Exchange]:
    """Puts the notes of a path into its list, which is that path word for word. Returns replies by their messages.

    Both have the same atoms, so the number of those before a message identifies it.
    """
    replies: dict[int, Exchange] = {}
    for earlier in additions.notes:
        text = earlier.utf8.decode("utf-8", "surrogatepass")
        if not earlier.tokens:
            earlier.tokens, earlier.shown = estimate_tokens(text), shown_in_note(text) or None
        index = listing.positions[listing.message_at(earlier.at)]
        found.put_note(index, text, earlier.tokens, earlier.shown or NOTHING_SHOWN)
    for exchange in additions.rounds:
        # Clients may keep a reply in several messages; it has a place of its own only if it is one.
        end = end_offset(exchange)
        first = listing.message_at(end - len(exchange.reply or ()))
        replies.update(dict.fromkeys(range(first, listing.message_at(end - 1) + 1), exchange))
    return replies


def _place_compared(
    listing: Listing, end: int, path: Sequence[PathElement], found: Composition
) -> dict[int, Exchange]:
    """Puts the notes of a path into any list, in front of message `end`. Returns the replies by their messages."""
    replies: dict[int, Exchange] = {}
    for i, element in matches(listing, end, path):
        found.list_at.setdefault(listing.positions[i], element)
        if element.position == -1:
            replies[i] = element.exchange
        elif is_user(element.atoms) and (note := element.exchange.notes.get(element.position)):
            found.put_note(listing.positions[i], note, 0)
    # One message may be met for several atoms.
    found.note_tokens = sum(map(estimate_tokens, found.notes.values()))
    return replies


def matches(listing: Listing, end: int, elements: Sequence[PathElement]) -> list[tuple[int, PathElement]]:
    """Returns pairs of (message of the list, element of the path), oldest first."""
    path = [(atom, element) for element in elements for atom in element.atoms]
    pairs = lcs(listing.flat(end), [atom for atom, _ in path], _TABLES)
    return [(listing.message_at(i), path[j][1]) for i, j in reversed(pairs)]


def _sendable(elements: Sequence[PathElement], listing: Listing) -> list[PathElement]:
    """Returns the elements that may be sent: without what was forgotten or off the record, and what needs that.

    Chat templates refuse an answer without its question, two questions in a row, and a result without its call.
    """
    if not any(map(_is_gone, elements)):
        return [*elements]
    # Each run has a user's messages and what answers them.
    runs: list[list[PathElement]] = []
    for element in elements:
        if not runs or (is_user(element.atoms) and not is_user(runs[-1][-1].atoms)):
            runs.append([])
        runs[-1].append(element)
    found: list[PathElement] = []
    # The list begins within the last of them.
    goes_on = bool(len(listing)) and not is_user(listing.atoms[0])
    # If a message of a run is gone, the whole run is left out, unless the other messages can stand alone.
    for run in runs:
        left = [element for element in run if not _is_gone(element)]
        gone = [element for element in run if _is_gone(element)]
        if not gone or (
            all(is_user(element.atoms) for element in gone) and is_user(left[0].atoms if left else ())
        ):
            found += left
        elif goes_on and run is runs[-1]:
            return []
    return found


def is_shown(plan: Plan, exchange: Exchange) -> bool:
    """Returns whether a reply of the path goes upstream again: not where the question that it answers is gone."""
    return any(each.exchange.id == exchange.id for each in _sendable(plan.fill, plan.query.listing))


def _is_gone(element: PathElement) -> bool:
    return is_tombstone(element.exchange) or element.position in element.exchange.redactions


def _fill(
    tree: Tree, plan: Plan, offered: Container[str], fresh: Mapping[int, str]
) -> Sequence[FilledMessage]:
    """Returns what the client left out, and in append mode the messages of sends that were cancelled."""
    found = list(_left_out(tree, plan, offered))
    offset = plan.exchange.offset
    match_point = plan.match.match_point
    if plan.held and match_point is not None:
        listing, at = plan.query.listing, (match_point.depth, offset - len(match_point.reply or ()))
        heard = range(plan.heard)
        found += [FilledMessage.of(listing.messages[i], listing.atoms[i], at) for i in heard]
    for i, message in enumerate(plan.held):
        atoms = plan.exchange.inputs[i]
        found.append(FilledMessage.of(message, atoms, (plan.exchange.depth, offset), fresh.get(i, "")))
        offset += len(atoms)
    return _answered(found, plan.query.listing.messages) if plan.follows_head else found


def _left_out(tree: Tree, plan: Plan, offered: Container[str]) -> Iterator[FilledMessage]:
    elements = _sendable(plan.fill, plan.query.listing)
    tree.load_together(element.exchange for element in elements)
    for element in elements:
        exchange, content = element.exchange, tree.content(element.exchange)
        if element.position >= 0:
            if content.messages is not None:
                note = exchange.notes.get(element.position, "") if is_user(element.atoms) else ""
                message = content.messages[element.position]
                if exchange.id in plan.withheld:
                    # The call itself stays, so its model has read what it made of a block.
                    message = {**message, "content": WITHHELD}
                yield FilledMessage.of(message, element.atoms, element.at, note)
        elif content.shown_reply is not None:
            is_same = bool(plan.query.model) and exchange.model == plan.query.model
            if content.is_step:
                shown_reply = [
                    _bare(each if is_same else without_opaque(each)) for each in content.full or ()
                ]
            else:
                whole = _bare(content.shown_reply if is_same else without_opaque(content.shown_reply))
                shown_reply = put_back(content, whole, None, offered, is_same_model=is_same) or [whole]
            for each in shown_reply:
                yield FilledMessage.of(each, element.atoms, element.at)


def _bare(shown_reply: WireMessage) -> WireMessage:
    """Returns a reply as clients send it back, without fields that say nothing (`refusal: null`, no annotations)."""
    return {
        name: value
        for name, value in without_private(shown_reply).items()
        if name in ("role", "content") or value not in (None, [])
    }


def _answered(fill: Sequence[FilledMessage], new: Sequence[WireMessage]) -> list[FilledMessage]:
    """Gives a result to calls that were never answered, where the history is stored here, so that they block nothing.

    new: what follows. The result directly follows the call, where it is found again with the next request.
    Strict servers refuse calls that they cannot read as well, such as one that was cut off.
    """
    found = []
    whole = [*(each.message for each in fill), *new]
    for i, each in enumerate(fill):
        made = each.message.get("tool_calls")
        if not made:
            found.append(each)
            continue
        calls = [_readable(call) for call in made if isinstance(call, dict)] if isinstance(made, list) else []
        if calls != made:
            rest = {name: value for name, value in each.message.items() if name != "tool_calls"}
            each = replace(each, message={**rest, "tool_calls": calls} if calls else rest)
        found.append(each)
        results = takewhile(lambda message: message.get("role") == "tool", whole[i + 1 :]) if calls else ()
        known = {str(message.get("tool_call_id")) for message in results}
        for call in calls:
            if call_id(call) not in known:
                message = {"role": "tool", "tool_call_id": call.get("id"), "content": UNANSWERED}
                found.append(FilledMessage(message, (), each.at))
    return found


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
    tree: Tree, plan: Plan, replies: dict[int, Exchange], offered: Container[str], found: Composition
) -> None:
    """Puts back hidden rounds, and what only its provider reads, where a reply is one message of the list."""
    listing, model = plan.query.listing, plan.query.model
    restored: list[tuple[int, Exchange]] = []
    for i, exchange in replies.items():
        if exchange.hidden or exchange.opaque:
            neighbours = replies.get(i - 1), replies.get(i + 1)
            if not any(neighbour is not None and neighbour.id == exchange.id for neighbour in neighbours):
                restored.append((i, exchange))
    tree.load_together(exchange for _, exchange in restored)
    for i, exchange in restored:
        message, content = listing.messages[i], tree.content(exchange)
        is_same = bool(model) and exchange.model == model and listing.atoms[i] == exchange.reply
        if exchange.hidden:
            messages = put_back(content, message, listing.messages[i + 1 :], offered, is_same_model=is_same)
            # A reply that came back cut stays so: only the turn after it finds another prompt before it.
            found.breaks += messages is None and (i == plan.match.last or not _is_offered(content, offered))
        else:
            full = refilled(message, content.shown_reply or {}) if is_same else None
            messages = None if full is None else [full]
        if messages is not None:
            found.hidden[listing.positions[i]] = [*map(without_private, messages)]
            if exchange.hidden and listing.message_at(end_offset(exchange) - len(exchange.reply or ())) != i:
                found.moves_rounds = True
            if shown := _shown_in_rounds(content):
                found.shown[listing.positions[i]] = shown


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
    full = content.full
    if full is None:
        return None
    last = max((i for i, each in enumerate(full) if each["role"] == "tool"), default=-1)
    before = full[: last + 1] if is_same_model else [without_opaque(each) for each in full[: last + 1]]
    calls = [call for each in before for call in each.get("tool_calls") or []]
    client_made: list[dict[str, Any]] = message.get("tool_calls") or []
    streamed = join_texts(
        text for each in before if each["role"] == "assistant" for text in _visible_texts(each)
    )
    rest = rest_after(
        text_of(without_fillers(with_fillers_from(message, content.shown_reply or {}))), streamed
    )
    if not before or rest is None or not _is_offered(content, offered):
        return None
    rest = rest.lstrip()
    client_calls = [call for call in calls if call_id(call) not in content.gateway_calls]
    # A mixed round: the client has its own calls, and the results to them, in its list.
    if client_calls:
        return _put_back_mixed(before, client_made, client_calls, after, is_longer=bool(rest))
    own = join_texts(map(text_of, full[last + 1 :]))
    # White space as the model made it.
    rest = rest and own[: len(own) - len(own.lstrip())] + rest
    # What the client got of these fields is that of all rounds.
    end = {**{key: value for key, value in message.items() if key not in FIELDS}, "content": rest}
    whole = refilled(end, full[-1]) if is_same_model else None
    if whole is None and not rest and not client_made:
        return list(before)
    return [*before, whole or end]


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
    before: Sequence[WireMessage],
    client_made: list[dict[str, Any]],
    client_calls: list[dict[str, Any]],
    after: Sequence[WireMessage] | None,
    *,
    is_longer: bool,
) -> list[WireMessage] | None:
    ids = {call_id(call) for call in client_made}
    answers = {str(each.get("tool_call_id")) for each in after or () if each.get("role") == "tool"}
    if is_longer or len(client_made) != len(client_calls) or not (after is None or ids <= answers):
        return None
    back: list[WireMessage] = []
    for each in before:
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
