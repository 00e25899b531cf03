"""What Letta's server 0.16.8 returns of four agents, served again as it does: page after page, with a password.

`letta_server.json` was recorded of that server (Apache-2.0) with agents that were made for it; its long texts are cut.
Two agents share a block and an archive, one has a conversation besides `default` and a sleeptime agent, and one speaks
by a tool. The window of the first was compacted.
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
    """An answer that is sent as it is, whether it is JSON or not."""


@dataclass
class LettaServer:
    """tells: what each path answers; a test may change it. broken: paths that are answered with a 500.

    refusal: what is answered to a wrong password.
    """

    url: str
    password: str
    tells: dict[str, Any] = field(default_factory=lambda: json.loads(_RECORDED.read_text("utf-8")))
    broken: set[str] = field(default_factory=set)
    page: int = 3
    refusal: Any = field(default_factory=lambda: {"detail": "Unauthorized"})

    def answer(self, target: str, authorization: str | None) -> tuple[int, Any]:
        if authorization != f"Bearer {self.password}":
            return 401, self.refusal
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path in self.broken:
            return 500, {"detail": "An internal server error occurred"}
        path = f"{parts.path}?agent_id={query['agent_id']}" if "agent_id" in query else parts.path
        found = self.tells.get(path)
        if not isinstance(found, list):
            return (200, found) if found is not None else (404, {"detail": "Not found"})
        assert query.get("order", "asc") == "asc"
        if query.get("show_hidden_agents") != "true":
            found = [each for each in found if not each.get("hidden")]
        # The server's pages count messages as they are stored, of which several may be listed under one id.
        ids = list(dict.fromkeys(str(each.get("id")) for each in found))
        first = ids.index(query["after"]) + 1 if "after" in query else 0
        shown = ids[first : first + min(self.page, int(query["limit"]))]
        return 200, [each for each in found if str(each.get("id")) in shown]


@contextmanager
def letta_server(password: str = "old-password") -> Iterator[LettaServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said = server.answer(self.path, self.headers["authorization"])
            data = said if isinstance(said, RawAnswer) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

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
