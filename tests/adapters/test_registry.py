"""Rows of providers: each is an address that can be called, and a name that the settings know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace
from yarl import URL

from adapters.anthropic import Anthropic
from adapters.factory import make_provider
from adapters.providers import PROVIDERS, UNKNOWN, ProviderSpec
from gateway.provider_factory import make_providers
from gateway.settings import NEEDS_ADDRESS, Kind, Settings, UpstreamSettings

ROOT = Path(__file__).parents[2]
WITH_ADDRESS = [row for row in PROVIDERS.values() if row.base_url is not None]


@pytest.mark.parametrize("row", WITH_ADDRESS, ids=[row.name for row in WITH_ADDRESS])
def test_a_row_is_a_provider_at_its_address(row: ProviderSpec) -> None:
    provider = make_provider(row.name)
    assert (provider.name, provider.base_url) == (row.name, row.base_url)
    assert provider.capabilities == row.capabilities
    url = URL(provider.base_url)
    assert url.scheme == "https" or url.host == "127.0.0.1"


def test_the_settings_know_every_row_and_no_other() -> None:
    assert set(get_args(Kind)) == PROVIDERS.keys() | {"scripted"}, "Kind of gateway/settings names each row"
    kinds, _, _ = (ROOT / "docs/settings.toml").read_text("utf-8").partition('\nkind = "openai"')
    words = set(re.findall(r"[a-z][a-z.]*[a-z]", kinds[kinds.rindex('\n# "openai" is any upstream') :]))
    assert words >= PROVIDERS.keys(), "docs/settings.toml names each kind"
    without = {row.name for row in PROVIDERS.values() if row.base_url is None}
    assert set(NEEDS_ADDRESS) == without | {"openai"}


@pytest.mark.parametrize(
    ("kind", "address", "kept"),
    [
        ("groq", None, True),
        ("groq", "https://api.groq.com/openai/v1", True),
        ("groq", "http://lab:1/v1", False),  # who knows what answers there
        ("vllm", "http://lab:1/v1", True),  # a server of one's own stands anywhere
        ("azure", "https://x.openai.azure.com/openai/v1", True),  # never had another
        ("anthropic", "http://lab:1/v1", True),  # the dialect is translated here
        ("nobody", "http://lab:1/v1", False),
    ],
)
def test_capabilities_belong_to_an_address(kind: str, address: str | None, kept: bool) -> None:
    found = make_provider(kind, base_url=address).capabilities
    assert found == (PROVIDERS[kind].capabilities if kept else UNKNOWN)


def test_capabilities_of_the_settings_outrank_those_of_the_table() -> None:
    found = make_provider("groq", known_capabilities={"developer_role": False}).capabilities
    assert found == replace(PROVIDERS["groq"].capabilities, developer_role=False)
    there = UpstreamSettings(
        "lab", base_url="http://lab:1/v1", takes={"stream_usage": True, "metadata": False}
    )
    (provider,) = make_providers(Settings(upstreams=(there,))).values()
    assert provider.capabilities == replace(UNKNOWN, stream_usage=True)


@pytest.mark.parametrize("kind", ["anthropic", "openrouter", "nobody"])
def test_a_claude_that_no_call_can_be_forced_on_is_known_at_any_upstream(kind: str) -> None:
    """Proxies hand the choice on, and the model refuses it there as well."""
    can_force = make_provider(kind, base_url="http://lab:1/v1").capabilities.can_force
    names = (
        "anthropic/claude-opus-5.5",
        "us.anthropic.claude-opus-5-5",
        "anthropic/claude-opus-4.8",
        "gpt-5",
    )
    assert [can_force(name) for name in names] == [False, False, True, True]


THINKS = {"temperature", "max_tokens"}
DOES_NOT = {"reasoning_effort", "verbosity"}


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ("o3", {*THINKS, "parallel_tool_calls"}),
        ("o4-mini-2025-04-16", {*THINKS, "parallel_tool_calls"}),
        ("gpt-5", THINKS),
        ("openai/gpt-5.1-mini", THINKS),  # OpenRouter
        ("gpt-6-sol", THINKS),
        ("gpt-5-chat-latest", DOES_NOT),
        ("gpt-4o-mini", DOES_NOT),
        # Others' models
        ("o3d-local", set()),
        ("gpt-oss-120b", set()),
        ("claude-opus-4-8", set()),
        ("marco-o1", set()),
    ],
)
def test_fields_that_openais_models_refuse_are_known_at_any_upstream(model: str, refused: set[str]) -> None:
    assert make_provider("nobody", base_url="http://lab:1/v1").capabilities.refused_fields(model) == refused


@pytest.mark.parametrize("kind", ["azure", "nobody"])
def test_a_kind_without_an_address_asks_for_one(kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        make_provider(kind)


def test_the_settings_kind_decides_what_is_spoken() -> None:
    providers = make_providers(
        Settings(
            upstreams=(
                UpstreamSettings("claude", "anthropic", "http://a/v1"),
                UpstreamSettings("anthropic", "openai", "http://b/v1"),  # its endpoint in OpenAI's dialect
                UpstreamSettings("quick", "groq"),
                UpstreamSettings("mistral", "openai", "https://api.mistral.ai/v1"),
            )
        )
    )
    assert isinstance(providers["claude"], Anthropic)
    assert not isinstance(providers["anthropic"], Anthropic)
    assert providers["quick"].capabilities == PROVIDERS["groq"].capabilities
    assert providers["mistral"].capabilities == PROVIDERS["mistral"].capabilities != UNKNOWN


@pytest.mark.parametrize(
    ("kind", "address", "responses"),
    [
        ("openai", None, "stored"),
        ("openai", "https://api.openai.com/v1/", "stored"),
        ("openai", "https://proxy.example/v1", False),
        ("azure", "https://one.openai.azure.com/openai/v1", "stored"),
        ("xai", None, "stored"),
        ("xai", "https://proxy.example/v1", False),
        ("openrouter", None, False),
        ("groq", None, False),
        ("ollama", None, False),
        ("vllm", "http://10.0.0.1:8000/v1", False),
        ("anthropic", None, False),
    ],
)
def test_three_providers_store_responses_at_their_own_addresses(
    kind: str, address: str | None, responses: object
) -> None:
    provider = make_provider(kind, base_url=address)
    assert provider.capabilities.responses == responses
    for path in ("/responses", "/responses/resp_1", "/conversations"):
        assert provider.has_endpoint(path) == (responses == "stored")


@pytest.mark.parametrize(
    ("kind", "efforts"),
    [
        ("openai", [None, None, "", "", "none", "none", "none"]),
        ("azure", [None, None, "", "", "", "", "none"]),
        ("openrouter", [None] * 7),
    ],
)
def test_the_effort_of_models_that_have_tools_or_thoughts(kind: str, efforts: list[str | None]) -> None:
    effort = PROVIDERS[kind].capabilities.effort_with_tools
    names = (
        "gpt-4.1",
        "gpt-5-mini",
        "gpt-5.2",
        "openai/gpt-5.4-mini",
        "gpt-5.5",
        "gpt-5.6-luna",
        "gpt-6-sol",
    )
    assert [effort(name) for name in names] == efforts
