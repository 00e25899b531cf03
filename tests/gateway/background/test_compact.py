"""Compaction through the real gateway: a small window, a background model that follows a script."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import BadRequest
from gateway.operations import make_operations
from gateway.run.background.compact import CompactJob
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.sql.statements import make_statement
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, say
from tests.gateway.compacting import Notes, compacted, compacting, text_of
from tests.gateway.sdk import Chat, World, agent, prefix_bytes
from tests.patience import SHORT_S

RESERVE = 300
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def notes(upstream: StrictUpstream) -> Notes:
    return Notes(upstream)


@pytest.fixture
def world(upstream: StrictUpstream, notes: Notes, tmp_path: Path) -> Iterator[World]:
    with compacting(upstream, tmp_path) as made:
        yield made


def talk(chat: Chat, turns: int, start: int = 0, words: int = 12) -> list[UpstreamRequest]:
    """One turn after the other, each once compaction has come to rest."""
    seen = []
    for n in range(start, start + turns):
        chat.say(text_of(n, words))
        seen.append(next(s for s in reversed(chat.world.upstream.requests) if s.json["model"] != "small"))
        compacted(chat.world)
    return seen


def system_of(request: UpstreamRequest) -> str:
    first = request.messages[0]
    return str(first["content"]) if first["role"] == "system" else ""


def shared(one: UpstreamRequest, two: UpstreamRequest) -> int:
    """Bytes with which both begin."""
    a, b = prefix_bytes(one), prefix_bytes(two)
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def test_a_summary_stands_for_what_has_left(world: World, notes: Notes) -> None:
    chat = world.chat(system="Be brief.", user="alice", max_tokens=RESERVE)
    seen = talk(chat, 40)
    assert all(each.refusal is None for each in seen)
    first = next(each for each in seen if "</summary>" in each.body.decode())
    assert system_of(first).startswith("Be brief.\n\n")
    assert "Notes 1: they talked" in system_of(first)
    assert first.messages[1]["role"] == "user"
    # What the summary was made of has left, what follows has not, word for word.
    shown = notes.asked[0].messages[1]["content"]
    assert "Message 0:" in shown
    kept = [m["content"] for m in first.messages if m["role"] == "user"]
    contents = [m["content"] for m in chat.messages if m["role"] == "user"]
    assert kept == contents[contents.index(kept[0]) : contents.index(kept[-1]) + 1]
    assert contents[contents.index(kept[0]) - 1] in shown
    assert kept[0] not in shown


def test_the_next_summary_covers_the_one_before(world: World, notes: Notes) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    seen = talk(chat, 60)
    assert len(notes.asked) >= 2
    assert "<notes>\nNotes 1: they talked" in notes.asked[1].messages[1]["content"]
    assert "Message 0:" not in notes.asked[1].messages[1]["content"]
    assert system_of(seen[-1]).count("</summary>") == 1
    used = [int(each.partition(":")[0]) for each in system_of(seen[-1]).split("Notes ")[2:]]
    assert used[-1] in (len(notes.asked) - 1, len(notes.asked))


def test_two_hundred_turns_on_an_8k_window(upstream: StrictUpstream, notes: Notes, tmp_path: Path) -> None:
    notes.reply = lambda n: say(f"Notes {n}: " + " ".join(f"fact{n}x{k}" for k in range(60)))
    with compacting(upstream, tmp_path, context=8192) as world:
        chat = world.chat(
            system="Be brief.", user="alice", model="agent/helper", max_tokens=512, tools=[WEATHER]
        )
        seen: list[UpstreamRequest] = []
        for n in range(200):
            begun = len(upstream.requests)
            if n % 80 == 60:
                upstream.queue(call_tools(Call("weather", {"n": n}), text=None))
                chat.say(text_of(n, 12))
                chat.answer(
                    chat.messages[-1]["tool_calls"][0],
                    "The station reported sunshine and warm weather around the harbour. " * 300,
                )
                chat.go_on()
            else:
                upstream.queue(say(f"Answer {n}: yes, and no."))
                chat.say(text_of(n, 12))
            seen += [s for s in upstream.requests[begun:] if s.json["model"] != "small"]
            compacted(world)
    assert all(s.refusal is None for s in upstream.requests)
    assert len(seen) == 202
    pairs = list(itertools.pairwise(seen))
    stable = sum(shared(one, two) for one, two in pairs)
    sent = sum(len(prefix_bytes(one)) for one, _ in pairs)
    moved = [n for n, (one, two) in enumerate(pairs) if shared(one, two) < len(prefix_bytes(one))]
    assert stable / sent >= 0.95
    assert len(moved) <= 2 * len(notes.asked)
    assert "</summary>" in system_of(seen[-1])


BAD = {
    "down": lambda n: fail(503),
    "refuses": lambda n: say("I'm sorry, but I can't help with that."),
    "declines": lambda n: Reply(text=None, delta={"refusal": "I can't help with that."}),
    "silent": lambda n: say("  "),
    "echoes": lambda n: say("word " * 4000),
    "stutters": lambda n: say("the the " * 60),
    "garbage": lambda n: Reply(body=[b"<html>"], headers={"content-type": "text/html"}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_model_that_gives_no_summary_changes_nothing(world: World, notes: Notes, kind: str) -> None:
    notes.reply = BAD[kind]
    chat = world.chat(user="alice", max_tokens=RESERVE)
    seen = talk(chat, 20, words=24)
    assert notes.asked
    assert all(each.refusal is None for each in seen)
    assert all("</summary>" not in each.body.decode() for each in seen)
    assert world.query("SELECT count(*) FROM summaries") == [0]
    failed = next(
        job
        for job in world.gateway.call(world.store.jobs.list_newest())
        if job.kind == "compact" and job.error
    )
    assert "word" not in str(failed.error)
    came = Gate()

    def better(n: int) -> Reply:
        came.open()
        return say("Better notes of what was said in all of that.")

    notes.reply = better
    world.gateway.call(world.store.jobs.retry(failed.id))
    came.wait_sync()
    compacted(world)
    assert "Better notes" in system_of(talk(chat, 1, 40)[0])


@pytest.mark.parametrize("thought", ["", "<think>They talked of this, then of that, and"])
def test_a_model_that_thinks_its_room_away_is_given_more(world: World, notes: Notes, thought: str) -> None:
    """Some always think, and their thoughts count towards the limit."""
    limits = []

    def answer(n: int) -> Reply:
        limits.append(notes.asked[-1].json.get("max_tokens"))
        return say(thought, finish_reason="length") if limits[-1] else say("Notes: of this and that.")

    notes.reply = answer
    chat = world.chat(user="alice", max_tokens=RESERVE)
    assert "Notes: of this and that." in system_of(talk(chat, 40)[-1])
    assert limits[0] is not None
    assert limits[1] is None


def test_a_slow_model_is_not_waited_for(world: World, notes: Notes) -> None:
    gate = Gate()
    notes.reply = lambda n: say(f"Notes {n}: of this and that.", hold_before_headers=gate)
    chat = world.chat(user="alice", max_tokens=RESERVE)
    for n in range(40):
        chat.say(text_of(n, 12))
    assert "</summary>" not in world.upstream.last.body.decode()
    gate.open()
    compacted(world)
    assert ": of this and that." in system_of(talk(chat, 1, 40)[0])


def test_tokens_of_summaries_count_as_their_users_background_work(world: World, notes: Notes) -> None:
    usage = {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520}
    notes.reply = lambda n: say(f"Notes {n}: of this and that.", usage=usage)
    talk(world.chat(user="alice", max_tokens=RESERVE), 40)
    compacted(world)
    world.gateway.call(world.gateway.app.services.accounting.meter.write())
    assert notes.asked
    assert world.query(
        'SELECT "user", key, sum(background_input_tokens), sum(background_output_tokens) FROM usage'
        " WHERE model = 'small' GROUP BY \"user\", key"
    ) == [("alice", 0, 500 * len(notes.asked), 20 * len(notes.asked))]


def test_turns_that_ask_while_one_is_made_do_not_have_another(world: World, notes: Notes) -> None:
    """It would cover the turns in between and no more, and break the prefix once more for that."""
    gate = Gate()
    notes.reply = lambda n: say(f"Notes {n}: of this and that.", hold_before_headers=gate)
    chat = world.chat(user="alice", max_tokens=RESERVE)
    n = 0
    while not notes.asked:
        chat.say(text_of(n, 12))
        n += 1
        world.settle()
    for more in range(3):
        chat.say(text_of(n + more, 12))
    gate.open()
    compacted(world)
    assert len(notes.asked) == 1
    # Turns that know it ask for the next one in their time.
    talk(chat, 40, n + 3)
    assert len(notes.asked) > 1


def test_a_job_that_was_ended_goes_on_where_it_was(
    upstream: StrictUpstream, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.run.background.summary_writer.PART_TOKENS", 350)
    monkeypatch.setattr(
        "gateway.services.DRAIN_S", SHORT_S
    )  # a stop waits so long for a job, which does not end
    came = Gate()

    def stop_at_two(n: int) -> Reply:
        if n < 2:
            return say("Notes 1: of the beginning.")
        came.open()
        return say("Never.", hold_before_headers=Gate())

    notes.reply = stop_at_two
    with compacting(upstream, tmp_path) as world:
        chat = world.chat(user="alice", max_tokens=RESERVE)
        for n in range(24):
            chat.say(text_of(n, 12))
        came.wait_sync()
    came_again = Gate()

    def go_on(n: int) -> Reply:
        came_again.open()
        return say(f"Notes {n}: of the rest, and so of all of it.")

    notes.reply = go_on
    with compacting(upstream, tmp_path) as world:
        came_again.wait_sync()
        compacted(world)
        assert notes.asked[2].messages == notes.asked[1].messages  # not from the start
        assert "Notes 1: of the beginning." in notes.asked[2].messages[1]["content"]
        assert world.query("SELECT text FROM summaries")[0].endswith("of all of it.")


def test_branches_share_a_summary(world: World, notes: Notes) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    seen = talk(chat, 32)
    before = system_of(seen[-1])
    assert "</summary>" in before
    count = len(notes.asked)
    chat.messages = [*chat.messages[:-4], {"role": "user", "content": "Something else altogether."}]
    chat.go_on()
    assert system_of(world.upstream.last) == before
    assert len(notes.asked) == count


def test_a_branch_has_its_summary_however_many_summaries_another_branch_has(
    world: World, notes: Notes
) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    talk(chat, 32)
    before, sent = system_of(world.upstream.last), [*chat.messages]
    assert "</summary>" in before
    talk(chat, 20, 33)

    summarise = make_statement(
        "a test's",
        "INSERT INTO summaries (agent, conversation, exchange, depth, at, tokens, model, text)"
        " SELECT agent, conversation, id, depth, 1, 1, 'm', 'Other notes.' FROM exchanges"
        " WHERE id NOT IN (SELECT exchange FROM summaries) ORDER BY depth DESC LIMIT 16",
    )
    world.settle()

    async def write() -> None:
        await world.store.database.write(lambda connection: connection.run(summarise, ()))

    world.gateway.call(write())
    chat.messages = [*sent, {"role": "user", "content": "Something else altogether."}]
    chat.go_on()
    assert system_of(world.upstream.last) == before


def test_summaries_of_forgotten_messages_are_forgotten(
    world: World, notes: Notes, database_kind: str
) -> None:
    notes.reply = lambda n: say(f"Notes {n}: alice has a cat called Miso.")
    chat = world.chat(user="alice", max_tokens=RESERVE)
    chat.say("My cat is called Miso.")
    talk(chat, 32, 1)
    assert "Miso" in system_of(world.upstream.last)

    async def forget() -> None:
        agent = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        id = await world.store.forgetting.begin(agent.id, ForgetTarget(message_seqs=[1]))
        await world.store.forgetting.run(id)

    world.gateway.call(forget())
    # In a file their rows stay, emptied.
    left = {(0, "")} if database_kind == "sqlite" else set()
    assert set(world.query("SELECT agent, text FROM summaries")) == left
    notes.reply = lambda n: say("Later notes of this and that.")
    later = talk(chat, 3, 33)
    assert all("Miso" not in each.body.decode() for each in [*later, *notes.asked[-1:]])
    assert "Later notes" in system_of(later[-1])


@pytest.mark.parametrize("how", ["trimmed", "append"])
def test_other_ways_to_send_a_history(world: World, notes: Notes, how: str) -> None:
    headers = {"x-mnemogate-conversation": "c1"}
    if how == "append":
        headers["x-mnemogate-history"] = "append"
    chat = world.chat(user="alice", max_tokens=RESERVE, headers=headers)
    seen = []
    for n in range(40):
        chat.messages = chat.messages[-6:] if how == "trimmed" else []
        seen += talk(chat, 1, n)
    assert all(each.refusal is None for each in seen)
    assert "Notes 1" in system_of(next(each for each in seen if "</summary>" in each.body.decode()))
    moved = [
        n
        for n, (one, two) in enumerate(itertools.pairwise(seen))
        if shared(one, two) < len(prefix_bytes(one))
    ]
    assert len(moved) <= len(notes.asked)
    used = [each for each in seen if "</summary>" in each.body.decode()]
    assert max(len(each.messages) for each in used) > 10  # what follows the summary is put in front again


@pytest.mark.parametrize(
    ("everywhere", "profile", "summaries"),
    [("truncate", None, False), ("summary", "truncate", False), ("truncate", "summary", True)],
)
def test_the_settings_or_a_profile_may_only_leave_out(
    upstream: StrictUpstream,
    notes: Notes,
    tmp_path: Path,
    everywhere: str,
    profile: str | None,
    summaries: bool,
) -> None:
    with compacting(upstream, tmp_path, agent(compaction=profile), compaction=everywhere) as world:
        seen = talk(world.chat(user="alice", model="agent/helper", max_tokens=RESERVE), 30)
    assert bool(notes.asked) is summaries
    assert len(seen[-1].messages) < 50


@pytest.mark.sqlite
def test_a_plain_turn_costs_no_statement_more(world: World) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    talk(chat, 4, words=2)
    assert len(world.statements_of(lambda: chat.say("And now?"))) == 1


def test_a_summary_is_made_when_an_operator_asks(world: World, notes: Notes) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE, headers={"x-mnemogate-conversation": "c1"})
    talk(chat, 6)
    assert not notes.asked
    operations = make_operations(world.gateway.app.services.settings, world.store)
    alice = {"project": "default", "user": "alice"}
    world.gateway.call(operations.perform("compact", {**alice, "in": "c1"}))
    compacted(world)
    shown = notes.asked[0].messages[1]["content"]
    assert "Message 4:" in shown
    assert "Message 5:" not in shown  # the last turn stays
    # Now there is nothing new. A job that ends without a summary would say nothing of it.
    with pytest.raises(BadRequest, match="There is nothing to summarise yet"):
        world.gateway.call(operations.perform("compact", alice))
    for wrong in ({"project": "default"}, {**alice, "user": "bob"}, {**alice, "in": "c2"}):
        with pytest.raises(BadRequest):
            world.gateway.call(operations.perform("compact", wrong))


def test_with_a_summary_the_memory_section_is_rebuilt(world: World, notes: Notes) -> None:
    chat = world.chat(user="alice", model="agent/helper", max_tokens=RESERVE)
    chat.say("Hello.")
    world.write_block("alice", "Alice has a cat called Miso.")
    seen = talk(chat, 30)
    with_summary = [each for each in seen if "</summary>" in each.body.decode()]
    before = [each for each in seen if each not in with_summary]
    assert before
    assert with_summary
    assert all("Miso" not in system_of(each) for each in before)
    assert all("Miso" in system_of(each) for each in with_summary)
    assert all("<memory_block" not in str(each.messages[1:]) for each in with_summary)  # shown once is enough
    systems = [system_of(each) for each in with_summary]
    assert len(set(systems)) <= len(notes.asked)


def test_a_job_that_an_earlier_version_has_stored_is_read() -> None:
    stored = b'{"exchange":7,"keep":100,"size":1500,"messages":2,"newest":0}'
    job = CompactJob(7, retained_tokens=100, max_tokens=1500, retained_messages=2, newest_summary_row=0)
    assert CompactJob.parse(stored) == job
    assert job.payload == stored
    assert not job.is_manual
    assert CompactJob.parse(b'{"exchange":7,"keep":0,"size":1500,"messages":0,"newest":null}').is_manual
