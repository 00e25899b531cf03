"""About me, asked for as a browser and as a program ask: what it shows, what a link may, and what it cannot reach."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.settings import BlockSettings, ProfileSettings, UiSettings
from storage.forget_commands import ForgetTarget
from storage.records import Agent
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import HOSTILE, learn, memory_of, speak
from tests.gateway.page.operator import FORM, Operator, operator_of, plain
from tests.gateway.page.person import Person, person_of
from tests.gateway.page.test_door import CSP, HEADERS, check_headers
from tests.gateway.sdk import World, remember

PROFILE = ProfileSettings(
    "default",
    blocks=(
        BlockSettings("human", "What is known.", limit=3_000),
        BlockSettings("law", read_only=True),
        BlockSettings("team", shared=True),
    ),
)
RIGHTS = ("see", "correct", "forget", "export", "pause")
SECRET = "Zqmisox"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, PROFILE) as made:
        yield made


def fill(world: World) -> tuple[Person, int, str]:
    """Fills a memory. Returns its person, the number of a fact, and the id of a conversation."""
    agent = speak(world, f"My cat is called {SECRET}.", "She is grey.", talk="conv-19")
    (seq,) = learn(world, agent, f"Alice has a cat called {SECRET}.", block=f"Cat: {SECRET}.")
    person = person_of(world)
    return person, seq, person.twin()["conversations"][0]["id"]


def audit(world: World) -> list[tuple[str, str, str]]:
    world.settle()
    listed = world.gateway.call(world.store.audit.list_page(before=1 << 40))
    return [(each.actor, each.action, each.what) for each in reversed(listed)]


@pytest.mark.both
def test_a_person_sees_what_is_remembered(world: World) -> None:
    person, seq, talk = fill(world)
    found = person.twin()
    assert list(found) == ["rights", "expires_at", "paused", "blocks", "facts", "conversations"]
    assert (found["rights"], found["paused"]) == (list(RIGHTS), False)
    assert found["expires_at"] == pytest.approx(world.clock.now + 3_600, abs=5)
    assert [each["label"] for each in found["blocks"]] == ["human", "law", "team"]
    (source,) = found["facts"][0]["sources"]
    assert source["href"].startswith(f"{person.path}/c/{talk}?")
    assert sorted(source) == ["at", "forgotten", "href", "kind", "seq", "text"]
    # Nobody calls oneself "human".
    text = person.page("/b/human")
    assert re.findall("<h1.*?>(.*?)</h1>\n<p.*?>(.*?)</p>", text) == [("human", "About you")]
    assert re.search('<h1[^>]* class="unseen">', text)  # the list calls it "About you"
    assert '<label for="value">Text<span class="unseen"> of human</span></label>' in text
    assert '<label for="value">' not in person.page("/b/law")
    text = person.page()
    assert '<h1 dir="auto">What is remembered about you</h1>' in text
    assert re.search(
        rf"In a conversation of yours on <time [^>]*>9 October 2025</time>: .*My cat is called {SECRET}\.",
        text,
    )
    for below in (f"/f/{seq}", f"/c/{talk}", "/b/human", "/facts", "/facts?all=true", "/conversations",
                  "/passages", f"/forget?fact={seq}", "/forget?all=1", f"/forget?conversation={talk}"):  # fmt: skip
        text = person.page(below)
        assert text.count("<h1") == 1
        assert not re.search(
            r"/ui/m/|\"m/|/m/[0-9a-f]|/r/|/search|restore|undo\"|Why this reply|mnemogate memory", text
        )
        twin = json.dumps(person.twin(below))
        assert memory_of(world).uid not in twin.replace(f'"id": "{memory_of(world).uid}"', ""), below
        assert "mnemogate memory" not in twin
    assert all(each["request"] is None for each in person.twin(f"/c/{talk}")["items"])
    for each in (
        *person.twin(f"/f/{seq}")["fact"]["sources"],
        *person.twin(f"/forget?fact={seq}")["stays"][:1],
    ):
        assert (
            person.world.gateway.ask(
                "GET", "/ui/" + each["href"].partition("#")[0], None, {"host": person.host}
            ).status
            == 200
        )
    assert set(audit(world)) == {("link", "link_create", ""), ("link", "read", "")}


@pytest.mark.both
def test_a_person_finds_words_in_their_own_memory_alone(world: World) -> None:
    speak(world, f"Bob knows of {SECRET}, too.", user="bob")
    person, seq, talk = fill(world)
    operator = operator_of(world)
    uid = memory_of(world).uid
    # A shared block has an earlier version, which another person may have written.
    for value in (f"The team knows {SECRET}.", "The team knows nothing."):
        version = operator.twin(f"m/{uid}/b/team")["block"]["version"]
        operator.twin(f"m/{uid}/b/team", {"value": value, "version": version})
    below = f"/words?q={SECRET}"
    found = person.twin(below)
    assert [(each["kind"], each["seq"]) for each in found["items"]] == [("fact", seq), ("message", 1)]
    assert found["blocks"] == []
    assert found["hidden"] == {"items": [], "is_complete": False}
    assert any(
        "team" in each["place"] for each in operator.twin(f"m/{uid}/words?q={SECRET}")["hidden"]["items"]
    )
    text = person.page(below)
    assert "2 places have the word." in plain(text)
    assert f"<mark>{SECRET}</mark>" in text
    assert "Bob" not in text
    assert not re.search(r"/ui/m/|\"m/|/m/[0-9a-f]|/r/|/search", text)
    assert uid not in text + json.dumps(found)
    assert f'action="../{person.path}/words"' in person.page()
    assert "No message, fact, saved text or note has the word." in plain(person.page("/words?q=Zxqvzz"))
    # A reply that was interrupted is stored, and only an operator's search finds it.
    assert "Not looked through are earlier versions of notes, what was broken off, and" in plain(
        person.page("/words?q=Zxqvzz")
    )
    (message,) = (each for each in found["items"] if each["kind"] == "message")
    assert message["href"].startswith(f"{person.path}/c/{talk}?")
    # From there one text is forgotten, and the way leads back to the words.
    gone = person.send("forget?message=1", came_from=person.path + below).body.decode()
    assert "words?q=" in gone
    reader = person_of(world, rights=["see"])
    assert ">Forget" not in reader.page("/words?q=grey")
    assert person_of(world, rights=["pause"]).ask("GET", below).status == 403


def test_a_link_opens_nothing_that_only_operators_have(world: World) -> None:
    person, _, _ = fill(world)
    for below in ("/search?q=cat", "/requests", "/b/none", "/f/999", "/c/none", "/forget?fact=999", "/pause"):
        assert person.ask("GET", below).status in (404, 405), below
    for below in ("b/human/undo", "b/human/restore", "search", "export.html"):
        assert person.send(below, version=1, to=1).status in (404, 405), below
    refused = person.send("b/law", value="Mine.", version=1)
    assert (refused.status, "Mine." in refused.body.decode()) == (403, True)
    assert f'href="../../../{person.path}"' in refused.body.decode()
    assert person.send("b/team", value="Mine.", version=1).status == 403
    assert person.twin("/b/team")["versions"] == []


def test_a_person_adds_a_fact_that_is_told_before_each_reply(world: World) -> None:
    person, _, _ = fill(world)
    assert ">Tell the assistant before each reply</label>" in person.page()
    where = person.send("facts", text="I am colour-blind.", always="true").headers["location"]
    shown = person.page("/f/" + where.removesuffix("#saved").rpartition("/")[2])
    assert ">told before each reply<" in shown
    new = person.twin("/facts", {"text": "I fetch Miso at noon.", "always": True})
    assert (new["always"], new["origin"]) == (True, "person")
    assert person.send(f"f/{new['seq']}/always", always="false").status == 303
    assert ">Tell before each reply</button>" in person.page(f"/f/{new['seq']}")
    speak(world, "Send me a table.", talk="another")
    assert b"I am colour-blind" in world.upstream.last.body


def test_a_sentence_of_the_person_is_quoted_and_its_correction_leads_to_the_notes(world: World) -> None:
    """ "User said:" stood before it, and nothing said that a note may have it as well."""
    agent = speak(world, "Hola, vivo en Sevilla.")
    (seq,) = learn(world, agent, "User said: Hola, vivo en Sevilla.", block="Vive en Sevilla.")
    person = person_of(world)
    for below in ("", f"/f/{seq}", "/export.html"):
        assert "“Hola, vivo en Sevilla.”" in plain(person.page(below))
        # Who corrects it sees what is stored, and what the words before it are for.
        assert ("User said" in person.page(below)) == (below == f"/f/{seq}")
    hint = "By “User said:” the assistant knows that you said this."
    assert hint in plain(person.page(f"/f/{seq}"))
    assert "Read the notes" not in person.page(f"/f/{seq}")
    new = person.twin(f"/f/{seq}/correct", {"text": "María vive en Cádiz."})["seq"]
    shown = person.page(f"/f/{new}")
    assert hint not in plain(shown)
    assert "“Hola, vivo en Sevilla.”Notes and conversations may still say that in other words." in plain(
        shown
    )
    assert f'<a href="../../../{person.path}#notes">Read the notes</a>' in shown
    assert '<h2 id="notes">Notes</h2>' in person.page()
    # The words that the correction took out are looked for where the old fact is forgotten from its page.
    back = f"{person.path}/f/{new}"
    preview = person.page(f"/forget?fact={seq}&back={quote(back, safe='')}")
    assert '/words?q=vivo+Sevilla">Find what says it elsewhere</a>' in preview


def test_the_way_to_pause_and_to_erase_everything_is_at_the_top(world: World) -> None:
    """It was at the end of a page of twenty facts and ten conversations."""
    person, _, _ = fill(world)
    assert '<a href="#choices">Pause, download or erase everything</a>' in person.page()
    person.send("pause", paused="true")
    assert '<a href="#choices">Download or erase everything</a>' in person.page()
    assert '<a href="#choices">Download everything</a>' in person_of(world, rights=["see", "export"]).page()
    assert "choices" not in person_of(world, rights=["see", "correct"]).page()


def test_a_person_forgets_several_texts_at_once(world: World) -> None:
    """A person had to forget them one by one, each on a page of its own."""
    person, seq, _ = fill(world)
    speak(world, f"{SECRET} likes fish.", "So do I.", talk="other")
    words = f"/words?q={SECRET}"
    found = person.page(words)
    tick = (
        r'<input type="checkbox" name="texts" value="(\d+)" form="ticked"> Tick<span class="unseen"> ([^<]*)<'
    )
    ticks = re.findall(tick, found)
    assert [label for _, label in ticks] == ["message 6", f"fact {seq}", "message 1"]
    referrer = {"referer": f"http://{person.host}/ui/{person.path}{words}"}
    unticked = person.ask("GET", "/forget?", **referrer)
    assert (unticked.status, unticked.headers["location"].rpartition("#")[2]) == (303, "unticked")
    assert 'id="unticked"' in found
    both = "/forget?" + "&".join(f"texts={number}" for number, label in ticks if label != f"fact {seq}")
    assert "Forget 2 texts" in person.page(both)
    gone = person.send(both.removeprefix("/"), confirm="2", came_from=person.path + words)
    assert "Both texts are gone" in plain(gone.body.decode())
    assert person.twin(words)["items"] == []
    # Whoever may not forget has no ticks.
    assert "checkbox" not in person_of(world, rights=["see"]).page(words)


def test_a_person_corrects_and_the_model_is_told_it(world: World) -> None:
    person, seq, _ = fill(world)
    assert person.send("b/human", value="Cat: Miso.", version=2).status == 303
    block = person.twin("/b/human")
    assert (block["block"]["value"], block["versions"][0]["origin"]) == ("Cat: Miso.", "person")
    late = person.send("b/human", value="Cat: none.", version=2)
    assert (late.status, "Changed meanwhile" in late.body.decode()) == (409, True)
    long = person.send("b/human", value="x" * 3_001, version=3)
    refused = unescape(long.body.decode())
    assert long.status == 400
    assert "The text of “human” takes 3,000 characters at most, not 3,001." in refused
    assert "At most 3,000 characters; it has 3,001." in refused
    reply = person.send(f"f/{seq}/correct", text="Alice's cat is called Miso.")
    assert reply.status == 303
    new = person.twin("/facts")["items"][0]
    assert (new["text"], new["origin"]) == ("Alice's cat is called Miso.", "person")
    late = person.send(f"f/{seq}/correct", text="Alice has no cat.")
    assert (late.status, "readonly" in late.body.decode(), "has no cat." in late.body.decode()) == (
        409,
        True,
        True,
    )
    assert "You corrected this on" in person.page(f"/f/{new['seq']}")
    muted = person.send(f"f/{new['seq']}/mute", muted="true")
    assert muted.headers["location"] == f"../../../../{person.path}/f/{new['seq']}#mute-saved"
    saved = '<p class="saved" tabindex="-1" id="mute-saved" role="status">Saved: it is not mentioned any more.</p>'
    assert saved in person.page(f"/f/{new['seq']}")
    assert "not mentioned" in person.page()
    added = person.twin("/facts", {"text": "Alice lives in Lyon."})
    assert (added["origin"], added["sources"]) == ("person", [])
    shown = person.page(f"/f/{added['seq']}")
    assert "You wrote this on" in shown
    assert "It rests on no message of yours." in shown
    assert "You wrote this on" in person.page("/facts")
    assert [each for each in audit(world) if each[1] not in ("read", "link_create")] == [
        ("link", "edit", "block human, version 3"),
        ("link", "correct", f"fact {seq} as {new['seq']}"),
        ("link", "mute", f"fact {new['seq']}, muted"),
        ("link", "remember", f"fact {added['seq']}"),
    ]


def test_a_person_keeps_their_correction_without_the_words_it_came_from(world: World) -> None:
    person, seq, _ = fill(world)
    new = person.twin(f"/f/{seq}/correct", {"text": "Alice's cat is called Miso."})["seq"]
    (source, *_) = person.twin(f"/f/{new}")["fact"]["sources"]
    assert f'name="keep" value="{new}"' in person.page(f"/forget?message={source['seq']}")
    gone = person.send(f"forget?message={source['seq']}", keep=new).body.decode()
    assert "1 fact stays as a fact of its own." in gone
    assert 'id="add"' in gone
    # Of a secret nothing is written down anew, and it may stand elsewhere.
    assert f'secret, and <a href="../../{person.path}/words">look for the secret itself</a>' in gone
    assert person.twin(f"/f/{new}")["fact"]["sources"] == []
    assert "You wrote this on" in person.page(f"/f/{new}")


def test_a_fact_that_is_no_longer_true_is_not_shown_as_muted(world: World) -> None:
    person, seq, _ = fill(world)
    person.send(f"f/{seq}/mute", muted="true")
    screens = ("", f"/f/{seq}", "/facts?all=1", "/export.html")
    assert all("not mentioned" in person.page(screen) for screen in screens)
    new = person.twin(f"/f/{seq}/correct", {"text": "Alice's cat is called Miso."})["seq"]
    assert "not mentioned" in person.page(f"/f/{new}"), "the correction is muted as well"
    person.send(f"f/{new}/mute", muted="false")
    assert [screen for screen in screens if "not mentioned" in person.page(screen)] == []


def test_what_a_link_lacks_has_no_button_and_is_refused(world: World) -> None:
    _, seq, talk = fill(world)
    for lacking in RIGHTS:
        check_right(world, lacking, seq, talk)
    assert [each for each in audit(world) if each[1] not in ("read", "export", "link_create")] == []


def check_right(world: World, lacking: str, seq: int, talk: str) -> None:
    person = person_of(world, rights=[each for each in RIGHTS if each != lacking])
    reads = {
        "see": ("", ".json", "/b/human", f"/f/{seq}", f"/c/{talk}", "/facts", "/conversations", "/passages"),
        "forget": (f"/forget?fact={seq}", "/forget?all=1"),
        "export": ("/export.jsonl", "/export.html"),
    }
    writes = {
        "correct": {
            "b/human": {"value": "x", "version": 2},
            "facts": {"text": "x"},
            f"f/{seq}/correct": {"text": "x"},
            f"f/{seq}/mute": {"muted": "true"},
            f"f/{seq}/always": {"always": "true"},
        },
        "forget": {"forget?all=1": {"confirm": "4"}},
        "pause": {"pause": {"paused": "true"}},
    }
    for right, paths in reads.items():
        for below in paths:
            assert person.ask("GET", below).status == (403 if right == lacking else 200), below
    for below, fields in writes.get(lacking, {}).items():
        assert person.send(below, **fields).status == 403
        path, mark, query = below.partition("?")
        person.twin(f"/{path}{mark}{query}", fields, 403)
    if lacking == "see":
        return
    text = "".join(person.page(below) for below in ("", "/b/human", f"/f/{seq}", f"/c/{talk}"))
    signs = {"correct": ("Save", "Add a fact", "Edit", ">Correct", "Do not mention"), "forget": ("/forget?", ">Forget"),
             "export": ("Download", "export"), "pause": ("Pause memory", "/pause")}  # fmt: skip
    for right, words in signs.items():
        assert [word for word in words if word in text] == ([] if right == lacking else list(words)), right


def test_the_ways_of_a_conversation_are_told_apart_by_their_words(world: World) -> None:
    """Two ways that ended in the same minute were two links with the same name."""
    begun = world.chat(headers={"x-mnemogate-user": "alice"})
    begun.say("My train leaves on 4 May.")
    other = dataclasses.replace(begun, messages=[*begun.messages])
    begun.say("I go to Lyon.")
    other.say("I go to Nice.")
    person = person_of(world)
    (talk,) = person.twin()["conversations"]
    listed = re.findall(r"<li><a [^>]*branch=[^>]*>(.*?)</a>", person.page(f"/c/{talk['id']}"))
    assert [plain(each).partition(" until")[0] for each in listed] == [
        "From “I go to Nice.”",
        "From “I go to Lyon.”",
    ]


def test_a_pause_holds_whatever_requests_say(world: World) -> None:
    person, _, _ = fill(world)
    assert person.twin("/pause", {"paused": True}) == {"paused": True}
    assert person.twin()["paused"]
    assert "Memory is paused" in person.page()
    # Whoever may only read is not left without a way.
    reader = person_of(world, rights=["see"]).page()
    assert "Those who run the application can resume it." in reader
    assert "ask those who run the application to correct it" in reader
    stored = person.twin()["conversations"]
    for mode in ("on", "read", "strict", "off"):
        said = world.post(
            [{"role": "user", "content": f"What is my cat {SECRET} called?"}],
            {"x-mnemogate-user": "alice", "x-mnemogate-memory": mode},
        )
        assert said.headers["x-mnemogate-memory"] == "off"
    assert person.twin()["conversations"] == stored
    assert person.send("pause", paused="false").headers["location"] == f"../../{person.path}#saved"
    assert '<p class="saved" tabindex="-1" id="saved" role="status">Memory is on again' in person.page()
    said = world.post([{"role": "user", "content": "Who is my cat?"}], {"x-mnemogate-user": "alice"})
    assert said.headers["x-mnemogate-memory"] == "on"
    assert [each for each in audit(world) if each[1] == "pause"] == [
        ("link", "pause", "paused"),
        ("link", "pause", "resumed"),
    ]
    for wrong in ({"paused": "maybe"}, {}, {"paused": True, "x": 1}):
        assert person.send("pause", **wrong).status == 400


@pytest.mark.both
def test_a_person_takes_everything_along(world: World) -> None:
    agent = speak(world, *HOSTILE, talk="<b>talk/..")
    learn(world, agent, *(text[:390] for text in HOSTILE), block="\n".join(text[:400] for text in HOSTILE))
    speak(world, "A second conversation.")
    person = person_of(world)
    lines = person.ask("GET", "/export.jsonl")
    assert lines.headers["content-disposition"].startswith('attachment; filename="memory-')
    assert json.loads(lines.body.splitlines()[-1]) == {"end": {}}
    file = person.ask("GET", "/export.html")
    assert (file.status, file.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert file.headers["content-disposition"].startswith('attachment; filename="memory-')
    check_headers(file)
    text = file.body.decode()
    assert "x" * 200_000 in text
    assert "A second conversation." in text
    # Several printed copies were alike, and it said that it has everything.
    assert "stored for alice: " in plain(text)
    assert "Only the file for other programs (JSON) has earlier versions of notes" in plain(text)
    assert text.count("<h2>Conversation of") == 2
    assert text.count("<html") == text.count("</html>") == 1
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", text)
    assert not re.search(r"<[a-z][^>]*\s(href|src|action)=", text)
    assert "default-src 'none'" in text.partition("<style>")[0]
    assert [each for each in audit(world) if each[1] == "export"] == [("link", "export", "")] * 2


@pytest.mark.both(file=["export.jsonl"])
@pytest.mark.parametrize("file", ["export.jsonl", "export.html"])
def test_an_export_whose_memory_is_forgotten_meanwhile_does_not_end_as_if_whole(
    world: World, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, _, _ = fill(world)
    reader, forgetting = world.store.export_reader, world.store.forgetting
    page, agent = reader.load_page, memory_of(world)

    async def page_after_forgetting(of: Agent, part: str, *position: Any) -> Any:
        if part == "exchange" and await world.store.agents.find_by_id(agent.id) is not None:
            await forgetting.finish(await forgetting.begin(agent.id, ForgetTarget(is_all=True)))
        return await page(of, part, *position)

    monkeypatch.setattr(reader, "load_page", page_after_forgetting)
    with pytest.raises(EOFError):  # the connection ends before the last chunk
        person.ask("GET", f"/{file}")
    assert world.gateway.ask("GET", "/health").status == 200


@pytest.mark.both
def test_forgetting_leaves_nothing_and_ends_the_link(world: World) -> None:
    person, seq, _ = fill(world)
    person.page("/export.html")
    gone = person.send(f"forget?fact={seq}")
    assert (gone.status, "It is gone" in gone.body.decode()) == (200, True)
    world.pass_time(60)
    assert person.twin("/forget?all=1")["confirm"] == "4"
    assert person.send("forget?all=1", confirm="3").status == 409
    gone = person.send("forget?all=1", confirm="4")
    assert (gone.status, "Everything about you is erased" in gone.body.decode()) == (200, True)
    assert SECRET.encode() not in world.data()
    assert person.path.removeprefix("me/").encode() not in world.data()
    assert person.ask("GET").status == 404
    world.gateway.flush_log()
    assert SECRET not in str(world.gateway.lines)
    assert [each[1] for each in audit(world)].count("forget") == 2


def test_only_who_may_see_reads_a_count_of_words_after_forgetting(world: World) -> None:
    person, _, _ = fill(world)
    speak(world, f"{SECRET} likes fish.", "So do I.", talk="other")
    blind = person_of(world, rights=["forget"])
    for visitor, message, is_counted in ((blind, 6, False), (person, 2, True)):
        gone = visitor.send(f"forget?message={message}", came_from=f"{visitor.path}/words?q=cat")
        assert gone.status == 200
        assert ("say “cat”" in plain(gone.body.decode())) == is_counted


def test_a_person_who_has_searched_erases_everything(world: World) -> None:
    """The words of the search were counted in a memory that was gone."""
    person, _, _ = fill(world)
    gone = person.send("forget?all=1", confirm="4", came_from=f"{person.path}/words?q={SECRET}")
    assert (gone.status, "Everything about you is erased" in gone.body.decode()) == (200, True)


def test_a_person_who_forgot_a_secret_is_not_asked_to_write_it_down(world: World) -> None:
    """After a password was forgotten, "What is right instead" alone stood above an empty field for it."""
    person, _, _ = fill(world)
    # Before it, too, a person had no way to what says it elsewhere.
    preview = person.page("/forget?message=1")
    assert f'href="../../{person.path}/words">Find what says it elsewhere</a>' in preview
    gone = person.send("forget?message=1").body.decode()
    assert "Leave this empty if it was a secret, and look for the secret itself" in plain(gone)
    assert f'href="../../{person.path}/words"' in gone
    text = "does not reach what the application and the provider of its model have of their own, nor backups."
    assert text in plain(gone)
    assert '<p class="crumb"><a href="../../' + person.path in gone
    gone = person.send("forget?all=1", confirm=person.twin("/forget?all=1")["confirm"])
    assert gone.status == 200
    assert b'class="crumb"' not in gone.body  # the page ends with the memory


@pytest.mark.both
def test_a_user_who_has_paused_stays_paused_after_forgetting(world: World) -> None:
    person, _, _ = fill(world)
    person.send("pause", paused="true")
    assert any("paused" in each["text"] for each in person.twin("/forget?all=1")["stays"])
    gone = person.send("forget?all=1", confirm="4")
    assert (gone.status, "Memory stays paused" in gone.body.decode()) == (200, True)
    assert SECRET.encode() not in world.data()
    assert person.ask("GET").status == 404
    say = [{"role": "user", "content": f"My dog is called {SECRET}."}]
    said = world.post(say, {"x-mnemogate-user": "alice"})
    assert said.headers["x-mnemogate-memory"] == "off"
    world.settle()
    assert SECRET.encode() not in world.data()
    again = person_of(world)
    found = again.twin()
    assert (found["paused"], found["facts"], found["conversations"]) == (True, [], [])
    assert [(each["label"], each["value"]) for each in found["blocks"]] == [
        ("team", ""), ("human", ""), ("law", "")
    ]  # fmt: skip
    again.send("pause", paused="false")
    say = [{"role": "user", "content": "Hello again."}]
    assert world.post(say, {"x-mnemogate-user": "alice"}).headers["x-mnemogate-memory"] == "on"
    world.settle()
    assert again.twin()["conversations"][0]["messages"] == 2


def test_no_altered_token_opens_anything(world: World) -> None:
    person, _, _ = fill(world)
    token = person.path.removeprefix("me/")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    for at, character in enumerate(token):
        other = token[:at] + ("A" if character != "A" else "B") + token[at + 1 :]
        assert Person(world, f"me/{other}").ask("GET").status == 404, at
    for other in (token[:-1], token + "A", token.swapcase(), token + "%00", "%20" + token, token + "~2E", ""):
        assert Person(world, f"me/{other}").ask("GET").status == 404, other
    last = "B" if token.endswith("A") else "A"
    assert Person(world, f"me/{token[:-1]}{last}").send("pause", paused="true").status == 404
    assert not person.twin()["paused"]


@pytest.mark.both
def test_a_link_reaches_nothing_of_others(world: World) -> None:
    person, seq, talk = fill(world)
    # The numbers of Bob's begin again, and his conversation has an id of its own.
    speak(world, "I am Bob, and I like tea.", user="bob", talk="conv-19")
    bob = person_of(world, "bob")
    assert bob.twin()["facts"] == []
    assert bob.ask("GET", f"/c/{talk}").status == 404
    assert bob.ask("GET", f"/forget?conversation={talk}").status == 404
    for below in (f"f/{seq}/correct", f"f/{seq}/mute", f"forget?fact={seq}"):
        assert (
            bob.send(
                below,
                **({"text": "x"} if "correct" in below else {"muted": "true"} if "mute" in below else {}),
            ).status
            == 404
        )
    assert SECRET not in bob.page() + bob.page("/conversations") + bob.page("/export.html")
    own = bob.twin()["conversations"][0]["id"]
    assert bob.ask("GET", f"/c/{own}?message=99").status == 404
    assert bob.ask("GET", f"/c/{own}?branch=99").status == 404
    assert person.twin("/facts")["items"][0]["seq"] == seq


def test_writes_come_from_the_page_itself(world: World) -> None:
    person, _, _ = fill(world)
    body = b"paused=true"
    for headers in (
        {},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{world.gateway.port + 1}"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": f"http://{person.host}"},
        {"authorization": "Bearer mg-none"},
    ):
        reply = person.ask("POST", "/pause", body, **{"content-type": FORM, **headers})
        assert reply.status == 403, headers
        twin = person.ask(
            "POST", "/pause.json", b'{"paused": true}', **{"content-type": "application/json", **headers}
        )
        assert twin.status == 403, headers
    own = {"origin": f"http://{person.host}"}
    assert person.ask("POST", "/pause", body, **own, **{"content-type": "text/plain"}).status == 415
    assert not person.twin()["paused"]
    assert "set-cookie" not in person.ask("GET").headers


def test_what_was_typed_when_a_link_ends_comes_back(world: World) -> None:
    _, seq, _ = fill(world)
    person = person_of(world, ttl_s=60)
    world.clock.sleep(61)
    assert person.ask("GET").status == 404
    for below, fields in (
        ("b/human", {"value": "An hour's <text>.", "version": 2}),
        (f"f/{seq}/correct", {"text": "An hour's <text>."}),
    ):
        reply = person.send(below, **fields)
        text = reply.body.decode()
        assert (reply.status, "An hour&#39;s &lt;text&gt;." in text, "Your text" in text) == (404, True, True)
        assert "Links end after a time" in text
    person.twin("/pause", {"paused": True}, 404)
    assert SECRET in world.query("SELECT value FROM block_history ORDER BY id DESC LIMIT 1")[0]


def test_the_log_has_no_token(world: World) -> None:
    person, seq, _ = fill(world)
    person.page(f"/f/{seq}")
    person.send("pause", paused="true")
    world.gateway.flush_log()
    lines = str(world.gateway.lines)
    assert "/ui/me/…" in lines
    assert person.path.removeprefix("me/") not in lines


def test_an_application_shows_about_me_in_a_frame_where_it_is_allowed(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    ui = UiSettings(frame_origins=("https://app.example", "https://b.example"), https=True)
    with remember(upstream, tmp_path, PROFILE, ui=ui) as world:
        speak(world, "Hello.")
        person = person_of(world)
        csp = CSP.replace("frame-ancestors 'none'", "frame-ancestors https://app.example https://b.example")
        for below, status in (("", 200), (".json", 200), ("/export.jsonl", 200), ("x", 404)):
            reply = person.ask("GET", below)
            assert reply.status == status
            assert "x-frame-options" not in reply.headers
            expected = {**HEADERS, "content-security-policy": csp}
            del expected["x-frame-options"]
            assert {name: reply.headers.get(name) for name in expected} == expected
        check_headers(Operator(world, "").ask("GET", "login"))
