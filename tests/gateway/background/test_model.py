"""Calls of our own: few at a time, within a budget, on connections of their own, and silent about what was said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters.base import ModelReply, Provider
from adapters.capabilities import Capabilities
from adapters.errors import ProviderReplyBroken, ProviderUnreachable
from adapters.providers import UNKNOWN
from adapters.scripted import ScriptedBody, ScriptedFailure, ScriptedProvider
from adapters.scripted_message import ScriptedCall, ScriptedMessage
from adapters.types import Header, ModelRequest
from gateway.cli import main
from gateway.core.usage.gen_ai import CANCELLED_FAILURE
from gateway.errors import SettingsError
from gateway.provider_factory import make_providers
from gateway.run.background.background_model import (
    CALL_S,
    BackgroundModel,
    BackgroundModels,
    RequestRefused,
    find_background_route,
)
from gateway.run.background.budget import DailyBudget
from gateway.run.background.job_context import JobFailed, JobPostponed
from gateway.run.receipt import Receipt
from gateway.run.receipts import set_current_receipt
from gateway.run.upstream.route import Route
from gateway.run.usage.meter import Meter
from gateway.services import Services
from gateway.settings import MemorySettings, ModelSettings, Settings, UpstreamSettings
from storage.sql.store import Store
from tests.stored import open_store

DAY = 86_400
NOON = 100 * DAY + DAY // 2
ASK = [{"role": "user", "content": "My cat is called Miso."}]


@dataclass
class World:
    store: Store
    provider: ScriptedProvider = field(default_factory=ScriptedProvider)
    now: float = float(NOON)
    counted: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = Meter(self.store.usage, self.store.agents.find_by_id, lambda: self.now, Settings())

    def budget(self, daily_tokens: int = 0) -> DailyBudget:
        return DailyBudget(
            self.meter, lambda: self.now, daily_tokens, lambda *each: self.counted.append(each)
        )

    def background(
        self, *, daily_tokens: int = 0, concurrency: int = 2, timeout_s: float = CALL_S
    ) -> BackgroundModel:
        slots = asyncio.Semaphore(concurrency)
        budget = self.budget(daily_tokens)
        return BackgroundModel(self.provider, "small", UpstreamSettings("local"), budget, slots, timeout_s)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_store(tmp_path / "memory.db")
    yield World(store)
    await store.close()


async def test_a_reply_is_the_message_and_what_it_cost(world: World) -> None:
    world.provider.queue(ScriptedMessage("A cat.", (ScriptedCall("note", '{"a":1}'),)))
    tool = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
    reply = await world.background().ask("p", ASK, tools=[tool], max_tokens=50)
    assert reply.text == "A cat."
    assert reply.message["tool_calls"][0]["function"]["name"] == "note"
    assert reply.finish_reason == "tool_calls"
    (body,) = world.provider.bodies
    assert body == {"model": "small", "messages": ASK, "max_tokens": 50, "tools": [tool]}
    assert await world.meter.count_background_tokens("p") == reply.tokens > 0
    assert world.counted == [("ok", reply.tokens)]


async def test_tools_go_to_a_model_that_has_tools_or_thoughts(world: World) -> None:
    world.provider = ScriptedProvider(capabilities=UNKNOWN)
    tool = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
    model = world.background().with_model("gpt-5.6-luna")
    for tools in ([tool], []):
        world.provider.queue(ScriptedMessage("A cat."))
        await model.ask("p", ASK, tools=tools)
    assert [body.get("reasoning_effort") for body in world.provider.bodies] == ["none", None]


@pytest.mark.parametrize(("newer", "key"), [(True, "max_completion_tokens"), (False, "max_tokens")])
async def test_the_limit_has_the_name_that_the_upstream_takes(world: World, newer: bool, key: str) -> None:
    world.provider = ScriptedProvider(capabilities=Capabilities(max_completion_tokens=newer))
    await world.background().ask("p", ASK, max_tokens=50)
    (body,) = world.provider.bodies
    assert {name: value for name, value in body.items() if name.startswith("max_")} == {key: 50}


async def test_no_tools_means_no_tools(world: World) -> None:
    await world.background().ask("p", ASK)
    assert "tools" not in world.provider.bodies[0]


async def test_a_reply_that_does_not_say_what_it_used_is_estimated(world: World) -> None:
    raw = b'{"choices":[{"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":null}'
    world.provider.queue(ScriptedBody((raw,)))
    reply = await world.background().ask("p", ASK)
    assert len(raw) // 4 < reply.tokens < len(raw)


async def test_a_reply_that_is_none_costs_what_it_reports(world: World) -> None:
    usage = b'{"prompt_tokens":20,"completion_tokens":10}'
    world.provider.queue(ScriptedBody((b'{"choices":[],"usage":%b}' % usage,)))
    background = world.background(daily_tokens=30)
    with pytest.raises(JobFailed, match="no chat completion"):
        await background.ask("p", ASK)
    assert await world.meter.count_background_tokens("p") == 30
    with pytest.raises(JobPostponed):
        await background.ask("p", ASK)
    assert world.counted == [("failed", 30), ("refused", 0)]


async def test_a_used_up_budget_waits_for_the_next_day(world: World) -> None:
    background = world.background(daily_tokens=5)
    await background.ask("p", ASK)
    with pytest.raises(JobPostponed) as caught:
        await background.ask("p", ASK)
    assert caught.value.delay_s == DAY / 2
    assert len(world.provider.requests) == 1
    await background.ask("another", ASK)
    world.now += DAY / 2
    await background.ask("p", ASK)
    assert [outcome for outcome, _ in world.counted] == ["ok", "refused", "ok", "ok"]


async def test_the_budget_outlives_the_process(world: World) -> None:
    await world.background(daily_tokens=5).ask("p", ASK)
    with pytest.raises(JobPostponed):
        await world.background(daily_tokens=5).ask("p", ASK)


@pytest.mark.parametrize(
    ("scripted", "error", "words"),
    [
        (ScriptedFailure(500, "Miso"), JobFailed, "answered 500"),
        (ScriptedFailure(400, "Miso"), JobFailed, "answered 400"),
        (ScriptedFailure(429, "Miso", headers=(("retry-after", "7"),)), JobPostponed, "429"),
        # As failover takes them under a 200.
        (ScriptedBody((b'{"base_resp":{"status_code":1002,"status_msg":"Miso"}}',)), JobPostponed, "429"),
        (ScriptedBody((b'{"error":{"code":502,"message":"Miso"}}',)), JobFailed, "answered 502"),
        (ScriptedBody((b"Miso",)), JobFailed, "no chat completion"),
        (ScriptedBody((b'{"choices":[]}',)), JobFailed, "no chat completion"),
        (ScriptedBody((b'{"choices":[{"message":"Miso"}]}',)), JobFailed, "no chat completion"),
        (ScriptedBody((b"[]",)), JobFailed, "no chat completion"),
        (ScriptedBody((b'{"choices"', ProviderReplyBroken("Miso"))), JobFailed, "gave no whole answer"),
        (ProviderUnreachable("Miso"), JobFailed, "could not be reached"),
    ],
)
async def test_failures_of_the_model_are_named_without_message_texts(
    world: World, scripted: Any, error: type[JobFailed], words: str
) -> None:
    world.provider.queue(scripted)
    receipt = Receipt()
    set_current_receipt(receipt)
    with pytest.raises(error) as caught:
        await world.background().ask("p", ASK)
    (call,) = receipt.calls
    assert call.failure or call.status != 200
    assert caught.value.message.startswith("the background model small of the upstream local ")
    assert words in caught.value.message
    assert "Miso" not in caught.value.message
    assert world.counted == [("failed", 0)]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_for_a_clients_request_is_counted_as_no_background_call(
    world: World, fails: bool
) -> None:
    if fails:
        world.provider.queue(ScriptedFailure(500, "Miso"))
    with pytest.raises(JobFailed) if fails else nullcontext():
        await world.background().ask("p", ASK, is_background=False)
    assert world.counted == []
    assert await world.meter.count_background_tokens("p") == 0


@pytest.mark.parametrize(
    ("message", "is_refused"), [("It was filtered.", True), ("Your credit balance is too low.", False)]
)
async def test_an_account_without_credit_refuses_no_request(
    world: World, message: str, is_refused: bool
) -> None:
    world.provider.queue(ScriptedFailure(400, message))
    with pytest.raises(JobFailed) as caught:
        await world.background().ask("p", ASK)
    assert isinstance(caught.value, RequestRefused) is is_refused


async def test_a_busy_upstream_says_how_long(world: World) -> None:
    past = ("retry-after", "Thu, 01 Jan 1970 00:00:07 GMT")
    headers: tuple[tuple[Header, ...], ...] = ((("retry-after", "7"),), (), (("retry-after", "0"),), (past,))
    world.provider.queue(*(ScriptedFailure(429, headers=each) for each in headers))
    # Google's says it in its body alone.
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
    error = {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED", "details": [info]}
    world.provider.queue(ScriptedBody((orjson.dumps([{"error": error}]),), status=429))
    for delay_s in (7.0, 30.0, 30.0, 30.0, 34.5):
        with pytest.raises(JobPostponed) as caught:
            await world.background().ask("p", ASK)
        assert caught.value.delay_s == delay_s


class Slow(ScriptedProvider):
    """Answers when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.inside = self.most = 0

    async def send(self, request: ModelRequest) -> ModelReply:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == 2:
            self.entered.set()
        try:
            await self.gate.wait()
            return await super().send(request)
        finally:
            self.inside -= 1


async def test_only_so_many_at_a_time(world: World) -> None:
    slow = world.provider = Slow()
    background = world.background(concurrency=2)
    calls = [asyncio.create_task(background.ask("p", ASK)) for _ in range(5)]
    await slow.entered.wait()
    slow.gate.set()
    await asyncio.gather(*calls)
    assert slow.most == 2
    assert len(slow.requests) == 5


async def test_models_of_one_upstream_share_its_connections_and_its_calls_at_a_time(world: World) -> None:
    """Callers name the models of their agents' summaries, and could name any number of them."""
    slow, made = Slow(), list[str]()

    def make(route: Route) -> Provider:
        made.append(route.upstream)
        return slow

    models = BackgroundModels(
        Settings(upstreams=(UpstreamSettings("up"),)), make, world.budget(), concurrency=2
    )
    named = [f"m{n}" for n in range(5)]
    calls = [asyncio.create_task(models.get_model(Route("up", name)).ask("p", ASK)) for name in named]
    await slow.entered.wait()
    slow.gate.set()
    await asyncio.gather(*calls)
    assert (made, slow.most) == (["up"], 2)
    assert sorted(body["model"] for body in slow.bodies) == named


async def test_a_model_that_never_answers_is_not_waited_for(world: World) -> None:
    world.provider = Slow()
    with pytest.raises(JobFailed, match=r"no answer in 0\.001 s"):
        await world.background(timeout_s=0.001).ask("p", ASK)
    assert world.counted == [("failed", 0)]


async def test_a_call_that_is_cancelled_is_none_without_a_failure(world: World) -> None:
    slow = world.provider = Slow()
    receipt = Receipt()
    set_current_receipt(receipt)
    background = world.background(concurrency=2)
    calls = [asyncio.create_task(background.ask("p", ASK)) for _ in range(2)]
    await slow.entered.wait()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert [call.failure for call in receipt.calls] == [CANCELLED_FAILURE, CANCELLED_FAILURE]


# --- in the gateway ---------------------------------------------------------------------------------------------------

UPSTREAMS = (
    UpstreamSettings("a", base_url="http://a.invalid/v1", api_key="k"),
    UpstreamSettings("b", base_url="http://b.invalid/v1"),
)
QUICK = ModelSettings("quick", "gpt-small", upstream="b")


async def test_without_a_model_named_for_it_nothing_is_asked(world: World) -> None:
    background = Services(Settings(upstreams=UPSTREAMS), world.store).background
    assert background is not None
    assert background.model is None


@pytest.mark.parametrize(
    ("named", "prices", "found"),
    [
        (None, (None, None), None),
        (None, (2.5, None), "gpt-large"),
        (None, (2.5, 0.15), "gpt-small"),
        (None, (0.0, 0.15), "gpt-large"),
        ("big", (2.5, 0.15), "gpt-large"),
        ("none", (2.5, 0.15), None),
    ],
)
def test_the_cheapest_whose_price_is_known_is_asked_unless_one_is_named(
    named: str | None, prices: tuple[float | None, float | None], found: str | None
) -> None:
    models = (
        ModelSettings("big", "gpt-large", upstream="a", price=prices[0]),
        ModelSettings("quick", "gpt-small", upstream="b", price=prices[1]),
    )
    memory = MemorySettings(background_model=named)
    route = find_background_route(Settings(memory=memory, upstreams=UPSTREAMS, models=models))
    assert (route and route.model) == found


def test_an_embedder_with_a_price_is_no_background_model() -> None:
    models = (
        ModelSettings("big", "gpt-large", upstream="a", price=2.5),
        ModelSettings("vectors", "text-embedding", upstream="b", price=0.02),
    )
    settings = Settings(memory=MemorySettings(embedder="vectors"), upstreams=UPSTREAMS, models=models)
    assert settings.background_model == "big"


async def test_the_background_model_has_connections_of_its_own(world: World) -> None:
    memory = MemorySettings(background_model="quick")
    settings = Settings(memory=memory, upstreams=UPSTREAMS, models=(QUICK,))
    providers = make_providers(settings)
    app = Services(settings, world.store, providers)
    assert app.background.model is not None
    assert (app.background.model.model, app.background.model.provider.name) == (
        "gpt-small",
        "b",
    )
    live: Any = providers["b"]
    own: Any = app.background.model.provider
    assert own is not live
    assert own._transport is not live._transport


async def test_a_background_model_that_no_upstream_serves_is_refused_at_start(world: World) -> None:
    memory = MemorySettings(background_model="quikc")
    with pytest.raises(SettingsError, match=r"memory\.background_model"):
        Services(Settings(memory=memory, upstreams=UPSTREAMS, models=(QUICK,)), world.store)


@pytest.mark.parametrize("url", ["http://x:99999/v1", "http://[::1/v1", "https://x/v1?key=1"])
def test_check_config_refuses_an_address_that_the_start_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnemogate.toml").write_text(f"[[upstreams]]\nname = 'up'\nbase_url = '{url}'\n")
    assert main(["check-config"]) == 2
    assert "upstreams 'up': base_url" in capsys.readouterr().err


def test_check_config_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnemogate.toml").write_text(
        "[memory]\nbackground_model = 'x'\n[[models]]\nalias = 'a'\nmodel = 'b'"
    )
    assert main(["check-config"]) == 2
    assert "memory.background_model" in capsys.readouterr().err
