"""Requests that are made to break the page: paths, queries, headers, bodies that do not come, too many sessions."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from gateway.page.sessions import MAX_SESSIONS, Sessions
from gateway.run.admin.access.sign_in import Operator as SignedIn
from tests.gateway.page.memories import learn, speak
from tests.gateway.page.operator import FORM, Operator, operator_of
from tests.gateway.page.test_door import check_headers


@pytest.mark.both
def test_paths_lead_nowhere_else(operator: Operator) -> None:
    uid = speak(operator.world, "My cat is Miso.").uid
    for path in (
        "m/%2e%2e/keys",
        "m/..%2fkeys",
        "%2e%2e/v1/models",
        "..;/v1/models",
        "m//keys",
        f"m/{uid}/",
        f"m/{uid}%00",
        f"m/{uid}%00/conversations",
        f"m/{uid}/b/%2e%2e",
        f"m/{uid}/b/~2E~2E~2F~2E~2E",
        f"m/{uid}/b/{'a' * 4_000}",
        f"m/{uid}/c/%f0%28%8c%28",
        f"m/{uid}/f/999999999999999999999999",
        f"m/{uid}/f/{'9' * 5_000}",
        f"me/nobody/f/{'9' * 5_000}",
        f"m/{uid}/f/%31%30%30",
        f"m/{uid}/f/-1",
        "static/%2e%2e/page_app.py",
        "static/..%5cpage_app.py",
        "r/%0d%0aset-cookie:%20a=b",
        "runs/%00",
        "login.json",
        ".json",
        "keys.json.json",
    ):
        reply = operator.get(path)
        assert reply.status in (400, 404, 405), (path, reply.status)
        assert "set-cookie" not in reply.headers
        check_headers(reply)


def test_nothing_of_a_request_becomes_a_header(operator: Operator) -> None:
    """Labels, the page to go on to, where a form came from."""
    agent = speak(operator.world, "My cat is Miso.")
    uid, (seq,) = agent.uid, learn(operator.world, agent, "Alice has a cat.")
    for to in (
        "keys\r\nset-cookie: a=b",
        "//evil.example",
        "https://evil.example",
        "\\\\evil.example",
        "..//evil.example",
    ):
        reply = operator.send_form("login", {"key": operator.key, "next": to})
        assert (reply.status, reply.headers["location"]) == (303, "./"), to
    for referrer in (
        "http://evil.example/ui/keys",
        f"http://{operator.host}@evil.example/ui/keys",
        f"http://{operator.host}/ui//evil.example/",
        f"http://{operator.host}/ui/../v1/models",
        f"http://{operator.host}/ui/%2e%2e/v1/models",
        "http://[",
    ):
        form = {"cookie": operator.cookie, "referer": referrer}
        reply = operator.send_form(f"m/{uid}/f/{seq}/mute", {"muted": "true"}, **form)
        assert reply.status == 303
        assert reply.headers["location"] == f"../../../../m/{uid}/f/{seq}#mute-saved", referrer


@pytest.mark.both
def test_a_name_with_a_nul_is_not_the_name_without_it(operator: Operator) -> None:
    world = operator.world
    uid = speak(world, "My cat is Miso.").uid
    talk = operator.twin(f"m/{uid}/conversations")["items"][0]["id"]
    own = {"authorization": f"Bearer {operator.key}", "content-type": "application/json"}
    app = {
        **own,
        "authorization": f"Bearer {world.gateway.call(world.store.keys.create('default', 'app'))[1]}",
    }
    for method, path, body, headers in (
        ("GET", f"/ui/audit.json?memory={uid}%00", None, own),
        ("GET", "/ui/audit.json?user=alice%00", None, own),
        ("GET", "/ui/people.json?q=ali%00", None, own),
        ("GET", f"/ui/requests.json?memory={uid}%00", None, own),
        ("GET", f"/ui/m/{uid}/forget.json?conversation={talk}%00", None, own),
        ("GET", "/v1/manage/usage?user=alice%00", None, own),
        ("POST", "/v1/manage/keys", {"name": "laptop", "project": "default\0"}, own),
        ("POST", "/v1/memory/links", {"user": "alice", "profile": "default\0"}, app),
    ):
        raw = None if body is None else json.dumps(body).encode()
        reply = world.gateway.ask(method, path, raw, {"host": operator.host, **headers})
        assert reply.status == 400, (path, reply.body)
        assert b"contains U+0000" in reply.body, path


def test_a_path_in_a_referrer_is_followed_up_a_little_way_alone(operator: Operator) -> None:
    """Of hundreds of parts each would be compared with all screens, while replies wait."""
    for parts, led in ((1, "keys"), (3, "keys"), (300, "./")):
        form = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/keys{'/a' * parts}"}
        location = operator.send_form("theme", {"theme": "dark"}, **form).headers["location"]
        assert location == f"{led}#theme-dark", parts


def test_queries_and_forms_have_a_bound(operator: Operator) -> None:
    uid = speak(operator.world, "My cat is Miso.").uid
    many = "&".join(f"f{n}=1" for n in range(501))
    for query in (many, "q=a&q=b", "q=%ff", "limit=%D9%A1", "after=" + "9" * 5_000):
        assert operator.get(f"people?{query}").status == 400, query[:40]
    assert operator.get(f"m/{uid}/search?q={'cat+' * 10_000}").status in (200, 400, 414, 431)
    form = {"cookie": operator.cookie, "content-type": FORM, "origin": f"http://{operator.host}"}
    for body in (many.encode(), b"value=%ff&version=1", b"value=a&value=b&version=1", b"version=1"):
        assert operator.ask("POST", f"m/{uid}/b/human", body, form).status in (400, 404), body[:40]


def test_a_page_of_one_list_is_no_page_of_another(operator: Operator) -> None:
    """`after` and `before` are places in one's own list alone."""
    alice = speak(operator.world, "My cat is Miso.", "She is grey.", talk="a-1")
    speak(operator.world, "I am at the sea.", talk="a-2")
    bob = speak(operator.world, "The secret of Bob.", user="bob")
    talks = operator.twin(f"m/{alice.uid}/conversations")["items"]
    first, second = (each["id"] for each in talks)
    own = operator.twin(f"m/{alice.uid}/c/{first}")["items"][0]["seq"]
    for path in (f"c/{second}?before={own}", f"c/{second}?branch={own}", f"c/{second}?message={own}"):
        assert operator.get(f"m/{alice.uid}/{path}").status == 404, path
    foreign = operator.twin(f"m/{bob.uid}/conversations")["items"][0]["id"]
    assert operator.get(f"m/{alice.uid}/c/{foreign}").status == 404
    assert operator.get(f"m/{alice.uid}/forget?conversation={foreign}").status == 404
    for name in ("facts", "passages", "conversations"):
        for after in ("1", "999", "1760000000.0_999"):
            assert b"secret of Bob" not in operator.get(f"m/{alice.uid}/{name}?after={after}").body


def test_a_session_of_another_project_reaches_nothing_by_a_post(operator: Operator) -> None:
    agent = speak(operator.world, "My cat is Miso.")
    (seq,) = learn(operator.world, agent, "Alice has a cat.")
    other = operator_of(operator.world, "shop")
    memory = f"m/{agent.uid}"
    for path, fields in (
        (f"{memory}/b/human", {"value": "x", "version": "1"}),
        (f"{memory}/f/{seq}/correct", {"text": "x"}),
        (f"{memory}/f/{seq}/mute", {"muted": "true"}),
        (f"{memory}/f/{seq}/always", {"always": "true"}),
        (f"{memory}/forget?fact={seq}", {}),
        (f"{memory}/forget?all=1", {"confirm": "2"}),
    ):
        assert other.post(path, **fields).status == 404, path
    assert operator.twin(f"{memory}/f/{seq}")["fact"]["text"] == "Alice has a cat."


def test_bodies_that_do_not_come_keep_no_one_from_reading(operator: Operator) -> None:
    gateway = operator.world.gateway
    head = (
        f"POST /ui/keys HTTP/1.1\r\nhost: {operator.host}\r\norigin: http://{operator.host}\r\ncookie: "
        f"{operator.cookie}\r\ncontent-type: {FORM}\r\ncontent-length: 100\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(gateway.connect()).send(head.encode())
        assert operator.get("keys").status == 200


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_no_other_method_does_anything(operator: Operator, method: str) -> None:
    own = {"cookie": operator.cookie, "origin": f"http://{operator.host}"}
    for path in ("keys", "keys.json", "people", "login"):
        reply = operator.ask(method, path, None, own)
        assert reply.status in (400, 405), (method, path)
        assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_sessions_of_one_process_have_a_bound() -> None:
    sessions = Sessions(lambda: 0.0, 1_000.0, 1_000.0)
    operator = SignedIn("operator", None, may_write=True)
    first = sessions.begin(operator)
    tokens = [sessions.begin(operator) for _ in range(MAX_SESSIONS)]
    assert sessions.find(first) is None
    assert all(sessions.find(token) == operator for token in tokens)
