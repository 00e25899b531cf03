"""Web pages that ask from the browser: those whose origin the settings name, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.errors import SettingsError
from gateway.settings.load import load_settings
from storage.sql.store import Store
from tests.doubles.upstream import Reply, StrictUpstream, UpstreamRequest, say
from tests.server import RawReply, RunningGateway, serve, settings_for
from tests.stored import open_store

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
APP, OTHER = "https://app.example.org", "https://evil.example"
ALLOWS = "access-control-allow-origin"


@pytest.fixture
def upstream() -> Iterator[StrictUpstream]:
    def answer(request: UpstreamRequest) -> Reply:
        reply = say("Hi.")
        opened = {ALLOWS: "*", "access-control-expose-headers": "x-request-id"}
        return replace(reply, headers={**reply.headers, **opened})

    with StrictUpstream(script=answer) as running:
        yield running


@pytest.fixture
def gateway(
    request: pytest.FixtureRequest, upstream: StrictUpstream, tmp_path: Path
) -> Iterator[RunningGateway]:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    with serve(settings_for(upstream, server={"cors_origins": (request.param,)}), open_here) as running:
        yield running


def preflight(gateway: RunningGateway, origin: str, headers: Mapping[str, str] | None = None) -> RawReply:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        **(headers or {}),
    }
    return gateway.ask("OPTIONS", "/v1/chat/completions", None, asked)


@pytest.mark.parametrize("gateway", [APP], indirect=True)
def test_a_page_of_a_named_origin_asks_and_reads(gateway: RunningGateway) -> None:
    before = preflight(gateway, APP, {"access-control-request-private-network": "true"})
    assert before.status == 200
    assert before.headers[ALLOWS] == APP
    assert {"authorization", "x-stainless-lang"} <= set(
        before.headers["access-control-allow-headers"].lower().replace(" ", "").split(",")
    )
    assert before.headers["access-control-allow-private-network"] == "true"
    for stream in (False, True):
        reply = gateway.post({**HELLO, "stream": stream, "user": "alice"}, {"origin": APP})
        assert reply.status == 200
        assert reply.headers[ALLOWS] == APP
        assert reply.headers["access-control-expose-headers"] == "*"
    wrong = gateway.post({"model": "m"}, {"origin": APP})
    assert (wrong.status, wrong.headers[ALLOWS]) == (400, APP)  # the page can read what is wrong


@pytest.mark.parametrize("gateway", [APP], indirect=True)
def test_a_page_of_another_origin_is_neither_answered_nor_let_read(gateway: RunningGateway) -> None:
    assert preflight(gateway, OTHER).status == 400
    assert gateway.post(HELLO, {"origin": OTHER}).status == 403
    _, key = gateway.call(gateway.app.services.store.keys.create("default", "test"))
    reply = gateway.post(HELLO, {"origin": OTHER, "authorization": f"Bearer {key}"})
    assert (reply.status, ALLOWS in reply.headers) == (200, False)  # not even if its upstream would


@pytest.mark.parametrize("gateway", ["*"], indirect=True)
def test_every_origin_means_every_one_with_a_key(gateway: RunningGateway) -> None:
    assert gateway.post(HELLO, {"origin": OTHER}).status == 403
    _, key = gateway.call(gateway.app.services.store.keys.create("default", "test"))
    assert preflight(gateway, OTHER).headers[ALLOWS] == "*"  # a preflight brings no key
    refused = gateway.post(HELLO, {"origin": OTHER})
    assert (refused.status, refused.headers[ALLOWS]) == (401, "*")
    assert gateway.post(HELLO, {"origin": OTHER, "authorization": f"Bearer {key}"}).status == 200


NO_ORIGINS = [
    "app.example.org",
    "https://app.example.org/",
    "https://",
    "",
    "https://App.example.org",  # a browser sends it in lower case,
    "https://app.example.org:443",  # without the port that goes without saying,
    "http://app.example.org:80",
    "https://bücher.example",  # and as xn--bcher-kva
]


@pytest.mark.parametrize("origin", NO_ORIGINS)
def test_the_refusal_names_a_setting_that_is_no_origin(tmp_path: Path, origin: str) -> None:
    config = tmp_path / "mnemogate.toml"
    config.write_text(f"[server]\ncors_origins = ['{origin}']\n", "utf-8")
    with pytest.raises(SettingsError, match=r"server\.cors_origins"):
        load_settings(config=str(config), environ={})


@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "https://app.example.org:8443", "app://Notes.md"]
)
def test_an_origin_as_browsers_send_it_is_taken(tmp_path: Path, origin: str) -> None:
    config = tmp_path / "mnemogate.toml"
    config.write_text(f"[server]\ncors_origins = ['{origin}']\n")
    assert load_settings(config=str(config), environ={}).server.cors_origins == (origin,)
