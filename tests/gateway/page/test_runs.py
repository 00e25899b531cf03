"""A run of an agent, step by step: calls of tools, what they answered, and what waits."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import APIError

from gateway.core import ids
from gateway.run.admin.memory.run_operations import RunOperations
from storage.errors import StoreFailed
from tests.agents.agent_world import AgentWorld, serve_agent
from tests.agents.letta import letta
from tests.doubles.upstream import Call, Reply, StrictUpstream, call_tools, fail, say
from tests.gateway.page.browser import Browser
from tests.gateway.page.operator import Operator, operator_of, plain

pytestmark = pytest.mark.agents


@pytest.fixture
def life(upstream: StrictUpstream, tmp_path: Path) -> Iterator[AgentWorld]:
    with serve_agent(upstream, tmp_path) as made:
        yield made


def run_with_calls(life: AgentWorld) -> str:
    """Returns the id of a run of three steps, the first two of which call tools."""
    for text in ("Name: Ann", "<b>Cat</b>: \u202eMiso"):
        life.upstream.queue(call_tools(Call("memory_insert", {"label": "human", "new_string": text})))
    life.upstream.queue(say("Noted."))
    return ids.make_id("run", life.send("I am Ann.").run.uid)


@pytest.mark.both
def test_a_run_has_its_steps_with_calls_and_results(life: AgentWorld) -> None:
    operator, id = operator_of(life.world), run_with_calls(life)
    found = operator.twin(f"runs/{id}")
    run = found["run"]
    assert (run["id"], run["state"], run["stop"], run["steps"]) == (id, "completed", "end_turn", 3)
    assert run["tokens"] == sum(each["input"] + each["output"] for each in found["steps"]) > 0
    assert [each["number"] for each in found["steps"]] == [1, 2, 3]
    first, second, last = ([*each["calls"]] for each in found["steps"])
    assert last == []
    (call,) = first
    assert (call["tool"], call["state"], call["waiting"]) == ("memory_insert", "answered", None)
    assert "Name: Ann" in call["arguments"]
    assert call["result"]
    assert "Miso" in second[0]["arguments"]
    page = operator.twin(f"runs/{id}?limit=2")
    assert [each["number"] for each in page["steps"]] == [1, 2]
    assert page["steps"] == found["steps"][:2]
    rest = operator.twin(f"runs/{id}?limit=2&after={page['next']}")
    assert rest["steps"] == found["steps"][2:]
    assert rest["next"] is None


def test_the_time_of_a_step_is_read_without_a_dozen_decimals(life: AgentWorld) -> None:
    """A screen reader reads the value of the bar before its text."""
    shown = operator_of(life.world).get(f"runs/{run_with_calls(life)}").body.decode()
    bars = re.findall(r'<meter min="0" max="([^"]*)" value="([^"]*)"', shown)
    assert len(bars) == 3
    assert all(re.fullmatch(r"[0-9]+(\.[0-9]{1,3})?", number) for bar in bars for number in bar)


def test_the_memory_of_an_agent_leads_to_its_runs(life: AgentWorld) -> None:
    operator, id = operator_of(life.world), run_with_calls(life)
    (agent,) = operator.twin("people?kind=agent")["items"]
    memory = operator.twin(f"m/{agent['uid']}")
    assert sorted(memory) == ["blocks", "conversations", "facts", "memory", "passages", "runs"]
    assert memory["runs"] == [operator.twin(f"runs/{id}")["run"]]
    shown = operator.get(f"m/{agent['uid']}").body.decode()
    assert f'<a href="../runs/{id}">{id}</a>' in shown


def test_requests_of_an_agent_are_listed_while_the_database_is_down(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of agents are read from it, and the overview was an error."""
    with letta(upstream, tmp_path) as served:
        operator, agent = operator_of(served.world), served.agent(name="bob")
        chat = served.world.chat(model="agent/bob", headers={"x-mnemogate-conversation": "default"})
        chat.say("Hello.")
        for path in ("", "requests"):
            assert f"bob ({agent.id})" in plain(operator.get(path).body.decode())
        agents_alone = "No person is remembered. Some of the last requests were for agents."
        assert agents_alone in plain(operator.get("").body.decode())
        served.world.gateway.app.services.requests.note_forgetting()
        chat.say("Hello again.")

        async def fail(uids: Collection[str]) -> Any:
            raise StoreFailed("broken")

        monkeypatch.setattr(served.world.store.overview, "load_scopes", fail)
        for path in ("", "requests"):
            reply = operator.get(path)
            assert (reply.status, agent.id in plain(reply.body.decode())) == (200, True), path


@pytest.mark.both
def test_what_a_user_said_to_an_agent_is_not_said_by_the_agent(life: AgentWorld) -> None:
    """A message without a name stood under that of the memory, as of a person's it does."""
    operator = operator_of(life.world)
    run_with_calls(life)
    (agent,) = operator.twin("people?kind=agent")["items"]
    shown = operator.get(f"m/{agent['uid']}/words?q=Ann").body.decode()
    (row,) = re.findall(r'<td class="nowrap"><a [^>]*>message .*?</td>', shown)
    assert ">user</span>" in row
    assert agent["name"] not in row


def test_an_agent_stands_by_its_name_and_its_id_and_is_found_by_both(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with letta(upstream, tmp_path) as letters:
        named, other = letters.agent(name="<b>Café</b> helper"), letters.agent(name="Other")
        operator = operator_of(letters.world)
        found = {each["name"]: each for each in operator.twin("people?kind=agent")["items"]}
        agent = found[named.id]
        assert {name: each["agent_name"] for name, each in found.items()} == {
            named.id: "<b>Café</b> helper",
            other.id: "Other",
        }
        for path in ("people?kind=agent", f"m/{agent['uid']}"):
            shown = operator.get(path).body.decode()
            assert f'&lt;b&gt;Café&lt;/b&gt; helper</span> <span class="id">{named.id}</span>' in shown
        for q in ("%3CB%3ECaf%C3%A9", named.id[:20]):
            assert operator.twin(f"people?kind=agent&q={q}")["items"] == [agent]
        called = letters.agent(name="Agent-Smith")  # as ids begin
        (smith,) = operator.twin("people?kind=agent&q=agent-s")["items"]
        assert smith["name"] == called.id
        first = operator.twin("people?kind=agent&q=agent-&limit=2")
        rest = operator.twin(f"people?kind=agent&q=agent-&limit=2&after={first['next']}")
        assert {each["name"] for page in (first, rest) for each in page["items"]} == {
            named.id,
            other.id,
            called.id,
        }
        assert (
            operator.twin("people?kind=agent&q=zz")["items"] == operator.twin("people?q=Other")["items"] == []
        )


@pytest.mark.both
def test_the_runs_of_all_agents_are_listed_with_those_that_failed(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """An operator had to open each agent to find the runs that failed."""
    with letta(upstream, tmp_path) as letters:
        operator, send = operator_of(letters.world), letters.letta.agents.messages.create
        assert "No runs yet." in plain(operator.get("runs").body.decode())
        helper, other = letters.agent(name="Helper"), letters.agent(name="Other")
        send(helper.id, input="Hello.")
        upstream.queue(fail(400))
        with pytest.raises(APIError):
            send(other.id, input="Hello.")
        send(other.id, input="Hello.")
        items = operator.twin("runs")["items"]
        assert [(each["agent"], each["state"]) for each in items] == [
            (other.id, "completed"),
            (other.id, "failed"),
            (helper.id, "completed"),
        ]
        assert operator.twin("runs?only=failed") == {"items": items[1:2], "next": None}
        shown = plain(operator.get("runs?only=failed").body.decode())
        assert f"{items[1]['id']} Other {other.id} failed" in shown
        first = operator.twin("runs?limit=2")
        assert first["items"] == items[:2]
        assert operator.twin(f"runs?limit=2&after={first['next']}") == {"items": items[2:], "next": None}
        assert operator_of(letters.world, "default").twin("runs")["items"] == items
        assert operator_of(letters.world, "shop").twin("runs")["items"] == []
        assert operator.get("runs?only=slow").status == operator.get("runs?after=x").status == 400


def test_a_list_of_failed_runs_looks_through_a_bounded_number_of_runs(life: AgentWorld) -> None:
    operator = operator_of(life.world)
    life.upstream.queue(fail(400))
    failed = ids.make_id("run", life.send("Hello.").run.uid)
    for _ in range(3):
        life.send("Hello.")
    pages = RunOperations(life.world.store, walked_runs=2)
    first = life.world.gateway.call(pages.list_page(None, is_failed=True))
    assert first.items == ()
    assert first.next is not None
    second = life.world.gateway.call(pages.list_page(None, is_failed=True, after=first.next))
    assert [each.id for each in second.items] == [failed]
    last = life.world.gateway.call(pages.list_page(None, is_failed=True, after=second.next or "0"))
    assert (last.items, last.next) == ((), None)
    assert [each["id"] for each in operator.twin("runs?only=failed")["items"]] == [failed]
    # Of a list without a filter each run that is looked at is listed.
    whole = life.world.gateway.call(pages.list_page(None))
    assert (len(whole.items), whole.next) == (4, None)


def test_an_agent_has_its_name_on_each_screen(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Below its memory's page there was its id alone."""
    with letta(upstream, tmp_path) as letters:
        helper = letters.agent(name="<b>Café</b> helper")
        letters.letta.agents.messages.create(helper.id, input="Hello.")
        headers = {"x-mnemogate-agent": helper.id}
        assert letters.world.post([{"role": "user", "content": "I am Ann."}], headers).status == 200
        operator = operator_of(letters.world)
        (agent,) = operator.twin("people?kind=agent")["items"]
        memory = f"m/{agent['uid']}"
        (run,) = operator.twin(memory)["runs"]
        title = f"<title>&lt;b&gt;Café&lt;/b&gt; helper {helper.id} – Mnemogate</title>"
        assert title in operator.get(memory).body.decode()
        (request,) = operator.twin("requests")["items"]
        assert request["name"] == helper.id
        paths = (
            "facts",
            "conversations",
            "passages",
            "words?q=Ann",
            "search?q=Ann",
            "forget?all=1",
            "b/human",
        )
        world = letters.world
        enqueuing = world.gateway.call(world.store.agents.find_by_uid(agent["uid"]))
        assert enqueuing is not None
        world.gateway.call(world.store.jobs.enqueue("sweep", enqueuing.id, "a"))
        for path in (
            "work",
            *(f"{memory}/{each}" for each in paths),
            *(
                "",
                "requests",
                f"requests?memory={agent['uid']}",
                "audit",
                f"r/{request['id']}",
                f"runs/{run['id']}",
            ),
        ):
            assert f"<b>Café</b> helper ({helper.id})" in plain(operator.get(path).body.decode()), path


def test_a_run_of_another_project_is_not_found(life: AgentWorld) -> None:
    id = run_with_calls(life)
    assert operator_of(life.world, "shop").get(f"runs/{id}").status == 404
    operator = operator_of(life.world)
    assert operator.get("runs/run-none").status == 404
    assert operator.get(f"runs/{id}?after=x").status == 400


def test_a_run_that_failed_says_why(life: AgentWorld) -> None:
    operator = operator_of(life.world)
    life.upstream.queue(fail(400, "<b>No</b> model of this name."), Reply("A long", finish_reason="length"))
    refused, cut = (ids.make_id("run", life.send("Hello.").run.uid) for _ in range(2))
    shown = operator.get(f"runs/{refused}").body.decode()
    assert "It failed after 1 step: <b>No</b> model of this name." in plain(shown)
    assert plain(shown.split("<tbody>")[1].split("</tbody>")[0]).endswith(" none llm_api_error")
    reason = "The reply was cut off at the limit of its tokens."
    assert f"It failed after 1 step: {reason}" in plain(operator.get(f"runs/{cut}").body.decode())


def test_a_run_looks_right(life: AgentWorld, browser: Browser) -> None:
    operator: Operator = operator_of(life.world)
    id = run_with_calls(life)
    browser.check_screen(operator, f"runs/{id}", heading=f"Run {id}")
    browser.check_screen(operator, "runs", heading="Runs")
    uid = operator.twin("people?kind=agent")["items"][0]["uid"]
    browser.check_screen(operator, f"m/{uid}")
    with browser.open(operator, f"m/{uid}", width=320) as page:
        page.get_by_role("region", name="Runs", exact=True).get_by_role("link", name=id).click()
        page.get_by_role("table", name="Steps").get_by_text("memory_insert").nth(1).click()
        assert page.get_by_text("<b>Cat</b>").first.is_visible()
        assert "\u202e" not in page.content()
