"""An operator of a gateway with memory, who requests the screens as a browser does and their JSON as a program does.

with operate(upstream, tmp_path) as operator:
    operator.world.chat(user="alice").say("My cat is called Miso.")
    assert operator.get("people").status == 200
    assert operator.twin("people")["items"][0]["name"] == "alice"
    assert operator.post("m/UID/f/1/mute", muted="true").headers["location"] == "../../../../m/UID/f/1#mute-saved"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, remember
from tests.server import RawReply

FORM = "application/x-www-form-urlencoded"


@dataclass
class Operator:
    """An operator with a key and, once signed in, a session's cookie."""

    world: World
    key: str
    cookie: str = field(default="")

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.world.gateway.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> RawReply:
        """Sends a request without a key or a cookie. path: the path below /ui/."""
        return self.world.gateway.ask(method, f"/ui/{path}", body, {"host": self.host, **(headers or {})})

    def sign_in(self, key: str | None = None, to: str = "") -> RawReply:
        """Signs in, and stores the session's cookie if the gateway accepts the key.

        key: a key or a code. None: this operator's key.
        to: the path below /ui/ to which the gateway redirects.
        """
        reply = self.send_form("login", {"key": key or self.key, "next": to})
        if reply.status == 303:
            self.cookie = reply.headers["set-cookie"].partition(";")[0]
        return reply

    def get(self, path: str) -> RawReply:
        """Requests a page with the session's cookie."""
        return self.ask("GET", path, None, {"cookie": self.cookie})

    def post(self, path: str, **fields: Any) -> RawReply:
        """Sends a form of a page with the session's cookie."""
        return self.send_form(path, fields, cookie=self.cookie)

    def send_form(self, path: str, fields: Mapping[str, Any], **headers: str) -> RawReply:
        form_headers = {"content-type": FORM, "origin": f"http://{self.host}", **headers}
        return self.ask("POST", path, urlencode(fields, doseq=True).encode(), form_headers)

    def program(self, method: str, path: str, value: Any = None) -> RawReply:
        """Sends a request with the key, for JSON. path: the path below /ui/, with `.json`."""
        headers = {"authorization": f"Bearer {self.key}"}
        if method == "GET":
            return self.ask("GET", path, None, headers)
        return self.ask(
            method, path, json.dumps(value).encode(), {**headers, "content-type": "application/json"}
        )

    def twin(self, path: str, value: Any = None) -> Any:
        """Returns the JSON of a screen, or of the reply to a change.

        path: the screen's path below /ui/, without `.json`.
        value: the JSON of a change, which is sent to the path. None: the screen is only read.
        """
        path, mark, query = path.partition("?")
        reply = self.program(
            "GET" if value is None else "POST", f"{path or 'overview'}.json{mark}{query}", value
        )
        assert reply.status == 200, reply.body
        return reply.json


def remove_marks(text: str) -> str:
    """Returns a screen's HTML without the marks of memory in a reply."""
    return re.sub(r"<mark><span[^>]*>\[as in .*?: </span>|<span[^>]*>\]</span></mark>", "", text)


def plain(text: str) -> str:
    """Returns the words of a screen without its tags."""
    return " ".join(unescape(re.sub("<[^>]+>", "", text)).split())


def make_key(world: World, project: str = "", *, is_read: bool = False) -> str:
    """Makes a key of an operator. project: the project that the key opens; empty: all projects."""
    opens = "operator-read" if is_read else "operator"
    return world.gateway.call(world.store.keys.create(project, opens, None, opens))[1]


def operator_of(world: World, project: str = "", *, is_read: bool = False) -> Operator:
    """Returns an operator who has signed in. project: the project that the key opens; empty: all projects."""
    operator = Operator(world, make_key(world, project, is_read=is_read))
    assert operator.sign_in().status == 303
    return operator


@contextmanager
def operate(upstream: StrictUpstream, tmp_path: Path, **options: Any) -> Iterator[Operator]:
    """Runs a gateway with memory, and yields an operator who has signed in. options: parameters of `remember`."""
    with remember(upstream, tmp_path, **options) as world:
        yield operator_of(world)
