"""Where something is said: found by its words, counted after a correction and a forgetting, or nowhere any more."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

import pytest

from gateway.core.dates import DAY_S
from gateway.page import request_screens
from gateway.settings import BlockSettings, ProfileSettings, UpstreamSettings
from storage.commands import LearnedFact
from storage.reader_commands import LearnedChanges
from storage.records import Agent
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, say
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import HOSTILE, learn, memory_of, speak
from tests.gateway.page.operator import Operator, operator_of, plain
from tests.gateway.page.person import person_of
from tests.gateway.page.test_memory_screens import PROFILE, actions, came_from, page
from tests.gateway.sdk import remember


@pytest.fixture
def operator(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Operator]:
    with remember(upstream, tmp_path, PROFILE) as world:
        yield operator_of(world)


def lead(text: str) -> str:
    """Returns the sentence with the result of a screen."""
    (found,) = re.findall(r'<p role="status" class="lead"[^>]*>(.*?)</p>', text, re.S)
    return plain(found)


def first_lead(text: str) -> str:
    """Returns the sentence with which a request's screen begins."""
    return re.findall(r'<p class="lead"[^>]*>(.*?)</p>', text, re.S)[0]


def peanuts(operator: Operator) -> Agent:
    """Has a user state something wrong, twice, and a fact and a block have it."""
    agent = speak(
        operator.world, "I am allergic to peanuts.", "No peanut for me.", "My sister is Anu.", talk="c1"
    )
    learn(operator.world, agent, "Alice is allergic to peanuts.", block="Allergic to peanuts.")
    return agent


@pytest.mark.both
def test_each_place_with_the_words_is_shown_or_none_is_there(operator: Operator) -> None:
    agent = peanuts(operator)
    path = f"m/{agent.uid}/words?q="
    found = operator.twin(f"{path}Peanut")
    assert [(each["kind"], each["text"]) for each in found["items"]] == [
        ("fact", "Alice is allergic to peanuts."),
        ("message", "No peanut for me."),
        ("message", "I am allergic to peanuts."),
    ]
    assert found["blocks"] == [{"label": "human", "text": "Allergic to peanuts."}]
    assert (found["query"], found["words"], found["next"]) == ("Peanut", ["Peanut"], None)
    assert (found["ended"], found["is_incomplete"]) == ([], False)
    text = page(operator, f"{path}Peanut")
    assert lead(text) == "2 messages, 1 fact and 1 block say “Peanut”."
    assert text.count(">Forget<") == 3
    for query, sentence in (
        ("to peanuts allergic", "1 message, 1 fact and 1 block have the words “peanuts” + “allergic”."),
        ("hazelnuts", "Nothing that is stored says “hazelnuts”."),
        ("hazelnuts peanuts", "No text that is stored has all of the words “hazelnuts” + “peanuts”."),
        ("anu", "1 message says “anu”."),
        (
            "it was",
            "Words of nearly every message, and signs, are not looked for, and there is nothing else in “it was”.",
        ),
    ):
        assert lead(page(operator, path + query.replace(" ", "+"))) == sentence
    assert 'role="status"' not in page(operator, f"m/{agent.uid}/words")
    assert 'formaction="' in page(operator, f"m/{agent.uid}/search?q=peanuts")
    # In pages, the newest first; the first one alone has blocks.
    first = operator.twin(f"{path}peanut&limit=2")
    rest = operator.twin(f"{path}peanut&limit=2&after={first['next']}")
    assert first["items"] + rest["items"] == found["items"]
    assert (len(first["blocks"]), rest["blocks"], rest["next"]) == (1, [], None)
    assert lead(page(operator, f"{path}peanut&limit=2")) == "The newest first: what says “peanut”."
    assert operator.program("GET", f"m/{agent.uid}/words.json?q=peanut&after=x").status == 400


def test_where_no_text_has_all_words_each_word_is_counted_alone(operator: Operator) -> None:
    """“peanut allergy” found nothing, which was taken for a proof: the texts said "allergic"."""
    path = f"m/{peanuts(operator).uid}/words?q="
    text = page(operator, f"{path}Alice+peanut+allergy")
    assert lead(text) == "No text that is stored has all of the words “Alice” + “peanut” + “allergy”."
    assert "Each word alone “Alice”: 1 text “peanut”: 4 texts “allergy”: none" in plain(text)
    assert "“allergy” does not find “allergic”" in text
    (link,) = re.findall(r'<a href="../../([^"]*)">Texts that have the words', text)
    assert lead(page(operator, link)) == "1 fact has the words “Alice” + “peanut”."
    assert "Each word alone" not in page(operator, f"{path}hazelnuts")
    assert "Each word alone" not in page(operator, f"{path}Alice+peanut")
    text = page(operator, "people/words?q=peanut+allergy")
    assert "Search for one of them alone: “peanut”, “allergy”" in plain(text)


@pytest.mark.both
def test_a_person_is_found_by_a_name_that_they_only_wrote(operator: Operator) -> None:
    """Whoever heard "Ferri" on the telephone found nobody: it stood in a message alone."""
    world = operator.world
    nadia = speak(world, "Nadia Ferri here.", "When do you open?", user="n-1")
    speak(world, "Hello.", user="t-2")
    found = operator.get("people?q=Ferri")
    assert (found.status, found.headers["location"]) == (303, "people/words?q=Ferri&name=1")
    text = page(operator, found.headers["location"])
    # There are two people: they were said to be 500.
    called = "none of those who spoke last, 500 people at most, is called so in an id or a note."
    assert f"No name begins with “Ferri”, and {called}" in plain(text)
    assert lead(text) == "1 person with a text that says “Ferri”."
    assert "Nadia <mark>Ferri</mark> here." in text
    assert "Looked through: 2 people" in plain(text)
    (to_words,) = re.findall(r'href="\.\./([^"]*)">All that says “', text)
    assert lead(page(operator, to_words)) == "1 message says “Ferri”."
    found = operator.twin("people/words?q=ferri")
    assert [(each["memory"]["uid"], each["newest"]["text"]) for each in found["items"]] == [
        (nadia.uid, "Nadia Ferri here.")
    ]
    assert (found["words"], found["next"], found["looked_through"], found["is_complete"]) == (
        ["ferri"],
        None,
        2,
        True,
    )
    assert lead(page(operator, "people/words?q=Novak")) == "Nobody’s memory has a text that says “Novak”."
    assert 'role="status"' not in page(operator, "people/words")
    # In pages; whose text is shown, their memory was read.
    first = operator.twin("people/words?q=ok&limit=1")
    rest = operator.twin(f"people/words?q=ok&limit=1&after={first['next']}")
    assert [each["memory"]["name"] for each in first["items"] + rest["items"]] == ["t-2", "n-1"]
    assert "Look through further people" in page(operator, "people/words?q=ok&limit=1")
    # A long question is not in each of its links.
    assert page(operator, "people/words?q=ok" + "+the" * 1_000).count('words?q=ok"') == 2
    assert operator.program("GET", "people/words.json?q=ok&after=x").status == 400
    assert ("read", nadia.uid) in actions(operator)
    shop = operator_of(world, "shop")
    assert shop.twin("people/words?q=Ferri")["items"] == []


def test_several_texts_are_previewed_with_their_words_marked_and_are_one_line_of_the_audit(
    operator: Operator,
) -> None:
    uid = peanuts(operator).uid
    seqs = [
        each["seq"]
        for each in operator.twin(f"m/{uid}/words?q=peanuts")["items"]
        if each["kind"] == "message"
    ]
    several = f"m/{uid}/forget?" + "&".join(f"texts={seq}" for seq in seqs)
    back = quote(f"m/{uid}/words?q=peanuts", safe="")
    assert "No <mark>peanut</mark> for me." in page(operator, f"{several}&back={back}")
    assert "No <mark>peanut</mark> for me." in page(operator, f"m/{uid}/forget?message={seqs[0]}&back={back}")
    assert "<mark>" not in page(operator, several)
    (fact,) = operator.twin(f"m/{uid}/facts")["items"]
    operator.twin(several, {"confirm": str(len(seqs))})
    whats = [each["what"] for each in operator.twin("audit")["items"] if each["action"] == "forget"]
    with_fact = f"with fact {fact['seq']}"
    assert sorted(whats) == sorted([*(f"message {seq}" for seq in seqs), with_fact])
    text = page(operator, "audit")
    assert f" {with_fact} " in plain(text)
    assert len(re.findall(r"<summary>2 texts</summary>", text)) == 1
    assert text.count(">forget</td>") == 1
    # Another forgetting is a line of its own, however soon it comes.
    (other,) = operator.twin(f"m/{uid}/words?q=anu")["items"]
    operator.twin(f"m/{uid}/forget?message={other['seq']}", {})
    assert page(operator, "audit").count(">forget</td>") == 2


@pytest.mark.both
def test_a_correction_says_what_still_has_the_old_words(operator: Operator) -> None:
    """A correction alone left the model with the wrong message, and the page did not say so."""
    agent = peanuts(operator)
    uid = agent.uid
    (wrong,) = operator.twin(f"m/{uid}/facts")["items"]
    text = "Alice is allergic to hazelnuts."
    new = operator.twin(f"m/{uid}/f/{wrong['seq']}/correct", {"text": text})["seq"]
    text = page(operator, f"m/{uid}/f/{new}")
    # On one line with the button this read as "Undo 2 messages".
    assert '>Undo the correction</button> <br><span class="warning">2 messages and 1 block still say' in text
    shown = plain(text)
    assert "2 messages and 1 block still say “peanuts”." in shown
    assert "All that say “peanuts”" in shown
    # The old fact is true no more, and told to nobody.
    assert [each["text"] for each in operator.twin(f"m/{uid}/words?q=peanuts")["ended"]] == [wrong["text"]]
    version = operator.twin(f"m/{uid}/b/human")["block"]["version"]
    operator.twin(f"m/{uid}/b/human", {"value": "Allergic to hazelnuts.", "version": version})
    for screen in (f"f/{new}", "b/human"):
        assert "2 messages still say “peanuts”." in plain(page(operator, f"m/{uid}/{screen}"))
    # From there one is forgotten, and the other is left.
    (other, source) = operator.twin(f"m/{uid}/words?q=peanuts")["items"]
    assert f"forget?message={other['seq']}" in page(operator, f"m/{uid}/f/{new}")
    preview = f"m/{uid}/forget?message={other['seq']}"
    gone = operator.post(preview, came_from=came_from(operator, f"m/{uid}/f/{new}", preview)).body.decode()
    assert "1 message still says “peanuts”." in plain(gone)
    assert "Back to the fact" in gone
    # What is right is written down already.
    right = ("Corrected already:", "What is right instead")
    assert [each in plain(gone) for each in right] == [True, False]
    # The correction goes with its source, so that nothing leads back to it.
    preview = f"m/{uid}/forget?message={source['seq']}"
    gone = operator.post(preview, came_from=f"m/{uid}/f/{new}").body.decode()
    assert "Nothing in alice’s memory says “peanuts” any more." in plain(gone)
    assert f'href="../../m/{uid}/words?q=peanuts">On to the words' in gone
    assert [each in plain(gone) for each in right] == [False, True]
    assert lead(page(operator, f"m/{uid}/words?q=peanuts")) == "Nothing that is stored says “peanuts”."


def test_a_word_late_in_a_very_long_block_is_found(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The index has only the first words of so long a text."""
    profile = ProfileSettings("default", blocks=(BlockSettings("human", "What is known.", limit=100_000),))
    with remember(upstream, tmp_path, profile) as world:
        operator = operator_of(world)
        agent = speak(world, "Hello.")
        learn(world, agent, block=" ".join(f"word{n}" for n in range(6_000)) + " peanuts")
        found = operator.twin(f"m/{agent.uid}/words?q=peanuts")
        speak(world, "No peanut for me.")
        block = f"m/{agent.uid}/b/human"
        stored = operator.twin(block)["block"]
        value = stored["value"].replace("peanuts", "hazelnuts")
        operator.twin(block, {"value": value, "version": stored["version"]})
        corrected = plain(page(operator, f"{block}?words=peanuts"))
    assert [each["label"] for each in found["blocks"]] == ["human"]
    # Not "right or wrong": the correction took the word out.
    assert "1 message still says “peanuts”." in corrected


def test_a_word_late_in_a_long_chinese_text_is_shown(operator: Operator) -> None:
    """The beginning of the text was shown, without the word: no space is before it, and its characters are long."""
    world = operator.world
    around = "我今天去了市场，买了很多蔬菜和水果。" * 40
    agent = speak(world, f"{around}我对花生过敏。{around}", user="li")
    learn(world, agent, block="李的猫叫咪咪。花生。")
    world.pass_time(300)
    for path in ("people/words?q=花生", f"m/{agent.uid}/words?q=花生"):
        assert "我对<mark>花生</mark>过敏" in page(operator, quote(path, safe="/?=")), path
    block = operator.twin(f"m/{agent.uid}/b/human")["block"]
    operator.twin(f"m/{agent.uid}/b/human", {"value": "李的猫叫咪咪。", "version": block["version"]})
    assert "我对花生过敏" in page(operator, f"m/{agent.uid}/b/human")


def test_a_person_who_corrects_is_told_what_still_has_the_old_words(operator: Operator) -> None:
    agent = peanuts(operator)
    person = person_of(operator.world)
    (wrong,) = person.twin("/facts")["items"]
    new = person.twin(f"/f/{wrong['seq']}/correct", {"text": "Alice is allergic to hazelnuts."})["seq"]
    text = person.page(f"/f/{new}")
    assert (
        "2 messages and 1 note still say “peanuts”. A correction does not change them, and the assistant"
        in plain(text)
    )
    assert "note: About you" in plain(text)
    assert re.findall(r"forget\?message=(\d+)", text) == ["3", "1"]
    assert ("/words" in text, agent.uid in text) == (False, False)
    links = re.findall(r'href="([^"]*)">message 1<', text)
    assert links
    assert "I am allergic to peanuts." in person.page(
        unescape(links[0]).partition(person.path)[2].partition("#")[0]
    )
    reader = person_of(operator.world, rights=["see"])
    person.send("b/human", value="Nuts.", version=str(person.twin("/b/human")["block"]["version"]))
    takes_lines = (
        "With a message go the lines of notes that were learned from it, and later lines with the same"
    )
    seen = [plain(each.page("/b/human")) for each in (person, reader)]
    assert [("Forget message" in each, takes_lines in each) for each in seen] == [
        (True, True),
        (False, False),
    ]
    # The correction goes with its source, so that the way leads to the page of all.
    gone = person.send("forget?message=1", came_from=f"{person.path}/f/{new}").body.decode()
    assert f'href="../../{person.path}">Back to what is remembered about you' in gone


def test_an_undo_shows_where_its_words_are_and_does_not_call_them_wrong(operator: Operator) -> None:
    """What it took out may be right; but that a fact still said so was named only after the correction."""
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    version = operator.twin(f"{memory}/b/human")["block"]["version"]
    operator.twin(f"{memory}/b/human", {"value": "My sister is Anu.", "version": version})
    operator.twin(f"{memory}/b/human/undo", {"version": version + 1})
    (wrong,) = operator.twin(f"{memory}/facts")["items"]
    new = operator.twin(f"{memory}/f/{wrong['seq']}/correct", {"text": "My sister is Anu."})["seq"]
    new = operator.twin(f"{memory}/f/{new}/correct", {"text": wrong["text"], "undo": True})["seq"]
    for screen in ("b/human", f"f/{new}"):
        shown = plain(page(operator, f"{memory}/{screen}"))
        assert "Where the old words still are" not in shown
        assert (
            "Where else “sister” + “Anu” is said 1 message has the words “sister” + “Anu”, right or wrong."
            in shown
        )
    # Whoever takes the undo back brings back what was written by hand, and the words are wrong again.
    again = operator.twin(f"{memory}/f/{new}/correct", {"text": "My sister is Anu.", "undo": True})["seq"]
    shown = page(operator, f"{memory}/f/{again}")
    assert "Where the old words still are 1 block still says “allergic” or “peanuts”." in plain(shown)
    assert "Done: what fact " in shown
    assert ">Undo the correction</button>" in shown


@pytest.mark.both
def test_a_forgetting_from_a_corrected_block_counts_what_still_has_the_old_words(operator: Operator) -> None:
    """It was a text of the block's own list, and its end said only that what says it elsewhere stays."""
    agent = speak(operator.world, "I live in Basel.", "My flat in Basel is small.")
    memory = f"m/{agent.uid}"
    learn(operator.world, agent, block="City: Basel.")
    version = operator.twin(f"{memory}/b/human")["block"]["version"]
    operator.twin(f"{memory}/b/human", {"value": "City: Zurich.", "version": version})
    done = operator.post(f"{memory}/forget?message=3", came_from=f"{memory}/b/human").body.decode()
    assert "1 message still says “Basel”." in plain(done)
    assert "Next: message 1" in plain(done)
    assert "Corrected already: City: Zurich." in plain(done)


def test_a_text_without_the_old_words_does_not_mean_that_related_words_were_looked_for(
    operator: Operator,
) -> None:
    """Nothing said "allergies" any more, and the plainest reply said "as you are allergic"."""
    agent = speak(operator.world, "I am allergic to peanuts.")
    memory = f"m/{agent.uid}"
    learn(operator.world, agent, block="Allergies: peanuts.")
    version = operator.twin(f"{memory}/b/human")["block"]["version"]
    operator.twin(f"{memory}/b/human", {"value": "Eats peanuts.", "version": version})
    still = plain(page(operator, f"{memory}/b/human").partition('id="still"')[2].partition("</section>")[0])
    assert "Nothing that a reply can be told says “Allergies” any more." in still
    assert "Related words were not looked for." in still


@pytest.mark.both
def test_a_text_with_one_old_word_that_says_what_is_still_true_is_marked(operator: Operator) -> None:
    """A true fact stood there as one with an old word, with a link that forgets it."""
    agent = speak(operator.world, "We moved to Zurich.", "Shops in Basel deliver.", user="maria")
    memory = f"m/{agent.uid}"
    true, wrong = learn(
        operator.world, agent, "Maria moved to Zurich.", "Maria lives in Zurich, and moved there from Basel."
    )
    new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": "Maria lives in Zurich since May."})["seq"]
    items = (
        page(operator, f"{memory}/f/{new}").partition('id="still"')[2].partition("</ul>")[0].split("<li>")[1:]
    )
    marked = {
        plain(each).partition(".")[0]: "also “Zurich”, as the text now" in plain(each) for each in items
    }
    assert marked == {
        "Maria moved to Zurich": True,
        "We moved to Zurich": True,
        "Shops in Basel deliver": False,
    }
    assert true


@pytest.mark.both
def test_a_correction_that_keeps_all_old_words_lists_what_else_says_them(operator: Operator) -> None:
    """It listed nothing, while a block still said that Maria is allergic to peanuts."""
    agent = speak(operator.world, "The nuts, I must not have peanuts.", "No cake.", user="maria.keller")
    memory = f"m/{agent.uid}"
    (wrong,) = learn(operator.world, agent, "Maria is allergic to peanuts.", block="Allergies: peanuts.")
    text = "Maria's nephew is allergic to peanuts."
    new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": text})["seq"]
    shown = page(operator, f"{memory}/f/{new}")
    (saved,) = re.findall('(?s)id="saved" role="status">(.*?)</p>', shown)
    counted = "1 message and 1 block say “peanuts”, right or wrong. A reply may"
    assert f"{counted} still repeat them. See them below" in plain(saved)
    still = shown.partition('id="still"')[2].partition("</section>")[0]
    assert f"Where else “peanuts” is said {counted} be told them along" in plain(still)
    assert "Allergies: peanuts. block humanEdit human" in plain(still)
    assert re.findall(r"/forget\?([a-z]+=\d+)", still) == ["message=1"]  # the fact itself is none of them
    person = person_of(operator.world, "maria.keller")
    assert "1 message and 1 note say “peanuts”, right or wrong." in plain(person.page(f"/f/{new}"))


@pytest.mark.both
def test_a_block_that_keeps_the_words_of_a_line_lists_what_else_says_them(operator: Operator) -> None:
    """ "Allergies: peanuts" became a nephew's, no word was taken out, and the fact was not listed."""
    agent = speak(operator.world, "I am allergic to peanuts.", "I live in Basel.", user="maria.keller")
    block = f"m/{agent.uid}/b/human"
    learn(operator.world, agent, "Maria is allergic to peanuts.", block="City: Basel.\nAllergies: peanuts.")
    version = operator.twin(block)["block"]["version"]
    text = "City: Basel.\nMaria has no allergies. Her nephew Jonas is allergic to peanuts."
    operator.twin(block, {"value": text, "version": version})
    counted = "1 message and 1 fact say “peanuts”, right or wrong."
    for screen in (page(operator, block), person_of(operator.world, "maria.keller").page("/b/human")):
        shown = plain(screen)
        assert f"Where else “peanuts” is said {counted}" in shown
        assert f"{counted} A reply may still" in shown or f"{counted} The assistant may still" in shown
        assert "Find the wrong words" not in shown


def test_a_correction_that_keeps_many_words_says_that_nothing_was_looked_for(operator: Operator) -> None:
    """It read "Saved." alone. All of a long sentence stands nowhere else, and a part of it says little."""
    agent = speak(operator.world, "I am allergic to peanuts.")
    memory = f"m/{agent.uid}"
    nuts = "is allergic to peanuts, walnuts, almonds and cashews."
    (wrong,) = learn(operator.world, agent, f"Maria {nuts}")
    new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": f"Maria's nephew {nuts}"})["seq"]
    (saved,) = re.findall('id="saved" role="status">(.*?)</p>', page(operator, f"{memory}/f/{new}"))
    assert (
        "Messages that say otherwise stay, and a reply may still repeat them. Find the wrong words"
        in plain(saved)
    )
    assert f'href="../../../{memory}/words"' in saved
    added = operator.twin(f"{memory}/facts", {"text": "Likes tea."})["seq"]
    assert "Messages that say otherwise" not in page(operator, f"{memory}/f/{added}")


def test_a_correction_leads_back_to_the_words_that_led_to_its_fact(operator: Operator) -> None:
    """Its links opened an empty search, though the visitor came from one for "peanuts"."""
    agent = speak(operator.world, "I am allergic to peanuts.")
    memory = f"m/{agent.uid}"
    nuts = "is allergic to peanuts, walnuts, almonds and cashews."
    (wrong,) = learn(operator.world, agent, f"Maria {nuts}")
    fact = f"{memory}/f/{wrong}"
    found = page(operator, f"{memory}/words?q=peanuts")
    links = re.findall(rf'href="../../({fact}[^"]*)"', found)
    assert links == [f"{fact}?words=peanuts", f"{fact}?words=peanuts#correct"]
    for words, text in (("peanuts", "Maria's nephew"), ("nuts & “peanuts”", "Maria's other nephew")):
        sent = operator.send_form(
            f"{fact}/correct",
            {"text": f"{text} {nuts}"},
            cookie=operator.cookie,
            referer=f"http://{operator.host}/ui/{fact}?words={quote(words)}",
        )
        (screen,) = re.findall(rf"{memory}/f/.*(?=#saved)", sent.headers["location"])
        fact, saved = screen.partition("?")[0], unescape(page(operator, screen))
        for search, name in (
            ("words", "Find the wrong words"),
            ("search", "Try what a reply would be told now"),
        ):
            linked = re.findall(rf'href="../../../{memory}/{search}\?q=([^"]*)">{name}', saved)
            assert {*map(unquote_plus, linked)} == {words}


@pytest.mark.both
def test_a_search_goes_back_to_a_day(upstream: StrictUpstream, operator: Operator) -> None:
    """After five years of talks one followed seventy links to a spring."""
    world = operator.world
    days: list[str] = []
    for number in range(5):
        upstream.queue(say("Noted."), say(f"You are welcome: recipe {number}."))
        agent = speak(world, f"Recipe {number} takes flour.", "Thanks.")
        days.append(datetime.fromtimestamp(world.clock(), UTC).date().isoformat())
        world.clock.sleep(3 * DAY_S)
    operator = operator_of(world)  # the session has ended
    memory = f"m/{agent.uid}"
    for until, found in ((days[4], "43210"), (days[2], "210"), (f"{days[1]}T00:00", "0"), ("2001-02-03", "")):
        items = operator.twin(f"{memory}/words?q=recipe&until={until}")["items"]
        # The last reply of a day is of that day.
        texts = [(f"You are welcome: recipe {number}.", f"Recipe {number} takes flour.") for number in found]
        assert [each["text"] for each in items] == [*chain.from_iterable(texts)]
    first = operator.twin(f"{memory}/words?q=recipe&until={days[2]}&limit=1")
    (second,) = operator.twin(f"{memory}/words?q=recipe&until={days[2]}&limit=1&after={first['next']}")[
        "items"
    ]
    assert second["text"] == "Recipe 2 takes flour."
    # There is one page more to go back to, or one went back already.
    for query, has_form in (("", False), ("&limit=1", True), (f"&until={days[1]}", True)):
        path = f"words?q=recipe{query}"
        for text in (page(operator, f"{memory}/{path}"), person_of(world).page(f"/{path}")):
            assert ("Until day, UTC" in text) is has_form, path
    assert lead(page(operator, f"{memory}/words?q=recipe&until=2001-02-03")) == "Nothing older says “recipe”."
    for cursor in ("", "&after=3"):
        assert operator.get(f"{memory}/words?q=recipe&until=spring{cursor}").status == 400


def test_a_correction_in_other_words_counts_the_words_that_led_to_it(operator: Operator) -> None:
    """It took "name" out as well, so that only messages with "name" and "Huber" were listed."""
    agent = speak(operator.world, "My name is Maria Huber.", "Send the parcel to Ms Huber.")
    memory = f"m/{agent.uid}"
    (wrong,) = learn(operator.world, agent, "Maria's name is Maria Huber.")
    right = operator.twin(f"{memory}/f/{wrong}/correct", {"text": "Maria is called Maria Keller."})["seq"]
    for words, sentence in (
        ("", "1 message still has the words “name” + “Huber”."),
        ("Huber", "2 messages still say “Huber”."),
        # The correction has not taken them out.
        ("Maria", "1 message still has the words “name” + “Huber”."),
        ("parcel", "1 message still has the words “name” + “Huber”."),
    ):
        assert sentence in plain(page(operator, f"{memory}/f/{right}?words={words}")), words


def test_a_forgetting_from_a_fact_goes_on_with_the_words_that_led_to_it(operator: Operator) -> None:
    """From a fact it looked for no word, though the visitor had come from a search for "peanuts"."""
    agent = speak(operator.world, "I am allergic to peanuts.")
    speak(operator.world, "No peanuts for me.")
    memory = f"m/{agent.uid}"
    (seq,) = learn(operator.world, agent, "Maria has an allergy.")
    for screen in (f"{memory}/f/{seq}?words=peanuts", f"{memory}/b/human?words=peanuts"):
        preview = page(operator, f"{memory}/forget?message=1&back={quote(screen)}")
        assert "<mark>peanuts</mark>" in preview, screen
    gone = operator.post(f"{memory}/forget?message=1", came_from=f"{memory}/f/{seq}?words=peanuts")
    assert "1 message still says “peanuts”" in plain(gone.body.decode())


@pytest.mark.both
def test_a_correction_by_hand_is_not_what_a_forgetting_goes_on_with(operator: Operator) -> None:
    """A second press of the same button would have taken it, and the wrong facts before it were not named."""
    agent = speak(operator.world, "I am allergic to peanuts.", "I like figs.")
    memory = f"m/{agent.uid}"
    numbers = [*learn(operator.world, agent, "Alice is allergic to peanuts.")]
    for text in (
        "Alice's nephew is allergic to peanuts.",
        "Alice is allergic to peanuts.",
        "No peanuts for Jonas.",
    ):
        numbers.append(operator.twin(f"{memory}/f/{numbers[-1]}/correct", {"text": text})["seq"])
    first, slip, again, right = numbers
    words = f"{memory}/words?q=peanuts"
    gone = operator.post(f"{memory}/forget?fact={slip}", came_from=words).body.decode()
    assert re.findall(">Next: (.*?)</h2>", gone) == ["message 1"]
    assert "2 texts with the words are still stored as well, but not recalled for any reply" in plain(gone)
    listed = {kind: gone.partition(f'id="{kind}"')[2].partition("</ul>")[0] for kind in ("hidden", "written")}
    assert re.findall(r"forget\?fact=(\d+)", listed["hidden"]) == [str(again), str(first)]
    assert "No peanuts for Jonas." in listed["written"]
    assert "forget?" not in listed["written"]
    # Where it alone is left, nothing goes next.
    gone = operator.post(f"{memory}/forget?message=1", came_from=words, keep=str(right)).body.decode()
    assert "Next: " not in gone
    assert "1 fact still says “peanuts”." in plain(gone)


@pytest.mark.both
def test_texts_with_all_words_but_one_are_listed_as_well(operator: Operator) -> None:
    """ "bike lock code" found a fact alone, and not the message that has the code."""
    agent = speak(
        operator.world, "My bike is blue, and I lock it.", "The code of my lock is 4471.", "My bike is new."
    )
    memory = f"m/{agent.uid}"
    (fact,) = learn(
        operator.world, agent, "The code of the bike lock is 4471.", block="Door code, lock: 4471"
    )
    screen = f"{memory}/words?q=bike+lock+code"
    shown = page(operator, screen)
    assert lead(shown) == "1 fact has the words “bike” + “lock” + “code”."
    almost = shown.partition("<caption>Also with 2 of the 3 words</caption>")[2]
    assert re.findall(r'name="texts" value="(\d+)" form="ticked"', almost) == ["3", "1"]
    assert "Door code, lock: 4471 block human" in plain(almost)
    assert f'value="{fact}" form="ticked"' in shown.partition("Also with 2 of the 3")[0]
    links = re.findall(r'href="[^"]*/words\?q=([^"]*)">(.*?)</a>', almost.partition("</main>")[0])
    assert [(q, plain(name)) for q, name in links] == [
        ("bike+lock", "All that have “bike” + “lock”"),
        ("lock+code", "All that have “lock” + “code”"),
    ]
    assert "Also with" not in page(operator, f"{memory}/words?q=lock+code")  # one of two words says little
    person = person_of(operator.world).page("/words?q=bike+lock+code")
    assert re.findall(r"forget\?message=(\d+)", person.partition("Also with 2 of the 3 words")[2]) == [
        "3",
        "1",
    ]
    # What a forgetting leaves of them is no reason to think that all is gone.
    gone = operator.post(f"{memory}/forget?fact={fact}", came_from=screen).body.decode()
    left = gone.partition("Texts with all of these words but one")[2]
    assert re.findall(r"forget\?message=(\d+)", left) == ["3", "1"]


def test_a_search_with_more_ticks_than_go_at_once_says_so(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    memory, limit = f"m/{agent.uid}", "At most 50 go at once."
    (seq,) = learn(operator.world, agent, "The red bowl holds 0 fish.")
    for number in range(1, 51):
        if number == 50:
            assert limit not in plain(operator.get(f"{memory}/words?q=bowl").body.decode())
        fact = operator.twin(f"{memory}/f/{seq}/correct", {"text": f"The red bowl holds {number} fish."})
        seq = fact["seq"]
    shown = operator.get(f"{memory}/words?q=bowl").body.decode()
    ticks = re.findall(r'name="texts" value="([0-9]+)" form="ticked"', shown)
    assert len(ticks) == 51
    assert limit in plain(shown)
    # With many facts that are no longer true there are hundreds of ticks: their query was "not to be read".
    for numbers, rest in ((ticks, 1), (range(1, 451), 400)):
        texts = "&".join(f"texts={number}" for number in numbers)
        headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{memory}/words?q=bowl"}
        refused = operator.ask("GET", f"{memory}/forget?{texts}", None, headers)
        assert refused.status == 400
        assert f'<a href="../../{memory}/words?q=bowl">Back</a>' in refused.body.decode()
        text = f"At most 50 texts are forgotten at once, not {rest + 50}. Go back, and untick {rest}."
        assert text in plain(refused.body.decode())


@pytest.mark.parametrize(
    ("old", "other", "new", "words"),
    [
        ("Hola, vivo en Sevilla.", "Ahora vivo en Sevilla.", "María es de Cádiz.", "“vivo” + “Sevilla”"),
        (
            "Ich wohne und male in Bern.",
            "In Bern male ich, wohne dort.",
            "Singt.",
            "“wohne” + “male” + “Bern”",
        ),
        (
            "Hello, Maria Lopez paints.",
            "Maria Lopez paints well.",
            "She sings.",
            "“Maria” + “Lopez” + “paints”",
        ),
    ],
)
def test_a_correction_looks_for_no_word_that_most_messages_have(
    operator: Operator, old: str, other: str, new: str, words: str
) -> None:
    """A text that lacks "und" or "hola" was not found."""
    agent = speak(operator.world, other)
    (seq,) = learn(operator.world, agent, old)
    fact = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": new})
    shown = plain(operator.get(f"m/{agent.uid}/f/{fact['seq']}").body.decode())
    assert f"1 message still has the words {words}." in shown


def test_a_secret_is_not_offered_to_be_written_down_anew(operator: Operator) -> None:
    """Above a password stood "Is it wrong? Write what is right", and beneath its end a field for it."""
    agent = speak(operator.world, "My password is Blume77.", "The password is on the wall.")
    memory = f"m/{agent.uid}"
    shown = plain(page(operator, f"{memory}/words?q=password"))
    assert "Is it secret? Forget it, then search for the secret itself as well" in shown
    done = operator.post(f"{memory}/forget?message=1", came_from=f"{memory}/words?q=password").body.decode()
    assert "Leave this empty if it was a secret" in plain(done)
    assert "What was forgotten by mistake can be written again here. New fact" in plain(done)


def test_the_end_of_a_forgetting_says_whom_to_ask_for_what(operator: Operator) -> None:
    """A list that was sent again brought a password into a new reply, and nobody was named who can prevent that."""
    agent = speak(operator.world, "My password is Blume77.", talk="a-1")
    memory = f"m/{agent.uid}"
    talk = operator.twin(memory)["conversations"][0]["id"]
    done = operator.post(f"{memory}/forget?message=1").body.decode()
    asks = "Ask those who run the application to go on in a new chat, and to drop"
    assert f"{asks} the old one." in plain(done)
    assert re.search(rf'drop <a href="[^"]*/c/{talk}[^"]*">the old one</a>', done)
    done = operator.post(f"{memory}/forget?conversation={talk}", confirm="1").body.decode()
    assert f"{asks} the old one." in plain(done)


def test_a_forgotten_message_leads_back_to_its_own_conversation(operator: Operator) -> None:
    """It led to the conversation of a later reply that was made with the message."""
    speak(operator.world, "I never eat peanuts.", talk="a-1")
    operator.world.clock.sleep(60)
    agent = speak(operator.world, "May I eat peanuts?", talk="a-2")
    memory = f"m/{agent.uid}"
    later, own = (each["id"] for each in operator.twin(memory)["conversations"])
    assert f"/c/{later}" in str(operator.twin(f"{memory}/forget?message=1")["stays"])
    preview = page(operator, f"{memory}/forget?message=1")
    assert re.search(rf'href="[^"]*/c/{own}[^"]*">Cancel</a>', preview)
    done = operator.post(f"{memory}/forget?message=1").body.decode()
    assert re.search(rf'drop <a href="[^"]*/c/{own}[^"]*">the old one</a>', done)


def test_of_a_chinese_sentence_the_words_that_a_correction_took_out_are_looked_for(
    operator: Operator,
) -> None:
    """The whole sentence was taken for one word, and the page said that nothing says it any more."""
    agent = speak(operator.world, "我住在上海。", "我喜欢龙井茶。", talk="c1")
    (wrong,) = learn(operator.world, agent, "李伟住在上海。")
    memory = f"m/{agent.uid}"
    new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": "李伟住在北京。"})["seq"]
    shown = plain(page(operator, f"{memory}/f/{new}"))
    assert "1 message still says “上海”." in shown
    # Where a sentence is looked for, a part of it may be somewhere.
    assert lead(page(operator, f"{memory}/words?q={quote('李伟住在上海')}")) == (
        "Nothing that a reply can be told has all of the words “李伟住在上海”; 1 text that is still stored does."
    )
    assert lead(page(operator, f"{memory}/words?q={quote('我喜欢龙井')}")) == (
        "1 message has the words “我喜欢龙井”."
    )
    assert lead(page(operator, f"{memory}/words?q={quote('我喜欢红茶')}")) == (
        "No text that is stored has all of the words “我喜欢红茶”."
    )
    assert lead(page(operator, f"{memory}/words?q={quote('龙井')}")) == "1 message says “龙井”."


@pytest.mark.parametrize("is_person", [False, True])
def test_a_text_that_was_true_before_is_saved_as_a_correction_unless_the_undo_sends_it(
    operator: Operator, is_person: bool
) -> None:
    """Whoever typed it read "Undone", and not that a block still had the words of the correction before."""
    agent = speak(operator.world, "I live in Zurich.", talk="c1")
    (first,) = learn(operator.world, agent, "Alice lives in Zurich.", block="Lives in Winterthur.")
    memory, person = f"m/{agent.uid}", person_of(operator.world)

    def correct(seq: int, **fields: str) -> str:
        """Returns the screen to which the form of a correction leads, below the memory's."""
        path = f"f/{seq}/correct"
        reply = person.send(path, **fields) if is_person else operator.post(f"{memory}/{path}", **fields)
        assert reply.status == 303
        return "/f/" + reply.headers["location"].partition("/f/")[2].removesuffix("#saved")

    def read(screen: str) -> str:
        return plain(person.page(screen) if is_person else page(operator, memory + screen))

    corrected = correct(first, text="Alice lives in Winterthur.")
    typed = correct(int(corrected[3:]), text="Alice lives in Zurich.")
    shown = read(typed)
    assert re.search("Saved. Undo the correction 1 (block|note) still says “Winterthur”.", shown)
    assert "Where the old words still are" in shown
    assert "Undone" not in shown
    # The same form sent twice is answered as the first one.
    assert correct(int(corrected[3:]), text="Alice lives in Zurich.") == typed
    undone = correct(int(typed[3:].partition("?")[0]), text="Alice lives in Winterthur.", undo="true")
    shown = read(undone)
    assert "Done: " in shown
    assert "1 message still says “Zurich”." in shown  # what was written by hand is true again


def test_a_block_opened_after_a_search_calls_no_words_old_that_were_not_taken_out(operator: Operator) -> None:
    """Searching to see what stays, one came to a right text whose block offered to forget it."""
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    version = operator.twin(f"{memory}/b/human")["block"]["version"]
    operator.twin(f"{memory}/b/human", {"value": "Likes hazelnuts. My sister is Anu.", "version": version})
    for words, heading, said in (
        ("sister", "Where else “sister” is said", "1 message says “sister”, right or wrong."),
        (
            "hazelnuts",
            "Where else “hazelnuts” is said",
            "Nothing else that a reply can be told says “hazelnuts”. ",
        ),
        ("peanuts", "Where the old words still are", "2 messages and 1 fact still say “peanuts”."),
    ):
        shown = plain(page(operator, f"{memory}/b/human?words={words}"))
        notice = shown.partition("Undo goes back")[2].partition("History")[0]
        assert heading in notice
        assert said in notice
        assert "block human" not in notice
        # The message after a save has it in itself.
        assert (f"{said} A reply may still repeat" in shown) == said.endswith(".")
        # Of a fact it said only how to be rid of it.
        assert ("Correct fact" in notice) == ("1 fact" in said)


def test_links_with_one_name_open_one_thing(operator: Operator) -> None:
    """What stays had four times "Look at it": to a message, a conversation, a fact and a block."""
    uid = peanuts(operator).uid
    (fact,) = operator.twin(f"m/{uid}/facts")["items"]
    new = operator.twin(f"m/{uid}/f/{fact['seq']}/correct", {"text": "Alice is allergic to hazelnuts."})[
        "seq"
    ]
    back = quote(f"m/{uid}/words?q=peanuts", safe="")
    for path in ("", "/words?q=peanuts", "/search?q=peanuts", f"/f/{new}", f"/forget?fact={new}",
                 f"/forget?message=1&back={back}", f"/forget?message=3&back={back}"):  # fmt: skip
        main = page(operator, f"m/{uid}{path}").partition("<main")[2]
        opened: dict[str, set[str]] = {}
        for href, text in re.findall(r'<a [^>]*?href="([^"]*)"[^>]*>(.*?)</a>', main, re.S):
            opened.setdefault(plain(text), set()).add(unescape(href))
        assert {name: hrefs for name, hrefs in opened.items() if len(hrefs) > 1} == {}, path
    preview = plain(page(operator, f"m/{uid}/forget?fact={new}"))
    assert f"Fact {fact['seq']}, which it replaced. Read fact {fact['seq']}" in preview


def test_where_no_text_has_all_of_the_old_words_each_is_counted(operator: Operator) -> None:
    agent = speak(operator.world, "I live in Berlin.", "My mother is here.", "Mother sings.")
    (seq,) = learn(operator.world, agent, "Alice lives in Berlin with her mother.")
    text = "Alice gladly lives in Berlin with her mother."
    seq = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": text})["seq"]
    # A correction that takes nothing out leaves nothing to look for.
    assert "Where the old words still are" not in page(operator, f"m/{agent.uid}/f/{seq}")
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "Alice lives in Porto."})["seq"]
    shown = plain(page(operator, f"m/{agent.uid}/f/{new}"))
    assert "3 messages still say “Berlin” or “mother”." in shown
    assert "All that say “Berlin” All that say “mother”" in shown
    # A further correction, which takes nothing out, leaves the words of the first to be looked for.
    text = "Alice lives in Porto now, and sings."
    new = operator.twin(f"m/{agent.uid}/f/{new}/correct", {"text": text})["seq"]
    assert "3 messages still say “Berlin” or “mother”." in plain(page(operator, f"m/{agent.uid}/f/{new}"))


def test_one_word_of_a_sentence_that_was_corrected_whole_is_no_old_text(operator: Operator) -> None:
    """Of "My sister Anu sings in a choir" each text with "choir" was listed as old, and offered to be forgotten."""
    agent = speak(operator.world, "The choir was good.", "Anu called.", "We sing.", talk="c1")
    (seq,) = learn(operator.world, agent, "My sister Anu sings in a choir.")
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "Bob rows on Fridays."})["seq"]
    fact = f"m/{agent.uid}/f/{new}"
    # The fact that it replaced, which has them, stands on the same page.
    # “Anu called.” is a message, and has one of them.
    nothing = (
        "Nothing that a reply can be told has all of the words “sister” + “Anu” + “sings” + “choir” any more."
    )
    assert nothing in plain(page(operator, fact))
    speak(operator.world, "Anu, my sister, sings in the choir on Monday.", talk="c2")
    shown = page(operator, fact)
    assert "1 message still has the words “sister” + “Anu” + “sings” + “choir”." in plain(shown)
    (items,) = re.findall(r'id="still">(.*?)</section>', shown, re.S)
    (monday,) = operator.twin(f"m/{agent.uid}/words?q=Monday")["items"]
    assert re.findall(r"forget\?message=(\d+)", items) == [str(monday["seq"])]


def test_words_of_most_facts_and_designations_are_not_looked_for(operator: Operator) -> None:
    """The page offered to forget the guest's room, since the wrong fact about soup had "guest" as well."""
    agent = speak(operator.world, "The soup was good.", "Alice has a guest room.")
    facts = (f"Alice has a room {n}." for n in range(8))
    *_, seq = learn(operator.world, agent, *facts, "The guest Alice loved the soup.")
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "No fish."})["seq"]
    assert "1 message still says “soup”." in plain(page(operator, f"m/{agent.uid}/f/{new}"))
    # Where these are all the words that were taken out, they are looked for.
    seq = operator.twin(f"m/{agent.uid}/facts")["items"][1]["seq"]
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "Bob has a room 7."})["seq"]
    assert "still say “Alice”." in plain(page(operator, f"m/{agent.uid}/f/{new}"))


def test_what_was_not_looked_through_is_not_said_to_be_free_of_words(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = speak(operator.world, *(f"Hello {n}." for n in range(5)))
    (seq,) = learn(operator.world, agent, "It was in October.")
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "It was in May."})["seq"]
    fact, words = f"m/{agent.uid}/f/{new}", f"m/{agent.uid}/words?q=October"
    assert "The old words Nothing that a reply can be told says “October” any more." in plain(
        page(operator, fact)
    )
    # The index knows the month of each message, so that all of them are read.
    monkeypatch.setattr("storage.sql.recall._MAX_CHECKED_HITS", 4)
    assert "Where the old words still are" not in page(operator, fact)
    assert lead(page(operator, words)).startswith("Nothing so far says “October”: there is more")
    assert operator.twin(words)["next"] is not None


def test_newest_messages_that_no_index_has_yet_may_be_more_than_are_counted(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sql.memory_cache._MAX_UNINDEXED_ROWS", 2)
    agent = speak(operator.world, "It was in Porto.", "Hello.")
    (seq,) = learn(operator.world, agent, "It was in Porto.")
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "It was in Rome."})["seq"]
    fact = f"m/{agent.uid}/f/{new}"
    assert "1 message still says “Porto”." in plain(page(operator, fact))
    speak(operator.world, "Yes, in Porto.", talk="c2")
    assert "At least 1 message still says “Porto”." in plain(page(operator, fact))


def test_what_is_left_is_counted_by_as_many_statements_where_there_is_more(operator: Operator) -> None:
    agent = peanuts(operator)
    world, uid = operator.world, agent.uid
    (wrong,) = operator.twin(f"m/{uid}/facts")["items"]
    new = operator.twin(f"m/{uid}/f/{wrong['seq']}/correct", {"text": "Alice is allergic to hazelnuts."})[
        "seq"
    ]
    version = operator.twin(f"m/{uid}/b/human")["block"]["version"]
    operator.twin(f"m/{uid}/b/human", {"value": "Allergic to hazelnuts.", "version": version})
    paths = {"words": f"m/{uid}/words?q=peanuts", "fact": f"m/{uid}/f/{new}", "block": f"m/{uid}/b/human"}
    counts = []
    for _ in range(2):
        for path in paths.values():
            page(operator, path)  # which notes the read, and fills caches
        counts.append(
            {k: len(world.statements_of(lambda path=path: page(operator, path))) for k, path in paths.items()}
        )
        speak(world, *(f"Peanuts, number {n}." for n in range(30)), talk="c3")
    shown = plain(page(operator, paths["fact"]))
    assert "At least 20 messages still say “peanuts”." in shown
    assert "The newest 5 of at least 20:" in shown
    assert counts[0] == counts[1] == {"words": 13, "fact": 19, "block": 22}


def test_after_a_forgetting_the_rest_of_what_was_looked_for_is_counted(operator: Operator) -> None:
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    screen = f"{memory}/words?q=peanuts"
    for left in (
        # The fact and the block go with the message.
        "1 message still says “peanuts”.",
        "Nothing in alice’s memory says “peanuts” any more.",
    ):
        found = operator.twin(f"{memory}/words?q=peanuts")["items"]
        preview = f"{memory}/forget?message={found[-1]['seq']}&then=forget-message-{found[0]['seq']}"
        gone = operator.post(preview, came_from=came_from(operator, screen, preview)).body.decode()
        assert left in plain(gone)
        assert f'<p class="crumb"><a href="../../{memory}">' in gone
        # Once none is left, one tries what a reply is told, and until then one may be passed over.
        tried = '/search">Try what a reply would be told now' in gone
        assert (tried, ">Skip for now<" in gone) == (("Nothing" in left), ("Nothing" not in left))
        assert f"{screen.replace('&', '&amp;')}#forget-message-{found[0]['seq']}" in gone


def test_a_forgetting_says_which_facts_and_corrections_went_along(operator: Operator) -> None:
    """Two corrections of an operator went with messages, and only the preview said so."""
    agent = speak(operator.world, "I drink tea.")
    learn(operator.world, agent, "Drinks tea.", "Tea is drunk.", "The tea is drunk cold.")
    seqs = [each["seq"] for each in operator.twin(f"m/{agent.uid}/facts")["items"]]
    new = operator.twin(f"m/{agent.uid}/f/{seqs[0]}/correct", {"text": "Tea is drunk hot."})["seq"]
    gone = plain(operator.post(f"m/{agent.uid}/forget?message=1").body.decode())
    assert "with what came from it. 4 facts went along, 1 of them a correction." in gone
    numbers = ", ".join(map(str, sorted([*seqs, new])))
    assert f"message 1, with facts {numbers}" in plain(page(operator, "audit"))


def test_the_next_preview_keeps_a_correction_unless_its_tick_is_taken_out(operator: Operator) -> None:
    """Nobody had asked for that preview, and its button took today's correction along."""
    agent = speak(operator.world, "I drink tea.", "More tea, please.")
    wrong, other = learn(operator.world, agent, "Alice drinks tea.", "Alice has a blue cup.")
    memory = f"m/{agent.uid}"
    new = operator.twin(f"{memory}/f/{wrong}/correct", {"text": "Alice drinks coffee."})["seq"]
    gone = operator.post(f"{memory}/forget?message=3", came_from=f"{memory}/words?q=tea").body.decode()
    following = gone.partition("Next: message 1")[2]
    ticks = re.findall(r'name="keep" value="([0-9]+)" form="confirm-form"( checked)?', following)
    assert sorted(ticks) == sorted([(str(new), " checked"), (str(other), "")])


def test_a_forgetting_of_everything_says_what_it_takes_and_offers_a_copy_first(operator: Operator) -> None:
    """The number to type was not explained, and only messages were named afterwards."""
    agent = speak(operator.world, "I drink tea.")
    learn(operator.world, agent, "Alice drinks tea.", block="Tea.")
    path = f"m/{agent.uid}/forget?all=1"
    shown = page(operator, path)
    assert "2 is the number of the messages that will go." in plain(shown)
    assert "Have it drop the person’s chats first." in plain(shown)
    assert f'href="../../m/{agent.uid}/export.html">Copy to read or print</a>' in shown
    person = person_of(operator.world)
    assert "/export.html" in person.page("/forget?all=1")
    assert "/export.html" not in person_of(operator.world, rights=["see", "forget"]).page("/forget?all=1")
    gone = operator.post(path, confirm="2").body.decode()
    assert "2 messages, and all facts, passages, summaries and blocks with their earlier versions." in lead(
        gone
    )
    assert "they are stored again: have it drop the person’s chats." in plain(gone)


def test_the_words_of_a_trial_are_not_those_that_are_forgotten(operator: Operator) -> None:
    """A question found a wrong reply, and the page then listed what says the words of the question."""
    agent = peanuts(operator)
    trial, preview = f"m/{agent.uid}/search?q=Are+peanuts+for+me%3F", f"m/{agent.uid}/forget?message=3"
    shown = page(operator, f"{preview}&back={quote(trial, safe='')}")
    gone = operator.post(preview, came_from=trial).body.decode()
    for text in (shown, gone):
        assert "<mark>" not in text
        assert "the words" not in plain(text)
    assert "Back to the search" in gone


def test_a_list_of_what_is_left_says_how_many_it_does_not_show(operator: Operator) -> None:
    agent = speak(operator.world, *(f"Zxqv, number {n}." for n in range(8)))
    words = f"m/{agent.uid}/words?q=Zxqv"
    for left in (2, 1, 0):
        newest = operator.twin(words)["items"][0]["seq"]
        gone = plain(operator.post(f"m/{agent.uid}/forget?message={newest}", came_from=words).body.decode())
        assert f"{left + 5} messages still say “Zxqv”." in gone
        assert (f"{left} more" in gone) == (left > 0)


def test_a_preview_of_a_fact_leads_to_that_of_the_fact_with_its_message(operator: Operator) -> None:
    agent = speak(operator.world, "The password of my portal is Blume77.", talk="c1")
    (fact,) = learn(operator.world, agent, "The password of Alice's portal is Blume77.")
    path = f"m/{agent.uid}/forget"
    shown = page(operator, f"{path}?fact={fact}")
    (both,) = re.findall(r'href="(\?[^"]*)">Forget message 1 too', shown)
    will_go = operator.twin(path + unescape(both))["will_go"]
    assert (will_go["messages"], will_go["facts"]) == (1, 1)
    operator.post(path + unescape(both), confirm="2")
    assert lead(page(operator, f"m/{agent.uid}/words?q=Blume77")) == "Nothing that is stored says “Blume77”."


def test_a_preview_shows_the_replies_that_were_made_with_a_message(
    upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(say("Noted: no peanuts."), say("No cake with peanuts for you."))
    agent = speak(operator.world, "I am allergic to peanuts.", talk="c1")
    speak(operator.world, "Which cake with peanuts may I eat?", talk="c2")
    path = f"m/{agent.uid}/forget?message=1"
    stays = operator.twin(path)["stays"]
    replies = [(each["message"], each["quote"]) for each in stays if "message" in each]
    assert replies == [(2, "Noted: no peanuts."), (4, "No cake with peanuts for you.")]
    text = page(operator, path)
    assert "Its reply: message 2. “Noted: no peanuts.” Forget both" in plain(text)
    assert (
        "A reply that was made with it: message 4. “No cake with peanuts for you.” Read message 4"
        in plain(text)
    )
    of_reply = f"m/{agent.uid}/forget?message=2"
    shown = plain(page(operator, of_reply))
    assert "Its question: message 1. “I am allergic to peanuts.” Forget both" in shown
    assert "The rest of the conversation. Read the conversation" in shown
    gone = operator.post(path).body.decode()
    assert re.findall(r"forget\?message=(\d+)", gone) == ["2", "4"]


def test_a_preview_names_all_messages_that_came_with_one(
    upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(say("Noted: no peanuts."))
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    chat.messages.append({"role": "user", "content": "I am allergic to peanuts."})
    chat.say("And I like plums.")
    memory = f"m/{memory_of(operator.world, 'alice').uid}"
    shown = plain(page(operator, f"{memory}/forget?message=2"))
    assert "What came with it: messages 1, 3. “Noted: no peanuts.” Forget all of them" in shown
    # With words, the message that has them is shown, and it alone is to be forgotten as well.
    back = quote(f"{memory}/words?q=allergic", safe="")
    shown = plain(page(operator, f"{memory}/forget?message=2&back={back}"))
    assert "“I am allergic to peanuts.” has the words, right or wrong Forget message 1 instead" in shown
    # Messages without the words are not offered with one that has them.
    back = quote(f"{memory}/words?q=peanuts", safe="")
    shown = plain(page(operator, f"{memory}/forget?message=1&back={back}"))
    assert "“Noted: no peanuts.” has the words, right or wrong Forget message 3 instead" in shown


def test_a_preview_of_a_reply_names_the_result_of_a_tool(
    upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(call_tools(Call("read_heat")), say("It is warm."))
    tools = [{"type": "function", "function": {"name": "read_heat"}}]
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice"}, tools=tools)
    chat.say("How warm is it?")
    chat.answer(chat.messages[-1]["tool_calls"][0], "30 degrees")
    chat.go_on()
    memory = f"m/{memory_of(operator.world, 'alice').uid}"
    shown = plain(page(operator, f"{memory}/forget?message=4"))
    assert "What a tool returned for it: message 3. “30 degrees” Forget both" in shown


def test_a_preview_counts_the_messages_of_a_long_list_that_came_with_one(operator: Operator) -> None:
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice"})
    chat.messages += [{"role": ("user", "assistant")[n % 2], "content": f"Number {n}."} for n in range(20)]
    chat.say("Number 20.")
    memory = f"m/{memory_of(operator.world, 'alice').uid}"
    shown = plain(page(operator, f"{memory}/forget?message=3"))
    assert "What came with it: 21 messages. “Ok.” Forget all of them" in shown
    together = f"{memory}/forget?exchange=3"
    assert "Forget message 1 and what came with it" in plain(page(operator, together))
    assert operator.twin(f"{memory}/forget?exchange=3")["confirm"] is None
    assert "It is gone: 22 messages" in plain(operator.post(together).body.decode())
    chat.say("And now?")
    (conversation,) = operator.world.query("SELECT uid FROM conversations")
    shown = plain(page(operator, f"{memory}/c/{conversation}"))
    assert "Messages 1 to 22 are forgotten, by operator." in shown


@pytest.mark.parametrize("target", ["message=1", "all=1"])
def test_no_block_that_loses_its_text_is_said_to_stay(
    upstream: StrictUpstream, tmp_path: Path, target: str
) -> None:
    """How a long block changes is not in the preview."""
    profile = ProfileSettings("default", blocks=(BlockSettings("human", limit=9_000),))
    with remember(upstream, tmp_path, profile) as world:
        agent = speak(world, "I am allergic to peanuts.")
        learn(world, agent, block="Allergic to peanuts. " * 250)
        back = quote(f"m/{agent.uid}/words?q=peanuts", safe="")
        shown = plain(page(operator_of(world), f"m/{agent.uid}/forget?{target}&back={back}"))
        assert "which each reply is told" not in shown


def test_a_preview_of_a_long_list_reads_as_little_as_that_of_a_short_one(operator: Operator) -> None:
    """A client that is new here sends its whole history, which becomes one exchange."""
    world, counts = operator.world, []
    for user, length in (("alice", 20), ("bob", 60)):
        chat = world.chat(headers={"x-mnemogate-user": user, "x-mnemogate-conversation": "c1"})
        chat.messages += [
            {"role": ("user", "assistant")[n % 2], "content": f"What was said before as number {n}."}
            for n in range(length)
        ]
        chat.say("What was said as the last one?")
        path = f"m/{memory_of(world, user).uid}/forget?exchange=1"
        page(operator, path)  # which notes the read, and fills caches
        counts.append(len(world.statements_of(lambda path=path: page(operator, path))))
    assert counts[1] <= counts[0]


def test_a_preview_shows_the_replies_that_quote_a_message(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """What a reply quotes may have been in its own conversation, or told by what repeats it."""
    upstream.queue(say("Noted."), say("As you say: “i am allergic, to peanuts”."))
    speak(operator.world, "I am allergic to peanuts.", talk="c1")
    speak(operator.world, "To what am I allergic?", talk="c2")
    upstream.queue(
        say("Noted."), say("I am allergic to peanuts, you said."), say("You are allergic to cats.")
    )
    agent = speak(operator.world, "Hello.", "What did I say?", "And what else?", talk="c3")
    for path in ("forget?message=1", "forget?exchange=1"):
        shown = plain(page(operator, f"m/{agent.uid}/{path}"))
        assert "A reply that was made with it and quotes it: message 4." in shown
        assert "quotes it: message 8." in shown
        assert "quotes it: message 10." not in shown
    assert "quotes" not in plain(page(operator, f"m/{agent.uid}/forget?message=2"))  # too short


def test_a_preview_shows_the_newest_replies_that_quote_any_text_of_an_exchange(
    upstream: StrictUpstream, operator: Operator
) -> None:
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice", "x-mnemogate-conversation": "c1"})
    chat.messages += [
        {"role": "user", "content": "I am allergic to peanuts."},
        {"role": "assistant", "content": "Noted."},
    ]
    chat.say("My anniversary is in June.")
    upstream.queue(*[say("“My anniversary is in June.”")] * 5, say("“I am allergic to peanuts.”"))
    agent = speak(operator.world, "One", "Two", "Three", "Four", "Five", "Six", talk="c2")
    shown = plain(page(operator, f"m/{agent.uid}/forget?exchange=1"))
    quoting = [seq for seq in range(5, 17) if f"quotes it: message {seq}." in shown]
    assert quoting == [8, 10, 12, 14, 16]


def test_a_preview_says_that_the_search_for_quotations_was_stopped(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = speak(operator.world, "I am allergic to peanuts.")
    path = f"m/{agent.uid}/forget?message=1"
    note = "There may be replies that quote it: the search for them took too long, and was stopped."
    assert note not in plain(page(operator, path))
    monkeypatch.setattr("storage.sqlite.reader._INSTRUCTIONS_PER_CHECK", 1)
    monkeypatch.setattr("gateway.run.admin.forgetting.remaining_texts._SEARCH_DEADLINE_MS", 1e-6)
    assert note in plain(page(operator, path))
    assert note in [each["text"] for each in operator.twin(path)["stays"]]


def test_a_reply_does_not_quote_what_was_sent_after_it(upstream: StrictUpstream, operator: Operator) -> None:
    upstream.queue(
        say("Your anniversary is in June."), say("Yes."), say("Your anniversary is in June, you said.")
    )
    agent = speak(operator.world, "Hello.", "Your anniversary is in June.", "And when?")
    shown = plain(page(operator, f"m/{agent.uid}/forget?message=3"))
    assert "quotes it: message 6." in shown
    assert "message 2." not in shown


def test_replies_that_were_made_with_a_message_are_marked_by_the_words_one_looked_for(
    upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(say("Noted: no peanuts."), say("No cake with nuts for you."))
    agent = speak(operator.world, "I am allergic to peanuts.", talk="c1")
    speak(operator.world, "Which cake with peanuts may I eat?", talk="c2")
    memory = f"m/{agent.uid}"
    shown = plain(
        page(operator, f"{memory}/forget?message=1&back={quote(f'{memory}/words?q=peanuts', safe='')}")
    )
    assert "“No cake with nuts for you.” does not have the words" in shown
    assert "does not have" not in plain(page(operator, f"{memory}/forget?message=1"))
    assert "Its reply: message 2. “Noted: no peanuts.” has the words, right or wrong Forget both" in shown
    question = page(operator, f"{memory}/forget?message=4&back={quote(f'{memory}/words?q=peanuts', safe='')}")
    assert (
        "“Which cake with peanuts may I eat?” has the words, right or wrong Forget message 3 instead"
        in plain(question)
    )
    assert f"{memory}/forget?message=3&amp;back=" in question
    # A reply without the words is seen at once, and can be added.
    first = f"{memory}/forget?message=1&back={quote(f'{memory}/words?q=peanuts', safe='')}"
    (form,) = re.findall(
        r'(?s)<details open>.*?<form method="get" id="also">.*?</form>', page(operator, first)
    )
    assert re.findall(r'name="(\w+)" value="(.*?)"', form) == [
        ("texts", "4"),
        ("texts", "1"),
        ("back", f"{memory}/words?q=peanuts"),
    ]
    both = operator.twin(f"{memory}/forget?texts=4&texts=1")
    assert [each["seq"] for each in both["texts"]] == [4, 1]
    # Where one of the two lacks the words, it does not go with the other.
    alone = page(operator, f"{memory}/forget?message=3&back={quote(f'{memory}/words?q=peanuts', safe='')}")
    assert "“No cake with nuts for you.” does not have the words Read message " in plain(alone)
    assert "Forget both" not in alone
    assert "Forget both" in page(operator, f"{memory}/forget?message=3")  # no words were looked for
    gone = operator.post(f"{memory}/forget?message=1", came_from=f"{memory}/words?q=peanuts").body.decode()
    texts, _, replies = (
        plain(gone)
        .partition("2 messages still say “peanuts”.")[2]
        .partition("Replies that were made with it, and do not have the words")
    )
    assert "“No cake with nuts for you.” does not have the words" in replies
    # What has the words stands once, each with the way to its preview. To pass over the first leads to the second.
    assert "Noted" not in replies
    assert re.findall(r"forget\?message=(\d+)", gone) == ["3", "2", "2", "4"]
    assert "Which cake with peanuts may I eat?" in texts


def test_a_request_says_what_its_reply_repeats(upstream: StrictUpstream, operator: Operator) -> None:
    upstream.queue(say("Noted."), say("You told me this: i drink Green Tea, every morning. Enjoy!"))
    agent = speak(operator.world, "Hello. I drink green tea every morning.", talk="c1")
    speak(operator.world, "What do I drink in the morning?", talk="c2")
    (id, *_) = (each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"])
    shown = plain(page(operator, f"r/{id}"))
    assert "The reply repeats message 1: “i drink Green Tea, every morning”" in shown
    # That comes first, before how many were recalled.
    first, _, rest = shown.partition("2 of 2 memories found went into this reply")
    assert "The reply repeats message 1:" in first
    assert "The reply repeats" not in rest


def test_what_a_reply_repeats_is_looked_for_outside_the_event_loop(
    upstream: StrictUpstream, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    find = request_screens.find_repetitions

    def watched(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return find(*given)

    async def loop_thread() -> threading.Thread:
        return threading.current_thread()

    upstream.queue(say("Noted."))
    agent = speak(operator.world, "I drink green tea every morning.", talk="c1")
    (request,) = operator.twin(f"requests?memory={agent.uid}")["items"]
    monkeypatch.setattr(request_screens, "find_repetitions", watched)
    page(operator, f"r/{request['id']}")
    assert len(threads) == 1
    assert operator.world.gateway.call(loop_thread()) is not threads[0]


@pytest.mark.both
def test_what_no_reply_finds_is_looked_through_as_well(upstream: StrictUpstream, operator: Operator) -> None:
    """That something is gone was a yes with six exceptions."""
    world = operator.world
    upstream.queue(
        say("Take the Zxqv pan."),
        say("Take a pan."),
        call_tools(Call("find_pan", {"name": "Zxqv"})),
        say("Here."),
    )
    agent = speak(world, "Which pan do I take?", talk="c1")
    speak(world, "Which pan do I take?", talk="c1")  # the first reply is replaced
    find = {"role": "user", "content": "Find it."}
    body = {"model": "m", "user": "alice", "messages": [find]}
    tools = [{"type": "function", "function": {"name": "find_pan"}}]
    call = world.gateway.post({**body, "tools": tools}).json["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "In the Zxqv cupboard."}
    assert world.gateway.post({**body, "tools": tools, "messages": [find, call, result]}).status == 200
    long = " ".join(f"word{n}" for n in range(4_100))
    speak(world, f"{long} Zxqv.", talk="c3")
    world.chat(user="alice", headers={"x-mnemogate-memory": "off"}).say("Zxqv, and nobody knows it.")
    for text in ("A Zxqv pan.", "A pan."):
        version = operator.twin(f"m/{agent.uid}/b/human")["block"]["version"]
        operator.twin(f"m/{agent.uid}/b/human", {"value": text, "version": version})
    words = f"m/{agent.uid}/words?q=Zxqv"
    found = operator.twin(words)
    assert (found["items"], found["blocks"], found["hidden"]["is_complete"]) == ([], [], True)
    hidden = {each["place"]: each for each in found["hidden"]["items"]}
    assert [*hidden] == [
        f"version {version} of human",
        "message 9",
        "message 7, what a tool returned",
        "message 6, what find_pan was given",
        "message 2, replaced by another try",
    ]
    shown = page(operator, words)
    untold = "Nothing that a reply can be told says “Zxqv”;"
    assert lead(shown) == f"{untold} 5 texts that are still stored do."
    assert "All that is stored of this memory was looked through" in plain(shown)
    assert len(re.findall(">Forget<", shown)) == len(hidden)
    assert "A message is forgotten by its own link." in plain(shown)
    # A single version has its own link.
    assert "checkbox" not in shown
    for each in found["hidden"]["items"]:
        address, _, place = each["href"].partition("#")
        assert f'id="{place}"' in page(operator, address)
    # Forgotten one after the other, they are said to be there until none is.
    for left, message in ((3, 9), (2, 7), (1, 6), (0, 2)):
        gone = plain(operator.post(f"m/{agent.uid}/forget?message={message}", came_from=words).body.decode())
        assert [each in gone for each in ("replaced by another try", "find_pan was given")] == [
            left > 0,
            left > 1,
        ]
        assert len(operator.twin(words)["hidden"]["items"]) == left + 1
    assert lead(page(operator, words)) == f"{untold} 1 text that is still stored does."
    target = f"m/{agent.uid}/forget?version=human/{version}"
    assert f'/forget?version=human%2F{version}"' in page(operator, words)
    preview = page(operator, target)
    assert f"Forget version {version} of human" in preview
    assert "A Zxqv pan." in plain(preview.partition("What stays")[0])
    gone = plain(operator.post(target, came_from=words).body.decode())
    assert "Nothing in alice’s memory says “Zxqv” any more." in gone
    assert lead(page(operator, words)) == "Nothing that is stored says “Zxqv”."
    everywhere = lead(page(operator, f"m/{agent.uid}/words?q=Qqxy"))
    assert everywhere == "Nothing that is stored says “Qqxy”."


def test_a_text_that_is_too_long_to_be_looked_through_hides_none_before_it(
    upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(say("Take the Zxqv pan."), say("Take a pan."))
    for _ in range(2):  # the first reply is replaced
        speak(operator.world, "Which pan do I take?", talk="c1")
    agent = speak(operator.world, "x" * 300_000, talk="c2")
    hidden = operator.twin(f"m/{agent.uid}/words?q=Zxqv")["hidden"]
    assert [each["place"] for each in hidden["items"]] == ["message 2, replaced by another try"]
    assert not hidden["is_complete"]
    shown = lead(page(operator, f"m/{agent.uid}/words?q=Zxqv"))
    assert shown.endswith("told says “Zxqv”; at least 1 text that is still stored does.")


def test_a_fact_that_is_no_longer_true_still_says_its_words(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = speak(operator.world, "I like jam.", "A Zxqv pan.")
    (seq,) = learn(operator.world, agent, "Alice likes Zxqv.")
    operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "Alice likes jam."})
    words = f"m/{agent.uid}/words?q=Zxqv"
    gone = plain(operator.post(f"m/{agent.uid}/forget?message=3", came_from=words).body.decode())
    assert f"fact {seq}, no longer true" in gone
    said = gone.partition("Still stored, but not recalled for any reply")[0].partition("It is gone")[2]
    assert "Nothing that a reply can be told says “Zxqv” any more." in said
    assert lead(page(operator, words)).endswith("told says “Zxqv”; 1 text that is still stored does.")
    # Older ones than are read may have the words.
    monkeypatch.setattr("gateway.run.admin.words.hidden_texts.ENDED_FACTS", 1)
    other = page(operator, f"m/{agent.uid}/words?q=Qqxy")
    assert lead(other) == "No message, fact, passage or block says “Qqxy”."


def test_the_page_after_a_forgetting_lists_at_most_50_texts_that_are_still_stored(operator: Operator) -> None:
    agent = speak(operator.world, "I like jam.", "A Zxqv pan.")
    for seq in learn(operator.world, agent, *(f"Alice likes Zxqv {n}." for n in range(51))):
        operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": f"Alice likes jam {seq}."})
    words = f"m/{agent.uid}/words?q=Zxqv"
    gone = operator.post(f"m/{agent.uid}/forget?message=3", came_from=words).body.decode()
    listed = gone.partition('aria-labelledby="hidden"')[2].partition("</ul>")[0]
    assert listed.count("<li>") == 50
    assert "There may be more than these." in gone


def test_what_is_older_than_was_looked_through_is_not_said_to_be_free_of_words(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sql.memory_pages._NEWEST_SEQS", 1)
    agent = speak(operator.world, "Hello.", "Hello again.")
    words = f"m/{agent.uid}/words?q=Zxqv"
    assert operator.twin(words)["hidden"] == {"items": [], "is_complete": False}
    shown = page(operator, words)
    assert lead(shown) == "No message, fact, passage or block says “Zxqv”."
    assert "of the newest turns the rest as well" in plain(shown)


def test_a_request_marks_the_text_that_its_reply_repeats_or_says_that_none_is(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """Of 18 recalled texts none was marked as the one that the answer rests on."""
    upstream.queue(
        say("Noted."), say("You drink green tea every morning."), say("Tea."), say("Yes: she has a red tin.")
    )
    agent = speak(operator.world, "Hello. You drink green tea every morning.", talk="c1")
    version = operator.twin(f"m/{agent.uid}/b/human")["block"]["version"]
    operator.twin(f"m/{agent.uid}/b/human", {"value": "She has a red tin.", "version": version})
    for n, text in enumerate(
        ("What do I drink in the morning?", "What else in the morning?", "Has she a tin?")
    ):
        speak(operator.world, text, talk=f"d{n}")
    ids = [each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"]]
    block, none, message = (page(operator, f"r/{id}") for id in ids[:3])
    assert "The reply repeats message 1: “You drink green tea every morning” Rank 1 below" in plain(message)
    (row,) = re.findall(r'<tr id="rank-1" class="marked">(.*?)</tr>', message, re.S)
    assert "the reply repeats it" in row
    assert "Nothing that this reply was told from memory has “Tea”, as far as it is still kept." in plain(
        none
    )
    assert 'class="marked"' not in none
    assert (
        "The reply says what each reply is told anyway: block human: “she has a red tin” From an operator on "
        in plain(block)
    )
    assert 'b/human">Edit<span class="unseen"> human</span></a>' in block
    assert "told anyway" not in message + none
    assert "With its instructions: human: She has a red tin." in plain(block)
    assert "tokens, with the sentences that introduce them)" in plain(block)
    listed = page(operator, f"requests?memory={agent.uid}")
    assert (">nothing<" in listed, ">–<" in listed) == (True, False)


def marked_in(shown: str) -> list[tuple[str, str]]:
    """Returns the marked parts of the reply on a request's screen, each with the name of the text that has it."""
    (reply,) = re.findall(r"<dt>[^\n]*?assistant.*?<dd>(.*?)</dd>", shown, re.S)
    return re.findall(
        r"<mark><span[^>]*>\[as in (.*?): </span>(.*?)<span[^>]*>\]</span></mark>", unescape(reply)
    )


def test_a_request_marks_in_the_reply_what_memory_has(upstream: StrictUpstream, operator: Operator) -> None:
    """The page named the memory, and one had to find by eye which words of the reply are from it."""
    upstream.queue(
        say("Noted."),
        say("Sure: - I drink Green Tea, every morning. <b>Enjoy</b>!"),
        say("Your tea is green, from a tin."),
        say("Ask me something else."),
    )
    agent = speak(operator.world, "Hello. I drink green tea every morning.", talk="c1")
    for n, text in enumerate(("What do I drink in the morning?", "Which tea is mine?", "Zxqv?")):
        speak(operator.world, text, talk=f"d{n}")
    ids = [each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"]]
    nothing, words, sentence = (page(operator, f"r/{id}") for id in ids[:3])
    assert marked_in(sentence) == [("message 1", "I drink Green Tea, every morning")]
    assert "Marked is what message 1 has as well." in plain(sentence)
    assert "&lt;b&gt;Enjoy&lt;/b&gt;" in sentence
    # Without such a sentence words are marked. What the question has says nothing of memory.
    assert marked_in(words) == [("message 1, message 4", "green")]  # an earlier reply comes last
    assert plain(first_lead(words)) == (
        "The reply has words of message 1 and message 4 that the question does not have: “green”."
    )
    assert (marked_in(nothing), "has words of" in plain(nothing)) == ([], False)


@pytest.mark.both
def test_a_request_names_all_texts_that_have_a_word_and_blocks_as_they_were_then(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """It named one text a word: one forgot that, and the next reply said it again."""
    upstream.queue(say("Noted."), say("Yes: a copper one."), say("Its spout is crooked. Its lid is new."))
    agent = speak(operator.world, "The metal of it: copper, of course.", talk="c1")
    memory = f"m/{agent.uid}"
    learn(operator.world, agent, block="The kettle is copper.\nIts spout is crooked.")
    facts = [
        operator.twin(f"{memory}/facts", {"text": text, "always": True})["seq"]
        for text in ("Alice polishes copper.", "Copper turns green.")
    ]
    operator.world.clock.sleep(60)
    for n, text in enumerate(("What metal is it of?", "Tell me more of it.")):
        speak(operator.world, text, talk=f"d{n}")
    sentence, words = (
        f"r/{each['id']}" for each in operator.twin(f"requests?memory={agent.uid}")["items"][:2]
    )
    names = ["message 1", "block human", *(f"fact {seq}" for seq in reversed(facts))]
    ((named, word), *_) = marked_in(page(operator, words))
    assert (named, word) == (f"{', '.join(names[:3])} and 1 more", "copper")
    shown = page(operator, words)
    assert plain(first_lead(shown)) == (
        f"The reply has words of {names[0]}, {names[1]}, {names[2]} and {names[3]} that the question does not "
        "have: “copper”."
    )
    assert shown.count('class="lead"') == 1
    assert 'b/human">Edit<span class="unseen"> human</span></a>' in shown
    assert "block human: “Its spout is crooked”" in plain(page(operator, sentence))
    operator.twin(f"{memory}/b/human", {"value": "Its spout is straight.", "version": 2})
    now = plain(page(operator, words))
    assert plain(first_lead(shown)).replace("block human", "block human as it was then") in now
    for id in (words, sentence):
        shown = page(operator, id)
        links = {
            unescape(each)
            for each in re.findall(r'href="([^"]*)"[^>]*>(?:<span[^>]*>)?block human as it was then', shown)
        }
        assert links == {f"../{memory}/b/human?from=2&to=3#compared"}
    shown = plain(page(operator, sentence))
    assert "The reply says what each reply was told: block human as it was then: “Its spout is" in shown
    # What is forgotten of it then is no source any more.
    operator.twin(f"{memory}/forget?message=1", {})
    assert "as it was then" not in page(operator, words) + page(operator, sentence)


def test_a_request_names_the_source_before_its_copies_and_no_set_phrase(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """As bold as the cause stood "This is what I remember about that", which every reply has."""
    upstream.queue(
        say("Noted, as I always do."),
        say("Here is what I know:\n- user: My cat eats lamb and rice. She sleeps on the oven."),
        say("Here is what I know:\n- user: My cat eats lamb and rice. She sleeps on the oven."),
        say("Here is what I know:\n- My cat eats lamb and rice. She sleeps on the oven."),
    )
    agent = speak(operator.world, "My cat eats lamb and rice. She sleeps on the oven.", talk="c1")
    for n, text in enumerate(("What does my cat eat?", "Where is my cat?", "Does my cat eat rice?")):
        speak(operator.world, text, talk=f"d{n}")
    id = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    shown = plain(page(operator, f"r/{id}"))
    found = operator.twin(f"r/{id}")
    is_copied = any(each["seq"] == 1 for each in found["left_out"])
    assert is_copied != any(each["seq"] == 1 for each in found["chosen"])
    assert "repeats message 1: “My cat eats lamb and rice. She sleeps on the oven”" in shown
    assert ("The model read it in what repeats that message." in shown) == is_copied
    assert shown.count("The reply repeats") == 1
    assert "user: My cat eats" in shown  # a reply that was recalled


def test_a_question_asked_again_after_a_correction_shows_the_block_that_it_rests_on(
    operator: Operator,
) -> None:
    """The page said that what the model was told is the same, of a reply that had the correction."""
    world = operator.world
    speak(world, "My tea is in the red tin.")
    world.upstream.queue(say("In the red tin."), say("It is in the blue tin now."))
    agent = speak(world, "Where is my tea?")
    operator.twin(f"m/{agent.uid}/b/human", {"value": "The tea is in the blue tin now.", "version": 1})
    world.clock.sleep(1)
    speak(world, "Where is my tea?")
    again = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
    assert "repeats" in operator.twin(f"r/{again}")
    assert "The tea is in the blue tin now." in str(world.upstream.last.messages)
    shown = plain(page(operator, f"r/{again}"))
    assert "told the same note as the first time." in shown
    assert "As with every reply, the model was also told the memory blocks" in shown
    told = shown.partition("First, with its instructions:")[2]
    assert told.startswith(" human: The tea is in the blue tin now. Then, right before the message:")
    # Without a reply there is none that was told something.
    world.clock.sleep(1)
    world.upstream.queue(fail(400))
    assert world.post([{"role": "user", "content": "Hello?"}], {"x-mnemogate-user": "alice"}).status == 400
    failed = operator.twin("requests")["items"][0]["id"]
    assert "As with every reply" not in page(operator, f"r/{failed}")


@pytest.mark.parametrize("is_of_reply", [True, False])
def test_what_is_far_into_a_text_is_not_compared_with_a_reply(
    upstream: StrictUpstream, operator: Operator, is_of_reply: bool
) -> None:
    """A text may have megabytes, and the loop would compare them."""
    sentence = "You drink green tea every morning."
    for fill, is_found in (
        ("Well. " * 100, True),
        ("Well " * 2_100, False),
        ("Well. " * 200, not is_of_reply),
    ):
        said, replied = f"{sentence} {fill}", f"{fill.replace('Well', 'Fine')} {sentence}"
        if not is_of_reply:
            said, replied = f"{fill} {sentence}", sentence
        user = f"user-{len(fill)}"
        upstream.queue(say("Noted."), say(replied))
        speak(operator.world, said, talk="c1", user=user)
        agent = speak(operator.world, "Do I drink green tea every morning?", talk="c2", user=user)
        id = operator.twin(f"requests?memory={agent.uid}")["items"][0]["id"]
        found = operator.twin(f"r/{id}")["chosen"]
        assert any(sentence in each["text"] for each in found)
        assert ("The reply repeats message 1" in plain(page(operator, f"r/{id}"))) == is_found


def test_the_history_of_a_block_says_who_undid_a_change(operator: Operator) -> None:
    agent = peanuts(operator)
    block = f"m/{agent.uid}/b/human"
    version = operator.twin(block)["block"]["version"]
    operator.twin(block, {"value": "Hazelnuts.", "version": version})
    operator.twin(f"{block}/undo", {"version": version + 1})
    operator.twin(f"{block}/restore", {"version": version + 2, "to": version + 1})
    shown = plain(page(operator, block))
    for by in (
        "by an undo (operator), back to version",
        "by an operator (operator) ·",
        "by an operator (operator), back",
    ):
        assert by in shown, by
    assert "by learning ·" in shown


@pytest.mark.both
def test_a_conversation_tells_what_was_forgotten_from_what_was_said_with_memory_off(
    operator: Operator,
) -> None:
    world = operator.world
    agent = speak(world, "I drink tea.", "And milk.", "And juice.", talk="c1")
    chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c2"})
    chat.say("I drink wine.")
    chat.say("A secret.", extra_headers={**chat.headers, "x-mnemogate-memory": "off"})
    chat.say("And beer.")
    for part in ("message=1", "exchange=3"):
        operator.twin(f"m/{agent.uid}/forget?{part}", {})
    (other, talk) = (each["id"] for each in operator.twin(f"m/{agent.uid}/conversations")["items"])
    gaps = re.findall(r'<details class="gap".*?</details>', page(operator, f"m/{agent.uid}/c/{talk}"), re.S)
    assert [plain(each).partition(", 08:53")[0] for each in gaps] == ["Forgotten 9 Oct 2025"] * len(gaps)
    marks = [plain(each).partition(", 08:53")[2] for each in gaps]
    assert [re.sub("^ *", "", each) for each in marks] == [
        "Message 1 is forgotten, by operator.",
        "Message 3 and its reply are forgotten, by operator.",
    ]
    assert gaps
    gaps = re.findall(r'<details class="gap".*?</details>', page(operator, f"m/{agent.uid}/c/{other}"), re.S)
    assert gaps
    assert all("memory off" in plain(each) and "Forgotten " not in plain(each) for each in gaps)


def test_after_a_correction_one_tries_what_a_reply_would_be_told(operator: Operator) -> None:
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    assert "Try what" not in page(operator, f"{memory}/b/human")
    version = operator.twin(f"{memory}/b/human")["block"]["version"]
    operator.twin(f"{memory}/b/human", {"value": "Salt & hazelnuts.", "version": version})
    assert f'href="../../../{memory}/search">Try what' in page(operator, f"{memory}/b/human")
    (fact,) = operator.twin(f"{memory}/facts")["items"]
    new = operator.twin(f"{memory}/f/{fact['seq']}/correct", {"text": "Alice likes hazelnuts."})["seq"]
    assert f'href="../../../{memory}/search">Try what' in page(operator, f"{memory}/f/{new}")
    # The field has the focus, and what was said last can be tried.
    shown = page(operator, f"{memory}/search")
    assert "autofocus" in shown
    tried = re.findall(r'href="\?q=([^"]*)"', shown)
    assert tried == ["My+sister+is+Anu.", "No+peanut+for+me.", "I+am+allergic+to+peanuts."]
    # The block is told first, and the page does not say that it wins.
    shown = page(operator, f"{memory}/search?q={tried[1]}")
    assert "If one differs from a block, a reply may repeat either." in shown
    # Without a block, none is spoken of.
    operator.twin(f"{memory}/b/human", {"value": "", "version": version + 1})
    wrong = operator.twin(f"{memory}/facts", {"text": "Alice is allergic to peanuts.", "always": True})["seq"]
    without = page(operator, f"{memory}/search?q={tried[1]}")
    assert "may repeat either" not in without
    # Only a text with what was corrected differs from a fact that is told before each reply, and can be forgotten.
    right = operator.twin(f"{memory}/f/{wrong}/correct", {"text": "Alice is allergic to latex."})["seq"]
    differing = plain(page(operator, f"{memory}/search?q={tried[1]}"))
    assert "which still says “peanuts”. A correction took that out of fact " + str(right) in differing
    assert "may repeat either. Forget message" in differing
    told = plain(shown.partition('id="note"')[2])
    assert "First, with its instructions: human: Salt & hazelnuts. Then, right before the message:" in told
    assert told.index("Salt & hazelnuts.") < told.index("I am allergic to peanuts.")


def test_a_correction_says_what_still_has_the_words_that_led_to_it(operator: Operator) -> None:
    """A new text takes nothing out that could be counted: the words of the search before it are known."""
    agent = speak(operator.world, "I am allergic to peanuts.", "No peanut for me.", talk="c1")
    block = f"m/{agent.uid}/b/human"
    (link,) = re.findall(
        r'href="../../(m/[^"]*/b/human[^"]*)"', page(operator, f"m/{agent.uid}/words?q=peanuts")
    )
    assert link == f"{block}?words=peanuts"
    assert "still say" not in page(operator, link)
    sent = operator.send_form(
        block,
        {"value": "\nEats hazelnuts.", "version": 1},
        cookie=operator.cookie,
        referer=f"http://{operator.host}/ui/{link}",
    )
    assert sent.headers["location"].endswith(f"{link}#saved")
    saved = page(operator, link)
    (message,) = re.findall(r'<p class="saved" tabindex="-1" id="saved" role="status">(.*?)</p>', saved)
    counted = "2 messages say “peanuts”, right or wrong."
    assert plain(message) == (
        f"Saved. Version 2 is the text now. {counted} A reply may still repeat them. See them below"
    )
    assert f"Where else “peanuts” is said {counted} A reply may be told them along" in plain(saved)
    # The preview that follows shows what blocks lose, and who has just written into one does not expect it.
    takes_lines = (
        "With a message go the lines of blocks that were learned from it, and later lines with the same"
    )
    assert plain(saved).count(takes_lines) == 1
    # Some of them may be right, so nothing urges to forget them all.
    assert "can be forgotten at once" not in saved
    # If no words are known, a message says so too.
    assert "a reply may still repeat them. Find the wrong words" in plain(page(operator, block))
    # What is right in a text that goes may stand in a block, which the preview shows.
    preview = plain(page(operator, f"m/{agent.uid}/forget?message=1&back={quote(link, safe='')}"))
    assert "What stays Block human, which each reply is told: “Eats hazelnuts.” Read the block" in preview
    assert "which each reply is told" not in plain(page(operator, f"m/{agent.uid}/forget?message=1"))
    assert f'/m/{agent.uid}/words?q=peanuts">All that say' in saved
    # Its way to forget goes on until none has the words.
    gone = operator.post(f"m/{agent.uid}/forget?message=1", came_from=link).body.decode()
    assert "1 message still says “peanuts”." in plain(gone)
    assert "own logs and the providers of its models may still have it: they are not reached" in plain(gone)
    # The block has been corrected, so what is right is not asked for once more.
    assert "Corrected already: Eats hazelnuts." in plain(gone)
    assert "What is right instead" not in gone
    # Without a search, one is offered.
    assert 'action="../../../m/' in page(operator, block).partition("Which words are wrong?")[0]


def test_the_replies_that_were_made_with_a_message_are_forgotten_on_the_way_back(
    upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(say("Noted: no peanuts."), say("None, noted. No peanuts."))
    agent = speak(operator.world, "I am allergic to peanuts.", "And peanuts again.")
    words = f"m/{agent.uid}/words?q=peanuts"
    gone = operator.post(f"m/{agent.uid}/forget?message=1", came_from=words).body.decode()
    (link,) = re.findall(r'href="../../([^"]*forget\?message=2[^"]*)"', gone)
    preview = page(operator, unescape(link))
    assert f'name="came_from" value="{words}"' in preview
    gone = plain(operator.post(unescape(link), came_from=words).body.decode())
    assert "2 messages still say “peanuts”." in gone
    assert "Back to the words" in gone
    # So does the forgetting of both.
    headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{words}"}
    shown = operator.ask("GET", f"m/{agent.uid}/forget?message=3", None, headers).body.decode()
    (both,) = re.findall(r'href="../../([^"]*exchange[^"]*)">Forget both', shown)
    assert f'name="came_from" value="{words}"' in page(operator, unescape(both))
    for hostile in ("//evil.example/", "keys", f"m/{agent.uid}/forget?all=1", "javascript:alert(1)"):
        assert "came_from" not in page(
            operator, f"m/{agent.uid}/forget?message=3&back={quote(hostile, safe='')}"
        )


def test_a_preview_of_a_question_and_its_reply_shows_both(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """Also where the reply has led to it."""
    upstream.queue(say("Noted: no peanuts."))
    agent = speak(operator.world, "I am allergic to peanuts.")
    for number in (1, 2):
        shown = plain(page(operator, f"m/{agent.uid}/forget?exchange={number}"))
        assert "Forget message 1 and its reply" in shown
        assert "I am allergic to peanuts." in shown
        assert "Noted: no peanuts." in shown


def test_no_search_for_other_words_is_offered_where_none_finds_them(operator: Operator) -> None:
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    gone = operator.post(f"{memory}/forget?message=1", came_from=f"{memory}/words?q=peanuts").body.decode()
    # Without an embedder a search finds no other words.
    assert "Search the memory for it" not in gone
    assert "These words alone were looked for. In other words it may still be said." in plain(gone)


def test_what_says_it_in_other_words_is_searched_for_by_meaning(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with StrictUpstream(key="sk-emb") as other:
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, models=("m",)),
            UpstreamSettings("emb", base_url=other.base_url, api_key="sk-emb"),
        )
        memory = {"embedder": "emb/vec"}
        with remember(upstream, tmp_path, PROFILE, memory=memory, upstreams=upstreams) as world:
            operator = operator_of(world)
            path = f"m/{peanuts(operator).uid}"
            words = f"{path}/words?q=peanuts"
            gone = operator.post(f"{path}/forget?message=1", came_from=words).body.decode()
            assert "It may be said in other words as well." in plain(gone)
            assert f'href="../../{path}/search?q=peanuts">Search the memory for it' in gone


def test_requests_of_a_person_show_what_was_asked(operator: Operator) -> None:
    agent = speak(operator.world, "I drink tea.", "What do I drink in the morning?")
    operator.world.chat(user="alice", headers={"x-mnemogate-memory": "off"}).say("A secret.")
    listed = page(operator, f"requests?memory={agent.uid}")
    assert "What do I drink in the morning?" in listed
    assert "secret" not in listed
    assert "not kept" in listed
    assert "morning" not in page(operator, "requests")
    assert "morning" not in str(operator.twin(f"requests?memory={agent.uid}"))
    operator.post(f"m/{agent.uid}/forget?exchange=3")
    assert "morning" not in page(operator, f"requests?memory={agent.uid}")


def test_the_words_look_right(browser: Browser, operator: Operator) -> None:
    agent = peanuts(operator)
    uid = agent.uid
    (wrong,) = operator.twin(f"m/{uid}/facts")["items"]
    speak(operator.world, *HOSTILE, talk="c2")
    new = operator.twin(f"m/{uid}/f/{wrong['seq']}/correct", {"text": "Alice is allergic to hazelnuts."})[
        "seq"
    ]
    for path in (f"m/{uid}/words", f"m/{uid}/words?q=peanuts", f"m/{uid}/words?q=alert+onerror"):
        browser.check_screen(operator, path, heading="Where it is said")
    browser.check_screen(operator, f"m/{uid}/words?q=Zxqv+peanuts+alice")
    browser.check_screen(operator, f"m/{uid}/f/{new}#saved")
    browser.check_screen(operator, f"m/{uid}/forget?message=1")
    browser.check_screen(operator, f"requests?memory={uid}")


def test_a_repeated_sentence_and_the_way_from_one_forgotten_text_to_the_next_look_right(
    browser: Browser, upstream: StrictUpstream, operator: Operator
) -> None:
    upstream.queue(say("Noted: no peanuts."), say("No cake. I am allergic to peanuts."), say("\u202eNever."))
    agent = speak(operator.world, "I am allergic to peanuts.", talk="c1")
    speak(operator.world, "Which cake with peanuts may I eat?", "<b>peanuts</b> " + "x" * 3_000, talk="c2")
    (id, *_) = (each["id"] for each in operator.twin(f"requests?memory={agent.uid}")["items"][1:])
    browser.check_screen(operator, f"r/{id}")
    with browser.open(operator, f"m/{agent.uid}/words?q=peanuts") as shown:
        shown.get_by_role("link", name="Forget message 1").click()
        browser.check_views(shown, "forgetting-preview")
        shown.get_by_role("button", name="Forget for good").click()
        shown.get_by_role("region", name="Next: message").wait_for()
        shown.get_by_role("button", name="Forget for good").click(trial=True)  # once it takes clicks
        browser.check_views(shown, "forgetting-end")


@pytest.mark.parametrize("script", [True, False])
def test_one_place_after_the_other_is_forgotten_until_none_is_left(
    browser: Browser, operator: Operator, script: bool
) -> None:
    uid = peanuts(operator).uid
    with browser.open(operator, f"m/{uid}", script=script) as shown:
        shown.get_by_role("searchbox", name="Words or a name").fill("peanuts")
        shown.keyboard.press("Enter")
        assert shown.get_by_role("status").inner_text() == "2 messages, 1 fact and 1 block say “peanuts”."
        shown.get_by_role("link", name="Edit human").click()
        shown.get_by_role("textbox", name="Text of human").fill("Allergic to hazelnuts.")
        shown.get_by_role("button", name="Save").click()
        notice = shown.get_by_role("region", name="Where the old words still are")
        assert "2 messages and 1 fact still say “peanuts”." in notice.inner_text()
        notice.get_by_role("link", name="All that say").click()
        shown.get_by_role("link", name="Forget fact").click()
        for left in (
            "2 messages still say",
            "1 message still says",
            "Nothing in alice’s memory says",
        ):
            shown.get_by_role("button", name="Forget for good").click()
            assert f"{left} “peanuts”" in shown.inner_text("main")
            if "still" in left:
                # The next one is there with all that goes, and a key that is pressed once too often does nothing.
                assert shown.locator(":focus").text_content().startswith("Next: message")
                assert shown.get_by_role("table", name="What will go").is_visible()
                shown.keyboard.press("Enter")
        shown.get_by_role("link", name="Back to the words").press("Enter")
        shown.get_by_role("heading", name="Where it is said").wait_for()
        assert shown.get_by_role("status").inner_text() == "Nothing that is stored says “peanuts”."


def test_a_way_back_to_no_fact_that_there_can_be_is_none(operator: Operator) -> None:
    agent = peanuts(operator)
    gone = operator.post(f"m/{agent.uid}/forget?message=1", came_from=f"m/{agent.uid}/f/{10**30}")
    assert (gone.status, "Forgotten" in gone.body.decode()) == (200, True)


def test_the_words_are_marked_in_what_has_them(operator: Operator) -> None:
    agent = peanuts(operator)
    shown = page(operator, f"m/{agent.uid}/words?q=peanut")
    assert re.findall("<mark>(.*?)</mark>", shown) == ["peanuts", "peanuts", "peanut", "peanuts"]
    # What is hostile is no markup, marked or not.
    hostile = speak(operator.world, *HOSTILE, "\u202e12 " * 100, user="bob")
    shown = page(operator, f"m/{hostile.uid}/words?q=script+alert")
    assert re.findall("<mark>(.*?)</mark>", shown) == ["alert", "script", "alert", "script", "alert"]
    assert "<script>alert" not in shown
    assert len(page(operator, f"m/{hostile.uid}/words?q=12")) < 9_000


def tick(operator: Operator, words: str) -> str:
    """Returns the preview of all texts of a screen, as the form that forgets all of them asks for it."""
    shown = page(operator, words)
    ticks = re.findall(r'<input type="checkbox" name="texts" value="(\d+)" form="ticked" aria-label', shown)
    assert ticks == re.findall(r'<input type="hidden" name="texts" value="(\d+)">', shown)
    assert f">Forget all {len(ticks)}" in shown
    memory = words.partition("/words")[0]
    return f"{memory}/forget?{'&'.join(f'texts={seq}' for seq in ticks)}"


@pytest.mark.both
def test_all_texts_with_some_words_are_forgotten_at_once(operator: Operator) -> None:
    """Seven of them, one by one, were the longest part of mending a memory."""
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    words = f"{memory}/words?q=peanuts"
    path = tick(operator, words)
    items = operator.twin(words)["items"]
    assert path.partition("?")[2] == "&".join(f"texts={each['seq']}" for each in items)
    seen = operator.twin(path)
    assert [(each["kind"], each["text"]) for each in seen["texts"]] == [
        ("fact", "Alice is allergic to peanuts."),
        ("message", "No peanut for me."),
        ("message", "I am allergic to peanuts."),
    ]
    # The fact came from the first message, and counts once.
    assert seen["target"] == {
        "kind": "texts",
        "id": " ".join(str(each["seq"]) for each in items),
        "text": None,
    }
    assert (seen["confirm"], seen["will_go"]["messages"], seen["will_go"]["facts"]) == ("3", 2, 1)
    assert [each["after"] for each in seen["blocks"]] == [""]
    assert [line.rpartition(" ")[2] for line in seen["command"].splitlines()] == [
        f"--{each['kind']}={each['seq']}" for each in items
    ]
    back = quote(words, safe="")
    shown = page(operator, f"{path}&back={back}")
    assert "<h1" in shown
    for text in (
        "Forget 3 texts – Mnemogate",
        "I am allergic to peanuts.",
        "No peanut for me.",
        "Each text goes whole, with all else that it says.",
        "Versions of blocks, at most",
        "Type 3 to confirm",
    ):
        assert text in plain(shown)
    refused = operator.post(path, came_from=words, confirm="2")
    assert refused.status == 409
    assert "Nothing was forgotten: 3 texts would go now, not “2”." in refused.body.decode()
    assert operator.twin(words)["items"] == items
    gone = plain(operator.post(path, came_from=words, confirm="3").body.decode())
    assert "All 3 texts are gone: 2 messages and 1 fact, with what came from them." in gone
    assert "The database has no old copies of them." in gone
    assert "Nothing is learned from it again, unless it is said again." in gone
    assert "Nothing in alice’s memory says “peanuts” any more." in gone
    assert lead(page(operator, words)) == "Nothing that is stored says “peanuts”."
    assert lead(page(operator, f"{memory}/words?q=anu")) == "1 message says “anu”."
    forgotten = [e["what"] for e in operator.twin("audit")["items"] if e["action"] == "forget"]
    assert sorted(forgotten) == sorted(f"{each['kind']} {each['seq']}" for each in items)
    assert operator.program("GET", f"{path.replace('?', '.json?')}").status == 404


def test_what_was_not_ticked_is_not_offered_to_be_forgotten_next(operator: Operator) -> None:
    """A text that was left since it is right came next, with a button that forgets it in one click."""
    uid = peanuts(operator).uid
    words = f"m/{uid}/words?q=peanuts"
    fact, _, message = (each["seq"] for each in operator.twin(words)["items"])
    path = f"m/{uid}/forget?texts={fact}&texts={message}"
    gone = operator.post(path, came_from=words, confirm="2").body.decode()
    assert "Left as they are These were not ticked, or are on another page." in plain(gone)
    assert "No peanut for me." in plain(gone)
    assert "Forget for good" not in gone


def test_of_many_texts_those_of_a_page_are_forgotten_at_once(operator: Operator) -> None:
    agent = speak(operator.world, *(f"Zxqv {n}." for n in range(55)))
    assert ">Forget all 20 on this page<" in page(operator, f"m/{agent.uid}/words?q=zxqv&limit=200")


def test_a_corrected_fact_is_among_all_texts_to_forget(operator: Operator) -> None:
    """ "Forget all 2 of the first list" left the fact that was corrected: the wrong words stayed in the database."""
    memory = f"m/{peanuts(operator).uid}"
    words = f"{memory}/words?q=peanuts"
    shown = plain(page(operator, words))
    assert "Is it wrong? Correct the block and the fact, and forget what says otherwise" in shown
    (fact,) = (each["seq"] for each in operator.twin(words)["items"] if each["kind"] == "fact")
    operator.twin(f"{memory}/f/{fact}/correct", {"text": "Alice eats anything."})
    shown = page(operator, words)
    assert "blocks that each reply is told, unless a fact says it now, and forget" in plain(shown)
    assert ">Forget all 3<" in shown
    texts = re.findall(r'<input type="hidden" name="texts" value="(\d+)">', shown)
    assert texts[-1] == str(fact)
    path = f"{memory}/forget?{'&'.join(f'texts={each}' for each in texts)}"
    assert operator.post(path, came_from=words, confirm="3").status == 200
    found = operator.twin(words)
    assert (found["items"], found["ended"]) == ([], [])


@pytest.mark.parametrize("script", [True, False])
def test_texts_are_ticked_by_hand_or_all_go(browser: Browser, operator: Operator, script: bool) -> None:
    """All were ticked beforehand, also those that one searched for to see that they stay."""
    uid = peanuts(operator).uid
    with browser.open(operator, f"m/{uid}/words?q=peanuts", script=script) as shown:
        boxes = shown.get_by_role("checkbox")
        assert [each.is_checked() for each in boxes.all()] == [False] * 3
        assert not shown.get_by_role("alert").is_visible()
        shown.get_by_role("button", name="Forget the ticked ones").click()
        assert shown.get_by_role("alert").inner_text().startswith("Nothing is ticked.")
        assert boxes.count() == 3
        if script:
            browser.check_views(shown, "nothing-ticked")
        boxes.nth(0).check()
        boxes.nth(2).check()
        shown.get_by_role("button", name="Forget the ticked ones").click()
        assert shown.get_by_role("textbox").get_attribute("name") == "confirm"
        assert shown.get_by_role("heading", level=1).inner_text() == "Forget 2 texts"
        shown.get_by_role("link", name="Cancel").click()
        shown.get_by_role("button", name="Forget all 3").click()
        assert shown.get_by_role("heading", level=1).inner_text() == "Forget 3 texts"
        shown.get_by_role("link", name="What else is remembered").click()
        shown.get_by_role("region", name="Blocks").wait_for()


def test_ticks_stand_at_one_place_on_a_phone(browser: Browser, operator: Operator) -> None:
    uid = speak(operator.world, "Zxqv.", "Zxqv again.", user="somebody.with.a.long.name@example.org").uid
    with browser.open(operator, f"m/{uid}/words?q=zxqv") as shown:
        shown.set_viewport_size({"width": 360, "height": 800})
        rows = shown.get_by_role("checkbox").evaluate_all(
            """(ticks) => ticks.map((tick) => {
                const from = tick.closest("tr").children[1].getBoundingClientRect(), own = tick.getBoundingClientRect();
                return [Math.round(own.left), from.left > own.right, from.top < own.bottom];
            })"""
        )
    assert len(rows) > 1
    assert {tuple(each[1:]) for each in rows} == {(True, True)}
    assert len({each[0] for each in rows}) == 1


def test_the_page_of_a_block_that_is_deleted_says_so(operator: Operator) -> None:
    """The audit still links to it."""
    answer = operator.get(f"m/{peanuts(operator).uid}/b/trips")
    assert answer.status == 404
    assert "There is no such block. If there was one, it was deleted." in plain(answer.body.decode())


def test_after_a_correction_of_a_block_the_memory_is_searched_for_what_it_said(operator: Operator) -> None:
    """As after that of a fact: the old words may be nowhere, and the same be said in other words."""
    agent = speak(operator.world, "My cat is a Siamese.")
    block = f"m/{agent.uid}/b/human"
    operator.twin(block, {"value": "In Oslo.\nPet: cat", "version": 1})
    assert "Search the memory for it" not in page(operator, block)
    operator.twin(block, {"value": "In Oslo.\nPet: dog", "version": 2})
    link = f'm/{agent.uid}/search?q=Pet%3A+cat">Search the memory for it'
    shown = page(operator, block)
    assert link in shown
    assert "what was there before the last change: “Pet: cat”" in plain(shown)
    operator.twin(f"{block}/undo", {"version": 3})
    assert "Search the memory for it" not in page(operator, block)


@pytest.mark.both
def test_earlier_versions_are_ticked_with_the_other_texts(operator: Operator) -> None:
    """After a correction each had to be forgotten by itself."""
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    block, words = f"{memory}/b/human", f"{memory}/words?q=peanuts"
    for version, text in (
        (2, "Allergic to peanuts, badly.\nIn Oslo."),
        (3, "Allergic to hazelnuts.\nIn Oslo."),
    ):
        operator.twin(block, {"value": text, "version": version})
    shown = page(operator, words)
    versions = re.findall(r'name="version" value="([^"]*)" form="ticked" aria-label="([^"]*)"', shown)
    assert versions == [(f"human/{n}", f"version {n} of human") for n in (3, 2)]
    (fact,) = [each["seq"] for each in operator.twin(words)["items"] if each["kind"] == "fact"]
    fields = f"texts={fact}&texts=1&" + "&".join(f"version=human%2F{n}" for n in (2, 3))
    preview = operator.twin(f"{memory}/forget?{fields}")
    assert [(each["kind"], each["seq"]) for each in preview["texts"]] == [
        ("fact", fact), ("message", 1), ("version", 2), ("version", 3)
    ]  # fmt: skip
    assert [each["text"] for each in preview["texts"][2:]] == [
        "Allergic to peanuts.", "Allergic to peanuts, badly."
    ]  # fmt: skip
    assert (preview["confirm"], preview["command"], "blocks" in preview) == ("4", None, False)
    asked = plain(page(operator, f"{memory}/forget?{fields}&back={words}"))
    assert "Allergic to peanuts, badly. version 3 of human" in asked
    gone = operator.post(f"{memory}/forget?{fields}", confirm="4", came_from=words).body.decode()
    assert "All 4 texts are gone: 1 message, 1 fact and 2 earlier versions, with what came" in plain(gone)
    found = operator.twin(words)
    assert ([each["seq"] for each in found["items"]], found["hidden"]["items"]) == ([3], [])
    assert operator.twin(block)["block"]["value"] == "Allergic to hazelnuts.\nIn Oslo."
    audit = [each["what"] for each in operator.twin("audit")["items"] if each["action"] == "forget"]
    assert {"block human, version 2", "block human, version 3", "message 1", f"fact {fact}"} <= {*audit}
    # A person has no way to it, and what the block still has can only be corrected.
    assert person_of(operator.world).send(f"forget?{fields}", confirm="4").status == 400
    assert operator.program("GET", f"{memory}/forget.json?version=human/2&version=human/3").status == 404


def test_what_was_forgotten_meanwhile_is_not_among_the_ticked(operator: Operator) -> None:
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    path = tick(operator, f"{memory}/words?q=peanuts")
    operator.twin(f"{memory}/forget?message=3", {})
    refused = operator.post(path, confirm="3")
    assert refused.status == 409
    assert "Type 2 to confirm" in plain(refused.body.decode())
    assert operator.program("POST", path.replace("?", ".json?"), {"confirm": "2"}).json["messages"] == 1
    assert operator.twin(f"{memory}/words?q=peanuts")["items"] == []


def test_ticks_are_for_those_who_may_forget(operator: Operator) -> None:
    agent = peanuts(operator)
    memory = f"m/{agent.uid}"
    path = tick(operator, f"{memory}/words?q=peanuts")
    reader = operator_of(operator.world, is_read=True)
    assert "checkbox" not in page(reader, f"{memory}/words?q=peanuts")
    assert "Forget for good" not in page(reader, path)
    for other, status in ((reader, 403), (operator_of(operator.world, "shop"), 404)):
        assert other.post(path, confirm="3").status == status
    assert len(operator.twin(f"{memory}/words?q=peanuts")["items"]) == 3
    # A single text has its own way.
    assert "checkbox" not in page(operator, f"{memory}/words?q=anu")
    # Of another memory nothing is found, and not too many go at once.
    bob = speak(operator.world, "I like peanuts.", user="bob")
    assert operator.program("GET", f"m/{bob.uid}/forget.json?texts=40&texts=41").status == 404
    many = "&".join(f"texts={n}" for n in range(1, 52))
    assert operator.program("GET", f"{memory}/forget.json?{many}").status == 400
    assert operator.program("GET", f"{memory}/forget.json?texts=1&message=1").status == 400


def test_a_person_forgets_several_texts_by_a_link_that_allows_it(operator: Operator) -> None:
    agent = peanuts(operator)
    path = tick(operator, f"m/{agent.uid}/words?q=peanuts").partition("/forget")[2]
    person = person_of(operator.world)
    # "4 places" and "Forget all 3" did not say what becomes of the note.
    assert "Forget all 3 A text goes whole" in (shown := plain(person.page("/words?q=peanuts")))
    note = "A note is not ticked: it loses what came from the texts that go."
    assert f"{note} Open it to correct what is left." in shown
    shown = plain(person_of(operator.world, rights=["see", "forget"]).page("/words?q=peanuts"))
    assert (note in shown, "Open it to correct" in shown) == (True, False)
    shown = plain(person.page(f"/forget{path}"))
    assert "I am allergic to peanuts." in shown
    assert "Type 3 to confirm" in shown
    assert agent.uid not in person.page(f"/forget{path}")
    assert person.send(f"forget{path}", confirm="2").status == 409
    assert person_of(operator.world, rights=["see"]).send(f"forget{path}", confirm="3").status == 403
    gone = person.send(f"forget{path}", confirm="3")
    # The fact was not counted.
    assert "All 3 texts are gone: 2 messages and 1 fact, with what came from them." in plain(
        gone.body.decode()
    )
    assert operator.twin(f"m/{agent.uid}/words?q=peanuts")["items"] == []


def test_a_person_who_forgets_from_a_search_sees_what_still_has_the_words(operator: Operator) -> None:
    """The page said that a text was gone, and not whether others said the same."""
    agent = peanuts(operator)
    words = f"m/{agent.uid}/words?q=peanuts"
    fact, *_, source = (each["seq"] for each in operator.twin(words)["items"])
    person = person_of(operator.world)
    came_from = f"{person.path}/words?q=peanuts"
    gone = person.send(f"forget?fact={fact}", came_from=came_from).body.decode()
    assert "2 messages and 1 note still say “peanuts”." in plain(gone)
    assert "still say" not in plain(person.send(f"forget?message={source}").body.decode())
    (other,) = (each["seq"] for each in operator.twin(words)["items"])
    gone = person.send(f"forget?message={other}", came_from=came_from).body.decode()
    assert "Nothing that the assistant can be told says “peanuts” any more." in plain(gone)


def test_a_preview_of_many_messages_reads_no_more_often_than_one_of_two(operator: Operator) -> None:
    agent = speak(operator.world, *(f"Zxqv {n}." for n in range(20)))
    counts = []
    for number in (2, 20):
        path = f"m/{agent.uid}/forget?" + "&".join(f"texts={2 * n + 1}" for n in range(number))
        page(operator, path)  # which notes the read, and fills caches
        counts.append(len(operator.world.statements_of(lambda path=path: page(operator, path))))
    assert counts == [21, 21]


def test_a_preview_of_many_long_texts_is_no_long_page(operator: Operator) -> None:
    agent = speak(operator.world, *(f"Zxqv {n} " + "& " * 3_000 for n in range(25)))
    for words in (f"m/{agent.uid}/words?q=Zxqv",):
        path = tick(operator, words)
        assert path.count("texts=") == 20
        assert len(operator.get(path).body) < 100_000
    every = "&".join(f"texts={2 * n + 1}" for n in range(25))
    reply = operator.get(f"m/{agent.uid}/forget?{every}")
    assert "Forget 25 texts" in reply.body.decode()
    assert len(reply.body) < 100_000


def test_the_last_question_is_tried_though_its_replies_are_forgotten(
    upstream: StrictUpstream, operator: Operator
) -> None:
    """With a reply goes what it recalled, and an older question was tried."""
    upstream.queue(say("Noted."), say("Peanuts."))
    agent = speak(operator.world, "Hello.", "What may I not eat?")
    words = f"m/{agent.uid}/words?q=peanuts"
    gone = operator.post(f"m/{agent.uid}/forget?message=4", came_from=words).body.decode()
    assert f'href="../../m/{agent.uid}/search">Try what a reply would be told now' in gone
    operator.twin(f"m/{agent.uid}/b/human", {"value": "Eats nuts.", "version": 1})
    tried = plain(page(operator, f"m/{agent.uid}/search"))
    assert "What may I not eat?" in tried
    # The blocks do not depend on what is asked.
    assert "Whatever is asked, the model is told the memory blocks: human Eats nuts." in tried
    # While memory is paused, no reply is told them.
    person_of(operator.world).send("pause", paused="true")
    paused = plain(page(operator, f"m/{agent.uid}/search"))
    assert ("no reply recalls anything" in paused, "Whatever is asked" in paused) == (True, False)


def test_a_fact_that_is_forgotten_meanwhile_does_not_break_a_trial(operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    operator.twin(f"m/{agent.uid}/facts", {"text": "Alice never eats nuts.", "always": True})
    page_operations, call = operator.world.gateway.app.services.page, operator.world.gateway.call
    standing = call(page_operations.memories.facts.list_standing(agent.uid))
    assert len(standing) == 1
    operator.post(f"m/{agent.uid}/forget?fact={standing[0].seq}")
    assert call(page_operations.lost_words.find_outdated(None, agent.uid, standing, ())) == []


def test_a_fact_that_learning_replaced_is_not_taken_for_corrected(operator: Operator) -> None:
    """It may have been true before, so what still says it is not wrong, and no one has written down what is right."""
    agent = speak(operator.world, "I always eat meat.", "Hello.", talk="c1")
    world = operator.world
    (old,) = learn(world, agent, "Alice always eats meat.", always=True)
    replaced = world.gateway.call(world.store.facts.find(agent.id, old))
    assert replaced is not None
    new = LearnedFact(
        "Alice never eats meat.", "", "never", world.clock(), None, [], [replaced.id], standing=True
    )

    async def learn_again() -> None:
        effect = world.store.facts.make_learn_effect(
            agent, 1, 2, world.clock(), lambda _: LearnedChanges(facts=[new])
        )
        await world.store.database.write(effect)

    world.gateway.call(learn_again())
    (fact,) = operator.twin(f"m/{agent.uid}/facts")["items"]
    assert fact["text"] == "Alice never eats meat."
    assert "Where the old words still are" not in page(operator, f"m/{agent.uid}/f/{fact['seq']}")
    assert "A correction took" not in page(operator, f"m/{agent.uid}/search?q=Which+meat+do+I+always+eat")
    gone = operator.post(f"m/{agent.uid}/forget?message=3", came_from=f"m/{agent.uid}/f/{fact['seq']}")
    assert "What is right instead" in plain(gone.body.decode())


@pytest.mark.both
def test_facts_that_are_no_longer_true_are_forgotten_at_once(operator: Operator) -> None:
    """They had no ticks: after an undo and a redo each took a page of its own."""
    agent = speak(operator.world, "I like tea.")
    memory = f"m/{agent.uid}"
    (first,) = learn(operator.world, agent, "Is allergic to peanuts.")
    second = operator.twin(f"{memory}/f/{first}/correct", {"text": "Is allergic to peanuts and nuts."})["seq"]
    operator.twin(f"{memory}/f/{second}/correct", {"text": "Eats everything."})
    found = page(operator, f"{memory}/words?q=peanuts")
    ticks = re.findall(r'name="texts" value="(\d+)" form="ticked"', found)
    assert sorted(map(int, ticks)) == [first, second]
    query = "&".join(f"texts={seq}" for seq in ticks)
    preview = operator.twin(f"{memory}/forget?{query}")
    assert {each["seq"] for each in preview["texts"]} == {first, second}
    assert operator.twin(f"{memory}/forget?{query}", {"confirm": preview["confirm"]})["done"]
    assert operator.twin(f"{memory}/words?q=peanuts")["ended"] == []


def test_a_correction_of_a_whole_sentence_lists_a_block_with_one_of_its_words(operator: Operator) -> None:
    """It said that nothing has all of the words, and each reply was told the block."""
    agent = speak(operator.world, "Hello.")
    block = f"m/{agent.uid}/b/human"
    operator.twin(block, {"value": "Sons: Max, Leo.", "version": 1})
    seq = operator.twin(f"m/{agent.uid}/facts", {"text": "Has two sons and a red car."})["seq"]
    new = operator.twin(f"m/{agent.uid}/f/{seq}/correct", {"text": "Has a daughter."})["seq"]
    shown = plain(page(operator, f"m/{agent.uid}/f/{new}"))
    assert "Where the old words still are 1 block still says “sons”." in shown
    operator.twin(block, {"value": "Daughter: Ida.", "version": 2})
    shown = plain(page(operator, f"m/{agent.uid}/f/{new}"))
    assert "Nothing that a reply can be told has all of the words “two” + “sons” + “red” + “car”" in shown
