"""Each route of the page, as the table of routes has it, asked by visitors that may not open it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.core import ids
from gateway.page.page_routes import list_routes
from gateway.page.screen import Action, Screen
from tests.agents.agent_world import serve_agent
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import learn, speak
from tests.gateway.page.operator import Operator, operator_of
from tests.gateway.page.person import person_of
from tests.gateway.page.test_door import check_headers
from tests.gateway.page.test_memory_screens import PROFILE
from tests.gateway.page.test_work import enqueue
from tests.server import RawReply

pytestmark = pytest.mark.agents

WORDS = "xylophone"
# What a change needs to be one, by the end of its path.
FIELDS: dict[str, dict[str, str]] = {
    "b/{label}": {"value": "changed", "version": "1"},
    "undo": {"version": "1"},
    "restore": {"version": "1", "to": "1"},
    "facts": {"text": "changed"},
    "correct": {"text": "changed"},
    "mute": {"muted": "true"},
    "always": {"always": "true"},
    "pause": {"paused": "true"},
    "keys": {"name": "stolen"},
}
# Screens that are no memory's own: they list what their operator may see, and that is nothing.
LISTS = ("", "people", "people/words", "requests", "audit", "work", "runs")


def paths_of(world: Any) -> dict[str, str]:
    """Returns what stands for each part of a path."""
    operator = operator_of(world)
    agent = speak(world, f"My {WORDS} is old.", talk="conv-19")
    (seq,) = learn(world, agent, f"Alice has a {WORDS}.")
    request = operator.twin("requests")["items"][0]["id"]
    job = enqueue(operator, "a", "alice", error="failed")
    talk = operator.twin(f"m/{agent.uid}/conversations")["items"][0]["id"]
    return {
        "uid": agent.uid,
        "label": "human",
        "seq": str(seq),
        "talk": talk,
        "request": request,
        "job": str(job),
    }


def url_of(route: Screen | Action, known: dict[str, str], run: str, token: str = "") -> str:
    """Returns the path of a route below /ui/, with a query where it needs one."""
    ids_by_place = {
        "c": known["talk"],
        "r": known["request"],
        "runs": run,
        "jobs": known["job"],
        "keys": "1",
        "batches": "b",
    }
    parts = []
    for part in route.path.split("/"):
        name = re.sub(r"[{}]|:int", "", part)
        if not part.startswith("{"):
            parts.append(part)
        elif name == "id":
            parts.append(ids_by_place[parts[-1]])
        else:
            parts.append({**known, "token": token}[name])
    return "/".join(parts) + ("?all=1" if route.path.endswith("/forget") else "")


def twin(path: str) -> str:
    base, mark, query = path.partition("?")
    return f"{base or 'overview'}.json{mark}{query}"


def test_no_route_is_open_to_those_who_may_not(upstream: StrictUpstream, tmp_path: Any) -> None:
    with serve_agent(upstream, tmp_path, profiles=[PROFILE]) as life:
        world = life.world
        run = ids.make_id("run", life.send(f"The {WORDS}.").run.uid)
        known = paths_of(world)
        routes = list_routes(world.gateway.app.services.page)
        shop, reader = operator_of(world, "shop"), operator_of(world, is_read=True)
        before = state_of(world)
        for route in routes:
            if route.is_for_person:
                continue
            path = url_of(route, known, run)
            if isinstance(route, Screen):
                for reply in asked(shop, path, has_twin=route.has_twin):
                    check_headers(reply)
                    allowed = (200,) if route.path in LISTS else (404, 403)
                    assert reply.status in allowed, (path, reply.status)
                    assert WORDS.encode() not in reply.body, path
                    assert known["uid"].encode() not in reply.body, path
                for reply in asked(reader, path, has_twin=route.has_twin):
                    assert reply.status == (403 if route.path == "keys" else 200), (path, reply.status)
                    text = reply.body.decode()
                    own = re.findall(r'<form method="post" action="([^"]*)"', text)
                    assert {each.removeprefix("../").rsplit("/", 1)[-1] for each in own} <= {
                        "logout",
                        "theme",
                    }, path
            else:
                fields = next((v for k, v in FIELDS.items() if route.path.endswith(k)), {})
                for operator, allowed in ((shop, (404, 403)), (reader, (403,))):
                    for reply in sent(operator, path, fields):
                        check_headers(reply)
                        assert reply.status in allowed, (path, reply.status)
        assert state_of(world) == before


def test_no_route_of_a_person_is_open_without_the_link(upstream: StrictUpstream, tmp_path: Any) -> None:
    with serve_agent(upstream, tmp_path, profiles=[PROFILE]) as life:
        world = life.world
        known = paths_of(world)
        routes = [r for r in list_routes(world.gateway.app.services.page) if r.is_for_person]
        person = person_of(world, ttl_s=60)
        nothing = person_of(world, rights=[])
        before = state_of(world)
        for link, statuses in ((nothing, (403,)), (person, (404,))):
            if link is person:
                world.clock.sleep(61)
            token = link.path.partition("/")[2]
            for route in routes:
                below = url_of(route, known, "", token).removeprefix(f"me/{token}")
                fields = next((v for k, v in FIELDS.items() if route.path.endswith(k)), {})
                if isinstance(route, Screen):
                    replies = [link.ask("GET", below)]
                    if route.has_twin:
                        base, mark, query = below.partition("?")
                        replies.append(link.ask("GET", f"{base}.json{mark}{query}"))
                else:
                    replies = [link.send(below.removeprefix("/"), **fields)]
                for reply in replies:
                    check_headers(reply)
                    assert reply.status in statuses, (below, reply.status)
                    assert WORDS.encode() not in reply.body
        assert state_of(world) == before


def asked(operator: Operator, path: str, *, has_twin: bool) -> list[RawReply]:
    """Asks for a page with the session, and for its twin with the key."""
    found = [operator.get(path)]
    if has_twin:
        found.append(operator.program("GET", twin(path)))
        found.append(operator.get(twin(path)))
    return found


def sent(operator: Operator, path: str, fields: dict[str, str]) -> list[RawReply]:
    """Changes by a form with the session, and by JSON with the key and with the session."""
    value: dict[str, Any] = {
        k: int(v) if v.isdigit() else v == "true" if v == "true" else v for k, v in fields.items()
    }
    own = {"cookie": operator.cookie, "origin": f"http://{operator.host}", "content-type": "application/json"}
    return [
        operator.post(path, **fields),
        operator.program("POST", twin(path), value),
        operator.ask("POST", twin(path), json.dumps(value).encode(), own),
    ]


def state_of(world: Any) -> list[Any]:
    """Returns what a change would change."""
    return [
        world.query("SELECT count(*) FROM block_history"),
        world.query("SELECT seq, text FROM facts ORDER BY seq"),
        world.query("SELECT count(*) FROM facts_muted"),
        world.query("SELECT count(*) FROM facts_ended"),
        world.query("SELECT id, revoked FROM keys ORDER BY id"),
        world.query("SELECT id, state FROM jobs ORDER BY id"),
        world.query("SELECT id, paused FROM agents ORDER BY id"),
    ]
