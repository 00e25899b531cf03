"""Supersession, continuation and confirmation: which exchanges are active after a request.

These are rules 8 and 10 of docs/conversations.md; `Tree.is_active` has rule 9. The functions change a tree as
`settle.finish` does (gateway.core.conversation.settle). They judge again only the exchanges that the request touches.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Literal, NamedTuple

import orjson

from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.exchange import (
    is_same_input,
    is_tombstone,
    list_input_atoms,
    read_off_record_part,
)
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import Query
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import read_text
from gateway.core.thoughts import without_thoughts
from storage.records import Atom, Exchange

# The most seconds by which a date may be in the future; a later date was set before the clock was put back. Smaller
# steps are hidden (gateway.steady_clock), and the clocks of gateways that share a database are less apart.
_MAX_AHEAD_S = 60.0


def judge_rivals_along_path(
    tree: Tree, exchange: Exchange, changed_ids: Container[int], query: Query, now: float
) -> None:
    """Decides anew between the exchanges of a path and their rivals, since a request goes on from the path.

    The exchanges that have changed are judged, and the superseded ones, which count as not superseded before.

    exchange: the last exchange of the path.
    changed_ids: the ids of the exchanges that have changed.
    now: the time at which the request ends, in seconds since the epoch.
    """
    judged = [each for each in tree.list_path(exchange) if each.superseded or each.id in changed_ids]
    tree.contents.group(other for each in judged for other in (each, *tree.list_siblings(each)))
    for each in judged:
        _judge_rivals(tree, tree.change(each.id, superseded=False) if each.superseded else each, query, now)


def _judge_rivals(tree: Tree, exchange: Exchange, query: Query, now: float) -> None:
    """Decides between an exchange and its rivals: the finished alternatives at its position that are not superseded.

    An exchange supersedes the rivals that it repeats or extends, and after the first turn also those that extend it. If
    it has no such rival on the record, it supersedes the rivals that had ended before it began.
    """
    rivals = [
        other for other in tree.list_siblings(exchange) if other.ended is not None and not other.superseded
    ]
    same_questions = [other for other in rivals if _asks_same(tree, exchange, other, query, now)]
    for other in same_questions:
        if (pair := _judge_alternatives(tree, exchange, other, query, now)) is not None:
            _supersede(tree, pair.loser)
    # A rival off the record superseded no other exchange, so the exchange that extends it does.
    if exchange.parent is None or not all(map(is_tombstone, same_questions)):
        return
    for other in rivals:
        # Alternatives that overlapped are requests side by side, and all of them stay active.
        if other in same_questions or not tree.are_apart(other, exchange):
            continue
        pair = _judge_alternatives(tree, exchange, other, query, now)
        if pair is not None and _is_same_chat(tree, pair, query):
            _supersede(tree, pair.loser)


def supersede_repeated(tree: Tree, path: Sequence[PathElement]) -> None:
    """Supersedes the siblings of a path's exchanges of which the path has all messages, in the same order.

    Where several questions are answered at once over one history, a list has after two messages what another list has
    between them. No word is lost, so this holds for an exchange that was continued, too.

    If such a sibling ends with the question of the path, after the same messages, the path has another reply to it: the
    question was asked again when the interrupted reply before it was stored. A sibling that was continued stays.

    path: the messages of an active exchange and of the exchanges before it, in the form in which its list has them.
    """
    exchanges = list({element.exchange.id: element.exchange for element in path}.values())
    siblings = [
        (sibling, exchange.id)
        for exchange in exchanges
        for sibling in tree.list_siblings(exchange)
        if not tree.are_apart(sibling, exchange)
    ]
    if not siblings or any(is_tombstone(each) or each.redactions for each in exchanges):
        return
    atoms, starts = _list_path_atoms(path)
    question_atoms = _list_question_atoms(path)
    last_index = {atom: i for i, atom in enumerate(atoms)}
    remaining_siblings = [(sibling, starts[exchange_id]) for sibling, exchange_id in siblings]
    while remaining_siblings:
        other, start = remaining_siblings.pop()
        if is_tombstone(other) or other.redactions:
            continue
        # Edits that are not in the blocks yet belong to this exchange alone.
        is_replaceable = other.ended is not None and (other.merged or not other.edits)
        end = _find_end_of(other, atoms, last_index, start)
        if end is None:
            if (
                is_replaceable
                and _list_question_atoms(tree.list_path_elements(other)) == question_atoms
                and not _is_outranked_by(tree, path[-1].exchange, other)
            ):
                _supersede(tree, other)
            continue
        if is_replaceable:
            tree.change(other.id, superseded=True)
        remaining_siblings += [(child, end) for child in tree.list_children(other)]


def _list_question_atoms(path: Sequence[PathElement]) -> list[Atom]:
    """Returns the atoms of a path, oldest first, without those of its last reply."""
    return [atom for element in path[:-1] for atom in element.atoms]


class _PathAtoms(NamedTuple):
    """The atoms of a path, and where each exchange begins in them."""

    # The atoms of the path, oldest first.
    atoms: list[Atom]
    # The index of each exchange's first atom, by the exchange's id.
    starts: dict[int, int]


def _list_path_atoms(path: Sequence[PathElement]) -> _PathAtoms:
    """Returns the atoms of a path, oldest first. A prefix that was made elsewhere may be hidden, so it is left out."""
    atoms: list[Atom] = []
    starts: dict[int, int] = {}
    for element in path:
        starts.setdefault(element.exchange.id, len(atoms))
        if not 0 <= element.message_index < element.exchange.prefix_length:
            atoms += element.atoms
    return _PathAtoms(atoms, starts)


def _find_end_of(
    exchange: Exchange, atoms: Sequence[Atom], last_index: Mapping[Atom, int], start: int
) -> int | None:
    """Returns the index after the last of an exchange's atoms in a path; None: the path lacks one in this order.

    atoms: the atoms of the path.
    last_index: the last index of each atom in the path.
    start: the index from which on the path is searched.
    """
    for atom in (*list_input_atoms(exchange), *(exchange.reply or ())):
        if last_index.get(atom, -1) < start:
            return None
        start = atoms.index(atom, start) + 1
    return start


def _supersede(tree: Tree, exchange: Exchange) -> None:
    """Marks an exchange as superseded, unless a later turn continued it."""
    if not tree.is_continued(exchange):
        tree.change(exchange.id, superseded=True)


def _asks_same(tree: Tree, exchange: Exchange, other: Exchange, query: Query, now: float) -> bool:
    """Returns whether one of two alternatives repeats or extends the other, so that both ask the same."""
    old, new = _order_by_touch(tree, exchange, other, now)
    # After a match point the position is certain, so a shorter form of a question is the same question too. At the
    # beginning this holds only if the longer form has further questions: no word of its reply had been heard.
    further_inputs = old.inputs[len(new.inputs) :]
    is_certain = exchange.parent is not None or (bool(further_inputs) and all(map(is_user, further_inputs)))
    if tree.extends(new, old) or (is_certain and tree.extends(old, new)):
        return True
    if exchange.parent is None or not old.inputs or not tree.are_apart(old, new):
        return False
    # Both were asked at once (a caller typed and spoke), and the list has both questions in its own order. In another
    # chat that begins alike, the same short words ("yes") are another message.
    remaining_inputs = iter(new.inputs)
    is_asked_again = all(atoms in remaining_inputs for atoms in old.inputs)
    return is_asked_again and _is_same_chat(tree, _JudgedPair(loser=old, winner=new), query)


class _TouchOrder(NamedTuple):
    """Two exchanges in the order in which they were touched."""

    # The exchange that was touched first.
    old: Exchange
    # The exchange that was touched last.
    new: Exchange


def _order_by_touch(tree: Tree, exchange: Exchange, other: Exchange, now: float) -> _TouchOrder:
    """Returns the order in which two exchanges were touched; `exchange` is the new one if both were touched at once.

    now: the time at which the request ends that touches `exchange`. A later date is from before the clock was put back.
    """
    touched_at = tree.read_touched_at(other)
    if touched_at <= tree.read_touched_at(exchange) or touched_at > now + _MAX_AHEAD_S:
        return _TouchOrder(other, exchange)
    return _TouchOrder(exchange, other)


class _JudgedPair(NamedTuple):
    """Two alternatives, of which one may supersede the other."""

    # The alternative that is superseded.
    loser: Exchange
    # The alternative that supersedes it.
    winner: Exchange


def _judge_alternatives(
    tree: Tree, exchange: Exchange, other: Exchange, query: Query, now: float
) -> _JudgedPair | None:
    """Decides between two alternatives: mostly the one touched last wins. None: neither supersedes the other."""
    old, new = _order_by_touch(tree, exchange, other, now)
    is_same = is_same_input(other, exchange)
    # An exchange off the record supersedes only an exchange that it extends: else words on the record would be lost.
    if read_off_record_part(new) > read_off_record_part(old) and (is_same or not tree.extends(new, old)):
        return None
    # If a person and a program (a guardrail, a router) got answers to the same question, the person's answer wins. A
    # client that sends the new message alone has marked it as sent again, and goes on from the last answer.
    sends_list = query.kind is ConversationKind.CLIENT
    if is_same and sends_list and _is_outranked_by(tree, new, old):
        return _JudgedPair(loser=new, winner=old)
    return _JudgedPair(loser=old, winner=new)


def _is_same_chat(tree: Tree, pair: _JudgedPair, query: Query) -> bool:
    """Returns whether two alternatives with different questions are of one chat.

    Without an id another question begins a new chat once the idle time has passed. An exchange without a question is no
    chat, since it continued a reply, and the winner has its words now.
    """
    pause_s = tree.read_touched_at(pair.winner) - tree.read_turn_end(pair.loser)
    return query.is_named or not pair.loser.inputs or pause_s <= query.idle_s


def _is_outranked_by(tree: Tree, exchange: Exchange, other: Exchange) -> bool:
    """Returns whether an exchange has a program's answer and the other one a person's, which stays active then."""
    return _is_for_program(tree, exchange) and not _is_for_program(tree, other)


def _is_for_program(tree: Tree, exchange: Exchange) -> bool:
    """Returns whether a reply that nothing followed has no words for a person: calls alone, or JSON."""
    if tree.list_children(exchange) or is_tombstone(exchange):
        return False
    text = (
        without_thoughts(read_text(tree.contents.find_shown_reply(exchange) or {})).strip()
        if exchange.size
        else ""
    )
    if text[:1] not in "{[":
        return False
    try:
        return not text or isinstance(orjson.loads(text), (dict, list))
    except orjson.JSONDecodeError:
        return False


def mark_continued(tree: Tree, exchange: Exchange) -> None:
    """Marks the exchanges that a finished request with a new user message continued: the exchanges of the turn before.

    The parent of an exchange that `ends_with_user` is left out: the row of that exchange shows it.
    """
    if tree.is_mid_turn(exchange):
        return
    ancestor = tree.find_parent(exchange)
    is_shown = exchange.ends_with_user
    while ancestor is not None:
        if not ancestor.continued and not is_shown:
            tree.change(ancestor.id, continued=True)
        if not tree.is_mid_turn(ancestor):
            return
        ancestor, is_shown = tree.find_parent(ancestor), False


def refresh_active(tree: Tree, exchange: Exchange, *, is_named: bool) -> None:
    """Updates the stored flag `active` of all exchanges that the changes of one request may affect."""
    # Roots of a conversation compete: whether one is detached depends on the others, and on their first turns.
    remaining_exchanges = [tree.by_id[i] for i in tree.changed_ids]
    if any(tree.locate_turn_start(other).parent is None for other in remaining_exchanges):
        remaining_exchanges += [
            other
            for other in tree
            if other.parent is None and other.conversation_row == exchange.conversation_row
        ]
    flags: dict[int, bool] = {}
    while remaining_exchanges:
        other = remaining_exchanges.pop()
        if other.id not in flags:
            flags[other.id] = tree.is_active(other, is_named=is_named)
            remaining_exchanges += filter(tree.is_mid_turn, tree.list_children(other))
    for i, is_active in flags.items():
        if is_active != tree.by_id[i].active:
            tree.change(i, active=is_active)


class Mergeable(NamedTuple):
    """An exchange with memory edits that may be merged into the blocks."""

    # The exchange with the edits.
    exchange: Exchange
    # The value for `Exchange.merged`.
    reason: Literal["carried", "idle"]


def find_mergeable(tree: Tree, now: float, idle_s: float, *, is_named: bool) -> list[Mergeable]:
    """Returns the exchanges with memory edits that may be merged into the blocks, oldest first.

    An exchange with a date in the future ended before the clock was put back, and counts as old.
    """
    mergeable: list[Mergeable] = []
    for exchange in sorted(tree, key=lambda each: (each.begun, each.id)):
        if not exchange.edits or exchange.merged or exchange.ended is None:
            continue
        if not tree.is_active(exchange, is_named=is_named):
            continue
        if tree.is_continued(exchange):
            mergeable.append(Mergeable(exchange, "carried"))
        elif abs(now - exchange.ended) > idle_s:
            mergeable.append(Mergeable(exchange, "idle"))
    return mergeable
