"""Letta's server 0.16.8 with four agents: it serves recorded answers, in pages, to clients with the password.

`letta_server.json` has the answers (Apache-2.0), of agents that were made for the recording; long texts are cut. Two
agents share a block and an archive, one has a second conversation and a sleeptime agent, and one replies by a tool. The
context window of the first was compacted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

GARDENER = "agent-bdc0ab0f-2e0d-47a2-b924-598ddc52f971"
COOK = "agent-eeabe86b-0535-4a5a-a972-0d208a29779a"
POSTMAN = "agent-9c5fc796-1af5-423d-a630-201e6a9fb631"
_RECORDED = Path(__file__).with_suffix(".json")


class RawAnswer(bytes):
    """The body of an answer, which need not be JSON."""


@dataclass
class LettaServer:
    """The server's state, which a test may change."""

    url: str
    password: str
    # Paths -> the answer, a list for one that is served in pages.
    tells: dict[str, Any] = field(default_factory=lambda: json.loads(_RECORDED.read_text("utf-8")))
    # The paths that answer with a 500; of a list by agent, with `?agent_id=`.
    broken: set[str] = field(default_factory=set)
    # The most items of a page.
    page: int = 3
    # The answer to a wrong password.
    refusal: Any = field(default_factory=lambda: {"detail": "Unauthorized"})

    def answer(self, target: str, authorization: str | None) -> tuple[int, Any]:
        if authorization != f"Bearer {self.password}":
            return 401, self.refusal
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = f"{parts.path}?agent_id={query['agent_id']}" if "agent_id" in query else parts.path
        if path in self.broken:
            return 500, {"detail": "An internal server error occurred"}
        value = self.tells.get(path)
        if not isinstance(value, list):
            return (200, value) if value is not None else (404, {"detail": "Not found"})
        assert query.get("order", "asc") == "asc"
        if query.get("show_hidden_agents") != "true":
            value = [item for item in value if not item.get("hidden")]
        # A stored message may be listed as several items with the same id. Letta counts stored messages.
        ids = list(dict.fromkeys(str(item.get("id")) for item in value))
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        page_ids = ids[start : start + min(self.page, int(query["limit"]))]
        return 200, [item for item in value if str(item.get("id")) in page_ids]


@contextmanager
def letta_server(password: str = "old-password") -> Iterator[LettaServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = server.answer(self.path, self.headers["authorization"])
            data = answer if isinstance(answer, RawAnswer) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = LettaServer(f"http://127.0.0.1:{http.server_port}", password)
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
