"""Removals: each takes one of the gateway's additions out of a prompt, since an upstream refuses to read it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.core.conversation.portable_message import REMOTE_MEDIA
from gateway.core.prompt.composition import list_rounds_without_results
from gateway.run.memory.prompt import Prompt

# Returns a copy of a prompt without an addition, or None if the prompt does not have it.
Removal = Callable[[Prompt], Prompt | None]


def remove_memory_texts(prompt: Prompt) -> Prompt | None:
    """Returns a copy without memory section, notes and summary, or None if the prompt has none of them."""
    section = prompt.section.without_blocks()
    system = prompt.system if section is prompt.section else section.text
    has_notes = bool(prompt.window.list_fitting_notes(prompt.composition))
    if not (has_notes or prompt.window.summary or system != prompt.system):
        return None
    return replace(
        prompt,
        system=system,
        section=section,
        composition=prompt.composition.without_notes(),
        window=replace(prompt.window, summary=""),
        new_notes=dict.fromkeys(prompt.new_notes, ""),
        recall=replace(prompt.recall, note="", note_tokens=0),
        changes_prefix=True,
    )


def remove_earlier_results(prompt: Prompt) -> Prompt | None:
    """Returns a copy without the stored results before the last reply, or None if the prompt has none."""
    composition = prompt.composition.without_results(is_after_last_reply=False)
    if composition is prompt.composition:
        return None
    window = prompt.window
    if window.replacements is not None:
        window = replace(window, replacements=list_rounds_without_results(window.replacements))
    return replace(prompt, composition=composition, window=window, changes_prefix=True)


def remove_last_results(prompt: Prompt) -> Prompt | None:
    """Returns a copy without the stored results of tools after the last reply, or None if the prompt has none."""
    composition = prompt.composition.without_results(is_after_last_reply=True)
    return None if composition is prompt.composition else replace(prompt, composition=composition)


def remove_stored_media(prompt: Prompt) -> Prompt | None:
    """Returns a copy without the stored media that an upstream has to fetch, or None if the prompt has none."""
    request, inserted = prompt.request, prompt.composition.inserted
    with_media = frozenset(n for n in request.stored_indexes if REMOTE_MEDIA.are_in(request.messages[n]))
    has_inserted_media = any(REMOTE_MEDIA.are_in(each.message) for each in inserted)
    if with_media <= prompt.without_media and not has_inserted_media:
        return None
    inserted = [replace(each, message=REMOTE_MEDIA.replace_in(each.message)) for each in inserted]
    composition = replace(prompt.composition, inserted=inserted)
    return replace(prompt, composition=composition, without_media=with_media, changes_prefix=True)
