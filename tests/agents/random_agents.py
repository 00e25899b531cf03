"""Agents that are used at random by the agents API.

A seed decides all requests, however many gateways there are and whatever they have cached. So tests compare the replies
and the requests that the upstream gets. In both an id is replaced by the number of its first appearance, and times,
durations and numbers of tokens are left out.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from tests.doubles.upstream import Call, call_tools, say
from tests.gateway.memory.random_users import NOUNS, Gateways
from tests.gateway.sdk import World, replace_marks

TOOLS = ("archival_memory_insert", "archival_memory_search", "conversation_search")
REQUESTS = 90
_ID = re.compile(r"(?:[a-z_]+-)?[0-9a-f]{32}|(?:chatcmpl|call)[-_][0-9A-Za-z]+")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+]00:00)?")
_MEASURED = re.compile(r'("(?:\w*_ns|\w*_ms|duration\w*|created|number|\w*_tokens)": ?)[\d.]+')


class RandomAgents:
    """Agents with blocks of their own and shared ones."""

    def __init__(self, worlds: Sequence[World], seed: int) -> None:
        """worlds: the gateways."""
        self.gateways = Gateways(worlds, seed)
        self.upstream = worlds[0].upstream
        self.dice = random.Random(seed)
        # Each request with its reply.
        self.replies: list[str] = []
        # The number of the act.
        self.count = 0
        # Ids: of agents, of shared blocks, and by agent of conversations, passages and messages.
        self.agents: list[str] = []
        self.blocks: list[str] = []
        self.conversations: defaultdict[str, list[str]] = defaultdict(list)
        self.passages: defaultdict[str, list[str]] = defaultdict(list)
        self.messages: defaultdict[str, list[str]] = defaultdict(list)
        # id -> its replacement
        self._id_names: dict[str, str] = {}
        # act -> its weight
        self._acts: dict[Callable[[str], None], int] = {
            self.send: 45,
            self.begin_conversation: 5,
            self.end_conversation: 2,
            self.update_own_block: 4,
            self.create_block: 4,
            self.update_block: 6,
            self.attach_or_detach_block: 4,
            self.delete_block: 1,
            self.create_passage: 4,
            self.delete_passage: 2,
            self.list_messages: 6,
            self.update_or_delete_message: 4,
            self.read_memory: 6,
            self.update_or_reset_agent: 2,
            self.delete_agent: 1,
            self.wait: 2,
        }

    def run(self) -> tuple[list[str], list[str]]:
        """Performs all acts. Returns each request with its reply, and the bodies that the upstream got."""
        earlier = len(self.upstream.requests)
        for self.count in range(REQUESTS):
            # A send that was refused has not taken its reply.
            self.upstream.forget_replies()
            if len(self.agents) < 2:
                self.create_agent()
            else:
                act = self.dice.choices([*self._acts], [*self._acts.values()])[0]
                act(self.dice.choice(self.agents))
        return self.replies, [
            self._normalize(request.body.decode()) for request in self.upstream.requests[earlier:]
        ]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request to the next gateway. Returns the parsed reply, or None for an error."""
        data = None if body is None else json.dumps(body).encode()
        reply = self.gateways.next().gateway.ask(method, path, data, {"content-type": "application/json"})
        assert reply.status < 500, (method, path, body, reply.body)
        text = reply.body.decode()
        self.replies.append(self._normalize(f"{method} {path} {json.dumps(body)}: {reply.status} {text}"))
        return json.loads(text) if reply.status == 200 and text[:1] in "[{" else None

    def _normalize(self, text: str) -> str:
        """Returns a text without ids and measured values."""
        text = replace_marks(_MEASURED.sub(r"\1_", _DATE.sub("_", text)).encode()).decode()
        return _ID.sub(lambda found: self._id_names.setdefault(found[0], f"id-{len(self._id_names)}"), text)

    # -- the acts

    def create_agent(self) -> None:
        blocks = [{"label": "human", "value": f"Name {self.count}"}]
        body = {"name": f"agent {self.count}", "model": "up/m", "tools": TOOLS}
        body |= {"memory_blocks": blocks, "block_ids": self.blocks[-1:]}
        self.agents.append(self.ask("POST", "/v1/agents/", body)["id"])

    def send(self, agent: str) -> None:
        dice, noun, n = self.dice, self.dice.choice(NOUNS), self.count
        calls = (
            Call("memory_insert", {"label": "human", "new_string": f"Likes {noun} {n}."}),
            Call("memory_replace", {"label": "human", "old_string": "Name", "new_string": "First name"}),
            Call("core_memory_append", {"label": "shared", "content": f"Line {n}"}),
            Call("archival_memory_insert", {"content": f"The {noun} number {n} is old."}),
            Call("archival_memory_search", {"query": noun}),
            Call("conversation_search", {"query": noun}),
        )
        if dice.random() < 0.6:
            self.upstream.queue(call_tools(dice.choice(calls), text=dice.choice((None, "Let me see. "))))
        self.upstream.queue(say(f"Reply {n} on the {noun}."))
        messages = [{"role": "user", "content": f"My {dice.choice(NOUNS)} number {n} and the {noun}."}]
        body = {"messages": messages, "streaming": dice.random() < 0.3}
        conversations = self.conversations[agent]
        chance = dice.random()
        if chance < 0.2:
            self.ask("POST", "/v1/chat/completions", {"model": agent, "messages": messages, "user": "bob"})
        elif chance < 0.5 and conversations:
            self.ask("POST", f"/v1/conversations/{dice.choice(conversations)}/messages", body)
        else:
            self.ask("POST", f"/v1/agents/{agent}/messages", body)

    def begin_conversation(self, agent: str) -> None:
        self.conversations[agent].append(self.ask("POST", f"/v1/conversations/?agent_id={agent}", {})["id"])

    def end_conversation(self, agent: str) -> None:
        if self.conversations[agent]:
            self.ask("DELETE", f"/v1/conversations/{self.conversations[agent].pop()}")

    def update_own_block(self, agent: str) -> None:
        body = {"value": f"Name: {self.count}"}
        self.ask("PATCH", f"/v1/agents/{agent}/core-memory/blocks/human", body)

    def create_block(self, agent: str) -> None:
        body = {"label": "shared", "value": f"Shared {self.count}"}
        self.blocks.append(self.ask("POST", "/v1/blocks/", body)["id"])

    def update_block(self, agent: str) -> None:
        if self.blocks:
            self.ask("PATCH", f"/v1/blocks/{self.dice.choice(self.blocks)}", {"value": f"New {self.count}"})

    def attach_or_detach_block(self, agent: str) -> None:
        if self.blocks:
            action = self.dice.choice(("attach", "detach"))
            block = self.dice.choice(self.blocks)
            self.ask("PATCH", f"/v1/agents/{agent}/core-memory/blocks/{action}/{block}")

    def delete_block(self, agent: str) -> None:
        if self.blocks:
            self.ask("DELETE", f"/v1/blocks/{self.blocks.pop(self.dice.randrange(len(self.blocks)))}")

    def create_passage(self, agent: str) -> None:
        body = {"text": f"Passage {self.count} of the {self.dice.choice(NOUNS)}."}
        self.passages[agent].append(self.ask("POST", f"/v1/agents/{agent}/archival-memory", body)[0]["id"])

    def delete_passage(self, agent: str) -> None:
        if self.passages[agent]:
            self.ask("DELETE", f"/v1/agents/{agent}/archival-memory/{self.passages[agent].pop()}")

    def list_messages(self, agent: str) -> None:
        dice = self.dice
        page = f"limit={dice.choice((5, 50, 200))}&order={dice.choice(('asc', 'desc'))}"
        self.messages[agent] = [m["id"] for m in self.ask("GET", f"/v1/agents/{agent}/messages?{page}")]

    def update_or_delete_message(self, agent: str) -> None:
        if self.messages[agent]:
            path = f"/v1/agents/{agent}/messages/{self.dice.choice(self.messages[agent])}"
            if self.dice.random() < 0.5:
                self.ask("DELETE", path)
            else:
                text = f"Changed {self.count}: the {self.dice.choice(NOUNS)}."
                self.ask("PATCH", path, {"message_type": "user_message", "content": text})

    def read_memory(self, agent: str) -> None:
        paths = (
            "core-memory/blocks",
            "archival-memory",
            f"archival-memory/search?query={self.dice.choice(NOUNS)}",
        )
        self.ask("GET", f"/v1/agents/{agent}/{self.dice.choice(paths)}")

    def update_or_reset_agent(self, agent: str) -> None:
        if self.dice.random() < 0.5:
            self.ask("PATCH", f"/v1/agents/{agent}", {"system": f"You are {self.count}."})
        else:
            self.ask("PATCH", f"/v1/agents/{agent}/reset-messages", {})

    def delete_agent(self, agent: str) -> None:
        self.agents.remove(agent)
        self.ask("DELETE", f"/v1/agents/{agent}")

    def wait(self, agent: str) -> None:
        self.gateways.pass_time(self.dice.choice((10, 200, 5000)))
