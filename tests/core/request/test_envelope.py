"""Which fields are read and not sent on."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.providers import PROVIDERS
from gateway.core.request.envelope import (
    enables_thinking,
    find_developer_indices,
    list_consumed_fields,
    list_untranslatable_fields,
    read_thinking_budget,
)


def image(more: dict[str, Any]) -> dict[str, Any]:
    url = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", **more}}
    return {"role": "user", "content": [{"type": "text", "text": "Look."}, url]}


PLAIN = {"model": "m", "messages": [], "temperature": 0, "unknown": {"x": 1}, "user": "alice"}


@pytest.mark.parametrize(
    ("extra", "takes_metadata", "expected"),
    [
        ({}, False, ()),
        # Vapi
        ({"call": {"id": "c"}, "customer": {}, "phoneNumber": {}}, True, ("call", "customer", "phoneNumber")),
        ({"metadata": {"topic": {"x": 1}}}, True, ("metadata",)),
        # ElevenLabs
        ({"user_id": "u", "elevenlabs_extra_body": {"a": 1}}, True, ("user_id", "elevenlabs_extra_body")),
        # the same names in another form are somebody else's
        ({"call": "auto", "customer": 3, "phoneNumber": "1", "user_id": [7]}, False, ()),
        # metadata, which OpenAI takes with `store` only
        ({"metadata": {"a": "b"}}, False, ("metadata",)),
        ({"metadata": {"a": "b"}}, True, ()),
        ({"metadata": {"a": "b"}, "store": True}, False, ()),
        ({"metadata": {"a": 1}, "store": True}, False, ()),  # the upstream's error is the client's own
        ({"metadata": None}, False, ()),
    ],
)
def test_fields_of_an_envelope_are_consumed_and_no_others(
    extra: dict[str, Any], takes_metadata: bool, expected: tuple[str, ...]
) -> None:
    assert list_consumed_fields({**PLAIN, **extra}, takes_metadata=takes_metadata) == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, ()),
        ({"metadata": {"user_id": "u"}}, ()),
        ({"metadata": {}}, ()),
        ({"metadata": {"user_id": "u", "topic": "tea"}}, ("metadata",)),
        ({"metadata": "tea"}, ("metadata",)),
        ({"prompt_cache_key": "k", "metadata": None}, ("prompt_cache_key",)),
        ({"metadata": {"topic": "tea"}, "prompt_cache_key": "k"}, ("metadata", "prompt_cache_key")),
        ({"messages": [{"role": "user", "content": "Hi", "name": "Ann"}]}, ()),
        ({"messages": [{"role": "tool", "content": "Rain", "name": "weather"}]}, ()),
        ({"messages": [{"role": "assistant", "content": "Hi", "name": "Bot"}]}, ("messages.name",)),
        ({"messages": [image({}), image({"detail": "auto"}), {"role": "user", "content": ["x", None]}]}, ()),
        ({"messages": [image({"detail": "low"})]}, ("messages.content.image_url.detail",)),
        ({"prompt_cache_options": {"mode": "explicit"}}, ("prompt_cache_options",)),
        (
            {"messages": [{"role": "user", "content": [{"prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
            ("messages.content.prompt_cache_breakpoint",),
        ),
        ({"tools": [{"function": {"strict": True}}]}, ("tools.function.strict",)),
        ({"tools": [{"function": {"strict": False}}, {"function": 1}, 1, {}]}, ()),
        ({"tools": {"function": {"strict": True}}}, ()),  # the upstream's error is the client's own
    ],
)
def test_fields_that_a_translation_has_no_place_for(extra: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert (
        list_untranslatable_fields(
            {**PLAIN, **extra}, PROVIDERS["anthropic"].capabilities.untranslatable_fields
        )
        == expected
    )
    assert list_untranslatable_fields({**PLAIN, **extra}, ()) == ()


def test_where_a_developer_speaks() -> None:
    roles = ["developer", "user", "system", "developer", None]
    assert find_developer_indices([{"role": role} for role in roles]) == (0, 3)


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": "enabled"}, False),
    ],
)
def test_requests_that_ask_a_model_to_think(body: dict[str, Any], thinks: bool) -> None:
    assert enables_thinking(body) is thinks


@pytest.mark.parametrize(
    ("thinking", "budget"),
    [
        (None, 0),
        ("x", 0),
        ({}, 0),
        ({"type": "enabled", "budget_tokens": 2048}, 2048),
        ({"budget_tokens": "2048"}, 0),
    ],
)
def test_budgets_for_a_models_thoughts(thinking: Any, budget: int) -> None:
    assert read_thinking_budget({"thinking": thinking}) == budget
    assert read_thinking_budget({}) == 0
