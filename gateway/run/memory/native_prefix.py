"""The beginning of a native request, up to the thoughts of its conversation: whether it changed since the last request.

Thoughts are bound to the text before them, so an upstream refuses them after another text.
"""

from __future__ import annotations

from msgspec.structs import replace

from gateway.core.conversation.exchange import is_tombstone
from gateway.run.memory.fitted_window import WHOLE_WINDOW
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt


def mark_changed_prefix(context: MemoryContext, prompt: Prompt) -> Prompt:
    """Returns the prompt of a native request with the note whether its beginning differs from the last request's."""
    if prompt.composition.unrestored_rounds or _follows_tombstone(context) or _joins_replies(context):
        prompt = replace(prompt, section=prompt.section.with_changed_prefix())
    return replace(prompt, changes_prefix=_changes_prefix(context, prompt))


def _follows_tombstone(context: MemoryContext) -> bool:
    """Returns whether the turn before is off the record, or was forgotten."""
    match_point = context.plan.match.match_point
    return match_point is not None and is_tombstone(match_point)


def _joins_replies(context: MemoryContext) -> bool:
    """Returns whether the last reply came back in one message with the text of another reply.

    The other reply was made without memory tools, or the last reply had paused.
    """
    match = context.plan.match
    if match.match_point is None or match.altered is None:
        return False
    return any(not child.inputs for child in context.tree.list_children(match.match_point))


def _changes_prefix(context: MemoryContext, prompt: Prompt) -> bool:
    """Returns whether something before the thoughts of the conversation may differ from the request before."""
    pinned_section = context.section
    plan = context.plan
    composition = prompt.composition
    match_point = plan.match.match_point
    if context.is_off or _follows_tombstone(context):
        return True  # one of the replies may have been made with memory, and another one without
    if match_point is None or composition.unrestored_rounds or composition.moves_rounds:
        return True
    thread = context.request.chat.thread
    continues_thread = thread is not None and thread.previous is not None
    # The upstream has the prefix of a continued thread since it began. A conversation without a pinned section began
    # without the gateway's tools.
    if not continues_thread and (
        prompt.section.has_changed_prefix or (pinned_section is None and context.offered_tools)
    ):
        return True
    system_before = prompt.system if pinned_section is None else pinned_section.text
    if prompt.system != system_before or prompt.window.left_out != WHOLE_WINDOW.left_out:
        return True
    # The path has a reply at each depth. Further replies of the list were made elsewhere, or without memory.
    return plan.query.listing.reply_group_count > match_point.depth + 1
