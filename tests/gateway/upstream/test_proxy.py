"""The proxy of an upstream, as the settings name it."""

from __future__ import annotations

from adapters.types import ModelRequest
from gateway.provider_factory import make_batches, make_providers
from gateway.settings import Settings, UpstreamSettings
from tests.doubles.batches import OpenAIBatchServer
from tests.doubles.proxy import proxy
from tests.doubles.upstream import StrictUpstream


async def test_calls_and_batches_of_one_upstream_alone_go_through_it() -> None:
    with OpenAIBatchServer() as server, StrictUpstream() as other:
        async with proxy("ann:secret") as through:
            near = UpstreamSettings("near", base_url=other.base_url)
            far = UpstreamSettings(
                "far", base_url=server.base_url, api_key="sk-own", batches="openai", proxy=through.url
            )
            settings = Settings(upstreams=(near, far))
            providers, batches = make_providers(settings), make_batches(settings)
            request = ModelRequest(b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}')
            for name, status in (("near", 200), ("far", 404)):
                reply = await providers[name].send(request)
                assert reply.status == status
                await reply.aclose()
            await batches["far"].poll("batch_1")
            assert [line.split(" ")[1] for line in through.asked] == [
                f"{server.base_url}/chat/completions",
                f"{server.base_url}/batches/batch_1",
            ]
            for each in (*providers.values(), *batches.values()):
                await each.aclose()
