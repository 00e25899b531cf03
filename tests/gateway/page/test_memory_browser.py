"""The screens of memories in a real browser: as they look, by keyboard, without script, and where two meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import HOSTILE, LONG_NAME, learn, plan_trip, speak
from tests.gateway.page.operator import Operator, operator_of
from tests.gateway.page.test_memory_screens import PROFILE
from tests.gateway.page.test_work import enqueue
from tests.gateway.sdk import remember


@pytest.fixture
def operator(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Operator]:
    with remember(upstream, tmp_path, PROFILE) as world:
        yield operator_of(world)


def full(operator: Operator) -> tuple[str, int, str]:
    """Fills a memory. Returns its uid, the number of a fact, and the id of a conversation."""
    world = operator.world
    speak(world, "Hello, I am Bob.", user="bob")
    agent, seq = plan_trip(world)
    operator.twin(f"m/{agent.uid}/b/human", {"value": "Name: Alice.\nCat: Miso, black.", "version": 2})
    operator.twin(f"m/{agent.uid}/f/{seq - 1}/mute", {"muted": True})
    speak(world, "When does my train to Lyon leave?")
    talk = operator.twin(f"m/{agent.uid}/conversations")["items"][-1]["id"]
    return agent.uid, seq, talk


def test_the_lists_of_people_look_right(browser: Browser, operator: Operator) -> None:
    browser.check_screen(operator, "people", heading="People")
    full(operator)
    speak(operator.world, "Hello.", user=LONG_NAME)
    browser.check_screen(operator, "people", heading="People")
    browser.check_screen(operator, "people?q=miso", heading="People")
    browser.check_screen(operator, "people?q=ferri", heading="Search what people wrote")
    browser.check_screen(operator, "people/words?q=miso", heading="Search what people wrote")
    browser.check_screen(operator, "people?kind=agent", heading="Agents")


def test_no_table_is_cut_off_on_a_tablet(browser: Browser, operator: Operator) -> None:
    """The buttons of facts and jobs were right of the screen: the tests looked at a phone and a large screen."""
    uid, _, _ = full(operator)
    enqueue(operator, "a", "alice", error="the background model small of the upstream main answered 401")
    for path in (f"m/{uid}", f"m/{uid}/words?q=miso", f"m/{uid}/search?q=miso", "requests?words=1", "work"):
        with browser.open(operator, path) as page:
            browser.check_widths(page, (601, 768, 900, 901))


def test_a_search_of_many_people_goes_on_by_itself_until_somebody_is_found(
    browser: Browser, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 100,000 people one would follow a thousand links."""
    monkeypatch.setattr("storage.sql.people_search._PAGE_MEMORIES", 1)
    speak(operator.world, "Nadia Ferri here.", user="n-1")
    for n in range(3):
        speak(operator.world, "Hello.", user=f"u-{n}")
    with browser.open(operator, "people/words?q=ferri") as page:
        page.get_by_role("link", name="n-1", exact=True).wait_for()
        assert "Looked through: 4 people" in page.locator(".foot").inner_text()
        page.get_by_role("button", name="Stop").wait_for(state="hidden")
        assert page.locator("[aria-live]").inner_text() == "1 more person with a text that says “ferri”."
        page.reload()
        assert "Looked through: 4 people" in page.locator(".foot").inner_text()
    # Without script one goes on by a link.
    text = operator.get("people/words?q=ferri").body.decode()
    assert re.search(r'href="\?q=ferri&amp;after=[^"]*&amp;looked=1" data-look-on>Look through further', text)


def test_a_full_memory_looks_right_on_every_screen(browser: Browser, operator: Operator) -> None:
    uid, seq, talk = full(operator)
    screens: dict[str, str | None] = {
        f"m/{uid}": "alice",
        f"m/{uid}/facts?all=1": "Facts",
        f"m/{uid}/conversations": "Conversations",
        f"m/{uid}/passages": "Passages",
        f"m/{uid}/search?q=When+does+my+train+leave%3F": "What would be recalled",
        f"m/{uid}/b/human?from=1&to=3#saved": "human",
        f"m/{uid}/f/{seq}": f"Fact {seq}",
        f"m/{uid}/c/{talk}": None,
        f"m/{uid}/forget?fact={seq}": f"Forget fact {seq}",
        f"m/{uid}/forget?all=1": "Forget everything about alice",
        f"m/{uid}/words?q=train": "Where it is said",
        f"m/{uid}/forget?texts=1&texts={seq}": "Forget 2 texts",
    }
    for path, heading in screens.items():
        browser.check_screen(operator, path, heading=heading)


def test_a_fact_that_an_operator_wrote_fits_a_phone(browser: Browser, operator: Operator) -> None:
    """Its origin and date stood on one line, of which the end was out of sight."""
    uid = speak(operator.world, "Hello.").uid
    operator.world.clock.sleep(20 * 86_400)  # a date with two digits is as long as dates are
    operator.sign_in()
    operator.twin(f"m/{uid}/facts", {"text": "Never eats nuts.", "always": True})
    browser.check_screen(operator, f"m/{uid}/facts", heading="Facts")


def test_an_address_fits_one_line_of_a_phone(browser: Browser, operator: Operator) -> None:
    """Its last two letters stood alone on a second line."""
    uid = speak(operator.world, "Hello.", user="anna.keller@example.com").uid
    with browser.open(operator, f"m/{uid}", width=320) as page:
        box = page.get_by_role("heading", level=1).bounding_box()
        assert box is not None
        assert box["height"] < 40


def test_a_phone_shows_who_has_facts(browser: Browser, operator: Operator) -> None:
    operator.twin(f"m/{speak(operator.world, 'Hello.').uid}/facts", {"text": "Never eats nuts."})
    speak(operator.world, "Hello.", user="bob")
    with browser.open(operator, "people", width=320) as page:
        counts = page.locator("td[data-name=facts]")
        assert [(each.inner_text(), each.is_visible()) for each in counts.all()] == [
            ("0", False),
            ("1", True),
        ]


def test_a_hostile_memory_looks_right_and_does_nothing(browser: Browser, operator: Operator) -> None:
    world = operator.world
    agent = speak(world, *HOSTILE, talk="<b>talk/..")
    facts = learn(
        world, agent, *(text[:390] for text in HOSTILE), block="\n".join(text[:400] for text in HOSTILE)
    )
    talk = operator.twin(f"m/{agent.uid}/conversations")["items"][0]["id"]
    for path in ("", f"/c/{talk}", "/b/human", f"/f/{facts[0]}"):
        browser.check_screen(operator, f"m/{agent.uid}{path}")


def test_each_line_of_a_text_has_its_own_direction(browser: Browser, operator: Operator) -> None:
    agent = speak(operator.world, "Hello.")
    learn(operator.world, agent, "x", block="Her cat:\nהחתול נקרא מיסו.")
    with browser.open(operator, f"m/{agent.uid}") as page:
        first, second = page.locator(".block .text").first.evaluate(
            """(e) => [...e.firstChild.data.matchAll(/.+/g)].map((line) => {
                const range = document.createRange();
                range.setStart(e.firstChild, line.index);
                range.setEnd(e.firstChild, line.index + line[0].length);
                const box = e.getBoundingClientRect(), own = range.getBoundingClientRect();
                return [own.left - box.left, box.right - own.right].map(Math.round);
            })"""
        )
    assert (first[0], second[1]) == (0, 0)
    assert min(first[1], second[0]) > 0


def test_a_text_that_is_not_saved_is_not_left_without_a_question(
    browser: Browser, operator: Operator
) -> None:
    uid = full(operator)[0]
    asked: list[str] = []
    with browser.open(operator, f"m/{uid}/b/human") as page:
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
        text = page.get_by_role("textbox", name="Text of human")
        text.fill("Name: Alice, of Lyon.")
        page.get_by_role("link", name="Audit").click(no_wait_after=True)
        assert text.input_value() == "Name: Alice, of Lyon."
        assert asked == ["beforeunload"]
        page.get_by_role("button", name="Save").click()
        page.locator("#saved").wait_for()
        page.get_by_role("link", name="Audit").click()
        page.get_by_role("heading", name="Audit").wait_for()
        assert asked == ["beforeunload"]


def test_a_text_that_was_refused_is_not_left_without_a_question(browser: Browser, operator: Operator) -> None:
    uid = full(operator)[0]
    path, asked = f"m/{uid}/b/human", list[str]()
    with browser.open(operator, path, may_complain=True) as page:
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
        text = page.get_by_role("textbox", name="Text of human")
        text.fill("Name: Alice, of Lyon.")
        operator.twin(path, {"value": "Name: Alicia.", "version": operator.twin(path)["block"]["version"]})
        page.get_by_role("button", name="Save").click()
        page.get_by_role("region", name="Changed meanwhile").wait_for()
        page.get_by_role("link", name="Audit").click(no_wait_after=True)
        assert text.input_value() == "Name: Alice, of Lyon."
        assert asked == ["beforeunload"]
        page.get_by_role("button", name="Save").click()
        page.locator("#saved").wait_for()
        page.get_by_role("link", name="Audit").click()
        page.get_by_role("heading", name="Audit").wait_for()
        assert asked == ["beforeunload"]


@pytest.mark.parametrize("script", [True, False])
def test_of_a_search_one_hit_after_the_other_is_forgotten(
    browser: Browser, operator: Operator, script: bool
) -> None:
    """By two keys for each, and the button: the way back and the next hit have the focus."""
    uid = speak(operator.world, "Do I love tea?", "I love tea.", "I love green tea.", talk="conv-19").uid
    with browser.open(operator, f"m/{uid}/search?q=Do+I+love+tea%3F", script=script) as page:
        address, forgotten = page.url, list[str]()
        first = page.get_by_role("link", name="Forget message").first
        first.focus()
        name = first.text_content()
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Cancel").click()
        page.get_by_role("heading", name="What would be recalled").wait_for()
        assert page.locator(":focus").text_content() == name
        for _ in range(2):
            page.keyboard.press("Enter")
            forgotten.append(page.get_by_role("heading", name="Forget message").inner_text())
            page.get_by_role("button", name="Forget for good").click()
            assert page.locator(":focus").inner_text() == "Back to the search"
            page.keyboard.press("Enter")
            page.get_by_role("heading", name="What would be recalled").wait_for()
            assert page.url.partition("#")[0] == address
            assert page.locator(":focus").text_content().startswith("Forget message")
        assert len({*forgotten}) == 2
        # A new search begins at the top, whatever was in focus in the one before.
        assert "#" in page.url
        page.get_by_role("searchbox").fill("green tea")
        page.get_by_role("button", name="Search memory").click()
        page.wait_for_url("**/search?q=green+tea")
        assert (page.evaluate("scrollY"), page.locator(":focus").count()) == (0, 0)


@pytest.mark.parametrize("script", [True, False])
def test_a_wrong_fact_is_found_corrected_and_forgotten(
    browser: Browser, operator: Operator, script: bool
) -> None:
    full(operator)
    with browser.open(operator, "people", script=script) as page:
        page.get_by_role("searchbox", name="Name begins with").fill("ali")
        page.get_by_role("button", name="Find").click()
        page.get_by_role("table", name="People").get_by_role("link", name="alice").click()
        table = page.get_by_role("region", name="Facts", exact=True).get_by_role("table", name="Facts")
        table.get_by_role("link", name="Correct fact").first.click()
        page.get_by_role("textbox", name="Correct text").fill("Alice's brother looks after the cat.")
        page.get_by_role("button", name="Save correction").click()
        assert "Alice's brother looks after the cat." in page.inner_text("main")
        assert page.get_by_role("status").inner_text().startswith("Saved.")
        assert page.get_by_role("main").get_by_role("link", name="alice").is_visible()
        page.get_by_role("button", name="Do not mention").click()
        assert page.get_by_role("button", name="Mention again").is_visible()
        page.get_by_role("link", name="Forget", exact=True).click()
        assert page.get_by_role("table", name="What will go").is_visible()
        assert page.get_by_role("list", name="What stays").is_visible()
        page.get_by_role("button", name="Forget for good").click()
        assert "It is gone" in page.get_by_role("status").inner_text()


@pytest.mark.parametrize("script", [True, False])
def test_a_correction_is_kept_and_what_is_right_is_added_by_keyboard(
    browser: Browser, operator: Operator, script: bool
) -> None:
    uid, seq, _ = full(operator)
    new = operator.twin(f"m/{uid}/f/{seq}/correct", {"text": "The train to Lyon leaves on 5 May."})["seq"]
    source = operator.twin(f"m/{uid}/f/{new}")["fact"]["sources"][0]["seq"]
    preview = f"m/{uid}/forget?message={source}"
    if script:
        browser.check_screen(operator, preview, heading=f"Forget message {source}")
    with browser.open(operator, preview, script=script) as page:
        tick = page.get_by_role("checkbox", name=f"Keep fact {new} as a fact of its own")
        assert tick.is_checked()  # a correction by hand
        tick.press("Space")
        assert not tick.is_checked()
        tick.press("Space")
        page.get_by_role("button", name="Forget for good").press("Enter")
        assert "1 fact stays as a fact of its own." in page.get_by_role("status").inner_text()
        page.get_by_role("textbox", name="New fact").focus()
        page.keyboard.type("Alice takes the night train.")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.get_by_role("checkbox", name="Tell the assistant before each reply").is_checked()
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Add a fact"
        if script:
            assert browser.list_faults(page) == []
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Fact").wait_for()
        assert page.get_by_role("status").inner_text() == "Saved. Each reply is told this."
        assert "No message: an operator wrote it." in page.inner_text("main")
    listed = operator.twin(f"m/{uid}/facts")["items"]
    assert [each["text"] for each in listed if each.get("always")] == ["Alice takes the night train."]
    assert [each["text"] for each in listed if not each["sources"]] == [
        "Alice takes the night train.", "The train to Lyon leaves on 5 May.",
    ]  # fmt: skip


def test_a_sentence_is_tried_and_a_reply_leads_to_its_words(browser: Browser, operator: Operator) -> None:
    full(operator)
    with browser.open(operator, "people") as page:
        page.get_by_role("link", name="alice").click()
        page.get_by_role("searchbox", name="Try a sentence").fill("When does my train to Lyon leave?")
        page.get_by_role("button", name="Search memory").click()
        recalled = page.get_by_role("table", name="Recalled")
        # The links of a row are as high as a finger needs them, as in the other lists.
        box = recalled.get_by_role("link", name="Forget").first.bounding_box()
        assert box is not None
        assert box["height"] >= 24
        # As on the page of a request.
        assert "not to be mentioned" in page.get_by_role("table", name="Left out").inner_text()
        page.locator("summary", has_text="Scores").click()
        assert page.get_by_text("the best has 1, however weak it is").is_visible()
        recalled.get_by_role("link", name="message").first.click()
        # The words by which lists name it, and then its id.
        heading = page.get_by_role("heading", level=1).inner_text()
        assert re.match(r"My train .* 4 May at nine.*\sConversation \w{32}$", heading, re.S)
        article = page.get_by_role("article", name="alice, message 1")
        assert "4 May at nine" in article.inner_text()
        assert article.get_by_role("link", name="Forget message 1").is_visible()


def test_two_operators_edit_one_block(browser: Browser, operator: Operator) -> None:
    uid, *_ = full(operator)
    with browser.open(operator, f"m/{uid}/b/human", may_complain=True) as late:
        with browser.open(operator, f"m/{uid}/b/human") as early:
            early.get_by_role("textbox", name="Text of human").fill("The first one's text.")
            early.get_by_role("button", name="Save").click()
            assert early.get_by_role("heading", name="Version 4").is_visible()
            assert early.get_by_text("Saved. Version 4 is the text now.").is_visible()
            assert browser.list_faults(early) == []
        late.get_by_role("textbox", name="Text of human").fill("The second one's text.")
        late.get_by_role("button", name="Save").click()
        assert late.get_by_role("alert").is_visible()
        assert not late.get_by_text("Saved. Version").is_visible()
        assert "The first one's text." in late.get_by_role("region", name="Changed meanwhile").inner_text()
        # A screen reader goes on where it says what happened, and not at the top of the page.
        assert late.evaluate("document.activeElement.id") == "meanwhile"
        assert late.get_by_role("textbox", name="Text of human").input_value() == "The second one's text."
        assert browser.list_faults(late) == []
        late.get_by_role("button", name="Save").click()
        assert late.get_by_role("heading", name="Version 5").is_visible()
        late.get_by_role("button", name="Bring back version 1", exact=True).click()
        late.get_by_role("button", name="Undo last change").click()
        assert late.get_by_role("textbox", name="Text of human").input_value() == "The second one's text."
        late.get_by_role("textbox", name="Text of human").fill("y" * 5_001)
        late.get_by_role("button", name="Save").click()
        late.get_by_role("alert").get_by_text("characters at most").wait_for()
        field = late.get_by_role("textbox", name="Text of human")
        assert late.evaluate("document.activeElement.id") == "value"
        assert field.get_attribute("aria-describedby") == "alert value-hint"


def test_a_session_that_ends_in_an_edit_loses_no_text(browser: Browser, operator: Operator) -> None:
    uid, *_ = full(operator)
    with browser.open(operator, f"m/{uid}/b/human", may_complain=True) as page:
        page.get_by_role("textbox", name="Text of human").fill("A long text that took an hour.")
        operator.world.clock.sleep(100_000)
        page.get_by_role("button", name="Save").click()
        assert page.get_by_role("textbox", name="Your text").input_value() == "A long text that took an hour."
        assert page.get_by_role("button", name="Sign in").is_visible()
    assert "hour" not in operator.twin(f"m/{uid}/b/human")["block"]["value"]


def test_a_printed_memory_has_no_forms(browser: Browser, operator: Operator) -> None:
    """The boxes of the two searches were printed."""
    agent, _ = plan_trip(operator.world)
    with browser.visit(operator, f"m/{agent.uid}") as (page, _):
        page.emulate_media(media="print")
        assert [
            each.get_attribute("action") for each in page.locator("form").all() if each.is_visible()
        ] == []
        assert page.get_by_text("Alice has a cat called Miso.").is_visible()
        page.emulate_media(media="screen")
