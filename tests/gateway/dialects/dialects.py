"""The dialects of the gateway, each with one kind of upstream, for the cases that hold in all of them (`test_cases`).

A transcript is the messages of a conversation, as pairs of role and text. A dialect makes a request of a transcript,
and reads replies and the requests that went upstream.
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
from tests.doubles.responses_rules import message_item
from tests.doubles.upstream import Call, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply

Json = dict[str, Any]
Transcript = Sequence[tuple[str, str]]
MODEL = "gpt-strict"


class Dialect:
    """Chat completions. Each other dialect is a subclass, which overrides what has another form there."""

    # The name of the dialect in the ids of the tests.
    name: ClassVar[str] = "chat"
    # The path of a client's requests.
    path: ClassVar[str] = "/v1/chat/completions"
    # The path of the requests that go upstream.
    upstream_path: ClassVar[str] = "/v1/chat/completions"
    # The field with the messages in a request that goes upstream.
    upstream_messages_key: ClassVar[str] = "messages"
    # The field with the messages in a request of a client.
    messages_key: ClassVar[str] = "messages"
    model: ClassVar[str] = MODEL
    # The usage that the upstream reports if a test asks for it.
    upstream_usage: ClassVar[Json] = {"prompt_tokens": 70, "completion_tokens": 17, "total_tokens": 87}
    # The tokens of the reply in this usage.
    reply_tokens: ClassVar[int] = 17
    # The fields of a streamed request by which the client asks for usage.
    usage_options: ClassVar[Json] = {"stream_options": {"include_usage": True}}
    # True: the turn of a request without a user is stored too, so that a later request can continue it by its id.
    remembers_without_user: ClassVar[bool] = False
    # The number of events in the upstream's stream up to the third word of a reply.
    events_to_third_word: ClassVar[int] = 4
    # A case of `test_cases.py` that the dialect cannot have -> the reason.
    unsupported_cases: ClassVar[Mapping[str, str]] = {}
    # True: if a client leaves during a reply, the exchange is active, with the text that the client received.
    left_exchange_is_active: ClassVar[bool] = False

    @contextmanager
    def upstream(self) -> Iterator[StrictUpstream]:
        with StrictUpstream() as running:
            yield running

    def make_settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, base_url=upstream.base_url, takes={"responses": False}, retries=0)

    def queue_reply(
        self, upstream: StrictUpstream, text: str, call: Call | None = None, **options: Any
    ) -> None:
        upstream.queue(say(text, **options) if call is None else call_tools(call, text=text, **options))

    def make_body(self, transcript: Transcript, **options: Any) -> Json:
        messages = [{"role": role, "content": text} for role, text in transcript]
        return {"model": self.model, self.messages_key: messages, **options}

    def request_path(self, client: Client, model: str) -> str:
        """Returns the path of a client's next request. model: the model that the request asks for."""
        return self.path

    def read_block(self, client: Client) -> str:
        """Returns the value of alice's memory block."""
        return str(client.world.block("alice").value)

    def read_text(self, body: Json) -> str:
        return str(body["choices"][0]["message"]["content"])

    def find_error(self, body: Json) -> str | None:
        """Returns the message of the error in a body or an event; None: it has no error."""
        error = body.get("error")
        return str(error["message"]) if isinstance(error, dict) else None

    def find_tokens(self, body: Json) -> int | None:
        """Returns the tokens of the reply in the usage of a body or an event; None: it has no usage."""
        usage = body.get("usage")
        return None if usage is None else int(usage["completion_tokens"])

    def read_delta(self, event: Json) -> str:
        choices = event.get("choices") or [{}]
        return choices[0].get("delta", {}).get("content") or ""

    def read_upstream_messages(self, request: UpstreamRequest) -> list[tuple[str, str]]:
        """Returns the messages of a request that went upstream, without system messages."""
        return [
            (each["role"], join_text(each.get("content")))
            for each in request.json[self.upstream_messages_key]
            if each["role"] != "system"
        ]

    def list_requests(self, upstream: StrictUpstream) -> list[UpstreamRequest]:
        return [request for request in upstream.requests if request.path == self.upstream_path]


class Responses(Dialect):
    """The Responses API by way of chat completions."""

    name = "responses"
    path = "/v1/responses"
    messages_key = "input"
    usage_options: ClassVar[Json] = {}
    remembers_without_user = True

    def make_body(self, transcript: Transcript, **options: Any) -> Json:
        items = [{"role": role, "content": text} for role, text in transcript]
        return {"model": self.model, "input": items, **options}

    def read_text(self, body: Json) -> str:
        return "".join(join_text(item.get("content")) for item in body["output"] if item["type"] == "message")

    def find_tokens(self, body: Json) -> int | None:
        usage = body.get("response", body).get("usage")
        return None if usage is None else int(usage["output_tokens"])

    def read_delta(self, event: Json) -> str:
        return str(event["delta"]) if event.get("type") == "response.output_text.delta" else ""


class NativeResponses(Responses):
    """The Responses API at an upstream that stores responses."""

    name = "responses, native"
    remembers_without_user = False
    upstream_path = "/v1/responses"
    upstream_messages_key = "input"
    reply_tokens = 2  # of each reply of the double
    events_to_third_word = 7
    unsupported_cases: ClassVar[Mapping[str, str]] = {
        "interception": "the upstream stores the reply: a hidden round would be a part of it",
        "append": "the upstream has the history, which the client names by an id",
        "broken": "the double cannot break it off; tests/core/turn/test_native_turn.py does",
        "failover": "another upstream does not have the stored responses",
        "long_list": "such a request passes as it is, without memory: the upstream has a limit of its own",
    }

    def make_settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, base_url=upstream.base_url, takes={"responses": "stored"}, retries=0)

    def queue_reply(
        self, upstream: StrictUpstream, text: str, call: Call | None = None, **options: Any
    ) -> None:
        if (held := options.pop("hold_after", None)) is not None:
            upstream.endpoints.hold_events.update(held)
        options.pop("usage", None)
        assert call is None
        upstream.endpoints.responses.outputs.append([message_item(text)])

    def read_upstream_messages(self, request: UpstreamRequest) -> list[tuple[str, str]]:
        items = orjson.loads(request.body)["input"]
        return [(each["role"], join_text(each.get("content"))) for each in items]


class Messages(Dialect):
    """Anthropic's dialect by way of chat completions."""

    name = "messages"
    path = "/v1/messages"
    usage_options: ClassVar[Json] = {}

    def make_body(self, transcript: Transcript, **options: Any) -> Json:
        return super().make_body(transcript, **{"max_tokens": 100, **options})

    def read_text(self, body: Json) -> str:
        return join_text(body["content"])

    def find_tokens(self, body: Json) -> int | None:
        usage = body.get("usage")
        return None if usage is None else int(usage["output_tokens"])

    def read_delta(self, event: Json) -> str:
        return event["delta"].get("text") or "" if event.get("type") == "content_block_delta" else ""


class NativeMessages(Messages):
    """Anthropic's dialect at an upstream that speaks it."""

    name = "messages, native"
    upstream_path = "/v1/messages"
    model = "claude-opus-4-6"
    upstream_usage: ClassVar[Json] = {"input_tokens": 70, "output_tokens": 17}
    events_to_third_word = 6

    @contextmanager
    def upstream(self) -> Iterator[StrictUpstream]:
        with StrictAnthropic() as running:
            yield running

    def make_settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        return UpstreamSettings(name, "anthropic", upstream.base_url, retries=0)


class Agents(Dialect):
    """Sends to agents of the agents API, one agent for each user. A new conversation is a conversation of the agent."""

    name = "agents"
    path = "/v1/agents/"
    usage_options: ClassVar[Json] = {}
    left_exchange_is_active = True
    unsupported_cases: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("barge_in", "regenerate", "edit"),
            "the gateway has the history: clients send no list, and cannot change what was sent",
        ),
        **dict.fromkeys(
            ("off", "read", "strict"),
            "its conversations are always stored: a send has no mode of memory",
        ),
        **dict.fromkeys(
            ("not_a_message", "long_list"),
            "a send has a form and a limit of its own (tests/agents)",
        ),
        "bound_key": "the agents API needs a key that is bound to no user",
    }

    def make_settings(self, name: str, upstream: StrictUpstream) -> UpstreamSettings:
        takes: Any = {"responses": False, "stream_usage": True}
        return UpstreamSettings(name, base_url=upstream.base_url, takes=takes, retries=0)

    def request_path(self, client: Client, model: str) -> str:
        if not client.send_path:
            user = client.headers["x-mnemogate-user"]
            agents = client.agents
            if user not in agents:
                block = {"label": "human", "value": "", "description": "The user."}
                body = {
                    "name": user,
                    "model": model,
                    "memory_blocks": [block],
                    "tools": ["memory_insert"],
                    "include_base_tools": False,
                }
                agents[user] = self._create(client, self.path, body)
                client.send_path = f"{self.path}{agents[user]}/messages"
            else:
                conversation_id = self._create(client, f"/v1/conversations/?agent_id={agents[user]}", {})
                client.send_path = f"/v1/conversations/{conversation_id}/messages"
        return client.send_path

    def _create(self, client: Client, path: str, body: Json) -> str:
        """Creates an agent or a conversation, and returns its id."""
        reply = client.world.gateway.ask("POST", path, orjson.dumps(body), {})
        assert reply.status in (200, 201), reply.body
        return str(reply.json["id"])

    def read_block(self, client: Client) -> str:
        path = f"{self.path}{client.agents['alice']}/core-memory/blocks/human"
        return str(client.world.gateway.ask("GET", path, b"", {}).json["value"])

    def make_body(self, transcript: Transcript, **options: Any) -> Json:
        options.pop("model", None)  # the agent has its own
        stream = options.pop("stream", False)
        return {"input": transcript[-1][1], "streaming": stream, "stream_tokens": stream, **options}

    def read_text(self, body: Json) -> str:
        return "".join(map(self.read_delta, body["messages"]))

    def find_tokens(self, body: Json) -> int | None:
        usage = body if body.get("message_type") == "usage_statistics" else body.get("usage")
        return None if usage is None else int(usage["completion_tokens"])

    def find_error(self, body: Json) -> str | None:
        found = body.get("message") if body.get("message_type") == "error_message" else body.get("detail")
        return found if isinstance(found, str) else None

    def read_delta(self, event: Json) -> str:
        return join_text(event["content"]) if event.get("message_type") == "assistant_message" else ""


DIALECTS: Final[tuple[Dialect, ...]] = (
    Dialect(),
    Responses(),
    NativeResponses(),
    Messages(),
    NativeMessages(),
    Agents(),
)


def join_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or ())


@dataclass
class Client:
    """A client with one conversation."""

    dialect: Dialect
    world: World
    # Whether the client asks for streams.
    stream: bool
    # The headers of its requests.
    headers: Mapping[str, str] = field(default_factory=lambda: {"x-mnemogate-user": "alice"})
    transcript: list[tuple[str, str]] = field(default_factory=list)
    # user -> the id of the user's agent (`Agents` alone)
    agents: dict[str, str] = field(default_factory=dict)
    # The path of its sends (`Agents` alone); "": none was sent yet.
    send_path: str = ""

    def new_conversation(self, **headers: str) -> Client:
        """Returns the client with a new conversation. headers: headers besides its own."""
        return Client(self.dialect, self.world, self.stream, {**self.headers, **headers}, agents=self.agents)

    def queue(self, text: str, call: Call | None = None, **options: Any) -> None:
        self.dialect.queue_reply(self.world.upstream, text, call, **options)

    def say(self, text: str, **options: Any) -> str:
        """Sends a new message, and returns the text of its reply."""
        self.transcript.append(("user", text))
        return self.go_on(**options)

    def go_on(self, **options: Any) -> str:
        """Sends the transcript, appends the reply, and returns its text."""
        reply = self.ask(**options)
        assert reply.status == 200, reply.body
        text = self.read(reply)
        self.transcript.append(("assistant", text))
        return text

    def ask(self, **options: Any) -> RawReply:
        model = str(options.get("model", self.dialect.model)).replace("agent/helper", self.dialect.model)
        path = self.dialect.request_path(self, model)
        return self.world.gateway.ask("POST", path, self.make_request(**options), self.headers)

    def make_request(self, **options: Any) -> bytes:
        return orjson.dumps(self.dialect.make_body(self.transcript, **{"stream": self.stream, **options}))

    def read(self, reply: RawReply) -> str:
        if not self.stream:
            return self.dialect.read_text(reply.json)
        return "".join(map(self.dialect.read_delta, self.events(reply)))

    def events(self, reply: RawReply) -> list[Json]:
        """Returns the events of a stream that have a JSON object as their data."""
        lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
        return [orjson.loads(line) for line in lines]

    @property
    def requests(self) -> list[UpstreamRequest]:
        return self.dialect.list_requests(self.world.upstream)

    def upstream_messages(self, index: int = -1) -> list[tuple[str, str]]:
        return self.dialect.read_upstream_messages(self.requests[index])


@contextmanager
def serve(dialect: Dialect, place: Path, stream: bool, *, has_fallback: bool = False) -> Iterator[Client]:
    """Yields a client of a gateway. has_fallback: whether the model `smart` has a second upstream."""
    with dialect.upstream() as upstream:
        names = ("up", "second") if has_fallback else ("up",)
        model = dialect.model
        parts: Json = {"upstreams": tuple(dialect.make_settings(name, upstream) for name in names)}
        if has_fallback:
            parts["models"] = (ModelSettings("smart", model, "up", fallbacks=(f"second/{model}",)),)
        else:
            parts["profiles"] = (agent(model=model),)
        profiles = parts.pop("profiles", ())
        with remember(upstream, place, *profiles, **parts) as world:
            yield Client(dialect, world, stream)
