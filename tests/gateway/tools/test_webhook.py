"""A webhook is called once, says who calls, and what goes wrong with it is reported to the model."""

from __future__ import annotations

import asyncio
import base64
import hmac

import orjson
import pytest

from gateway.agents.tools import webhook
from gateway.agents.tools.hosts import ToolHosts
from gateway.agents.tools.webhook import Webhooks
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from gateway.settings import ToolSettings
from tests.doubles.tool_server import ToolServer, replying, serving

CALL = ForeignCall("lookup", {"q": "Zürich", "n": 1}, "call_7", "agent-a1", "run-b2", "step-a1-5/call_7")
KEY = b"k" * 32
CALLED, UNCLEAR = "was called, but", "It may have been done."
SECRET = "whsec_" + base64.b64encode(KEY).decode()


async def call(server: ToolServer, secret: str | None = SECRET, path: str = "/hook") -> ToolAnswer:
    hosts = ToolHosts(ToolSettings(private_hosts=(server.url,)))
    return await Webhooks(hosts, secret, lambda: 1_700_000_000.9).run(server.url + path, CALL)


def headers_of(server: ToolServer) -> dict[str, str]:
    (head,) = server.heads
    pairs = [line.split(": ", 1) for line in head.splitlines()[1:] if line]
    return {name.lower(): value for name, value in pairs}


async def test_the_receiver_gets_the_caller_and_can_verify_it() -> None:
    async with serving(replying("200 OK", "sunny, 20 °C".encode())) as server:
        assert await call(server) == ToolAnswer("sunny, 20 °C")
    assert orjson.loads(server.bodies[0]) == {
        "tool": "lookup",
        "arguments": {"q": "Zürich", "n": 1},
        "agent_id": "agent-a1",
        "run_id": "run-b2",
        "call_id": "call_7",
    }
    sent = headers_of(server)
    assert server.heads[0].startswith("POST /hook HTTP/1.1\r\n")
    assert sent["idempotency-key"] == sent["webhook-id"] == "step-a1-5/call_7"
    assert sent["content-type"] == "application/json"
    assert sent["webhook-timestamp"] == "1700000000"
    # As a receiver computes it.
    signed = b"step-a1-5/call_7.1700000000." + server.bodies[0]
    wanted = base64.b64encode(hmac.new(KEY, signed, "sha256").digest()).decode()
    assert sent["webhook-signature"] == f"v1,{wanted}"


async def test_without_a_secret_it_is_not_signed() -> None:
    async with serving(replying("204 No Content", b"")) as server:
        assert await call(server, None) == ToolAnswer("")
    assert "webhook-signature" not in headers_of(server)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (replying("500 Oops", b"x" * 600), "answered with status 500: " + "x" * 500),
        (replying("404 Not Found", b"no such thing"), "answered with status 404: no such thing"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "answered with status 302: "),
        (
            replying("200 OK", b"x" * 1_000_001),
            f"{CALLED} its reply has more than 1,000,000 bytes. {UNCLEAR}",
        ),
        (b"", f"{CALLED} it broke off before its reply. {UNCLEAR}"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", f"{CALLED} its reply broke off. {UNCLEAR}"),
        (b"no HTTP\r\n\r\n", f"{CALLED} it broke off before its reply. {UNCLEAR}"),
        (
            replying("200 OK\r\nContent-Encoding: gzip", b"x"),
            f"{CALLED} its reply is compressed, which was not requested. {UNCLEAR}",
        ),
    ],
)
async def test_failures_of_a_webhook_are_reported_and_not_tried_again(reply: bytes, says: str) -> None:
    async with serving(reply) as server:
        assert await call(server) == ToolAnswer(f"Error: lookup {says}", "error")
    assert len(server.heads) == 1


async def test_a_webhook_that_is_not_there_was_not_called() -> None:
    async with serving(b"") as server:
        pass
    unreached = "Error: lookup cannot be called: it could not be reached."
    assert await call(server) == ToolAnswer(unreached, "error", was_sent=False)


async def test_a_slow_webhook_is_called_once_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.05)
    async with serving(asyncio.Event()) as server:
        answer = await call(server)
    assert answer.status == "error"
    assert answer.content.startswith("Error: lookup did not answer within")
    assert len(server.heads) == 1


async def test_an_address_that_is_not_allowed_is_never_called() -> None:
    async with serving(replying("200 OK", b"secret")) as server:
        hosts = ToolHosts(ToolSettings(hosts=("api.example.org",)))
        answer = await Webhooks(hosts, None, lambda: 0.0).run(server.url, CALL)
    assert answer.status == "error"
    assert "the setting tools.hosts does not name" in answer.content
    assert server.heads == []
