"""Exchanges as trees: their order, and the exchanges that are continued or active.

A `Tree` holds the exchanges of the conversations at hand (all of an agent's that may matter to one request, loaded by
the store) and the changes made to them, which the store then writes. Content is loaded only where a rule reads words:
`TreeContents.get` raises `MissingContents` for content that was not loaded, and the rule is called again with it.

A turn begins with a user message and may span several exchanges: those that bring only results of tools are in the
middle of the turn of their call. An exchange is active when it has finished and is not superseded. It is continued when
the next turn has finished on the turn of the exchange.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec.structs import replace

from gateway.core.conversation.canonical import has_calls, is_user
from gateway.core.conversation.exchange import read_moved_at
from gateway.core.conversation.tree_contents import TreeContents
from gateway.core.conversation.wire_message import (
    WireMessage,
    has_result_role,
    read_call_id,
    read_result_id,
    read_text,
    without_space,
)
from gateway.core.words import is_grown_transcript
from storage.commands import StoredContent
from storage.records import Atom, Exchange, ExchangeState


class PathPosition(NamedTuple):
    """The position of a message on a path."""

    # The depth of its exchange.
    depth: int
    # The number of atoms that the path has before the message.
    offset: int


class PathElement(NamedTuple):
    """A message of a path."""

    # The exchange of the message.
    exchange: Exchange
    # The index of the message in the exchange's input; -1: it is the reply.
    message_index: int
    # The atoms of the message.
    atoms: tuple[Atom, ...]
    # The number of atoms that the path has before the message.
    offset: int

    @property
    def position(self) -> PathPosition:
        """The position of the message on the path."""
        return PathPosition(self.exchange.depth, self.offset)


@dataclass(slots=True)
class _Caches:
    """The results that one state of a tree has, by the ids of exchanges unless another key is named."""

    # The messages of the path to an exchange.
    elements: dict[int, tuple[PathElement, ...]] = field(default_factory=dict)
    # The first exchange of an exchange's turn.
    turn_starts: dict[int, Exchange] = field(default_factory=dict)
    # The time at which an exchange's turn ended.
    turn_ends: dict[int, float] = field(default_factory=dict)
    # The time at which a finished request last repeated an exchange, or went on from it; all exchanges or none.
    touched_times: dict[int, float] = field(default_factory=dict)
    # True: the exchange is continued.
    continued: dict[int, bool] = field(default_factory=dict)
    # The continued first exchanges of a conversation, by its row.
    continued_roots: dict[int, list[Exchange]] = field(default_factory=dict)
    # True: the exchange is active. The key is its id, and True if its conversation is named.
    active: dict[tuple[int, bool], bool] = field(default_factory=dict)


def _split_exchange(exchange: Exchange) -> Iterator[PathElement]:
    """Yields the messages of one exchange: its input messages, then its reply."""
    offsets = [*accumulate(map(len, exchange.inputs), initial=exchange.offset)]
    for i, atoms in enumerate(exchange.inputs):
        yield PathElement(exchange, i, atoms, offsets[i])
    if exchange.reply is not None:
        yield PathElement(exchange, -1, exchange.reply, offsets[-1])


class Tree:
    """The exchanges of some conversations, with their changes."""

    def __init__(
        self,
        exchanges: Iterable[Exchange] = (),
        contents: Mapping[int, StoredContent] | None = None,
        forgotten_hashes: frozenset[bytes] = frozenset(),
    ) -> None:
        """Links exchanges with their parents. None counts as changed.

        contents: the contents of exchanges that are loaded without content, by the ids of the exchanges; None: all
            exchanges have their content.
        forgotten_hashes: hashes of messages that were forgotten, in any conversation.
        """
        self.forgotten_hashes = forgotten_hashes
        # The exchanges by their ids.
        self.by_id: dict[int, Exchange] = {}
        # The ids of the exchanges after an exchange, by its id.
        self._children: dict[int, list[int]] = {}
        # The ids of the first exchanges of a conversation, by its row.
        self._roots: dict[int, list[int]] = {}
        # The contents of the exchanges.
        self.contents = TreeContents(self.by_id, contents)
        # Every change of the tree drops the cached results.
        self._caches = _Caches()
        # The ids of the exchanges that were added or changed.
        self.changed_ids: set[int] = set()
        for exchange in exchanges:
            self._link(exchange)

    # -- the records

    def add(self, exchange: Exchange) -> Exchange:
        """Adds an exchange. It replaces an exchange with the same id: a message that was written before its reply."""
        draft = self.by_id.get(exchange.id)
        if draft is not None:
            self.remove(draft)
        self._link(exchange)
        self.changed_ids.add(exchange.id)
        self._caches = _Caches()
        return exchange

    def remove(self, exchange: Exchange) -> None:
        """Removes an exchange, as if it had not been loaded."""
        del self.by_id[exchange.id]
        siblings = (
            self._roots[exchange.conversation_row]
            if exchange.parent is None
            else self._children[exchange.parent]
        )
        siblings.remove(exchange.id)
        self.contents.drop(exchange.id)
        self._caches = _Caches()

    def change(self, exchange_id: int, **fields: Any) -> Exchange:
        """Replaces fields of an exchange, which keeps its position in the tree."""
        changed_exchange = self.by_id[exchange_id] = replace(self.by_id[exchange_id], **fields)
        self.changed_ids.add(exchange_id)
        if not fields.keys().isdisjoint(("input", "shown_reply", "full_reply", "state")):
            self.contents.drop(exchange_id)
        self._caches = _Caches()
        return changed_exchange

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.by_id.values())

    def get(self, exchange_id: int | None) -> Exchange | None:
        return None if exchange_id is None else self.by_id.get(exchange_id)

    def _link(self, exchange: Exchange) -> None:
        """Adds an exchange to the maps of the tree."""
        self.by_id[exchange.id] = exchange
        if exchange.parent is None:
            self._roots.setdefault(exchange.conversation_row, []).append(exchange.id)
        else:
            self._children.setdefault(exchange.parent, []).append(exchange.id)

    # -- the shape

    @property
    def is_partial(self) -> bool:
        """True if only the end of a conversation was loaded, and its first exchanges."""
        return any(exchange.parent is not None and exchange.parent not in self.by_id for exchange in self)

    def find_parent(self, exchange: Exchange) -> Exchange | None:
        """Returns the exchange before; None: the exchange is the first, or the one before is not loaded."""
        return self.get(exchange.parent)

    def list_children(self, exchange: Exchange) -> list[Exchange]:
        return [self.by_id[i] for i in self._children.get(exchange.id, ())]

    def list_roots(self, conversation_row: int) -> list[Exchange]:
        """Returns the first exchanges of a conversation, which are alternatives."""
        return [self.by_id[i] for i in self._roots.get(conversation_row, ())]

    def list_siblings(self, exchange: Exchange) -> list[Exchange]:
        """Returns the other exchanges after the same parent; of a first exchange, the conversation's other ones."""
        ids = (
            self._roots.get(exchange.conversation_row, ())
            if exchange.parent is None
            else self._children.get(exchange.parent, ())
        )
        return [self.by_id[i] for i in ids if i != exchange.id]

    def list_path(self, exchange: Exchange | None) -> list[Exchange]:
        """Returns the path to the exchange, oldest first, as far as it is loaded."""
        newest_first: list[Exchange] = []
        while exchange is not None:
            newest_first.append(exchange)
            exchange = self.find_parent(exchange)
        return newest_first[::-1]

    def list_path_elements(self, exchange: Exchange | None) -> tuple[PathElement, ...]:
        """Returns the path to the exchange, message by message."""
        # Cached, since one rule after the other asks for the same path, which may be thousands of messages long.
        uncached_exchanges: list[Exchange] = []
        path: tuple[PathElement, ...] = ()
        ancestor = exchange
        while ancestor is not None:
            if (cached_path := self._caches.elements.get(ancestor.id)) is not None:
                path = cached_path
                break
            uncached_exchanges.append(ancestor)
            ancestor = self.find_parent(ancestor)
        if exchange is not None and uncached_exchanges:
            path = (
                *path,
                *(element for each in reversed(uncached_exchanges) for element in _split_exchange(each)),
            )
            self._caches.elements[exchange.id] = path
        return path

    def list_path_atoms(self, exchange: Exchange) -> list[Atom]:
        """Returns all atoms of the path to the exchange in a row."""
        return [atom for element in self.list_path_elements(exchange) for atom in element.atoms]

    # -- turns

    def is_mid_turn(self, exchange: Exchange) -> bool:
        """Returns whether the exchange brings only results of tools, and so belongs to its parent's turn."""
        return exchange.parent is not None and not any(map(is_user, exchange.inputs))

    def find_prior(self, exchange: Exchange) -> int | None:
        """Returns the id of the nearest ancestor that added text or rounds of the gateway to the path."""
        parent = self.find_parent(exchange)
        if parent is None:
            return None
        return parent.id if parent.has_additions else parent.prior

    def locate_turn_start(self, exchange: Exchange) -> Exchange:
        """Returns the exchange with which the turn of the exchange began, as far as it is loaded."""
        visited: list[int] = []
        while (start := self._caches.turn_starts.get(exchange.id)) is None:
            parent = self.find_parent(exchange) if self.is_mid_turn(exchange) else None
            visited.append(exchange.id)
            if parent is None:
                start = exchange
                break
            exchange = parent
        self._caches.turn_starts.update(dict.fromkeys(visited, start))
        return start

    def read_question(self, exchange: Exchange) -> str:
        """Returns the words that the turn of an exchange answers, without white space; "": none.

        Raises: MissingContents.
        """
        messages = self.contents.get(self.locate_turn_start(exchange)).messages or ()
        questions = [message for message in messages if message.get("role") == "user"]
        return without_space(read_text(questions[-1])) if questions else ""

    def find_called_rows(self, exchanges: Iterable[Exchange], results: Iterable[WireMessage]) -> set[int]:
        """Returns the rows of the exchanges with a call of one of the results.

        exchanges: exchanges with their replies.
        results: messages; those that are no results do not count.

        Raises: MissingContents.
        """
        result_ids = {read_result_id(each) for each in results if has_result_role(each)}
        exchanges = [each for each in exchanges if result_ids and has_calls(each.reply)]
        self.contents.group(exchanges)
        replies = {each.id: self.contents.get(each).shown_reply or {} for each in exchanges}
        return {
            row
            for row, reply in replies.items()
            if not result_ids.isdisjoint(map(read_call_id, reply.get("tool_calls") or ()))
        }

    def _list_turn_children(self, exchange: Exchange) -> list[Exchange]:
        """Returns the finished exchanges that follow the exchange within its turn."""
        return [
            child
            for child in self.list_children(exchange)
            if child.ended is not None and self.is_mid_turn(child)
        ]

    def _list_uncached(self, exchange: Exchange, cache: Container[int]) -> list[Exchange]:
        """Returns the exchanges of a turn, from this exchange on, that a cache lacks. Descendants come first.

        Each gets its own result in the cache, so a turn of a thousand rounds is walked once, not once for each round.
        """
        uncached_exchanges, remaining_exchanges = [], [exchange]
        while remaining_exchanges:
            descendant = remaining_exchanges.pop()
            if descendant.id not in cache:
                uncached_exchanges.append(descendant)
                remaining_exchanges += self._list_turn_children(descendant)
        return uncached_exchanges[::-1]

    def is_continued(self, exchange: Exchange) -> bool:
        """Returns whether the next turn has finished on the turn of the exchange."""
        cache = self._caches.continued
        for descendant in self._list_uncached(exchange, cache):
            cache[descendant.id] = descendant.continued or any(
                child.ended is not None and (cache[child.id] if self.is_mid_turn(child) else True)
                for child in self.list_children(descendant)
            )
        return cache[exchange.id]

    def read_turn_end(self, exchange: Exchange) -> float:
        """Returns when the turn of the exchange ended, or was cut."""
        cache = self._caches.turn_ends
        for descendant in self._list_uncached(exchange, cache):
            cache[descendant.id] = max(
                [
                    read_moved_at(descendant),
                    *(cache[child.id] for child in self._list_turn_children(descendant)),
                ]
            )
        return cache[exchange.id]

    def read_turn_end_or_now(self, exchange: Exchange, now: float) -> float:
        """Returns when the turn of the exchange ended; `now` while it is under way."""
        return now if exchange.ended is None and exchange.stopped is None else self.read_turn_end(exchange)

    def read_touched_at(self, exchange: Exchange) -> float:
        """Returns when a finished request last repeated the exchange or went on from it."""
        return self.list_touched_times()[exchange.id]

    def list_touched_times(self) -> Mapping[int, float]:
        """Returns `read_touched_at` of each exchange, by its id."""
        cache = self._caches.touched_times
        if not cache:
            cache.update((each.id, each.touched) for each in self)
            # The deepest first, so that each exchange has the times of its descendants when its parent takes its time.
            for each in sorted(self, key=attrgetter("depth"), reverse=True):
                parent = each.parent
                if parent in cache and each.ended is not None and cache[parent] < cache[each.id]:
                    cache[parent] = cache[each.id]
        return cache

    def make_recency_key(self, exchange: Exchange) -> tuple[float, float, int]:
        """Returns the key by which the exchange that was touched last is the greatest."""
        return self.list_touched_times()[exchange.id], exchange.begun, exchange.id

    def may_change(self, exchange: Exchange) -> bool:
        """Returns whether the exchange may still take another form: none of its children was continued."""
        children = self.list_children(exchange)
        # Its children may not be loaded.
        if not children and exchange.continued:
            return False
        return not any(map(self.is_continued, children))

    # -- comparing

    def extends(self, new: Exchange, old: Exchange) -> bool:
        """Returns whether `new` has the messages of `old`. The last of these may be a transcript that has grown."""
        last = len(old.inputs) - 1
        if last < 0 or len(new.inputs) <= last or new.inputs[:last] != old.inputs[:last]:
            return False
        # A client that goes on may drop pictures of earlier messages. A client that asks again has to show the same.
        asks_again = len(new.inputs) == len(old.inputs)
        if asks_again and [*filter(None, new.media)] != [*filter(None, old.media)]:
            return False
        if new.inputs[last] == old.inputs[last]:
            return True
        if (
            not (is_user(new.inputs[last]) and is_user(old.inputs[last]))
            or new.media[last] != old.media[last]
        ):
            return False
        # Only here are words compared: hashes cannot show that a text has grown.
        new_messages, old_messages = self.contents.get(new).messages, self.contents.get(old).messages
        if not new_messages or not old_messages:
            return False
        return is_grown_transcript(read_text(new_messages[last]), read_text(old_messages[last]))

    def are_apart(self, a: Exchange, b: Exchange) -> bool:
        """Returns whether one of the two had ended before the other began."""
        return self.read_turn_end(a) <= b.begun or self.read_turn_end(b) <= a.begun

    # -- active exchanges

    def is_active(self, exchange: Exchange, *, is_named: bool) -> bool:
        """Returns whether the exchange has finished and no other exchange took its place.

        Results of tools are active with the turn that they belong to.

        is_named: True if its conversation has an id of the client's.
        """
        # From the exchange up to the first of its turn; all of them have the same result.
        visited: list[tuple[int, bool]] = []
        while (is_active := self._caches.active.get((exchange.id, is_named))) is None:
            visited.append((exchange.id, is_named))
            is_in_place = exchange.ended is not None and not exchange.superseded
            parent = self.find_parent(exchange) if is_in_place and self.is_mid_turn(exchange) else None
            if parent is None:
                is_active = is_in_place and self._is_attached(exchange, is_named=is_named)
                break
            exchange = parent
        self._caches.active.update(dict.fromkeys(visited, is_active))
        return is_active

    def _is_attached(self, exchange: Exchange, *, is_named: bool) -> bool:
        """Returns False for a second root of a named conversation that went on elsewhere before or after it.

        Such a root is active only once it is continued. A root off the record detaches no root before it.
        """
        if exchange.parent is not None or not is_named or self.is_continued(exchange):
            return True
        roots = self._caches.continued_roots.get(exchange.conversation_row)
        if roots is None:  # cached, since each root of the conversation asks for them
            roots = [
                other for other in self.list_roots(exchange.conversation_row) if self.is_continued(other)
            ]
            self._caches.continued_roots[exchange.conversation_row] = roots
        return not any(
            self.are_apart(other, exchange)
            and (other.state is not ExchangeState.OFF or other.begun < exchange.begun)
            for other in roots
        )
