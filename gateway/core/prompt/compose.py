"""Composing: puts stored messages, notes and hidden tool rounds around the messages of the client's list.

The client's own messages go upstream contiguous and unchanged, but for results of tools that come late in a stored
conversation, which move to their calls. A note comes before a user message's text; a hidden round takes the place of
the assistant message in which the client has only the streamed text. All of them are found by their position on the
path, so that the bytes of one turn are the beginning of the next turn's.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, takewhile

from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.exchange_content import Content
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.plan import Plan, list_rivals
from gateway.core.conversation.portable_message import make_portable_message
from gateway.core.conversation.private import without_private
from gateway.core.conversation.provider_fields import refill
from gateway.core.conversation.tree import PathElement, PathPosition, Tree
from gateway.core.conversation.wire_message import WireMessage, make_shown_reply
from gateway.core.prompt.composition import Composition, InsertedMessage, read_shown, without_result
from gateway.core.prompt.hidden_rounds import is_offered, restore_rounds, without_rounds
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.omitted_messages import (
    as_clients_resend,
    is_made_without_earlier_results,
    is_of_same_model,
    list_omitted_messages,
)
from gateway.core.prompt.result_order import SentMessage, has_calls_or_results, put_results_after_calls
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, ShownBlocks, combine_shown, read_shown_by_note
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
    new_notes: the notes of new messages: index among the new messages -> note.
    additions: the additions to a list that equals its path word for word, so that positions are counted; None:
        positions are found by comparing list and path.

    Raises: MissingContents.
    """
    if plan.follows_head:
        return _compose_after_head(tree, plan, offered_tools, new_notes)
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
        _restore_rounds(tree, plan, replies, offered_tools, composition)
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


def _find_heard_with_rounds(
    tree: Tree, plan: Plan, offered_tools: Container[str]
) -> list[WireMessage] | None:
    """Returns the last reply as it was heard, with its hidden rounds, as it is sent from now on (append mode).

    Returns None if the reply has no hidden rounds, or if they cannot be restored.
    """
    match_point = plan.match.match_point
    messages = plan.query.listing.messages[: plan.heard_count]
    if match_point is None or not match_point.has_full_reply or not messages:
        return None
    reply = as_clients_resend(make_shown_reply(messages) if len(messages) > 1 else messages[0])
    is_same = is_of_same_model(match_point, plan)
    return restore_rounds(
        tree.contents.get(match_point),
        reply,
        following=None,
        offered_tools=offered_tools,
        is_same_model=is_same,
    )


def _compose_after_head(
    tree: Tree, plan: Plan, offered_tools: Container[str], new_notes: Mapping[int, str]
) -> Composition:
    """Returns the composition of a list that goes on from a head. The end of the list that is in order stays there."""
    listing, match_point = plan.query.listing, plan.match.match_point
    heard_with_rounds = _find_heard_with_rounds(tree, plan, offered_tools)
    omitted = list_omitted_messages(tree, plan, offered_tools)
    messages = [
        *_list_heard_messages(plan, heard_with_rounds),
        *_list_messages_without_reply(plan, new_notes),
    ]
    # A history may have thousands of messages, and most have no calls and results.
    if has_calls_or_results(omitted) or has_calls_or_results(each.content for each in messages):
        messages = put_results_after_calls([*map(SentMessage, omitted), *messages])
        omitted = []
    had_rounds = match_point is not None and match_point.has_full_reply and plan.heard_count > 0
    composition = Composition(unrestored_rounds=int(had_rounds and heard_with_rounds is None))
    unmoved_messages = _list_messages_that_stay(messages, listing.positions)
    moved_indices = set(range(len(listing)))
    for message, index in unmoved_messages:
        assert index is not None  # only messages of the client's list stay
        if message.note:
            tokens = estimate_tokens(message.note)
            composition.put_note(listing.positions[index], message.note, tokens, message.shown)
        moved_indices.remove(index)
    moved_messages = messages[: len(messages) - len(unmoved_messages)]
    composition.inserted = [*omitted, *(message.content for message in moved_messages)]
    composition.replacements = {listing.positions[i]: [] for i in moved_indices}
    return composition


def _list_messages_that_stay(
    messages: Sequence[SentMessage], positions: Sequence[int]
) -> Sequence[SentMessage]:
    """Returns the messages at the end that stay in the client's list.

    positions: the position in the request of each message of the list.
    """
    start = len(messages)
    next_index = len(positions)
    while start and (index := messages[start - 1].list_index) is not None and index < next_index:
        start -= 1
        next_index = index
    result_count = len([*takewhile(lambda each: each.role == "tool", messages[start:])])
    # Results directly follow their reply. The list may have a system message among them, or after a reply that moves.
    last_result = next_index + result_count - 1
    is_parted = result_count and positions[last_result] != positions[next_index] + result_count - 1
    return messages[start + result_count :] if next_index or is_parted else messages[start:]


def _list_heard_messages(plan: Plan, with_rounds: Sequence[WireMessage] | None) -> Iterator[SentMessage]:
    """Yields the last reply as it was heard. with_rounds: the reply with its hidden rounds; None: no hidden rounds."""
    match_point, listing = plan.match.match_point, plan.query.listing
    if match_point is None or not plan.heard_count:
        return
    position = PathPosition(match_point.depth, plan.exchange.offset - len(match_point.reply or ()))
    atoms = tuple(listing.list_atoms(plan.heard_count))
    messages = listing.messages[: plan.heard_count] if with_rounds is None else with_rounds
    is_same = is_of_same_model(match_point, plan)
    for i, message in enumerate(messages if is_same else map(make_portable_message, messages)):
        yield SentMessage(InsertedMessage.of(message, atoms, position), i if with_rounds is None else None)


def _list_messages_without_reply(plan: Plan, new_notes: Mapping[int, str]) -> Iterator[SentMessage]:
    """Yields the messages without a reply: pending messages, then the list's messages after a repeated last reply."""
    listing = plan.query.listing
    exchange = plan.exchange
    pending_count = len(plan.pending)
    offsets = accumulate(map(len, exchange.inputs), initial=exchange.offset)
    inputs = [
        InsertedMessage.of(message, atoms, PathPosition(exchange.depth, offset), new_notes.get(i, ""))
        for i, (message, atoms, offset) in enumerate(
            zip(plan.messages, exchange.inputs, offsets, strict=False)
        )
    ]
    yield from map(SentMessage, inputs[:pending_count])
    start = plan.heard_count or plan.resent_count
    # The heard part of a reply that was off the record is sent, and not stored.
    unstored_indices = range(start, len(listing) - len(plan.new_indices))
    unstored_messages = [
        InsertedMessage.of(listing.messages[i], listing.atoms[i], None) for i in unstored_indices
    ]
    for i, message in enumerate([*unstored_messages, *inputs[pending_count:]], start):
        yield SentMessage(message, i)


def _restore_rounds(
    tree: Tree,
    plan: Plan,
    replies: dict[int, Exchange],
    offered_tools: Container[str],
    composition: Composition,
) -> None:
    """Puts back hidden rounds and provider fields of replies that are one message of the list."""
    restorable: list[tuple[int, Exchange]] = []
    for i, exchange in replies.items():
        if not (exchange.has_full_reply or exchange.opaque):
            continue
        if _is_one_message(i, exchange, replies):
            restorable.append((i, exchange))
        else:
            # A reply that the client has in two messages stays so. It breaks the provider's cache once as well.
            composition.unrestored_rounds += exchange.has_full_reply and i == plan.match.last
    tree.contents.group(exchange for _, exchange in restorable)
    # The index of the message before which the results of tools are not sent again.
    first_read_index = max(
        (i for i, each in restorable if is_made_without_earlier_results(tree.contents.get(each).shown_reply)),
        default=0,
    )
    for i, exchange in restorable:
        content = tree.contents.get(exchange)
        messages = _find_restored_reply(i, exchange, content, plan, offered_tools)
        if messages is None:
            if exchange.has_full_reply:
                # A reply that came back cut is sent cut from then on. So it breaks the provider's cache once, in the
                # request that follows the reply directly. A tool that is missing breaks the cache in each request.
                is_break = i == plan.match.last or not is_offered(content, offered_tools)
                composition.unrestored_rounds += is_break
            _put_reply_without_rounds(plan.query.listing, i, content, composition)
        else:
            sends_results = i >= first_read_index
            _put_restored_reply(
                plan.query.listing, i, exchange, content, messages, composition, sends_results=sends_results
            )


def _put_reply_without_rounds(
    listing: HashedList, index: int, content: Content, composition: Composition
) -> None:
    """Puts a reply into the composition without the provider fields of its hidden rounds, if it has such fields."""
    message = listing.messages[index]
    bare_reply = without_rounds(content, message)
    if bare_reply is not message:
        composition.replacements[listing.positions[index]] = [without_private(bare_reply)]


def _put_restored_reply(
    listing: HashedList,
    index: int,
    exchange: Exchange,
    content: Content,
    messages: list[WireMessage],
    composition: Composition,
    *,
    sends_results: bool,
) -> None:
    """Puts a restored reply into the composition, in place of the reply of the list.

    messages: the hidden rounds, then the reply.
    sends_results: False: the results of tools go without their content.
    """
    position = listing.positions[index]
    sent_messages = messages if sends_results else map(without_result, messages)
    composition.replacements[position] = [*map(without_private, sent_messages)]
    if exchange.has_full_reply:
        composition.stored_rounds[position] = messages
        if listing.locate_message(count_atoms_to_end(exchange) - len(exchange.reply or ())) != index:
            composition.moves_rounds = True
    if shown_blocks := _read_shown_in_rounds(content):
        composition.shown[position] = shown_blocks


def _find_restored_reply(
    index: int, exchange: Exchange, content: Content, plan: Plan, offered_tools: Container[str]
) -> list[WireMessage] | None:
    """Returns a reply of the list with its hidden rounds, or else its provider fields; None: the reply stays."""
    listing = plan.query.listing
    message = listing.messages[index]
    is_same_model = is_of_same_model(exchange, plan)
    if exchange.has_full_reply:
        following = listing.messages[index + 1 :]
        return restore_rounds(content, message, following, offered_tools, is_same_model=is_same_model)
    if not is_same_model or listing.atoms[index] != exchange.reply:
        return None
    refilled_reply = refill(message, content.shown_reply or {})
    return None if refilled_reply is None else [refilled_reply]


def _is_one_message(index: int, exchange: Exchange, replies: Mapping[int, Exchange]) -> bool:
    """Returns whether the client has a reply in one message. replies: the replies by their messages' indices."""
    neighbours = replies.get(index - 1), replies.get(index + 1)
    return all(neighbour is None or neighbour.id != exchange.id for neighbour in neighbours)


def _read_shown_in_rounds(content: Content) -> ShownBlocks:
    """Returns the memory blocks that the hidden rounds of a reply show."""
    return combine_shown(map(read_shown, content.full_reply or ()), NOTHING_SHOWN)
