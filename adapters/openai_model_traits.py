"""The traits of OpenAI's models by name: which fields they refuse, and which effort they take with tools.

They hold wherever a model is served, but for Azure's effort. They follow OpenAI's documents and errors (November 2026).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# The fields that thinking models refuse, and the fields that other models refuse.
_REFUSED_BY_THINKING_MODELS: Final = frozenset({"temperature", "max_tokens"})
_REFUSED_BY_OTHER_MODELS: Final = frozenset({"reasoning_effort", "verbosity"})
# Names of models, perhaps after a proxy's prefix, and the fields that they answer with "Unsupported parameter"
# or "Unsupported value". The first match counts. Letta's server leaves out the same fields for these names.
_REFUSED_BY_NAME: Final = tuple(
    (re.compile(rf"(?:.*/)?(?:{names})"), refused_fields)
    for names, refused_fields in (
        (r"o[134](?![^-])", _REFUSED_BY_THINKING_MODELS | {"parallel_tool_calls"}),
        (r"gpt-[5-9][^/]*-chat|gpt-4|gpt-3\.5|chatgpt-", _REFUSED_BY_OTHER_MODELS),
        (r"gpt-[5-9]", _REFUSED_BY_THINKING_MODELS),
    )
)
# Models from 5.2 on answer "Function tools with reasoning_effort are not supported": up to 5.4 where a request
# names an effort, and newer ones unless it names `none`, since they think by default. At Azure that begins with 5.7.
_TAKES_NO_EFFORT: Final = re.compile(r"(?:.*/)?gpt-5\.[2-4](?!\d)")
_TAKES_NO_EFFORT_AT_AZURE: Final = re.compile(r"(?:.*/)?gpt-5\.[2-6](?!\d)")
_TAKES_EFFORT_NONE: Final = re.compile(r"(?:.*/)?gpt-(?:5\.[5-9]|[6-9])")


@lru_cache(maxsize=256)
def list_refused_fields(model: str) -> frozenset[str]:
    """Returns the fields that a model refuses. A model that refuses `max_tokens` takes `max_completion_tokens`."""
    matching = (refused_fields for names, refused_fields in _REFUSED_BY_NAME if names.match(model))
    return next(matching, frozenset())


def choose_effort_with_tools(model: str) -> str | None:
    """Returns the effort that a chat completion with functions must name; "": no effort; None: any effort."""
    if _TAKES_NO_EFFORT.match(model):
        return ""
    return "none" if _TAKES_EFFORT_NONE.match(model) else None


def choose_azure_effort_with_tools(model: str) -> str | None:
    """Returns the effort that a chat completion with functions must name at Azure, as `choose_effort_with_tools`."""
    return "" if _TAKES_NO_EFFORT_AT_AZURE.match(model) else choose_effort_with_tools(model)
