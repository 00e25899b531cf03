"""The real gateway on a free port, in a thread with a loop of its own, and a client that speaks raw HTTP.

with serve(settings_for(upstream)) as gateway:
    reply = gateway.post({"model": "m", "messages": [...]})
    assert reply.status == 200
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from msgspec.structs import replace

from gateway import event_loop
from gateway.app import Gateway
from gateway.limits import Limits
from gateway.log import AccessLog
from gateway.run.background.background_services import BackgroundServices
from gateway.run.background.schedule import Schedule
from gateway.settings import MemorySettings, ServerSettings, Settings, UpstreamSettings
from gateway.traces.otlp import OtlpSettings
from gateway.web.listening import bind
from gateway.web.server import GatewayServer, make_server
from storage.sql.jobs import Jobs
from storage.sql.store import Store
from tests import stored
from tests.patience import PATIENCE_S

T = TypeVar("T")
# Upstreams are not asked for their models, so that they see only the requests of a test. No reply goes out before its
# turn is written, also on a busy machine. A test that stops its gateway waits for no other request.
QUIET = Limits(
    last_request_s=0.0,
    models_refresh_s=0.0,
    commit_wait_s=PATIENCE_S,
    limit_read_s=PATIENCE_S,
    step_wait_s=PATIENCE_S,
    page_read_s=PATIENCE_S,
)


# With MNEMOGATE_TEST_AGENTS=none gateways of the tests have no agents API (tests/gateway/test_without_agents.py).
HAS_AGENTS = os.environ.get("MNEMOGATE_TEST_AGENTS") != "none"


def settings_for(upstream: Any, *, server: Mapping[str, Any] | None = None, **parts: Any) -> Settings:
    """Returns settings with one upstream, which stores responses as the strict one does.

    upstream: a server with a `base_url`.
    server: values of the table [server].
    parts: other fields of `Settings`.
    """
    return Settings(
        **{
            "server": ServerSettings(**{"port": 0, **(server or {})}),
            "memory": MemorySettings(recall_deadline_ms=50_000),
            "upstreams": (UpstreamSettings("up", base_url=upstream.base_url, takes={"responses": "stored"}),),
            **parts,
        }
    )


def chat_upstreams(upstream: Any, name: str = "openai") -> tuple[UpstreamSettings, ...]:
    """Returns the settings of an upstream that answers chat completions, and no responses."""
    takes: Any = {"responses": False, "stream_usage": True}
    return (UpstreamSettings(name, "openai", upstream.base_url, takes=takes),)


@dataclass
class RawReply:
    """A reply, as it was received."""

    status: int
    # name in lower case -> the last value
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


class RawClient:
    """A blocking connection, over which a test sends bytes of its own."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.unread = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        lines = {"host": "127.0.0.1", **(headers or {})}
        if body is not None:
            lines.setdefault("content-length", str(len(body)))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
        self.send(head.encode("latin-1") + b"\r\n" + (body or b""))

    def read_until(self, mark: bytes) -> bytes:
        """Returns the bytes up to the mark, and the mark."""
        while mark not in self.unread:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"the connection ended before {mark!r}: {self.unread!r}")
            self.unread += data
        before_mark, _, self.unread = self.unread.partition(mark)
        return before_mark + mark

    def read_head(self) -> RawReply:
        first, *lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        return RawReply(int(first.split(" ")[1]), headers, b"")

    def read_chunk(self) -> bytes:
        """Returns the next chunk of a chunked body; b"": the body has ended."""
        size = int(self.read_until(b"\r\n"), 16)
        return self.read_exactly(size + 2)[:-2]

    def read_reply(self) -> RawReply:
        reply = self.read_head()
        if "content-length" in reply.headers:
            reply.body = self.read_exactly(int(reply.headers["content-length"]))
        else:
            while chunk := self.read_chunk():
                reply.body += chunk
        return reply

    def is_closed(self) -> bool:
        """Waits until the server closes the connection. Returns False if it sends bytes instead."""
        try:
            return not self.unread and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def read_exactly(self, count: int) -> bytes:
        while len(self.unread) < count:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"the connection ended {count - len(self.unread)} bytes too early")
            self.unread += data
        data, self.unread = self.unread[:count], self.unread[count:]
        return data


@contextmanager
def held_port(port: int = 0) -> Iterator[int]:
    """Yields a port at which nothing listens. Meanwhile only a caller that names the port can bind it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        yield held.getsockname()[1]


class Listener:
    """A server on a port of this machine."""

    port: int

    def connect(self) -> RawClient:
        return RawClient(self.port)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> RawReply:
        with self.connect() as client:
            client.request(method, path, body, headers)
            return client.read_reply()


@dataclass
class RunningGateway(Listener):
    """A gateway that serves, with the lines of its access log."""

    app: Gateway
    server: GatewayServer
    port: int
    loop: asyncio.AbstractEventLoop
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: Any, headers: Mapping[str, str] | None = None) -> RawReply:
        """Posts a chat completion. body: bytes as they are, or a value that is dumped as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", "/v1/chat/completions", data, headers)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the gateway's loop, for tests without a loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def last_line(self) -> dict[str, Any]:
        self.flush_log()
        return self.lines[-1]

    def flush_log(self) -> None:
        async def flush() -> None:
            await self.app.services.idle.wait()
            self.app.access.flush()

        self.call(flush())


OpenStore = Callable[[], Coroutine[Any, Any, Store]]


def find_schedules(background: BackgroundServices) -> list[Schedule]:
    services = (background.embedding, background.learning)
    schedules = [background.sleeptime, *(service and service.schedule for service in services)]
    return [schedule for schedule in schedules if schedule is not None]


def skip_recovery(background: BackgroundServices, jobs: Jobs) -> None:
    """Leaves out the search for work of earlier processes and for old records: it takes a fifth of a short test.

    Each of six workers searches for jobs as it starts. Here none does before a job is enqueued.
    """
    leases = jobs.leases
    find_due_in = leases.find_due_in

    async def find_none(kinds: Sequence[str]) -> None:
        return None

    def search_again() -> None:
        leases.find_due_in = find_due_in

    leases.find_due_in = find_none
    jobs.add_listener(search_again)
    for task in (background.retention, background.run_cleaning, background.recovery):
        task.run = asyncio.Event().wait
    for schedule in find_schedules(background):
        schedule._has_recovered = True


@contextmanager
def serve(
    settings: Settings,
    open_store: OpenStore | None = None,
    *,
    admin_token: str | None = None,
    clock: Callable[[], float] | None = None,
    limits: Limits = QUIET,
    performs_jobs: bool = True,
    has_agents: bool = HAS_AGENTS,
    otlp: OtlpSettings | None = None,
    is_new: bool = False,
) -> Iterator[RunningGateway]:
    """Serves a gateway in a thread. The other parameters are those of `Gateway`.

    open_store: opens the store in the gateway's loop; the gateway closes it. None: the gateway gets a new database.
    is_new: the database of `open_store` is empty.
    """
    settings = replace(settings, server=replace(settings.server, port=0))
    listener = bind(settings.server.host, 0)
    started, running, failures = threading.Event(), [], []

    async def open_new_store() -> Store:
        return await stored.open_store(f"{folder.name}/own.db")

    async def serve_gateway() -> None:
        lines: list[dict[str, Any]] = []

        def write(data: bytes) -> None:
            lines.extend(json.loads(line) for line in data.splitlines())

        store = await (open_store or open_new_store)()
        app = Gateway(
            settings,
            store,
            clock=clock,
            admin_token=admin_token,
            access=AccessLog(write),
            limits=limits,
            performs_jobs=performs_jobs,
            has_agents=has_agents,
            otlp=otlp,
        )
        if (is_new or open_store is None) and not store.database.is_shared:
            skip_recovery(app.services.background, store.jobs)
        server = make_server(app, settings.server, app.readiness, started.set, limits)
        port = listener.getsockname()[1]
        running.append(RunningGateway(app, server, port, asyncio.get_running_loop(), lines))
        await server.serve(sockets=[listener])
        if "_router" in vars(app):
            # The routes are two thirds of the objects that a gateway leaves to the garbage collector. Clearing them
            # here is faster.
            app._router.routes.clear()
            app._routes.clear()

    def run() -> None:
        try:
            event_loop.run(serve_gateway())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    folder = TemporaryDirectory()
    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        assert started.wait(PATIENCE_S), "the gateway did not start"
        if failures:
            raise failures[0]
        yield running[0]
    finally:
        if running and thread.is_alive():
            running[0].loop.call_soon_threadsafe(running[0].server.request_exit)
        thread.join(PATIENCE_S)
        folder.cleanup()
        listener.close()  # a server that has served has closed it already
        assert not thread.is_alive(), "the gateway did not stop"
    if failures:
        raise failures[0]
