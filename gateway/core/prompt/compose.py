"""Composing: puts stored messages, notes and hidden tool rounds around the messages of the client's list.

The client's own messages go upstream contiguous and unchanged, but for results of tools that come late in a stored
conversation, which move to their calls. A note comes before a user message's text; a hidden round takes the place of
the assistant message in which the client has only the streamed text. All of them are found by their position on the
path, so that the bytes of one turn are the beginning of the next turn's.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.plan import Plan, list_rivals
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.prompt.compose_after_head import compose_after_head
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.omitted_messages import list_omitted_messages
from gateway.core.prompt.restored_replies import put_restored_replies
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, read_shown_by_note
from gateway.core.subsequence import pair_lcs
from storage.commands import Additions
from storage.records import Exchange

# The most stretches of `subsequence.LCS_ATOMS` in which a list is compared with its path. Lists differ in more than one
# where a client has pruned results. Not measured: it bounds the time.
_MAX_STRETCHES = 8


def compose(
    tree: Tree,
    plan: Plan,
    offered_tools: Container[str],
    new_notes: Mapping[int, str],
    additions: Additions | None = None,
) -> Composition:
    """Returns the messages and texts that go around the client's list.

    offered_tools: the names of the gateway tools in this request.
    new_notes: the notes of new messages, by the indices among the new messages.
    additions: the additions to a list that equals its path word for word, so that positions are counted; None:
        positions are found by comparing list and path.

    Raises: MissingContents.
    """
    if plan.follows_head:
        return compose_after_head(tree, plan, offered_tools, new_notes)
    listing, match = plan.query.listing, plan.match
    composition = Composition([*list_omitted_messages(tree, plan, offered_tools)] if plan.omitted else ())
    for i, note in new_notes.items():
        if note:
            composition.put_note(listing.positions[plan.new_indices[i]], note, estimate_tokens(note))
    if match.match_point is None:
        return composition
    if additions is not None:
        replies = _put_notes_by_count(listing, additions, composition)
    else:
        path = tree.list_path_elements(match.match_point)
        replies = _put_notes_by_comparison(listing, match.last + 1, path, composition)
    if match.altered:
        replies[match.last] = match.match_point
    # If only cancelled requests went on after an altered reply, its stored words are still the words of the model.
    for amendment in plan.amendments:
        exchange = tree.get(amendment.exchange_row)
        if amendment.reply and exchange is not None and exchange.id != match.match_point.id:
            replies.update(dict.fromkeys(range(*amendment.reply), exchange))
    if replies:
        put_restored_replies(tree, plan, replies, offered_tools, composition)
    return composition


def find_known_note(tree: Tree, plan: Plan, index: int) -> str | None:
    """Returns the note that a new message has already; "": a recall found nothing for it; None: no note was made.

    A message has a note if it came before, with the same messages before it.

    index: the index of the message among the new ones.
    """
    prefix = plan.exchange.inputs[: index + 1]
    rivals = list_rivals(tree, plan.match.match_point, plan.conversation_row)
    noted_rivals = [rival for rival in rivals if index in rival.notes and rival.inputs[: index + 1] == prefix]
    if not noted_rivals:
        return None
    return max(noted_rivals, key=tree.make_recency_key).notes[index]


def _put_notes_by_count(
    listing: HashedList, additions: Additions, composition: Composition
) -> dict[int, Exchange]:
    """Puts the notes of a path into a list that equals the path word for word. Returns the replies by their messages.

    Both have the same atoms, so the number of atoms before a message identifies the message.
    """
    replies: dict[int, Exchange] = {}
    for note in additions.notes:
        text = note.utf8.decode("utf-8", "surrogatepass")
        # The values are cached, since the next turn has the same notes.
        if not note.tokens:
            note.tokens = estimate_tokens(text)
            note.shown = read_shown_by_note(text) or None
        index = listing.positions[listing.locate_message(note.at)]
        composition.put_note(index, text, note.tokens, note.shown or NOTHING_SHOWN)
    last_inputs: list[tuple[int, Exchange]] = []
    for exchange in additions.rounds:
        # A client may have a reply in several messages. Only a reply in a single message has a place of its own.
        end = count_atoms_to_end(exchange)
        first_index = listing.locate_message(end - len(exchange.reply or ()))
        last_index = listing.locate_message(end - 1)
        replies.update(dict.fromkeys(range(first_index, last_index + 1), exchange))
        last_inputs.append((last_index, exchange))
    _add_wordless_replies(listing, last_inputs, replies)
    return replies


def _put_notes_by_comparison(
    listing: HashedList, end: int, path: Sequence[PathElement], composition: Composition
) -> dict[int, Exchange]:
    """Puts the notes of a path into any list, up to the message `end`. Returns the replies by their messages."""
    replies: dict[int, Exchange] = {}
    last_inputs: list[tuple[int, Exchange]] = []
    for i, element in _align_with_path(listing, end, path):
        composition.elements_by_index.setdefault(listing.positions[i], element)
        if element.message_index == len(element.exchange.inputs) - 1:
            last_inputs.append((i, element.exchange))
        if element.message_index == -1:
            replies[i] = element.exchange
        elif is_user(element.atoms) and (note := element.exchange.notes.get(element.message_index)):
            composition.put_note(listing.positions[i], note, 0)
    # One message may be met for several atoms.
    composition.note_tokens = sum(map(estimate_tokens, composition.notes.values()))
    _add_wordless_replies(listing, last_inputs, replies)
    return replies


def _add_wordless_replies(
    listing: HashedList, last_inputs: Iterable[tuple[int, Exchange]], replies: dict[int, Exchange]
) -> None:
    """Adds the replies with hidden rounds that have no words, and so no atoms: each follows the input of its exchange.

    A reply that was paused without a word goes on in the same message, as another exchange.

    last_inputs: exchanges with the index of their last input in the list.
    """
    for i, exchange in last_inputs:
        if exchange.reply or not exchange.has_full_reply or i + 1 >= len(listing):
            continue
        known_reply = replies.get(i + 1)
        has_rounds = known_reply is not None and known_reply.has_full_reply
        if listing.read_role(i + 1) == "assistant" and not has_rounds:
            replies[i + 1] = exchange


def _align_with_path(
    listing: HashedList, end: int, elements: Sequence[PathElement]
) -> list[tuple[int, PathElement]]:
    """Returns pairs of a message of the list and the path's element that is equal to it, oldest first."""
    atoms = [atom for element in elements for atom in element.atoms]
    elements_by_atom = [element for element in elements for _ in element.atoms]
    pairs = pair_lcs(listing.list_atoms(end), atoms, _MAX_STRETCHES)
    return [(listing.locate_message(i), elements_by_atom[j]) for i, j in reversed(pairs)]
