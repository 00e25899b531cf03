"""Exchanges as trees: which follows which, what was carried on, and which ones stand.

A `Tree` holds the exchanges of the conversations at hand (all of an agent's that may matter to one request, loaded by
the store) and the changes made to them, which the store then writes. Content is loaded only where a rule reads words:
`content` raises `Missing` for an exchange whose content was not loaded, and the rule is called again with it.

An exchange stands when it has finished and is not superseded. It is carried when a later request that brings a new
user message has finished on it. A turn may span several exchanges, since results of tools go on with the turn of their
call; most questions are asked of turns.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.conversation.canonical import WireMessage, is_user, text_of
from gateway.core.words import is_grown_transcript
from storage.commands import Missing, StoredContent
from storage.records import Atom, Exchange, State

_TOMBSTONES = frozenset({State.OFF, State.FORGOTTEN})


class Content(NamedTuple):
    """The words of an exchange."""

    # The client's input.
    messages: list[WireMessage] | None = None
    # Our reply as the client has it.
    shown_reply: WireMessage | None = None
    # The reply as the upstream saw it, hidden rounds included; None where there were none.
    full: list[WireMessage] | None = None
    # Ids of the calls in it that the gateway ran itself.
    gateway_calls: frozenset[str] = frozenset()
    # `full` is what goes upstream, and `shown_reply` what the reader got of it, nothing of which goes there.
    is_step: bool = False


class PathElement(NamedTuple):
    """A message of a path. position: index in the exchange's input, -1 for its reply."""

    exchange: Exchange
    position: int
    atoms: tuple[Atom, ...]

    @property
    def at(self) -> tuple[int, int]:
        """The depth of its exchange, and how many atoms the path has in front of it."""
        x = self.exchange
        before = x.inputs if self.position < 0 else x.inputs[: self.position]
        return x.depth, x.offset + sum(map(len, before))


def end_offset(e: Exchange) -> int:
    """Returns how many atoms the path has up to and including the reply of an exchange."""
    return e.offset + sum(map(len, e.inputs)) + len(e.reply or ())


def flat(e: Exchange) -> list[Atom]:
    """Returns the atoms of an exchange's input, of all its messages in a row."""
    return [atom for atoms in e.inputs for atom in atoms]


def is_tombstone(exchange: Exchange) -> bool:
    return exchange.state in _TOMBSTONES


def is_forgotten(e: Exchange) -> bool:
    """Returns whether its last message or its reply was forgotten. Asked again, it stays off the record."""
    return is_tombstone(e) or -1 in e.redactions or len(e.inputs) - 1 in e.redactions


def moved_at(e: Exchange) -> float:
    """Returns when an exchange last moved its conversation: it ended or was cut, or it began and is under way."""
    own = e.stopped if e.ended is None else e.ended
    return own if own is not None else e.begun


def _load(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


class Tree:
    """The exchanges of some conversations, with their changes.

    contents: of exchanges that do not carry it themselves; None: all do.
    tombs: hashes of messages that were forgotten, in any conversation. changed: ids of what was added or
        changed.
    """

    def __init__(
        self,
        exchanges: Iterable[Exchange] = (),
        contents: Mapping[int, StoredContent] | None = None,
        tombs: frozenset[bytes] = frozenset(),
    ) -> None:
        self.tombs = tombs
        self.by_id: dict[int, Exchange] = {}
        self._kids: dict[int, list[int]] = {}
        self._roots: dict[int, list[int]] = {}
        self._contents = None if contents is None else dict(contents)
        self._groups: list[list[int]] = []
        # Answers worked out before; a change of the tree drops those that it touches.
        self._known: dict[int, Content] = {}
        self._elements: dict[int, tuple[PathElement, ...]] = {}
        self._tops: dict[int, Exchange] = {}
        self._touched: dict[int, float] = {}
        self._ends: dict[int, float] = {}
        self._carried: dict[int, bool] = {}
        self._carried_roots: dict[int, list[Exchange]] = {}
        self._stands: dict[tuple[int, bool], bool] = {}
        self.changed: set[int] = set()
        for exchange in exchanges:
            self._link(exchange)

    # -- the records

    def _link(self, exchange: Exchange) -> None:
        self.by_id[exchange.id] = exchange
        if exchange.parent is None:
            self._roots.setdefault(exchange.conversation, []).append(exchange.id)
        else:
            self._kids.setdefault(exchange.parent, []).append(exchange.id)

    def add(self, exchange: Exchange) -> Exchange:
        """Adds an exchange. It replaces one with its id: a message that was written before its reply."""
        old = self.by_id.get(exchange.id)
        if old is not None:
            self.remove(old)
        self._link(exchange)
        self.changed.add(exchange.id)
        self._forget_answers()
        return exchange

    def remove(self, exchange: Exchange) -> None:
        """Takes an exchange out of the tree, as if it had not been loaded."""
        del self.by_id[exchange.id]
        of = self._roots[exchange.conversation] if exchange.parent is None else self._kids[exchange.parent]
        of.remove(exchange.id)
        self._known.pop(exchange.id, None)
        self._forget_answers()

    def change(self, exchange_id: int, **fields: Any) -> Exchange:
        """Replaces fields of an exchange, which keeps its position in the tree."""
        new = self.by_id[exchange_id] = replace(self.by_id[exchange_id], **fields)
        self.changed.add(exchange_id)
        if not fields.keys().isdisjoint(("input", "shown_reply", "full", "state")):
            self._known.pop(exchange_id, None)
        self._forget_answers()
        return new

    def _forget_answers(self) -> None:
        for known in (
            self._elements,
            self._tops,
            self._touched,
            self._ends,
            self._carried,
            self._carried_roots,
            self._stands,
        ):
            known.clear()

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.by_id.values())

    def get(self, exchange_id: int | None) -> Exchange | None:
        return None if exchange_id is None else self.by_id.get(exchange_id)

    def load_together(self, group: Iterable[Exchange]) -> None:
        """Groups exchanges. A rule that needs the content of one raises `Missing` for all that are not loaded."""
        self._groups.append([e.id for e in group])

    def take_contents(self, contents: Mapping[int, StoredContent]) -> None:
        """Adds what was loaded because it was `Missing`."""
        self._contents = {**(self._contents or {}), **contents}

    @property
    def contents(self) -> Mapping[int, StoredContent]:
        """Those that were loaded with the exchanges."""
        return self._contents or {}

    def content(self, e: Exchange) -> Content:
        """Returns the words of an exchange. Raises: Missing: the store has them and they were not loaded."""
        known = self._known.get(e.id)
        if known is not None:
            return known
        if is_tombstone(e):
            found = Content()
        else:
            stored = self._stored(e)
            full = _load(e.full or stored.full) or {}
            found = Content(
                _load(e.input or stored.input),
                _load(e.shown_reply or stored.shown_reply),
                full.get("messages"),
                frozenset(full.get("gateway_calls") or full.get("ours", ())),  # "ours": before it was renamed
                bool(full.get("step")),
            )
        self._known[e.id] = found
        return found

    def shown_reply(self, e: Exchange) -> WireMessage | None:
        """Returns our reply as the client has it, also of an exchange that was just added. Raises: Missing."""
        return _load(e.shown_reply or self._stored(e).shown_reply)  # type: ignore[no-any-return]

    def _stored(self, e: Exchange) -> StoredContent | Exchange:
        if e.input is not None or self._contents is None or e.id <= 0:
            return e
        if e.id not in self._contents:
            raise Missing(self._missing_with(e))
        return self._contents[e.id]

    def _missing_with(self, e: Exchange) -> list[int]:
        """The exchange and those of its groups, as far as the store has contents that were not loaded."""
        wanted = dict.fromkeys([e.id, *(i for group in self._groups if e.id in group for i in group)])
        there = (self.by_id[i] for i in wanted if i > 0 and i in self.by_id)
        known = self._contents or {}
        return [x.id for x in there if x.input is None and x.id not in known and not is_tombstone(x)]

    def lend(self, exchange_id: int, messages: list[WireMessage]) -> None:
        """Makes the messages of an exchange that is not stored yet known to the comparisons below."""
        self._known[exchange_id] = Content(messages)

    # -- the shape

    @property
    def is_partial(self) -> bool:
        """True when only the end of some conversation was loaded, with its first exchanges."""
        return any(e.parent is not None and e.parent not in self.by_id for e in self)

    def parent(self, e: Exchange) -> Exchange | None:
        return self.get(e.parent)

    def kids(self, e: Exchange) -> list[Exchange]:
        return [self.by_id[i] for i in self._kids.get(e.id, ())]

    def roots(self, conversation: int) -> list[Exchange]:
        return [self.by_id[i] for i in self._roots.get(conversation, ())]

    def siblings(self, e: Exchange) -> list[Exchange]:
        ids = self._roots.get(e.conversation, ()) if e.parent is None else self._kids.get(e.parent, ())
        return [self.by_id[i] for i in ids if i != e.id]

    def chain(self, e: Exchange | None) -> list[Exchange]:
        """Returns the path to e, oldest first, as far as it is loaded."""
        found: list[Exchange] = []
        while e is not None:
            found.append(e)
            e = self.parent(e)
        return found[::-1]

    def elements(self, e: Exchange | None) -> tuple[PathElement, ...]:
        """Returns the path to e, message by message."""
        # One rule after the other asks for the same path, which may be thousands of messages long.
        found: list[PathElement] = []
        x, known = e, None
        while x is not None and (known := self._elements.get(x.id)) is None:
            if x.reply is not None:
                found.append(PathElement(x, -1, x.reply))
            found += [PathElement(x, i, x.inputs[i]) for i in range(len(x.inputs) - 1, -1, -1)]
            x = self.parent(x)
        if e is not None and (found or known is None):
            known = self._elements[e.id] = (*(known or ()), *reversed(found))
        return known or ()

    def atoms(self, e: Exchange) -> list[Atom]:
        """Returns all atoms of the path to e in a row."""
        return [a for element in self.elements(e) for a in element.atoms]

    # -- turns

    def goes_on(self, e: Exchange) -> bool:
        """Returns whether e brings results of tools alone, and so belongs to its parent's turn."""
        return e.parent is not None and not any(map(is_user, e.inputs))

    def prior(self, e: Exchange) -> int | None:
        """Returns the nearest ancestor that added text or rounds of the gateway to the path."""
        parent = self.parent(e)
        if parent is None:
            return None
        return parent.id if parent.adds else parent.prior

    def top(self, e: Exchange) -> Exchange:
        """Returns the exchange with which the turn of e began, as far as it is loaded."""
        below: list[int] = []
        while (top := self._tops.get(e.id)) is None:
            parent = self.parent(e) if self.goes_on(e) else None
            below.append(e.id)
            if parent is None:
                top = e
                break
            e = parent
        self._tops.update(dict.fromkeys(below, top))
        return top

    def _rounds(self, e: Exchange) -> list[Exchange]:
        """Returns the finished exchanges after e that go on with its turn."""
        return [c for c in self.kids(e) if c.ended is not None and self.goes_on(c)]

    def _unknown(self, e: Exchange, known: Container[int]) -> list[Exchange]:
        """Returns e and what follows it of its turn, all rounds of it, as far as it is not known; the last ones first.

        Each is asked about on its own: so a turn of a thousand rounds is gone through once, and not once for each.
        """
        found, todo = [], [e]
        while todo:
            x = todo.pop()
            if x.id not in known:
                found.append(x)
                todo += self._rounds(x)
        return found[::-1]

    def is_continued(self, e: Exchange) -> bool:
        """Returns whether a request with a new user message has finished on the turn of e."""
        memo = self._carried
        for x in self._unknown(e, memo):
            memo[x.id] = x.continued or any(
                c.ended is not None and (memo[c.id] if self.goes_on(c) else True) for c in self.kids(x)
            )
        return memo[e.id]

    def end(self, e: Exchange) -> float:
        """Returns when the turn of e ended, or was cut."""
        memo = self._ends
        for x in self._unknown(e, memo):
            memo[x.id] = max([moved_at(x), *(memo[c.id] for c in self._rounds(x))])
        return memo[e.id]

    def last(self, e: Exchange, now: float) -> float:
        """Returns when the turn of e ended; `now` while it is under way."""
        return now if e.ended is None and e.stopped is None else self.end(e)

    def touched(self, e: Exchange) -> float:
        """Returns when a finished request last repeated e or went on from it."""
        # Children first, with a list in place of recursion: a path may be thousands of exchanges deep.
        memo, todo = self._touched, [e]
        while todo:
            x = todo[-1]
            later = [c for c in self.kids(x) if c.ended is not None]
            unknown = [] if x.id in memo else [c for c in later if c.id not in memo]
            if unknown:
                todo += unknown
                continue
            memo[x.id] = max([x.touched, *(memo[c.id] for c in later)])
            todo.pop()
        return memo[e.id]

    def is_soft(self, e: Exchange) -> bool:
        """Returns whether e may still take another form: nothing that was carried rests on it."""
        kids = self.kids(e)
        # The exchanges that carried e may not be loaded.
        if not kids and e.continued:
            return False
        return not any(self.is_continued(c) for c in kids)

    # -- comparing

    def extends(self, new: Exchange, old: Exchange) -> bool:
        """Returns whether new has old's messages, and as its last message the same or a transcript that went on."""
        k = len(old.inputs)
        if not k or len(new.inputs) < k or new.inputs[: k - 1] != old.inputs[: k - 1]:
            return False
        # A client that goes on may drop pictures of earlier messages; one that asks again has to show the same.
        if len(new.inputs) == k and [d for d in new.media if d] != [d for d in old.media if d]:
            return False
        if new.inputs[k - 1] == old.inputs[k - 1]:
            return True
        if (
            not (is_user(new.inputs[k - 1]) and is_user(old.inputs[k - 1]))
            or new.media[k - 1] != old.media[k - 1]
        ):
            return False
        # Only here are words compared: hashes cannot show that a text has grown.
        mine, others = self.content(new).messages, self.content(old).messages
        return bool(mine and others) and is_grown_transcript(text_of(mine[k - 1]), text_of(others[k - 1]))  # type: ignore[index]

    def is_same_input(self, a: Exchange, b: Exchange) -> bool:
        return a.inputs == b.inputs and [d for d in a.media if d] == [d for d in b.media if d]

    def are_apart(self, a: Exchange, b: Exchange) -> bool:
        """Returns whether one of the two had ended before the other began."""
        return self.end(a) <= b.begun or self.end(b) <= a.begun

    # -- who stands

    def stands(self, e: Exchange, *, named: bool) -> bool:
        """Returns whether e has finished and nothing took its place. named: its conversation has an id of the client's.

        Results of tools stand with the turn that they belong to.
        """
        below: list[tuple[int, bool]] = []
        while (found := self._stands.get((e.id, named))) is None:
            below.append((e.id, named))
            is_in_place = e.ended is not None and not e.superseded
            parent = self.parent(e) if is_in_place and self.goes_on(e) else None
            if parent is None:
                found = is_in_place and self._is_attached(e, named=named)
                break
            e = parent
        self._stands.update(dict.fromkeys(below, found))
        return found

    def _is_attached(self, e: Exchange, *, named: bool) -> bool:
        """Returns whether nothing speaks against an exchange but those with its own place.

        If a named conversation went on elsewhere while a second root of it was not under way, that is detached: it
        waits to be continued before it stands. What is off the record detaches nothing before it.
        """
        if e.parent is not None or not named or self.is_continued(e):
            return True
        roots = self._carried_roots.get(e.conversation)
        if roots is None:  # each of the others asks for them
            roots = [x for x in self.roots(e.conversation) if self.is_continued(x)]
            self._carried_roots[e.conversation] = roots
        return not any(
            self.are_apart(x, e) and (x.state is not State.OFF or x.begun < e.begun) for x in roots
        )
