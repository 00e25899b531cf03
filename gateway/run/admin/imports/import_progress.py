"""The progress of an import, as it is stored and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.dates import render_iso
from gateway.core.usage.estimate import CHARS_PER_TOKEN
from storage.import_commands import MessageCounts

# The most warnings that are stored. If there are more, the last one that is shown has the number of the others.
MAX_WARNINGS: Final = 100


class ImportCounts(Struct, frozen=True):
    """How many conversations, messages or facts an import has read, and what became of them."""

    # The number in the whole file. When the import has ended, it is the sum of the others.
    found: int = 0
    new: int = 0
    # The number that the memory had already.
    known: int = 0
    skipped: int = 0

    def with_more(self, *, new: int = 0, known: int = 0, skipped: int = 0) -> ImportCounts:
        """Returns a copy of the counts with the items that were just processed."""
        return ImportCounts(self.found, self.new + new, self.known + known, self.skipped + skipped)


class PartialConversation(Struct, frozen=True):
    """The written part of the conversation that an import is writing."""

    # The number of its exchanges.
    exchange_count: int = field(default=0, name="exchanges")
    # The messages of these exchanges, counted as in `ImportCounts`.
    new: int = 0
    known: int = 0
    skipped: int = 0


class ImportProgress(Struct, frozen=True):
    """The progress of an import. It quotes nothing of the file.

    The import's row has it as JSON, in which some fields have other names (`name`).
    """

    conversations: ImportCounts = ImportCounts()
    messages: ImportCounts = ImportCounts()
    facts: ImportCounts = ImportCounts()
    # The time of the first message of the file; None: no message has a time.
    first_at: float | None = None
    # The time of the last message.
    last_at: float | None = None
    # The characters of the new messages.
    new_chars: int = field(default=0, name="chars")
    # The first warnings, up to `MAX_WARNINGS`.
    warnings: Sequence[str] = ()
    # The number of all warnings.
    warning_count: int = field(default=0, name="warned")
    # The reason why the import failed; None: the import did not fail.
    error: str | None = None
    # The number of the file's conversations and facts that were processed.
    processed: int = field(default=0, name="position")
    # The written part of the next conversation.
    partial: PartialConversation = PartialConversation()

    def with_warning(self, text: str) -> ImportProgress:
        """Returns the progress with one more warning. Beyond `MAX_WARNINGS` a warning is counted, and not stored."""
        warnings = [*self.warnings, text] if self.warning_count < MAX_WARNINGS else self.warnings
        return replace(self, warnings=warnings, warning_count=self.warning_count + 1)

    def with_exchanges(self, counts: Sequence[MessageCounts], done: int) -> ImportProgress:
        """Returns the progress with more exchanges of a conversation.

        counts: the counts of messages of each exchange of the conversation.
        done: the number of these exchanges that are written now.
        """
        before = self.partial
        added = counts[before.exchange_count : done]
        new = sum(each.new for each in added)
        known = sum(each.known for each in added)
        skipped = sum(each.skipped for each in added)
        return replace(
            self,
            messages=self.messages.with_more(new=new, known=known, skipped=skipped),
            partial=PartialConversation(
                exchange_count=max(done, before.exchange_count),
                new=before.new + new,
                known=before.known + known,
                skipped=before.skipped + skipped,
            ),
        )

    def with_conversation_ended(self, skipped: int, chars: int) -> ImportProgress:
        """Returns the progress at the end of a conversation.

        skipped: the number of its messages that are in no exchange.
        chars: the number of characters of its other messages.
        """
        conversation = self.partial
        if conversation.new:
            conversations = self.conversations.with_more(new=1)
        elif conversation.known:
            conversations = self.conversations.with_more(known=1)
        else:
            conversations = self.conversations.with_more(skipped=1)
        return replace(
            self,
            conversations=conversations,
            messages=self.messages.with_more(skipped=skipped),
            new_chars=self.new_chars
            + chars * conversation.new // max(1, conversation.new + conversation.known),
            processed=self.processed + 1,
            partial=PartialConversation(),
        )

    def with_fact_skipped(self) -> ImportProgress:
        """Returns the progress after a fact that cannot be read."""
        return replace(self, facts=self.facts.with_more(skipped=1), processed=self.processed + 1)

    def with_conversation_skipped(self, messages: int) -> ImportProgress:
        """Returns the progress after a conversation that is left out, of which a part may be written already.

        messages: the number of messages of the conversation in the file.
        """
        written = self.partial
        unwritten = messages - written.new - written.known - written.skipped
        return self.with_conversation_ended(max(0, unwritten), chars=0)

    def dump(self) -> bytes:
        """Returns the progress as JSON, which `load_progress` reads."""
        return msgspec.json.encode(self)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of an import that show its progress."""
        warnings = [*self.warnings]
        unlisted = self.warning_count - len(warnings)
        if unlisted:
            warnings.append(f"{unlisted} more {'warning' if unlisted == 1 else 'warnings'}.")
        return {
            "conversations": msgspec.to_builtins(self.conversations),
            "messages": msgspec.to_builtins(self.messages),
            "facts": msgspec.to_builtins(self.facts),
            "first_at": None if self.first_at is None else render_iso(self.first_at),
            "last_at": None if self.last_at is None else render_iso(self.last_at),
            "learn_tokens": self.new_chars // CHARS_PER_TOKEN,
            "warnings": warnings,
            "error": None if self.error is None else {"message": self.error, "param": "file"},
        }


def load_progress(data: dict[str, Any]) -> ImportProgress:
    """Returns the progress of an import's row. data: the JSON object that `dump` wrote, as the store returns it."""
    return msgspec.convert(data, ImportProgress)
