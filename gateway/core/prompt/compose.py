"""Composing: puts our messages around the client's: what a trimmed list left out, notes and hidden tool rounds.

The client's own messages go upstream contiguous and unchanged. A note hangs before a user message's text; a hidden
round takes the place of the assistant message in which the client has only what was streamed, and together they say
the same. Everything is found by its place on the path, so that the bytes of one turn are the beginning of the next's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from gateway.core.conversation.canonical import (
    Listing,
    WireMessage,
    call_id,
    in_a_row,
    is_user,
    rest_after,
    text_of,
)
from gateway.core.conversation.match import lcs
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import is_nudge, private_of, without_private
from gateway.core.conversation.provider_fields import refilled, refilled_calls, without_opaque
from gateway.core.conversation.tree import Content, PathElement, Tree, is_tombstone
from storage.records import Atom, Exchange

UNANSWERED = "No result was given."
NO_TOOL = "Error: there is no tool"  # begins the result of a call by a name that nobody has


@dataclass(slots=True)
class Composition:
    """The messages and texts of ours around the client's list. Indices are those of the request's own `messages`.

    fill: messages to go before the first of the client's that is not a system message; fill_atoms: what each of them
        says, without our notes; fill_at: where on the path it stands (`Element.at`), None where it does not yet.
        list_at: the same of the client's messages, by index.
    nudges: places in `fill` of what an agent's rules say to its model, which opens no turn.
    notes: index -> text before that message's text. hidden: index -> the messages that take its place.
    breaks: hidden rounds that could not be put back, each a break of the prompt's stable prefix.
    """

    fill: list[WireMessage] = field(default_factory=list)
    fill_atoms: list[tuple[Atom, ...]] = field(default_factory=list)
    fill_at: list[tuple[int, int] | None] = field(default_factory=list)
    nudges: set[int] = field(default_factory=set)
    # Empty for a plain list, where places are counted.
    list_at: dict[int, tuple[int, int]] = field(default_factory=dict, compare=False)
    notes: dict[int, str] = field(default_factory=dict)
    hidden: dict[int, list[WireMessage]] = field(default_factory=dict)
    breaks: int = 0

    def add(self, message: WireMessage, atoms: tuple[Atom, ...], at: tuple[int, int] | None = None) -> None:
        if is_nudge(message):
            self.nudges.add(len(self.fill))
        self.fill.append(without_private(message))
        self.fill_atoms.append(atoms)
        self.fill_at.append(at)


def prefixed(message: WireMessage, note: str) -> WireMessage:
    """Returns the message with a note before its text, as `Splice.prefix_text` writes it."""
    if not note:
        return message
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": note + content}
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and first.get("type") == "text" and isinstance(first.get("text"), str):
        return {**message, "content": [{**first, "text": note + first["text"]}, *(content or ())[1:]]}
    return {**message, "content": [{"type": "text", "text": note}, *(content or [])]}


def known_note(tree: Tree, plan: Plan, i: int) -> str | None:
    """Returns the note that the i-th new message has already; "" if nothing was found for it, None if it has none."""
    prefix = plan.exchange.inputs[: i + 1]
    anchor = plan.match.anchor
    if anchor is not None:
        rivals = tree.kids(anchor)
    else:
        rivals = tree.roots(plan.conversation) if plan.conversation is not None else []
    same = [x for x in rivals if i in x.notes and x.inputs[: i + 1] == prefix]
    if not same:
        return None
    return max(same, key=lambda x: (tree.touched(x), x.begun, x.id)).notes[i]


def compose(
    tree: Tree,
    plan: Plan,
    offered: Container[str],
    fresh: Mapping[int, str],
    additions: Sequence[Exchange] | None = None,
) -> Composition:
    """Returns what goes around the client's list.

    offered: names of our tools in this request. fresh: index among the new messages -> note.
    additions: of a list that is its path word for word, the exchanges that have something of ours, with their content;
    their places are counted then. None: what stands where is found by comparing list and path.
    Raises: Missing.
    """
    listing, place = plan.query.listing, plan.match
    found = Composition()
    if plan.fill:
        _fill(tree, plan, offered, found)
    held, offset = len(plan.held), plan.exchange.offset
    for i, m in enumerate(plan.held):
        atoms = plan.exchange.inputs[i]
        found.add(prefixed(m, fresh.get(i, "")), atoms, (plan.exchange.depth, offset))
        offset += len(atoms)
    if plan.appending:
        _answer(found, listing.messages)
    for i, note in fresh.items():
        if i >= held and note:
            found.notes[listing.positions[plan.new[i - held]]] = note
    if place.anchor is None or plan.appending:
        return found
    if additions is None:
        pairs: Iterable[tuple[int, PathElement]] = matches(listing, place.last + 1, tree.line(place.anchor))
    else:
        pairs = _counted(listing, additions)
    replies: dict[int, Exchange] = {}
    for i, element in pairs:
        if additions is None:
            found.list_at.setdefault(listing.positions[i], element.at)
        if element.position == -1:
            replies[i] = element.exchange
        elif is_user(element.atoms) and (earlier := element.exchange.notes.get(element.position)):
            found.notes[listing.positions[i]] = earlier
    if place.form:
        replies[place.last] = place.anchor
    if replies:
        _hide(tree, plan, replies, offered, found)
    return found


def _counted(listing: Listing, additions: Sequence[Exchange]) -> Iterator[tuple[int, PathElement]]:
    """Yields (message of the list, element of the path) for what hangs on a list that is its path word for word.

    Both have the same atoms in the same order, so the number of atoms before an element says which message it is.
    """
    ends = listing.ends
    for x in additions:
        at = x.offset
        for place, atoms in enumerate(x.inputs):
            if x.notes.get(place):
                yield bisect_right(ends, at), PathElement(x, place, atoms)
            at += len(atoms)
        if x.reply and (x.hidden or x.opaque):
            # Clients may keep a reply in several messages; it has a place of its own only if it is one.
            first, last = bisect_right(ends, at), bisect_right(ends, at + len(x.reply) - 1)
            for i in range(first, last + 1):
                yield i, PathElement(x, -1, x.reply)


def matches(listing: Listing, end: int, line: Sequence[PathElement]) -> list[tuple[int, PathElement]]:
    """Returns pairs of (message of the list, element of the path), oldest first."""
    listed: list[tuple[Atom, int]] = [(a, i) for i in range(end) for a in listing.atoms[i]]
    path: list[tuple[Atom, int]] = [(a, p) for p, el in enumerate(line) for a in el.atoms]
    pairs = lcs([a for a, _ in listed], [a for a, _ in path])
    return [(listed[i][1], line[path[j][1]]) for i, j in reversed(pairs)]


def _tellable(elements: Sequence[PathElement], listing: Listing) -> list[PathElement]:
    """Leaves out what was forgotten or off the record, and what cannot stand without it.

    Chat templates refuse an answer without its question, two questions in a row, and a result without its call.
    """
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
        left = [e for e in run if not _is_gone(e)]
        gone = [e for e in run if _is_gone(e)]
        if not gone or (all(is_user(e.atoms) for e in gone) and is_user(left[0].atoms if left else ())):
            found += left
        elif goes_on and run is runs[-1]:
            return []
    return found


def _is_gone(element: PathElement) -> bool:
    return is_tombstone(element.exchange) or element.position in element.exchange.hush


def _fill(tree: Tree, plan: Plan, offered: Container[str], found: Composition) -> None:
    elements = _tellable(plan.fill, plan.query.listing)
    tree.load_together(element.exchange for element in elements)
    for element in elements:
        x, content = element.exchange, tree.content(element.exchange)
        if element.position >= 0:
            if content.messages is not None:
                note = x.notes.get(element.position, "") if is_user(element.atoms) else ""
                message = content.messages[element.position]
                found.add(prefixed(message, note), element.atoms, element.at)
        elif content.said is not None:
            is_same = bool(plan.query.model) and x.model == plan.query.model
            if content.is_step:
                for m in content.full or ():
                    found.add(_bare(m if is_same else without_opaque(m)), element.atoms, element.at)
                continue
            said = _bare(content.said if is_same else without_opaque(content.said))
            for m in put_back(content, said, None, offered, is_same_model=is_same) or [said]:
                found.add(m, element.atoms, element.at)


def _bare(said: WireMessage) -> WireMessage:
    """Returns a reply as clients send it back, without fields that say nothing (`refusal: null`, no annotations)."""
    return {k: v for k, v in without_private(said).items() if k in ("role", "content") or v not in (None, [])}


def _answer(found: Composition, new: Sequence[WireMessage]) -> None:
    """Gives a result to calls that were never answered, where the history is ours, so that they lock nothing.

    new: what follows. The result stands right behind the call, where it is found again with the next request.
    """
    fill, atoms, at, nudges = found.fill, found.fill_atoms, found.fill_at, found.nudges
    if not any(m.get("tool_calls") for m in fill):
        return
    whole = [*fill, *new]
    found.fill, found.fill_atoms, found.fill_at, found.nudges = [], [], [], set()
    for i, m in enumerate(fill):
        if i in nudges:
            found.nudges.add(len(found.fill))
        found.add(m, atoms[i], at[i])
        results = takewhile(lambda y: y.get("role") == "tool", whole[i + 1 :])
        known = {str(y.get("tool_call_id")) for y in results} if m.get("tool_calls") else set()
        for call in m.get("tool_calls") or []:
            if call_id(call) not in known:
                found.add({"role": "tool", "tool_call_id": call.get("id"), "content": UNANSWERED}, (), at[i])


def _hide(
    tree: Tree, plan: Plan, replies: dict[int, Exchange], offered: Container[str], found: Composition
) -> None:
    """Puts back what of ours belongs to a reply, where the reply is one message of the list."""
    listing, model = plan.query.listing, plan.query.model
    back: list[tuple[int, Exchange]] = []
    for i, x in replies.items():
        before, after = replies.get(i - 1), replies.get(i + 1)
        if (x.hidden or x.opaque) and not any(y is not None and y.id == x.id for y in (before, after)):
            back.append((i, x))
    tree.load_together(x for _, x in back)
    for i, x in back:
        restore(listing, i, x, tree.content(x), offered, model, found)


def restore(
    listing: Listing,
    i: int,
    x: Exchange,
    content: Content,
    offered: Container[str],
    model: str,
    found: Composition,
) -> None:
    """Puts hidden rounds and what only its provider reads back to the i-th message of the list, which is x's reply."""
    message = listing.messages[i]
    is_same = bool(model) and x.model == model and listing.atoms[i] == x.reply
    if not x.hidden:
        full = refilled(message, content.said or {}) if is_same else None
        if full is not None:
            found.hidden[listing.positions[i]] = [full]
        return
    back = put_back(content, message, listing.messages[i + 1 :], offered, is_same_model=is_same)
    if back is None:
        found.breaks += 1
    else:
        found.hidden[listing.positions[i]] = back


def put_back(
    content: Content,
    message: WireMessage,
    after: Sequence[WireMessage] | None,
    offered: Container[str],
    *,
    is_same_model: bool = True,
) -> list[WireMessage] | None:
    """Returns the hidden rounds and then the rest of the message, whose text begins with what was streamed before them.

    White space does not count, since clients strip it.

    after: the messages behind it, None where the history is ours. Of a mixed round both halves go back or none:
    results of the client's own calls have to follow. Returns None where the message has to stay as it is.
    is_same_model: what only the provider reads may go with it.
    """
    full = content.full
    if full is None:
        return None
    last = max((i for i, y in enumerate(full) if y["role"] == "tool"), default=-1)
    before = full[: last + 1] if is_same_model else [without_opaque(y) for y in full[: last + 1]]
    calls = [c for y in before for c in y.get("tool_calls") or []]
    mine: list[dict[str, Any]] = message.get("tool_calls") or []
    streamed = in_a_row(text for y in before if y["role"] == "assistant" for text in _heard(y))
    before = [without_private(y) for y in before]
    rest = rest_after(text_of(message), streamed)
    names = {c["function"]["name"] for c in calls if call_id(c) in content.ours - _of_nobody(before)}
    if not before or not all(n in offered for n in names) or rest is None:
        return None
    rest = rest.lstrip()
    theirs = [c for c in calls if call_id(c) not in content.ours]
    # A mixed round: the client has its own calls, and the results to them, in its list.
    if theirs:
        return _put_back_mixed(before, mine, theirs, after, is_longer=bool(rest))
    own = in_a_row(map(text_of, full[last + 1 :]))
    # White space as the model made it.
    rest = rest and own[: len(own) - len(own.lstrip())] + rest
    if not rest and not mine:
        return list(before)
    end = {**message, "content": rest}
    return [*before, (refilled(end, full[-1]) if is_same_model else None) or end]


def _of_nobody(messages: Sequence[WireMessage]) -> set[str]:
    """Returns the ids of calls by a name that no tool had: none can be offered now, and none was then."""
    return {
        str(y.get("tool_call_id")) for y in messages if y["role"] == "tool" and text_of(y).startswith(NO_TOOL)
    }


def _heard(message: WireMessage) -> tuple[str, str, str]:
    """Returns what a reader got of a message: ahead of its text, the text, and what its calls said behind it."""
    private = private_of(message)
    return str(private.get("filler", "")), text_of(message), str(private.get("spoken", ""))


def _put_back_mixed(
    before: Sequence[WireMessage],
    mine: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    after: Sequence[WireMessage] | None,
    *,
    is_longer: bool,
) -> list[WireMessage] | None:
    ids = {call_id(c) for c in mine}
    answers = {str(y.get("tool_call_id")) for y in after or () if y.get("role") == "tool"}
    if is_longer or len(mine) != len(theirs) or not (after is None or ids <= answers):
        return None
    back: list[WireMessage] = []
    for y in before:
        calls = y.get("tool_calls") or []
        if any(c in theirs for c in calls):
            ours = [c for c in calls if c not in theirs]
            y = {**y, "tool_calls": ours + refilled_calls(mine, calls)}
        back.append(y)
    return back
