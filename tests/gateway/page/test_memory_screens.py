"""The screens of memories, asked for as a browser and as a program ask: read, mended, forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shlex
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import pytest
from markupsafe import escape
from msgspec.structs import replace

from gateway.core.dates import render_day
from gateway.core.memory.word_diff import diff_words
from gateway.run.admin.transfer.memory_export import MemoryExport
from gateway.settings import BlockSettings, ProfileSettings
from storage.commands import LearnedFact
from storage.errors import StoreBusy
from storage.postgres.database import PostgresDatabase
from storage.reader_commands import LearnedChanges
from storage.records import Agent
from storage.sql import preview_notes
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.gateway.page.memories import HOSTILE, learn, memory_of, speak
from tests.gateway.page.operator import FORM, Operator, operator_of, plain
from tests.gateway.page.person import person_of
from tests.gateway.sdk import CHAT, agent, remember
from tests.patience import PATIENCE_S, becomes
from tests.rows import each_row
from tests.server import QUIET

PROFILE = ProfileSettings(
    "default",
    blocks=(BlockSettings("human", "What is known.", limit=3_000), BlockSettings("law", read_only=True)),
)
SECRET = "Zqmisox"


@pytest.fixture
def operator(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Operator]:
    with remember(upstream, tmp_path, PROFILE) as world:
        yield operator_of(world)


def page(operator: Operator, path: str, status: int = 200) -> str:
    reply = operator.get(path)
    assert reply.status == status, reply.body
    return reply.body.decode()


def actions(operator: Operator) -> list[tuple[str, str | None]]:
    world = operator.world
    world.settle()
    listed = world.gateway.call(world.store.audit.list_page(before=1 << 40))
    return [(each.action, each.memory) for each in reversed(listed) if each.action != "login"]


@pytest.mark.both
def test_searches_that_wait_hold_up_no_other_screen(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, gate = operator.world, Gate()
    speak(world, "My cat is called Miso.")
    search, waiting = world.store.recall.search, list[int]()

    async def search_late(*given: Any, **options: Any) -> Any:
        waiting.append(1)
        await gate.wait()
        return await search(*given, **options)

    monkeypatch.setattr(world.store.recall, "search", search_late)
    path = f"m/{memory_of(world).uid}/search?q=What+is+my+cat+called"
    with ThreadPoolExecutor() as pool:
        searches = [pool.submit(page, operator, path) for _ in range(3)]
        becomes(lambda: waiting and world.gateway.app._edge.active_count == 3)
        shown = pool.submit(page, operator, "people")
        try:
            assert shown.result(PATIENCE_S)
        finally:
            gate.open()
        assert all(each.result(PATIENCE_S) for each in searches)


def test_no_more_than_two_screens_are_read_at_once(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, gate = operator.world, Gate()
    memories, reading, counts = world.store.memory_pages.list_memories, list[int](), list[int]()

    async def read_late(*given: Any, **options: Any) -> Any:
        reading.append(1)
        counts.append(len(reading))
        await gate.wait()
        found = await memories(*given, **options)
        reading.pop()
        return found

    monkeypatch.setattr(world.store.memory_pages, "list_memories", read_late)
    with ThreadPoolExecutor() as pool:
        screens = [pool.submit(page, operator, "people") for _ in range(5)]
        try:
            becomes(lambda: world.gateway.app._edge.active_count == 5 and len(reading) > 1)
        finally:
            gate.open()
        assert all(each.result(PATIENCE_S) for each in screens)
    assert (len(counts), max(counts)) == (5, 2)


@pytest.mark.both
def test_a_screen_reads_no_more_often_where_its_lists_are_longer(operator: Operator) -> None:
    """Each statement waits for its turn beside those of replies, and over PostgreSQL for the network."""
    world = operator.world
    database = world.store.database
    if isinstance(database, PostgresDatabase):
        # What was forgotten before the process listens was missed. So the requests before it are looked up each time.
        becomes(database._listener._probe_arrived.is_set)
    agent = speak(world, "My cat is called Miso.", talk="conv-0")
    uid = agent.uid
    learn(world, agent, "Fact 0 of the cat.", block="Cat: Miso.")
    person, counts = person_of(world), list[dict[str, int]]()
    for size in (2, 12):
        for n in range(len(counts) * 2, size):
            world.upstream.queue(*[say("A whisker twitches.")] * 2)  # uncommon words, which older texts have
            speak(world, f"What does my cat Miso like, number {n}?", f"And {n}?", talk=f"conv-{n + 1}")
            learn(world, agent, f"The cat likes number {n}.", block=f"Cat: Miso, {n}.")
            speak(world, "Hello.", user=f"person-{n}")
        talk = operator.twin(f"m/{uid}")["conversations"][0]["id"]
        (fact, *_) = operator.twin(f"m/{uid}/facts")["items"]
        request = operator.twin(f"requests?memory={uid}")["items"][0]["id"]
        paths = {
            "overview": "",
            "people": "people",
            "name": "people?q=person",
            "what people wrote": "people/words?q=number",
            "memory": f"m/{uid}",
            "facts": f"m/{uid}/facts?all=1",
            "conversations": f"m/{uid}/conversations",
            "passages": f"m/{uid}/passages",
            "search": f"m/{uid}/search?q=What+does+my+cat+like%3F",
            "words": f"m/{uid}/words?q=my+cat",
            "block": f"m/{uid}/b/human",
            "fact": f"m/{uid}/f/{fact['seq']}",
            "conversation": f"m/{uid}/c/{talk}",
            "forget fact": f"m/{uid}/forget?fact={fact['seq']}",
            "forget conversation": f"m/{uid}/forget?conversation={talk}",
            "forget all": f"m/{uid}/forget?all=1",
            "request": f"r/{request}",
            "requests": "requests",
            "its requests": f"requests?memory={uid}",
            "audit": "audit",
            "work": "work",
            "keys": "keys",
            "about me": person.path,
            "their block": f"{person.path}/b/human",
        }
        for path in paths.values():
            page(operator, path)  # which notes the read, and fills caches
        counts.append(
            {
                name: len(world.statements_of(lambda path=path: page(operator, path)))
                for name, path in paths.items()
            }
        )
    few, many = counts
    assert many == few
    # A search plans a reply. Where other processes may have written, it asks whether its snapshot is still right.
    is_shared = database.is_shared
    assert few == {
        "overview": 3, "people": 1, "name": 3, "what people wrote": 7, "memory": 20, "facts": 4,
        "conversations": 5, "passages": 3, "search": 15 + is_shared, "words": 13, "block": 15, "fact": 5,
        "conversation": 15, "forget fact": 24,
        "forget conversation": 20, "forget all": 11, "request": 15, "requests": 0, "its requests": 6, "audit": 2,
        "work": 5, "keys": 1, "about me": 13, "their block": 10,
    }  # fmt: skip


def test_an_empty_memory_says_what_to_do(operator: Operator) -> None:
    assert "Nobody is remembered yet. Name who is speaking with" in page(operator, "people")
    assert operator.twin("people") == {"items": [], "next": None}
    assert "the id that your application sends" in page(operator, "people")
    speak(operator.world, "Hello.")
    uid = memory_of(operator.world).uid
    text = page(operator, f"m/{uid}")
    assert "No facts yet. They are learned in the background once a background model is set." in text
    assert (
        "Without a model, only a sentence such as “I am allergic to nuts” becomes a fact, which is told"
        in text
    )
    nothing = page(operator, f"m/{uid}/search?q=Zxqv+tyrr")
    assert "Nothing would be recalled for this." in nothing
    assert "Only texts that share a word with the sentence are found" in nothing


def test_a_memory_without_facts_says_how_learning_stands(operator: Operator) -> None:
    """ "Being learned now" was not said, and who waited for no facts wrote corrections twice."""
    world = operator.world
    agent = speak(world, "Hello.")
    jobs = world.store.jobs

    async def add() -> None:
        due = world.clock() + 3_600
        await jobs.write_enqueuing(lambda c: jobs.enqueue_in(c, "learn", agent.id, "learn", due=due))

    assert "They are learned in the background once a background model is set." in page(
        operator, f"m/{agent.uid}"
    )
    world.gateway.call(add())
    assert "Learning from what was said waits for its turn" in page(operator, f"m/{agent.uid}")

    async def fail() -> None:
        job = await jobs.leases.claim(["learn"], lease_s=60.0, tries=5)
        assert job is not None
        await jobs.fail(job, "it failed", 60.0)

    # "They are being learned now: look again in a minute" stood there for hours while each attempt failed.
    world.clock.sleep(3_600)
    world.gateway.call(fail())
    operator.sign_in()
    assert "Learning them did not work at the last attempt" in page(operator, f"m/{agent.uid}")
    assert operator.twin(f"m/{agent.uid}").keys() == {
        "memory",
        "blocks",
        "facts",
        "conversations",
        "passages",
    }


@pytest.mark.both
def test_each_twin_has_the_record_of_its_page(operator: Operator) -> None:
    agent = speak(operator.world, f"My cat is called {SECRET}.", "She is grey.", talk="conv-19")
    (seq,) = learn(operator.world, agent, f"Alice has a cat called {SECRET}.", block=f"Cat: {SECRET}.")
    uid = agent.uid
    (person,) = operator.twin("people")["items"]
    assert (person["uid"], person["name"], person["messages"], person["facts"]) == (uid, "alice", 4, 1)
    memory = operator.twin(f"m/{uid}")
    assert sorted(memory) == ["blocks", "conversations", "facts", "memory", "passages"]
    assert memory["memory"] == person
    assert memory["facts"] == operator.twin(f"m/{uid}/facts")["items"]
    assert memory["conversations"] == operator.twin(f"m/{uid}/conversations")["items"]
    assert operator.twin(f"m/{uid}/passages") == {"items": [], "next": None}
    block = operator.twin(f"m/{uid}/b/human")
    assert (block["block"]["version"], block["diff"]["from"], block["diff"]["to"]) == (2, 1, 2)
    assert operator.twin(f"m/{uid}/b/human?from=2&to=1")["diff"]["parts"][0]["op"] == "del"
    fact = operator.twin(f"m/{uid}/f/{seq}")
    assert sorted(fact) == ["after", "before", "fact"]
    (talk,) = memory["conversations"]
    chat = operator.twin(f"m/{uid}/c/{talk['id']}")
    assert [m["text"] for m in chat["items"] if m["role"] == "user"] == [
        f"My cat is called {SECRET}.",
        "She is grey.",
    ]
    search = operator.twin(f"m/{uid}/search?q=What+is+my+cat+called")
    assert sorted(search) == ["chosen", "found", "left_out", "next", "note", "query"]
    for path in ("", "/facts?all=1", "/conversations", "/passages", "/b/human", f"/f/{seq}", f"/c/{talk['id']}",
                 "/search?q=cat", "/forget?all=1", f"/forget?fact={seq}"):  # fmt: skip
        text = page(operator, f"m/{uid}{path}")
        assert text.count("<h1") == 1
        assert len(text) < 100_000
    shown = page(operator, f"m/{uid}/f/{seq}")
    href = fact["fact"]["sources"][0]["href"]
    assert f'href="../../../{href.replace("&", "&amp;")}"' in shown
    assert "My cat is called" in page(operator, href.partition("#")[0])
    raw = operator.get(f"m/{uid}/c/{talk['id']}?message={chat['items'][0]['seq']}")
    assert (raw.headers["content-type"], raw.body.decode()) == (
        "text/plain; charset=utf-8",
        f"My cat is called {SECRET}.",
    )
    (export,) = re.findall(r'href="([^"]*)"[^>]*>Export \(JSON\)<', page(operator, f"m/{uid}"))
    lines = [json.loads(line) for line in operator.get(export.removeprefix("../")).body.splitlines()]
    assert (lines[0]["memory"]["uid"], lines[-1]) == (uid, {"end": {}})
    assert actions(operator).count(("read", uid)) == 2  # of the session, and of the program
    assert actions(operator).count(("export", uid)) == 1


def test_a_page_of_many_long_texts_stays_small_and_the_rest_follows(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    learn(operator.world, agent, *(f"{n} {'<&' * 195}" for n in range(60)))
    path = f"m/{agent.uid}/facts"
    seqs = [fact["seq"] for fact in operator.twin(f"{path}?limit=200")["items"]]
    assert len(seqs) == 60
    seen = []
    link: str | None = f"{path}?limit=200"
    while link:
        text = page(operator, link)
        assert len(text) < 100_000
        seen += map(int, re.findall(r'aria-label="Fact (\d+)"', text))
        following = re.search(r'href="(\?[^"]*)">Next page', text)
        link = path + unescape(following[1]) if following else None
    assert seen == seqs
    long = operator.get(f"m/{agent.uid}/f/{seqs[0]}").body.decode()
    assert unescape(long).count("<&") >= 195


def test_a_page_of_a_search_with_many_hits_stays_small(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    learn(operator.world, agent, *(f"The cat of Alice number {n} is Miso." for n in range(150)))
    path = f"m/{agent.uid}/search?q=the+cat+of+Alice+Miso"
    assert len(operator.twin(path)["found"]) == 50
    assert len(page(operator, path)) < 100_000


@pytest.mark.both
def test_a_read_that_takes_too_long_is_stopped_and_says_so(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock is looked at within a read of few rows, as it is within one of many.
    monkeypatch.setattr("storage.sqlite.reader._INSTRUCTIONS_PER_CHECK", 100)
    with remember(upstream, tmp_path, PROFILE, limits=replace(QUIET, page_read_s=1e-9)) as world:
        operator = operator_of(world)
        agent = speak(world, "Hello.")
        learn(world, agent, *(f"Fact {n}." for n in range(100)))
        path = f"m/{agent.uid}/facts"
        said = "Reading this took too long, and was stopped"
        assert f'<h1 dir="auto">{said}' in page(operator, path, 503)
        reply = operator.program("GET", f"{path}.json")
        assert (reply.status, reply.json["error"]["code"]) == (503, "memory_unavailable")
        assert reply.headers["retry-after"] == "1"
        # What is no screen has its own time, and so has what changes something.
        assert world.chat(user="alice").say("What do you know?")


def test_people_are_listed_by_their_last_turn_whatever_its_hour(operator: Operator) -> None:
    world = operator.world
    said = [("Ann", 0), ("bob", 5_000), ("anton", 20), ("Carl", 9_000), ("zoe", 30), ("bob", 40)]
    for name, pause in said:
        world.clock.sleep(pause)
        speak(world, "Hello.", user=name)
    order = ["bob", "zoe", "Carl", "anton", "Ann"]

    def names(query: str) -> list[str]:
        found, following = [], ""
        while True:
            page = operator.twin(f"people?limit=2&{query}{following}")
            found += [each["name"] for each in page["items"]]
            if page["next"] is None:
                return found
            following = f"&after={page['next']}"

    assert names("") == order
    assert names("q=aN") == ["anton", "Ann"]
    assert names("q=b") == ["bob"]
    assert names("q=bobby") == names("kind=agent") == []


@pytest.mark.both
def test_people_are_listed_by_their_messages(operator: Operator) -> None:
    """To see of whom most is remembered, all pages of the list had to be read."""
    for user, count in (("ann", 2), ("bob", 3), ("Anton", 1), ("carl", 3)):
        speak(operator.world, *(f"Hello {n}." for n in range(count)), user=user)
    shown = page(operator, "people")
    assert "Those who spoke last come first." in shown
    (link,) = re.findall(r'<a href="([^"]*)">Most messages first<', shown)
    found, path = [], f"people{unescape(link)}&limit=2"
    while path:
        assert "Those with the most messages come first." in page(operator, path)
        listed = operator.twin(path)
        found += [(each["name"], each["messages"]) for each in listed["items"]]
        path = listed["next"] and f"people?order=messages&limit=2&after={listed['next']}"
    assert found == [("carl", 6), ("bob", 6), ("ann", 4), ("Anton", 2)]
    named = operator.twin("people?order=messages&q=an")["items"]
    assert [each["name"] for each in named] == ["ann", "Anton"]
    assert operator_of(operator.world, "shop").twin("people?order=messages")["items"] == []
    assert operator.get("people?order=messages&kind=agent").status == 400
    assert operator.get("people?order=size").status == 400


@pytest.mark.both
def test_a_person_is_found_by_what_a_block_calls_them(operator: Operator) -> None:
    """Whoever looked for Maria by that name found nobody: an application names her u-1047."""
    world = operator.world
    for user, text in (("u-1047", "Name: Maria Lindqvist"), ("maria-2", "Called Maria."), ("u-9", "Ann.")):
        uid = speak(world, "Hello.", user=user).uid
        operator.twin(f"m/{uid}/b/human", {"value": text, "version": 1})
    assert '../people" aria-current="true">People<' in page(operator, f"m/{uid}")
    assert '../people" aria-current="true">People<' in page(operator, "people/words?q=maria")
    assert 'people" aria-current="page">People<' in page(operator, "people")
    text = page(operator, "people?q=maria")
    listed, _, called = text.partition('<h2 id="called">')
    assert [name in listed for name in (">maria-2<", ">u-1047<", ">u-9<")] == [True, False, False]
    assert [name in called for name in (">maria-2<", ">u-1047<", ">u-9<")] == [False, True, False]
    assert "Name: Maria Lindqvist</span>" in called
    assert "No name begins with" not in page(operator, "people?q=lindqvist")
    (found,) = re.findall(r'href="([^"]*)"[^>]*><span[^>]*>u-1047<', called)
    assert page(operator, found)
    assert [each["name"] for each in operator.twin("people?q=maria")["items"]] == ["maria-2"]
    # It is shown whose block has it, so their memory was read.
    fresh = memory_of(world, "u-1047").uid
    assert ("read", fresh) in actions(operator)
    # Where nobody is found, the words are looked for.
    assert operator.get("people?q=x%25").headers["location"] == "people/words?q=x%25&name=1"
    shop = operator_of(world, "shop")
    assert "u-1047" not in page(shop, shop.get("people?q=maria").headers["location"])


@pytest.mark.both
def test_a_person_is_found_by_the_words_of_their_id(operator: Operator) -> None:
    """Nobody was found by "Li Wei" or "Wei", though the application names that person li.wei."""
    world = operator.world
    for user in ("li.wei", "kim_li@example", "delia"):
        speak(world, "Hello.", user=user)

    def called(query: str) -> list[str]:
        reply = operator.get(f"people?q={quote(query)}")
        section = reply.body.decode().partition('<h2 id="called">')[2]
        return re.findall(r'<a href="m/[^"]*"><span[^>]*>([^<]*)<', section)

    assert called("Li Wei") == called("Wei") == called("li-wei") == called("wei ") == ["li.wei"]
    # As lists of customers have them.
    assert called("Wei, Li") == called("Wei Li") == ["li.wei"]
    # Those whose id begins so are in the table.
    assert called("li") == ["kim_li@example"]
    assert called("example") == called("LI EX") == ["kim_li@example"]
    # Four characters count anywhere: whoever has the end of a customer's number finds the customer.
    assert called("ELIA") == called("elia") == ["delia"]
    assert called("xample") == called("im-li ex") == ["kim_li@example"]
    # Fewer do not within a word, nor do signs, nor the kind of the memory.
    for query in ("ei", "lia", ".", "_", "user", "li%"):
        assert called(query) == [], query
        assert operator.get(f"people?q={quote(query)}").status == 303, query
    shop = operator_of(world, "shop")
    assert shop.get("people?q=wei").status == 303


def test_a_memory_says_what_its_person_is_called(operator: Operator) -> None:
    """Of a hundred customers with numbers for names, one is forgotten from the wrong one."""
    uid = speak(operator.world, "Hello.", user="u-1047").uid
    for version, (text, line) in enumerate(
        (
            ("Likes tea.\n- Name: Maria Lindqvist\n", "Name: Maria Lindqvist"),
            ("Full name : <b>Ann</b>", "Full name : &lt;b&gt;Ann&lt;/b&gt;"),
            ("Cat name: Miso. Name: unknown.", None),
            ("Name:\n", None),
            ("Likes tea. The user's name is Kim. She lives in Bern.", "The user&#39;s name is Kim"),
            ("The user’s sister's name is Kim. Their customer is called Kim.", None),
            ("The user's name is not known.", None),
            ("The patient's name is Kim. Her dog's name is Rex.", "The patient&#39;s name is Kim"),
        ),
        1,
    ):
        operator.twin(f"m/{uid}/b/human", {"value": text, "version": version})
        for path in ("", "/forget?all=1", "/forget?message=1"):
            head = page(operator, f"m/{uid}{path}").partition("</h1>")[2][:400]
            assert (line is not None and line in head) == ("ame" in head), (path, head)


def test_a_memory_says_what_a_fact_calls_its_person(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.", user="u-1047")
    learn(
        operator.world,
        agent,
        "The cat is called Miso.",
        "The user is called Kim Lee.",
        "Kim's cat is called Yuzu.",
    )
    for path in ("", "/forget?all=1"):
        head = page(operator, f"m/{agent.uid}{path}").partition("</h1>")[2][:400]
        assert "The user is called Kim Lee<" in head, path
        assert "cat is called" not in head


def test_a_whole_forgetting_says_that_others_may_name_the_person(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """After Tom was forgotten, a search found him in Maria's memory, of which nothing had warned."""
    with remember(upstream, tmp_path, PROFILE) as world:
        operator = operator_of(world)
        tom = speak(world, "Hello.", user="tom.h")
        maria = speak(world, "A cake for Thomas and Tom.", user="maria")
        for word, value in (("tom", "Likes tea."), ("Thomas", "Name: Thomas H.")):
            operator.twin(f"m/{tom.uid}/b/human", {"value": value, "version": 1 if word == "tom" else 2})
            preview = page(operator, f"m/{tom.uid}/forget?all=1")
            assert f"Search what people wrote for “{word}”" in plain(preview)
            (link,) = re.findall(r'href="\.\./\.\./(people/words[^"]*)"', preview)
            assert f'href="../m/{maria.uid}"' in page(operator, unescape(link))
        customer = speak(world, "Hello.", user="customer-0003")
        preview = plain(page(operator, f"m/{customer.uid}/forget?all=1"))
        assert "Search what people wrote for “customer-0003”" in preview
        # Two Latin letters are no name to search for, two Chinese characters are.
        names = {"Name: Jo": "customer-0003", "Name: 李明": "李明", "The user's name is Kim Lee.": "Kim"}
        for version, (line, searched) in enumerate(names.items(), 1):
            change = {"value": line, "version": version}
            operator.twin(f"m/{customer.uid}/b/human", change)
            preview = plain(page(operator, f"m/{customer.uid}/forget?all=1"))
            assert f"Search what people wrote for “{searched}”" in preview
        # Of "k.keller" the first word is a letter, which nobody is called.
        keller = speak(world, "Hello.", user="k.keller")
        link, text = 'people/words?q=keller"', "Search what people wrote for “keller”"
        shown = page(operator, f"m/{keller.uid}/forget?all=1")
        assert (link in shown, text in plain(shown)) == (True, True)
        # Somebody who asks for all that is stored of them may be named there, too.
        shown = page(operator, f"m/{keller.uid}")
        assert (link in shown, "“keller” in others’ memories" in plain(shown)) == (True, True)
        # Who cancels comes back to the link, which stands at the end of the memory's page.
        headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/m/{keller.uid}"}
        shown = operator.ask("GET", f"m/{keller.uid}/forget?all=1", None, headers).body.decode()
        assert f'href="../../m/{keller.uid}#forget-all">Cancel</a>' in shown
        assert 'id="forget-all"' in page(operator, f"m/{keller.uid}")
        # Afterwards the memory is no longer there to ask for it.
        gone = operator.post(f"m/{keller.uid}/forget?all=1", confirm="2").body.decode()
        assert (link in gone, text in plain(gone)) == (True, True)
        # It is no search for the person's own page.
        assert "people/words" not in person_of(world, "tom.h").page("/forget?all=1")


def test_a_whole_forgetting_leads_to_what_another_profile_remembers(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """It was named without a link, and whoever forgot all of a person had to find it."""
    with remember(upstream, tmp_path, PROFILE, ProfileSettings("coach")) as world:
        operator = operator_of(world)
        agent = speak(world, "Hello.")
        world.chat(headers={"x-mnemogate-user": "alice", "x-mnemogate-agent": "coach"}).say("I run.")
        uids = [each["uid"] for each in operator.twin("people")["items"]]
        (other,) = {*uids} - {agent.uid}
        stays = operator.twin(f"m/{agent.uid}/forget?all=1")["stays"]
        assert [each["href"] for each in stays if each["kind"] == "memory"] == [f"m/{other}"]
        shown = page(operator, f"m/{agent.uid}/forget?all=1")
        assert f'href="../../m/{other}">Open that memory</a>' in shown
        # The person's link opens one memory.
        preview = person_of(world).page("/forget?all=1")
        assert "What the profile" in plain(preview)
        assert other not in preview


def test_a_memory_calls_its_person_by_no_other_name(upstream: StrictUpstream, tmp_path: Path) -> None:
    """As by that of the model, or of the house, which the blocks of every memory have."""
    blocks = (
        BlockSettings("persona", value="Name: Zqsam, the assistant"),
        BlockSettings("house", value="Name: Zqhotel", shared=True),
        BlockSettings("human", value="Name: Ann"),
    )
    with remember(upstream, tmp_path, ProfileSettings("default", blocks=blocks)) as world:
        uid = speak(world, "Hello.").uid
        for path in ("", "/forget?all=1"):
            head = page(operator_of(world), f"m/{uid}{path}").partition("</h1>")[2][:400]
            assert ("Name: Ann" in head, "Name: Zq" in head) == (True, False), path


def test_a_memory_shows_how_its_person_gets_a_link(operator: Operator) -> None:
    """Whoever was to send one looked on every screen, and found it in the documents."""
    world = operator.world
    uid = speak(world, "Hello.", user="o'neil").uid
    shown = page(operator, f"m/{uid}")
    (command,) = re.findall(r"<pre[^>]*>(curl .*)</pre>", shown)
    assert f'data-copy="{command}" hidden>Copy the command</button>' in shown
    words = shlex.split(unescape(command))
    assert words[1] == f"http://{operator.host}/v1/memory/links"
    # It had an address and a key to be replaced, and no word on what the key is.
    assert "In place of KEY stands the key with which the application calls this gateway" in plain(shown)
    assert "A gateway without keys needs none: there the command works as it stands." in plain(shown)
    bearer = dict([words[words.index("-H") + 1].split(": ")])
    reply = world.gateway.ask("POST", "/v1/memory/links", words[-1].encode(), bearer)
    assert (reply.status, "/ui/me/" in reply.json["url"]) == (200, True)
    world.chat(headers={"x-mnemogate-conversation": "talk-1"}).say("Hello.")
    (other,) = operator.twin("people?kind=conversation")["items"]
    assert "curl" not in page(operator, f"m/{other['uid']}")


@pytest.mark.both
def test_conversations_are_listed_by_their_first_words(operator: Operator) -> None:
    agent = speak(operator.world, "My train to Lyon\n\n leaves on 4 May.", "Thanks.", talk="conv-19")
    speak(operator.world, f"{'long ' * 40}end", talk="conv-20")
    memory = f"m/{agent.uid}"
    for path in (memory, f"{memory}/conversations"):
        text = page(operator, path)
        assert "My train to Lyon leaves on 4 May.</span></a> <span" in text
        assert f"{('long ' * 16)[:80]}…" in text
        assert "conv-19" in text
    items = operator.twin(f"{memory}/c/conv-19")["items"]
    operator.post(f"{memory}/forget?message={items[0]['seq']}")
    text = page(operator, memory)
    assert "Lyon" not in text
    assert ">conv-19<" in text


@each_row(
    "path",
    ["m/UID/facts?as_of=soon", "m/UID/facts?as_of=nan", "m/UID/facts?as_of=1e999", "m/UID/facts?limit=0",
     "m/UID/facts?after=x", "m/UID?x=1", "m/UID/forget",
     "m/UID/forget?fact=1&all=1", "people?after=x", "people?kind=cat", "m/UID/b/human?from=9",
     "m/UID/search?q=a&after=x"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(operator: Operator, path: str) -> None:
    path = path.replace("UID", speak(operator.world, "Hello.").uid)
    assert operator.get(path).status == 400
    name, mark, query = path.partition("?")
    reply = operator.program("GET", f"{name}.json{mark}{query}")
    assert reply.status == 400
    assert sorted(reply.json["error"]) == ["code", "message", "param"]


def test_a_time_of_facts_counts_in_its_own_zone(operator: Operator) -> None:
    agent = speak(operator.world, "My train leaves on 4 May.")
    (seq,) = learn(operator.world, agent, "Alice's train leaves on 4 May.")  # on 2025-10-09 at 08:53:20 UTC
    for moment, expected in (
        ("2025-10-09T10:00:00", [seq]),
        ("2025-10-09T10:00:00%2B02:00", []),
        ("2025-10-09T07:00:00-02:00", [seq]),
        ("2025-10-08", []),
        ("2025-10-09", [seq]),
    ):
        found = operator.twin(f"m/{agent.uid}/facts?as_of={moment}")
        assert [each["seq"] for each in found["items"]] == expected, moment


@pytest.mark.both
def test_a_read_that_could_not_be_noted_is_noted_by_the_next_one(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one next to it shown."""
    uid = speak(operator.world, "Hello.").uid
    gate, noted = Gate(), list[Any]()

    async def fails(*entry: Any) -> None:
        noted.append(entry)
        await gate.wait()
        raise StoreBusy("no")

    with monkeypatch.context() as patches, ThreadPoolExecutor() as threads:
        patches.setattr(operator.world.store.audit, "add", fails)
        first = threads.submit(operator.get, f"m/{uid}")
        becomes(lambda: noted)
        second = threads.submit(operator.get, f"m/{uid}")
        becomes(lambda: len(noted) == 2 or second.done())
        gate.open()
        assert (first.result().status, second.result().status) == (503, 503)
    assert operator.get(f"m/{uid}").status == 200
    assert actions(operator).count(("read", uid)) == 1


@pytest.mark.both
def test_an_export_is_not_read_on_for_a_client_that_does_not_take_it(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, pages = speak(operator.world, "Hello.").uid, 10_000
    begun, ended = list[int](), list[int]()

    async def read(self: MemoryExport, agent: Agent) -> AsyncIterator[list[bytes]]:
        try:
            for number in range(pages):  # more bytes than the buffers of a connection hold
                begun.append(number)
                await asyncio.sleep(0)
                yield [b"x" * 10_000]
        finally:
            ended.append(len(begun))

    monkeypatch.setattr(MemoryExport, "_read_pages", read)
    path, headers = f"/ui/m/{uid}/export.jsonl", {"host": operator.host, "cookie": operator.cookie}
    with operator.world.gateway.connect() as client:
        client.request("HEAD", path, None, headers)
        assert client.read_head().status == 200
        assert begun == []
        client.request("GET", path, None, headers)
        assert client.read_head().status == 200
        assert client.read_chunk()
    assert becomes(lambda: ended)[0] < pages


def test_another_projects_operator_finds_no_such_memory(operator: Operator) -> None:
    uid = speak(operator.world, "Hello.").uid
    other = operator_of(operator.world, "other")
    for path in ("", "/facts", "/b/human", "/f/1", "/c/1", "/search?q=a", "/forget?all=1", "/export.jsonl"):
        assert other.get(f"m/{uid}{path}").status == 404
    assert "There is no such memory" in other.get(f"m/{uid}").body.decode()
    assert other.twin("people")["items"] == []
    assert other.post(f"m/{uid}/forget?all=1", confirm="2").status == 404
    assert other.post(f"m/{uid}/b/human", value="x", version=1).status == 404


def test_a_search_for_a_common_name_says_that_more_people_have_it(operator: Operator) -> None:
    """The list ended after ten, and whoever looked for the eleventh took it for all."""
    for number in range(11):
        speak(operator.world, "Hello.", user=f"u{number}.mueller")
        says_more = "More people than these are called so" in page(operator, "people?q=mueller")
        assert says_more == (number == 10), number


def test_people_of_one_name_in_two_projects_are_told_apart(operator: Operator) -> None:
    """On the overview, in the list of requests and among those who are called so, both were "ann.shaw"."""
    world = operator.world
    for project in ("shop", "bank"):
        key = world.gateway.call(world.store.keys.create(project, "app"))[1]
        headers = {"authorization": f"Bearer {key}", "x-mnemogate-user": "ann.shaw"}
        world.chat(headers=headers).say("Hello.")
        world.clock.sleep(1)
    world.settle()
    overview = plain(page(operator, ""))
    assert re.findall(r"ann\.shaw (\w+) · ", overview) == ["bank", "shop"]
    for path in ("", "requests"):
        listed = re.findall(r"ann\.shaw (\w+) what they asked", plain(page(operator, path)))
        assert listed == ["bank", "shop"], path
    called = plain(page(operator, "people?q=shaw").partition('<h2 id="called">')[2])
    assert sorted(re.findall(r"ann\.shaw project (\w+) · last turn", called)) == ["bank", "shop"]


def test_a_block_is_edited_undone_and_brought_back(operator: Operator) -> None:
    uid = speak(operator.world, "Hello.").uid
    for version, value in ((1, "One."), (2, "Two.")):
        done = operator.post(f"m/{uid}/b/human", value=value, version=version)
        assert (done.status, done.headers["location"]) == (303, f"../../../m/{uid}/b/human#saved")
    assert operator.twin(f"m/{uid}/b/human/undo", {"version": 3})["value"] == "One."
    # What an undo takes out was right before, and is not to be looked for.
    assert "what was there before the last change" not in page(operator, f"m/{uid}/b/human")
    assert operator.twin(f"m/{uid}/b/human/restore", {"version": 4, "to": 3})["value"] == "Two."
    assert operator.twin(f"m/{uid}/b/law", {"value": "Be kind.", "version": 1})["origin"] == "operator"
    done = [action for action, _ in actions(operator) if action != "read"]
    assert done == ["edit", "edit", "undo", "restore", "edit"]
    text = page(operator, f"m/{uid}/b/human")
    assert "<del>One.</del><ins>Two.</ins>" in text
    assert "what was there before the last change" in text
    assert f'href="../../../m/{uid}/search?q=One."' in text


@pytest.mark.both
def test_an_undo_names_what_it_brings_back_also_after_a_forgetting(operator: Operator) -> None:
    """What was forgotten stays so, and what came before it may be what somebody has corrected."""
    agent = speak(operator.world, "My dog is called Rex.")
    memory, block = f"m/{agent.uid}", f"m/{agent.uid}/b/human"
    assert ">Undo" not in page(operator, memory) + page(operator, block)
    operator.twin(block, {"value": "Lives in Oslo.", "version": 1})
    operator.twin(block, {"value": "Lives in Bergen.", "version": 2})
    learn(operator.world, agent, block="Lives in Bergen.\nDog: Rex.")
    for path, name in ((memory, "Undo human"), (block, "Undo last change")):
        text = page(operator, path)
        visible = re.sub(r'<span class="unseen">.*?</span>', "", text)
        assert name in [plain(each) for each in re.findall("<button[^>]*>(.*?)</button>", visible)]
        assert re.search(
            r"<details><summary[^>]*>Undo goes back to version 3: “<[^>]*>Lives in Bergen.<", text
        )  # closed: it looks like a loss
        assert "What an undo would change: − it takes out, + it puts back." in text
        assert "\n<del>Dog: Rex.</del>" in text  # not with the end of the line before
    operator.twin(f"{memory}/forget?exchange=1", {})
    for path in (memory, block):
        text = page(operator, path)
        assert "The last change was a forgetting, which stays." in text
        assert "Undo takes back the change before it, and goes back to version 2: “" in text
        assert "<del>Bergen.</del><ins>Oslo.</ins>" in text.partition("to version 2: ")[2]
    version = operator.twin(block)["block"]["version"]
    assert operator.twin(f"{block}/undo", {"version": version})["value"] == "Lives in Oslo."


@pytest.mark.both
def test_an_undo_passes_over_versions_that_a_forgetting_has_made_alike(operator: Operator) -> None:
    """A button that changes nothing looks broken, and a text that no operator wrote is not called theirs."""
    agent = speak(operator.world, "I like tea.")
    block = f"m/{agent.uid}/b/human"
    operator.twin(block, {"value": "Has a cat.", "version": 1})
    (seq,) = learn(operator.world, agent, "Likes tea.", block="Has a cat.\nLikes tea.")
    operator.twin(block, {"value": "Has a dog.", "version": 3})
    operator.twin(f"m/{agent.uid}/forget?fact={seq}", {})
    version = operator.twin(block)["block"]["version"]
    assert operator.twin(f"{block}/undo", {"version": version})["value"] == "Has a cat."
    assert operator.twin(f"{block}/undo", {"version": version + 1})["value"] == ""
    shown = plain(page(operator, block))
    assert "by learning; what it changed is forgotten" in shown
    assert shown.count("is forgotten ·") == 1


@pytest.mark.both
def test_an_earlier_version_of_a_block_is_forgotten_by_itself(operator: Operator) -> None:
    """It alone still said what was wrong, and the message that it came from was right."""
    agent = speak(operator.world, "My nephew is allergic.")
    block, forget = f"m/{agent.uid}/b/human", f"m/{agent.uid}/forget?version=human/"
    learn(operator.world, agent, block=f"Name: Maria.\nAllergic to {SECRET}.")
    operator.twin(block, {"value": "Name: Maria.", "version": 2})
    links = re.findall(r'href="[./\w]*forget\?version=([^"]*)"', page(operator, block))
    assert links == ["human%2F2"]
    preview = operator.twin(f"{forget}2")
    assert (preview["target"]["text"], preview["command"]) == (f"Allergic to {SECRET}.", None)
    assert (preview["will_go"]["versions"], preview["will_go"]["messages"]) == (1, 0)
    for version in (1, 3, 9):  # it says nothing more than the block, is the block, or is not there
        assert operator.get(f"{forget}{version}").status == 404
    person_of(operator.world).page("/forget?version=human/2", status=400)
    gone = plain(operator.post(f"{forget}2", came_from=block).body.decode())
    assert "It is gone." in gone
    assert "Back to the block" in gone
    assert SECRET.encode() not in operator.world.data()
    shown = operator.twin(block)
    assert [each["value"] for each in shown["versions"]] == [*["Name: Maria."] * 3, ""]
    assert [each["origin"] for each in shown["versions"]] == ["forget", "operator", "learning", "default"]
    named = [each["what"] for each in operator.twin("audit")["items"] if each["action"] == "forget"]
    assert named == ["block human, version 2"]


def test_no_message_is_next_after_a_version(operator: Operator) -> None:
    """A version is forgotten by itself because the messages that say the same are to stay."""
    agent = speak(operator.world, "My nephew is allergic.")
    learn(operator.world, agent, block=f"Name: Maria.\nAllergic to {SECRET}.")
    operator.twin(f"m/{agent.uid}/b/human", {"value": "Name: Maria.", "version": 2})
    found = f"m/{agent.uid}/words?q=allergic"
    gone = plain(operator.post(f"m/{agent.uid}/forget?version=human/2", came_from=found).body.decode())
    assert "My nephew is allergic." in gone
    assert "Next: message" not in gone


def test_a_block_may_be_as_long_in_a_form_as_in_json(upstream: StrictUpstream, tmp_path: Path) -> None:
    """A form writes an emoji as twelve bytes."""
    profile = ProfileSettings("default", blocks=(BlockSettings("human", limit=100_000),))
    with remember(upstream, tmp_path, profile) as world:
        operator = operator_of(world)
        path = f"m/{speak(world, 'Hello.').uid}/b/human"
        for version, value in enumerate(("😀" * 100_000, "100% + a=b & c_d: 我住在巴黎\n"), 1):
            assert operator.post(path, value=value, version=version).status == 303
            assert operator.twin(path)["block"]["value"] == value


def test_a_block_that_no_form_takes_is_shown_without_one(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The agents API takes longer ones, and a browser would send it in vain."""
    profile = ProfileSettings("default", blocks=(BlockSettings("human", limit=2_000_000),))
    with remember(upstream, tmp_path, profile) as world:
        operator = operator_of(world)
        path = f"m/{speak(world, 'Hello.').uid}/b/human"
        operator.twin(path, {"value": "x" * 2_000_000, "version": 1})
        shown = page(operator, path)
        assert "too long to be edited here" in shown
        assert "<textarea" not in shown
        assert len(shown) < 100_000
        assert operator.post(f"{path}/undo", version=2).status == 303
        assert "<textarea" in page(operator, path)


@pytest.mark.parametrize("module", ["gateway.page.block_screens", "gateway.run.admin.memory.block_versions"])
def test_a_difference_of_long_texts_holds_up_nothing_else(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    agent = speak(operator.world, "Hello.")
    learn(operator.world, agent, block="Name: Alice.")
    is_begun, may_end = threading.Event(), threading.Event()

    def compare(old: str, new: str) -> Any:
        is_begun.set()
        assert may_end.wait(PATIENCE_S)
        return diff_words(old, new)

    monkeypatch.setattr(f"{module}.diff_words", compare)
    with ThreadPoolExecutor() as pool:
        shown = pool.submit(page, operator, f"m/{agent.uid}/b/human")
        assert is_begun.wait(PATIENCE_S)
        try:
            page(operator, "people")
        finally:
            may_end.set()
        assert "Version 2" in shown.result(PATIENCE_S)


def test_of_two_operators_on_one_block_the_second_one_sees_both_texts(operator: Operator) -> None:
    agent = speak(operator.world, "I live in Porto.")
    uid = agent.uid
    learn(operator.world, agent, block="Lives in Porto.")
    assert operator.post(f"m/{uid}/b/human", value="Mine is first.", version=2).status == 303
    assert "Where the old words still are" in page(operator, f"m/{uid}/b/human")
    late = operator.post(f"m/{uid}/b/human", value="Mine is late.", version=1)
    assert late.status == 409
    text = late.body.decode()
    for words in (
        "Changed meanwhile",
        "Mine is first.",
        "\nMine is late.</textarea>",
        'name="version" value="3"',
        'role="alert"',
    ):
        assert words in text
    # What the first one's change leaves to do is not for the second one to read now.
    assert "Where the old words still are" not in text
    assert operator.program("POST", f"m/{uid}/b/human.json", {"value": "x", "version": 1}).status == 409
    assert operator.twin(f"m/{uid}/b/human")["block"]["value"] == "Mine is first."
    long = operator.post(f"m/{uid}/b/human", value="y" * 3_001, version=3)
    assert long.status == 400
    assert "3,000 characters at most, not 3,001" in long.body.decode()


def test_a_facts_text_is_corrected_and_muted(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    uid = agent.uid
    new = operator.twin(f"m/{uid}/f/{seq}/correct", {"text": "The train leaves on 4 May."})
    assert (new["text"], new["origin"]) == ("The train leaves on 4 May.", "operator")
    assert operator.twin(f"m/{uid}/f/{seq}")["after"]["seq"] == new["seq"]
    assert operator.twin(f"m/{uid}/f/{new['seq']}/mute", {"muted": True})["muted"]
    assert "Mention again" in page(operator, f"m/{uid}/f/{new['seq']}")
    assert operator.post(f"m/{uid}/f/{new['seq']}/mute", muted="false").status == 303
    same = operator.post(f"m/{uid}/f/{new['seq']}/correct", text="The train leaves on 4 May.")
    assert (same.status, "The text is the same as before" in same.body.decode()) == (400, True)
    assert operator.post(f"m/{uid}/f/{new['seq']}/mute", muted="maybe").status == 400


def test_a_memory_links_to_all_its_facts_where_it_shows_some(operator: Operator) -> None:
    for user, count in (("alice", 1), ("bob", 21)):
        agent = speak(operator.world, "Hello.", user=user)
        learn(operator.world, agent, *(f"{user} has {number} cats." for number in range(count)))
        assert (f"All {count} fact" in page(operator, f"m/{agent.uid}")) == (count > 20)


def test_a_correction_of_a_fact_that_was_corrected_meanwhile_loses_no_text(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    fact = f"m/{agent.uid}/f/{seq}"
    operator.twin(f"{fact}/correct", {"text": "The train leaves on 4 May."})
    late = operator.post(f"{fact}/correct", text="<b>The train leaves on 3 May.")
    assert late.status == 409
    assert re.search(r"readonly[^>]*>\n&lt;b&gt;The train leaves on 3 May\.</textarea>", late.body.decode())


def test_a_form_that_is_sent_twice_is_no_conflict_with_itself(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    block, fact = f"m/{agent.uid}/b/human", f"m/{agent.uid}/f/{seq}"
    for path, fields in (
        (block, {"value": "Cat: Miso.\nHates thunder.", "version": 1}),
        (f"{fact}/correct", {"text": "The train leaves\non 4 May."}),
    ):
        first, again = (operator.post(path, **fields) for _ in range(2))
        assert (again.status, again.headers["location"]) == (303, first.headers["location"])
        assert operator.program("POST", f"{path}.json", fields).status == 409
    assert operator.twin(block)["block"]["version"] == 2
    assert len(operator.twin(f"m/{agent.uid}/facts?all=1")["items"]) == 2


def test_an_undo_that_is_sent_twice_is_no_conflict_with_itself(operator: Operator) -> None:
    block = f"m/{speak(operator.world, 'Hello.').uid}/b/human"
    for version, value in ((1, "One."), (2, "Two.")):
        assert operator.post(block, value=value, version=version).status == 303
    for change, fields, value in (
        ("undo", {"version": 3}, "One."),
        ("restore", {"version": 4, "to": 3}, "Two."),
    ):
        first, again = (operator.post(f"{block}/{change}", **fields) for _ in range(2))
        assert (again.status, again.headers["location"]) == (303, first.headers["location"])
        assert operator.program("POST", f"{block}/{change}.json", fields).status == 409
        assert operator.twin(block)["block"]["value"] == value
    assert operator.twin(block)["block"]["version"] == 5
    # Another version than the one that was brought back, and an edit meanwhile, are conflicts.
    assert operator.post(f"{block}/restore", version=4, to=2).status == 409
    assert operator.post(f"{block}/undo", version=2).status == 409


@pytest.mark.both
def test_what_says_elsewhere_what_was_forgotten_is_found_and_forgotten_from_there(
    operator: Operator,
) -> None:
    """ "It is gone" was all that was said, while other messages and a block still said it."""
    uid = speak(operator.world, "I am allergic to penicillin.", "Say penicillin again.", "Penicillin?").uid
    operator.post(f"m/{uid}/b/human", value="Allergic to penicillin.", version=1)
    link, seq, forgotten = f"m/{uid}/search?q=penicillin", "1", []
    while seq:
        gone = operator.post(f"m/{uid}/forget?message={seq}").body.decode()
        forgotten.append(seq)
        found = re.search(r'href="([^"]*)">Search the memory for it', gone)
        assert found is not None
        link = unescape(found[1]).removeprefix("../../")
        text = page(operator, link)
        assert "Allergic to penicillin." in text.partition("<table")[0]
        # The rows of both tables have it, also those that stay out.
        rows = text.partition('<details class="scores">')[0]
        for row in re.findall(r"<tr>.*?</tr>", rows, re.S):
            assert (">message " in row) == (">Forget<" in row), row
        left = re.findall(r"forget\?message=(\d+)", rows)
        seq = left[0] if left else ""
    assert {"1", "3", "5"} <= {*forgotten}


def came_from(operator: Operator, screen: str, path: str) -> str:
    """Opens a preview by a link of a screen, and returns the hidden field with the way back; "": there is none."""
    headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{screen}"}
    shown = operator.ask("GET", path, None, headers).body.decode()
    found = re.search(r'name="came_from" value="([^"]*)"', shown)
    return unescape(found[1]) if found else ""


def test_a_forgetting_leads_back_to_the_list_it_came_from_at_its_next_item(operator: Operator) -> None:
    """Who had several wrong lines to forget began anew for each of them, at the page of the memory."""
    agent = speak(operator.world, "I love tea.", "Tea again.", "And tea at night.", talk="conv-19")
    seqs = learn(operator.world, agent, *(f"Fact {n} of tea." for n in range(3)))
    memory = f"m/{agent.uid}"
    listed = f"{memory}/facts?all=true&limit=50"
    shown = page(operator, listed)
    assert (
        f'id="forget-fact-{seqs[2]}" href="../../{memory}/forget?fact={seqs[2]}&amp;then=forget-fact-{seqs[1]}"'
        in shown
    )
    # After the last item the one before it is next.
    assert f"forget?fact={seqs[0]}&amp;then=forget-fact-{seqs[1]}" in shown
    preview = f"{memory}/forget?fact={seqs[2]}&then=forget-fact-{seqs[1]}"
    way = came_from(operator, listed, preview)
    assert way == listed
    gone = operator.post(preview, came_from=way).body.decode()
    focused = 'autofocus aria-describedby="gone"'
    assert f'<a href="../../{escape(listed)}#forget-fact-{seqs[1]}" {focused}>Back to the facts</a>' in gone
    # The screen of a fact goes with it, and so does that of a conversation.
    preview = f"{memory}/forget?fact={seqs[1]}"
    way = came_from(operator, f"{memory}/f/{seqs[1]}", preview)
    assert (
        f'<a href="../../{memory}/facts">Back to the facts</a>'
        in operator.post(preview, came_from=way).body.decode()
    )
    search = f"{memory}/search?q=Do+I+love+tea%3F"
    preview = f"{memory}/forget?message=3&then=forget-message-5"
    gone = operator.post(preview, came_from=came_from(operator, search, preview)).body.decode()
    assert (
        f'href="../../{search}#forget-message-5" autofocus aria-describedby="gone">Back to the search</a>'
        in gone
    )
    talk = operator.twin(f"{memory}/conversations")["items"][0]["id"]
    preview = f"{memory}/forget?conversation={talk}"
    wrong = operator.post(preview, confirm="9", came_from=f"{memory}/c/{talk}").body.decode()
    assert f'name="came_from" value="{memory}/c/{talk}"' in wrong
    gone = operator.post(preview, confirm="5", came_from=f"{memory}/c/{talk}").body.decode()
    assert f'<a href="../../{memory}/conversations">Back to the conversations</a>' in gone


def test_a_forgetting_leads_nowhere_else(operator: Operator) -> None:
    agent = speak(operator.world, "I love tea.")
    memory = f"m/{agent.uid}"
    ways = (
        "//evil.example/",
        "https://evil.example/",
        "javascript:alert(1)",
        "../v1/models",
        f"{memory}/../../v1/models",
        f"{memory}/forget?all=1",
        "m/another/facts",
        "keys",
        "r/\r\nset-cookie: a=b",
    )
    *seqs, last = learn(operator.world, agent, *(f"Fact {n} of tea." for n in range(len(ways) + 1)))
    for way, seq in zip(ways, seqs, strict=True):
        preview = f"{memory}/forget?fact={seq}"
        if "\n" not in way:
            assert came_from(operator, way, preview) == "", way
        gone = operator.post(preview, came_from=way)
        assert gone.status == 200, way
        assert f'<p><a href="../../{memory}">Back to the memory</a></p>' in gone.body.decode(), way
    preview, hostile = f"{memory}/forget?fact={last}", f'{memory}/search?q="><script>'
    assert came_from(operator, hostile, preview) == hostile
    assert f'<a href="../../{escape(hostile)}">' in operator.post(preview, came_from=hostile).body.decode()
    for then in ("x", "a-1\n", "-1#x", "forget-fact-1 onfocus=x", "A-1"):
        assert operator.get(f"{memory}/forget?message=1&then={quote(then)}").status == 400, then


def test_a_forgetting_that_is_sent_twice_says_that_it_is_done(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    path = f"m/{agent.uid}/forget?fact={seq}"
    first, again = (operator.post(path) for _ in range(2))
    assert (first.status, again.status) == (200, 404)
    assert "There is no such fact. If there was, it is forgotten." in again.body.decode()


def test_a_trial_shows_the_blocks_that_each_reply_is_told(operator: Operator) -> None:
    """Whoever looked for a wrong word found it in no message, and the reply still said it."""
    uid = speak(operator.world, "Hello.").uid
    path = f"m/{uid}/search?q=May+I+eat+peanuts%3F"
    assert "As with every reply" not in page(operator, path)
    operator.post(f"m/{uid}/b/human", value="Allergic to peanuts.", version=1)
    text = page(operator, path)
    assert "As with every reply, the model would be told the" in text
    assert "Allergic to peanuts." in text
    assert 'href="../../m/' + uid + '/b/human"' in text


def test_a_corrected_fact_leads_to_what_else_says_the_old_one(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "Alice eats no peanuts.")
    where = operator.post(f"m/{agent.uid}/f/{seq}/correct", text="Clara eats no peanuts.").headers["location"]
    text = page(operator, where.removeprefix("../../../../").removesuffix("#saved"))
    assert "/search?q=Alice+eats+no+peanuts." in text
    assert "Search the memory for it" in text


def test_blocks_without_a_text_come_after_the_facts(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Three lines on blocks that the memory did not have stood before the facts."""
    blocks, facts = '<h2 id="blocks">', '<h2 id="facts">'
    with remember(upstream, tmp_path, PROFILE) as world:
        operator, agent = operator_of(world), speak(world, "Hello.")
        text = page(operator, f"m/{agent.uid}")
        assert text.index(facts) < text.index(blocks)
        learn(world, agent, "Likes tea.", block="Name: Alice.")
        text = page(operator, f"m/{agent.uid}")
        assert text.index(blocks) < text.index(facts)


def test_a_conversation_without_its_first_words_is_listed_with_its_id(operator: Operator) -> None:
    """An id alone looked as if a rest of what was forgotten were hidden there."""
    agent = speak(operator.world, "My dog is called Bruno.")
    (talk,) = operator.twin(f"m/{agent.uid}")["conversations"]
    operator.twin(f"m/{agent.uid}/forget?message=1", {})
    for screen in ("", "/conversations"):
        text = page(operator, f"m/{agent.uid}{screen}")
        assert ">(no first words: broken off, forgotten, too long or not stored)</a>" in text
        assert f">{talk['id'][:12]}<" in text


@pytest.mark.both
def test_what_is_right_is_written_down_after_a_forgetting(upstream: StrictUpstream, tmp_path: Path) -> None:
    """A correction went with the message, and a memory without blocks had no place for what is right."""
    with remember(upstream, tmp_path, ProfileSettings("default", blocks=())) as world:
        operator, agent = operator_of(world), speak(world, "I am allergic to peanuts.")
        (wrong,) = learn(world, agent, "Is allergic to hazelnuts.")
        memory, right = f"m/{agent.uid}", "Is allergic to peanuts."
        new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": right})["seq"]
        gone = operator.post(f"{memory}/forget?message=1").body.decode()
        assert operator.get(f"{memory}/f/{new}").status == 404
        (where,) = re.findall(r'<form method="post" action="([^"]+)" class="editor" id="add">', gone)
        assert where == f"../../m/{agent.uid}/facts"
        added = operator.post(f"{memory}/facts", text=f" {right}\n")
        assert added.status == 303
        (fact,) = operator.twin(f"{memory}/facts")["items"]
        assert added.headers["location"] == f"../../{memory}/f/{fact['seq']}#saved"
        assert (fact["text"], fact["origin"], fact["sources"]) == (right, "operator", [])
        assert "an operator wrote it" in page(operator, f"{memory}/f/{fact['seq']}")
        assert ("remember", agent.uid) in actions(operator)


def test_a_fact_that_is_added_after_a_forgetting_leads_on_to_what_is_left(operator: Operator) -> None:
    agent = speak(operator.world, "My bike is red.", "My bike is green.")
    memory, words = f"m/{agent.uid}", f"m/{agent.uid}/words?q=bike"
    gone = operator.post(f"{memory}/forget?message=1", came_from=words).body.decode()
    back = next_value(gone, '<input type="hidden" name="back" value="')
    assert back == words
    refused = operator.post(f"{memory}/facts", text=" ", back=back).body.decode()
    assert next_value(refused, '<input type="hidden" name="back" value="') == words
    added = operator.post(f"{memory}/facts", text="The bike is blue.", back=back).headers["location"]
    fact = added.removeprefix("../../").removesuffix("#saved")
    shown = page(operator, fact)
    assert f'<a href="../../../{escape(words)}">Go on where you were</a>' in shown
    outside = page(operator, f"{fact.partition('?')[0]}?back=//example.org/")
    assert "Go on where you were" not in outside


def next_value(text: str, before: str) -> str:
    """Returns the value of an attribute that begins after some text."""
    return unescape(text.partition(before)[2].partition('"')[0])


def test_a_preview_names_the_facts_that_stay_the_nearest_first(operator: Operator) -> None:
    """A list of the facts that stay says that nothing else is lost."""
    agent = speak(operator.world, "My Gazelle was stolen.")
    facts = f"m/{agent.uid}/facts"
    size, *others = (
        operator.twin(facts, {"text": text})["seq"]
        for text in (
            "The frame of the Gazelle is a 56.",
            *(f"He rides at {n} in the morning." for n in range(6)),
        )
    )
    learn(operator.world, agent, "He has a Gazelle.")
    forget = f"m/{agent.uid}/forget?message=1"
    stays = operator.twin(forget)["stays"]
    assert [each["kind"] for each in stays] == ["turn", "conversation", "remark", *["fact"] * 5]
    named = [each for each in stays if each["kind"] == "fact"]
    assert [each["text"] for each in named] == [f"Fact {n}:" for n in (size, *others[:1:-1])]
    # They hid the button: folded are all that do not have the words for which the message goes.
    sought = f"{forget}&back={quote(f'm/{agent.uid}/words?q=Gazelle', safe='')}"
    for path, open_numbers in ((forget, []), (sought, [size])):
        open_list, _, folded = page(operator, path).partition("<summary>Other facts stay</summary>")
        listed = [[int(n) for n in re.findall(r">Read fact (\d+)<", part)] for part in (open_list, folded)]
        assert listed == [open_numbers, [n for n in (size, *others[:1:-1]) if n not in open_numbers]], path
    assert named[0]["quote"] == "The frame of the Gazelle is a 56."
    assert named[0]["href"] == f"m/{agent.uid}/f/{size}"
    assert f"Fact {size}: “The frame of the Gazelle is a 56.” Read fact {size}" in plain(
        page(operator, forget)
    )
    back = quote(f"m/{agent.uid}/words?q=frame+56", safe="")
    sought = plain(page(operator, f"{forget}&back={back}"))
    assert f"Fact {size}: “The frame of the Gazelle is a 56.” has the words, right or wrong" in sought


def test_a_preview_names_no_fact_that_stays_where_more_go_than_it_lists(operator: Operator) -> None:
    agent = speak(operator.world, "My Gazelle was stolen.")
    operator.twin(f"m/{agent.uid}/facts", {"text": "The frame of the Gazelle is a 56."})
    learn(operator.world, agent, *(f"He has Gazelle {n}." for n in range(21)))
    forget = f"m/{agent.uid}/forget?message=1"
    preview = operator.twin(forget)
    assert (preview["more_facts"], len(preview["facts"])) == (21, 20)
    assert "fact" not in [each["kind"] for each in preview["stays"]]
    shown = plain(page(operator, forget))
    assert "21 facts go too, unless you keep some of the newest 20 above." in shown


def test_a_kept_fact_does_not_keep_a_line_of_a_block(operator: Operator) -> None:
    agent = speak(operator.world, "My cat is Miso.")
    (seq,) = learn(operator.world, agent, "Alice has a cat called Miso.", block="Cat: Miso.")
    memory, hint = f"m/{agent.uid}", "A fact that is kept changes nothing for the"
    assert f"{hint} blocks: they lose" in plain(page(operator, f"{memory}/forget?message=1"))
    operator.twin(f"{memory}/forget?message=1", {"keep": [seq]})
    assert operator.twin(f"{memory}/b/human")["block"]["value"] == ""
    assert "kept from a forgotten message" in plain(page(operator, f"{memory}/facts"))


def test_a_fact_with_the_tick_is_told_before_each_reply_while_it_has_room(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, ProfileSettings("default")) as world:
        operator, uid = operator_of(world), speak(world, "Hello.").uid
        facts, tag = f"m/{uid}/facts", ">told before each reply<"
        where = operator.post(facts, text="He is colour-blind.", always="true").headers["location"]
        fact = where.removeprefix("../../").removesuffix("#saved")
        assert tag in page(operator, fact)
        for path in (facts, f"m/{uid}"):  # a list does not know whether it has room
            listed = page(operator, path)
            assert ("to be told before each reply</span>" in listed, tag in listed) == (True, False)
        tried = page(operator, f"m/{uid}/search?q=Zxqv")
        assert "Beyond what is told before each reply, nothing would be recalled for this." in tried
        fits = "Saved. A reply is told this when the question fits."
        assert fits not in page(operator, fact)
        other = page(operator, operator.post(facts, text="He likes tea.").headers["location"][6:-6])
        assert (tag in other, fits in other) == (False, True)
        speak(world, "Send me a table.", talk="another")
        body = world.upstream.last.body
        assert (b"He is colour-blind" in body, b"He likes tea" in body) == (True, False)
        refused = operator.post(facts, text="He is colour-blind.", always="true")
        assert (
            refused.status,
            'value="true" aria-describedby="always-hint" checked>' in refused.body.decode(),
        ) == (
            409,
            True,
        )
        for n in range(12):
            new = operator.twin(facts, {"text": f"He never wants a bicycle of the make {n}.", "always": True})
            assert new["always"] is True
        assert tag in page(operator, f"m/{uid}/f/{new['seq']}")
        assert "to be told before each reply, but has no room" in page(operator, fact)


@pytest.mark.both
def test_a_fact_is_told_before_each_reply_or_only_when_it_fits(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, ProfileSettings("default")) as world:
        operator, agent = operator_of(world), speak(world, "Hello.")
        (seq,) = learn(world, agent, "He is colour-blind.")
        fact = f"m/{agent.uid}/f/{seq}"
        sources = operator.twin(fact)["fact"]["sources"]
        for n, always in enumerate((True, False)):
            speak(world, f"Hello for the {n}. time.")  # the gateway has the memory's facts in its cache
            button = ">Tell before each reply</button>" if always else ">Tell only when it fits</button>"
            assert button in page(operator, fact)
            where = operator.post(f"{fact}/always", always=str(always).lower()).headers["location"]
            assert where.endswith(f"/{fact}#always-saved")
            how = "before each reply." if always else "only when a question fits."
            shown = page(operator, fact)
            (saved,) = re.findall(r'id="always-saved" role="status">(.*?)</p>', shown)
            assert saved.startswith(f"Saved: told {how}")
            # It is undone and tried from there, as other changes are.
            back = "tell only when it fits" if always else "tell before each reply"
            assert f'<button form="always" class="small">Undo: {back}</button>' in saved
            assert 'search">Try what a reply would be told now</a>' in saved
            (form,) = re.findall(r'<form[^>]* id="always">.*?</form>', shown)
            assert f'name="always" value="{str(not always).lower()}"' in form
            speak(world, f"Send me {n} tables.")
            assert (b"He is colour-blind" in world.upstream.last.body) is always
            (listed,) = operator.twin(f"m/{agent.uid}/facts")["items"]
            assert (listed.get("always", False), listed["sources"]) == (always, sources)
        audit = operator.twin("audit")["items"]
        states = [each["what"] for each in audit if each["action"] == "always"]
        assert states == [f"fact {seq}, told when it fits", f"fact {seq}, told before each reply"]


def test_a_fact_that_cannot_be_told_before_each_reply_is_refused(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    ended, muted, long = learn(operator.world, agent, "He is left-handed.", "He likes tea.", "x" * 161)
    memory = f"m/{agent.uid}"
    operator.twin(f"{memory}/f/{ended}/correct", {"text": "He is right-handed."})
    operator.twin(f"{memory}/f/{muted}/mute", {"muted": True})
    for seq, status, why in (
        (ended, 409, "is no longer true"),
        (muted, 409, "is not mentioned at all"),
        (long, 400, "up to 160 characters have room"),
        (999, 404, "There is no such fact."),
    ):
        fact = f"{memory}/f/{seq}"
        reply = operator.post(f"{fact}/always", always="true")
        assert (reply.status, why in reply.body.decode()) == (status, True), seq
        assert operator.program("POST", f"{fact}/always.json", {"always": True}).status == status
    for seq in (ended, muted):
        assert "Tell before each reply" not in page(operator, f"{memory}/f/{seq}")
    assert [each for each in operator.twin(f"{memory}/facts")["items"] if "always" in each] == []


def test_a_new_fact_that_is_refused_costs_no_text(operator: Operator) -> None:
    facts = f"m/{speak(operator.world, 'Hello.').uid}/facts"
    seq = operator.twin(facts, {"text": "The train leaves on 4 May."})["seq"]
    for text, status, why in (
        ("the train leaves on 4 may", 409, f"fact {seq} says so already"),
        ("<b>" * 667, 400, "1 to 2000 characters, not 2001"),
        (" ", 400, "1 to 2000 characters, not 0"),
    ):
        refused = operator.post(facts, text=text)
        assert (refused.status, why in refused.body.decode()) == (status, True), text
        assert f"\n{escape(text)}</textarea>" in refused.body.decode()
        assert operator.program("POST", f"{facts}.json", {"text": text}).status == status
    for fields in ({}, {"text": 1}, {"text": "x", "about": "y"}):
        assert operator.program("POST", f"{facts}.json", fields).status == 400, fields
    assert len(operator.twin(facts)["items"]) == 1


def test_a_correction_warns_where_it_goes_with_a_text_that_has_the_old_words(operator: Operator) -> None:
    """Who forgot all such texts at once, as the page offered, lost the correction with the reply of its turn."""
    operator.world.upstream.queue(say("June, noted."), say("Flowers in June!"))
    agent = speak(operator.world, "Our anniversary is in July.", "And flowers?")
    (wrong,) = learn(operator.world, agent, "The anniversary is in June.")
    fact = f"m/{agent.uid}/f/{wrong}"
    new = operator.twin(f"{fact}/correct", {"text": "The anniversary is in July."})["seq"]
    links = (f"m/{agent.uid}/f/{new}", f"/f/{new}")
    for text in (page(operator, links[0]), person_of(operator.world).page(links[1])):
        ((before, after),) = re.findall(r"(?s)(Flowers in .*?)(June, noted.*?)</section>", text)
        assert ("this fact goes with it" in before, "this fact goes with it" in after) == (
            False,
            True,
        )
        # The other way to forget on this page is for the fact.
        assert ">Forget message 2</a>" in after
        assert "<p>This fact can be erased for good." in text
    assert "<strong>This fact goes with message 2.</strong>" in page(operator, links[0])
    goes = operator.twin(f"m/{agent.uid}/forget?message=2")["facts"]
    assert new in [each["seq"] for each in goes]


def test_a_block_says_that_a_change_by_a_tool_is_still_to_come(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The page of the block said nothing of it, and it came into the text after an operator's correction."""
    with remember(upstream, tmp_path, agent("default")) as world:
        operator = operator_of(world)
        upstream.queue(call_tools(Call("memory_insert", {"label": "human", "new_string": "Has a cat."})))
        chat = world.chat(user="alice", model="agent/default")
        chat.say("I have a cat.")
        uid = memory_of(world).uid
        for path in (f"m/{uid}", f"m/{uid}/b/human"):
            assert "1 change by a tool waits: it comes into this text once" in plain(page(operator, path))
        # The assistant may have told the person that it is noted.
        for below in ("", "/b/human"):
            assert "1 change by the assistant waits: it comes" in plain(person_of(world).page(below))
        chat.say("Thanks.")
        assert "waits" not in plain(page(operator, f"m/{uid}/b/human"))


def test_each_line_of_a_change_has_a_sign(operator: Operator) -> None:
    """Of two added lines the second one was told from what had been there by its colour and line alone."""
    uid = speak(operator.world, "Hello.").uid
    block = f"m/{uid}/b/human"
    operator.post(block, value="Lives in Bern.\nLikes tea.", version=1)
    assert "<ins>Lives in Bern.</ins>\n<ins>Likes tea.</ins></div>" in page(operator, block)
    operator.post(block, value="Lives in Bern.", version=2)
    assert "Lives in Bern.\n<del>Likes tea.</del></div>" in page(operator, block)


def test_an_undo_names_many_lost_words_once(operator: Operator) -> None:
    """Six of them stood three times on the page, each in quotation marks."""
    text = "Maria moved to Porto with her mother Ines and two grey cats."
    agent = speak(operator.world, text)
    learn(operator.world, agent, "Noted.", block=text)
    block = f"m/{agent.uid}/b/human"
    assert operator.post(f"{block}/undo", version=2).status == 303
    shown = plain(page(operator, block))
    assert "has the words shown below, right or wrong. A reply may still repeat it." in shown
    assert "Where else it is said" in shown
    assert shown.count("“Porto” + “mother”") == 1


def test_a_correction_that_adds_words_takes_none_out(operator: Operator) -> None:
    """The message after it spoke of "the words that were taken out"."""
    agent = speak(operator.world, "My sister Ana lives in Porto.")
    (fact,) = learn(operator.world, agent, "Sister Ana lives in Porto.")
    longer = "Her sister Ana lives in Porto and teaches."
    assert operator.post(f"m/{agent.uid}/f/{fact}/correct", text=longer).status == 303
    shown = plain(page(operator, f"m/{agent.uid}/f/{fact + 1}"))
    assert "1 message has the words shown below, right or wrong. A reply may still repeat it." in shown
    assert "taken out" not in shown


def test_each_screen_quotes_what_a_user_said(operator: Operator) -> None:
    """Most lists had "User said:" before it, which the user had not written."""
    agent = speak(operator.world, "I live in Bonn.", talk="first")
    moved, lives = learn(operator.world, agent, "User said: I moved to Bonn.", "User said: I live in Bonn.")
    speak(operator.world, "Do I live in Bonn?", talk="second")
    person = person_of(operator.world)
    memory = f"m/{agent.uid}"
    # This one stays if the message is forgotten.
    operator.twin(f"{memory}/facts", {"text": "User said: Bonn suits me."})
    last_request = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    below = ("", "/facts", f"/f/{lives}", "/words?q=Bonn", f"/forget?fact={lives}", "/forget?message=1")
    screens = {path: person.page(path) for path in (*below, "/export.html")}
    for path in (*below, "/search?q=Bonn"):
        screens[memory + path] = page(operator, memory + path)
    for path in ("people/words?q=moved", f"r/{last_request}"):
        screens[path] = page(operator, path)
    new = person.twin(f"/f/{lives}/correct", {"text": "Alice lives in Bonn."})["seq"]
    corrected = (f"/f/{lives}", f"/f/{new}", "/words?q=Bonn", f"/forget?texts={lives}&texts={moved}")
    for path in corrected:
        screens["corrected " + path] = person.page(path)
        screens[f"corrected {memory}{path}"] = page(operator, memory + path)
    for path, shown in screens.items():
        # What is edited, and what the model is told, stands there as it is stored.
        unquoted = r'<(textarea|pre|p class="hint" id="statement-hint").*?</(textarea|pre|p)>'
        shown = plain(re.sub(unquoted, "", shown, flags=re.DOTALL))
        assert "“I live in Bonn.”" in shown or "“I moved to Bonn.”" in shown, path
        assert "User said" not in shown, path
    assert "“Bonn suits me.”" in plain(screens["/forget?message=1"])


def test_the_words_before_what_a_user_said_are_not_found(operator: Operator) -> None:
    """A search for "user" listed each such fact, with no word marked in it."""
    agent = speak(operator.world, "I live in Bonn.")
    learn(operator.world, agent, "User said: I live in Bonn.", "User said: The user manual is lost.")
    shown = page(operator, f"m/{agent.uid}/words?q=user")
    assert "1 fact says “user”." in plain(shown)
    assert "live in Bonn" not in plain(shown)
    assert "1 message and 1 fact say “Bonn”." in plain(page(operator, f"m/{agent.uid}/words?q=Bonn"))
    # Each such fact had its person listed in the search of all people.
    (person,) = operator.twin("people/words?q=user")["items"]
    assert person["newest"]["text"] == "User said: The user manual is lost."
    assert operator.twin("people/words?q=said")["items"] == []


def test_a_correction_of_a_statement_warns_of_no_other_statement(operator: Operator) -> None:
    """Each fact that begins with "User said: " was listed as one that still says it."""
    agent = speak(operator.world, "I am allergic to hazelnuts.")
    allergy, name = learn(
        operator.world, agent, "User said: I am allergic to hazelnuts.", "User said: My name is Maria."
    )
    corrected = operator.post(
        f"m/{agent.uid}/f/{allergy}/correct", text="Maria is allergic to walnuts, not hazelnuts."
    )
    assert corrected.status == 303
    shown = page(operator, f"m/{agent.uid}/f/{name + 1}")
    assert "My name is Maria" not in plain(shown)


def test_a_fact_says_what_further_sources_mean_and_what_becomes_of_its_correction(operator: Operator) -> None:
    """A source that has nothing to do with it looked wrong, and a correction was lost with the wrong message."""
    agent = speak(operator.world, "I drink tea.", "I like tea.")
    world = operator.world
    rows = world.query(f"SELECT id FROM exchanges WHERE agent = {agent.id} ORDER BY id")

    sources = ([], rows[:1], rows)
    facts = [
        LearnedFact(f"Drinks tea {n}.", "", f"tea {n}", 1.0, each[0] if each else None, each)
        for n, each in enumerate(sources)
    ]

    async def write() -> None:
        learned = LearnedChanges(facts=facts)
        await world.store.database.write(
            world.store.facts.make_learn_effect(agent, 0, 1, 1.0, lambda _: learned)
        )

    world.gateway.call(write())
    seqs = [each["seq"] for each in operator.twin(f"m/{agent.uid}/facts")["items"]]
    shown = [page(operator, f"m/{agent.uid}/f/{seq}") for seq in seqs]
    further, kept = (
        "The others share words with it",
        "is forgotten, the correction goes too. The page that asks before a forgetting has a tick",
    )
    assert [(further in text, kept in text) for text in shown] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert "If one of these messages, or the reply to it, is forgotten, this goes too." in shown[0]
    person = person_of(world)
    mine = [person.page(f"/f/{seq}") for seq in seqs]
    kept = "What you correct goes when the words it came from, or the reply to them, are forgotten."
    assert [(further in text, kept in text) for text in mine] == [(True, True), (False, True), (False, False)]
    assert "If message 1, or the reply to it, is forgotten, this goes too." in shown[1]
    # As it says.
    new = operator.twin(f"m/{agent.uid}/f/{seqs[1]}/correct", {"text": "Drinks coffee."})["seq"]
    operator.twin(f"m/{agent.uid}/forget?message=2", {})
    assert operator.get(f"m/{agent.uid}/f/{new}").status == 404


def test_a_fact_that_is_no_longer_true_is_not_muted_any_more(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    facts, fact = f"m/{agent.uid}/facts?all=1", f"m/{agent.uid}/f/{seq}"
    operator.twin(f"{fact}/mute", {"muted": True})
    for screen in (facts, fact):
        shown = page(operator, screen)
        assert f"f/{seq}/mute" in shown
        assert "not mentioned" in shown
    new = operator.twin(f"{fact}/correct", {"text": "The train leaves on 4 May."})
    assert f"f/{new['seq']}/mute" in page(operator, facts)
    operator.twin(f"m/{agent.uid}/f/{new['seq']}/mute", {"muted": False})
    for screen in (facts, fact):
        shown = page(operator, screen)
        assert f"f/{seq}/mute" not in shown
        assert "not mentioned" not in shown


def test_a_link_to_a_message_of_a_long_exchange_opens_a_page_with_it(operator: Operator) -> None:
    many = [{"role": "user", "content": f"Message {n}. {'x' * 1_000}"} for n in range(120)]
    assert operator.world.post(many, {"x-mnemogate-user": "alice"}).status == 200
    agent = memory_of(operator.world)
    learn(operator.world, agent, "Alice counts.")
    (fact,) = operator.twin(f"m/{agent.uid}/facts")["items"]
    sources = fact["sources"]
    assert len(sources) > 50
    for source in sources:
        shown = page(operator, source["href"].partition("#")[0])
        assert f'id="message-{source["seq"]}"' in shown, source["href"]
    seen, link = set(), sources[0]["href"]
    while link:
        shown = page(operator, link.partition("#")[0])
        seen |= {int(number) for number in re.findall(r"Message (\d+)\.", shown)}
        found = re.search(r'href="([^"]*)">Later messages', shown)
        link = unescape(found[1]).removeprefix("../../../") if found else ""
    assert max(seen) == 119


@pytest.mark.both
def test_a_conversation_that_is_opened_at_a_message_leads_to_what_follows(operator: Operator) -> None:
    agent = speak(operator.world, *(f"This is number {n}." for n in range(30)), talk="conv-19")
    learn(operator.world, agent, "Alice counts.")
    (fact,) = operator.twin(f"m/{agent.uid}/facts")["items"]
    link = fact["sources"][0]["href"]
    seen = []
    while link:
        path, _, place = link.partition("#")
        shown = page(operator, path)
        assert f'id="{place}"' in shown
        seen += re.findall(r"This is number (\d+)\.", shown)
        found = re.search(r'href="([^"]*)">Later messages', shown)
        link = unescape(found[1]).removeprefix("../../../") if found else ""
    assert list(dict.fromkeys(seen)) == [str(n) for n in range(30)]
    assert "Later messages" not in page(operator, f"m/{agent.uid}/c/conv-19")


def test_a_conversation_says_where_what_was_learned_from_it_is_corrected(operator: Operator) -> None:
    agent = speak(operator.world, "I am allergic to peanuts.", talk="conv-19")
    talk = operator.twin(f"m/{agent.uid}")["conversations"][0]["id"]
    text = page(operator, f"m/{agent.uid}/c/{talk}")
    advice = text.partition("A message can be forgotten, not changed.")[2]
    assert re.findall(r'<a href="([^"]*)"><span[^>]*>alice<', advice) == [f"../../../m/{agent.uid}"]


def test_a_short_conversation_that_is_opened_at_a_message_is_shown_whole(operator: Operator) -> None:
    agent = speak(operator.world, "I eat no peanuts.", "What shall I cook?", "Thanks.", talk="conv-19")
    learn(operator.world, agent, "Alice eats no peanuts.")
    (fact,) = operator.twin(f"m/{agent.uid}/facts")["items"]
    path = fact["sources"][0]["href"].partition("#")[0]
    shown = page(operator, path)
    assert "I eat no peanuts." in shown
    assert "Thanks." in shown
    assert "Later messages" not in shown
    assert len(operator.twin(path)["items"]) == 2


def test_an_undo_of_a_block_can_be_taken_back(operator: Operator) -> None:
    """Undo goes on to the version before, so a second one deleted what was there from the beginning."""
    memory = f"m/{speak(operator.world, 'Hello.').uid}"
    block = f"{memory}/b/human"
    for version, value in ((1, "Name: Ann."), (2, "Name: Ann. Lives in Oslo.")):
        operator.twin(block, {"value": value, "version": version})
    assert ">Redo" not in page(operator, block) + page(operator, memory)
    operator.twin(f"{block}/undo", {"version": 3})
    shown = page(operator, block)
    assert "The last change is undone: the text is that of version 2 again: “" in shown
    for text, names in (
        (shown, ["Redo", "Undo one more change"]), (page(operator, memory), ["Redo human", "Undo human"])
    ):  # fmt: skip
        buttons = [plain(each) for each in re.findall("<button[^>]*>(.*?)</button>", text)]
        assert [each for each in buttons if each.startswith(("Redo", "Undo"))] == names
        assert "Redo goes on to version 3: “Name: Ann. Lives in Oslo.”" in plain(text)
        assert "Undo goes back one more change, to version 1, which is empty" in plain(text)
    # What is the text already cannot be brought back.
    assert 'Bring back<span class="unseen"> version 3' in shown
    assert 'Bring back<span class="unseen"> version 2' not in shown
    operator.post(f"{block}/restore", version=4, to=3)
    assert operator.twin(block)["block"]["value"] == "Name: Ann. Lives in Oslo."
    assert ">Redo" not in page(operator, block) + page(operator, memory)


@pytest.mark.both
def test_a_save_without_a_change_makes_no_version(operator: Operator) -> None:
    """It read "Saved", and an undo then went back to the same text."""
    uid = speak(operator.world, "Hello.").uid
    block = f"m/{uid}/b/human"
    operator.twin(block, {"value": "Name: Ann.\nCity: Oslo.", "version": 1})
    saved = operator.post(block, value="Name: Ann.\r\nCity: Oslo.", version=2)
    assert saved.headers["location"] == f"../../../m/{uid}/b/human#unchanged"
    shown = page(operator, block)
    assert 'id="unchanged" role="status">Nothing was changed.<' in shown
    assert operator.twin(block)["block"]["version"] == 2
    assert operator.twin(block, {"value": "Name: Ann.\nCity: Oslo.", "version": 2})["version"] == 2
    assert operator.program("POST", f"{block}.json", {"value": "", "version": 1}).status == 409
    assert [action for action, _ in actions(operator) if action == "edit"] == ["edit"]
    person = person_of(operator.world)
    assert (
        person.send("b/human", value="Name: Ann.\nCity: Oslo.", version=2)
        .headers["location"]
        .endswith("#unchanged")
    )
    assert "Nothing was changed." in person.page("/b/human")


def test_a_correction_has_its_author_in_the_list_of_facts(operator: Operator) -> None:
    """It was "from message 1", which said something else."""
    agent = speak(operator.world, "I am Maria from Basel.")
    (seq,) = learn(operator.world, agent, "Maria lives in Basel.")
    operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "Maria lives in Zurich."})
    rows = re.findall(r"(?s)<tr role=.row.*?</tr>", page(operator, f"m/{agent.uid}/facts?all=1"))
    cells = [plain(re.findall(r"(?s)<td[^>]*>(.*?)</td>", row)[2]) for row in rows[1:]]
    assert cells == ["an operator, corrected message 1", "message 1"]


def test_facts_that_are_no_longer_true_are_offered_where_there_are_any(operator: Operator) -> None:
    """Of a memory in which all facts are true, the list with "those that are no longer true" showed the same."""
    world = operator.world
    agent = speak(world, "My cat is called Mosi.")
    (seq,) = learn(world, agent, "Alice has a cat called Mosi.")
    person = person_of(world)
    screens = (f"m/{agent.uid}", f"m/{agent.uid}/facts", person.path, f"{person.path}/facts")
    for path in screens:
        assert "no longer true" not in page(operator, path)
    operator.post(f"m/{agent.uid}/f/{seq}/correct", text="Alice has a cat called Miso.")
    for path in screens:
        assert "that are no longer true" in page(operator, path)


def test_a_trial_leads_to_corrections_too(operator: Operator) -> None:
    """The destructive link was the only one, and the name of a block was its only link."""
    agent = speak(operator.world, "My cat is called Miso.")
    (seq,) = learn(operator.world, agent, "The cat is called Miso.", block="Cat: Miso.")
    speak(operator.world, "Hello.", talk="c2")
    memory = f"m/{agent.uid}"
    trial = page(operator, f"{memory}/search?q=What+is+my+cat+called%3F")
    assert (
        f'href="../../{memory}/f/{seq}#correct">Correct<span class="unseen"> fact {seq}</span></a>' in trial
    )
    assert f'href="../../{memory}/b/human">Edit<span class="unseen"> human</span></a>' in trial
    reader = operator_of(operator.world, is_read=True)
    for word in (">Correct<", ">Edit<"):
        assert word not in page(reader, f"{memory}/search?q=What+is+my+cat+called%3F")


def test_each_branch_of_a_conversation_is_linked_and_opens(operator: Operator) -> None:
    begun = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    begun.say("My train leaves on 4 May.")
    other = dataclasses.replace(begun, messages=[*begun.messages])
    begun.say("I go to Lyon.")
    other.say("I go to Nice.")
    other.say("By bus.")
    memory = f"m/{memory_of(operator.world).uid}"
    (talk,) = operator.twin(f"{memory}/conversations")["items"]
    path = f"{memory}/c/{talk['id']}"
    shown = page(operator, path)
    assert '<nav aria-label="Branches"' in shown
    branches = operator.twin(path)["branches"]
    assert [each["current"] for each in branches] == [True, False]
    for branch, place, elsewhere in zip(branches, ("Nice", "Lyon"), ("Lyon", "Nice"), strict=True):
        text = page(operator, f"{path}?branch={branch['id']}").partition('<div class="chat">')[2]
        assert place in text
        assert elsewhere not in text
    assert f"?branch={branches[1]['id']}" in shown
    # A forgotten message counts in no branch: each says with which message it begins anew.
    operator.twin(f"{memory}/forget?message=6", {})
    listed = re.findall(r"<li><a [^>]*branch=[^>]*>(.*?)</a>", page(operator, path))
    assert [plain(each).partition(",")[0] for each in listed] == ["from message 5 on", "from message 3 on"]


@pytest.mark.both
def test_branches_count_and_list_the_messages_that_are_left(operator: Operator) -> None:
    begun = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    begun.say("My train leaves on 4 May.")
    others = [dataclasses.replace(begun, messages=[*begun.messages]) for _ in range(2)]
    begun.say("I go to Lyon.")
    for chat, place in zip(others, ("Nice", "Rome"), strict=True):
        operator.world.clock.sleep(1)
        chat.say(f"I go to {place}.")
    memory = f"m/{memory_of(operator.world).uid}"
    (talk,) = operator.twin(f"{memory}/conversations")["items"]
    path = f"{memory}/c/{talk['id']}"

    def list_branches() -> list[tuple[int, int]]:
        return [(each["id"], each["messages"]) for each in operator.twin(path)["branches"]]

    assert list_branches() == [(7, 4), (5, 4), (3, 4)]
    operator.twin(f"{memory}/forget?message=1", {})
    assert list_branches() == [(7, 3), (5, 3), (3, 3)]
    # What they replaced goes along, so that two branches have nothing of their own any more.
    for seq in (5, 6):
        operator.twin(f"{memory}/forget?message={seq}", {})
    assert list_branches() == [(7, 3)]
    # One branch stays for the beginning that all of them had.
    for seq in (7, 8):
        operator.twin(f"{memory}/forget?message={seq}", {})
    assert list_branches() == [(7, 1)]
    assert operator.twin(path)["conversation"]["messages"] == 1


@pytest.mark.both
def test_a_cut_reply_counts_among_the_messages_of_its_branch(operator: Operator) -> None:
    world = operator.world
    chat = world.chat(headers={"x-mnemogate-user": "alice"})
    chat.say("My train leaves on 4 May.")
    world.upstream.queue(say("At nine, and more", tokens=["At nine", ", and more"], hold_after={2: Gate()}))
    messages = [*chat.messages, {"role": "user", "content": "When?"}]
    body = json.dumps({"model": "m", "stream": True, "messages": messages}).encode()
    with world.gateway.connect() as connection:
        connection.request("POST", CHAT, body, {"x-mnemogate-user": "alice"})
        connection.read_until(b"At nine")
    world.upstream.requests[-1].gone.wait_sync()
    memory = f"m/{memory_of(world).uid}"
    (talk,) = operator.twin(f"{memory}/conversations")["items"]
    shown = operator.twin(f"{memory}/c/{talk['id']}")
    assert [(each["text"], each["state"]) for each in shown["items"][2:]] == [
        ("When?", "cancelled"),
        ("At nine", "cancelled"),
    ]
    assert [each["messages"] for each in shown["branches"]] == [len(shown["items"])]


def test_a_reply_without_sources_says_how_long_they_are_kept(operator: Operator) -> None:
    """ "No sources kept" stood where others have "Why this reply", and nothing said why."""
    agent = speak(operator.world, "Hello.", "My cat is called Miso.", talk="c1")
    (talk,) = operator.twin(f"m/{agent.uid}/conversations")["items"]
    path = f"m/{agent.uid}/c/{talk['id']}"
    assert page(operator, path).count(">Why this reply</a>") == 2
    operator.world.clock.sleep(8 * 86_400)
    operator.sign_in()
    shown = page(operator, path)
    assert ">Why this reply</a>" not in shown
    assert shown.count(">why this reply: no longer known, since sources are kept for 7 days</span>") == 2


def read_chat(page_text: str) -> list[str]:
    """Returns the messages of a conversation as they are listed, and what stands between them."""
    chat = page_text.partition('<div class="chat">')[2].partition('<span id="end"')[0]
    parts = re.findall(r'(?s)<p class="hint gap">(.*?)</p>|<div class="words text"[^>]*>(.*?)</div>', chat)
    return [plain(mark or text) for mark, text in parts]


@pytest.mark.both
def test_a_conversation_with_branches_opens_with_all_its_messages(operator: Operator) -> None:
    """It had the messages of one branch, under the words of another one, and the rest seemed to be lost."""
    world = operator.world
    world.upstream.queue(say("Welcome!"), say("It rains."), say("Bring a coat."), say("And an umbrella."))
    chat = world.chat(headers={"x-mnemogate-user": "alice", "x-mnemogate-conversation": "c1"})
    chat.say("We moved to Zurich.")
    first_turn = [*chat.messages]
    world.chat(headers=chat.headers).say("How is the weather?")
    for question in ("What do I take?", "What else?"):
        dataclasses.replace(chat, messages=[*first_turn]).say(question)
    memory = f"m/{memory_of(world).uid}"
    (talk,) = operator.twin(f"{memory}/conversations")["items"]
    path = f"{memory}/c/{talk['id']}"
    goes_on = "Another branch: the message below goes on from message 2."
    everything = [
        "We moved to Zurich.",
        "Welcome!",
        "Another branch: the message below was sent without those above.",
        "How is the weather?",
        "It rains.",
        goes_on,
        "What do I take?",
        "Bring a coat.",
        goes_on,
        "What else?",
        "And an umbrella.",
    ]
    shown = page(operator, path)
    assert read_chat(shown) == everything
    listed = re.findall(r"<li><a [^>]*branch=[^>]*>(.*?)</a>", shown)
    assert [plain(each).partition(" on")[0] for each in listed] == [f"from message {n}" for n in (7, 5, 3)]
    # A page goes on where the one before ended, also within a turn.
    last = page(operator, f"{path}?limit=3")
    assert read_chat(last) == everything[-4:]
    assert "The newest messages" not in last
    earlier = page(operator, f"{path}?limit=3&before=6")
    assert read_chat(earlier) == everything[-9:-4]
    assert "The newest messages" in earlier
    assert "Earlier messages" not in page(operator, f"{path}?limit=3&before=3")
    assert read_chat(page(operator, f"{path}?before=1")) == []
    # A branch alone, and the way from it to all; the twin's default is a branch.
    branch = page(operator, f"{path}?branch={operator.twin(path)['branch']}")
    assert read_chat(branch) == [*everything[:2], *everything[-2:]]
    assert f'href="../../../{path}">Show all 8 messages in order</a>' in branch
    assert [each["seq"] for each in operator.twin(path)["items"]] == [1, 2, 7, 8]
    person = person_of(world)
    own = person.page(f"/c/{talk['id']}")
    assert plain(own.partition("<h1 ")[2].partition("</h1>")[0].partition(">")[2]) == (
        f"We moved to Zurich. Conversation {talk['id']}"
    )
    assert read_chat(own) == [
        *everything[:2],
        "Here it began again.",
        *everything[3:5],
        "Here it went on from an earlier message.",
        *everything[6:8],
        "Here it went on from an earlier message.",
        *everything[9:],
    ]
    assert "Show all 8 messages in order" in person.page(f"/c/{talk['id']}?branch=8")


def test_a_page_of_what_was_forgotten_leads_back_to_what_is_there(operator: Operator) -> None:
    """As the back button opens it after a forgetting."""
    uid = speak(operator.world, "Hello.").uid
    for path, target in (
        (f"m/{uid}/forget?message=99", f"../../m/{uid}"),
        (f"m/{uid}/f/99", f"../../../m/{uid}"),
        (f"m/{uid}/nothing", "../../"),
        ("m/nobody/f/99", "../../../"),
        ("m/nobody", "../"),
    ):
        shown = page(operator, path, 404).partition("<main")[2].partition("</main>")[0]
        assert re.findall('href="([^"]*)"', shown) == [target], path


def test_what_a_page_of_a_refused_form_links_to_is_there(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    fact, block = f"m/{agent.uid}/f/{seq}", f"m/{agent.uid}/b/human"
    for version in range(1, 23):
        assert operator.post(block, value=f"Version {version}.", version=version).status == 303
    refused = operator.post(f"{block}/undo", version=1)
    assert refused.status == 409
    links = re.findall(r'href="([^"#]*b/human\?[^"#]*)', refused.body.decode())
    assert len(links) > 2  # a comparison for each older version, and the next page
    for link in links:
        page(operator, unescape(link).removeprefix("../../../../"))
    assert operator.post(f"{fact}/correct", text="The train leaves on 5 May.").status == 400
    headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{fact}/correct"}
    muted = operator.send_form(f"{fact}/mute", {"muted": "true"}, **headers)
    assert (muted.status, muted.headers["location"]) == (303, f"../../../../{fact}#mute-saved")
    for address, screen in (
        (f"{fact}/correct", fact),
        (f"{fact}?a=b", f"{fact}?a=b"),
        ("people?q=a", "people?q=a"),
        ("login?next=keys", "login?next=keys"),
        ("keys/1/revoke", "keys"),
        ("jobs/1/retry", "./"),
        ("", "./"),
    ):
        headers["referer"] = f"http://{operator.host}/ui/{address}"
        theme = operator.send_form("theme", {"theme": "dark"}, **headers)
        assert (theme.status, theme.headers["location"]) == (303, f"{screen}#theme-dark")


def test_the_note_of_a_search_has_the_date_that_a_reply_s_would_have(operator: Operator) -> None:
    world = operator.world
    uid = speak(world, "My train to Lyon leaves on 4 May.").uid
    found = operator.twin(f"m/{uid}/search?q=When+does+my+train+to+Lyon+leave%3F")
    assert f"Written {render_day(world.clock.now)}." in found["note"]


@pytest.mark.both
def test_all_that_is_found_is_shown_to_its_last_page(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    texts = [f"The cat of Alice is called {name}." for name in ("Miso", "Yuzu", "Nori")]
    learn(operator.world, agent, *texts)
    seen, path = [], f"m/{agent.uid}/search?q=cat+Alice&limit=1"
    link: str | None = path
    while link:
        text = page(operator, link)
        assert ("<details open>" in text) == (link != path)
        seen.append(text.partition("All that is found")[2])
        following = re.search(r'href="(\?[^"]*)">Next page', text)
        link = path.partition("?")[0] + unescape(following[1]) if following else None
    assert len(seen) == 3
    assert sorted(text for text in texts for shown in seen if text in unescape(shown)) == sorted(texts)


def test_a_long_fact_that_an_import_brought_is_corrected(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    long = "The train leaves on 5 May. " + "It is slow. " * 100
    (seq,) = learn(operator.world, agent, long.strip())
    fact = f"m/{agent.uid}/f/{seq}"
    assert 'maxlength="2000"' in page(operator, fact)
    assert operator.post(f"{fact}/correct", text=long.replace("5 May", "4 May")).status == 303
    assert operator.twin(fact)["after"]["text"].startswith("The train leaves on 4 May. It is slow.")


@pytest.mark.both
def test_a_correction_is_undone_and_forgetting_names_what_it_replaced(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    uid = agent.uid
    assert ">Undo the" not in page(operator, f"m/{uid}/f/{seq}")
    new = operator.twin(f"m/{uid}/f/{seq}/correct", {"text": "The train leaves on 4 May."})["seq"]
    shown = page(operator, f"m/{uid}/f/{new}")
    assert 'name="text" value="The train leaves on 5 May."' in shown
    # Each of them says what it undoes.
    assert {*re.findall(r">(Undo[^:<]*)</button>", shown)} == {"Undo the correction"}
    assert {*re.findall(r">(Undo[^:<]*)</button>", person_of(operator.world).page(f"/f/{new}"))} == {
        "Undo the correction"
    }
    # It stands where the change is reported, too, and not only at the end of the page.
    reported = re.findall(r'<p class="saved".*?</p>', shown)[0]
    assert '<button form="undo" class="small"' in reported
    # And once more where the fact can be changed, for whoever comes back to the page.
    for text in (shown, person_of(operator.world).page(f"/f/{new}")):
        assert text.count(">Undo the correction</button>") == 2
    preview = operator.twin(f"m/{uid}/forget?fact={new}")
    assert preview["target"]["text"] == "The train leaves on 4 May."
    assert f"Fact {seq}, which it replaced." in [each["text"] for each in preview["stays"]]
    assert "The train leaves on 4 May." in page(operator, f"m/{uid}/forget?fact={new}")
    # Undone, it says what the first one says.
    last = operator.twin(f"m/{uid}/f/{new}/correct", {"text": "The train leaves on 5 May."})["seq"]
    shown = page(operator, f"m/{uid}/f/{last}")
    assert f"fact {seq}</a> said, from learning" in shown
    assert f"Undone: what fact {seq} said is true again." in shown
    for text in (shown, person_of(operator.world).page(f"/f/{last}")):
        assert text.count(">Redo the correction</button>") == 2
        assert ">Undo the correction" not in text
    since = [operator.twin(f"m/{uid}/f/{each}")["fact"]["since"] for each in (seq, last)]
    assert re.findall(
        r'True since</dt><dd><time datetime="(.*?)".*?</time>; a correction was taken back <time', shown
    ) == [re.findall(r'True since</dt><dd><time datetime="(.*?)"', page(operator, f"m/{uid}/f/{seq}"))[0]]
    assert since[0] < since[1]
    noted = [(each["action"], each["what"]) for each in operator.twin("audit")["items"]]
    undone = ("undo", f"fact {new} as {last}, back to fact {seq}")
    assert [each for each in noted if each[1]][:2] == [undone, ("correct", f"fact {seq} as {new}")]
    assert "Says again" not in page(operator, f"m/{uid}/f/{new}")
    # The first fact's page does not call the correction true.
    first = f"m/{uid}/f/{seq}"
    shown = plain(page(operator, first))
    assert f"Replaced byFact {new}: The train leaves on 4 May.Taken back: true again as fact {last}" in shown
    assert "True instead" not in shown
    assert "True instead" not in person_of(operator.world).page(f"/f/{seq}")
    assert f"Fact {new}, which replaced it." in [
        each["text"] for each in operator.twin(f"m/{uid}/forget?fact={seq}")["stays"]
    ]
    stays = [each["text"] for each in operator.twin(f"m/{uid}/forget?fact={last}")["stays"]]
    assert {f"Fact {new}, which it replaced.", f"Fact {seq}, which it replaced."} <= {*stays}
    later = operator.twin(f"m/{uid}/f/{last}/correct", {"text": "The train leaves on 3 May."})["seq"]
    shown = plain(page(operator, first))
    assert f"True insteadFact {later}: The train leaves on 3 May." in shown
    assert "Taken back" not in shown
    assert "The train leaves on 3 May." in person_of(operator.world).page(f"/f/{seq}")


@pytest.mark.both
def test_a_correction_that_is_redone_is_not_called_undone(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    numbers = learn(operator.world, agent, "The train leaves on 5 May.")
    for day, word in ((4, None), (5, "Undone"), (4, "Done"), (5, "Undone")):
        form = {"text": f"The train leaves on {day} May."}
        numbers.append(operator.twin(f"m/{agent.uid}/f/{numbers[-1]}/correct", form)["seq"])
        shown = page(operator, f"m/{agent.uid}/f/{numbers[-1]}")
        expected = [f"{word}: what fact {numbers[-3]} said is true again."] if word else []
        assert re.findall(r"(?:Und|D)one: what .*? again\.", plain(shown)) == expected
        if (
            word == "Done"
        ):  # the first fact names what is true instead once, and not what had the same text before
            assert "; an undo was taken back " in plain(shown)
            first = plain(page(operator, f"m/{agent.uid}/f/{numbers[0]}"))
            assert ("Replaced by" in first, f"True insteadFact {numbers[-1]}: " in first) == (False, True)
        shown = person_of(operator.world).page(f"/f/{numbers[-1]}")
        expected = [f"{word}: what it said before is true again."] if word else []
        assert re.findall(r"(?:Und|D)one: what .*? again\.", plain(shown)) == expected


def test_a_correction_that_was_taken_back_is_named_so_and_can_be_erased(operator: Operator) -> None:
    """It was called true "until" the undo, and nothing led to it: a slip stayed in the database for good."""
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    memory, words = f"m/{agent.uid}", f"m/{agent.uid}/words?q=train"
    slip = operator.twin(f"{memory}/f/{seq}/correct", {"text": "The train leaves on 4 May."})["seq"]
    assert "taken_back" not in operator.twin(f"{memory}/f/{seq}")["fact"]
    speak(operator.world, "When does the train leave?", talk="c2")
    request = f"r/{operator.twin('requests')['items'][0]['id']}"
    new = operator.twin(f"{memory}/f/{slip}/correct", {"text": "The train leaves on 5 May."})["seq"]
    taken_back = {each["seq"]: each.get("taken_back") for each in operator.twin(words)["ended"]}
    assert taken_back == {slip: True, seq: None}
    assert operator.twin(f"{memory}/f/{slip}")["fact"]["taken_back"] is True
    assert re.findall("4 May. (taken back|until|replaced)", plain(page(operator, words))) == ["taken back"]
    assert re.findall("5 May. (taken back|until|replaced)", plain(page(operator, words))) == ["until"]
    person = person_of(operator.world)
    for text in (
        page(operator, f"{memory}/facts?all=1"),
        person.page("/facts?all=1"),
        person.page("/export.html"),
    ):
        assert re.findall(r"4 May\.\s*(\w+ \w+)", plain(text)) == ["taken back"]
    for path in (f"{memory}/f/{slip}", request):
        assert "taken back" in plain(page(operator, path)), path
    assert [each.get("taken_back") for each in operator.twin(request)["chosen"]] == [True]
    for shown in (page(operator, f"{memory}/f/{new}"), person.page(f"/f/{new}")):
        # Beside the message that it is done it looked like the next step.
        assert len(re.findall(f">Forget fact {slip}</a>", shown)) == 1
        assert f"Forget fact {slip}" not in re.findall('(?s)id="saved".*?</p>', shown)[0]
        assert "The train leaves on 4 May. That is still stored, and told in no reply. Forget fact" in plain(
            shown.replace("<br>", " ")
        )
    path = f"{memory}/forget?fact={slip}"
    gone = plain(operator.post(path, came_from=f"{memory}/f/{new}").body.decode())
    assert "Corrected already: The train leaves on 5 May." in gone
    assert operator.twin(words)["items"][0]["seq"] == new
    assert [each["seq"] for each in operator.twin(words)["ended"]] == [seq]
    assert "Forget fact" not in page(operator, f"{memory}/f/{new}")


def test_a_preview_names_the_newest_facts_that_go_with_a_conversation(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.", talk="conv-19")
    numbers = learn(operator.world, agent, *(f"Fact of <b>{n}</b>." for n in range(21)))
    where = f"m/{agent.uid}/forget?conversation=conv-19"
    found = operator.twin(where)
    assert (found["target"]["text"], found["will_go"]["facts"]) == ("Hello.", 21)
    assert [each["seq"] for each in found["facts"]] == list(numbers[:0:-1])
    text = page(operator, where)
    assert "Facts that will go" in text
    assert "Fact of &lt;b&gt;20&lt;/b&gt;." in text
    assert "and 1 more" in text
    assert "facts" not in operator.twin(f"m/{agent.uid}/forget?fact={numbers[0]}")


@pytest.mark.both
def test_a_preview_says_which_corrections_go_and_a_block_keeps_its_own(operator: Operator) -> None:
    agent = speak(operator.world, "I am allergic to peanuts.")
    (wrong,) = learn(operator.world, agent, "Alice is allergic to peanuts.", block="Allergic to peanuts.")
    uid, right = agent.uid, "Alice is allergic to hazelnuts."
    new = operator.twin(f"m/{uid}/f/{wrong}/correct", {"text": right})["seq"]
    block, where = f"m/{uid}/b/human", f"m/{uid}/forget?message=1"
    operator.twin(block, {"value": right, "version": operator.twin(block)["block"]["version"]})
    found = operator.twin(where)
    by = [(each["seq"], each["is_true"], each.get("corrected_by")) for each in found["facts"]]
    assert by == [(new, True, "operator"), (wrong, False, None)]
    assert "blocks" not in found
    text = page(operator, where)
    assert text.count("an operator’s correction</span>") == 1
    assert text.count('<span class="tag">no longer true</span>') == 1
    # A correction by hand is ticked, so that it stays unless its tick is taken out.
    assert re.findall(r'name="keep" value="(\d+)" form="confirm-form" checked>', text) == [str(new)]
    ticked = plain(text).partition("What stays")[2]
    assert "1 fact stays, as ticked above." in ticked
    assert "a correction" not in ticked
    other = plain(page(operator, f"{where}&keep={wrong}")).partition("What stays")[2]
    assert "1 fact goes too, a correction, unless you keep it above." in other
    assert "unless you keep" not in page(operator, f"m/{uid}/forget?fact={wrong}")
    operator.post(where)
    assert (operator.twin(block)["block"]["value"], operator.twin(f"m/{uid}/facts")["items"]) == (right, [])


@pytest.mark.both
def test_facts_are_ticked_to_stay_where_a_reply_goes_and_its_question_stays(operator: Operator) -> None:
    """The partner's name and taste went with the reply alone, though the person had told them."""
    agent = speak(operator.world, "My partner Tom likes it mild.")
    likes, wordy = learn(operator.world, agent, "Tom likes mild food.", f"Has a {SECRET}.")
    memory = f"m/{agent.uid}"

    def read_ticked(target: str) -> list[str]:
        shown = page(operator, f"{memory}/forget?{target}&back={memory}/words%3Fq%3D{SECRET}")
        return re.findall(r'name="keep" value="(\d+)"[^>]*checked', shown)

    assert read_ticked("message=2") == [str(likes)]
    assert read_ticked("texts=2") == [str(likes)]
    assert (read_ticked("message=1"), read_ticked("exchange=1"), read_ticked("texts=1&texts=2")) == (
        [],
        [],
        [],
    )
    assert operator.twin(f"{memory}/forget?message=2")["question"] == 1
    assert "or from message 1, which it answers and which stays" in page(
        operator, f"{memory}/forget?message=2"
    )
    assert "question" not in operator.twin(f"{memory}/forget?message=1")
    assert {wordy} < {each["seq"] for each in operator.twin(f"{memory}/forget?message=2")["facts"]}


@pytest.mark.both
def test_a_block_keeps_what_the_question_says_where_the_reply_goes(operator: Operator) -> None:
    agent = speak(operator.world, "My partner Tom likes mild food.")
    learn(operator.world, agent, block="Partner: Tom, likes mild food\nTom sings")
    memory = f"m/{agent.uid}"
    for target in ("message=2", "texts=2"):
        preview = operator.twin(f"{memory}/forget?{target}")
        assert [each["after"] for each in preview["blocks"]] == ["Partner: Tom, likes mild food"], target
        assert (preview["will_go"]["versions"], preview["stays"][0]["text"][:16]) == (0, "1 later version ")
    assert operator.twin(f"{memory}/forget?message=1")["blocks"][0]["after"] == ""
    operator.twin(f"{memory}/forget?message=2", {})
    assert operator.twin(f"{memory}/b/human")["block"]["value"] == "Partner: Tom, likes mild food"


def test_a_preview_counts_the_facts_that_can_be_kept(operator: Operator) -> None:
    """A fact that is no longer true has no tick, and the form said that all of them could be kept."""
    agent = speak(operator.world, "I ride a Gazelle to work.")
    memory = f"m/{agent.uid}"
    wrong, _ = learn(operator.world, agent, "Has a gazelle.", "Rides to work.")
    operator.twin(f"{memory}/f/{wrong}/correct", {"text": "Has a bicycle of the brand Gazelle."})
    shown = plain(page(operator, f"{memory}/forget?message=1"))
    assert "1 fact stays, as ticked above. 2 facts go too, unless you keep 1 of them above." in shown


@pytest.mark.both
def test_a_learned_fact_is_kept_when_a_message_that_it_rests_on_is_forgotten(operator: Operator) -> None:
    """The ride to work went with the stolen bicycle, and only a correction could be kept."""
    world = operator.world
    agent = speak(world, f"I ride my {SECRET} to work every day.")
    facts = (f"Has a {SECRET}.", "Rides to work every day.", f"Goes by {SECRET}.")
    stolen, ride, wordy = learn(world, agent, *facts)
    memory = f"m/{agent.uid}"
    where = f"{memory}/forget?texts=1&texts={stolen}&back={memory}/words%3Fq%3D{SECRET}"
    shown = page(operator, where)
    assert re.findall(r'name="keep" value="(\d+)"', shown) == [str(wordy), str(ride)]
    tagged = re.findall(r"has the words, right or wrong</span><p class=\"check\"><[^>]*value=\"(\d+)", shown)
    assert tagged == [str(wordy)]
    table = re.findall(r'<th scope="row">([\w ,]+)</th><td class="num">(\d+)', shown)
    # One of them is ticked to stay.
    assert table[:3] == [("Messages", "1"), ("Facts", "1"), ("More facts, unless kept below", "2")]
    assert "2 facts go too, unless you keep them above." in plain(shown)
    done = operator.twin(where, {"confirm": 2, "keep": [ride]})
    assert (done["kept"], done.get("facts"), done.get("corrections")) == ([ride], 1, None)
    assert SECRET.encode() not in world.data()
    (kept,) = operator.twin(f"{memory}/facts")["items"]
    assert (kept["seq"], kept["origin"], kept["sources"]) == (ride, "learned", [])
    assert "It was kept when its message was forgotten." in page(operator, f"{memory}/f/{ride}")
    person = person_of(world)
    assert "Noted on" in plain(person.page("/facts"))
    assert "The words it came from are not kept." in plain(person.page("/facts"))
    assert ("keep", f"fact {ride}") in [(e["action"], e["what"]) for e in operator.twin("audit")["items"]]
    speak(world, "How do I get to work, and do I ride every day?")
    assert b"Rides to work every day." in world.upstream.last.body


@pytest.mark.both
def test_a_correction_is_kept_as_a_fact_of_its_own(operator: Operator) -> None:
    world = operator.world
    agent = speak(world, f"Our anniversary is in {SECRET}.")
    (wrong, other) = learn(world, agent, f"The anniversary is in {SECRET}.", "Has an anniversary.")
    memory = f"m/{agent.uid}"
    right = "The anniversary is in July."
    new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": right})["seq"]
    also = operator.twin(f"{memory}/f/{other}/correct", {"text": f"Not in {SECRET}."})["seq"]
    refused = operator.post(f"{memory}/facts", text=right)
    already = f"Nothing was added: fact {new} says so already. The preview of a forgetting can keep it."
    assert (refused.status, already in refused.body.decode()) == (409, True)
    # The alert leads there, and so does a person's.
    person = person_of(world)
    same = person.send("facts", text=right)
    for path, reply in ((f"{memory}/facts", refused), (f"{person.path}/facts", same)):
        (alert,) = re.findall(r'<p role="alert".*?</p>', reply.body.decode())
        (href,) = re.findall(rf'<a href="([^"]*)">Open fact {new}</a>', alert)
        assert urljoin(path, href) == path.removesuffix("facts") + f"f/{new}"
    speak(world, "When is our anniversary?")  # which recalls the correction
    where = f"{memory}/forget?message=1"
    headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{memory}/f/{new}"}
    shown = operator.ask("GET", where, None, headers).body.decode()
    # A correction that still has the words that are to go is not ticked.
    ticks = re.findall(
        r'<input type="checkbox"[^>]* name="keep" value="(\d+)" form="confirm-form"(.*?)>', shown
    )
    assert ticks == [(str(also), ""), (str(new), " checked")]
    tagged = re.findall(r"has the words, right or wrong</span><p class=\"check\"><[^>]*value=\"(\d+)", shown)
    assert tagged == [str(also)]
    for seq, why in ((wrong, "is gone or no longer true"), (999, "is none of those that would go")):
        refused = operator.post(where, keep=seq)
        assert refused.status == 409
        assert f"Nothing was forgotten: fact {seq} {why}." in refused.body.decode()
    assert len(operator.twin(f"{memory}/facts")["items"]) == 2
    done = operator.twin(where, {"keep": [new]})
    assert (done["facts"], done["corrections"], done["kept"]) == (3, 1, [new])
    assert done["command"].splitlines()[1:] == [
        f"mnemogate memory add --profile=default --user=alice '--text={right}'",
    ]
    kept = operator.twin(f"{memory}/f/{new}")
    assert (kept["fact"]["text"], kept["fact"]["about"], kept["fact"]["sources"]) == (right, "", [])
    assert (kept["before"], kept["after"]) == ([], None)
    assert [each["seq"] for each in operator.twin(f"{memory}/facts?all=1")["items"]] == [new]
    assert SECRET.encode() not in world.data()
    noted = [(each["action"], each["what"]) for each in operator.twin("audit")["items"]]
    assert noted[:3] == [
        ("forget", "message 1"),
        ("forget", f"with facts {wrong}, {other}, {also}"),
        ("keep", f"fact {new}"),
    ]
    speak(world, "So when is our anniversary, please?")
    assert right.encode() in world.upstream.last.body


@pytest.mark.parametrize(
    ("target", "number"), [("conversation=conv-19", 4), ("texts=1&texts=2", 2), ("exchange=1", None)]
)
def test_ticks_of_a_preview_that_is_refused_stay(operator: Operator, target: str, number: int | None) -> None:
    agent = speak(operator.world, "Tea is fine.", "So is milk.", talk="conv-19")
    wrong = learn(operator.world, agent, "Likes tea.", "Likes milk.")
    memory = f"m/{agent.uid}"
    new = [
        operator.twin(f"{memory}/f/{seq}/correct", {"text": f"Hates drink {seq}."})["seq"] for seq in wrong
    ]
    where, ticks = f"{memory}/forget?{target}", "".join(f"&keep={seq}" for seq in new)
    headers = {"cookie": operator.cookie, "content-type": FORM, "origin": f"http://{operator.host}"}
    wrong_form = "confirm=3" + ticks if number else f"keep={wrong[0]}{ticks}"
    refused = operator.ask("POST", where, wrong_form.encode(), headers)
    assert (refused.status, refused.body.count(b" checked>")) == (409, 2)
    assert operator.program("POST", f"{memory}/forget.json?message=1", {"keep": [0]}).status == 400
    reader = operator_of(operator.world, is_read=True)
    assert 'name="keep"' not in page(reader, where)
    form = f"confirm={number}{ticks}" if number else ticks[1:]
    gone = operator.ask("POST", where, form.encode(), headers).body.decode()
    assert "2 facts stay as facts of their own." in gone
    assert sorted(each["seq"] for each in operator.twin(f"{memory}/facts")["items"]) == sorted(new)


def test_a_message_that_facts_stand_for_is_said_to_be_repeated(operator: Operator) -> None:
    agent = speak(operator.world, "My grey cat lives in Lyon.")
    learn(operator.world, agent, "The grey cat of Alice lives in Lyon.")
    found = operator.twin(f"m/{agent.uid}/search?q=grey+cat")
    assert [each["text"] for each in found["chosen"]] == ["The grey cat of Alice lives in Lyon."]
    assert ("My grey cat lives in Lyon.", "repeats") in [(e["text"], e["reason"]) for e in found["left_out"]]


def test_a_fact_that_an_import_brought_is_shown(operator: Operator) -> None:
    key = {"authorization": f"Bearer {operator.key}"}
    gateway = operator.world.gateway
    begun = gateway.ask("POST", "/v1/manage/imports?user=alice", b"- Alice drives a Fiat.\n", key)
    assert begun.status == 202, begun.body
    import_path = f"/v1/manage/imports/{begun.json['id']}"
    becomes(lambda: gateway.ask("GET", import_path, None, key).json["status"] == "done")
    uid = memory_of(operator.world).uid
    (fact,) = operator.twin(f"m/{uid}/facts")["items"]
    assert fact["origin"] == "import"
    assert "an import" in page(operator, f"m/{uid}")
    assert "an import brought it along" in page(operator, f"m/{uid}/f/{fact['seq']}")


def test_forgetting_takes_all_to_the_last_byte(operator: Operator) -> None:
    agent = speak(operator.world, f"My cat is called {SECRET}.", "She is grey.", talk="conv-19")
    learn(operator.world, agent, f"Alice has a cat called {SECRET}.", block=f"Cat: {SECRET}.")
    speak(operator.world, f"What is my cat {SECRET} called?")
    operator.world.pass_time(60)
    uid = agent.uid
    page(operator, f"m/{uid}/search?q={SECRET}")
    preview = operator.twin(f"m/{uid}/forget?all=1")
    assert sorted(preview) == ["command", "confirm", "more_facts", "stays", "target", "will_go"]
    assert (preview["confirm"], preview["will_go"]["messages"]) == ("6", 6)
    wrong = operator.post(f"m/{uid}/forget?all=1", confirm="5")
    assert (wrong.status, "Type 6 to confirm" in wrong.body.decode()) == (409, True)
    done = operator.twin(f"m/{uid}/forget?all=1", {"confirm": "6"})
    assert (done["done"], done["swept"], done["messages"]) == (True, True, 6)
    assert done["command"].startswith("mnemogate memory forget")
    assert SECRET.encode() not in operator.world.data()
    assert operator.get(f"m/{uid}").status == 404
    assert [each for each in actions(operator) if each[0] == "forget"] == [("forget", uid)]


@pytest.mark.both
def test_a_message_that_was_forgotten_alone_counts_on_no_screen(operator: Operator) -> None:
    world = operator.world
    uid = speak(world, f"My cat is called {SECRET}.", "She is grey.", talk="conv-19").uid
    operator.twin(f"m/{uid}/forget?message=1", {})
    memory = operator.twin(f"m/{uid}")
    (talk,) = memory["conversations"]
    assert {
        "memory": memory["memory"]["messages"],
        "conversations": talk["messages"],
        "conversation": operator.twin(f"m/{uid}/c/{talk['id']}")["conversation"]["messages"],
        "to forget all": operator.twin(f"m/{uid}/forget?all=1")["will_go"]["messages"],
        "to forget it": operator.twin(f"m/{uid}/forget?conversation=conv-19")["will_go"]["messages"],
    } == dict.fromkeys(("memory", "conversations", "conversation", "to forget all", "to forget it"), 3)
    assert "3 messages" in page(operator, f"m/{uid}/c/{talk['id']}")
    operator.twin(f"m/{uid}/forget?message=2", {})
    shown = page(operator, f"m/{uid}/c/{talk['id']}")
    assert "2 messages" in shown
    assert re.findall(r'class="gap" id="message-(\d)"><summary>Forgotten', shown) == ["1"]


def test_old_copies_that_are_taken_out_later_are_said_to_be(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over PostgreSQL, which is swept once in a while, or where another program reads the file."""
    uid = speak(operator.world, "My cat is Miso.").uid

    async def is_swept(wait_ms: int) -> bool:
        return False

    monkeypatch.setattr(operator.world.store.database, "sweep", is_swept)
    gone = operator.post(f"m/{uid}/forget?message=1").body.decode()
    assert "It is gone: 1 message, with what came from it. Old copies in the database" in gone
    assert "are taken out a little later, once no program reads them." in gone


def test_what_an_undo_took_back_stays_away_when_its_origin_is_forgotten(operator: Operator) -> None:
    agent = speak(operator.world, "My dog is called Rex.")
    learn(operator.world, agent, block="Dog: Rex.")
    block = f"m/{agent.uid}/b/human"
    operator.twin(block, {"value": "Cat: Miso.", "version": 2})
    operator.twin(f"{block}/undo", {"version": 3})
    operator.twin(f"m/{agent.uid}/forget?exchange=1", {})
    assert operator.twin(block)["block"]["value"] == ""


@pytest.mark.both
@pytest.mark.parametrize(
    ("kind", "index", "messages", "replaced"),
    [("message", 0, 3, 2), ("exchange", 0, 4, 2), ("message", 1, 2, 1)],
)
def test_a_preview_counts_what_was_replaced_by_what_goes(
    operator: Operator, kind: str, index: int, messages: int, replaced: int
) -> None:
    """A question whose answer was made anew takes the first answer along, and the facts that were learned from it."""
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    chat.say("My cat is called Miso.")
    agent = memory_of(operator.world)
    learn(operator.world, agent, "Alice has a cat.", "She is called Miso.")
    chat.messages.pop()
    operator.world.upstream.queue(say("A nice name."))
    chat.go_on()
    memory = f"m/{agent.uid}"
    (conversation,) = operator.twin(f"{memory}/conversations")["items"]
    message = operator.twin(f"{memory}/c/{conversation['id']}")["items"][index]
    forget = f"{memory}/forget?{kind}={message['seq']}"
    preview = operator.twin(forget)
    assert (preview["will_go"]["messages"], preview["replaced"]) == (messages, replaced)
    said = {1: "Among them is 1 message that was replaced", 2: "Among them are 2 messages that were replaced"}
    assert said[replaced] in plain(page(operator, forget))
    assert [each["text"] for each in preview["facts"]] == ["She is called Miso.", "Alice has a cat."]
    before = operator.twin(memory)["memory"]
    assert operator.twin(forget, {})["messages"] == messages
    after = operator.twin(memory)["memory"]
    assert (before["messages"] - after["messages"], before["facts"] - after["facts"]) == (messages, 2)


def test_a_preview_of_a_replaced_question_says_that_its_answer_goes(operator: Operator) -> None:
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    chat.say("My cat is called Miso.")
    chat.messages.pop()
    operator.world.upstream.queue(say("A nice name."))
    chat.go_on()
    memory = f"m/{memory_of(operator.world).uid}"
    preview = operator.twin(f"{memory}/forget?message=1")  # message 2 answered it, message 4 does
    assert (preview["will_go"]["messages"], preview["replaced"]) == (3, 2)
    assert "message 2" not in str(preview["stays"])
    operator.twin(f"{memory}/forget?message=1", {})
    assert operator.twin(memory)["memory"]["messages"] == 1


def test_a_preview_tells_versions_that_go_from_those_that_stay_without_it(operator: Operator) -> None:
    """A correction that was written later stays, and was counted among what goes."""
    agent = speak(operator.world, "I never eat penicillin.")
    block = f"m/{agent.uid}/b/human"
    operator.twin(block, {"value": "Lives in Oslo.", "version": 1})
    (seq,) = learn(operator.world, agent, "No penicillin.", block="Lives in Oslo.\nNo penicillin.")
    operator.twin(block, {"value": "Lives in Bergen.\nNo penicillin.", "version": 3})
    operator.twin(block, {"value": "Lives in Bergen.\nNo penicillin.\nHas a cat.", "version": 4})
    for target, goes, stays in (
        ("exchange=1", 1, ["2 later versions of blocks, without"]),
        (f"fact={seq}", 3, []),
    ):
        preview = operator.twin(f"m/{agent.uid}/forget?{target}")
        assert preview["will_go"]["versions"] == goes, target
        found = [
            each["text"].partition(" what came")[0]
            for each in preview["stays"]
            if "later version" in each["text"]
        ]
        assert found == stays
        (change,) = preview["blocks"]
        assert change["before"] == operator.twin(block)["block"]["value"]
        shown = page(operator, f"m/{agent.uid}/forget?{target}")
        assert "<del>" in shown.partition("after it</h2>")[2].partition("What stays")[0]
        # The person's own page calls the block as in its list.
        asked = person_of(operator.world).page(f"/forget?{target}")
        assert "<del>" in asked.partition("<h2>Note “About you” after it</h2>")[2].partition("What stays")[0]
    assert ">Its sentence, in versions of blocks<" in page(operator, f"m/{agent.uid}/forget?fact={seq}")
    (change,) = operator.twin(f"m/{agent.uid}/forget?exchange=1")["blocks"]
    assert change["after"] == "Lives in Bergen.\nHas a cat."
    operator.twin(f"m/{agent.uid}/forget?exchange=1", {})
    assert operator.twin(block)["block"]["value"] == "Lives in Bergen.\nHas a cat."


@pytest.mark.both
@pytest.mark.parametrize("kind", ["exchange", "conversation", "fact"])
def test_a_preview_shows_what_a_block_will_say(operator: Operator, kind: str) -> None:
    """Whoever corrected it and then forgot the wrong message lost the correction, and the name with it."""
    agent = speak(operator.world, "I am Jonas, and moved to Oslo.", talk="conv-19")
    uid, block = agent.uid, f"m/{agent.uid}/b/human"
    text = "Name: Jonas\nMoved to Oslo."
    (seq,) = learn(operator.world, agent, "Moved to Oslo.", block=text)
    operator.twin(block, {"value": text.replace("Oslo", "Bergen") + "\nLikes tea.", "version": 2})
    talk = operator.twin(f"m/{uid}/conversations")["items"][0]["id"]
    target = {"exchange": "exchange=1", "conversation": f"conversation={talk}", "fact": f"fact={seq}"}[kind]
    preview = operator.twin(f"m/{uid}/forget?{target}")
    shown = page(operator, f"m/{uid}/forget?{target}")
    form = {} if preview["confirm"] is None else {"confirm": preview["confirm"]}
    gone = operator.post(f"m/{uid}/forget?{target}", **form).body.decode()
    now = operator.twin(block)["block"]["value"]
    # The page that says what is gone says so of the block as well.
    named = re.findall(r"Block <span[^>]*>human</span> lost what came from it.*?says now: .*?“([^”]*)”", gone)
    assert [plain(each) for each in named] == ([] if kind == "fact" else [plain(now)])
    if kind == "fact":  # its sentence is in an older version alone
        assert "blocks" not in preview
        assert now == text.replace("Oslo", "Bergen") + "\nLikes tea."
    else:
        assert [each["after"] for each in preview["blocks"]] == [now] == ["Moved to Bergen.\nLikes tea."]
        assert "taken out as well, and those written by hand if they say little else" in shown


def test_notes_of_a_memory_that_is_too_large_are_not_counted(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = speak(operator.world, "My cat is called Miso.")
    (seq,) = learn(operator.world, agent, "Alice has a cat called Miso.")
    speak(operator.world, "What is my cat called?")
    assert operator.twin(f"m/{agent.uid}/forget?fact={seq}")["will_go"]["notes"] == 1
    shown = page(operator, f"m/{agent.uid}/forget?fact={seq}")
    table, _, after = shown.partition("</table>")
    assert "what the model was told" not in table
    assert (
        "What was recalled for 1 reply goes as well, since it may have had this: message 5. The reply itself stays, "
        "and can then no longer show what the model was told." in plain(after)
    )
    # No reply stays of a whole memory, and of two messages the reply itself may be one.
    assert "What was recalled for 1 reply goes as well. What stays" in plain(
        page(operator, f"m/{agent.uid}/forget?all=1")
    )
    both = plain(page(operator, f"m/{agent.uid}/forget?texts=1&texts=5"))
    assert "Those of them that stay can then no longer show what the model was told." in both
    monkeypatch.setattr(preview_notes, "_MAX_NUMBERS", 2)
    preview = operator.twin(f"m/{agent.uid}/forget?fact={seq}")
    assert (preview["will_go"]["notes"], "replies_without_note" in preview) == (None, False)
    assert "too many to count here" in page(operator, f"m/{agent.uid}/forget?fact={seq}")


@pytest.mark.parametrize("is_person", [False, True])
def test_a_form_that_is_refused_has_the_reason_and_the_focus_at_its_field(
    operator: Operator, is_person: bool
) -> None:
    """The reason stood at the top, and who uses the keyboard had to come down the whole page to the field again."""
    agent = speak(operator.world, "My cat is called Miso.")
    seqs = learn(operator.world, agent, "Alice has a cat called Miso 0.")
    person = person_of(operator.world)
    send = person.send if is_person else operator.post
    base = "" if is_person else f"m/{agent.uid}/"
    forms: dict[str, tuple[dict[str, str], str]] = {
        "forget?all=1": ({"confirm": "77"}, "confirm"),
        "facts": ({"text": "Alice is 60."}, "new-fact"),
        f"f/{seqs[0]}/correct": ({"text": "Alice has a cat called Miso 0."}, "correct"),
    }
    assert send(f"{base}facts", text="Alice is 60.").status == 303
    for path, (fields, field) in forms.items():
        refused = send(f"{base}{path}", **fields)
        assert refused.status in (400, 409), path
        html = refused.body.decode()
        (form,) = re.findall(r"<form[^>]*>(?:(?!</form>).)*refused.*?</form>", html, re.S)
        assert form.count('role="alert"') == html.count('role="alert"') == 1, path
        assert re.search(rf'id="{field}"[^>]* autofocus aria-describedby="refused"', form), path


def test_a_fact_that_is_no_longer_mentioned_keeps_its_place_in_the_list(operator: Operator) -> None:
    """One was at the top of the list again, and had to look for where one was."""
    agent = speak(operator.world, "My cat is called Miso.")
    (seq,) = learn(operator.world, agent, "Alice has a cat called Miso.")
    memory = f"m/{agent.uid}"
    referer = f"http://{operator.host}/ui/{memory}/facts?all=1"
    muted = operator.send_form(
        f"{memory}/f/{seq}/mute", {"muted": "true"}, cookie=operator.cookie, referer=referer
    )
    assert muted.headers["location"].endswith(f"{memory}/facts?all=1#mute-{seq}")
    assert f'<button class="small" id="mute-{seq}"><span>Mention<' in page(operator, f"{memory}/facts?all=1")


def test_the_example_of_a_note_is_only_where_it_fits(upstream: StrictUpstream, tmp_path: Path) -> None:
    """An empty block on how to speak had the example “Moved in May, and fetches books at Mill Lane.”"""
    blocks = (BlockSettings("human", "What is known."), BlockSettings("tone", "How to speak."))
    with remember(upstream, tmp_path, ProfileSettings("default", blocks=blocks)) as world:
        operator, memory = operator_of(world), f"m/{speak(world, 'Hello.').uid}"
        assert page(operator, memory).count("Moved in May") == 1
        assert "Moved in May" in page(operator, f"{memory}/b/human")
        assert "Moved in May" not in page(operator, f"{memory}/b/tone")


def test_each_page_says_which_time_it_shows(operator: Operator) -> None:
    """Whoever is in Basel compared "09:31" with a clock that showed 10:31, and no page named the time zone."""
    uid = speak(operator.world, "Hello.").uid
    pages = [page(operator, path) for path in ("", "requests", f"m/{uid}")]
    for shown in (*pages, person_of(operator.world).page()):
        assert "All times are UTC" in shown.partition("<footer")[2]


def test_a_page_leads_past_its_list_to_the_form_for_what_is_missing(operator: Operator) -> None:
    """By keyboard there were 128 links and buttons before it."""
    agent = speak(operator.world, "My cat is called Miso.")
    for shown in (page(operator, f"m/{agent.uid}"), person_of(operator.world).page()):
        assert shown.index('href="#add"') < shown.index('id="facts"') < shown.index('id="add"')
    assert "#add" not in page(operator_of(operator.world, is_read=True), f"m/{agent.uid}")


def test_a_preview_links_to_the_newest_replies_that_lose_their_notes(operator: Operator) -> None:
    """It counted them, and one could not see which before it was too late."""
    agent = speak(operator.world, "My cat is called Miso.")
    (seq,) = learn(operator.world, agent, "Alice has a cat called Miso.")
    for n in range(7):
        speak(operator.world, f"What is my cat called, number {n}?", talk=f"c{n}")
    preview = operator.twin(f"m/{agent.uid}/forget?fact={seq}")
    assert preview["will_go"]["notes"] == 7
    replies = preview["replies_without_note"]
    newest = operator.twin(f"m/{agent.uid}")["conversations"][0]["id"]
    last = operator.twin(f"m/{agent.uid}/c/{newest}")["items"][-1]
    assert [each["seq"] for each in replies] == [last["seq"] - 2 * n for n in range(5)]
    assert replies[0]["href"].startswith(f"m/{agent.uid}/c/{newest}?")
    shown = page(operator, f"m/{agent.uid}/forget?fact={seq}")
    assert f'among them <a href="../../{escape(replies[0]["href"])}">message {last["seq"]}</a>, <a' in shown
    # A reply that goes itself is not named.
    preview = operator.twin(f"m/{agent.uid}/forget?conversation={newest}")
    assert preview["will_go"]["notes"]
    assert last["seq"] not in [each["seq"] for each in preview.get("replies_without_note", ())]
    preview = operator.twin(f"m/{agent.uid}/forget?texts={seq}&texts={last['seq']}")
    assert preview["will_go"]["notes"] == 7
    assert [each["seq"] for each in preview["replies_without_note"]] == [
        last["seq"] - 2 * n for n in range(1, 6)
    ]


@pytest.mark.both
def test_a_forgotten_fact_is_not_learned_again_from_the_same_words(operator: Operator) -> None:
    agent = speak(operator.world, "My train leaves on 4 May.")
    text = f"Alice's train {SECRET} leaves on 4 May."
    (seq,) = learn(operator.world, agent, text, block=f"Trains\n{text}")
    reply = operator.post(f"m/{agent.uid}/forget?fact={seq}")
    assert (reply.status, "It is gone" in reply.body.decode()) == (200, True)
    assert SECRET.encode() not in operator.world.data()
    assert operator.twin(f"m/{agent.uid}")["memory"]["messages"] == 2
    agent = memory_of(operator.world)
    learn(operator.world, agent, text)
    assert operator.twin(f"m/{agent.uid}/facts?all=1")["items"] == []


def test_hostile_texts_do_nothing_and_come_back_as_they_were(operator: Operator) -> None:
    world = operator.world
    agent = speak(world, *HOSTILE, talk="<b>talk/..")
    learn(world, agent, *(text[:390] for text in HOSTILE), block="\n".join(text[:400] for text in HOSTILE))
    uid = agent.uid
    (talk,) = operator.twin(f"m/{uid}")["conversations"]
    for path in (
        "",
        "/facts",
        "/conversations",
        "/b/human",
        f"/c/{talk['id']}",
        "/search?q=English+alert",
        "/forget?all=1",
    ):
        text = page(operator, f"m/{uid}{path}")
        assert "<script>alert" not in text
        assert "<img" not in text
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", text)
        assert len(text.encode()) < 100_000, path
    text = page(operator, f"m/{uid}/b/human")
    typed = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", text, re.S)
    assert typed is not None
    value = operator.twin(f"m/{uid}/b/human")["block"]["value"]
    assert operator.post(f"m/{uid}/b/human", value=unescape(typed[1]) + "!", version=2).status == 303
    assert operator.twin(f"m/{uid}/b/human")["block"]["value"] == value + "!"


def test_a_name_stands_in_its_own_direction_and_in_no_known_language(operator: Operator) -> None:
    name = "<b>Eve</b> 'a b'"
    agent = speak(operator.world, "Hello.", user=name, talk="conv-19")
    shown = escape(name)
    assert f'<h1 dir="auto" lang="">{shown}</h1>' in page(operator, f"m/{agent.uid}")
    assert f'<span class="words" dir="auto" lang="">{shown}</span>' in page(operator, "people")
    command = re.search(r"<pre ([^>]*)>mnemogate [^<]*", page(operator, f"m/{agent.uid}/forget?all=1"))
    assert command is not None
    assert command[1] == 'tabindex="0" dir="auto" lang=""'


def test_an_operator_who_may_only_read_has_no_buttons_for_changes(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.", talk="conv-19")
    (seq,) = learn(operator.world, agent, "The train leaves.", block="Train.")
    reader = operator_of(operator.world, is_read=True)
    (talk,) = operator.twin(f"m/{agent.uid}")["conversations"]
    for path in ("", "/facts", "/b/human", f"/f/{seq}", f"/c/{talk['id']}"):
        text = page(reader, f"m/{agent.uid}{path}")
        assert not re.search(r"method=\"post\"(?! action=\"[./]*(logout|theme))", text), path
        assert ">Forget" not in text
    for path, fields in (("b/human", {"value": "x", "version": 1}), (f"f/{seq}/mute", {"muted": "true"})):
        assert reader.post(f"m/{agent.uid}/{path}", **fields).status == 403
    forget: Any = reader.post(f"m/{agent.uid}/forget?all=1", confirm="2")
    assert forget.status == 403


def test_an_operator_saves_a_copy_that_its_person_can_read(operator: Operator) -> None:
    agent = speak(operator.world, "My cat is Miso.")
    memory = f"m/{agent.uid}"
    (wrong,) = learn(operator.world, agent, "Alice has a dog called Miso.")
    operator.twin(f"{memory}/f/{wrong}/correct", {"text": "Alice has a cat called Miso."})
    # Whoever corrects a fact may mean that it was never true.
    assert "Miso. replaced 9 Oct 2025" in plain(page(operator, f"{memory}/facts?all=1"))
    shown = page(operator, memory)
    assert f'/{memory}/export.html">Copy to read or print</a>' in shown
    assert "“Please make a link to the page about alice, good for a day.”" in plain(shown)
    copy = operator.get(f"{memory}/export.html")
    name = f"memory-alice-{agent.uid[:8]}.html"  # of five such files one knows whose they are
    assert copy.headers["content-disposition"] == f'attachment; filename="{name}"'
    read = plain(copy.body.decode())
    assert "What is remembered about you" in read
    facts, _, messages = read.partition("Conversation of 9 October 2025")
    assert "Alice has a cat called Miso." in facts
    assert "Alice has a dog called Miso. replaced on 9 October 2025" in facts
    assert "My cat is Miso." in messages
    assert operator.twin("audit")["items"][0]["action"] == "export"


def test_a_preview_says_that_the_explanation_of_a_reply_goes_with_it(operator: Operator) -> None:
    """Whoever had forgotten a reply looked for "Why this reply" in its conversation in vain."""
    agent = speak(operator.world, "Hello.")
    (seq,) = learn(operator.world, agent, "The train leaves on 5 May.")
    for part, is_said in (
        ("message=2", True),
        ("exchange=1", True),
        ("all=1", False),
        (f"fact={seq}", False),
    ):
        shown = plain(page(operator, f"m/{agent.uid}/forget?{part}"))
        assert ("If a reply goes, its “Why this reply” goes too." in shown) == is_said, part
