"""An application on Anthropic's own SDK, through the real gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anthropic

from tests.gateway.sdk import World
from tests.patience import PATIENCE_S

Json = dict[str, Any]
CLIENTS: list[anthropic.Anthropic] = []  # that are open
# An upstream of Claude's, and a profile with memory tools.
HELPER_SETTINGS = """
[[upstreams]]
name = "up"
kind = "anthropic"
base_url = "{base_url}"
[[profiles]]
name = "helper"
model = "claude-opus-5-5"
system = "You help."
memory_tools = true
[[profiles.blocks]]
label = "human"
"""
WEATHER: Any = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object"}}


def client(world: World, key: str = "sk-ant-app", **options: Any) -> anthropic.Anthropic:
    made = anthropic.Anthropic(
        base_url=world.gateway.url, api_key=key, max_retries=0, timeout=PATIENCE_S, **options
    )
    CLIENTS.append(made)
    return made


@dataclass
class Talk:
    """A client that keeps its list and sends it again. stream: each of its requests asks for a stream."""

    world: World
    user: str | None = "alice"
    model: str = "m"
    stream: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    messages: list[Json] = field(default_factory=list)
    sdk: anthropic.Anthropic = field(init=False)

    def __post_init__(self) -> None:
        self.sdk = client(self.world)

    def say(self, words: Any, **options: Any) -> str:
        """Returns the text of the reply, which the list has from then on, as all its blocks."""
        self.messages.append({"role": "user", "content": words})
        return self.go_on(**options)

    def go_on(self, **options: Any) -> str:
        reply = self.complete(**options)
        self.messages.append({"role": "assistant", "content": sent_again(reply)})
        return text_of(reply)

    def complete(self, **options: Any) -> Any:
        asked: Json = {"model": self.model, "max_tokens": 1000, "messages": self.messages, **self.options}
        if self.user is not None:
            asked["metadata"] = {"user_id": self.user}
        asked |= options
        if not asked.pop("stream", self.stream):
            return self.sdk.messages.create(extra_headers=self.headers, **asked)
        with self.sdk.messages.stream(extra_headers=self.headers, **asked) as stream:
            return stream.get_final_message()

    def answer(self, call: Any, output: Any) -> None:
        self.messages.append(
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": output}]}
        )


def sent_again(message: Any) -> list[Json]:
    return [block.model_dump(exclude_none=True) for block in message.content]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def calls_of(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]
