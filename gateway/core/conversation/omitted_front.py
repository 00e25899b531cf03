"""The front of a stored path that a client's list has left out, found by the tail that the list still has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.core.conversation.amendments import Amendment
from gateway.core.conversation.canonical import is_question
from gateway.core.conversation.exchange import list_input_atoms
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import Match
from gateway.core.conversation.tree import PathElement, Tree
from storage.records import CALL_ATOM, RESULT_ATOM, TEXT_ATOM, USER_ATOM, Atom

# The kinds of atoms that are compared first, then without calls and results, because some clients drop tool rounds.
_COMPARED_KINDS = (
    (USER_ATOM, TEXT_ATOM, RESULT_ATOM, CALL_ATOM),
    (USER_ATOM, TEXT_ATOM),
)


def find_omitted_front(
    tree: Tree, listing: HashedList, match: Match, amendments: Iterable[Amendment]
) -> list[PathElement]:
    """Returns the front of the match point's path that the client left out before its list."""
    assert match.match_point is not None  # else the list continues nothing
    elements = with_amendments(tree.list_path_elements(match.match_point), listing, amendments)
    front = [atom for element in elements[:-1] for atom in element.atoms]
    if front and listing.list_atoms(len(listing))[: len(front)] == front:
        # The list begins where the path begins, though the path may have the same messages twice.
        return []
    return find_trimmed_front(elements, listing.list_atoms(match.last + 1))


def with_amendments(
    elements: Iterable[PathElement], listing: HashedList, amendments: Iterable[Amendment]
) -> list[PathElement]:
    """Returns a copy of a path with its replies, also cancelled ones, in the form in which they came back."""
    replies = {each.exchange_row: range(*each.reply) for each in amendments if each.reply}
    path: list[PathElement] = []
    for element in elements:
        exchange = element.exchange
        if element.message_index >= 0 or exchange.id not in replies:
            path.append(element)
        # An exchange without a stored reply ends with its last input.
        last_index = len(exchange.inputs) - 1 if exchange.reply is None else -1
        if exchange.id in replies and element.message_index == last_index:
            atoms = tuple(atom for i in replies[exchange.id] for atom in listing.atoms[i])
            path.append(PathElement(exchange, -1, atoms, exchange.offset + len(list_input_atoms(exchange))))
    return path


def find_trimmed_front(elements: Sequence[PathElement], client_atoms: Sequence[Atom]) -> list[PathElement]:
    """Returns the front of a path before a trimmed list; []: the list is no proper tail of the path.

    The first message of the tail has to be the same word for word.

    client_atoms: the atoms of the list up to its last stored reply.
    """
    # Each atom of the path with the index of its element.
    path = [(atom, index) for index, element in enumerate(elements) for atom in element.atoms]
    for kinds in _COMPARED_KINDS:
        if client_atoms[:1] and client_atoms[0][:1] not in kinds:
            continue  # the list begins within a tool round, so its client has not dropped those
        compared_atoms = [atom for atom in client_atoms if atom[:1] in kinds]
        path_atoms = [(atom, index) for atom, index in path if atom[:1] in kinds]
        if not compared_atoms or len(compared_atoms) >= len(path_atoms):
            continue
        tail = path_atoms[len(path_atoms) - len(compared_atoms) :]
        first_atom, front_length = tail[0]
        if not (compared_atoms[0] == first_atom == elements[front_length].atoms[0]):
            continue
        stored_atoms = [atom for atom, _ in tail]
        if all(map(_may_be_same, compared_atoms, stored_atoms)):
            return list(elements[:front_length])
    return []


def _may_be_same(client_atom: Atom, stored_atom: Atom) -> bool:
    """Returns whether a stored message may be the client's: a user's template or a pruned result differs in words."""
    return client_atom == stored_atom or (client_atom[:1] == stored_atom[:1] and is_question((client_atom,)))
