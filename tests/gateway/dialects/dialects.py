"""The dialects in which a client can ask, each by one way, for cases that hold in all of them.

A talk is pairs of role and text. A dialect makes a request of it, reads a reply, and says what its upstream was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import orjson

from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.responses_rules import said
from tests.doubles.upstream import Call, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply

Json = dict[str, Any]
Talk = Sequence[tuple[str, str]]
MODEL = "gpt-strict"


class Dialect:
    """Chat completions.

    A new one begins as a subclass of this with a name and a path, and overrides what it has in another form.
    """

    name: ClassVar[str] = "chat"
    # Of its requests.
    path: ClassVar[str] = "/v1/chat/completions"
    # Where they go upstream.
    upstream_path: ClassVar[str] = "/v1/chat/completions"
    # The member with the messages there.
    listed: ClassVar[str] = "messages"
    # The member with the messages in its own requests.
    own_listed: ClassVar[str] = "messages"
    model: ClassVar[str] = MODEL
    # What the upstream can be made to report of a reply, and the tokens of the reply in it.
    reported: ClassVar[Json] = {"prompt_tokens": 70, "completion_tokens": 17, "total_tokens": 87}
    reported_tokens: ClassVar[int] = 17
    # The fields of a streamed request by which the client asks for usage.
    usage_options: ClassVar[Json] = {"stream_options": {"include_usage": True}}
    # A reply without a user is stored as well, so that its id can be gone on from.
    has_nameless_memory: ClassVar[bool] = False
    # Events of the upstream's stream up to the third word of a reply.
    third_word: ClassVar[int] = 4
    # The cases of `test_cases.py` that the dialect cannot have, with the reasons.
    lacks: ClassVar[Mapping[str, str]] = {}
    # The exchange of a reply that its client left counts as active, with what was heard of it.
    keeps_left_exchange: ClassVar[bool] = False

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

    def address(self, client: Client, model: str) -> str:
        """Returns the path of a client's requests. model: that they ask for."""
        return self.path

    def block(self, client: Client) -> str:
        """Returns what the memory block of the user holds."""
        return str(client.world.block("alice").value)

    def text(self, body: Json) -> str:
        return str(body["choices"][0]["message"]["content"])

    def error(self, body: Json) -> str | None:
        """Returns the message of the error that a body or an event is; None: it is none."""
        error = body.get("error")
        return str(error["message"]) if isinstance(error, dict) else None

    def tokens(self, body: Json) -> int | None:
        """Returns the tokens of the reply that a body or an event shows; None: it shows no usage."""
        usage = body.get("usage")
        return None if usage is None else int(usage["completion_tokens"])

    def delta(self, event: Json) -> str:
        choices = event.get("choices") or [{}]
        return choices[0].get("delta", {}).get("content") or ""

    def sent(self, request: UpstreamRequest) -> list[tuple[str, str]]:
        """Returns the texts that went upstream, without the system's."""
        return [
            (each["role"], text_in(each.get("content")))
            for each in request.json[self.listed]
            if each["role"] != "system"
        ]

    def requests(self, upstream: StrictUpstream) -> list[UpstreamRequest]:
        return [request for request in upstream.requests if request.path == self.upstream_path]


class Responses(Dialect):
    """The Responses API by way of chat completions."""

    name = "responses"
    path = "/v1/responses"
    own_listed = "input"
    usage_options: ClassVar[Json] = {}
    has_nameless_memory = True

    def body(self, talk: Talk, **options: Any) -> Json:
        items = [{"role": role, "content": text} for role, text in talk]
        return {"model": self.model, "input": items, **options}

    def text(self, body: Json) -> str:
        return "".join(text_in(item.get("content")) for item in body["output"] if item["type"] == "message")

    def tokens(self, body: Json) -> int | None:
        usage = body.get("response", body).get("usage")
        return None if usage is None else int(usage["output_tokens"])

    def delta(self, event: Json) -> str:
        return str(event["delta"]) if event.get("type") == "response.output_text.delta" else ""


class NativeResponses(Responses):
    """The Responses API at an upstream that stores responses."""

    name = "responses, native"
    has_nameless_memory = False
    upstream_path = "/v1/responses"
    listed = "input"
    reported_tokens = 2  # of each reply of the double
    third_word = 7
    lacks: ClassVar[Mapping[str, str]] = {
        "interception": "the upstream stores the reply: a hidden round would be a part of it",
        "append": "the upstream has the history, which the client names by an id",
        "broken": "the double cannot break it off; tests/core/turn/test_native_turn.py does",
        "failover": "what the upstream stores lies in one account",
        "long_list": "such a request passes as it is, without memory: the upstream has a limit of its own",
    }

    def settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, base_url=upstream.base_url, takes={"responses": "stored"}, retries=0)

    def queue(self, upstream: StrictUpstream, text: str, call: Call | None = None, **options: Any) -> None:
        if (held := options.pop("hold_after", None)) is not None:
            upstream.endpoints.hold_events.update(held)
        options.pop("usage", None)
        assert call is None
        upstream.endpoints.responses.outputs.append([said(text)])

    def sent(self, request: UpstreamRequest) -> list[tuple[str, str]]:
        items = orjson.loads(request.body)["input"]
        return [(each["role"], text_in(each.get("content"))) for each in items]


class Messages(Dialect):
    """Anthropic's dialect by way of chat completions."""

    name = "messages"
    path = "/v1/messages"
    usage_options: ClassVar[Json] = {}

    def body(self, talk: Talk, **options: Any) -> Json:
        return super().body(talk, **{"max_tokens": 100, **options})

    def text(self, body: Json) -> str:
        return text_in(body["content"])

    def tokens(self, body: Json) -> int | None:
        usage = body.get("usage")
        return None if usage is None else int(usage["output_tokens"])

    def delta(self, event: Json) -> str:
        return event["delta"].get("text") or "" if event.get("type") == "content_block_delta" else ""


class NativeMessages(Messages):
    """Anthropic's dialect at an upstream that speaks it."""

    name = "messages, native"
    upstream_path = "/v1/messages"
    model = "claude-opus-4-6"
    reported: ClassVar[Json] = {"input_tokens": 70, "output_tokens": 17}
    third_word = 6

    @contextmanager
    def upstream(self) -> Iterator[StrictUpstream]:
        with StrictAnthropic() as running:
            yield running

    def settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, "anthropic", upstream.base_url, retries=0)


class Agents(Dialect):
    """Sends to an agent that was made over REST; each user has one. Its other conversations are other talks."""

    name = "agents"
    path = "/v1/agents/"
    usage_options: ClassVar[Json] = {}
    keeps_left_exchange = True
    lacks: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("barge_in", "regenerate", "edit"),
            "its history is the gateway's: no list comes back, and what was sent stays",
        ),
        **dict.fromkeys(
            ("off", "read", "strict"),
            "its conversation is stored, or there is none: a send has no mode of memory",
        ),
        **dict.fromkeys(
            ("not_a_message", "long_list"),
            "a send has a form and a limit of its own, which the tests of agents have",
        ),
        "bound_key": "the agents of a project are its application's, which has a key without a user",
    }

    def settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        takes: Any = {"responses": False, "stream_usage": True}
        return UpstreamSettings(name, base_url=upstream.base_url, takes=takes, retries=0)

    def address(self, client: Client, model: str) -> str:
        if not client.place:
            user = client.headers["x-mnemogate-user"]
            agents = client.agents
            if user not in agents:
                block = {"label": "human", "value": "", "description": "The user."}
                made = {
                    "name": user,
                    "model": model,
                    "memory_blocks": [block],
                    "tools": ["memory_insert"],
                    "include_base_tools": False,
                }
                agents[user] = self._make(client, self.path, made)
                client.place = f"{self.path}{agents[user]}/messages"
            else:
                talk = self._make(client, f"/v1/conversations/?agent_id={agents[user]}", {})
                client.place = f"/v1/conversations/{talk}/messages"
        return client.place

    def _make(self, client: Client, path: str, body: Json) -> str:
        reply = client.world.gateway.ask("POST", path, orjson.dumps(body), {})
        assert reply.status in (200, 201), reply.body
        return str(reply.json["id"])

    def block(self, client: Client) -> str:
        agent = client.agents["alice"]
        found = client.world.gateway.ask("GET", f"{self.path}{agent}/core-memory/blocks/human", b"", {})
        return str(found.json["value"])

    def body(self, talk: Talk, **options: Any) -> Json:
        options.pop("model", None)  # the agent has one
        stream = options.pop("stream", False)
        return {"input": talk[-1][1], "streaming": stream, "stream_tokens": stream, **options}

    def text(self, body: Json) -> str:
        return "".join(map(self.delta, body["messages"]))

    def tokens(self, body: Json) -> int | None:
        usage = body if body.get("message_type") == "usage_statistics" else body.get("usage")
        return None if usage is None else int(usage["completion_tokens"])

    def error(self, body: Json) -> str | None:
        found = body.get("message") if body.get("message_type") == "error_message" else body.get("detail")
        return found if isinstance(found, str) else None

    def delta(self, event: Json) -> str:
        return text_in(event["content"]) if event.get("message_type") == "assistant_message" else ""


DIALECTS: Final[tuple[Dialect, ...]] = (
    Dialect(),
    Responses(),
    NativeResponses(),
    Messages(),
    NativeMessages(),
    Agents(),
)


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
    # The agents that were made, by their users, and where its own talk is held.
    agents: dict[str, str] = field(default_factory=dict)
    place: str = ""

    def again(self, **more: str) -> Client:
        """Returns another conversation of the same client. more: headers."""
        headers = {**self.headers, **more}
        return Client(self.dialect, self.world, self.stream, headers, agents=self.agents)

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
        model = str(options.get("model", self.dialect.model)).replace("agent/helper", self.dialect.model)
        path = self.dialect.address(self, model)
        return self.world.gateway.ask("POST", path, self.request(**options), self.headers)

    def request(self, **options: Any) -> bytes:
        return orjson.dumps(self.dialect.body(self.talk, **{"stream": self.stream, **options}))

    def read(self, reply: RawReply) -> str:
        if not self.stream:
            return self.dialect.text(reply.json)
        return "".join(map(self.dialect.delta, self.events(reply)))

    def events(self, reply: RawReply) -> list[Json]:
        """Returns the events of a stream that are objects."""
        lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
        return [orjson.loads(line) for line in lines]

    @property
    def requests(self) -> list[UpstreamRequest]:
        return self.dialect.requests(self.world.upstream)

    def sent(self, index: int = -1) -> list[tuple[str, str]]:
        return self.dialect.sent(self.requests[index])


@contextmanager
def serve(dialect: Dialect, place: Path, stream: bool, *, has_fallback: bool = False) -> Iterator[Client]:
    """Serves a client. has_fallback: the model `smart` has another upstream after the first."""
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
