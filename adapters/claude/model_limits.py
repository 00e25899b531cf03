"""The differences of Claude models by name: how much they may write, and what they refuse.

The values are those of the models' pages on platform.claude.com (November 2026). A limit that GET /v1/models named goes
before this table.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from msgspec import Struct
from msgspec.structs import replace


class Model(Struct, frozen=True):
    """The differences of a family of models."""

    # The limit of a request that has none of its own.
    max_tokens: int
    # The model takes `role: system` after a user turn; others answer such a message with a 400.
    late_system: bool = False
    # The type of `thinking` that is the least it takes; None: it always thinks.
    least_thinking: str | None = "disabled"
    # It takes thoughts back only at their original position (build-with-claude/preserved-thinking).
    binds_thoughts: bool = False
    # It can be made to call a tool.
    can_force: bool = True
    # It thinks only when a request gives it tokens for that, and takes no `effort`.
    thinks_when_asked: bool = False


_PLAIN: Final = Model(64_000)
_LATEST: Final = Model(128_000, late_system=True)
_BIG: Final = Model(128_000)
_ALWAYS: Final = Model(128_000, late_system=True, least_thinking=None)
_BOUND: Final = Model(128_000, late_system=True, least_thinking=None, binds_thoughts=True, can_force=False)
# Up to the 4.1 family a prompt and max_tokens that together exceed the window are a 400, so less is asked for there.
_OLD: Final = Model(32_000, thinks_when_asked=True)
_BEFORE_EFFORT: Final = replace(_PLAIN, thinks_when_asked=True)
_UNKNOWN: Final = Model(8_192)  # Claude's dialect is also spoken by others with other limits

# The longest prefix counts.
_MODELS: Final[dict[str, Model]] = {
    "claude-": _PLAIN,
    "claude-fable-5": _ALWAYS,
    "claude-fable-5-": _BOUND,
    "claude-mythos-preview": replace(_BIG, least_thinking=None),
    "claude-mythos-5": _ALWAYS,
    "claude-mythos-5-": _BOUND,
    "claude-opus-5": _LATEST,
    "claude-opus-5-": _BOUND,
    "claude-sonnet-5": _BIG,  # sources disagree about late system messages; without is always right
    "claude-sonnet-5-": replace(_BOUND, least_thinking="between_tools"),
    "claude-haiku-5": replace(_LATEST, binds_thoughts=True),
    "claude-opus-4-8": _LATEST,
    "claude-opus-4-7": _BIG,
    "claude-opus-4-6": _BIG,
    "claude-sonnet-4-6": _BIG,
    "claude-opus-4-5": _BEFORE_EFFORT,
    "claude-sonnet-4-5": _BEFORE_EFFORT,
    "claude-haiku-4-5": _BEFORE_EFFORT,
    "claude-opus-4": _OLD,  # 4.0 and 4.1
    "claude-sonnet-4": _OLD,
    "claude-3-7": _OLD,
    "claude-3-5": Model(8_192),
    "claude-3": Model(4_096),
}
_PREFIXES: Final = sorted(_MODELS, key=len, reverse=True)
# Others put themselves in front: us.anthropic.claude-opus-4-6-v1:0 (Bedrock), anthropic/claude-opus-4.6 (OpenRouter).
_IN_FRONT: Final = re.compile(r".*[./](?=claude-)")
# A name ends with its version: after it come a date, what serves it, or how (-20250514, @20250514, -v1:0, -fast, -0).
_VERSION: Final = re.compile(r"claude-(?:[a-z]+-)?\d{1,2}(?!\d)(?:-[1-9]\d?(?!\d))?")


@lru_cache(maxsize=256)
def find_model(name: str) -> Model:
    """Returns the row with the longest prefix of a model's name, as whichever upstream is asked for it."""
    if front := _IN_FRONT.match(name):  # not searched for: that takes the square of a name without one
        name = name[front.end() :]
    name = name.replace(".", "-")
    if version := _VERSION.match(name):
        name = version[0]
    return next((_MODELS[prefix] for prefix in _PREFIXES if name.startswith(prefix)), _UNKNOWN)


def thinks_when_asked(name: str) -> bool:
    """Returns whether a model thinks only when a request gives it tokens for that."""
    return find_model(name).thinks_when_asked


def binds_thoughts(name: str) -> bool:
    """Returns whether a model takes thoughts back only after what they were thought about."""
    return find_model(name).binds_thoughts


def can_force(name: str) -> bool:
    """Returns whether a model can be forced to call a tool."""
    return find_model(name).can_force
