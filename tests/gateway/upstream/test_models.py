"""Which models there are, and which upstream answers to a name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.base import Provider
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, NotAuthenticated, SettingsError, UnknownModel, UpstreamUnreachable
from gateway.limits import Limits
from gateway.provider_factory import make_providers
from gateway.run.background.background_model import find_background_route
from gateway.run.background.embedder import find_embedder_route
from gateway.run.upstream.model_list import ModelList
from gateway.run.upstream.route import Route, check_models, resolve_agent_model, resolve_route
from gateway.settings import (
    DeploymentSettings,
    MemorySettings,
    ModelSettings,
    ProfileSettings,
    Settings,
    UpstreamSettings,
)
from gateway.settings.load import load_settings
from tests.doubles.upstream import Gate, StrictUpstream, fail
from tests.patience import PATIENCE_S
from tests.server import RunningGateway, serve, settings_for

ONE = UpstreamSettings("one", base_url="http://one.invalid/v1", context_window=100)
TWO = UpstreamSettings("two", base_url="http://two.invalid/v1", models=("claude-*",))
ALIAS = ModelSettings("quick", model="gpt-4o-mini", upstream="one", context_window=50)
BOB = ProfileSettings("bob", model="quick")
EVE = ProfileSettings("eve", model="anything", upstream="two", context_window=7)
DUMB = ProfileSettings("dumb")


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        (Settings(upstreams=(ONE,)), "gpt-5", Route("one", "gpt-5", 100)),  # the only one
        (
            Settings(upstreams=(ONE, TWO)),
            "gpt-5",
            Route("one", "gpt-5", 100),
        ),  # the only one without patterns
        (Settings(upstreams=(ONE, TWO)), "claude-9", Route("two", "claude-9")),  # by pattern
        (Settings(upstreams=(ONE, TWO)), "two/gpt-5", Route("two", "gpt-5")),  # by name
        (
            Settings(upstreams=(ONE,)),
            "meta/llama",
            Route("one", "meta/llama", 100),
        ),  # no upstream of that name
        (
            Settings(upstreams=(ONE,)),
            "one/llama",
            Route("one", "one/llama", 100),
        ),  # one needs no prefix
        (Settings(upstreams=(ONE,), models=(ALIAS,)), "quick", Route("one", "gpt-4o-mini", 50)),
        (Settings(upstreams=(ONE,), models=(ALIAS,)), "gpt-5", None),  # a list is closed
        (
            Settings(upstreams=(ONE, TWO), models=(ALIAS,)),
            "claude-9",
            Route("two", "claude-9"),
        ),  # but for patterns
        (Settings(upstreams=(ONE, TWO), models=(ALIAS,)), "one/gpt-5", None),  # also with two upstreams
        (Settings(upstreams=(ONE, TWO), models=(ALIAS,)), "two/gpt-5", None),
        (Settings(upstreams=(ONE, TWO), models=(ALIAS,)), "two/claude-9", Route("two", "claude-9")),
        (
            Settings(upstreams=(ONE,), models=(ALIAS,), profiles=(BOB,)),
            "agent/bob",
            Route("one", "gpt-4o-mini", 50),
        ),
        (Settings(upstreams=(ONE, TWO), profiles=(EVE,)), "agent/eve", Route("two", "anything", 7)),
        (Settings(upstreams=(ONE,), profiles=(BOB,)), "agent/nobody", None),
        (Settings(upstreams=(ONE,), profiles=(DUMB,)), "agent/dumb", None),  # has no model
    ],
)
def test_a_name_finds_its_upstream(settings: Settings, asked: str, expected: Route | None) -> None:
    if expected is None:
        with pytest.raises(UnknownModel) as caught:
            resolve_route(settings, asked)
        assert caught.value.param == "model"
        assert "GET /v1/models" in caught.value.message or "x-mnemogate-agent: dumb" in caught.value.message
    else:
        assert resolve_route(settings, asked) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("two/fast", Route("two", "gpt-x", 60)),
        ("one/fast", Route("one", "gpt-x", 60)),
        ("one/gpt-x", Route("one", "gpt-x", 60)),  # by the upstream's own name for it
        ("one/plain", Route("one", "gpt-y", 100)),  # the window of the upstream
        ("one/quick", Route("one", "gpt-4o-mini", 50)),
        ("two/quick", None),  # the alias has another upstream
        ("two/claude-fast", Route("two", "claude-fast")),  # a pattern takes it
    ],
)
def test_an_agent_may_name_an_upstream_and_an_alias(asked: str, expected: Route | None) -> None:
    aliases = (
        ALIAS,
        ModelSettings("fast", model="gpt-x", context_window=60),
        ModelSettings("plain", model="gpt-y"),
        ModelSettings("claude-fast", model="gpt-z"),
    )
    settings = Settings(upstreams=(ONE, TWO), models=aliases)
    if expected is None:
        with pytest.raises(UnknownModel):
            resolve_agent_model(settings, asked)
    else:
        assert resolve_agent_model(settings, asked) == expected


CHAIN = (
    ModelSettings(
        "quick",
        "gpt-4o-mini",
        "one",
        fallbacks=("good", "claude-9", "two/x"),
        deployments=(DeploymentSettings("two", "mini", 9), DeploymentSettings("one")),
    ),
    ModelSettings(
        "good", "gpt-4o", "one", 70, fallbacks=("quick",), deployments=(DeploymentSettings("two"),)
    ),
)


def test_a_chain_is_what_stands_in_one_list() -> None:
    """A fallback brings its own deployments, but not its own fallbacks (which may lead back)."""
    settings = Settings(upstreams=(ONE, TWO), models=CHAIN)
    check_models(settings)
    assert resolve_route(settings, "quick").targets == (
        Target("one", "gpt-4o-mini", 100),
        Target("two", "mini", 9),
        Target("one", "gpt-4o-mini", 100),
        Target("one", "gpt-4o", 70, rank=1),
        Target("two", "gpt-4o", 70, rank=1),
        Target("two", "claude-9", rank=2),
        Target("two", "x", rank=3),
    )
    assert [each.rank for each in resolve_route(settings, "good").targets] == [0, 0, 1, 1, 1]


def test_a_profile_may_ask_for_a_smaller_window_in_its_whole_chain_and_not_for_a_larger_one() -> None:
    profile = ProfileSettings("bob", model="good", context_window=30)
    route = resolve_route(Settings(upstreams=(ONE, TWO), models=CHAIN, profiles=(profile,)), "agent/bob")
    assert [each.context_window for each in route.targets] == [30, 30, 30, 9, 30]


def test_a_fallback_that_no_upstream_serves_is_found_at_the_start() -> None:
    alias = ModelSettings("quick", "gpt-4o-mini", "one", fallbacks=("nobody",))
    with pytest.raises(
        SettingsError, match="models 'quick': fallbacks: unknown name 'nobody'; known are quick"
    ):
        check_models(Settings(upstreams=(ONE,), models=(alias,)))


def test_a_fallback_that_no_upstream_serves_is_no_mistake_of_the_profile_that_has_its_alias() -> None:
    alias = ModelSettings("quick", "gpt-4o-mini", "one", fallbacks=("nobody",))
    with pytest.raises(SettingsError) as raised:
        check_models(Settings(upstreams=(ONE,), models=(alias,), profiles=(BOB,)))
    assert [each.message for each in raised.value.mistakes] == [
        "models 'quick': fallbacks: unknown name 'nobody'; known are quick"
    ]


def test_an_agent_without_a_model_is_no_background_model() -> None:
    memory = MemorySettings(background_model="agent/dumb")
    with pytest.raises(SettingsError, match=r"memory\.background_model: 'agent/dumb' names no model"):
        find_background_route(Settings(upstreams=(ONE,), profiles=(DUMB,), memory=memory))


def test_every_profiles_model_that_no_upstream_serves_is_found_at_the_start() -> None:
    profiles = ProfileSettings("bob", model="x-1"), ProfileSettings("eve", model="x-2")
    with pytest.raises(SettingsError) as raised:
        check_models(Settings(upstreams=(ONE, TWO), models=CHAIN, profiles=profiles))
    assert [each.message for each in raised.value.mistakes] == [
        f"profiles {profile.name!r}: model: unknown name {profile.model!r}; "
        "known are claude-*, good, one/MODEL, quick, two/MODEL"
        for profile in profiles
    ]


def test_the_settings_may_name_what_callers_may_not() -> None:
    memory = MemorySettings(background_model="one/small", embedder="one/vectors")
    settings = Settings(upstreams=(ONE, TWO), models=(ALIAS,), memory=memory)
    assert find_background_route(settings) == Route("one", "small", 100)
    assert find_embedder_route(settings) == Route("one", "vectors", 100)
    with pytest.raises(UnknownModel):
        resolve_route(settings, "one/small")


async def fetched(settings: Settings) -> list[dict[str, Any]]:
    providers: Mapping[str, Provider] = make_providers(settings)
    models = ModelList(settings, providers, created_at=7)
    for name, provider in providers.items():
        await models.refresh(name, provider)
        await provider.aclose()
    return models.entries


async def test_the_models_of_upstreams_are_listed_under_names_that_work() -> None:
    with StrictUpstream(models=["a", "b"]) as first, StrictUpstream(models=["b", "c"]) as second:
        settings = Settings(
            upstreams=(
                UpstreamSettings("one", base_url=first.base_url),
                UpstreamSettings("two", base_url=second.base_url),
            ),
            profiles=(ProfileSettings("bob", model="a", upstream="one"), DUMB),
        )
        entries = await fetched(settings)
    names = [entry["id"] for entry in entries]
    assert names == ["agent/bob", "one/a", "one/b", "two/b", "two/c"]
    for name in names[1:]:
        route = resolve_route(settings, name)
        assert name == f"{route.upstream}/{route.model}"
    assert entries[0] == {"id": "agent/bob", "object": "model", "created": 7, "owned_by": "mnemogate"}


async def test_with_aliases_only_they_are_shown() -> None:
    with StrictUpstream(models=["a"]) as upstream:
        settings = Settings(
            upstreams=(UpstreamSettings("one", base_url=upstream.base_url),),
            models=(ModelSettings("quick", "a"),),
        )
        assert [entry["id"] for entry in await fetched(settings)] == ["quick"]


async def test_a_list_that_is_no_object_is_a_list_of_models() -> None:
    """Together answers so."""
    with StrictUpstream(model_list=b'[{"id": "a", "object": "model", "type": "chat"}]') as upstream:
        (entry,) = await fetched(settings_for(upstream))
    assert entry == {"id": "a", "object": "model", "type": "chat"}


@pytest.mark.parametrize("body", [b"", b"no", b"{}", b'{"data": 1}', b'"data"', b'{"data": [1, {"id": 2}]}'])
async def test_an_answer_that_is_no_list_of_models_is_none(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with StrictUpstream(model_list=body) as upstream:
        assert await fetched(settings_for(upstream)) == []
    # (The last one is a list, without a model in it.)
    assert ("gave no list of models: status 200, and no list" in caplog.text) == (b"[1," not in body)


async def test_an_upstream_that_cannot_be_used_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with StrictUpstream() as there:
        address = there.base_url.removesuffix("/v1")
    settings = Settings(upstreams=(UpstreamSettings("gone", base_url=f"{address}/v1"),))
    providers = make_providers(settings)
    models = ModelList(settings, providers, created_at=7)
    for _ in range(3):
        assert not await models.refresh("gone", providers["gone"])
    await providers["gone"].aclose()
    host = address.removeprefix("http://")
    said = [record.getMessage() for record in caplog.records if record.name == "mnemogate"]
    assert said == [f"The upstream gone gave no list of models: no connection to {host}: Connection refused"]


async def test_a_list_that_nobody_could_fetch_is_no_empty_one() -> None:
    """A front end would show that there are no models, and not that a server is down."""
    with StrictUpstream(models=["a"]) as upstream:
        settings = settings_for(upstream)
        providers = make_providers(settings)
        models = ModelList(settings, providers, created_at=7)
        assert await models.list_entries_for(None) == []  # nobody was asked yet
        upstream.stop()
        await models.refresh("up", providers["up"])
        with pytest.raises(UpstreamUnreachable, match=r"The gateway .*'up'.*Connection refused"):
            await models.list_entries_for(None)
        with pytest.raises(UpstreamUnreachable):
            await models.get("a", None)
        assert await models.list_entries_for(None, has_others=True) == []
        with_alias = ModelList(
            replace(settings, models=(ModelSettings("quick", "a"),)), providers, created_at=7
        )
        await with_alias.refresh("up", providers["up"])
        assert [entry["id"] for entry in await with_alias.list_entries_for(None)] == ["quick"]
        for provider in providers.values():
            await provider.aclose()


async def test_an_address_without_its_version_is_explained(
    upstream: StrictUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    await fetched(
        Settings(upstreams=(UpstreamSettings("a", base_url=upstream.base_url.removesuffix("/v1")),))
    )
    assert "status 404, and no list; its base_url has no /v1" in caplog.text


async def test_an_upstream_without_a_list_takes_nothing_away(upstream: StrictUpstream) -> None:
    upstream.key = "sk-secret"  # we have none: it refuses
    assert await fetched(settings_for(upstream)) == []


def test_the_list_is_fetched_in_the_background_and_answers_in_openais_form(upstream: StrictUpstream) -> None:
    asked = upstream.request_gate(1)
    with serve(settings_for(upstream), limits=Limits(models_refresh_s=3600.0)) as gateway:
        asked.wait_sync()
        upstream.last.settled.wait_sync()
        gateway.call(gateway.app.services.models.refresh("up", gateway.app.services.providers["up"]))
        listed = gateway.ask("GET", "/v1/models").json
        assert listed["object"] == "list"
        assert [entry["id"] for entry in listed["data"]] == upstream.models
        assert gateway.ask("GET", f"/v1/models/{upstream.models[0]}").json == listed["data"][0]
        missing = gateway.ask("GET", "/v1/models/nope")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")


def test_the_list_is_answered_while_an_upstream_does_not_say_its_own(upstream: StrictUpstream) -> None:
    """From the settings while nothing was ever listed, then from what was listed last."""
    never = upstream.hold_models = Gate()
    asked = upstream.request_gate(1)
    settings = settings_for(upstream, profiles=(BOB,))
    with serve(settings, limits=Limits(models_refresh_s=3600.0)) as gateway:
        models, provider = gateway.app.services.models, gateway.app.services.providers["up"]
        asked.wait_sync()
        assert listed(gateway) == ["agent/bob"]
        assert gateway.ask("GET", "/v1/models/agent/bob").json["owned_by"] == "mnemogate"
        assert gateway.ask("GET", f"/v1/models/{upstream.models[0]}").status == 404
        upstream.hold_models = None
        assert gateway.call(models.refresh("up", provider))
        again = upstream.request_gate(3)
        upstream.hold_models = never
        upstream.models.append("newer")
        refreshing = asyncio.run_coroutine_threadsafe(models.refresh("up", provider), gateway.loop)
        again.wait_sync()
        assert listed(gateway) == ["agent/bob", "gpt-strict", "gpt-strict-mini"]
        assert not any(request.settled.is_open for request in (upstream.requests[0], upstream.requests[2]))
        never.open()
        assert refreshing.result(PATIENCE_S)
        assert listed(gateway)[-1] == "newer"


def listed(gateway: RunningGateway) -> list[str]:
    return [entry["id"] for entry in gateway.ask("GET", "/v1/models").json["data"]]


def test_a_failing_chat_does_not_change_the_list(upstream: StrictUpstream) -> None:
    upstream.queue(fail(500))
    with serve(settings_for(upstream, models=(ModelSettings("quick", "a"),))) as gateway:
        gateway.post({"model": "quick", "messages": [{"role": "user", "content": "Hi"}]})
        assert [each["id"] for each in gateway.ask("GET", "/v1/models").json["data"]] == ["quick"]


async def test_the_built_in_model_is_found_under_any_name() -> None:
    """A program that looks for its model before it asks it finds it."""
    models = ModelList(Settings(), {}, 7)
    found = {"id": "gpt-4o-mini", "object": "model", "created": 7, "owned_by": "mnemogate"}
    assert await models.get("gpt-4o-mini", "Bearer none") == found
    for settings, name in ((Settings(), "agent/nobody"), (Settings(models=(ALIAS,)), "gpt-5")):
        with pytest.raises(UnknownModel):
            await ModelList(settings, {}, 7).get(name, None)


@pytest.mark.parametrize("upstreams", ["", "[[upstreams]]\nname = 'demo'\nkind = 'scripted'\n"])
def test_aliases_do_not_hide_the_built_in_models_profile(tmp_path: Path, upstreams: str) -> None:
    config = tmp_path / "mnemogate.toml"
    config.write_text(f"{upstreams}[[models]]\nalias = 'quick'\nmodel = 'small'\n")
    settings = load_settings(config=str(config), environ={})
    check_models(settings)
    assert resolve_route(settings, "agent/default").model == "scripted"


# -- an upstream that lists its models for the caller's key


KEYED = Limits(models_refresh_s=3600.0)
GOOD = {"Authorization": "Bearer sk-good"}


def models_asked(upstream: StrictUpstream) -> list[str | None]:
    """The keys with which the upstream was asked for its list."""
    return [
        dict(request.headers).get("authorization")
        for request in upstream.requests
        if request.path == "/v1/models"
    ]


def names_with(gateway: RunningGateway, headers: Mapping[str, str]) -> list[str]:
    reply = gateway.ask("GET", "/v1/models", headers=headers)
    assert reply.status == 200
    return [entry["id"] for entry in reply.json["data"]]


def test_the_callers_own_key_gets_the_list(upstream: StrictUpstream) -> None:
    upstream.key = "sk-good"
    with serve(settings_for(upstream), limits=KEYED) as gateway:
        assert names_with(gateway, GOOD) == upstream.models
        model = gateway.ask("GET", f"/v1/models/{upstream.models[0]}", headers=GOOD)
        assert (model.status, model.json["id"]) == (200, upstream.models[0])
        assert gateway.ask("GET", "/v1/models/nope", headers=GOOD).status == 404
        # Others do not see what it opened, and nobody's key is asked for twice.
        reply = gateway.ask("GET", "/v1/models")
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert "x-mnemogate-key" in reply.error["message"]
        assert names_with(gateway, GOOD) == upstream.models
        assert models_asked(upstream).count("Bearer sk-good") == 1


def test_a_model_is_found_before_any_list_was_asked_for(upstream: StrictUpstream) -> None:
    upstream.key = "sk-good"
    with serve(settings_for(upstream), limits=KEYED) as gateway:
        assert gateway.ask("GET", f"/v1/models/{upstream.models[1]}", headers=GOOD).status == 200


def test_a_refusal_of_the_key_by_the_upstream_is_reported(upstream: StrictUpstream) -> None:
    upstream.key = "sk-good"
    with serve(settings_for(upstream), limits=KEYED) as gateway:
        for path in ("/v1/models", f"/v1/models/{upstream.models[0]}"):
            reply = gateway.ask("GET", path, headers={"Authorization": "Bearer sk-bad"})
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
            assert reply.error["message"] == "Incorrect API key provided."
        assert names_with(gateway, GOOD) == upstream.models


@pytest.mark.parametrize(("status", "is_told"), [(401, True), (403, False)])
async def test_a_key_of_the_settings_that_is_refused_leaves_no_empty_list(
    status: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With a 403 the key may be for chats alone. The upstream's words may quote the key, so they are not logged."""
    with StrictUpstream(models=["a"]) as upstream:
        upstream.key, upstream.wrong_key_status = "sk-good", status
        settings = Settings(upstreams=(UpstreamSettings("up", base_url=upstream.base_url, api_key="sk-bad"),))
        providers = make_providers(settings)
        models = ModelList(settings, providers, created_at=7)
        await models.refresh("up", providers["up"])
        if is_told:
            with pytest.raises(
                UpstreamUnreachable,
                match=r"'up' gave none, it refuses the key of the settings \(status 401\)",
            ):
                await models.list_entries_for(None)
        else:
            assert await models.list_entries_for(None) == []
        assert f"refuses the key of the settings (status {status})" in caplog.text
        assert "Incorrect API key" not in caplog.text
        await providers["up"].aclose()


class Hands:
    """A clock that moves only by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_upstream_is_asked_less_and_less_often_with_a_key_that_fails() -> None:
    hands = Hands()
    with StrictUpstream(key="sk-good") as upstream:
        settings = settings_for(upstream)
        providers = make_providers(settings)
        models = ModelList(settings, providers, created_at=7, refresh_s=300.0, clock=hands)
        asked: list[float] = []
        for now in range(0, 1000, 5):
            hands.now = now
            with pytest.raises(NotAuthenticated):
                await models.list_entries_for("Bearer sk-bad")
            if len(upstream.requests) > len(asked):
                asked.append(hands.now)
        assert asked == [0, 15, 45, 105, 225, 465, 765]
        # What was a bad key may become a good one.
        upstream.key = "sk-bad"
        hands.now = 2000.0
        assert len(await models.list_entries_for("Bearer sk-bad")) == 2
        await providers["up"].aclose()


async def test_an_upstream_that_demands_a_key_is_asked_and_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.run.upstream.list_fetcher.RETRY_S", 0.0)
    caplog.set_level("INFO", "mnemogate")
    with StrictUpstream(key="sk-good") as upstream:
        settings = settings_for(upstream)
        providers = make_providers(settings)
        await ModelList(settings, providers, created_at=7, refresh_s=300.0).run()  # comes to an end
        assert models_asked(upstream) == [None]
        assert [each.message for each in caplog.records] == [
            "The upstream up lists its models only for callers with a key of their own."
        ]
        await providers["up"].aclose()


async def test_a_failing_upstream_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with StrictUpstream(model_list=b"no") as upstream:
        settings = settings_for(upstream)
        providers = make_providers(settings)
        models = ModelList(settings, providers, created_at=7, refresh_s=300.0)
        for _ in range(3):
            assert not await models.refresh("up", providers["up"])
        assert len(caplog.records) == 1
        upstream.model_list = None
        assert await models.refresh("up", providers["up"])
        upstream.model_list = b"no"
        assert not await models.refresh("up", providers["up"])
        assert len(caplog.records) == 2
        await providers["up"].aclose()


async def test_a_key_goes_to_no_upstream_that_it_may_not_be_for() -> None:
    with StrictUpstream(key="sk-one", models=["a"]) as one, StrictUpstream(key="sk-two", models=["b"]) as two:
        settings = Settings(
            upstreams=(
                UpstreamSettings("one", base_url=one.base_url),
                UpstreamSettings("two", base_url=two.base_url),
            )
        )
        providers = make_providers(settings)
        models = ModelList(settings, providers, created_at=7, refresh_s=300.0)
        for name, provider in providers.items():
            await models.refresh(name, provider)
        with pytest.raises(BadRequest, match="one, two"):
            await models.list_entries_for("Bearer sk-one")
        with pytest.raises(BadRequest, match="no upstream 'three'"):
            await models.list_entries_for("Bearer sk-one", "three")
        named = await models.list_entries_for("Bearer sk-one", "one")
        assert [entry["id"] for entry in named] == ["one/a"]
        assert (await models.get("two/b", "Bearer sk-two"))["id"] == "two/b"
        assert models_asked(one) == [None, "Bearer sk-one"]
        assert models_asked(two) == [None, "Bearer sk-two"]
        for provider in providers.values():
            await provider.aclose()
