"""The traits of Claude models by name: their limits, how they think, and which requests they refuse.

The values are those of the models' pages on platform.claude.com (November 2026). A limit that GET /v1/models named goes
before this table.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

# Fields that version 2026-10-21 of the API refuses whatever their value. The version before it takes them if the model
# does.
SAMPLING_FIELDS: Final = ("temperature", "top_p", "top_k")
# The highest temperature that Claude takes, which is its default. Anthropic's endpoint for OpenAI's SDK lowers higher
# ones to it, too. (platform.claude.com/docs/en/api/openai-sdk)
_MAX_TEMPERATURE: Final = 1.0


class ModelTraits(Struct, frozen=True):
    """The traits that the models of one family share."""

    # The `max_tokens` of a request that sets none.
    max_tokens: int
    # True if the model takes `role: system` after a user turn; others answer such a message with a 400.
    takes_late_system: bool = False
    # The type of `thinking` with the least thoughts that the model takes; None: the model always thinks.
    least_thinking: str | None = "disabled"
    # True if the model takes thoughts back only at their original position (build-with-claude/preserved-thinking).
    binds_thoughts: bool = False
    # True if a request can force the model to call a tool.
    can_force: bool = True
    # True if the model thinks only when a request gives it tokens for thoughts, and takes no `effort`.
    thinks_on_request: bool = False
    # True if the model takes the sampling fields with other values than the defaults.
    takes_sampling: bool = True


_64K: Final = ModelTraits(64_000)
_128K: Final = ModelTraits(128_000)
_WITHOUT_SAMPLING: Final = replace(_128K, takes_sampling=False)
_LATE_SYSTEM: Final = replace(_WITHOUT_SAMPLING, takes_late_system=True)
_ALWAYS_THINKS: Final = replace(_LATE_SYSTEM, least_thinking=None)
_BINDS_THOUGHTS: Final = replace(_ALWAYS_THINKS, binds_thoughts=True, can_force=False)
# Up to the 4.1 family a prompt and max_tokens that together exceed the window are a 400, so less is asked for there.
_UP_TO_4_1: Final = ModelTraits(32_000, thinks_on_request=True)
_BEFORE_EFFORT: Final = replace(_64K, thinks_on_request=True)
# The traits of a model of another maker that speaks Claude's dialect.
_UNKNOWN: Final = ModelTraits(8_192)

# The traits by the beginning of a model's name; the longest one counts.
_TRAITS: Final[dict[str, ModelTraits]] = {
    "claude-": _64K,
    "claude-fable-5": _ALWAYS_THINKS,
    "claude-fable-5-": _BINDS_THOUGHTS,
    "claude-mythos-preview": replace(_128K, least_thinking=None),
    "claude-mythos-5": _ALWAYS_THINKS,
    "claude-mythos-5-": _BINDS_THOUGHTS,
    "claude-opus-5": _LATE_SYSTEM,
    "claude-opus-5-": _BINDS_THOUGHTS,
    "claude-sonnet-5": _WITHOUT_SAMPLING,  # sources disagree about late system messages; without is always right
    "claude-sonnet-5-": replace(_BINDS_THOUGHTS, least_thinking="between_tools"),
    "claude-haiku-5": replace(_LATE_SYSTEM, binds_thoughts=True),
    "claude-opus-4-8": _LATE_SYSTEM,
    "claude-opus-4-7": _WITHOUT_SAMPLING,
    "claude-opus-4-6": _128K,
    "claude-sonnet-4-6": _128K,
    "claude-opus-4-5": _BEFORE_EFFORT,
    "claude-sonnet-4-5": _BEFORE_EFFORT,
    "claude-haiku-4-5": _BEFORE_EFFORT,
    "claude-opus-4": _UP_TO_4_1,  # 4.0 and 4.1
    "claude-sonnet-4": _UP_TO_4_1,
    "claude-3-7": _UP_TO_4_1,
    "claude-3-5": ModelTraits(8_192),
    "claude-3": ModelTraits(4_096),
}
_BEGINNINGS: Final = sorted(_TRAITS, key=len, reverse=True)
# Other providers prefix the name: us.anthropic.claude-opus-4-6-v1:0 (Bedrock), anthropic/claude-opus-4.6 (OpenRouter).
_PREFIX: Final = re.compile(r".*[./](?=claude-)")
# A name ends with its version: after it come a date, what serves it, or how (-20250514, @20250514, -v1:0, -fast, -0).
_VERSION: Final = re.compile(r"claude-(?:[a-z]+-)?\d{1,2}(?!\d)(?:-[1-9]\d?(?!\d))?")


@lru_cache(maxsize=256)
def get_traits(name: str) -> ModelTraits:
    """Returns the traits of a model. name: the model's name at any provider."""
    # `match` with a greedy pattern: `search` would take the square of the length of a name without the prefix.
    if prefix := _PREFIX.match(name):
        name = name[prefix.end() :]
    name = name.replace(".", "-")
    if version := _VERSION.match(name):
        name = version[0]
    return next((_TRAITS[beginning] for beginning in _BEGINNINGS if name.startswith(beginning)), _UNKNOWN)


def thinks_on_request(name: str) -> bool:
    """Returns whether a model thinks only when a request gives it tokens for that."""
    return get_traits(name).thinks_on_request


def takes_thinking(name: str, thinking_type: object) -> bool:
    """Returns whether a model takes `thinking` of a type; True for a model that is not known here."""
    traits = get_traits(name)
    if traits is _UNKNOWN:
        return True
    if thinking_type in ("enabled", "adaptive"):
        return traits.thinks_on_request is (thinking_type == "enabled")
    return thinking_type == traits.least_thinking


def find_max_temperature(name: str) -> float | None:
    """Returns the highest temperature that a model takes; None: it is not known."""
    return None if get_traits(name) is _UNKNOWN else _MAX_TEMPERATURE


def list_refused_sampling(name: str) -> frozenset[str]:
    """Returns the sampling fields that a model refuses."""
    return frozenset() if get_traits(name).takes_sampling else frozenset(SAMPLING_FIELDS)


def binds_thoughts(name: str) -> bool:
    """Returns whether a model takes thoughts back only at their original position."""
    return get_traits(name).binds_thoughts


def can_force(name: str) -> bool:
    """Returns whether a model can be forced to call a tool."""
    return get_traits(name).can_force
