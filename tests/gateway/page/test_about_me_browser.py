"""About me in a real browser: as it looks, by keyboard, without script, and from a page of another origin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import UiSettings
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import HOSTILE, learn, plan_trip, speak
from tests.gateway.page.operator import Operator
from tests.gateway.page.person import Person, person_of
from tests.gateway.page.test_about_me import PROFILE
from tests.gateway.page.test_attacks import site
from tests.gateway.sdk import World, remember

# Return the sizes of the headings' text, that of the page first, and of the boxes to tick.
_HEADING_SIZES = """() => [...document.querySelectorAll("h1, h2, caption:not(.unseen)")].map(
    (e) => parseFloat(getComputedStyle(e).fontSize))"""
_BOX_SIZES = "() => [...document.querySelectorAll('[type=checkbox]')].map((e) => e.offsetWidth)"
ABOUT_ME = "What is remembered about you"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, PROFILE) as made:
        yield made


def nobody(world: World) -> Operator:
    """Has no session: a link needs none."""
    return Operator(world, "")


@contextmanager
def opened(browser: Browser, person: Person, below: str = "", **options: Any) -> Iterator[Any]:
    with browser.open(nobody(person.world), person.path + below, is_signed_in=False, **options) as page:
        yield page
        assert page.context.cookies() == []


def full(world: World) -> tuple[Person, int, str]:
    """Fills a memory. Returns its person, the number of a fact, and the id of a conversation."""
    _, seq = plan_trip(world)
    world.clock.sleep(90_000)
    speak(world, "When does my train to Lyon leave?")
    person = person_of(world)
    person.send(f"f/{seq - 1}/mute", muted="true")
    person.send(f"f/{seq - 2}/correct", text="Alice has a grey cat called Miso.")
    return person, seq, person.twin("/conversations")["items"][-1]["id"]


def test_about_me_looks_right_on_every_screen(browser: Browser, world: World) -> None:
    person, seq, talk = full(world)
    screens = {
        "": ABOUT_ME,
        "/facts?all=true": "Facts",
        "/words?q=cat": "Where it is said",
        "/b/human": "human",
        f"/f/{seq}": f"Fact {seq}",
        f"/c/{talk}": f"My train to Lyon leaves on 4 May at nine, and I have not packed yet. Conversation {talk}",
        "/forget?all=1": "Forget everything about you",
    }
    for below, heading in screens.items():
        browser.check_screen(nobody(world), person.path + below, heading=heading, is_signed_in=False)


def test_about_me_grows_with_the_text_size_of_the_browser(browser: Browser, world: World) -> None:
    """Its sizes were in pixels, so that who had set large text in the browser got small text here."""
    person, seq, talk = full(world)
    for below in ("", "/words?q=cat", "/b/human", f"/f/{seq}", f"/c/{talk}", f"/forget?fact={seq}"):
        with opened(browser, person, below) as page:
            browser.check_text_size(page)
            # No heading is larger than that of the page, and the boxes to tick grow along.
            session = page.context.new_cdp_session(page)
            session.send("Page.setFontSizes", {"fontSizes": {"standard": 32}})
            heading, *others = page.evaluate(_HEADING_SIZES)
            assert max(others, default=0) <= heading, below
            assert all(size == 36 for size in page.evaluate(_BOX_SIZES)), below
            session.send("Page.setFontSizes", {"fontSizes": {"standard": 16}})


def test_about_me_looks_right_empty_and_with_hostile_texts(browser: Browser, world: World) -> None:
    agent = speak(world, *HOSTILE, talk="<b>talk/..")
    learn(world, agent, *(text[:390] for text in HOSTILE), block="\n".join(text[:400] for text in HOSTILE))
    speak(world, "Hello.", user="bob")
    bob = person_of(world, "bob")
    bob.send(f"forget?conversation={bob.twin()['conversations'][0]['id']}", confirm="2")
    bob.send("pause", paused="true")
    alice = person_of(world)
    talk = alice.twin()["conversations"][0]["id"]
    assert "Nothing is remembered about you yet." in bob.page()
    for person, below in ((bob, ""), (alice, ""), (alice, "/words?q=link"), (alice, f"/c/{talk}")):
        browser.check_screen(nobody(world), person.path + below, is_signed_in=False)


@pytest.mark.parametrize("script", [True, False])
def test_a_person_mends_pauses_and_forgets(browser: Browser, world: World, script: bool) -> None:
    person, seq, _ = full(world)
    with opened(browser, person, script=script, width=320) as page:
        table = page.get_by_role("region", name="Facts", exact=True).get_by_role("table", name="Facts")
        assert "In a conversation of yours on 9 October 2025: “My train to Lyon" in table.inner_text()
        table.get_by_role("button", name=f"Mention fact {seq - 1} again").click()
        table.get_by_role("button", name=f"Do not mention fact {seq - 1}").click()
        table.get_by_role("link", name=f"Correct fact {seq}").click()
        page.get_by_role("textbox", name="Correct text").fill("Alice's brother looks after the cat.")
        page.get_by_role("button", name="Save correction").click()
        assert "Alice's brother looks after the cat." in page.inner_text("main")
        page.get_by_role("link", name="Read it in its conversation").click()
        assert page.get_by_role("article", name="You, message 1").is_visible()
        page.get_by_role("link", name=ABOUT_ME).click()
        blocks = page.get_by_role("region", name="Blocks")
        blocks.get_by_role("link", name="Edit human").click()
        page.get_by_role("textbox", name="Text of human").fill("Name: Alice.")
        page.get_by_role("button", name="Save").click()
        assert "by you" in page.get_by_role("region", name="History").inner_text()
        page.get_by_role("link", name=ABOUT_ME).click()
        page.get_by_role("button", name="Pause memory").click()
        page.get_by_role("button", name="Resume memory").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download (readable)").click()
        assert "brother looks after" in Path(download.value.path()).read_text("utf-8")
        page.get_by_role("link", name="Forget everything").click()
        assert page.get_by_role("table", name="What will go").is_visible()
        assert page.get_by_role("list", name="What stays").is_visible()
        page.get_by_role("textbox", name="Type 8 to confirm").fill("8")
        page.get_by_role("button", name="Forget for good").click()
        assert "Everything about you is erased" in page.get_by_role("status").inner_text()
    assert person.ask("GET").status == 404


def test_the_readable_file_stands_by_itself(browser: Browser, world: World, tmp_path: Path) -> None:
    agent = speak(world, *(text[:2_000] for text in HOSTILE), talk="<b>talk/..")
    learn(world, agent, *(text[:390] for text in HOSTILE), block="\n".join(text[:400] for text in HOSTILE))
    person = person_of(world)
    file = tmp_path / "memory.html"
    file.write_bytes(person.ask("GET", "/export.html").body)
    context = browser.chromium.new_context(viewport={"width": 320, "height": 900})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None
    )
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto(file.as_uri())
    assert page.get_by_role("heading", name=ABOUT_ME).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert browser.list_faults(page) == []
    browser._save(page, "export hostile 320")
    context.close()
    assert wrong == []


def test_an_edit_that_a_link_does_not_outlive_loses_no_text(browser: Browser, world: World) -> None:
    person, _, _ = full(world)
    with opened(browser, person, "/b/human", may_complain=True) as page:
        page.get_by_role("textbox", name="Text of human").fill("A long text that took an hour.")
        world.clock.sleep(4_000)
        page.get_by_role("button", name="Save").click()
        assert page.get_by_role("textbox", name="Your text").input_value() == "A long text that took an hour."
        assert browser.list_faults(page) == []


def test_a_page_on_another_port_changes_nothing(browser: Browser, world: World) -> None:
    """Even where it knows the link."""
    person, _, _ = full(world)
    target = f"http://{person.host}/ui/{person.path}"
    text = (
        f'<form method="post" action="{target}/pause"><input name="paused" value="true"></form>'
        "<script>document.forms[0].submit()</script>"
    )
    with site(text) as port, opened(browser, person, may_complain=True) as page:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_url(f"{target}/pause")
        assert "A change must come from a page of this gateway" in page.inner_text("h1")
    assert not person.twin()["paused"]


def test_a_phone_shows_what_is_gone_and_no_text_over_another(browser: Browser, world: World) -> None:
    """The page opened at the link that has the focus, at its end, and a label of two lines lay on its hint."""
    speak(world, "My cat is Miso.", "Miso is grey.")
    person = person_of(world)
    url = f"http://{person.host}/ui/{person.path}"
    with opened(browser, person) as page:
        page.set_viewport_size({"width": 320, "height": 640})
        page.goto(f"{url}/words?q=Miso")
        page.get_by_role("link", name="Forget message").first.click()
        page.get_by_role("button", name="Forget for good").click()
        page.get_by_role("heading", name="Forgotten").wait_for()
        assert page.evaluate("document.activeElement.innerText") == "Back to the words"
        assert page.evaluate("scrollY") == 0
        label, hint = page.get_by_text("Tell the assistant before each reply"), page.locator("#always-hint")
        boxes = [each.bounding_box() for each in (label, hint)]
        assert boxes[0]["height"] > 30  # two lines
        assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]


def test_an_application_shows_about_me_in_a_frame(
    browser: Browser, upstream: StrictUpstream, tmp_path: Path
) -> None:
    """Its forms come from the page within the frame, and no cookie is needed there."""
    ui = UiSettings(frame_origins=("http://localhost:*",))
    with remember(upstream, tmp_path, PROFILE, ui=ui) as world:
        speak(world, "Hello.")
        person = person_of(world)
        frame = f'<!doctype html><iframe src="http://{person.host}/ui/{person.path}"></iframe>'
        with site(frame) as port, opened(browser, person, may_complain=True) as page:
            for host, is_shown in (("127.0.0.1", 0), ("localhost", 1)):
                page.goto(f"http://{host}:{port}/")
                page.wait_for_load_state("networkidle")
                button = page.frame_locator("iframe").get_by_role("button", name="Pause memory")
                assert button.count() == is_shown
            button.click()
            page.frame_locator("iframe").get_by_role("button", name="Resume memory").wait_for()
        assert person.twin()["paused"]


def test_after_each_act_the_focus_is_where_its_result_is_said(browser: Browser, world: World) -> None:
    """A screen reader began each time at the top of a page, and says no status that a page comes with."""
    _, seq = plan_trip(world)
    talk = person_of(world).twin("/conversations")["items"][0]

    def act(role: str, name: str) -> str:
        page.get_by_role(role, name=name, exact=True).press("Enter")
        page.wait_for_load_state("networkidle")
        return str(page.locator(":focus").inner_text())

    with opened(browser, person_of(world)) as page:
        act("link", f"Correct fact {seq}")
        assert page.locator(":focus").get_attribute("name") == "text"
        page.keyboard.press("Control+A")
        page.keyboard.insert_text("The train leaves on 6 May.")
        assert act("button", "Save correction").startswith("Saved.")
        assert act("button", "Do not mention") == "Saved: it is not mentioned any more."
        page.get_by_role("link", name=ABOUT_ME).press("Enter")
        assert act("button", "Pause memory").startswith("Memory is paused.")
        assert act("button", "Resume memory").startswith("Memory is on again")
    with opened(browser, person_of(world), f"/forget?conversation={talk['id']}") as page:
        page.get_by_role("textbox").fill(str(talk["messages"]))
        assert act("button", "Forget for good").startswith("It is gone")
