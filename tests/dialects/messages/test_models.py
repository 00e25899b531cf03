"""The list of models in Anthropic's form, whatever an upstream's list has."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.dialects.messages.models import render_model, render_page
from gateway.errors import BadRequest

EPOCH = "1970-01-01T00:00:00Z"
MODELS = [{"id": f"m-{n}"} for n in range(30)]


@pytest.mark.parametrize(
    ("created", "shown"),
    [
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000.0, "2023-11-14T22:13:20Z"),
        (1_700_000_000.9, "2023-11-14T22:13:20Z"),
        (float("nan"), EPOCH),
        (float("inf"), EPOCH),
        (True, EPOCH),
        (1_700_000_000_000, EPOCH),  # milliseconds, which some servers give
        (-(10**18), EPOCH),
        (2**63, EPOCH),
        ("2023", EPOCH),
        (None, EPOCH),
    ],
)
def test_a_time_that_is_none_takes_no_model_out_of_the_list(created: Any, shown: str) -> None:
    assert render_model({"id": "m", "created": created})["created_at"] == shown


def test_a_model_has_anthropics_type_and_the_upstreams_other_fields() -> None:
    """Together's list has a `type` of its own."""
    model = render_model({"id": "m", "object": "model", "type": "chat", "context_length": 8192})
    assert (model["type"], model["context_length"]) == ("model", 8192)


@pytest.mark.parametrize("limit", ["1", "20", "1000"])
def test_a_page_has_as_many_models_as_are_asked_for(limit: str) -> None:
    assert len(render_page(MODELS, {"limit": limit})["data"]) == min(int(limit), 30)


@pytest.mark.parametrize("limit", ["", "0", "1001", "-1", "1.5", "0010000000", "000001" + "0" * 5_000])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(BadRequest, match="limit"):
        render_page(MODELS, {"limit": limit})
