"""Calls through a proxy: over TLS in a tunnel, without TLS by whole URLs, of the transport and of the batch SDKs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp.connector
import pytest

from adapters.batch.openai import OpenAIBatches
from adapters.body_pieces import Upload
from adapters.errors import ProviderUnreachable
from adapters.openai import OpenAICompatible
from adapters.transport import HttpTransport
from adapters.types import ModelRequest
from tests.adapters.test_transport import HEADERS, chat, post
from tests.doubles.batches import OpenAIBatchServer
from tests.doubles.certificate import make_certificate
from tests.doubles.proxy import proxy
from tests.doubles.tool_server import OK, serving
from tests.doubles.upstream import StrictUpstream


@pytest.mark.parametrize("login", [None, "ann:a%40b"], ids=["open", "login"])
async def test_without_tls_the_proxy_is_handed_the_request(
    upstream: StrictUpstream, login: str | None
) -> None:
    async with proxy(login and login.replace("%40", "@")) as through:
        url = through.url if login is None else f"http://{login}@127.0.0.1:{through.port}"
        transport = HttpTransport(proxy=url)
        for _ in range(2):
            reply = await post(transport, upstream, chat())
            assert reply.status == 200
            await reply.read(10_000)
        await transport.aclose()
    assert through.asked == [f"POST {upstream.base_url}/chat/completions HTTP/1.1"] * 2
    assert len(upstream.chats) == 2
    assert "proxy-authorization" not in upstream.chats[0].headers


async def test_with_tls_the_request_is_tunnelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path, "api.example.org")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.load_verify_locations(certificate)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", theirs)
    async with serving(OK, tls=ours) as server, proxy("ann:secret") as through:
        transport = HttpTransport(proxy=through.url)
        url = f"https://api.example.org:{server.port}/v1/models"
        reply = await transport.send("GET", url, {"Authorization": "Bearer k"})
        assert await reply.read(100) == b"ok"
        await transport.aclose()
    assert through.asked == [f"CONNECT api.example.org:{server.port} HTTP/1.1"]
    [head] = server.heads
    assert head.startswith("GET /v1/models HTTP/1.1\r\n")
    assert "proxy-authorization" not in head.lower()


async def test_an_upload_goes_through_it_too(upstream: StrictUpstream) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield chat()

    async with proxy("ann:secret") as through:
        transport = HttpTransport(proxy=through.url)
        url = f"{upstream.base_url}/chat/completions"
        reply = await transport.send("POST", url, HEADERS, Upload(pieces(), len(chat())))
        assert reply.status == 200
        await reply.aclose()
        await transport.aclose()
    assert len(through.asked) == 1


async def test_the_error_of_a_proxy_names_the_fault(upstream: StrictUpstream) -> None:
    async with proxy("ann:secret") as through:
        transport = HttpTransport(proxy=f"http://ann:wrong@127.0.0.1:{through.port}")
        with pytest.raises(
            ProviderUnreachable, match=r"the proxy before api\.example\.org:443 refused with 407"
        ):
            await transport.send("GET", "https://api.example.org/v1/models", {})
        await transport.aclose()
    transport = HttpTransport(proxy="http://127.0.0.1:9")
    with pytest.raises(ProviderUnreachable, match=r"no connection to the proxy before 127\.0\.0\.1") as error:
        await post(transport, upstream, chat())
    assert not error.value.was_sent
    await transport.aclose()


async def test_a_provider_and_its_batches_take_the_same_way(
    upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with OpenAIBatchServer() as server:
        async with proxy() as through:
            provider = OpenAICompatible(
                "up", upstream.base_url, key="k", transport=HttpTransport(proxy=through.url)
            )
            reply = await provider.send(ModelRequest(chat()))
            assert reply.status == 200
            await reply.aclose()
            await provider.aclose()
            batches = OpenAIBatches(server.base_url, "sk-own", {}, lambda: 0.0, through.url)
            assert (await batches.poll("batch_1")).is_gone
            await batches.aclose()
            assert len(through.asked) == 2
        batches = OpenAIBatches(server.base_url, "sk-own", {}, lambda: 0.0)
        # The proxy of the environment is not for us.
        assert (await batches.poll("batch_1")).is_gone
        await batches.aclose()
