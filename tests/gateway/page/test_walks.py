"""Whole ways through the page by keyboard alone and without script, from the first screen to the last button."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import learn, speak
from tests.gateway.page.operator import Operator, operator_of
from tests.gateway.page.person import person_of
from tests.gateway.page.test_memory_screens import PROFILE
from tests.gateway.sdk import remember

# A screen with more than so many stops has its end out of reach.
_MAX_STOPS = 80


@pytest.fixture
def operator(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Operator]:
    with remember(upstream, tmp_path, PROFILE) as world:
        yield operator_of(world)


class Keyboard:
    """Goes on from stop to stop, as a visitor without a mouse does. page: of playwright."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def to(self, role: str, name: str) -> None:
        """Presses Tab until what has the role and the name has the focus."""
        self._tab_to(self.page.get_by_role(role, name=name, exact=True), f"{role} {name!r}")

    def _tab_to(self, element: Any, name: str) -> None:
        focused = element.and_(self.page.locator(":focus"))
        for _ in range(_MAX_STOPS):
            if focused.count():
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"no way to {name}")

    def open(self, role: str, name: str) -> None:
        """Presses Enter there, and waits for the next screen."""
        self.to(role, name)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def unfold(self, summary: str) -> None:
        """Presses Enter on a summary, which has no role."""
        self._tab_to(self.page.locator("summary", has_text=summary), summary)
        self.page.keyboard.press("Enter")

    def fill(self, role: str, name: str, text: str) -> None:
        """Replaces the text of a field."""
        self.to(role, name)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def send(self, role: str, name: str, text: str) -> None:
        """Replaces the text of a field, and sends its form by Enter."""
        self.fill(role, name, text)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def download(self, name: str) -> str:
        """Returns the file at a link."""
        self.to("link", name)
        with self.page.expect_download() as download:
            self.page.keyboard.press("Enter")
        return Path(download.value.path()).read_text("utf-8")

    def status(self) -> str:
        found: str = self.page.get_by_role("status").first.inner_text()
        return found


def test_an_operator_needs_no_mouse(browser: Browser, upstream: StrictUpstream, operator: Operator) -> None:
    upstream.queue(say("Noted."), say("Yes: your cat is called Mosi."))
    agent = speak(operator.world, "My cat is called Mosi, and she is grey.", talk="c1")
    learn(operator.world, agent, "Alice has a cat called Mosi.", block="Cat: Mosi.")
    operator.world.clock.sleep(60)
    speak(operator.world, "What is my cat called?", talk="c2")
    with browser.open(operator, "login", script=False, is_signed_in=False, may_complain=True) as page:
        keys = Keyboard(page)
        keys.send("textbox", "Sign-in code or operator key", operator.key)
        # Find.
        keys.open("link", "People")
        keys.send("searchbox", "Name begins with", "ali")
        keys.open("link", "alice")
        keys.send("searchbox", "Words or a name", "Mosi")
        assert "say “Mosi”" in keys.status()
        # Correct, take that back, and correct it once more.
        keys.open("link", "Correct fact 3")
        keys.fill("textbox", "Correct text", "Alice has a cat called Misu.")
        keys.open("button", "Save correction")
        assert keys.status().startswith("Saved.")
        keys.open("button", "Undo the correction")
        assert keys.status().startswith("Undone:")
        keys.fill("textbox", "Correct text", "Alice has a cat called Miso.")
        keys.open("button", "Save correction")
        keys.open("button", "Tell before each reply")
        assert "told before each reply" in keys.status()
        keys.open("button", "Undo: tell only when it fits")
        # Explain.
        keys.open("link", "alice")
        keys.open("link", "What is my cat called?")
        keys.open("link", "Why this reply")
        assert "called Mosi" in page.inner_text("main")
        keys.open("link", "message 1")
        keys.open("link", "Forget message 1")
        # Forget.
        keys.open("button", "Forget for good")
        assert keys.status().startswith("It is gone")
        # Export.
        keys.open("link", "alice")
        for name in ("Export (JSON)", "Copy to read or print"):
            assert "What is my cat called?" in keys.download(name)
        # Erase all.
        keys.open("link", "Forget everything")
        keys.fill("textbox", "Type 3 to confirm", "3")
        keys.open("button", "Forget for good")
        assert keys.status().startswith("It is gone")
        keys.open("link", "All people")
        assert "Nobody is remembered yet." in page.inner_text("main")
        keys.open("button", "Sign out")
        assert page.get_by_role("heading", name="Sign in").is_visible()


def test_a_person_needs_no_mouse_until_the_link_ends(browser: Browser, operator: Operator) -> None:
    world = operator.world
    agent = speak(world, "My cat is called Mosi.", talk="c1")
    (seq,) = learn(world, agent, "Alice has a cat called Mosi.", block="Cat: Mosi.")
    key = operator.twin("keys", {"name": "the app"})["secret"]
    person = person_of(world, key=key)
    with browser.open(operator, person.path, script=False, is_signed_in=False, may_complain=True) as page:
        keys = Keyboard(page)
        keys.send("searchbox", "Words or a name", "Mosi")
        assert "3 places have the word" in keys.status()
        keys.open("link", f"Fact of 9 October 2025 , fact {seq}")
        keys.fill("textbox", "Correct text", "Alice has a cat called Miso.")
        keys.open("button", "Save correction")
        keys.open("link", "Forget message 1")
        keys.to("checkbox", f"Keep fact {seq + 1} as a fact of its own")
        assert page.locator(":focus").is_checked()  # it was written by hand
        keys.open("button", "Forget for good")
        assert "1 fact stays as a fact of its own." in keys.status()
        keys.open("link", "Back to the fact")
        keys.open("link", "What is remembered about you")
        keys.open("button", "Pause memory")
        keys.open("button", "Resume memory")
        for name in ("Download (readable)", "Download (JSON)"):
            assert "a cat called Miso" in keys.download(name)
        with browser.open(operator, "keys", script=False) as operators_page:
            operators_keys = Keyboard(operators_page)
            operators_keys.unfold("Revoke the app…")
            operators_keys.open("button", "Revoke the app")
        keys.open("link", "Edit human")
        assert "Links end after a time: ask for another one." in page.inner_text("h1")
