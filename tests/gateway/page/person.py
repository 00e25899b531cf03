"""A person with a link to what is remembered of them, who asks as a browser and as a program would.

person = person_of(operator.world, "alice", rights=["see", "pause"])
assert "What is remembered about you" in person.page()
person.send("pause", paused="true")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.gateway.page.operator import FORM
from tests.gateway.sdk import World
from tests.server import RawReply


@dataclass
class Person:
    """A link: its path below /ui/."""

    world: World
    path: str

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.world.gateway.port}"

    def ask(self, method: str, below: str = "", body: bytes | None = None, **headers: str) -> RawReply:
        """Asks with these headers alone. below: the link's path, from the character after it on."""
        return self.world.gateway.ask(method, f"/ui/{self.path}{below}", body, {"host": self.host, **headers})

    def page(self, below: str = "", status: int = 200) -> str:
        reply = self.ask("GET", below)
        assert reply.status == status, (reply.status, reply.body)
        return reply.body.decode()

    def send(self, below: str, **fields: Any) -> RawReply:
        """Sends a form of the page. below: without its slash."""
        headers = {"content-type": FORM, "origin": f"http://{self.host}"}
        return self.ask("POST", f"/{below}", urlencode(fields).encode(), **headers)

    def twin(self, below: str = "", value: Any = None, status: int = 200) -> Any:
        """Returns the JSON at the twin of a path; with a value, of a change. below: without `.json`."""
        path, mark, query = below.partition("?")
        if value is None:
            reply = self.ask("GET", f"{path}.json{mark}{query}")
        else:
            headers = {"content-type": "application/json", "sec-fetch-site": "same-origin"}
            reply = self.ask("POST", f"{path}.json{mark}{query}", json.dumps(value).encode(), **headers)
        assert reply.status == status, (reply.status, reply.body)
        return reply.json


def person_of(
    world: World,
    user: str = "alice",
    *,
    rights: Sequence[str] | None = None,
    ttl_s: int = 3_600,
    key: str = "",
) -> Person:
    """Returns a person with a link that an application has made."""
    body: dict[str, Any] = {"user": user, "ttl_s": ttl_s}
    if rights is not None:
        body["rights"] = rights
    headers = {"authorization": f"Bearer {key}"} if key else {}
    reply = world.gateway.ask("POST", "/v1/memory/links", json.dumps(body).encode(), headers)
    assert reply.status == 200, reply.body
    return Person(world, reply.json["url"].partition("/ui/")[2])
