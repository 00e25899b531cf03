"""A webhook for the tool `ring`, which records each call."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from tests.patience import PATIENCE_S

# The JSON schema of the tool whose calls the webhook takes.
RING_SCHEMA = {
    "name": "ring",
    "parameters": {"type": "object", "properties": {"bell": {"type": "string"}}, "required": ["bell"]},
}


class BellWebhook:
    """A server on a free port, which listens as soon as it is made."""

    def __init__(self) -> None:
        # idempotency key -> the number of calls with it
        self.calls: Counter[str] = Counter()
        # The bell of each call, in the order in which they came.
        self.bells: list[str] = []
        # Bells whose calls are recorded, but not answered.
        self.held_bells: set[str] = set()
        # Set when the first call has come.
        self.called = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
                bell = body["arguments"]["bell"]
                webhook.calls[self.headers["idempotency-key"]] += 1
                webhook.bells.append(bell)
                webhook.called.set()
                if bell in webhook.held_bells:
                    threading.Event().wait(PATIENCE_S)
                    return
                result = f"{bell} rang".encode()
                self.send_response(200)
                self.send_header("content-length", str(len(result)))
                self.end_headers()
                with suppress(OSError):  # the test may have killed the gateway
                    self.wfile.write(result)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
