"""How the audit names what an action concerns: by kind and number, never by words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

# An entry that names the facts that went with what was forgotten begins so.
_ALONG = "with "
_FACT = re.compile(
    r"fact (?P<seq>[0-9]+)"
    r"(?: as (?P<new_seq>[0-9]+))?"
    r"(?:, back to fact (?P<restored_seq>[0-9]+))?"
    r"(?:, (?P<state>.+))?"
)


class AuditedFact(Struct, frozen=True):
    """A fact that was added, corrected, muted or forgotten. It is the text "fact 4 as 7, back to fact 2"."""

    seq: int
    # The number of the fact that replaces it; None: none does.
    new_seq: int | None = None
    # The number of the older fact with the text of the new one; None: its text is new.
    restored_seq: int | None = None
    # "muted" or "said again", for a change of this; "": there was another change.
    state: str = ""

    @classmethod
    def parse(cls, what: str) -> AuditedFact | None:
        """Reads what an entry concerns; None: it is no fact."""
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
        """The numbers of all facts that it names."""
        return [seq for seq in (self.seq, self.new_seq, self.restored_seq) if seq is not None]


def audited_part(kind: str, id: int | str) -> str:
    """Returns a part of a memory as the audit names it ("message 4"). Whoever looks for a part has to name it so."""
    return f"{kind} {id}"


def audited_version(label: str, version: int, restored: int | None = None) -> str:
    """Returns a version of a block as the audit names it. restored: the older version with the same value."""
    return f"block {label}, version " + (f"{version}" if restored is None else f"{restored} as {version}")


def audited_along(seqs: Sequence[int], older: int) -> str:
    """Returns the facts that go with what is forgotten ("with facts 4, 7 and 2 older").

    older: how many more facts go, which are not named.
    """
    noun = "fact" if len(seqs) == 1 and not older else "facts"
    return f"{_ALONG}{noun} {', '.join(map(str, seqs))}{f' and {older} older' if older else ''}"


def is_along(what: str) -> bool:
    """Returns whether an entry names the facts that went with what was forgotten."""
    return what.startswith(_ALONG)
