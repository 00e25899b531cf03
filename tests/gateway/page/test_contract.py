"""The twins of all screens have the fields that are promised, by name, and their errors one form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import learn, speak
from tests.gateway.page.operator import Operator, operator_of
from tests.gateway.page.test_memory_screens import PROFILE
from tests.gateway.sdk import remember

MEMORY = "uid kind name project profile created last_turn conversations messages bytes blocks facts paused"
SOURCE = "kind seq text at forgotten href"
FACT = "seq text about since learned_at until successor muted origin sources"
BLOCK = "label description value version chars limit read_only shared changed_at origin waiting"
VERSION = "version at origin restores chars value sources"
MESSAGE = "seq exchange role speaker at text state images rounds note request"
HIT = f"{SOURCE} rank score words meaning tokens"
CONVERSATION = "id client_id begun last_turn messages bytes"
REQUEST = "id at memory name mode model status streamed ms added_ms recalled recalled_tokens upstream"
EXPLAINED = (
    "id at memory name conversation exchange model upstream tries status streamed mode why sentence found "
    "recalled_tokens selection chosen left_out before_reply note window added_ms first_ms ms usage kept_until"
)
GOES = "messages facts passages versions summaries notes"


def same(value: Any, names: str) -> None:
    assert sorted(value) == sorted(names.split())


def test_twins_have_the_fields_that_are_promised(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        agent = speak(operator.world, "My train to Lyon leaves on 4 May.", "My cat is Miso.", talk="conv-19")
        *_, seq = learn(operator.world, agent, "Alice has a cat.", "Alice takes a train.", block="Cat: Miso.")
        speak(operator.world, "When does my train to Lyon leave?", talk="conv-20")
        memory = f"m/{agent.uid}"
        check_memory(operator, memory, seq)
        check_work(operator, agent.uid)
        check_errors(operator, memory)


def check_memory(operator: Operator, memory: str, seq: int) -> None:
    people = operator.twin("people")
    same(people, "items next")
    same(people["items"][0], MEMORY)
    found = operator.twin(memory)
    same(found, "memory blocks facts conversations passages")
    for name, fields in (("blocks", BLOCK), ("facts", FACT), ("conversations", CONVERSATION)):
        same(found[name][0], fields)
    same(found["facts"][0]["sources"][0], SOURCE)
    for name in ("facts", "conversations", "passages"):
        same(operator.twin(f"{memory}/{name}"), "items next")
    fact = operator.twin(f"{memory}/f/{seq}")
    same(fact, "fact before after")
    block = operator.twin(f"{memory}/b/human")
    same(block, "block versions next diff")
    same(block["versions"][0], VERSION)
    same(block["diff"], "from to parts")
    same(block["diff"]["parts"][0], "op text")
    talk = operator.twin(f"{memory}/c/{found['conversations'][0]['id']}")
    same(talk, "conversation branches branch items next")
    same(talk["conversation"], CONVERSATION)
    same(talk["branches"][0], "id messages last_turn current")
    same(talk["items"][0], MESSAGE)
    search = operator.twin(f"{memory}/search?q=When+does+my+train+leave%3F")
    same(search, "query note chosen left_out found next")
    same(search["chosen"][0], HIT)
    same(search["left_out"][0], f"{HIT} reason")
    preview = operator.twin(f"{memory}/forget?fact={seq}")
    same(preview, "target will_go stays confirm command more_facts replies_without_note")
    assert preview["more_facts"] == 0
    same(preview["target"], "kind id text")
    same(preview["will_go"], GOES)
    assert preview["confirm"] is None
    assert operator.twin(f"{memory}/forget?all=1")["confirm"] == str(found["memory"]["messages"])


def check_work(operator: Operator, uid: str) -> None:
    requests = operator.twin("requests")
    assert {"items", "next", "in_flight"} <= requests.keys()
    same(requests["items"][0], REQUEST)
    explained = operator.twin(f"r/{requests['items'][0]['id']}")
    same(explained, EXPLAINED)
    same(explained["chosen"][0], HIT)
    same(explained["window"], "parts context evicted")
    parts = [each["part"] for each in explained["window"]["parts"]]
    assert parts == ["system", "tools", "section", "summary", "history", "note", "message"]
    overview = operator.twin("")
    same(overview, "state sentence problems version requests memory added_ms upstreams jobs replies people")
    same(overview["requests"], "in_flight last_hour failed")
    same(overview["memory"], "on read off none unavailable")
    same(overview["added_ms"], "p50 p99")
    same(overview["upstreams"][0], "name state")
    same(overview["jobs"], "waiting failed")
    assert (overview["state"], overview["sentence"]) == ("well", "All is well.")
    same(operator.twin(f"audit?memory={uid}")["items"][0], "at who action memory what")
    work = operator.twin("work")
    same(work, "jobs batches spent_today bound")
    same(operator.twin("keys")["items"][0], "id name project prefix kind memory created revoked")


def check_errors(operator: Operator, memory: str) -> None:
    """Pages and twins refuse the same, in their forms; what is another project's is not there."""
    other = operator_of(operator.world, "shop")
    for path, status, asks in (
        (f"{memory}/facts?after=soon", 400, operator),
        (f"{memory}/facts?limit=0", 400, operator),
        (f"{memory}/facts?limit=201", 400, operator),
        (f"{memory}/facts?colour=red", 400, operator),
        (f"{memory}/facts?as_of=yesterday", 400, operator),
        (f"{memory}/b/human?from=99", 400, operator),
        (f"{memory}/forget", 400, operator),
        (f"{memory}/forget?fact=1&all=1", 400, operator),
        ("people?kind=ghosts", 400, operator),
        ("people?after=1_x", 400, operator),
        ("people?after=nan_1", 400, operator),
        ("people?after=inf_1", 400, operator),
        ("requests?after=9", 400, operator),
        ("audit?after=-1", 400, operator),
        (f"{memory}/f/99999", 404, operator),
        (f"{memory}/b/none", 404, operator),
        (f"{memory}/c/none", 404, operator),
        ("m/none", 404, operator),
        (memory, 404, other),
        (f"{memory}/search?q=train", 404, other),
        (f"{memory}/export.jsonl", 404, other),
        (f"requests?memory={memory[2:]}", 404, other),
        ("keys", 403, other),
    ):
        page = asks.get(path)
        assert page.status == status, path
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.body.count(b"<h1") == 1
        if not path.endswith(".jsonl"):
            base, mark, query = path.partition("?")
            reply = asks.program("GET", f"{base}.json{mark}{query}")
            assert reply.status == status, path
            same(reply.json, "error")
            same(reply.json["error"], "message code param")
    assert other.program("GET", f"{memory}.json").json["error"]["message"] == "There is no such memory."


@pytest.mark.parametrize("is_page", [True, False])
def test_a_read_only_operator_changes_nothing_and_sees_no_button(operator: Operator, is_page: bool) -> None:
    agent = speak(operator.world, "My cat is Miso.")
    (seq,) = learn(operator.world, agent, "Alice has a cat.")
    reader = operator_of(operator.world, is_read=True)
    memory = f"m/{agent.uid}"
    changes = {
        f"{memory}/b/human": {"value": "x", "version": "1"},
        f"{memory}/b/human/undo": {"version": "1"},
        f"{memory}/facts": {"text": "x"},
        f"{memory}/f/{seq}/correct": {"text": "x"},
        f"{memory}/f/{seq}/mute": {"muted": "true"},
        f"{memory}/f/{seq}/always": {"always": "true"},
        f"{memory}/forget?fact={seq}": {},
        "keys": {"name": "x"},
        "jobs/1/retry": {},
    }
    for path, fields in changes.items():
        if is_page:
            assert reader.post(path, **fields).status == 403, path
        else:
            base, mark, query = path.partition("?")
            assert reader.program("POST", f"{base}.json{mark}{query}", fields).status == 403, path
    if is_page:
        for path in (memory, f"{memory}/facts", f"{memory}/b/human", f"{memory}/f/{seq}", "requests", "work"):
            text = reader.get(path).body.decode()
            for word in ("Add", "Save", "Undo", "Forget", "Do not mention", "Tell", "Retry"):
                assert f">{word}" not in text, (path, word)
