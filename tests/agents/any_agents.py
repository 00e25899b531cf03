"""Agents that are used at random over REST: what each request got, and what the upstream was sent.

The same seed asks for the same, whatever the gateways keep and how many of them there are. Ids stand as the place of
their first appearance; times and what the upstream counts are left out.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from tests.doubles.upstream import Call, call_tools, say
from tests.gateway.memory.any_life import NOUNS, Gateways
from tests.gateway.sdk import World, replace_marks

TOOLS = ("archival_memory_insert", "archival_memory_search", "conversation_search")
REQUESTS = 90
_ID = re.compile(r"(?:[a-z_]+-)?[0-9a-f]{32}|(?:chatcmpl|call)[-_][0-9A-Za-z]+")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+]00:00)?")
_MEASURED = re.compile(r'("(?:\w*_ns|\w*_ms|duration\w*|created|number|\w*_tokens)": ?)[\d.]+')


class AgentLife:
    """Agents with blocks of their own and shared ones. worlds: the gateways."""

    def __init__(self, worlds: Sequence[World], seed: int) -> None:
        self.gateways, self.upstream = Gateways(worlds, seed), worlds[0].upstream
        self.dice = random.Random(seed)
        self.said: list[str] = []
        self.count = 0
        self.agents: list[str] = []
        self.blocks: list[str] = []
        self.conversations: defaultdict[str, list[str]] = defaultdict(list)
        self.passages: defaultdict[str, list[str]] = defaultdict(list)
        self.messages: defaultdict[str, list[str]] = defaultdict(list)
        self._places: dict[str, str] = {}
        self._acts: dict[Callable[[str], None], int] = {
            self.send: 45,
            self.begin_conversation: 5,
            self.end_conversation: 2,
            self.change_own_block: 4,
            self.make_block: 4,
            self.change_block: 6,
            self.give_or_take_block: 4,
            self.delete_block: 1,
            self.keep_passage: 4,
            self.delete_passage: 2,
            self.list_messages: 6,
            self.change_message: 4,
            self.snapshot: 6,
            self.change_agent: 2,
            self.delete_agent: 1,
            self.wait: 2,
        }

    def live(self) -> tuple[list[str], list[str]]:
        """Returns each request with its answer, and what the upstream was sent."""
        begin = len(self.upstream.requests)
        for self.count in range(REQUESTS):
            # A send that was refused has left its reply.
            self.upstream.forget_replies()
            if len(self.agents) < 2:
                self.make_agent()
            else:
                act = self.dice.choices([*self._acts], [*self._acts.values()])[0]
                act(self.dice.choice(self.agents))
        return self.said, [self._plain(request.body.decode()) for request in self.upstream.requests[begin:]]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Asks a gateway. Returns None for an error."""
        data = None if body is None else json.dumps(body).encode()
        reply = self.gateways.next().gateway.ask(method, path, data, {"content-type": "application/json"})
        assert reply.status < 500, (method, path, body, reply.body)
        text = reply.body.decode()
        self.said.append(self._plain(f"{method} {path} {json.dumps(body)}: {reply.status} {text}"))
        return json.loads(text) if reply.status == 200 and text[:1] in "[{" else None

    def _plain(self, text: str) -> str:
        text = replace_marks(_MEASURED.sub(r"\1_", _DATE.sub("_", text)).encode()).decode()
        return _ID.sub(lambda found: self._places.setdefault(found[0], f"id-{len(self._places)}"), text)

    # -- what may happen

    def make_agent(self) -> None:
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
        own, way = self.conversations[agent], dice.random()
        if way < 0.2:
            self.ask("POST", "/v1/chat/completions", {"model": agent, "messages": messages, "user": "bob"})
        elif way < 0.5 and own:
            self.ask("POST", f"/v1/conversations/{dice.choice(own)}/messages", body)
        else:
            self.ask("POST", f"/v1/agents/{agent}/messages", body)

    def begin_conversation(self, agent: str) -> None:
        self.conversations[agent].append(self.ask("POST", f"/v1/conversations/?agent_id={agent}", {})["id"])

    def end_conversation(self, agent: str) -> None:
        if self.conversations[agent]:
            self.ask("DELETE", f"/v1/conversations/{self.conversations[agent].pop()}")

    def change_own_block(self, agent: str) -> None:
        body = {"value": f"Name: {self.count}"}
        self.ask("PATCH", f"/v1/agents/{agent}/core-memory/blocks/human", body)

    def make_block(self, agent: str) -> None:
        body = {"label": "shared", "value": f"Shared {self.count}"}
        self.blocks.append(self.ask("POST", "/v1/blocks/", body)["id"])

    def change_block(self, agent: str) -> None:
        if self.blocks:
            self.ask("PATCH", f"/v1/blocks/{self.dice.choice(self.blocks)}", {"value": f"New {self.count}"})

    def give_or_take_block(self, agent: str) -> None:
        if self.blocks:
            how = self.dice.choice(("attach", "detach"))
            block = self.dice.choice(self.blocks)
            self.ask("PATCH", f"/v1/agents/{agent}/core-memory/blocks/{how}/{block}")

    def delete_block(self, agent: str) -> None:
        if self.blocks:
            self.ask("DELETE", f"/v1/blocks/{self.blocks.pop(self.dice.randrange(len(self.blocks)))}")

    def keep_passage(self, agent: str) -> None:
        body = {"text": f"Passage {self.count} of the {self.dice.choice(NOUNS)}."}
        self.passages[agent].append(self.ask("POST", f"/v1/agents/{agent}/archival-memory", body)[0]["id"])

    def delete_passage(self, agent: str) -> None:
        if self.passages[agent]:
            self.ask("DELETE", f"/v1/agents/{agent}/archival-memory/{self.passages[agent].pop()}")

    def list_messages(self, agent: str) -> None:
        dice = self.dice
        page = f"limit={dice.choice((5, 50, 200))}&order={dice.choice(('asc', 'desc'))}"
        self.messages[agent] = [m["id"] for m in self.ask("GET", f"/v1/agents/{agent}/messages?{page}")]

    def change_message(self, agent: str) -> None:
        if self.messages[agent]:
            one = f"/v1/agents/{agent}/messages/{self.dice.choice(self.messages[agent])}"
            if self.dice.random() < 0.5:
                self.ask("DELETE", one)
            else:
                text = f"Changed {self.count}: the {self.dice.choice(NOUNS)}."
                self.ask("PATCH", one, {"message_type": "user_message", "content": text})

    def snapshot(self, agent: str) -> None:
        what = (
            "core-memory/blocks",
            "archival-memory",
            f"archival-memory/search?query={self.dice.choice(NOUNS)}",
        )
        self.ask("GET", f"/v1/agents/{agent}/{self.dice.choice(what)}")

    def change_agent(self, agent: str) -> None:
        if self.dice.random() < 0.5:
            self.ask("PATCH", f"/v1/agents/{agent}", {"system": f"You are {self.count}."})
        else:
            self.ask("PATCH", f"/v1/agents/{agent}/reset-messages", {})

    def delete_agent(self, agent: str) -> None:
        self.agents.remove(agent)
        self.ask("DELETE", f"/v1/agents/{agent}")

    def wait(self, agent: str) -> None:
        self.gateways.pass_time(self.dice.choice((10, 200, 5000)))
