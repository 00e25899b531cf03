"""The ids of a response and of its items, which tell the turn that they are of, so that a client may go on from them.

    resp_<conversation><turn>        msg_<conversation><turn>_<place>

Where nothing is kept of a turn, they are random and name nothing.
"""

from __future__ import annotations

import re
from uuid import uuid4

_NAMED = re.compile(r"[a-z]+_([0-9a-f]{32})([0-9a-f]{24})(?:_[0-9]+)?")


def make_tag(turn: tuple[str, str] | None) -> str:
    """Returns the part that is the same in all ids of a response. turn: names of its conversation and turn."""
    return uuid4().hex if turn is None else "".join(turn)


def turn_of(id: str) -> tuple[str, str]:
    """Returns the names of conversation and turn that an id tells; empty ones: it is none of ours."""
    found = _NAMED.fullmatch(id)
    return ("", "") if found is None else (found[1], found[2])
