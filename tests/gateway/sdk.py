"""A gateway with memory between OpenAI's own SDK and a strict upstream, and an application that talks through it.

with remember(upstream, tmp_path) as world:
    chat = world.chat(user="alice")
    assert chat.say("My cat is called Miso.") == "Ok."
    assert world.upstream.last.messages == [...]
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import openai

from gateway.limits import Limits
from gateway.run.background.retention import RETENTION
from gateway.settings import BlockSettings, MemorySettings, ProfileSettings
from gateway.traces.otlp import OtlpSettings
from storage.job_records import JobState
from storage.records import Block, Scope
from storage.sql.statements import make_statement
from storage.sql.store import Store
from storage.usage_records import REFUSE, UsageLimit
from tests.doubles.statements import counting
from tests.doubles.upstream import StrictUpstream, UpstreamRequest
from tests.inflated import inflated
from tests.patience import PATIENCE_S, becomes
from tests.server import QUIET, RawReply, RunningGateway, find_schedules, serve, settings_for
from tests.stored import data_of, open_store

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
# The statements that control a transaction.
CONTROL = ("begin", "savepoint", "release", "rollback", "commit")
_WRITE = re.compile(r"\b(insert|update|delete)\b(?: or \w+)?(?: into| from)? (\w+)")


class Clock:
    """The clock of gateway and store: it advances a little at each call, and otherwise only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1_760_000_000.0

    def __call__(self) -> float:
        self.now += 0.000_1
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# The last clock of each folder.
_clocks: dict[Path | str, Clock] = {}


def agent(name: str = "helper", **options: Any) -> ProfileSettings:
    """Returns a profile with memory tools and a block about the human."""
    blocks = options.pop("blocks", (BlockSettings("human", "What is known of the user."),))
    return ProfileSettings(
        name, **{"model": "m", "system": "You help.", "memory_tools": True, "blocks": blocks, **options}
    )


def are_idle(counts: Mapping[JobState, int]) -> bool:
    """Returns whether no job can run now. A job that failed may wait for another attempt."""
    return not counts[JobState.PENDING] and not counts[JobState.RUNNING]


def kind_of(statement: str) -> str:
    """Returns "insert <table>", "update <table>", "delete <table>", "read", or the word that controls a transaction."""
    words = " ".join(statement.lower().split())
    if (first := words.split(" ")[0]) in CONTROL:
        return first
    if (write := _WRITE.search(words)) is not None:
        return f"{write[1]} {write[2]}"
    assert first in ("select", "with"), statement
    return "read"


@dataclass
class World:
    """A gateway with memory that serves, and its parts as tests need them."""

    gateway: RunningGateway
    upstream: StrictUpstream
    clock: Clock
    # The SQLite file. Over PostgreSQL: the current directory.
    file: Path
    # The SQL that the store has run, in order.
    statements: list[str]
    # A client of OpenAI's SDK, without retries.
    sdk: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.sdk = self.client()

    @property
    def store(self) -> Store:
        store = self.gateway.app.services.store
        assert isinstance(store, Store)
        return store

    def client(self, key: str = "sk-app", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.gateway.url}/v1",
            api_key=key,
            **{"max_retries": 0, "timeout": PATIENCE_S, **options},
        )

    def async_client(self, key: str = "sk-app") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.gateway.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S
        )

    def chat(
        self, system: str | None = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Chat:
        return Chat(
            self, [{"role": "system", "content": system}] if system else [], dict(headers or {}), options
        )

    def post(
        self, messages: Sequence[Any], headers: Mapping[str, str] | None = None, **options: Any
    ) -> RawReply:
        return self.gateway.post({"model": "m", "messages": messages, **options}, headers)

    def settle(self) -> None:
        """Waits until no request is being answered and everything is on disk."""

        async def settled() -> None:
            await self.gateway.app.services.idle.wait()
            await self.gateway.app.services.chat.turn_services.pending.drain(PATIENCE_S)
            if self.gateway.app.services.background is not None:
                await self.gateway.app.services.background.drain(PATIENCE_S)
            assert await self.store.drain(PATIENCE_S)

        self.gateway.call(settled())

    def pass_time(self, seconds: float) -> None:
        """Moves the clock, and runs the maintenance that is due then."""
        self.settle()
        self.clock.sleep(seconds)

        async def work() -> None:
            background = self.gateway.app.services.background
            assert background is not None
            for agent_id in await self.store.search_index.find_lagging_agents(0, 100):
                background.indexing.add(agent_id, None)
                await background.indexing.perform_due()
            await background.maintenance.perform_due()

        self.gateway.call(work())

    def wait_for_jobs(self, holds: Callable[[Mapping[JobState, int]], bool]) -> None:
        """Waits until the numbers of jobs in each state meet a condition."""

        async def wait() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not holds(await self.store.jobs.count_by_state()):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        self.gateway.call(wait())

    def wait_for_retention(self) -> None:
        """Waits until the first job of the retention is enqueued and performed."""
        background = self.gateway.app.services.background
        assert background is not None
        becomes(lambda: background.retention._period >= 0)
        becomes(
            lambda: not any(job.kind == RETENTION for job in self.gateway.call(self.store.jobs.list_newest()))
        )

    def retry_job(self) -> None:
        """Waits until a job has failed, and has it tried again at once: a worker reads the clock once a second."""
        self.wait_for_jobs(lambda counts: counts[JobState.RETRYING] > 0)
        self.clock.sleep(10.0)

        async def wake() -> None:
            self.store.jobs.wake_here()

        self.gateway.call(wake())

    def query(self, sql: str, *values: object) -> list[Any]:
        """Returns rows of the database, uncompressed: tuples, or values where the rows have one column."""
        self.settle()
        statement = make_statement("a test's", sql)
        rows = self.gateway.call(self.store.database.read(lambda c: c.fetch_rows(statement, values)))
        inflated_rows = [[inflated(value) for value in row] for row in rows]
        return [row[0] if len(row) == 1 else tuple(row) for row in inflated_rows]

    def data(self) -> bytes:
        """Returns all bytes of the database, in which no forgotten text may be."""
        self.settle()
        return data_of(self.file)

    def statements_of(self, work: Callable[[], object]) -> list[str]:
        """Returns the kinds of the statements that `work` runs (`kind_of`), without those that control transactions."""
        return [kind for kind in self.all_statements_of(work) if kind not in CONTROL]

    def all_statements_of(self, work: Callable[[], object]) -> list[str]:
        """Returns the kinds of all statements that `work` runs (`kind_of`)."""
        self.settle()
        self.statements.clear()
        work()
        self.settle()
        return [kind_of(statement) for statement in self.statements]

    def limit(
        self,
        unit: str,
        per: str | None,
        most: float,
        *,
        key: int | None = None,
        user: str | None = None,
        then: str = REFUSE,
    ) -> UsageLimit:
        """Adds a limit, which counts earlier requests too. The parameters are fields of `UsageLimit`."""
        self.settle()
        usage_limit = UsageLimit(0, "default", key, user, unit, per, most, then)
        return self.gateway.call(self.store.limits.add(usage_limit))

    def block(
        self, user: str, label: str = "human", profile: str = "helper", project: str = "default"
    ) -> Block:
        """Returns a block of a user's memory."""
        self.settle()

        async def read() -> Block:
            stored_agent = await self.store.agents.find(Scope(project, profile, f"user:{user}"))
            assert stored_agent is not None
            return next(b for b in await self.store.blocks.load(stored_agent.id) if b.label == label)

        return self.gateway.call(read())

    def write_block(self, user: str, value: str, label: str = "human", profile: str = "helper") -> None:
        """Edits a block outside of a turn."""
        block = self.block(user, label, profile)

        async def write() -> None:
            await self.store.blocks.write(block.id, block.version, value, at=self.clock(), origin="test")

        self.gateway.call(write())


@dataclass
class Chat:
    """A client that resends its whole list of messages, as the SDK's examples do."""

    world: World
    messages: list[Json]
    headers: dict[str, str]
    options: Json

    def say(self, text: str, **options: Any) -> str:
        """Sends a new message, and returns the text of the reply."""
        self.messages.append({"role": "user", "content": text})
        return self.go_on(**options)

    def go_on(self, **options: Any) -> str:
        """Sends the list, appends the reply, and returns its text."""
        reply = self.complete(**options)
        self.messages.append(reply)
        return reply.get("content") or ""

    def complete(self, **options: Any) -> Json:
        """Returns the reply to the list of messages, and does not append it."""
        arguments = {
            "model": "m",
            "messages": self.messages,
            "extra_headers": self.headers,
            **self.options,
            **options,
        }
        # The messages go into `extra_body`, which is sent as it is. In `messages` the SDK would compare each part with
        # its types, which takes most of a test's time for a long list, and would send the same.
        arguments["extra_body"] = {**arguments.get("extra_body", {}), "messages": arguments["messages"]}
        arguments["messages"] = []
        if arguments.get("stream"):
            return join_stream(self.world.sdk.chat.completions.create(**arguments))
        completion = self.world.sdk.chat.completions.create(**arguments)
        return to_list_message(completion.choices[0].message)

    def answer(self, call: Json, content: str) -> None:
        """Appends the result of a tool call."""
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})


def to_list_message(message: Any) -> Json:
    """Returns a reply as the message that an application appends to its list."""
    list_message = {"role": "assistant", "content": message.content}
    if message.tool_calls:
        list_message["tool_calls"] = [call.model_dump(exclude_unset=True) for call in message.tool_calls]
    return list_message


def join_stream(chunks: Any) -> Json:
    """Returns the message that the chunks of a stream make. Fails unless they are one ordinary reply."""
    calls: dict[int, Json] = {}
    text, roles, ids, reasons = "", [], set(), []
    for chunk in chunks:
        ids.add(chunk.id)
        for choice in chunk.choices:
            delta = choice.delta
            if delta.role:
                roles.append(delta.role)
            text += delta.content or ""
            for piece in delta.tool_calls or ():
                call = calls.setdefault(
                    piece.index,
                    {"id": piece.id, "type": "function", "function": {"name": "", "arguments": ""}},
                )
                call["function"]["name"] += piece.function.name or ""
                call["function"]["arguments"] += piece.function.arguments or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
    assert (roles, len(ids), len(reasons)) == (["assistant"], 1, 1)
    assert list(calls) == list(range(len(calls)))
    message: Json = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = list(calls.values())
    return message


def replace_marks(body: bytes) -> bytes:
    """Returns bytes of a request for an upstream, with the word "mark" in place of each memory's mark."""
    return re.sub(rb"<(memory|summary) [a-z2-7]{8}>", rb"<\1 mark>", body)


def message_bytes(request: UpstreamRequest) -> list[bytes]:
    """Returns the elements of `messages` as they stand in the body that arrived."""
    return [
        bytes(each) for each in msgspec.json.decode(member_bytes(request, "messages"), type=list[msgspec.Raw])
    ]


def prefix_bytes(request: UpstreamRequest) -> bytes:
    """Returns the messages array from its bracket to its last element, as the provider's cache sees it."""
    return member_bytes(request, "messages").strip(b"[] \n")


def member_bytes(request: UpstreamRequest, key: str) -> bytes:
    """Returns a member's value as it stands in the body that arrived; b"": there is none."""
    members = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    return bytes(members[key]) if key in members else b""


@contextmanager
def remember(
    upstream: StrictUpstream,
    place: Path | str,
    *profiles: ProfileSettings,
    memory: Mapping[str, Any] | None = None,
    limits: Limits = QUIET,
    clock: Clock | None = None,
    admin_token: str | None = None,
    otlp: OtlpSettings | None = None,
    **parts: Any,
) -> Iterator[World]:
    """Serves a gateway with memory.

    place: the folder of the SQLite file, or the URL of a PostgreSQL database.
    memory: values of the settings' section [memory].
    clock: the clock; None: the last one of the same place, or a new one.
    parts: other fields of `Settings`.
    """
    statements: list[str] = []
    file = place / "memory.db" if isinstance(place, Path) else Path()
    is_new = isinstance(place, Path) and not file.exists()
    if clock is None:
        # A restarted gateway goes on with the time; otherwise jobs of the earlier one would be due later.
        clock = _clocks.get(place, Clock())
    if isinstance(place, Path):
        _clocks[place] = clock
    # On a busy machine no result of a test may depend on the deadline.
    memory = {"recall_deadline_ms": 50_000, **(memory or {})}
    settings = settings_for(upstream, memory=MemorySettings(**memory), profiles=profiles, **parts)

    async def open_here() -> Store:
        return await open_store(
            file if isinstance(place, Path) else place, now=clock, factory=counting(statements.append)
        )

    with serve(
        settings, open_here, clock=clock, limits=limits, admin_token=admin_token, otlp=otlp, is_new=is_new
    ) as gateway:
        app = gateway.app
        # Maintenance runs in `pass_time` alone.
        app.services.background.report_outdated_index = lambda agent_row, messages=None: None
        app.services.background.maintenance.note_pending_edits = lambda: None
        # The work of the start runs statements that no test counts.
        becomes(lambda: all(each._has_recovered for each in find_schedules(app.services.background)))
        world = World(gateway, upstream, clock, file, statements)
        if world.store.database.is_shared:
            world.wait_for_retention()
        try:
            yield world
        finally:
            world.sdk.close()
