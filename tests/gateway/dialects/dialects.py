"""The dialects in which a client can ask, each by one way, for cases that hold in all of them.

A talk is pairs of role and text. A dialect makes a request of it, reads a reply, and says what its upstream was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import orjson

from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.responses_rules import said
from tests.doubles.upstream import Call, Seen, StrictUpstream, call_tools, say
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply

Json = dict[str, Any]
Talk = Sequence[tuple[str, str]]
MODEL = "gpt-strict"


class Dialect:
    """Chat completions.

    path: of its requests. upstream_path: where they go. listed: the member with the messages there.
    has_nameless_memory:
        a reply without a user is stored as well, so that its id can be gone on from.
    """

    name: ClassVar[str] = "chat"
    path: ClassVar[str] = "/v1/chat/completions"
    upstream_path: ClassVar[str] = "/v1/chat/completions"
    listed: ClassVar[str] = "messages"
    model: ClassVar[str] = MODEL
    has_nameless_memory: ClassVar[bool] = False

    @contextmanager
    def upstream(self) -> Iterator[StrictUpstream]:
        with StrictUpstream() as running:
            yield running

    def settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, base_url=upstream.base_url, takes={"responses": False}, retries=0)

    def queue(self, upstream: StrictUpstream, text: str, call: Call | None = None, **options: Any) -> None:
        upstream.queue(say(text, **options) if call is None else call_tools(call, text=text, **options))

    def body(self, talk: Talk, **options: Any) -> Json:
        messages = [{"role": role, "content": text} for role, text in talk]
        return {"model": self.model, self.listed: messages, **options}

    def text(self, body: Json) -> str:
        return str(body["choices"][0]["message"]["content"])

    def delta(self, event: Json) -> str:
        choices = event.get("choices") or [{}]
        return choices[0].get("delta", {}).get("content") or ""

    def sent(self, seen: Seen) -> list[tuple[str, str]]:
        """Returns the texts that went upstream, without the system's."""
        return [
            (each["role"], text_in(each.get("content")))
            for each in seen.json[self.listed]
            if each["role"] != "system"
        ]

    def requests(self, upstream: StrictUpstream) -> list[Seen]:
        return [seen for seen in upstream.seen if seen.path == self.upstream_path]


class Responses(Dialect):
    """The Responses API by way of chat completions."""

    name = "responses"
    path = "/v1/responses"
    has_nameless_memory = True

    def body(self, talk: Talk, **options: Any) -> Json:
        items = [{"role": role, "content": text} for role, text in talk]
        return {"model": self.model, "input": items, **options}

    def text(self, body: Json) -> str:
        return "".join(text_in(item.get("content")) for item in body["output"] if item["type"] == "message")

    def delta(self, event: Json) -> str:
        return str(event["delta"]) if event.get("type") == "response.output_text.delta" else ""


class NativeResponses(Responses):
    """The Responses API at an upstream that stores responses."""

    name = "responses, native"
    has_nameless_memory = False
    upstream_path = "/v1/responses"
    listed = "input"

    def settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, base_url=upstream.base_url, takes={"responses": "stored"}, retries=0)

    def queue(self, upstream: StrictUpstream, text: str, call: Call | None = None, **options: Any) -> None:
        if (held := options.pop("hold_after", None)) is not None:
            upstream.endpoints.hold_events.update(held)
        assert call is None
        upstream.endpoints.responses.outputs.append([said(text)])

    def sent(self, seen: Seen) -> list[tuple[str, str]]:
        items = orjson.loads(seen.body)["input"]
        return [(each["role"], text_in(each.get("content"))) for each in items]


class Messages(Dialect):
    """Anthropic's dialect by way of chat completions."""

    name = "messages"
    path = "/v1/messages"

    def body(self, talk: Talk, **options: Any) -> Json:
        return super().body(talk, **{"max_tokens": 100, **options})

    def text(self, body: Json) -> str:
        return text_in(body["content"])

    def delta(self, event: Json) -> str:
        return event["delta"].get("text") or "" if event.get("type") == "content_block_delta" else ""


class NativeMessages(Messages):
    """Anthropic's dialect at an upstream that speaks it."""

    name = "messages, native"
    upstream_path = "/v1/messages"
    model = "claude-opus-4-6"

    @contextmanager
    def upstream(self) -> Iterator[StrictUpstream]:
        with StrictAnthropic() as running:
            yield running

    def settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, "anthropic", upstream.base_url, retries=0)


def text_in(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or ())


@dataclass
class Client:
    """A client of one dialect that keeps its talk. stream: it asks for streams."""

    dialect: Dialect
    world: World
    stream: bool
    headers: Mapping[str, str] = field(default_factory=lambda: {"x-mnemogate-user": "alice"})
    talk: list[tuple[str, str]] = field(default_factory=list)

    def again(self, **more: str) -> Client:
        """Returns another conversation of the same client. more: headers."""
        return Client(self.dialect, self.world, self.stream, {**self.headers, **more})

    def queue(self, text: str, call: Call | None = None, **options: Any) -> None:
        self.dialect.queue(self.world.upstream, text, call, **options)

    def say(self, text: str, **options: Any) -> str:
        self.talk.append(("user", text))
        return self.go_on(**options)

    def go_on(self, **options: Any) -> str:
        reply = self.ask(**options)
        assert reply.status == 200, reply.body
        text = self.read(reply)
        self.talk.append(("assistant", text))
        return text

    def ask(self, **options: Any) -> RawReply:
        return self.world.gateway.ask("POST", self.dialect.path, self.request(**options), self.headers)

    def request(self, **options: Any) -> bytes:
        return orjson.dumps(self.dialect.body(self.talk, **{"stream": self.stream, **options}))

    def read(self, reply: RawReply) -> str:
        if not self.stream:
            return self.dialect.text(reply.json)
        lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
        return "".join(self.dialect.delta(orjson.loads(line)) for line in lines)

    @property
    def seen(self) -> list[Seen]:
        return self.dialect.requests(self.world.upstream)

    def sent(self, index: int = -1) -> list[tuple[str, str]]:
        return self.dialect.sent(self.seen[index])


@contextmanager
def serve(dialect: Dialect, place: Path, stream: bool, *, has_fallback: bool = False) -> Iterator[Client]:
    """Serves a client. has_fallback: the model `smart` has another upstream behind the first."""
    with dialect.upstream() as upstream:
        names = ("up", "second") if has_fallback else ("up",)
        model = dialect.model
        parts: Json = {"upstreams": tuple(dialect.settings(name, upstream) for name in names)}
        if has_fallback:
            parts["models"] = (ModelSettings("smart", model, "up", fallbacks=(f"second/{model}",)),)
        else:
            parts["profiles"] = (agent(model=model),)
        profiles = parts.pop("profiles", ())
        with remember(upstream, place, *profiles, **parts) as world:
            yield Client(dialect, world, stream)
