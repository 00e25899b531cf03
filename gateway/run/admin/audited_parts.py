"""The names that the audit has for the subject of an action: kind and number, never words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

# The beginning of an entry that names the facts that were forgotten with a message.
_ALONG = "with "
_FACT = re.compile(
    r"fact (?P<seq>[0-9]+)"
    r"(?: as (?P<new_seq>[0-9]+))?"
    r"(?:, back to fact (?P<restored_seq>[0-9]+))?"
    r"(?:, (?P<state>.+))?"
)

# The end counts, since a label may have any words.
_VERSION = re.compile(
    r"block (?P<label>.+), version (?:(?P<restored>[0-9]+) as )?(?P<version>[0-9]+)", re.DOTALL
)


class AuditedFact(Struct, frozen=True):
    """A fact that was added, changed or forgotten. Its `str` is as "fact 4 as 7, back to fact 2"."""

    seq: int
    # The number of the fact that replaces it; None: the fact was not replaced.
    new_seq: int | None = None
    # The number of the older fact with the text of the new one; None: its text is new.
    restored_seq: int | None = None
    # "muted", "said again", "told before each reply" or "told when it fits" where that is what changed, else "".
    state: str = ""

    @classmethod
    def parse(cls, what: str) -> AuditedFact | None:
        """Parses the `what` of an audit entry. Returns None if it names no fact."""
        if (match := _FACT.fullmatch(what)) is None:
            return None
        seq, new_seq, restored_seq, state = match.groups()
        return cls(
            int(seq),
            None if new_seq is None else int(new_seq),
            None if restored_seq is None else int(restored_seq),
            state or "",
        )

    def __str__(self) -> str:
        text = f"fact {self.seq}"
        if self.new_seq is not None:
            text += f" as {self.new_seq}"
        if self.restored_seq is not None:
            text += f", back to fact {self.restored_seq}"
        return f"{text}, {self.state}" if self.state else text

    @property
    def seqs(self) -> list[int]:
        """The numbers of all facts that this names."""
        return [seq for seq in (self.seq, self.new_seq, self.restored_seq) if seq is not None]


class AuditedVersion(Struct, frozen=True):
    """A version of a block. Its `str` is as "block human, version 8", or "block human, version 2 as 8"."""

    label: str
    version: int
    # The older version with the same value, which was brought back; None: the value was written anew.
    restored: int | None = None

    @classmethod
    def parse(cls, what: str) -> AuditedVersion | None:
        """Parses the `what` of an audit entry. Returns None if it names no version of a block."""
        if (match := _VERSION.fullmatch(what)) is None:
            return None
        label, restored, version = match.groups()
        return cls(label, int(version), None if restored is None else int(restored))

    def __str__(self) -> str:
        restored_part = "" if self.restored is None else f"{self.restored} as "
        return f"block {self.label}, version {restored_part}{self.version}"


def render_audited_part(kind: str, id: int | str) -> str:
    """Returns a part of a memory as the audit names it, and as a search in the audit has to name it ("message 4")."""
    return f"{kind} {id}"


def render_audited_facts(seqs: Sequence[int], older_count: int) -> str:
    """Returns the facts that are forgotten with a message, as the audit names them ("with facts 4, 7 and 2 older").

    seqs: the numbers of the facts that are named.
    older_count: the number of further facts that are forgotten.
    """
    noun = "fact" if len(seqs) == 1 and not older_count else "facts"
    rest = f" and {older_count} older" if older_count else ""
    return f"{_ALONG}{noun} {', '.join(map(str, seqs))}{rest}"


def is_along(what: str) -> bool:
    """Returns whether an entry names the facts that were forgotten with a message (`render_audited_facts`)."""
    return what.startswith(_ALONG)
