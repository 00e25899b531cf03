"""The list of models in Anthropic's form. (platform.claude.com/docs/en/api/models-list)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from adapters.types import Json
from gateway.core.dates import render_iso
from gateway.dialects.messages.errors import make_field_error

# The entries of a page without a `limit`, and the most entries of a page, as in Anthropic's API.
_DEFAULT_LIMIT: Final = 20
_MAX_LIMIT: Final = 1000
# The fields of OpenAI's form that are left out: Anthropic's form has other fields in their place.
_REPLACED_FIELDS: Final = frozenset(("object", "created", "owned_by", "type"))


def render_model(model: Json) -> Json:
    """Returns a model in Anthropic's form. model: the model in OpenAI's form; the upstream's other fields stay."""
    upstream_fields = {key: value for key, value in model.items() if key not in _REPLACED_FIELDS}
    return {
        "type": "model",
        "display_name": model["id"],
        "created_at": _render_time(model.get("created")),
        "lifecycle": "active",
        **upstream_fields,
    }


def render_page(models: Sequence[Json], query: Mapping[str, str]) -> Json:
    """Returns a page of a list of models. Raises: BadRequest.

    models: all models, in OpenAI's form.
    query: the parameters `limit`, and `after_id` or `before_id`.
    """
    limit = _read_limit(query.get("limit"))
    entries = [render_model(model) for model in models]
    model_ids = [entry["id"] for entry in entries]
    if (before_id := query.get("before_id")) is not None:
        end = _get_index(model_ids, before_id, "before_id")
        page, has_more = entries[max(0, end - limit) : end], end > limit
    else:
        after_id = query.get("after_id")
        start = _get_index(model_ids, after_id, "after_id") + 1 if after_id is not None else 0
        page = entries[start : start + limit]
        has_more = len(entries) > start + limit
    return {
        "data": page,
        "has_more": has_more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _render_time(seconds: object) -> str:
    """Returns a time in Anthropic's form. seconds: the time since the epoch; any other value counts as the epoch."""
    number = seconds if isinstance(seconds, int | float) and not isinstance(seconds, bool) else 0
    try:
        return render_iso(number)
    except (ValueError, OverflowError, OSError):  # some servers give milliseconds
        return render_iso(0)


def _read_limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not (text.isdecimal() and len(text) <= len(str(_MAX_LIMIT)) and 1 <= int(text) <= _MAX_LIMIT):
        raise make_field_error("limit", f"Input should be a whole number from 1 to {_MAX_LIMIT}")
    return int(text)


def _get_index(model_ids: Sequence[str], cursor: str, param: str) -> int:
    """Returns the index of the model that a cursor names. param: the parameter with the cursor. Raises: BadRequest."""
    if cursor not in model_ids:
        raise make_field_error(param, "there is no such model in the list")
    return model_ids.index(cursor)
