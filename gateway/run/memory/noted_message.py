"""Finds the message of a request for which its note is made."""

from __future__ import annotations

from msgspec import Struct

from gateway.core.conversation.exchange import ends_off_record
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.wire_message import flag_results, read_text
from gateway.core.prompt.note_text import read_own_words
from gateway.core.roles import RESULT_ROLES
from gateway.run.memory.memory_context import MemoryContext


class NotedMessage(Struct, frozen=True):
    """The user's message for which the note of a request is made."""

    # The text of the message.
    text: str
    # The speaker's name; None: the client names no speaker.
    name: str | None
    # Its index in the `HashedList` of the request; None: a stored conversation, where it is the last inserted message.
    list_index: int | None
    # Its index among the new messages; None: the message is not new, and its note is not stored.
    new_index: int | None


def find_noted_message(context: MemoryContext) -> NotedMessage | None:
    """Returns the message for which the request's note is made; None: the request takes no note."""
    plan, messages = context.plan, context.plan.messages
    # Recall is for a user's words, not for a nudge of an agent's rules.
    has_words = bool(messages) and messages[-1].get("role") == "user"
    if not has_words or is_nudge(messages[-1]) or flag_results(messages)[-1]:
        return _find_question_before_results(context)
    if plan.is_quote:
        # A message that only quotes its conversation is a front end's request, such as one for a title.
        return None
    index = _choose_own_words_index(plan)
    name = messages[index].get("name")
    # The new messages end with the messages of the list, so an index from the end is the same in both.
    list_index = plan.new_indices[index - len(messages)] if plan.new_indices else None
    return NotedMessage(
        read_text(messages[index]), name if isinstance(name, str) else None, list_index, index
    )


def _choose_own_words_index(plan: Plan) -> int:
    """Returns the index of the last new message with the user's own words, in the run of user messages at the end.

    Some applications (OpenClaw) append a text that they do not send again. A note before that text would be lost.
    """
    messages = plan.messages
    last_index = len(messages) - 1
    if [message.get("role") for message in messages[-2:]] != ["user", "user"]:
        return last_index
    for index in range(last_index, last_index - len(plan.new_indices), -1):
        if messages[index].get("role") != "user":
            break
        if read_own_words(read_text(messages[index])):
            return index
    return last_index


def _find_question_before_results(context: MemoryContext) -> NotedMessage | None:
    """Returns the question before the tool results of a request, if the turn of the question is not stored.

    Its note is not stored either. It is made again, since the model had it when it called the tools.
    """
    plan = context.plan
    listing, match_point = plan.query.listing, plan.match.match_point
    index = len(listing) - 1
    if (
        plan.query.mode not in (MemoryUse.READ, MemoryUse.APART)
        or plan.follows_head
        or index < 0
        or listing.read_role(index) not in RESULT_ROLES
    ):
        return None
    while index >= 0 and listing.read_role(index) != "user":
        index -= 1
    is_stored = index not in plan.new_indices and (match_point is None or not ends_off_record(match_point))
    if index < 0 or is_stored:
        return None
    return NotedMessage(listing.read_text(index), name=None, list_index=index, new_index=None)
