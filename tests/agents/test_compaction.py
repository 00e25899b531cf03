"""Summaries of agents' conversations: by hand, when a window fills up, and as the client is shown them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from letta_client import BadRequestError, InternalServerError

from gateway.errors import BadRequest
from gateway.operations import make_operations
from storage.records import EvictedPart
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Gate, Reply, StrictUpstream, fail, say
from tests.gateway.compacting import Notes, compacted
from tests.inflated import with_inflated
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOTHING_ELSE = {"learn_every": 0, "recall_tokens": 0}
TALE = "A long tale of the sea. " * 8


@pytest.fixture
def notes(upstream: StrictUpstream) -> Notes:
    return Notes(upstream)


@pytest.fixture
def world(upstream: StrictUpstream, notes: Notes, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, memory=NOTHING_ELSE) as made:
        yield made


def talk(world: LettaWorld, agent: str, count: int = 5, text: str = TALE) -> None:
    for n in range(count):
        world.letta.agents.messages.create(agent, input=f"{n}: {text}")


def sent(world: LettaWorld) -> list[str]:
    """What went upstream last, after the system message; of each its beginning."""
    return [m["content"][:4] for m in world.upstream.last.messages[1:]]


def evicted_tokens(world: LettaWorld) -> list[int]:
    """The tokens of what has left the window, as the last exchange has them."""
    newest = "SELECT evicted FROM exchanges ORDER BY id DESC LIMIT 1"
    return [EvictedPart(*orjson.loads(evicted)).tokens for evicted in world.world.query(newest)]


def system(world: LettaWorld) -> str:
    return str(world.upstream.last.messages[0]["content"])


def test_a_conversation_is_compacted_by_hand(world: LettaWorld, notes: Notes) -> None:
    agent = world.agent()
    talk(world, agent.id)
    compaction = world.letta.agents.messages.compact(agent.id)
    assert compaction is not None
    assert compaction.summary == "Notes 1: they talked of this and that."
    # The system message, the last two turns; before that all five.
    assert (compaction.num_messages_before, compaction.num_messages_after) == (11, 5)
    assert notes.asked[0].json["model"] == "m"
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert sent(world) == ["3: A", "Ok.", "4: A", "Ok.", "And "]
    assert "<summary " in system(world)
    assert "Notes 1: they talked of this and that." in system(world)
    context = world.ask("GET", f"/v1/agents/{agent.id}/context")[1]
    assert "Notes 1" in context["summary_memory"]
    # What left is listed as before, and stays out.
    assert len(spoken(world.letta.agents.messages.list(agent.id))) == 12
    world.letta.agents.messages.create(agent.id, input="Still?")
    assert sent(world) == ["3: A", "Ok.", "4: A", "Ok.", "And ", "Ok.", "Stil"]


def test_the_next_summary_goes_on_from_the_one_before(world: LettaWorld, notes: Notes) -> None:
    agent = world.agent()
    talk(world, agent.id)
    world.letta.agents.messages.compact(agent.id)
    (tokens_before,) = evicted_tokens(world)
    talk(world, agent.id, 3)
    world.letta.agents.messages.compact(agent.id)
    # Six of the eight turns are out of the window; three were before.
    assert evicted_tokens(world) == [tokens_before * 2]
    asked = notes.asked[1].messages[-1]["content"]
    assert "Notes 1: they talked of this and that." in asked
    assert "2: A long" not in asked
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert "Notes 2" in system(world)
    assert "Notes 1" not in system(world)


def test_mode_all_summarises_all_that_was_said(world: LettaWorld) -> None:
    agent = world.agent(compaction_settings={"mode": "all"})
    talk(world, agent.id, 2)
    compaction = world.letta.agents.messages.compact(agent.id)
    assert compaction is not None
    assert (compaction.num_messages_before, compaction.num_messages_after) == (5, 1)
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert sent(world) == ["And "]
    assert "Notes 1" in system(world)
    other = world.agent()
    world.letta.agents.messages.create(other.id, input="Hi")
    with pytest.raises(BadRequestError, match="failed to reduce the number of messages: there is nothing"):
        world.letta.agents.messages.compact(other.id)


def test_the_settings_of_a_summary_are_honoured(world: LettaWorld, notes: Notes) -> None:
    agent = world.agent(
        compaction_settings={"model": "openai/clerk", "prompt": "Tell it as a poem.", "clip_chars": 10}
    )
    talk(world, agent.id)
    compaction = world.letta.agents.messages.compact(
        agent.id, compaction_settings={"sliding_window_percentage": 0.7}
    )
    assert compaction is not None
    (asked,) = notes.asked
    assert asked.json["model"] == "clerk"
    assert asked.messages[0]["content"].startswith("Tell it as a poem.")
    assert "0: A long" in asked.messages[-1]["content"]
    assert "1: A long" not in asked.messages[-1]["content"]
    assert len(compaction.summary) <= 10
    assert compaction.num_messages_after == 9


def test_a_hosted_model_of_lettas_is_none(world: LettaWorld, notes: Notes) -> None:
    """Letta Code names one for each agent."""
    agent = world.agent(compaction_settings={"model": "letta/auto"})
    assert agent.compaction_settings is not None
    assert agent.compaction_settings.model == "letta/auto"
    talk(world, agent.id)
    world.letta.agents.messages.compact(agent.id)
    assert notes.asked[0].json["model"] == "m"


def test_modes_that_there_are_not(world: LettaWorld) -> None:
    agent, settings = world.agent(), {"mode": "self_compact_all"}
    for refused in (
        lambda: world.agent(compaction_settings=settings),
        lambda: world.letta.agents.update(agent.id, compaction_settings=settings),  # type: ignore[arg-type]
        lambda: world.letta.agents.messages.compact(agent.id, compaction_settings=settings),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadRequestError, match="never the conversation's"):
            refused()


def test_an_agent_that_names_its_model_needs_no_background_model_to_be_compacted(
    world: LettaWorld, notes: Notes
) -> None:
    operations = make_operations(world.world.gateway.app.services.settings, world.world.store)
    named, other = world.agent(compaction_settings={"model": "openai/clerk"}), world.agent()
    for agent in (named, other):
        talk(world, agent.id)
    world.world.gateway.call(operations.perform("compact", {"project": "default", "agent": named.id}))
    compacted(world.world)
    assert [asked.json["model"] for asked in notes.asked] == ["clerk"]
    with pytest.raises(BadRequest, match="no background model"):
        world.world.gateway.call(operations.perform("compact", {"project": "default", "agent": other.id}))


def test_without_a_summary_nothing_changes(world: LettaWorld, notes: Notes) -> None:
    agent = world.agent()
    talk(world, agent.id)
    for reply in (fail(500), say("I cannot help with that."), say("")):
        notes.reply = lambda n, reply=reply: reply  # type: ignore[misc]
        with pytest.raises(InternalServerError, match="There is no summary"):
            world.letta.agents.messages.compact(agent.id)
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert len(sent(world)) == 11


def test_a_requested_summary_may_be_longer_than_the_few_words_before(world: LettaWorld, notes: Notes) -> None:
    agent = world.agent(compaction_settings={"mode": "all"})
    talk(world, agent.id, 1, "Hi")
    notes.reply = lambda n: say("The user greeted the assistant, and the assistant greeted back.")
    compaction = world.letta.agents.messages.compact(agent.id)
    assert compaction is not None
    assert (compaction.num_messages_before, compaction.num_messages_after) == (3, 1)
    assert compaction.summary.endswith("greeted back.")


def test_a_send_waits_for_a_summary_that_is_being_made(world: LettaWorld, notes: Notes) -> None:
    agent, gate = world.agent(), Gate()
    talk(world, agent.id)
    notes.reply = lambda n: Reply(text="Notes: the sea.", hold_before_headers=gate)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(world.letta.agents.messages.compact, agent.id)
        while not notes.asked:
            pass
        said = pool.submit(world.letta.agents.messages.create, agent.id, input="And now?")
        other = world.letta.conversations.create(agent_id=agent.id)
        list(world.letta.conversations.messages.create(other.id, input="Elsewhere"))
        assert not said.done()
        gate.open()
        future.result(PATIENCE_S)
        said.result(PATIENCE_S)
    assert sent(world) == ["3: A", "Ok.", "4: A", "Ok.", "And "]


def test_another_conversation_of_the_agent_is_compacted(world: LettaWorld) -> None:
    agent = world.agent()
    one = world.letta.conversations.create(agent_id=agent.id)
    for n in range(4):
        list(world.letta.conversations.messages.create(one.id, input=f"{n}: {TALE}"))
    talk(world, agent.id, 3)
    compaction = world.letta.conversations.messages.compact(one.id)
    assert (compaction.num_messages_before, compaction.num_messages_after) == (9, 5)
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert len(sent(world)) == 7
    own = world.letta.conversations.messages.compact("default", agent_id=agent.id)
    assert own.num_messages_before == 9


def test_compaction_messages_are_shown_where_they_are_asked_for(world: LettaWorld) -> None:
    agent = world.agent()
    talk(world, agent.id)
    world.letta.agents.messages.compact(agent.id)

    def kinds(messages: Any) -> list[str]:
        return [each.message_type for each in messages]

    reply = world.letta.agents.messages.create(agent.id, input="And now?", include_compaction_messages=True)
    assert kinds(reply.messages) == ["event_message", "summary_message", "assistant_message"]
    event, summary = list[Any](reply.messages)[:2]
    assert (event.event_type, summary.summary) == ("compaction", "Notes 1: they talked of this and that.")
    # The next one has nothing new.
    again = world.letta.agents.messages.create(agent.id, input="So?", include_compaction_messages=True)
    assert kinds(again.messages) == ["assistant_message"]
    listed = world.letta.agents.messages.list
    assert not {"event_message", "summary_message"} & set(kinds(listed(agent.id)))
    query: Any = {"include_compaction_messages": "true"}
    shown = list(listed(agent.id, order="asc", extra_query=query))
    assert kinds(shown)[5:9] == ["user_message", "assistant_message", "event_message", "summary_message"]
    assert shown[8].id == shown[6].id == summary.id
    assert len({each.otid for each in shown}) == len(shown)
    # Page by page it is the same.
    paged = list(listed(agent.id, order="asc", limit=1, extra_query=query))
    assert [each.otid for each in paged] == [each.otid for each in shown]
    newest = list(listed(agent.id, order="desc", extra_query=query))
    assert [each.otid for each in newest] == [each.otid for each in shown]


def test_a_stream_shows_them_too(world: LettaWorld) -> None:
    agent = world.agent()
    talk(world, agent.id)
    world.letta.agents.messages.compact(agent.id)
    events = world.letta.agents.messages.stream(
        agent.id, input="And now?", stream_tokens=True, include_compaction_messages=True
    )
    kinds: list[Any] = [each.message_type for each in events]
    assert kinds[:3] == ["event_message", "summary_message", "assistant_message"]
    assert kinds.count("summary_message") == 1


def test_a_full_window_is_summarised_on_the_agents_terms(
    upstream: StrictUpstream, notes: Notes, tmp_path: Path
) -> None:
    """Without a background model an agent that names a model has its summaries, and another one has none."""
    with letta(upstream, tmp_path, memory=NOTHING_ELSE) as world:
        agent = world.agent(
            context_window_limit=1200, max_tokens=100,
            compaction_settings={"model": "openai/clerk", "mode": "all", "prompt": "Short."},
        )  # fmt: skip
        covered: list[bool] = []
        plain = world.agent(context_window_limit=1200, max_tokens=100)
        for id in (plain.id, agent.id):
            for n in range(14):
                talk(world, id, 1, f"turn {n}. {TALE}")
                compacted(world.world)
                if len(notes.asked) == 1 and not covered:
                    covered.append(f"turn {n}." in notes.asked[0].messages[-1]["content"])
        # Nothing stays in the mode `all`.
        assert covered == [True]
        assert {seen.json["model"] for seen in notes.asked} == {"clerk"}
        assert all(seen.messages[0]["content"].startswith("Short.") for seen in notes.asked)
        assert "Notes" in system(world)
        world.letta.agents.messages.create(plain.id, input="And you?")
        assert "<summary " not in system(world)


def test_a_summary_is_forgotten_with_what_it_covers(world: LettaWorld, tmp_path: Path, notes: Notes) -> None:
    agent = world.agent()
    notes.reply = lambda n: say("Notes: the albatross came.")
    talk(world, agent.id)
    world.letta.agents.messages.compact(agent.id)
    first = next(iter(spoken(world.letta.agents.messages.list(agent.id, order="asc"))))
    status, _ = world.ask("DELETE", f"/v1/agents/{agent.id}/messages/{first.id}")
    assert status == 200
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert "albatross" not in system(world)
    for file in tmp_path.glob("memory.db*"):
        assert b"albatross" not in with_inflated(file.read_bytes()), file.name
