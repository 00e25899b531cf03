"""The changes to blocks and facts by the reply of the background model.

A reply is never trusted: numbers that were not shown mean nothing, texts with secrets are refused, and texts that look
like orders are stored as quotes of the user. The words of a fact decide from which messages it came, not the model,
since forgetting relies on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from gateway.core.memory import memory_tools
from gateway.core.memory.block_edit import BlockEdit, apply_edit
from gateway.core.memory.fact_origins import FactOrigins
from gateway.core.memory.fact_words import make_fact_key
from gateway.core.memory.learning_reply import FactEdit, ReplyEdits
from gateway.core.memory.learning_request import with_human
from gateway.core.memory.orders import as_statement
from gateway.core.memory.secret_texts import has_secret
from storage.commands import LearnedFact, SourcedLine
from storage.reader_commands import LearnedChanges, LearnedValue
from storage.records import Block, Fact, Message


def apply_reply_edits(
    reply_edits: ReplyEdits,
    messages: Sequence[Message],
    known_facts: Mapping[int, Fact],
    blocks: Sequence[Block],
    shown_versions: Mapping[str, int] | None = None,
    *,
    lines: Sequence[SourcedLine] = (),
    keeps_secrets: bool = False,
) -> LearnedChanges:
    """Returns the changes that a reply makes to the blocks and facts as they are now.

    reply_edits: the edits that the reply asks for.
    messages: the messages in the order in which they were numbered for the model.
    known_facts: the facts by their numbers. Some may have ended since, or are gone.
    blocks: the blocks that may be edited; `human` may be missing, and is made when it is first written to.
    shown_versions: the versions of the blocks as they were shown; a block that has changed since is not rewritten as a
        whole. None: any block may be rewritten.
    lines: the lines of the blocks as they were shown.
    keeps_secrets: True if texts with passwords and keys are learned too, as in `clean_messages`.
    """
    changes = _Changes(
        FactOrigins(messages, [*known_facts.values(), *lines]),
        known_facts,
        blocks,
        keeps_secrets=keeps_secrets,
    )
    for edit in reply_edits.edits:
        if isinstance(edit, FactEdit):
            changes.add_fact(edit)
        else:
            changes.edit_block(edit, shown_versions)
    return LearnedChanges(
        changes.list_block_writes(), changes.list_facts(), reply_edits.ignored + changes.refused_count
    )


class _Changes:
    """The changes that the edits of one reply make, one after the other."""

    def __init__(
        self,
        origins: FactOrigins,
        known_facts: Mapping[int, Fact],
        blocks: Sequence[Block],
        *,
        keeps_secrets: bool,
    ) -> None:
        # The number of refused edits.
        self.refused_count = 0
        self._origins = origins
        self._known_facts = known_facts
        self._keeps_secrets = keeps_secrets
        # The facts by their keys.
        self._facts: dict[str, LearnedFact] = {}
        # The values of the blocks before the edits, by label.
        self._values_before = {block.label: block.value for block in blocks}
        # The blocks as the edits so far leave them.
        self._blocks = with_human(blocks)
        # The rows of the exchanges from which the edits come, by the block's label.
        self._sources: dict[str, set[int]] = {}

    def add_fact(self, edit: FactEdit) -> None:
        """Adds a fact, unless it is refused."""
        fact = self._make_learned_fact(edit)
        if fact is None:
            self.refused_count += 1
        else:
            self._facts.setdefault(fact.key, fact)

    def edit_block(self, edit: BlockEdit, shown_versions: Mapping[str, int] | None) -> None:
        """Edits a block as the previous edits have left it, unless the edit is refused."""
        label = edit.label
        block = next((block for block in self._blocks if block.label == label), None)
        if edit.op in memory_tools.REWRITE_OPERATIONS and not _may_rewrite(edit, block, shown_versions):
            self.refused_count += 1
            return
        arguments = _mark_orders(edit, block)
        result = apply_edit(edit.op, arguments, block)
        new_text = " ".join(str(arguments.get(name, "")) for name in memory_tools.NEW_TEXT_ARGUMENTS)
        if result.value is None or block is None or (not self._keeps_secrets and has_secret(new_text)):
            self.refused_count += 1
            return
        edited_block = replace(block, value=result.value)
        self._blocks = [edited_block if each is block else each for each in self._blocks]
        self._sources.setdefault(label, set()).update(self._origins.find_source_rows(new_text))

    def list_facts(self) -> list[LearnedFact]:
        """Returns the facts to be stored, each once."""
        return [*self._facts.values()]

    def list_block_writes(self) -> list[LearnedValue]:
        """Returns the blocks that change, each with its new value and sources."""
        return [
            LearnedValue(block, block.value, tuple(sorted(self._sources[block.label])))
            for block in self._blocks
            if block.label in self._sources and block.value != self._values_before.get(block.label, "")
        ]

    def _make_learned_fact(self, edit: FactEdit) -> LearnedFact | None:
        """Returns the fact to be stored; None: the edit is refused."""
        text = as_statement(edit.text)
        if not self._keeps_secrets and (has_secret(text) or has_secret(edit.subject)):
            return None
        key = make_fact_key(text)
        replaced_facts = [
            self._known_facts[n] for n in dict.fromkeys(edit.replaces) if n in self._known_facts
        ]
        # A fact that "replaces" its own words adds nothing.
        if any(make_fact_key(fact.text) == key for fact in replaced_facts):
            return None
        # A replaced fact may have ended since, as by a person's correction. Then the new fact would be true along with
        # the fact that took its place.
        if any(fact.ended_at is not None for fact in replaced_facts):
            return None
        origin = self._origins.find_numbered(edit.messages) or self._origins.find_closest(text)
        sources = self._origins.find_source_rows(f"{text} {edit.subject}")
        if origin is not None:
            sources.add(origin.exchange_row)
        for fact in replaced_facts:
            sources.update(fact.sources)
        return LearnedFact(
            text=text,
            about=edit.subject,
            key=key,
            valid_from=0.0 if origin is None else origin.at,
            exchange_row=None if origin is None else origin.exchange_row,
            sources=tuple(sorted(sources)),
            replaces=tuple(fact.id for fact in replaced_facts),
            standing=edit.is_standing,
        )


def _may_rewrite(edit: BlockEdit, block: Block | None, shown_versions: Mapping[str, int] | None) -> bool:
    """Returns whether an edit may rewrite a block as a whole: it has text, and the block has not changed since."""
    if not str(edit.arguments["new_memory"]).strip():
        return False
    return block is not None and (shown_versions is None or shown_versions.get(block.label) == block.version)


def _mark_orders(edit: BlockEdit, block: Block | None) -> Mapping[str, Any]:
    """Returns the arguments with each new line that looks like an order marked as the user's statement."""
    present_lines = frozenset(block.value.split("\n")) if block is not None else frozenset()
    arguments = dict(edit.arguments)
    for name in memory_tools.NEW_TEXT_ARGUMENTS:
        if isinstance(arguments.get(name), str):
            lines = arguments[name].split("\n")
            arguments[name] = "\n".join(
                line if line in present_lines else as_statement(line) for line in lines
            )
    return arguments
