"""Forgetting by a person's decision: a number of the preview is confirmed, then the previewed texts go.

A forgetting is written down before it begins (`storage/sql/forget.py`). If it takes long, it goes on after its request
was answered. If the process ends before it is done, the next start resumes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.errors import Conflict
from gateway.run.admin.audited_parts import AuditedVersion, render_audited_part
from gateway.run.admin.forgetting.forget_operations import (
    CALL_S,
    name_erased,
    note_forgetting,
    note_retained,
)
from gateway.run.admin.forgetting.forgetting_preview import (
    ErasedFactRecord,
    ErasedVersionRecord,
    ForgetPreview,
    ForgettingPreviews,
    TargetKind,
    TargetValue,
)
from gateway.run.admin.memory.block_versions import VersionId
from gateway.run.admin.memory.editor import Editor
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_names import make_memory_flags
from gateway.run.admin.plain_text import quote_shell_word
from gateway.run.admin.records.memory_records import SourceKind
from storage.errors import StoreError, WriteConflict
from storage.records import Scope
from storage.sql.store import Store
from storage.task_set import TaskSet

_log = logging.getLogger("mnemogate")


class ForgetResult(Struct, frozen=True):
    """The end of a forgetting."""

    # True: the forgetting is over; False: it goes on by itself, at once or when the store works again.
    done: bool
    # True: the database has no old copies of the forgotten texts.
    swept: bool
    # The number of messages that went.
    messages: int
    # The command of the `ForgetPreview`, then a line `memory add` for each fact that stays.
    command: str | None
    # For "texts": the number of texts that were there.
    texts: int | UnsetType = UNSET
    # For "texts": the numbers of texts that were there, by kind.
    text_counts: dict[SourceKind | Literal["version"], int] | UnsetType = UNSET
    # The number of facts that went with the messages; not set: none, or the whole memory went.
    facts: int | UnsetType = UNSET
    # The number of true corrections among the newest of these facts; not set: none.
    corrections: int | UnsetType = UNSET
    # The numbers of the facts that stay, and rest on no message; not set: none.
    kept: tuple[int, ...] | UnsetType = UNSET


class MemoryForgetting:
    """Forgets the texts of a preview. One for the process."""

    def __init__(
        self, store: Store, views: MemoryViews, now: Callable[[], float], call_s: float = CALL_S
    ) -> None:
        """Begins without forgettings under way.

        now: returns the seconds since the epoch.
        call_s: the seconds after which an answer says that a forgetting goes on.
        """
        self._store = store
        self._views = views
        self.previews = ForgettingPreviews(store, views)
        self._now = now
        self._call_s = call_s
        self._tasks = TaskSet()

    async def forget(
        self,
        editor: Editor,
        uid: str,
        kind: TargetKind,
        value: TargetValue = None,
        *,
        confirm: str | None = None,
        keep: Collection[int] = (),
    ) -> ForgetResult:
        """Forgets a part.

        confirm: the `ForgetPreview.confirm` that the person typed; None: nothing was typed.
        keep: the numbers of true facts of the preview that stay, and rest on no message from then on.

        Raises: Conflict: the number is wrong, or was right before and is not now; or a fact of `keep` would not go, or
            is no longer true. UnknownId.
        """
        memory = await self._views.get(editor.project, uid)
        part = await self.previews.get_part(memory, kind, value)
        preview = await self.previews.make(memory, part)
        _check_confirmed(preview, confirm)
        retained_facts = [each for each in preview.facts or () if each.seq in keep]
        retained_seqs = [each.seq for each in retained_facts]
        if unknown_seqs := {*keep}.difference(retained_seqs):
            raise _make_keep_error(f"fact {min(unknown_seqs)} is none of those that would go")
        erased_names = await name_erased(
            self._store, memory.id, part.target, _list_names_in_audit(kind, preview), retained_seqs
        )
        try:
            forgetting_id = await self._store.forgetting.begin(
                memory.id, part.target, keeps_pause=True, retained_facts=retained_seqs
            )
        except WriteConflict as error:
            raise _make_keep_error(error.message) from error
        task = self._tasks.start(self._carry_out(forgetting_id))
        at = self._now()
        await note_retained(self._store, at, editor.actor, uid, retained_seqs)
        await note_forgetting(self._store, at, editor.actor, uid, erased_names)
        await asyncio.wait({task}, timeout=self._call_s)
        is_swept = task.result() if task.done() else None
        return _make_result(memory.scope, preview, retained_facts, is_swept)

    async def aclose(self) -> None:
        """Stops the forgettings that are under way. The next start resumes them."""
        await self._tasks.aclose()

    # -- the forgetting

    async def _carry_out(self, forgetting_id: int) -> bool | None:
        """Performs a forgetting that was begun. Returns whether the database has no old copies of the forgotten texts.

        Returns None if the store failed: then the store resumes the forgetting later.
        """
        try:
            await self._store.forgetting.run(forgetting_id)
            return await self._store.forgetting.sweep()
        except StoreError as error:
            _log.warning(
                "Forgetting %d is not finished, and is resumed later: %s", forgetting_id, error.message
            )
            return None


def _check_confirmed(preview: ForgetPreview, confirm: str | None) -> None:
    """Checks the number that confirms. Raises: Conflict: it is wrong. confirm: the typed text; None: no text."""
    typed_text = (confirm or "").strip()
    if preview.confirm is not None and typed_text != preview.confirm:
        noun = "texts" if preview.target.kind == "texts" else "messages"
        raise Conflict(
            f"Nothing was forgotten: {preview.confirm} {noun} would go now, not “{typed_text}”.",
            param="confirm",
        )


def _make_keep_error(reason: str) -> Conflict:
    return Conflict(f"Nothing was forgotten: {reason}.", param="keep")


def _make_result(
    scope: Scope, preview: ForgetPreview, retained_facts: Sequence[ErasedFactRecord], is_swept: bool | None
) -> ForgetResult:
    """Returns the result of a forgetting.

    retained_facts: the facts of the preview that stay.
    is_swept: True: the database has no old copies; None: the forgetting goes on.
    """
    retained_seqs = tuple(each.seq for each in retained_facts)
    corrections = [
        each for each in preview.facts or () if each.corrected_by and each.seq not in retained_seqs
    ]
    return ForgetResult(
        done=is_swept is not None,
        swept=bool(is_swept),
        messages=preview.will_go.messages,
        command=preview.command
        and "\n".join([preview.command, *(_render_add_command(scope, each) for each in retained_facts)]),
        texts=len(preview.texts) if preview.texts else UNSET,
        text_counts=Counter(text.kind for text in preview.texts) if preview.texts else UNSET,
        facts=preview.more_facts - len(retained_seqs) or UNSET,
        corrections=len(corrections) or UNSET,
        kept=retained_seqs or UNSET,
    )


def _list_names_in_audit(kind: TargetKind, preview: ForgetPreview) -> list[str]:
    """Returns the audit's names of the texts that go, or of the part if it is one."""
    if preview.texts:
        return [
            str(AuditedVersion(text.label, text.seq))
            if isinstance(text, ErasedVersionRecord)
            else render_audited_part(text.kind, text.seq)
            for text in preview.texts
        ]
    part_id = preview.target.id
    if kind == "version":
        return [str(AuditedVersion(*VersionId.parse(part_id)))]
    return ["all" if kind == "all" else render_audited_part(kind, part_id)]


def _render_add_command(scope: Scope, fact: ErasedFactRecord) -> str:
    """Returns the command line that adds the text of a fact."""
    options = [*make_memory_flags(scope), f"--text={fact.text}"]
    return " ".join(["mnemogate", "memory", "add", *map(quote_shell_word, options)])
