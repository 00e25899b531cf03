"""What the gateway says about itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.web.health import Readiness
from storage.sql.store import Store
from storage.sqlite.writer import WriterLimits
from tests.doubles.disk import Disk, fill
from tests.doubles.upstream import StrictUpstream, fail
from tests.patience import becomes
from tests.server import serve, settings_for
from tests.stored import open_store

ROOT = Path(__file__).parents[3]


def test_a_draining_gateway_is_alive_and_not_ready(upstream: StrictUpstream, tmp_path: Path) -> None:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    with serve(settings_for(upstream), open_here) as gateway:
        assert gateway.ask("GET", "/health").json == {"status": "ok"}
        ready = gateway.ask("GET", "/health/ready")
        assert (ready.status, ready.json) == (200, {"status": "ok", "store": "ok"})
        gateway.app.readiness.is_draining = True
        assert gateway.ask("GET", "/health/ready").status == 503
        assert gateway.ask("GET", "/health").status == 200  # alive until the end


@pytest.mark.parametrize(
    ("readiness", "status", "ready"),
    [
        (Readiness(lambda: "ok"), "starting", False),
        (Readiness(lambda: "ok", has_started=True), "ok", True),
        (Readiness(lambda: "ok", has_started=True, is_draining=True), "draining", False),
        (Readiness(lambda: "full", has_started=True), "degraded", True),  # chat goes on
    ],
)
def test_a_gateway_is_ready_between_its_start_and_its_end(
    readiness: Readiness, status: str, ready: bool
) -> None:
    assert (readiness.report()["status"], readiness.is_ready) == (status, ready)


@pytest.mark.sqlite
def test_the_state_of_the_store_is_known_without_a_request_that_uses_it(
    upstream: StrictUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()

    async def open_here() -> Store:
        limits = WriterLimits(retry_first_s=0.01, retry_max_s=0.01)
        parts = {"limits": limits, "connect": disk.connect, "check_s": 0.01}
        return await open_store(tmp_path / "m.db", is_disk_doubtful=lambda path: True, **parts)

    with serve(settings_for(upstream), open_here) as gateway:

        def shown() -> tuple[str, str, bool]:
            ready = gateway.ask("GET", "/health/ready").json
            scraped = gateway.ask("GET", "/metrics").body.decode().splitlines()
            return ready["status"], ready["store"], "mnemogate_store_up 1.0" in scraped

        async def fill_up() -> None:
            disk.full = True
            await gateway.app.services.store.database.writer.submit(fill, begins_own_transaction=True)

        assert shown() == ("ok", "ok", True)
        gateway.call(fill_up())
        becomes(lambda: shown() == ("degraded", "full", False))
        overview = gateway.call(gateway.app.services.page.overview.show())
        assert overview.sentence == "The database cannot be written: nothing new is stored."
        disk.full = False
        becomes(lambda: shown() == ("ok", "ok", True))
    failed, works = caplog.messages
    assert failed.startswith("Nothing new is stored until the database works again: ")
    assert works.startswith("The database works again, after: ")


def test_metrics_have_names_as_prometheus_wants_them(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The rules of `promtool check metrics`."""

    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    with serve(settings_for(upstream), open_here) as gateway:
        gateway.post({"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Hi"}]})
        gateway.flush_log()
        lines = gateway.ask("GET", "/metrics").body.decode().splitlines()
    kinds = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE ")}
    helped = {line.split()[2] for line in lines if line.startswith("# HELP ") and len(line.split()) > 3}
    assert len(kinds) > 10
    assert helped == set(kinds)
    for name, kind in kinds.items():
        words = set(name.split("_"))
        assert re.fullmatch(r"[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not words & {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "m", "h", "d"}, name
        assert not words & {"milliseconds", "minutes", "hours", "kilobytes", "percent"}, name
        assert not words & {"counter", "gauge", "histogram", "summary"}, name
        assert not name.endswith(("_bucket", "_count", "_sum")), name
    added = [line for line in lines if line.startswith('mnemogate_added_seconds_bucket{le="2.5"}')]
    assert added == ['mnemogate_added_seconds_bucket{le="2.5"} 1.0']


def test_the_address_itself_says_where_the_api_lies(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream)) as gateway:
        home = gateway.ask("GET", "/")
        assert (home.status, home.headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert "The API lies under /v1 " in home.body.decode()
        # A base URL without its /v1: OpenAI's SDKs show the message.
        missed = gateway.ask("POST", "/chat/completions", b"{}")
        assert missed.status == 404
        assert "the API lies under /v1" in missed.error["message"]
        assert "under /v1" not in gateway.ask("POST", "/v1/unknown", b"{}").error["message"]
        # One with a /v1 too much, as somebody gives it to Letta's client.
        assert "has to end before it" in gateway.ask("GET", "/v1/v1/agents/").error["message"]


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        # The base URL itself, as a browser or a client's check of it asks for it.
        ("GET", "/v1/", "below it applications ask for POST /v1/chat/completions"),
        ("GET", "/v1", "below it applications ask for POST /v1/chat/completions"),
        ("POST", "/v1/no/such/thing", "below it applications ask for POST /v1/chat/completions"),
        ("POST", "/v1/" + "x" * 5000, "below it applications ask for POST /v1/chat/completions"),
        ("POST", "/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("POST", "/v1/Chat/Completions/", "did you mean /v1/chat/completions?"),
        ("POST", "/v1/chat/completions/", "did you mean /v1/chat/completions?"),
        ("POST", "/v1/chat", "did you mean /v1/chat/completions?"),
        ("GET", "/v1/modls", "did you mean /v1/models?"),
        ("POST", "/v1/embedding", "did you mean /v1/embeddings?"),
        # With the parameters as the caller wrote them.
        ("GET", "/v1/agents/agent-1/message", "did you mean /v1/agents/{agent_id}/messages?"),
        ("POST", "/chat/completions", "did you mean /v1/chat/completions?"),
        ("GET", "/healt", "did you mean /health?"),
        # AzureOpenAI(azure_endpoint=), and with `base_url`.
        (
            "POST",
            "/openai/deployments/gpt-4o/chat/completions",
            "use OpenAI's, with a base URL that ends in /v1",
        ),
        ("POST", "/v1/deployments/gpt-4o/chat/completions", "use OpenAI's, with a base URL that ends in /v1"),
        # OpenAI's SDK: client.chat.completions.retrieve, .messages.list.
        ("GET", "/v1/chat/completions/chatcmpl-1", "; stored chat completions are not served"),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages", "; stored chat completions are not served"),
        # Where the setting is off.
        ("POST", "/mcp", "it is served with `server.mcp = true` in the settings"),
    ],
)
def test_the_error_of_an_unknown_path_names_the_nearest(
    upstream: StrictUpstream, method: str, path: str, hint: str
) -> None:
    with serve(settings_for(upstream)) as gateway:
        missed = gateway.ask(method, path, b"{}" if method == "POST" else None)
    assert missed.status == 404
    message = missed.json["detail"] if "detail" in missed.json else missed.error["message"]
    assert message.startswith(f"Unknown path: {method} {path}")
    assert message.endswith(hint)


def test_requests_are_counted_by_route_and_status(upstream: StrictUpstream) -> None:
    upstream.queue(fail(429))
    with serve(settings_for(upstream)) as gateway:
        gateway.post({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        gateway.post(b"{")
        gateway.ask("GET", "/nope")
        gateway.flush_log()
        reply = gateway.ask("GET", "/metrics")
    lines = reply.body.decode().splitlines()
    assert reply.headers["content-type"].startswith("text/plain")
    assert 'mnemogate_requests_total{route="chat",status="429"} 1.0' in lines
    assert 'mnemogate_requests_total{route="chat",status="400"} 1.0' in lines
    assert 'mnemogate_requests_total{route="other",status="404"} 1.0' in lines
    assert 'mnemogate_upstream_errors_total{kind="429",upstream="up"} 1.0' in lines
    assert 'mnemogate_memory_total{status="none"} 1.0' in lines
    assert "mnemogate_added_seconds_count 1.0" in lines


def test_every_field_of_the_log_is_documented(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream)) as gateway:
        gateway.post({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        gateway.flush_log()
        written = set(gateway.lines[-1])
    _, _, behind = (ROOT / "docs/operations.md").read_text("utf-8").partition("| field of such a line |")
    table, _, _ = behind.partition("\n\n")
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named - {"trace_id"} == written, "which has that one only where the request is traced"
