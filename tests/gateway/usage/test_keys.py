"""Keys over REST: made, bounded, rotated and revoked while requests come."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.json_limits import MAX_VALUES
from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.access.key_operations import KeyOperations
from gateway.run.admin.access.key_records import KeyRecords
from gateway.settings import ModelSettings
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import World, agent, remember
from tests.gateway.upstream.forms import FORM, form
from tests.patience import becomes
from tests.rows import each_row
from tests.server import RawReply, chat_upstreams

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
MODELS = (ModelSettings("m", "m", "up"), ModelSettings("small", "small", "up"))
ASK = [{"role": "user", "content": "Hi"}]
OWNER = {"x-mnemogate-admin": "the-owner"}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    upstream.script = lambda request: say("Hello.", usage=USAGE)
    with remember(upstream, tmp_path, models=MODELS, admin_token="the-owner") as made:
        yield made


def manage(world: World, method: str, path: str, body: Any = None, headers: Any = OWNER) -> RawReply:
    data = None if body is None else json.dumps(body).encode()
    return world.gateway.ask(method, f"/v1/manage/{path}", data, headers)


def make(world: World, **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Makes a key. Returns it, and the header that presents it."""
    reply = manage(world, "POST", "keys", fields)
    assert reply.status == 201, reply.body
    made = reply.json
    return made, {"authorization": f"Bearer {made.pop('secret')}"}


def ask(world: World, bearer: dict[str, str], method: str, path: str, **body: Any) -> RawReply:
    """Sends JSON with a key. path: below /v1/."""
    headers = {**bearer, "content-type": "application/json"}
    return world.gateway.ask(method, f"/v1/{path}", json.dumps(body).encode(), headers)


@pytest.mark.both
def test_a_key_is_made_and_shown_without_its_secret(world: World) -> None:
    made, bearer = make(world, name="prod", models=["small*"], memory="off")
    assert made == {
        "id": made["id"], "object": "key", "name": "prod", "project": "default", "prefix": made["prefix"],
        "memory": "off", "models": ["small*"], "user": None, "opens": None, "created_at": made["created_at"],
        "expires_at": None, "revoked_at": None, "rotated_until": None,
    }  # fmt: skip
    assert manage(world, "GET", f"keys/{made['id']}").json == made
    assert {type(each) for each in (made["id"], made["created_at"])} == {int}
    listed = manage(world, "GET", "keys")
    assert listed.json["data"] == [made]
    assert bearer["authorization"].removeprefix("Bearer ").encode() not in listed.body


@each_row(
    ("fields", "param"),
    [
        ({"colour": 1}, "colour"),
        ({"name": ""}, "name"),
        ({"memory": "strict"}, "memory"),
        ({"models": "m"}, "models"),
        ({"user": 3}, "user"),
        ({"user": " "}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": 1_790_000_000_000}, "expires_at"),  # in milliseconds
        ({"expires_at": -1}, "expires_at"),
        ({"expires_at": 1_000}, "expires_at"),  # it has passed
        ({"opens": "all"}, "opens"),
        ({"limits": [{"unit": "words", "most": 1}]}, "unit"),
        ({"limits": [{"unit": "requests", "per": "day", "most": 1, "user": 3}]}, "user"),
        ({"limits": [{"unit": "requests", "per": "day", "most": 1, "project": "other"}]}, "project"),
        ({"limits": [{"unit": "requests", "per": "day", "most": 1, "key": 7}]}, "key"),
        ({"limits": [{"unit": "requests", "per": "day", "most": 1}], "opens": "metrics"}, "limits"),
        ({"limits": [{"unit": "requests", "per": "day", "most": 1}], "opens": "operator"}, "limits"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_made(world: World, fields: Any, param: str) -> None:
    reply = manage(world, "POST", "keys", fields)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert manage(world, "GET", "keys").json["data"] == []


def test_a_name_of_the_settings_keys_is_neither_given_nor_taken(world: World) -> None:
    """By it the next key of the settings takes the place of the one before."""
    world.gateway.call(world.store.keys.install("mg-" + "0123456789abcdef" * 2, "server.key"))
    (theirs,) = manage(world, "GET", "keys").json["data"]
    other, _ = make(world, name="prod")
    for method, path, name in (
        ("POST", "keys", "server.operator_key"),
        ("PATCH", f"keys/{other['id']}", "server.key"),
        ("PATCH", f"keys/{theirs['id']}", "prod"),
    ):
        reply = manage(world, method, path, {"name": name})
        assert (reply.status, reply.error["param"]) == (400, "name"), reply.body
    changed = manage(world, "PATCH", f"keys/{theirs['id']}", {"name": "server.key", "memory": "off"})
    assert (changed.status, changed.json["memory"]) == (200, "off")
    with pytest.raises(BadRequest, match="in the settings"):
        world.gateway.call(KeyOperations(world.store.keys).create({"name": "server.key"}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"models": "small,,large"}, "models"), ({"memory": "strict"}, "memory"), ({"user": " "}, "user")],
)
def test_the_command_line_makes_no_key_that_operators_could_not(
    world: World, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        world.gateway.call(KeyOperations(world.store.keys).create({"name": "prod", **fields}))
    assert caught.value.param == param
    assert manage(world, "GET", "keys").json["data"] == []


def test_a_body_that_cannot_be_read_makes_no_key(world: World) -> None:
    many = b'{"name":"prod","x":[%b0]}' % (b"0," * MAX_VALUES)
    for body, status in ((b"{", 400), (b"[]", 400), (many, 413)):
        assert world.gateway.ask("POST", "/v1/manage/keys", body, OWNER).status == status


def test_a_key_asks_for_its_models_alone(world: World) -> None:
    made, bearer = make(world, models=["sma*"])
    assert world.post(ASK, bearer, model="small").status == 200
    reply = world.post(ASK, bearer)
    assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")
    listed = world.gateway.ask("GET", "/v1/models", headers=bearer).json["data"]
    assert [each["id"] for each in listed] == ["small"]
    # As Letta's clients list them.
    listed = world.gateway.ask("GET", "/v1/models/", headers=bearer).json
    assert [each["handle"] for each in listed] == ["small"]
    shown = world.gateway.ask("GET", "/v1/models/m", headers=bearer)
    assert (shown.status, shown.error["code"]) == (403, "model_not_allowed")
    assert world.gateway.ask("GET", "/v1/models/small", headers=bearer).status == 200
    assert manage(world, "PATCH", f"keys/{made['id']}", {"models": None}).json["models"] is None
    assert world.post(ASK, bearer).status == 200


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("embeddings", b'{"input": "Hi"}', {}),
        ("embeddings", b'{"model": ["m"], "input": "Hi"}', {}),
        ("embeddings", b'{"model": "m", "input": "Hi"}', {"content-type": "text/plain"}),
        ("embeddings", gzip.compress(b'{"model": "m", "input": "Hi"}'), {"content-encoding": "gzip"}),
        ("moderations?a=b", b'{"input": "Hi"}', {}),
        ("videos/video_1/remix", b'{"prompt": "A dog"}', {}),
        ("responses", b'{"prompt": {"id": "pmpt_1"}}', {}),
        ("batches", b'{"input_file_id": "file-1", "endpoint": "/v1/embeddings"}', {}),
    ],
    ids=["none", "list", "text", "compressed", "query", "remix", "prompt", "batch"],
)
def test_a_key_of_some_models_names_one(
    upstream: StrictUpstream, tmp_path: Path, path: str, body: bytes, headers: dict[str, str]
) -> None:
    with remember(upstream, tmp_path, admin_token="the-owner") as world:
        _, bearer = make(world, models=["sma*"])
        reply = world.gateway.ask("POST", f"/v1/{path}", body, {**bearer, **headers})
        assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")
        assert upstream.requests == []
        assert world.gateway.ask("GET", "/v1/batches", headers=bearer).status == 200


@pytest.mark.parametrize("opens", ["metrics", "operator", "operator-read"])
@each_row("field", [{"user": "alice"}, {"models": ["small"]}, {"memory": "off"}])
def test_a_key_without_replies_is_given_nothing_that_bounds_them(
    world: World, opens: str, field: dict[str, Any]
) -> None:
    made, _ = make(world, opens=opens)
    for method, path in (("POST", "keys"), ("PATCH", f"keys/{made['id']}")):
        fields = {"opens": opens, **field} if method == "POST" else field
        reply = manage(world, method, path, fields)
        assert (reply.status, [reply.error["param"]]) == (400, [*field]), reply.body
    assert manage(world, "GET", f"keys/{made['id']}").json == made


def test_a_key_of_a_user_is_for_no_other(world: World) -> None:
    made, bearer = make(world, user=" alice ")
    assert made["user"] == "alice"
    world.post([{"role": "user", "content": "My cat is called Miso."}], bearer)
    assert world.post(ASK, bearer, user="alice").status == 200
    for name, headers in (("user", {}), ("", {"x-mnemogate-user": "bob"})):
        reply = world.post(ASK, {**bearer, **headers}, **({name: "bob"} if name else {}))
        assert (reply.status, reply.error["code"]) == (403, "user_not_allowed")
    assert world.query("SELECT DISTINCT subject FROM agents") == ["user:alice"]
    body = json.dumps({"model": "m", "input": "Hi", "user": "bob"}).encode()
    assert world.gateway.ask("POST", "/v1/embeddings", body, bearer).status == 403
    assert world.gateway.ask("GET", "/v1/agents/", headers=bearer).status == 403


@each_row(
    "named",
    [
        '{"device_id": "d1", "account_uuid": "a1", "session_id": "s1"}',
        '{"device_id": "d1", "account_uuid": "", "session_id": "s1"}',
        "user_d1_account__session_s1",
    ],
)
def test_a_key_of_a_user_takes_what_claude_code_calls_itself(world: World, named: str) -> None:
    """It names its device or account, which nobody can change and which is no other person."""
    _, bearer = make(world, user="alice")

    def ask(user: str, path: str = "/v1/messages", **headers: str) -> int:
        body = {"model": "m", "max_tokens": 9, "messages": ASK, "metadata": {"user_id": user}}
        return world.gateway.ask("POST", path, json.dumps(body).encode(), {**bearer, **headers}).status

    assert ask(named) == 200
    assert ask(named, "/v1/messages/count_tokens") == 200
    assert ask(named, **{"x-mnemogate-memory": "off"}) == 200
    assert ask(named, **{"x-mnemogate-user": "bob"}) == 403
    assert ask("bob") == 403
    assert world.query("SELECT DISTINCT subject FROM agents") == ["user:alice"]


@pytest.mark.both
def test_a_key_of_a_user_reaches_this_users_responses(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, upstreams=chat_upstreams(upstream), admin_token="the-owner") as world:
        _, alice = make(world, user="alice")
        _, bob = make(world, user="bob")
        body = json.dumps({"model": "m", "input": "My cat is called Miso."}).encode()
        made = f"/v1/responses/{world.gateway.ask('POST', '/v1/responses', body, alice).json['id']}"
        assert "Miso" in str(world.gateway.ask("GET", f"{made}/input_items", headers=alice).json["data"])
        refused = world.gateway.ask("POST", f"{made}/cancel", b"", alice)
        assert (refused.status, refused.error["message"]) == (400, "Cannot cancel a synchronous response.")
        assert refused.error["param"] == "response_id"
        assert world.gateway.ask("GET", f"{made}/input_items", headers=bob).status == 404
        assert world.gateway.ask("POST", f"{made}/cancel", b"", bob).status == 404
        assert world.gateway.ask("GET", f"{made}/other", headers=alice).status == 403


@pytest.mark.both
def test_an_expiry_in_whole_seconds_stays_one(world: World) -> None:
    made, _ = make(world, expires_at=2_000_000_000)
    manage(world, "PATCH", f"keys/{made['id']}", {"name": "other"})
    for path in ("keys", f"keys/{made['id']}"):
        assert b'"expires_at":2000000000,' in manage(world, "GET", path).body
    manage(world, "PATCH", f"keys/{made['id']}", {"expires_at": 2_000_000_000.5})
    assert manage(world, "GET", f"keys/{made['id']}").json["expires_at"] == 2_000_000_000.5


def test_a_key_ends_when_it_expires(world: World) -> None:
    made, bearer = make(world, expires_at=world.clock.now + 100)
    assert world.post(ASK, bearer).status == 200
    world.clock.sleep(101)
    reply = world.post(ASK, bearer)
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert "expired" in reply.error["message"]
    rotated = manage(world, "POST", f"keys/{made['id']}/rotate", {})
    assert (rotated.status, rotated.error["param"]) == (
        400,
        "expires_at",
    )  # another secret would open nothing
    manage(world, "PATCH", f"keys/{made['id']}", {"expires_at": None})
    assert world.post(ASK, bearer).status == 200


@pytest.mark.both
def test_a_rotated_key_has_two_secrets_for_a_time(world: World) -> None:
    made, first = make(world)
    path = f"keys/{made['id']}/rotate"
    secrets = [first]
    for _ in range(2):
        reply = manage(world, "POST", path, {"overlap_s": 100})
        assert reply.json["id"] == made["id"]
        secrets.append({"authorization": f"Bearer {reply.json['secret']}"})
    assert [world.post(ASK, each).status for each in secrets] == [401, 200, 200]
    world.clock.sleep(101)
    assert [world.post(ASK, each).status for each in secrets] == [401, 401, 200]
    assert manage(world, "POST", path, {"overlap_s": -1}).error["param"] == "overlap_s"
    manage(world, "POST", path, {"overlap_s": 0})
    assert world.post(ASK, secrets[-1]).status == 401


def test_an_expiry_ends_the_secret_before_a_rotation_too(world: World) -> None:
    made, first = make(world)
    manage(world, "POST", f"keys/{made['id']}/rotate", {})
    assert world.post(ASK, first).status == 200
    for expires in (0, 1):
        manage(world, "PATCH", f"keys/{made['id']}", {"expires_at": expires})
        assert world.post(ASK, first).status == 401, expires


@pytest.mark.both
def test_a_revoked_key_opens_nothing(world: World) -> None:
    made, bearer = make(world)
    assert world.post(ASK, bearer).status == 200
    gone = {"id": made["id"], "object": "key", "deleted": True}
    assert [manage(world, "DELETE", f"keys/{made['id']}").json for _ in range(2)] == [gone, gone]
    assert world.post(ASK, bearer).status == 401
    assert manage(world, "GET", f"keys/{made['id']}").json["revoked_at"] is not None
    assert manage(world, "DELETE", "keys/99").status == 404


def test_work_that_was_begun_with_a_key_goes_on_after_it_was_revoked(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """A stream with a hidden round to its end, and a response in the background, which the project's other keys see."""
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstreams = chat_upstreams(upstream, "up")
    with remember(upstream, tmp_path, agent(), upstreams=upstreams, admin_token="the-owner") as world:
        made, bearer = make(world)
        _, other = make(world)
        streamed, behind = Gate(), Gate()

        def answer(request: UpstreamRequest) -> Reply:
            if request.json.get("stream"):
                is_first = request.messages[-1]["role"] == "user"
                return (
                    call_tools(insert, text="One moment. ", hold_after={2: streamed})
                    if is_first
                    else say("two.")
                )
            return say("Made.", hold_before_headers=behind)

        upstream.script = answer
        asked = {"model": "agent/helper", "messages": ASK, "user": "alice", "stream": True}
        with world.gateway.connect() as client:
            client.request("POST", "/v1/chat/completions", json.dumps(asked).encode(), bearer)
            client.read_until(b"One")
            body: dict[str, Any] = {"model": "m", "input": "Hi", "user": "bob", "background": True}
            id = ask(world, bearer, "POST", "responses", **body).json["id"]
            upstream.request_gate(2).wait_sync()
            manage(world, "DELETE", f"keys/{made['id']}")
            assert world.post(ASK, bearer).status == 401
            streamed.open()
            assert b"two." in client.read_until(b"data: [DONE]")
        assert world.block("alice").value == ""  # not confirmed yet
        behind.open()
        becomes(lambda: ask(world, other, "GET", f"responses/{id}").json["status"] == "completed")
        assert ask(world, bearer, "GET", f"responses/{id}").status == 401
        assert world.query("SELECT count(*) FROM exchanges WHERE state = 'finished'") == [2]


def test_a_key_that_only_reads_changes_nothing(world: World) -> None:
    made, _ = make(world, limits=[{"unit": "requests", "per": "day", "most": 3}])
    _, reader = make(world, opens="operator-read")
    key, (limit,) = f"keys/{made['id']}", made["limits"]
    for path in ("keys", key, "limits", f"limits/{limit['id']}", "imports", "usage"):
        assert manage(world, "GET", path, headers=reader).status == 200
    each = {"unit": "tokens", "per": "day", "most": 3}
    for method, path, body in (
        ("POST", "keys", {"name": "other"}),
        ("PATCH", key, {"name": "other"}),
        ("POST", f"{key}/rotate", {}),
        ("DELETE", key, None),
        ("POST", "limits", each),
        ("PATCH", f"limits/{limit['id']}", {"most": 9}),
        ("DELETE", f"limits/{limit['id']}", None),
        ("POST", "imports?user=alice", {"role": "user", "content": "Hi"}),
        ("DELETE", "imports/import-1", None),
    ):
        reply = manage(world, method, path, body, reader)
        assert (reply.status, reply.error["type"]) == (403, "permission_error"), path
    assert manage(world, "GET", key).json == {name: made[name] for name in made if name != "limits"}
    assert [each["most"] for each in manage(world, "GET", "limits").json["data"]] == [3]
    assert manage(world, "GET", "imports").json["data"] == []


@pytest.mark.both
def test_a_key_named_like_the_number_of_a_revoked_one_stays(world: World) -> None:
    made, _ = make(world)
    _, other = make(world, name=str(made["id"]))
    records = KeyRecords(world.store.keys)
    assert world.gateway.call(records.revoke(made["id"])).revoked is not None
    with pytest.raises(UnknownId):
        world.gateway.call(records.revoke(made["id"]))
    assert manage(world, "DELETE", f"keys/{made['id']}").status == 200
    assert world.post(ASK, other).status == 200


@pytest.mark.both
def test_a_holder_sees_its_own_limits_and_use(world: World) -> None:
    each = {"unit": "requests", "per": "day", "most": 3}
    made, bearer = make(world, limits=[each])
    _, other = make(world)
    world.post(ASK, bearer, user="alice")
    world.post(ASK, other, user="alice")
    world.settle()
    world.gateway.call(world.gateway.app.services.accounting.meter.write())
    mine = manage(world, "GET", "me", headers=bearer).json
    assert mine["id"] == made["id"]
    (held,) = mine["limits"]
    assert (held["unit"], held["most"], held["used"], held["remaining"]) == ("requests", 3, 1, 2)
    assert (mine["usage"]["today"]["requests"], mine["usage"]["month"]["input_tokens"]) == (1, 10)
    assert manage(world, "GET", "me?user=bob", headers=bearer).json["usage"]["today"]["requests"] == 0
    misspelt = manage(world, "GET", "me?usr=bob", headers=bearer)
    assert (misspelt.status, misspelt.error["param"]) == (400, "usr")
    assert manage(world, "GET", "keys", headers=bearer).status == 403
    missing = manage(world, "GET", "me", headers={})
    assert missing.status == 401
    assert "/v1/manage/me takes any" in missing.error["message"]


@pytest.mark.both
@pytest.mark.parametrize("kind", ["keys", "limits", "imports"])
def test_lists_come_in_pages(world: World, kind: str) -> None:
    limit = {"unit": "requests", "per": "day", "most": 1}
    for n in range(3):
        if kind == "imports":
            text = f"- Fact number {n}".encode()
            world.gateway.ask("POST", "/v1/manage/imports?user=alice&format=list", text, OWNER)
        else:
            manage(world, "POST", kind, {"name": str(n)} if kind == "keys" else {**limit, "most": n})
    first = manage(world, "GET", f"{kind}?limit=2").json
    assert (first["has_more"], len(first["data"])) == (True, 2)
    rest = manage(world, "GET", f"{kind}?limit=2&after={first['next']}").json
    assert (rest["has_more"], rest["next"]) == (False, None)
    # An import may go on meanwhile.
    in_pages = [each["id"] for each in (*first["data"], *rest["data"])]
    assert in_pages == [each["id"] for each in manage(world, "GET", kind).json["data"]]
    assert len({*in_pages}) == 3
    for query, param in (
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("after=x", "after"),
        ("order=asc", "order"),
    ):
        refused = manage(world, "GET", f"{kind}?{query}")
        assert (refused.status, refused.error["param"]) == (400, param)


def test_an_operator_of_one_project_makes_no_key_for_the_metrics_of_all(world: World) -> None:
    """Once there is one, /metrics is closed to the keys of others."""
    _, plain = world.gateway.call(world.store.keys.create("shop", "ops", None, "operator"))
    bearer = {"authorization": f"Bearer {plain}"}
    for opens, status in (("metrics", 403), ("operator", 201), (None, 201)):
        assert ask(world, bearer, "POST", "manage/keys", opens=opens).status == status


def test_a_key_of_some_models_makes_no_agent_of_another(world: World) -> None:
    """Its sleeptime agents and summaries would ask for that model behind the key's back."""
    _, bearer = make(world, models=["sma*"])
    made = ask(world, bearer, "POST", "agents/", model="small", enable_sleeptime=True)
    assert made.status == 200, made.body
    agent = made.json["id"]
    for method, path, body in (
        ("POST", "", {"model": "m"}),
        ("POST", "", {"llm_config": {"handle": "m"}}),
        ("PATCH", agent, {"model": "m"}),
        ("PATCH", agent, {"compaction_settings": {"model": "m"}}),
        ("POST", f"{agent}/summarize", {"compaction_settings": {"model": "m"}}),
    ):
        reply = ask(world, bearer, method, f"agents/{path}", **body)
        assert (reply.status, b"may not ask for the model 'm'" in reply.body) == (403, True), (
            path,
            body,
            reply.body,
        )
    fields = {"description": "Works.", "compaction_settings": {"model": "small"}}
    assert ask(world, bearer, "PATCH", f"agents/{agent}", **fields).status == 200
    _, owner = make(world)
    other = ask(world, owner, "POST", "agents/", model="m").json["id"]
    reply = ask(world, bearer, "POST", f"agents/{other}/summarize")
    assert b"may not ask for the model 'm'" in reply.body


def test_a_key_of_some_models_makes_an_agent_that_names_the_upstream_too(world: World) -> None:
    """As Letta's clients name models; a send asks for the model by its own name."""
    _, bearer = make(world, models=["sma*"])
    made = ask(world, bearer, "POST", "agents/", model="up/small")
    assert made.status == 200, made.body
    path = f"agents/{made.json['id']}"
    assert ask(world, bearer, "POST", f"{path}/messages", input="Hi").status == 200
    refused = ask(world, bearer, "PATCH", path, model="up/m")
    assert (refused.status, b"may not ask for the model 'm'" in refused.body) == (403, True)


def test_a_key_of_some_models_makes_no_conversation_with_another(world: World) -> None:
    _, owner = make(world)
    _, bearer = make(world, models=["sma*"])
    agent = ask(world, bearer, "POST", "agents/", model="up/small").json["id"]
    conversations = f"conversations/?agent_id={agent}"
    made = ask(world, bearer, "POST", conversations, model="up/small")
    assert made.status == 200, made.body
    one = f"conversations/{made.json['id']}"
    # As `from-letta` writes conversations.
    file = ask(world, owner, "GET", f"agents/{agent}/export").json
    extension = json.loads(file["metadata"]["mnemogate"])
    (own,) = extension["agents"].values()
    own["conversations"] = [{"id": f"conv-{32 * 'c'}", "model": "up/m"}]
    file["metadata"]["mnemogate"] = json.dumps(extension)
    body = form(("*file", json.dumps(file).encode()))
    refused = [
        ask(world, bearer, "POST", conversations, model="up/m"),
        ask(world, bearer, "PATCH", one, model="up/m"),
        world.gateway.ask("POST", "/v1/agents/import", body, {**bearer, **FORM}),
    ]
    for reply in refused:
        assert (reply.status, b"may not ask for the model 'm'" in reply.body) == (403, True)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("tool", ["send_message_to_agent_and_wait_for_reply", "send_message_to_agent_async"])
def test_a_key_of_some_models_asks_for_no_other_by_way_of_an_agent(
    world: World, tool: str, background: bool
) -> None:
    def post(bearer: dict[str, str], path: str, **body: Any) -> Any:
        reply = ask(world, bearer, "POST", f"agents/{path}", **body)
        assert reply.status == 200, reply.body
        return reply.json

    _, owner = make(world)
    large = post(owner, "", model="m", name="large")["id"]
    small = post(owner, "", model="small", tools=[tool])["id"]
    _, bearer = make(world, models=["sma*"])
    world.upstream.script = None
    message = Call(tool, {"message": "Hi", "other_agent_id": large})
    world.upstream.queue(call_tools(message), say("Done."))
    post(bearer, f"{small}/messages", input="Ask.", background=background)
    assert "may ask neither for 'agent/large' nor for 'm'" in str(world.upstream.last.messages[-1]["content"])
    assert [request.json["model"] for request in world.upstream.chats] == ["small", "small"]
    _, bearer = make(world, models=["sma*", "agent/large"])
    world.upstream.queue(call_tools(message), *[say("Done.")] * 2)
    post(bearer, f"{small}/messages", input="Ask.", background=background)
    becomes(lambda: "m" in [request.json["model"] for request in world.upstream.chats])


@pytest.mark.both(path=["responses"])
@pytest.mark.parametrize("path", ["responses", "agents"])
def test_background_work_of_a_key_counts_towards_its_limit(
    upstream: StrictUpstream, tmp_path: Path, path: str
) -> None:
    upstreams = chat_upstreams(upstream, "up")
    usage = {"prompt_tokens": 90, "completion_tokens": 20, "total_tokens": 110}
    upstream.script = lambda request: say("Hello.", usage=usage)
    with remember(upstream, tmp_path, upstreams=upstreams, models=MODELS, admin_token="the-owner") as world:
        made, bearer = make(world, limits=[{"unit": "tokens", "per": "day", "most": 100}])
        body: dict[str, Any] = {"model": "m", "input": "Hi", "user": "alice", "background": True}
        if path == "agents":
            agent = ask(world, bearer, "POST", "agents", model="m").json["id"]
            path, body = f"agents/{agent}/messages", {"input": "Hi", "background": True, "streaming": False}
        assert ask(world, bearer, "POST", path, **body).status == 200

        def used() -> tuple[int, int]:
            rows = manage(world, "GET", f"usage?by=key&key={made['id']}").json["data"]
            return rows[0]["input_tokens"], rows[0]["output_tokens"]

        becomes(lambda: used() == (90, 20))
        assert ask(world, bearer, "POST", "chat/completions", model="m", messages=ASK).status == 429


@pytest.mark.both
@pytest.mark.parametrize("kind", ["keys", "limits"])
def test_neither_of_two_changes_at_once_takes_back_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    body = {"name": "app"} if kind == "keys" else {"unit": "requests", "per": "day", "most": 5}
    first, second = (
        ({"models": ["small"]}, {"name": "other"}) if kind == "keys" else ({"most": 1}, {"then": "m"})
    )
    id = manage(world, "POST", kind, body).json["id"]
    group = world.store.keys if kind == "keys" else world.store.limits
    world.gateway.call(world.gateway.app.services.accounting.limiter.limits.load())
    read, reads, goes_on = group.list, Gate(), Gate()

    async def held() -> Any:
        found = await read()
        if not reads.is_open:
            reads.open()
            await goes_on.wait()
        return found

    monkeypatch.setattr(group, "list", held)
    with world.gateway.connect() as client:
        client.request("PATCH", f"/v1/manage/{kind}/{id}", json.dumps(first).encode(), OWNER)
        reads.wait_sync()
        assert manage(world, "PATCH", f"{kind}/{id}", second).status == 200
        goes_on.open()
        assert client.read_reply().status == 200
    found = manage(world, "GET", f"{kind}/{id}").json
    assert {name: found[name] for name in (*first, *second)} == {**first, **second}
