"""The overview, requests, why a reply said what it said, and the audit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.run.admin.audited_parts import AuditedVersion
from gateway.run.receipt import Receipt
from storage.errors import StoreFailed
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, say
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import HOSTILE, LONG_NAME, learn, memory_of, speak
from tests.gateway.page.operator import Operator, operate, operator_of, plain, remove_marks
from tests.gateway.page.person import person_of
from tests.gateway.page.test_memory_screens import PROFILE
from tests.gateway.page.test_sign_in import make_code
from tests.gateway.sdk import World, agent, remember


def full(operator: Operator) -> str:
    """Fills a memory. Returns the id of the last request."""
    world = operator.world
    alice = speak(world, "My train to Lyon leaves on 4 May at nine.", HOSTILE[0])
    learn(world, alice, "Alice has a cat called Miso.", HOSTILE[1])
    speak(world, "When does my train to Lyon leave?")
    found: str = operator.twin("requests")["items"][0]["id"]
    return found


def test_the_screens_look_right(browser: Browser, operator: Operator) -> None:
    browser.check_screen(operator, "", heading="Overview")
    speak(operator.world, "Hello.", user=LONG_NAME)
    id = full(operator)
    long = operator.twin("requests")["items"][-1]["id"]
    screens = {
        "": "Overview",
        "requests": "Requests",
        "requests?words=1": "Requests",
        "audit": "Audit",
        "audit?user=alice&action=read&since=2025-01-01&until=2030-01-01": "Audit",
        f"r/{id}": f"Request {id}",
        f"r/{long}": f"Request {long}",
    }
    for path, heading in screens.items():
        browser.check_screen(operator, path, heading=heading)
    memory = operator.twin(f"r/{id}")["memory"]
    agent = memory_of(operator.world)
    operator.world.gateway.call(operator.world.store.forgetting.pause(agent.id, operator.world.clock()))
    browser.check_screen(operator, f"requests?memory={memory}", heading="Requests")
    browser.check_screen(operator, f"m/{memory}/search?q=Lyon", heading="What would be recalled")


def test_names_of_any_length_can_be_tapped(browser: Browser, operator: Operator) -> None:
    """A name of one character stood next to "what they asked", and a long one wrapped close above it."""
    for name in ("7", "A name that takes a line of its own"):
        speak(operator.world, "Hello.", user=name)
    with browser.visit(operator, "requests") as (page, _):
        for width in (360, 1440):
            page.set_viewport_size({"width": width, "height": 640})
            assert browser.list_faults(page) == [], width


@pytest.mark.both
def test_the_overview_says_in_an_outage_that_people_are_unknown(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(operator.world, "Hello.")

    async def fail(project: str | None) -> None:
        raise StoreFailed("broken")

    monkeypatch.setattr(operator.world.store.jobs, "count_by_state", fail)
    shown = operator.get("").body.decode()
    assert "Unknown: the database could not be read." in shown
    assert "Nobody is remembered" not in shown
    assert operator.twin("")["people"] is None


def test_an_overview_whose_requests_were_forgotten_does_not_say_that_there_were_none(
    operator: Operator,
) -> None:
    assert "No requests yet." in operator.get("").body.decode()
    agent = speak(operator.world, "Hello.")
    operator.twin(f"m/{agent.uid}/forget?all=1", {"confirm": "2"})
    found = operator.twin("")
    assert (found["requests"]["last_hour"], found["replies"]) == (1, [])
    shown = operator.get("").body.decode()
    assert "None is left" in shown
    assert "No requests yet." not in shown


def test_after_a_restart_the_lists_say_where_earlier_requests_are(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The list of all requests said that there were none yet, also of what was asked the day before."""
    with remember(upstream, tmp_path, PROFILE) as world:
        uid = speak(world, "My cat is called Miso.").uid
        speak(world, "What is my cat called?")
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        for path in ("", "requests"):
            assert "Earlier ones that searched memory are listed" in operator.get(path).body.decode()
        assert (
            f'href="../requests?memory={uid}">Requests of this memory<'
            in operator.get(f"m/{uid}").body.decode()
        )
        assert "What is my cat called?" in operator.get(f"requests?memory={uid}").body.decode()


def test_a_request_says_why_and_only_to_its_project(operator: Operator) -> None:
    id = full(operator)
    found = operator.twin(f"r/{id}")
    assert found["sentence"]
    assert found["chosen"]
    assert found["note"]
    for hit in found["chosen"]:
        page, _, place = hit["href"].partition("#")
        reply = operator.get(page)
        assert reply.status == 200
        assert not place or f'id="{place}"'.encode() in reply.body
    other = operator_of(operator.world, "shop")
    assert other.get(f"r/{id}").status == 404
    assert other.twin("requests")["items"] == []
    assert other.twin("overview")["replies"] == []
    assert other.twin("audit")["items"] == []


def test_a_request_shows_its_words_and_who_said_what_was_recalled(operator: Operator) -> None:
    id = full(operator)
    text = operator.get(f"r/{id}").body.decode().partition("What the model was told")[0]
    turn = re.search(r"<dl>(.*?)</dl>", text, re.S)
    assert turn is not None
    assert [each in turn[1] for each in (">alice<", "When does my train to Lyon leave?", ">assistant<")] == [
        True
    ] * 3
    hits = [each for each in operator.twin(f"r/{id}")["chosen"] if each["kind"] == "message"]
    for hit in hits:
        assert f"message {hit['seq']}</a> <br>" in text
    assert ' · <span class="words" dir="auto" lang="">alice</span>' in text


def test_what_a_reply_repeats_can_be_corrected_without_scrolling(
    browser: Browser, upstream: StrictUpstream, operator: Operator
) -> None:
    """It stood after a screenful of numbers, and what can be done about it after another."""
    alice = speak(operator.world, "Hello.")
    facts = [f"Alice likes tea number {n} with milk, and drinks it each morning." for n in range(12)]
    *_, seq = learn(operator.world, alice, *facts, "Alice keeps her tea in the red tin.")
    upstream.queue(say("Alice keeps her tea in the red tin. " + "Tea is good. " * 40))
    speak(operator.world, "Where do I keep my tea, and which tea do I drink each morning with milk?")
    id = operator.twin("requests")["items"][0]["id"]
    with browser.open(operator, f"r/{id}") as page:
        page.set_viewport_size({"width": 320, "height": 700})
        for role, name in (("link", "Correct"), ("link", "Forget"), ("button", "Do not mention")):
            box = page.get_by_role(role, name=f"{name} fact {seq}").first.bounding_box()
            assert box["y"] + box["height"] < 400, name
        # The rest is folded.
        told = page.get_by_role("region", name="What the model was told")
        assert not told.locator("pre").is_visible()
        told.locator("summary").click()
        assert told.locator("pre").is_visible()
        page.get_by_role("link", name=f"Correct fact {seq}").first.click()
        assert page.get_by_role("textbox", name="Correct text").is_visible()


def test_a_listed_request_whose_reply_was_forgotten_says_so(operator: Operator) -> None:
    id = full(operator)
    found = operator.twin(f"r/{id}")
    operator.twin(f"m/{found['memory']}/forget?exchange={found['exchange']}", {})
    assert id in [each["id"] for each in operator.twin("requests")["items"]]
    reply = operator.get(f"r/{id}")
    assert (reply.status, b"question and the reply were forgotten" in reply.body) == (404, True)
    assert b"There is no such request" in operator.get("r/nothing").body


def test_a_request_of_a_paused_memory_says_that_it_is_paused(operator: Operator) -> None:
    world = operator.world
    agent = speak(world, "Hello.")
    for is_paused in (True, False):
        world.gateway.call(world.store.forgetting.pause(agent.id, world.clock() if is_paused else None))
        mode = {} if is_paused else {"x-mnemogate-memory": "off"}
        body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Hello?"}]}
        assert world.gateway.post(body, mode).status == 200
        last = operator.twin("requests")["items"][0]["id"]
        sentence = operator.twin(f"r/{last}")["sentence"]
        assert ("memory has been paused since" in sentence) == is_paused, sentence
        # Whatever shows why nothing is recalled says so, too.
        for path in (f"requests?memory={agent.uid}", f"m/{agent.uid}/search?q=Hello"):
            assert (b"Memory is paused since <time" in operator.get(path).body) == is_paused, path


def test_a_request_is_listed_with_its_day_and_its_memory_leads_to_its_words(operator: Operator) -> None:
    """Twenty rows of times said nothing to whoever had a complaint of a day."""
    full(operator)
    uid = operator.twin("requests")["items"][0]["memory"]
    for path in ("requests", f"requests?memory={uid}"):
        text = operator.get(path).body.decode()
        assert re.search(r">9 Oct, \d\d:\d\d:\d\d</time>", text)
        assert (f'href="m/{uid}/conversations"' in text) == ("memory=" in path)
        # The list of all requests has no words, unless it is asked for them: each person's has.
        assert ("train" in text) == ("memory=" in path)
    assert "train" in operator.get(f"m/{uid}/conversations").body.decode()


@pytest.mark.both
def test_the_list_of_all_requests_shows_on_request_what_was_asked(operator: Operator) -> None:
    world = operator.world
    alice = speak(world, "When does my train leave?")
    chat = world.chat(headers={"x-mnemogate-user": "bob", "x-request-id": "same"})
    chat.say("Where is my bicycle?")
    chat = world.chat(headers={"x-mnemogate-user": "ann", "x-request-id": "same"})
    chat.say("Where is my sledge?")
    world.chat().say("Nobody asks this.")
    world.settle()
    reads = [each for each in operator.twin("audit")["items"] if each["action"] == "read"]
    assert not any("question" in each for each in operator.twin("requests")["items"])
    assert 'href="?words=1"' in operator.get("requests").body.decode()
    assert reads == [each for each in operator.twin("audit")["items"] if each["action"] == "read"]
    text = operator.get("requests?words=1").body.decode()
    rows = {name: row for row in text.split("<tr>") for name in ("alice", "bob", "ann") if f">{name}<" in row}
    assert "When does my train leave?" in rows["alice"]
    # It is not known of which of both requests a question with their id is.
    assert "bicycle" not in text
    assert "sledge" not in text
    assert "Nobody asks this." not in text
    assert "data-live" not in text
    questions = [each.get("question") for each in operator.twin("requests?words=true")["items"]]
    assert questions == [None, None, None, "When does my train leave?"]
    read = {each["memory"] for each in operator.twin("audit")["items"] if each["action"] == "read"}
    assert read == {alice.uid}
    assert "train" not in operator_of(world, "shop").get("requests?words=1").body.decode()
    operator.twin(f"m/{alice.uid}/forget?message=1", {})
    (row,) = (row for row in operator.get("requests?words=1").body.decode().split("<tr>") if ">alice<" in row)
    assert "train" not in row
    assert ">forgotten<" in row


def test_a_selection_of_one_memory_is_one_memory(operator: Operator) -> None:
    speak(operator.world, "My cat is called Miso.")
    speak(operator.world, "What do you know about me?")
    last = operator.twin("requests")["items"][0]["id"]
    assert ": 1 memory went in as a selection of all." in operator.twin(f"r/{last}")["sentence"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_request_that_left_the_log_is_not_listed_twice(operator: Operator, size: int) -> None:
    """The next page listed it again: the log had it for the page before, and the store has it for good."""
    world = operator.world
    alice = speak(world, "One.", "Two.", "Three.", "Four.")
    path = f"requests?memory={alice.uid}&limit={size}"
    page = operator.twin(path)
    found = [each["id"] for each in page["items"]]
    log = world.gateway.app.services.requests
    for n in range(2_000):
        log.begin(receipt := Receipt(f"request-{n}"), "default", "model", is_streamed=True)
        log.end(receipt, 200)
    while page["next"] is not None:
        page = operator.twin(f"{path}&after={page['next']}")
        found += [each["id"] for each in page["items"]]
    assert found == [each["id"] for each in operator.twin(f"requests?memory={alice.uid}")["items"]]
    assert len(found) == 4


def test_a_request_that_failed_says_why(operator: Operator) -> None:
    """And not that it brought no words of a person."""
    world = operator.world
    # The second reply breaks off.
    world.upstream.queue(fail(400), Reply(cut_after=0))
    for status, headers, reason in (
        (400, {}, "the provider up answered with status 400"),
        (502, {}, "the provider up gave no whole answer"),
        (400, {"x-mnemogate-memory": "nonsense"}, "no provider was asked"),
    ):
        reply = world.post([{"role": "user", "content": "Hello."}], {"x-mnemogate-user": "alice", **headers})
        assert reply.status == status
        last = operator.twin("requests")["items"][0]["id"]
        sentence = operator.twin(f"r/{last}")["sentence"]
        assert sentence == f"The request ended with status {status}: {reason}. No sources are noted."


def test_a_problem_of_the_overview_leads_to_the_requests_that_have_it(operator: Operator) -> None:
    """It led to all of the last 2,000 requests, among which to look for the one that had failed."""
    world = operator.world
    asked = [{"role": "user", "content": "Hello."}]
    world.upstream.queue(say("Hello!"), fail(400), fail(500), say("Hello!"))
    for status, headers in (
        (200, {}),
        (400, {"x-mnemogate-user": "bob"}),
        (500, {"x-mnemogate-user": "bob"}),
    ):
        assert world.post(asked, headers).status == status
    speak(world, "Hello.")
    problems = operator.twin("overview")["problems"]
    assert [each["href"] for each in problems] == ["requests?only=failed", "requests?only=none"]
    shown = operator.get("").body.decode()
    found = []
    for each in problems:
        assert f'<a href="{each["href"]}">{each["text"]}</a>' in shown
        found.append([(one["name"], one["status"]) for one in operator.twin(each["href"])["items"]])
    assert found == [[("bob", 500)], [(None, 200)]]
    assert "Requests that failed. Open one to see why." in plain(
        operator.get(problems[0]["href"]).body.decode()
    )
    assert "Name who is speaking with" in plain(operator.get(problems[1]["href"]).body.decode())
    assert "There are none among" in plain(operator.get("requests?only=unavailable").body.decode())
    assert operator.get("requests?only=slow").status == 400


def test_the_overview_says_what_an_upstream_answered_at_the_last_request(operator: Operator) -> None:
    """It was "well" until five failures in a row had it rest."""
    world = operator.world
    world.upstream.queue(fail(500), say("Hello!"), fail(400))
    for status, state, problem in (
        (500, "fails", "At the last request the upstream up answered 500."),
        (200, "well", None),
        (400, "well", None),  # the upstream's opinion of the request
    ):
        assert (
            world.post([{"role": "user", "content": "Hello."}], {"x-mnemogate-user": "bob"}).status == status
        )
        overview = operator.twin("overview")
        assert overview["upstreams"] == [{"name": "up", "state": state}]
        texts = [each["text"] for each in overview["problems"]]
        assert [text for text in texts if "upstream" in text] == ([problem] if problem else [])
    world.upstream.queue(fail(401))
    assert world.post([{"role": "user", "content": "Hello."}]).status == 401
    assert "At the last request the upstream up answered 401." in plain(operator.get("").body.decode())
    # Other projects have not asked it.
    assert operator_of(world, "shop").twin("overview")["sentence"] == "All is well."
    world.clock.sleep(3601)
    assert operator.twin("overview")["sentence"] == "All is well."


def test_a_request_that_failed_is_no_question_of_memory(operator: Operator) -> None:
    """It had recalled "nothing", and who had named a user was asked to name one."""
    operator.world.upstream.queue(fail(500))
    asked = [{"role": "user", "content": "Hello."}]
    assert operator.world.post(asked, {"x-mnemogate-user": "bob"}).status == 500
    shown = plain(operator.get("").body.decode())
    assert (
        "Nobody is remembered now, though requests named a user: they failed, or all was forgotten." in shown
    )
    assert "Name who is speaking" not in shown
    assert ">nothing<" not in operator.get("").body.decode() + operator.get("requests").body.decode()
    (request,) = operator.twin("requests")["items"]
    assert "Look for what it should have known" not in plain(operator.get(f"r/{request['id']}").body.decode())


def test_a_request_off_the_record_leads_to_no_conversation(operator: Operator) -> None:
    speak(operator.world, "Hello.")
    off = {"x-mnemogate-memory": "off"}
    body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Ask me nothing."}]}
    assert operator.world.gateway.post(body, off).status == 200
    id = operator.twin("requests")["items"][0]["id"]
    assert operator.twin(f"r/{id}")["conversation"] is None
    assert "/c/" not in operator.get(f"r/{id}").body.decode()


def test_a_fact_that_was_corrected_since_is_shown_as_the_note_had_it(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        alice = speak(world, "Hello.")
        (seq,) = learn(world, alice, "Alice has a dog called Rex.")
        speak(world, "What is my dog called, Rex?")
        last = operator.twin("requests")["items"][0]["id"]
        (hit,) = (each for each in operator.twin(f"r/{last}")["chosen"] if each["kind"] == "fact")
        assert "until" not in hit
        # The links have the order that they have everywhere.
        before = operator.get(f"r/{last}").body.decode()
        assert before.index(f"f/{seq}#correct") < before.index(f"forget?fact={seq}")
        operator.twin(f"m/{alice.uid}/f/{seq}/correct", {"text": "Alice has a cat called Rex."})
        (corrected,) = (each for each in operator.twin(f"r/{last}")["chosen"] if each["seq"] == seq)
        assert corrected == {**hit, "until": corrected["until"]}
        assert corrected["until"] > hit["at"]
        text = operator.get(f"r/{last}").body.decode()
        assert "Alice has a dog called Rex." in text.partition("What the model was told")[0]
        assert "until " in text
        for act in ("Correct", "Do not mention"):
            assert f'{act}<span class="unseen"> fact {seq}' not in text
        operator.post(f"m/{alice.uid}/forget?fact={seq}")
        (forgotten,) = (each for each in operator.twin(f"r/{last}")["chosen"] if each["forgotten"])
        assert forgotten["text"] is None
        text = operator.get(f"r/{last}").body.decode()
        assert "The text as the model read it went with what was forgotten." in text


def test_what_always_holds_is_shown_where_a_reply_is_explained(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """A reply said "no peanuts" by such a fact, and its request that nothing was recalled."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        alice = speak(world, "Hello.")
        learn(world, alice, "Never eats peanuts.", always=True)
        world.clock.sleep(60)
        speak(world, "Which snacks shall I buy?")
        last = operator.twin("requests")["items"][0]["id"]
        assert operator.twin(f"r/{last}")["sentence"].startswith("Nothing more was recalled")
        (fact,) = operator.twin(f"m/{alice.uid}/facts")["items"]
        assert fact["always"] is True
        here = f'm/{alice.uid}/f/{fact["seq"]}">fact {fact["seq"]}</a> <span'
        for path in (f"r/{last}", f"m/{alice.uid}/search?q=snacks", f"m/{alice.uid}/search?q=peanuts"):
            text = operator.get(path).body.decode()
            assert "the facts that are told before each reply" in text, path
            assert here in text, path
        # It is told anyway, so the search for its own word names it once, and not as left out.
        assert '<td colspan="6" class="empty">Nothing was left out.</td>' in text
        for path in ("", "/facts", f"/f/{fact['seq']}"):
            assert "told before each reply</span>" in operator.get(f"m/{alice.uid}{path}").body.decode(), path
        operator.twin(f"m/{alice.uid}/f/{fact['seq']}/mute", {"muted": True})
        assert (
            "told before each reply</span>"
            not in operator.get(f"m/{alice.uid}/search?q=snacks").body.decode()
        )
        assert "always" not in operator.twin(f"m/{alice.uid}/facts")["items"][0]


def test_a_reply_that_did_not_know_leads_to_what_is_stored(operator: Operator) -> None:
    """It led to a trial of the same question, which finds as little, and to no search for what is missing."""
    speak(operator.world, "I am vegetarian.", talk="c1")
    speak(operator.world, "Which wine goes with fish?", talk="c2")
    request = operator.twin("requests")["items"][0]["id"]
    screen = operator.get(f"r/{request}").body.decode()
    (link,) = re.findall(r'href="../([^"]*)">Look for what it should have known<', screen)
    assert "Find the words</button>" in operator.get(link).body.decode()
    assert operator.twin(f"{link}?q=vegetarian")["items"][0]["text"] == "I am vegetarian."


def test_a_trial_of_the_same_question_says_why_it_chose_other_texts(operator: Operator) -> None:
    """The reply and the trial differed, and neither said why."""
    world = operator.world
    alice = speak(world, "My bicycle is a green Gazelle.", "My bicycle stands in Lyon.", talk="c1")
    (fact,) = learn(world, alice, "The bicycle of Alice has a basket.")
    asked = "Where does my bicycle stand, and has it a basket?"
    speak(world, asked, talk="c2")
    request = operator.twin("requests")["items"][0]["id"]
    screen = operator.get(f"r/{request}").body.decode()
    (link,) = re.findall(r'href="([^"]*)">Try what the same question would recall now<', screen)
    trial = unescape(link).removeprefix("../")
    path, _, query = trial.partition("?")
    assert f"request={request}" in query
    # The trial finds the question itself, which came with the request.
    assert operator.twin(f"{path}?{query}")["differs"] == (
        "The reply was made with other texts: 1 text came with that question or later."
    )
    operator.twin(f"m/{alice.uid}/f/{fact}/correct", {"text": "The bicycle of Alice has no basket."})
    operator.twin(f"m/{alice.uid}/forget?message=3", {})
    differs = operator.twin(f"{path}?{query}")["differs"]
    assert "texts came with that question or later" in differs
    assert "1 text that it had went when something was forgotten" in differs
    assert "1 fact that it had ended since" in differs
    assert f"<p>{differs}</p>" in operator.get(trial).body.decode()
    # Of a request that is unknown, or has read another memory, nothing is said.
    bob = speak(world, asked, user="bob")
    for other in (
        f"m/{bob.uid}/search?{query}",
        f"{path}?q=bicycle&request=req_unknown",
        f"{path}?q=bicycle",
    ):
        assert "differs" not in operator.twin(other), other


def test_a_trial_says_that_a_conversation_had_a_text_already(operator: Operator) -> None:
    asked = "Where does my bicycle stand?"
    alice = speak(operator.world, "My bicycle stands in Lyon.", asked)
    request = operator.twin("requests")["items"][0]["id"]
    trial = operator.twin(f"m/{alice.uid}/search?q={quote(asked)}&request={request}")
    assert "1 text stood in its conversation already" in trial["differs"]


@pytest.mark.both
def test_a_request_names_the_blocks_that_its_model_was_shown(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """They go along where nothing is recalled, and a reply may say what stands in them alone."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        upstream.queue(say("Noted."), say("A tent and a map."))
        alice = speak(world, "Hello.")
        learn(world, alice, block="Pets: a dog called Rex.")
        world.clock.sleep(60)
        speak(world, "What should I pack?")
        last = operator.twin("requests")["items"][0]["id"]
        text = operator.get(f"r/{last}").body.decode()
        assert "Nothing more was recalled" in text
        assert f'told the <a href="../m/{alice.uid}#blocks">memory blocks</a> (' in text
        assert "has changed since" not in text
        assert "Pets: a dog called Rex." in text
        world.clock.sleep(60)
        # After a correction the block of today is no reason of the reply.
        operator.twin(f"m/{alice.uid}/b/human", {"value": "Pets: a cat called Rex.", "version": 2})
        text = operator.get(f"r/{last}").body.decode()
        assert "human</span> has changed since" in text
        assert "Pets: a cat" not in text
        told = plain(text.partition('id="told"')[2].partition("</section>")[0])
        assert "human, as it was then: Pets: a dog called Rex." in told
        assert "The reply repeats no sentence of what the model was told." in plain(text)
        (then,) = {*re.findall(r'href="([^"]*)#compared"', text)}
        shown = operator.get(unescape(then).removeprefix("../")).body.decode()
        assert "From version 2 to version 3" in shown
        assert "dog" in shown.partition('id="compared"')[2].partition("</section>")[0]
        # The earlier texts are read together.
        one = len(world.statements_of(lambda: operator.get(f"r/{last}")))
        operator.twin(f"m/{alice.uid}/b/law", {"value": "Be kind.", "version": 1})
        assert len(world.statements_of(lambda: operator.get(f"r/{last}"))) == one


def test_sources_that_are_kept_for_one_day_say_so(upstream: StrictUpstream, tmp_path: Path) -> None:
    with operate(upstream, tmp_path, memory={"keep_why_days": 1}) as operator:
        agent = speak(operator.world, "Where is my bicycle?")
        assert "are kept (1 day)." in plain(operator.get(f"requests?memory={agent.uid}").body.decode())
        assert "Sources are kept for 1 day." in plain(operator.get("r/nothing").body.decode())
        (talk,) = operator.twin(f"m/{agent.uid}/conversations")["items"]
        operator.world.clock.sleep(2 * 86_400)
        operator.sign_in()
        shown = operator.get(f"m/{agent.uid}/c/{talk['id']}").body.decode()
        assert "since sources are kept for 1 day</span>" in shown


def test_the_requests_of_a_person_say_once_which_are_listed(operator: Operator) -> None:
    """Above stood that older ones are listed, and below that the last ones since the start are."""
    agent = speak(operator.world, "Where is my bicycle?")
    text = plain(operator.get(f"requests?memory={agent.uid}").body.decode())
    assert text.count("sources") == 1
    assert "as long as the sources of the reply are kept (7 days)" in text
    assert "sources" not in plain(operator.get("requests").body.decode())


def test_the_audit_of_a_memory_that_never_was_is_an_error(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    assert operator.twin(f"audit?memory={agent.uid}")["items"] == []
    operator.twin(f"m/{agent.uid}/forget?all=1", {"confirm": "2"})
    assert operator.twin(f"audit?memory={agent.uid}")["items"]
    assert operator.get("audit?memory=nope").status == 404


@pytest.mark.both
def test_a_request_that_recalled_nothing_names_older_texts_with_words_of_its_reply(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """A reply said what the guest likes, the page only that nothing was recalled, and nothing could be corrected."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        upstream.queue(say("Shall I note it?"), say("You enjoyed the fish. How about our menu?"))
        alice = speak(world, "My husband loved the fishes!", talk="c1")
        (fact,) = learn(world, alice, "Likes fish.")
        world.clock.sleep(60)
        speak(world, "Zxqv?", talk="c2")
        upstream.queue(say("Fish again."))
        speak(world, "Tyrr?", talk="c3")
        _, asked, first = operator.twin("requests")["items"]
        assert operator.twin(f"r/{first['id']}")["before_reply"] == []
        text = operator.get(f"r/{first['id']}").body.decode()
        assert (
            "No older text of this memory has an uncommon word that the reply has and its question has not."
            in text
        )
        explained = operator.twin(f"r/{asked['id']}")
        assert (explained["why"], explained["chosen"]) == ("nothing_found", [])
        assert {(each["kind"], each["seq"]) for each in explained["before_reply"]} == {
            ("fact", fact),
            ("message", 1),
        }
        text = operator.get(f"r/{asked['id']}").body.decode()
        assert "Likes <mark>fish</mark>." in text
        assert "My husband loved the <mark>fishes</mark>!" in text
        assert f'm/{alice.uid}/f/{fact}#correct"' in text
        assert f"m/{alice.uid}/forget?message=1&" in text.replace("&amp;", "&")
        # An application that shows sources is given none that were not told.
        reply = world.gateway.ask("GET", f"/v1/memory/requests/{asked['id']}")
        assert "before_reply" not in reply.json
        # What the reply repeats explains it.
        upstream.queue(say("My husband loved the fishes!"))
        speak(world, "Who loved the fishes?", talk="c4")
        told = operator.twin("requests")["items"][0]["id"]
        assert operator.twin(f"r/{told}")["chosen"]
        assert "before_reply" not in operator.twin(f"r/{told}")
        assert "Older texts with words" not in operator.get(f"r/{told}").body.decode()


@pytest.mark.both
def test_a_reply_with_words_that_its_model_was_not_told_leads_to_older_texts_with_them(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The only text that was recalled stood there with "Forget", and the reply had nothing of it."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        upstream.queue(say("Good."), say("Fine."), say("For a Gazelle in winter, a battery."))
        speak(world, "I ride a Gazelle.", talk="c1")
        alice = speak(world, "I come to work in winter.", talk="c2")
        world.clock.sleep(60)
        speak(world, "What do I need for the winter?", talk="c3")
        asked = operator.twin("requests")["items"][0]["id"]
        explained = operator.twin(f"r/{asked}")
        assert [each["seq"] for each in explained["chosen"]] == [3]
        assert [each["seq"] for each in explained["before_reply"]] == [1]
        text = operator.get(f"r/{asked}").body.decode()
        shown = plain(text)
        verdict = "Nothing that this reply was told from memory has “Gazelle”."
        assert shown.index(verdict) < shown.index(explained["sentence"])
        assert "The reply repeats no sentence" not in shown
        assert (
            "None of these was recalled for this reply. The words that are marked in them may be made up:"
            in shown
        )
        assert f'm/{alice.uid}/words?q=Gazelle">All that say “' in text
        assert "I ride a <mark>Gazelle</mark>." in text
        assert "<mark>winter</mark>" not in text
        # A forgetting that may have been in what the model read leaves the texts that were recalled.
        operator.twin(f"m/{alice.uid}/forget?message=2", {})
        explained = operator.twin(f"r/{asked}")
        assert (explained["note"], explained["chosen"][0]["forgotten"]) == (None, False)
        text = operator.get(f"r/{asked}").body.decode()
        assert "All that was recalled is above." in text
        # What is forgotten may have had the word.
        operator.twin(f"m/{alice.uid}/forget?message=3", {})
        shown = plain(operator.get(f"r/{asked}").body.decode())
        assert f"{verdict.removesuffix('.')}, as far as it is still kept." in shown


@pytest.mark.both
def test_a_request_quotes_the_block_that_its_reply_is_from_and_where_that_was_learned(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """It named the block alone: its line, and the message that the line came from, took two screens more."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        upstream.queue(say("Noted."), say("Noodles. No peanut sauce because of your allergy, as Anna asked."))
        alice = speak(world, "My nephew must not have peanuts.", talk="c1")
        learn(world, alice, block="City: Basel.\nAllergies: peanuts.\nNephew: Jonas.")
        day = f"{datetime.fromtimestamp(world.clock(), UTC):%-d %b %Y}"
        block = f"m/{alice.uid}/b/human"
        operator.twin(block, {"value": "City: Basel.\nAllergies: peanuts.\nSister: Anna.", "version": 2})
        world.clock.sleep(86_400)
        speak(world, "What can I cook?", talk="c2")
        world.clock.sleep(60)
        operator.sign_in()
        asked = operator.twin("requests")["items"][0]["id"]
        lines = (
            "“Allergies: peanuts.” Learned on {day} from message 1: “My nephew must not have peanuts.”",
            "“Sister: Anna.” From an operator on {day}",
        )
        shown = plain(operator.get(f"r/{asked}").body.decode())
        for line in lines:
            assert f"Each reply is told block human: {line.format(day=day)}" in shown
        assert "Nothing more was recalled: the search found nothing that answers this." in shown
        # As it was then, also after it was corrected.
        operator.twin(block, {"value": "City: Zurich.", "version": 3})
        corrected = plain(operator.get(f"r/{asked}").body.decode())
        for line in lines:
            assert f"Each reply was then told block human: {line.format(day=day)}" in corrected


def test_a_request_that_is_opened_from_a_conversation_belongs_to_its_person(operator: Operator) -> None:
    """The menu jumped from People to Requests, and no line above led back."""
    alice = speak(operator.world, "Hello.")
    asked = operator.twin("requests")["items"][0]["id"]
    for referrer, current in ((f"m/{alice.uid}", "People"), ("requests", "Requests"), ("", "Requests")):
        headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{referrer}"}
        shown = operator.ask("GET", f"r/{asked}", None, headers).body.decode()
        assert re.findall('aria-current="true">(.*?)<', shown) == [current]
        assert f'<p class="crumb"><a href="../m/{alice.uid}">' in shown


def test_a_text_that_the_application_sent_along_is_not_called_unused(operator: Operator) -> None:
    """The model had read it in the conversation, and the page said that it was not used for the reply."""
    world = operator.world
    world.upstream.queue(say("Ok."), say("Noted."), say("Take the wheelbarrow, as you said."))
    speak(world, "Marigolds need the wheelbarrow.", talk="c1")
    chat = world.chat(headers={"x-mnemogate-user": "alice", "x-mnemogate-conversation": "c2"})
    chat.say("My wheelbarrow is red.")
    chat.say("Zxqv?")
    asked = operator.twin("requests")["items"][0]["id"]
    assert sorted(each["seq"] for each in operator.twin(f"r/{asked}")["before_reply"]) == [1, 3]
    shown = plain(operator.get(f"r/{asked}").body.decode())
    assert "Older texts with words of the reply None of these was recalled for this reply." in shown
    assert shown.count("earlier in this conversation") == 2  # the sentence, and one of the two texts
    assert "The words that are marked in the others may be from earlier messages, or made up." in shown


@pytest.mark.both
def test_an_ordinary_word_of_a_reply_is_no_finding(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Largest stood that nothing the reply was told has "leave", with a link that forgets an innocent message."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        upstream.queue(
            say("I will leave out the nuts on Sundays, without a word."),
            say("I leave out the peanut sauce, without asking, because of your allergy."),
            say("Ohne Nachfrage lasse ich die Tunke weg, wegen der Allergie."),
        )
        alice = speak(world, "My nephew comes. Ich gehe morgen ohne ihn weg, wegen der Arbeit.", talk="c1")
        learn(world, alice, block="Allergies: peanuts. Allergie: Nüsse.")
        world.clock.sleep(60)
        speak(world, "Zxqv?", talk="c2")
        speak(world, "Tyrr?", talk="c3")
        for asked in operator.twin("requests")["items"][:2]:
            assert operator.twin(f"r/{asked['id']}")["before_reply"] == []
            shown = plain(operator.get(f"r/{asked['id']}").body.decode())
            assert "has words of block" in shown
            assert "Nothing that this reply was told" not in shown
            assert "Older texts" not in shown
            assert "No older text" not in shown


@pytest.mark.both
def test_a_fact_that_is_told_before_each_reply_is_named_as_told(operator: Operator) -> None:
    """It was one of "4 stayed out" above a list of three, as if the tick had done nothing."""
    world = operator.world
    alice = speak(world, "I cook.", talk="c1")
    (seq,) = learn(world, alice, "Alice cooks for two people.", always=True)
    world.clock.sleep(60)
    speak(world, "For how many people do I cook?", talk="c2")
    id = operator.twin("requests")["items"][0]["id"]
    assert seq in [each["seq"] for each in operator.twin(f"r/{id}")["left_out"]]
    html = operator.get(f"r/{id}").body.decode()
    assert f"Told before each reply: fact {seq}. The search found it as well, and counted it among" in plain(
        html
    )
    assert re.search(rf'Told before each reply: <a href="\.\./m/{alice.uid}/f/{seq}">', html)
    speak(world, "Zxqv?", talk="c3")
    id = operator.twin("requests")["items"][0]["id"]
    shown = plain(operator.get(f"r/{id}").body.decode())
    assert f"Told before each reply: fact {seq}." in shown
    assert "The search found it as well" not in shown


def test_the_words_before_what_a_user_said_are_no_words_of_a_fact(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """A reply with "said" was said to have it from each fact that begins with "User said: "."""
    world = operator.world
    alice = speak(world, "I never eat meat.", talk="c1")
    operator.twin(f"m/{alice.uid}/facts", {"text": "User said: I like tea."})
    learn(world, alice, "User said: I never eat meat.", always=True)
    world.clock.sleep(60)
    upstream.queue(say("You said hello, dear user."))
    speak(world, "Zxqv?", talk="c2")
    id = operator.twin("requests")["items"][0]["id"]
    shown = plain(operator.get(f"r/{id}").body.decode())
    assert "Told before each reply: fact" in shown
    assert "has words of fact" not in shown
    assert "Older texts with words of the reply" not in shown


def test_the_list_of_older_texts_says_that_it_is_cut_and_where_else_the_words_may_be_from(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """It left out texts with the very word, and named a conversation and an application that had nothing."""
    world = operator.world
    upstream.queue(*[say("Noted.")] * 7, say("How about Mallorca?"))
    for n in range(6):
        speak(world, f"Mallorca was warm, number {n}.", talk=f"c{n}")
    world.clock.sleep(60)
    agent = speak(world, "Hello.", "Zxqv?", talk="c9")
    id = operator.twin("requests")["items"][0]["id"]
    assert len(operator.twin(f"r/{id}")["before_reply"]) == 5
    text = operator.get(f"r/{id}").body.decode()
    assert "The words that are marked in them may be from earlier messages, or made up." in text
    assert "The five that are most like the reply. All that say “Mallorca”" in plain(text)
    assert f'm/{agent.uid}/words?q=Mallorca">' in text


@pytest.mark.both
def test_the_audit_says_in_words_who_did_what_and_links_to_facts_that_are_there(operator: Operator) -> None:
    """A clerk could not tell who "code" was, nor what "fact 21 as 30" meant, and the numbers led nowhere."""
    agent = speak(operator.world, "I drink tea.")
    memory = f"m/{agent.uid}"
    (first, other) = learn(operator.world, agent, "Drinks tea.", "Likes cake.")
    operator.get(memory)
    second = operator.twin(f"{memory}/f/{first}/correct", {"text": "Drinks coffee."})["seq"]
    third = operator.twin(f"{memory}/f/{second}/correct", {"text": "Drinks tea."})["seq"]
    operator.twin(f"{memory}/forget?fact={other}", {})
    operator.twin(f"{memory}/f/{third}/mute", {"muted": True})
    html = operator.get("audit").body.decode()
    rows = re.findall(r"<tr>(.*?)</tr>", html.partition("<tbody>")[2], re.DOTALL)
    muted, forgot, undid, corrected, read, *_ = map(plain, rows)
    assert f"mute alice fact {third}, muted" in muted
    assert f"forget alice fact {other}" in forgot
    assert f"undo or redo alice fact {second}: now fact {third}, which says again fact {first}" in undid
    assert f"correct alice fact {first}: now fact {second}" in corrected
    assert "read alice what is remembered" in read
    assert set(re.findall(rf'href="{memory}/f/(\d+)"', html)) == {str(first), str(second), str(third)}
    operator.twin(f"{memory}/forget?fact={second}", {})
    html = operator.get("audit").body.decode()
    assert set(re.findall(rf'href="{memory}/f/(\d+)"', html)) == {str(first), str(third)}


@pytest.mark.both
def test_the_audit_is_filtered_by_person_action_and_day(operator: Operator) -> None:
    """Of 90 days of reads and sign-ins one looked for the one forgetting by hand."""
    world = operator.world
    uids = {user: speak(world, "Hello.", user=user).uid for user in ("alice", "bob")}
    days: list[str] = []
    for n in range(3):
        operator.sign_in()
        days.append(datetime.fromtimestamp(world.clock(), UTC).strftime("%Y-%m-%d"))
        for uid in uids.values():
            operator.twin(f"m/{uid}/facts", {"text": f"Likes tea number {n}."})
            operator.twin(
                f"m/{uid}/f/{operator.twin(f'm/{uid}/facts')['items'][0]['seq']}/mute", {"muted": True}
            )
        world.clock.sleep(86_400)
    operator.sign_in()
    everything = operator.twin("audit?limit=200")["items"]
    noon = {day: datetime.fromisoformat(f"{day}T12:00Z").timestamp() for day in days}
    for query, fits in (
        ("user=alice", lambda each: each["memory"] == uids["alice"]),
        ("action=mute", lambda each: each["action"] == "mute"),
        (f"memory={uids['bob']}&action=mute", lambda e: (e["memory"], e["action"]) == (uids["bob"], "mute")),
        (f"since={days[1]}", lambda each: each["at"] >= noon[days[1]] - 43_200),
        (f"until={days[1]}", lambda each: each["at"] < noon[days[1]] + 43_200),
        (f"since={days[0]}T12:00&until={days[1]}", lambda e: (
            noon[days[0]] <= e["at"] < noon[days[1]] + 43_200
        )),
        (f"user=bob&action=mute&since={days[1]}&until={days[1]}", lambda each: (
            each["memory"] == uids["bob"] and each["action"] == "mute" and abs(each["at"] - noon[days[1]]) <= 43_200
        )),
        ("user=&action=&since=&until=", lambda each: True),  # as an empty form sends it
        ("user=nobody", lambda each: False),
    ):  # fmt: skip
        wanted = [each for each in everything if fits(each)]
        assert wanted != everything or query.endswith("=")
        assert wanted or query == "user=nobody"
        found, after = list[Any](), ""
        while True:  # page by page
            page = operator.twin(f"audit?{query}&limit=2{after}")
            found += page["items"]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert found == wanted, query
        shown = operator.get(f"audit?{query}").body.decode()
        assert len(re.findall('data-name="action"', shown)) == len(wanted)
        assert ("Nobody is stored as “nobody” now." in plain(shown)) == (not wanted)
    # An operator of another project sees nothing of it.
    other = operator_of(world, "shop")
    assert other.twin("audit?user=alice")["items"] == []
    for query, param in (
        ("action=dance", "action"), ("since=yesterday", "since"), ("until=2025-13-01", "until"), ("after=x", "after"),
    ):  # fmt: skip
        refused = operator.program("GET", f"audit.json?{query}")
        assert (refused.status, refused.json["error"]["param"]) == (400, param)
    # A memory that is gone has its entries, though none of them fits.
    operator.twin(f"m/{uids['bob']}/forget?all=1", {"confirm": "2"})
    assert operator.twin(f"audit?memory={uids['bob']}&action=export")["items"] == []
    assert operator.program("GET", "audit.json?memory=0123&action=export").status == 404


@pytest.mark.both
def test_the_audit_offers_the_people_whom_a_part_of_a_name_finds(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """An operator looked for "maria", and read that nothing was done to the memory of maria.keller."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        speak(world, "Hello.", user="maria.keller")
        kim = speak(world, "Hello.", user="u-7")
        block = operator.twin(f"m/{kim.uid}")["blocks"][0]["label"]
        operator.twin(f"m/{kim.uid}/b/{block}", {"value": "Name: Kim Keller.", "version": 1})
        for words, offered in (("keller", ["maria.keller", "u-7"]), ("maria.keller", []), ("nobody", [])):
            html = operator.get(f"audit?user={words}&action=export").body.decode().partition("<tbody>")[2]
            links = re.findall(r'href="audit\?user=([^&"]+)&amp;action=export"', html)
            assert sorted(links) == offered, words
            assert ("Find the id among all people" in html) == (words == "nobody")
        assert operator.twin("audit?user=maria")["items"] == []
        other = operator_of(world, "shop")
        assert "maria.keller" not in other.get("audit?user=maria").body.decode()


@pytest.mark.both
def test_the_audit_shows_the_one_person_whom_a_part_of_a_name_finds_and_the_day(operator: Operator) -> None:
    """That nothing names exactly “Maria” read as if no one had looked at the only Maria's memory."""
    world = operator.world
    maria = speak(world, "Hello.", user="maria.keller")
    for n in range(51):
        operator.twin(f"m/{maria.uid}/facts", {"text": f"Likes tea number {n}."})
    shown = operator.get("audit?user=maria").body.decode()
    assert "No entry names exactly “maria”. Shown is maria.keller, the only person found by it." in plain(
        shown
    )
    next_link = re.search(r'href="(\?[^"]*)">Next page', shown)
    assert next_link is not None
    rest = operator.get("audit" + unescape(next_link[1])).body.decode()
    shown_uids = re.findall(r'data-name="memory"><a href="m/(\w+)"', shown + rest)
    assert shown_uids == [maria.uid] * len(operator.twin(f"audit?memory={maria.uid}&limit=200")["items"])
    # "mari" is a person, of whom the audit has nothing: another person's entries are not hers.
    speak(world, "Hello.", user="mari")
    assert "data-name" not in operator.get("audit?user=mari").body.decode()
    world.clock.sleep(86_400)
    operator.sign_in()
    operator.twin(f"m/{maria.uid}/facts", {"text": "Likes cake."})
    # The button sends what is typed, and counts more than the days that are.
    form = operator.get("audit?user=maria.keller").body.decode().partition("<main")[2].partition("</form>")[0]
    assert '<button name="today" value="true"' in form
    typed = "user=maria.keller&action=remember&since=2020-01-01&until=2020-01-02"
    assert operator.get(f"audit?{typed}").body.decode().count('data-name="memory"') == 0
    shown = operator.get(f"audit?{typed}&today=true").body.decode()
    assert shown.count('data-name="memory"') == 1
    assert 'name="user" type="text" value="maria.keller"' in shown


def test_the_audit_names_the_application_for_a_link_that_it_made(operator: Operator) -> None:
    """A link that the application had made without a key was "the person, by a link", who had none yet."""
    speak(operator.world, "Hello.")
    person_of(operator.world).page("")
    rows = operator.get("audit").body.decode().partition("<tbody>")[2].split("<tr>")[1:]
    acts = [
        re.findall(r'scope="row">(.*?)</th>\s*<td class="nowrap" data-name="action">(.*?)</td>', row)[0]
        for row in rows
    ]
    done_by = {action: plain(who) for who, action in acts}
    assert (done_by["link create"], done_by["read"]) == ("the application", "the person, by a link")


@pytest.mark.both
def test_a_person_who_was_forgotten_is_found_in_the_audit_by_the_number_of_the_memory(
    operator: Operator,
) -> None:
    """Who asked later whether tom was forgotten had a name that nothing is stored under, and no number."""
    agent = speak(operator.world, "Hello.", user="tom")
    page = operator.post(f"m/{agent.uid}/forget?all=1", confirm="2").body.decode()
    assert "It was the memory of tom. The audit records" in plain(page)
    assert f"under the number {agent.uid}. Copy it into the ticket" in plain(page)
    assert f'href="../../audit?user={agent.uid}"' in page
    # The proof was gone after these days, and no page said so.
    assert "It is in the audit for 90 days: save this page as well" in plain(page)
    assert "and each entry for 90 days." in plain(operator.get("audit").body.decode())
    found = operator.get("audit?user=tom").body.decode()
    assert "Nobody is stored as “tom” now. 1 memory was forgotten wholly today" in plain(found)
    list_link = re.search(r'href="([^"]+)">1 memory was', found)
    assert list_link is not None
    assert f">{agent.uid}</a>" in operator.get(unescape(list_link[1])).body.decode()
    acts = [each["action"] for each in operator.twin(f"audit?user={agent.uid}")["items"]]
    assert acts[0] == "forget"
    assert len(acts) == len(operator.twin(f"audit?memory={agent.uid}")["items"])
    row = operator.get("audit").body.decode()
    assert f'href="audit?memory={agent.uid}"' in row
    assert operator.twin(f"audit?user={agent.uid[:31]}")["items"] == []
    assert operator_of(operator.world, "shop").twin(f"audit?user={agent.uid}")["items"] == []


@pytest.mark.both
def test_the_audit_lists_the_memories_that_were_forgotten_wholly(operator: Operator) -> None:
    """Without the number "tom" found nothing, and among all that was forgotten his memory was one row of many."""
    world = operator.world
    tom, alice = speak(world, "Hello.", user="tom"), speak(world, "Hello.", user="alice")
    operator.twin(f"m/{tom.uid}/forget?all=1", {"confirm": "2"})
    world.clock.sleep(86_400)
    operator.sign_in()
    operator.twin(f"m/{alice.uid}/forget?message=1", {})
    kim = speak(world, "Hello.", user="kim")
    operator.twin(f"m/{kim.uid}/forget?all=1", {"confirm": "2"})
    html = operator.get("audit?user=tom").body.decode()
    links = [unescape(each) for each in re.findall(r'href="(audit\?action=forget[^"]*)"', html)]
    listed = [re.findall(r'href="audit\?memory=(\w+)"', operator.get(link).body.decode()) for link in links]
    assert listed == [[kim.uid], [kim.uid, tom.uid]]


def test_the_number_of_a_forgotten_memory_is_copied_by_a_button(browser: Browser, operator: Operator) -> None:
    """Without script, and where no script may copy, there is no such button, and the number is text."""
    agent = speak(operator.world, "Hello.", user="tom")
    for script in (False, True):
        with browser.open(operator, f"m/{agent.uid}/forget?all=1", script=script) as page:
            page.context.grant_permissions(["clipboard-read", "clipboard-write"])
            page.get_by_role("textbox", name="Type 2 to confirm").fill("2")
            page.get_by_role("button", name="Forget for good").click()
            page.get_by_text(agent.uid, exact=True).wait_for()
            button = page.get_by_role("button", name="Copy the number")
            assert button.count() == int(script)
            if script:
                button.click()
                page.get_by_role("status", name="").filter(has_text="Copied").wait_for()
                assert page.evaluate("navigator.clipboard.readText()") == agent.uid
        agent = speak(operator.world, "Hello.", user="kim")


@pytest.mark.parametrize("script", [True, False])
def test_the_filter_of_the_audit_is_a_form_and_goes_on_to_the_next_page(
    browser: Browser, operator: Operator, script: bool
) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "Likes tea.")
    for n in range(51):
        operator.twin(f"m/{agent.uid}/f/{seq}/mute", {"muted": n % 2 == 0})
        operator.sign_in()
    with browser.open(operator, f"audit?memory={agent.uid}", script=script) as page:
        page.get_by_role("textbox", name="Person").fill("alice")
        page.get_by_role("combobox", name="Action").select_option("mute")
        page.get_by_label("From day").fill("2025-01-01")
        page.get_by_role("button", name="Show").click()
        page.get_by_role("link", name="Next page").click()
        assert page.get_by_role("textbox", name="Person").input_value() == "alice"
        assert page.get_by_role("combobox", name="Action").input_value() == "mute"
        assert page.get_by_label("From day").input_value() == "2025-01-01"
        assert page.get_by_label("To day").input_value() == ""
        assert f"memory={agent.uid}" in page.url
        assert page.get_by_role("table", name="Audit").get_by_role("row").count() == 2
        page.get_by_role("link", name="All of the audit").click()
        assert page.get_by_role("combobox", name="Action").input_value() == ""
        assert page.get_by_role("table", name="Audit").get_by_role("row").count() == 51


def test_the_audit_links_to_the_version_of_a_block(upstream: StrictUpstream, tmp_path: Path) -> None:
    """From "block human, version 5" no link led to what had been written."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        memory = f"m/{speak(world, 'Hello.').uid}"
        label = operator.twin(memory)["blocks"][0]["label"]
        for version, town in enumerate(("Basel", "Zurich", "Bern"), start=1):
            operator.twin(f"{memory}/b/{label}", {"value": f"Lives in {town}.", "version": version})
        operator.twin(f"{memory}/b/{label}/restore", {"version": 4, "to": 2})
        rows = operator.get("audit").body.decode().partition("<tbody>")[2].split("<tr>")[1:]
        links = {plain(row): re.findall(rf'href="({memory}/b/[^"]+)"', row) for row in rows}
        (edited,) = next(each for row, each in links.items() if f"block {label}, version 3" in row)
        history = operator.get(edited).body.decode().partition('id="history"')[2]
        assert re.findall("<h3>(.*?)</h3>", history) == ["Version 3", "Version 2", "Version 1"]
        (row,) = (row for row in links if "bring back or redo" in row)
        assert f"block {label}, version 5: version 2 again" in row
        restored, brought_back = links[row]
        assert (restored, brought_back) == (edited.replace("=4", "=6"), edited.replace("=4", "=3"))


def test_the_audit_takes_no_label_of_a_block_for_a_fact(operator: Operator) -> None:
    """A label may be any words, such as "fact 1" or "known as told"."""
    world = operator.world
    agent = speak(world, "I drink tea.")
    (seq,) = learn(world, agent, "Drinks tea.")
    edited, restored = AuditedVersion(f"fact {seq}", 2), AuditedVersion("known as told", 3, restored=1)

    async def note() -> None:
        for action, what in (("edit", edited), ("restore", restored)):
            await world.store.audit.add(world.clock(), "alice", action, agent.uid, str(what))

    world.gateway.call(note())
    html = operator.get("audit").body.decode()
    assert f"edit alice block fact {seq}, version 2" in plain(html)
    assert "bring back or redo alice block known as told, version 3: version 1 again" in plain(html)
    assert f'href="m/{agent.uid}/f/{seq}"' not in html


def test_the_audit_says_who_acted_with_the_readers_own_key(operator: Operator) -> None:
    by_code = Operator(operator.world, "")
    assert by_code.sign_in(make_code(operator)).status == 303
    reader = operator_of(operator.world, is_read=True)
    acts = [
        ("operator-read ", "login"),
        ("an operator, by a sign-in code ", "login"),
        ("operator ", "login"),
    ]
    for visitor, own in ((by_code, ""), (reader, acts[0][0]), (operator, acts[2][0])):
        text = plain(visitor.get("audit").body.decode())
        for who, action in acts:
            assert f"{who}{'your key ' if who == own else ''}{action}" in text


def test_the_audit_notes_a_read_once_an_hour(operator: Operator) -> None:
    id = full(operator)
    for _ in range(3):
        operator.get(f"r/{id}")
    reads = [each for each in operator.twin("audit")["items"] if each["action"] == "read"]
    assert len(reads) == 1
    operator.world.clock.sleep(1_700)
    operator.get(f"r/{id}")
    operator.world.clock.sleep(1_700)
    operator.get(f"r/{id}")
    operator.world.clock.sleep(1_700)
    operator.get(f"r/{id}")
    reads = [each for each in operator.twin("audit")["items"] if each["action"] == "read"]
    assert len(reads) in (2, 3)


def test_a_link_to_a_request_says_who_asked_and_spells_no_id(browser: Browser, operator: Operator) -> None:
    id = full(operator)
    operator.world.post([{"role": "user", "content": "Hello."}])
    for path in ("", "requests"):
        with browser.open(operator, path) as page:
            nobodys, alices, *_ = page.get_by_role("link", name=re.compile(":[0-9]{2} request")).all()
            names = [" ".join(each.inner_text().split()) for each in (nobodys, alices)]
            assert [name.partition(" request")[2] for name in names] == ["", " of alice"]
            assert str(alices.get_attribute("href")).endswith(id)


def test_a_paused_list_says_that_it_stands_still(browser: Browser, operator: Operator) -> None:
    full(operator)
    with browser.open(operator, "requests") as page:
        pause = page.get_by_role("button", name="Pause", exact=True)
        for text in ("The list stands still.", "The list follows what happens."):
            pause.click()
            assert page.locator("#live").inner_text() == f"Pause {text}"


def test_a_question_that_is_asked_again_leads_to_its_reply_and_to_the_first_time(operator: Operator) -> None:
    """An application sends it again, or a person asks for another reply: there is a line of it that found nothing."""
    world = operator.world
    speak(world, "My tea is in the red tin.")
    world.upstream.queue(say("In the red tin."), say("In the red tin."), say("Look for a tin."))
    for _ in range(3):
        agent = speak(world, "Where is my tea?")
    other, again, first, _ = (each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"])
    found = operator.twin(f"r/{first}")
    assert found["chosen"]
    assert "repeats" not in found
    for id, reply in ((again, "In the red tin."), (other, "Look for a tin.")):
        explained = operator.twin(f"r/{id}")
        assert explained["sentence"].startswith("This question was asked once more")
        assert (explained["note"], explained["repeats"]) == (found["note"], first)
        assert explained["conversation"] == found["conversation"]
        shown = operator.get(f"r/{id}").body.decode()
        assert f'href="../r/{first}"' in shown
        turn = re.search(r"<dl>(.*?)</dl>", shown, re.S)
        assert turn is not None
        assert "Where is my tea?" in turn[1]
        assert reply in remove_marks(turn[1])
        # What is known of the first time holds for this one, too, and which of the replies is read on.
        assert ("stands in the conversation" in turn[1]) == (id == other)
        assert ("replaced by another try" in turn[1]) == (id == again)
        is_repeated = reply == "In the red tin."
        assert (f'href="../r/{first}#rank-1">Rank 1, found the first time</a>' in shown) == is_repeated
        # Which words it has from memory is said instead.
        assert ("The reply has words of" in shown) != is_repeated
        assert "The reply repeats no sentence" not in shown
    assert (
        operator.twin(f"r/{again}")["exchange"]
        == found["exchange"]
        != operator.twin(f"r/{other}")["exchange"]
    )
    listed = operator.get(f"requests?memory={agent.uid}").body.decode()
    # The lists of all say so of a request that was sent again, and each leads to the other.
    assert f'href="../r/{again}">Asked again at' in operator.get(f"r/{first}").body.decode()
    assert "Asked again at" not in operator.get(f"r/{again}").body.decode()
    for path in ("", "requests"):
        rows = operator.get(path).body.decode().split("<tr>")
        tagged = [each for each in rows if "same question and reply as" in each]
        assert [(again in each, first in each) for each in tagged] == [(True, True)]
        # The link says which row it leads to.
        (link,) = re.findall(rf'r/{first}">at (<time.*?</time>)</a>', tagged[0])
        (row,) = (each for each in rows if each not in tagged and first in each)
        assert re.sub("<.*?>", "", link) in row
    assert listed.count("Where is my tea?") == 3
    assert listed.count(">asked again<") == 2
    assert "not kept" not in listed


def test_a_reply_that_repeats_a_lower_rank_names_what_the_model_was_told_before(operator: Operator) -> None:
    """The model had both, and chose the old one: the page named the one alone."""
    world = operator.world
    speak(world, "Lea plays the viola every Tuesday evening.")
    speak(world, "Lea plays the cello, an instrument, and gave the viola back.")
    question = "Which instrument does Lea play, the cello or the viola?"
    world.upstream.queue(say("Lea plays the viola every Tuesday evening."))
    agent = speak(world, question)
    id = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    chosen = operator.twin(f"r/{id}")["chosen"]
    assert [each["seq"] for each in chosen if "Lea" in each["text"]] == [3, 1]
    shown = plain(operator.get(f"r/{id}").body.decode())
    assert "The reply repeats message 1: “Lea plays the viola every Tuesday evening”" in shown
    told = "before this one, at rank 1, message 3: “Lea plays the cello, an instrument, and gave the viola back.”"
    assert told in shown
    # Once it is forgotten, nobody can tell what the reply rests on.
    operator.twin(f"m/{agent.uid}/forget?message=1", {})
    shown = plain(operator.get(f"r/{id}").body.decode())
    assert (
        "repeats no sentence of what is left of what the model was told. 1 text was forgotten since" in shown
    )


def test_a_question_asked_again_says_that_its_note_may_be_forgotten(operator: Operator) -> None:
    """It said that memory had nothing for it, of what the operator had just forgotten."""
    world = operator.world
    speak(world, "My tea is in the red tin.")
    for _ in range(2):
        agent = speak(world, "Where is my tea?")
    again = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    assert operator.twin(f"r/{again}")["note"]
    operator.twin(f"m/{agent.uid}/forget?message=1", {})
    explained = operator.twin(f"r/{again}")
    assert explained["note"] is None
    assert explained["sentence"].endswith(
        "so memory was not searched again. What it had was forgotten since."
    )
    # For another reply, a list of all says of it that nothing was searched for.
    listed = operator.get("requests").body.decode()
    (row,) = (each for each in listed.split("<tr>") if f"r/{again}" in each)
    assert "not searched" in row
    assert listed.count("not searched") == 1


def test_a_question_asked_again_says_that_its_reply_is_forgotten(operator: Operator) -> None:
    """It said that memory had nothing, or that this was forgotten, of what was known to be the latter."""
    speak(operator.world, "My tea is in the red tin.")
    for _ in range(2):
        agent = speak(operator.world, "Where is my tea?")
    again = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    operator.twin(f"m/{agent.uid}/forget?message=4", {})
    assert operator.twin(f"r/{again}")["sentence"].endswith(
        "searched again. The reply was forgotten since, and with it what is known of the first time."
    )


@contextmanager
def begun_count(world: World, rest: Gate) -> Iterator[Any]:
    """Provides a stream of which the first word has come. rest: the gate before the second one."""
    world.upstream.queue(say("One. Two.", tokens=["One. ", "Two."], hold_after={2: rest}))
    with world.sdk.chat.completions.create(
        model="m", stream=True, user="alice", messages=[{"role": "user", "content": "Count."}]
    ) as stream:
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        yield stream


def test_the_slowest_requests_are_listed_the_longest_first(operator: Operator) -> None:
    """Whoever looked for them read 2,000 rows, the newest first."""
    world = operator.world
    rest = Gate()
    with begun_count(world, rest) as stream:
        world.chat(user="bob").say("Hello.")  # within the time of the other request
        rest.open()
        assert [*stream]
    world.settle()
    assert [each["name"] for each in operator.twin("requests")["items"]] == ["bob", "alice"]
    slowest = operator.twin("requests?only=slowest")
    assert ([each["name"] for each in slowest["items"]], slowest["next"]) == (["alice", "bob"], None)
    assert [each["name"] for each in operator.twin("requests?only=slowest&limit=1")["items"]] == ["alice"]
    assert "requests?only=slowest" in operator.get("requests").body.decode()
    assert "the longest first" in plain(operator.get("requests?only=slowest").body.decode())


def test_a_reply_that_its_client_left_has_not_failed(upstream: StrictUpstream, operator: Operator) -> None:
    """Each interruption of a voice agent was listed as a failure with the status 499."""
    world = operator.world
    rest = Gate()
    with begun_count(world, rest):
        pass
    upstream.last.gone.wait_sync()
    rest.open()
    memory_of(world)
    (left,) = operator.twin("requests")["items"]
    assert left["status"] == 499
    assert ">client left<" in operator.get("requests").body.decode()
    shown = plain(operator.get(f"r/{left['id']}").body.decode())
    assert "the client left before the end of the reply" in shown
    assert "failed" not in shown


def test_a_request_says_why_its_search_may_have_missed_a_fact(operator: Operator) -> None:
    """A stored fact was not recalled, and the screen said only that nothing answers the question."""
    agent = speak(operator.world, "Hello.", talk="c1")
    learn(operator.world, agent, "Anja is allergic to hazelnuts.")
    speak(operator.world, "Which cake could I bake?", talk="c2")
    missed = operator.twin("requests")["items"][0]["id"]
    hint = "Only texts that share a word with the question are found"
    assert hint in plain(operator.get(f"r/{missed}").body.decode())
    speak(operator.world, "Which cakes have hazelnuts?", talk="c3")
    found = operator.twin("requests")["items"][0]["id"]
    assert hint not in plain(operator.get(f"r/{found}").body.decode())


def test_a_question_asked_again_says_that_memory_had_nothing(operator: Operator) -> None:
    speak(operator.world, "My cat is called Miso.")
    for _ in range(2):
        agent = speak(operator.world, "Where is my tea?")
    again = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    sentence = operator.twin(f"r/{again}")["sentence"]
    assert sentence.startswith(
        "This question was asked once more, so memory was not searched again. The first time"
    )
    assert sentence.endswith("nothing was recalled: the search found nothing that answers this.")


def test_the_request_of_a_long_list_that_was_forgotten_names_all_messages(operator: Operator) -> None:
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    chat.messages += [
        {"role": "user", "content": "My tea is in the tin."},
        {"role": "assistant", "content": "Ok."},
    ]
    chat.say("Where is my tea?")
    uid = memory_of(operator.world, "alice").uid
    (request,) = operator.twin(f"requests?memory={uid}")["items"]
    operator.post(f"m/{uid}/forget?exchange=1")
    assert "Messages 1 to 4 were forgotten " in plain(operator.get(f"r/{request['id']}").body.decode())
    assert "message 1 and the rest of its turn" in plain(operator.get("audit").body.decode())


def test_the_request_of_a_reply_that_was_forgotten_says_who_forgot_it(operator: Operator) -> None:
    """It was an end without a way on."""
    agent = speak(operator.world, "My tea is in the red tin.", "Where is my tea?")
    speak(operator.world, "Hello.", talk="c2")
    hello, where, _ = (each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"])
    operator.post(f"m/{agent.uid}/forget?exchange=3")
    reply = operator.get(f"r/{where}")
    html = reply.body.decode()
    shown = " ".join(re.sub("<[^>]+>", "", html).split())
    assert reply.status == 404
    assert "There is nothing to show: the question and the reply were forgotten." in shown
    assert "Message 3 and its reply were forgotten " in shown
    assert " by operator." in shown
    assert f'href="../m/{agent.uid}">' in html
    assert f"audit?memory={agent.uid}" in html
    assert 'role="alert"' not in html
    assert operator.get(f"r/{hello}").status == 200
    assert operator.program("GET", f"r/{where}.json").status == 404
    # One of another project learns nothing of it.
    other = operator_of(operator.world, "shop").get(f"r/{where}")
    assert (other.status, agent.uid in other.body.decode()) == (404, False)
    operator.twin(f"m/{agent.uid}/forget?all=1", {"confirm": "4"})
    assert "There is no such request." in operator.get(f"r/{where}").body.decode()


def test_a_request_with_what_a_tool_returned_says_so(operator: Operator) -> None:
    world = operator.world
    world.upstream.queue(call_tools(Call("find_tea", {})), say("In the red tin."))
    user = {"role": "user", "content": "Where is my tea?"}
    body = {
        "model": "m",
        "user": "alice",
        "messages": [user],
        "tools": [{"type": "function", "function": {"name": "find_tea"}}],
    }
    call = world.gateway.post(body).json["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "red tin"}
    assert world.gateway.post({**body, "messages": [user, call, result]}).status == 200
    agent = memory_of(world)
    last, _ = (each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"])
    explained = operator.twin(f"r/{last}")
    assert explained["sentence"].startswith("The conversation went on with what a tool returned")
    shown = operator.get(f"r/{last}").body.decode()
    assert "In the red tin." in remove_marks(shown)
    assert re.search(r"\[as in message \d+: </span>red tin<", shown)
    assert "what a tool returned" in operator.get(f"requests?memory={agent.uid}").body.decode()


def test_a_reply_that_repeats_what_a_tool_returned_names_the_tool(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """Its page named no text, as if the reply had been made up."""
    with remember(upstream, tmp_path, agent("helper")) as world:
        operator = operator_of(world)
        world.chat(user="alice", model="agent/helper").say(
            "My train to Lyon leaves at nine from platform four."
        )
        search = Call("conversation_search", {"query": "train"})
        upstream.queue(call_tools(search), say("Sure. My train to Lyon leaves at nine from platform four."))
        world.clock.sleep(60)
        assert world.chat(user="alice", model="agent/helper").say("Zxqv?").startswith("Sure.")
        world.settle()
        asked = operator.twin("requests")["items"][0]["id"]
        explained = operator.twin(f"r/{asked}")
        assert explained["chosen"] == []
        assert "before_reply" not in explained
        text = unescape(operator.get(f"r/{asked}").body.decode())
        (href,) = re.findall(r'what a tool returned, <a href="([^"]*)">.*?conversation_search.*?</a>', text)
        assert (
            '<mark><span class="unseen" dir="ltr" lang="en">[as in conversation_search: </span>My train'
            in text
        )
        page, _, place = href.removeprefix("../").partition("#")
        assert f'id="{place}"' in operator.get(page).body.decode()
        (search_path,) = re.findall(r'href="\.\./([^"]*)">Find these words', text)
        found = operator.get(search_path).body.decode()
        assert "platform" in found
        assert 'name="texts" value="1"' in found


def test_a_reply_that_repeats_what_the_applications_tool_returned_names_its_message(
    operator: Operator,
) -> None:
    world = operator.world
    world.upstream.queue(call_tools(Call("find_tea", {})), say("The tea is in the red tin."))
    user = {"role": "user", "content": "Where is it?"}
    tools = [{"type": "function", "function": {"name": "find_tea"}}]
    body = {"model": "m", "user": "alice", "messages": [user], "tools": tools}
    call = world.gateway.post(body).json["choices"][0]["message"]
    result = {
        "role": "tool",
        "tool_call_id": call["tool_calls"][0]["id"],
        "content": "the tea is in the red tin",
    }
    assert world.gateway.post({**body, "messages": [user, call, result]}).status == 200
    memory_of(world)
    asked = operator.twin("requests")["items"][0]["id"]
    text = operator.get(f"r/{asked}").body.decode()
    assert re.search(r'what a tool returned, <a href="[^"]*#message-\d+">.*?message \d+.*?</a>', text)


def test_a_request_that_a_program_makes_for_itself_says_so(operator: Operator) -> None:
    title = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history."
    speak(operator.world, title)
    id = operator.twin("requests")["items"][0]["id"]
    assert operator.twin(f"r/{id}")["sentence"].startswith(
        "A program asked this for itself (open-webui title)"
    )


def test_the_question_of_a_reply_that_was_forgotten_is_still_listed(operator: Operator) -> None:
    agent = speak(operator.world, "Where is my tea?")
    operator.twin(f"m/{agent.uid}/forget?message=2", {})
    id = operator.twin("requests")["items"][0]["id"]
    assert "Where is my tea?" in operator.get(f"requests?memory={agent.uid}").body.decode()
    operator.twin(f"m/{agent.uid}/forget?message=1", {})
    listed = operator.get(f"requests?memory={agent.uid}").body.decode()
    assert ">forgotten<" in listed
    assert "not kept" not in listed
    assert b"the question and the reply were forgotten" in operator.get(f"r/{id}").body
    # The list that led there is where one goes on.
    referer = f"http://{operator.host}/ui/requests?memory={agent.uid}"
    shown = operator.ask(
        "GET", f"r/{id}", None, {"cookie": operator.cookie, "referer": referer}
    ).body.decode()
    assert f'<a href="../requests?memory={agent.uid}">Back</a>' in shown


def test_a_request_says_that_its_reply_was_forgotten(operator: Operator) -> None:
    """The page knew, and named what else it might be."""
    agent = speak(operator.world, "Where is my tea?")
    id = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    operator.twin(f"m/{agent.uid}/forget?message=2", {})
    reply = operator.get(f"r/{id}")
    assert (reply.status, "the reply was forgotten." in reply.body.decode()) == (404, True)


def test_a_request_says_that_its_question_and_reply_were_forgotten(operator: Operator) -> None:
    """It said that the reply was, and then which message: the question."""
    agent = speak(operator.world, "Where is my tea?")
    id = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    operator.post(f"m/{agent.uid}/forget?texts=1&texts=2", confirm="2")
    shown = plain(operator.get(f"r/{id}").body.decode())
    assert "There is nothing to show: the question and the reply were forgotten." in shown
    assert sorted(re.findall(r"Message (\d) was forgotten", shown)) == ["1", "2"]


def test_a_request_names_each_forgetting_that_took_a_part_of_it(operator: Operator) -> None:
    """It named only the first: who forgot the reply, and not who then forgot the question."""
    agent = speak(operator.world, "Where is my tea?")
    id = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    operator.twin(f"m/{agent.uid}/forget?message=2", {})
    speak(operator.world, "Where is my tea now?")
    operator.twin(f"m/{agent.uid}/forget?message=1", {})
    shown = operator.get(f"r/{id}").body.decode()
    assert re.findall(r"<li>(Message \d) was forgotten", shown) == ["Message 2", "Message 1"]


def test_what_stayed_out_for_one_reason_is_counted_once(upstream: StrictUpstream, operator: Operator) -> None:
    upstream.queue(*[say("My train to Lyon leaves on 4 May.")] * 2)
    for n in range(2):
        speak(operator.world, "My train to Lyon leaves on 4 May.", talk=f"c{n}")
    speak(operator.world, "When does my train to Lyon leave?", talk="c3")
    id = operator.twin("requests")["items"][0]["id"]
    assert operator.twin(f"r/{id}")["sentence"].endswith(" 3 stayed out: saying the same as another.")
    # The button says “Do not mention”, and “muted” is a word of no screen.
    uid = memory_of(operator.world).uid
    seq = operator.twin(f"m/{uid}/facts", {"text": "Alice fetches pelargoniums in Nantes."})["seq"]
    operator.twin(f"m/{uid}/f/{seq}/mute", {"muted": True})
    speak(operator.world, "Where do I fetch pelargoniums?", talk="c4")
    id = operator.twin("requests")["items"][0]["id"]
    assert operator.twin(f"r/{id}")["sentence"].endswith(" 1 stayed out: not to be mentioned.")


def test_an_added_fact_is_found_in_the_audit_by_its_action(operator: Operator) -> None:
    """The filter had a list of its own, without it."""
    uid = speak(operator.world, "Hello.").uid
    operator.twin(f"m/{uid}/facts", {"text": "Alice likes tea."})
    (entry,) = operator.twin("audit?action=remember")["items"]
    assert (entry["action"], entry["memory"]) == ("remember", uid)
