"""The page in a real browser: the system's Chromium, driven by playwright, with axe-core.

def test_people(browser: Browser, operator: Operator) -> None:
    browser.looks_right(operator, "people", heading="People")
    with browser.open(operator, "people", width=320) as page:
        page.get_by_role("link", name="alice").click()

`looks_right` tries a screen at 320 and 1,440 pixels, light and dark, and by keyboard: nothing scrolls sideways,
axe-core finds nothing, no error is in the console, no other host is asked, and it says the same without its script.
The fixture `browser` is in `conftest.py`; where there is no Chromium, its tests are skipped with the reason.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.gateway.page.operator import Operator
from tests.patience import PATIENCE_S

Scheme = Literal["light", "dark"]
# Each screen is loaded once, and seen in these ways, one after the other. Its layout depends on the width alone, and
# its colours on the scheme.
WAYS: tuple[tuple[Scheme, int], ...] = (("dark", 1440), ("light", 320))
# The order in the document and the mark of what has the focus are the same at every width and in both schemes.
BY_KEYBOARD = ("light", 320)
# The rules of WCAG 2.2 AA, and what axe calls good practice.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Pictures of what `looks_right` saw are saved in this folder, for whoever wants to look.
PICTURES = os.environ.get("MNEMOGATE_TEST_PICTURES")
# Without the nodes of rules that hold, which are nearly all.
_FIND_FAULTS = """async (tags) => (await axe.run({
    runOnly: { type: "tag", values: tags }, resultTypes: ["violations"],
})).violations"""
# How far the page scrolls sideways, and the boxes of tables of which a part is out of sight.
_OUT_OF_SIGHT = """() => [
    document.documentElement.scrollWidth - document.documentElement.clientWidth,
    [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.ariaLabel),
]"""
_TITLES = "() => [document.title, [...document.querySelectorAll('h1')].map((e) => e.textContent)]"
# The text of the main part as it is, and as it was before the script saw it, where the style sheet shows that.
_WITH_AND_WITHOUT_SCRIPT = """(html) => {
    const main = document.querySelector("main"), changed = main.innerText;
    const came = new DOMParser().parseFromString(html, "text/html").querySelector("main");
    main.replaceWith(document.adoptNode(came));
    if (location.hash) location.replace(location.hash); // what it names is another element now
    return [changed, came.innerText];
}"""
# Lists that follow what happens would be other elements after a while.
_STAND_STILL = "() => document.querySelectorAll('[data-live]').forEach((e) => e.removeAttribute('id'))"
# Lists would go on to ask a gateway that has ended, until another screen is opened. To open an empty one instead takes
# Chromium as long as half a screen.
_FOLLOW_NO_MORE = """() => {
    for (let timer = setTimeout(() => {}); timer > 0; timer--) clearTimeout(timer);
    window.setTimeout = () => 0;
}"""
# Numbers what can be focused in the order of the document, and notes what is focused from now on.
_FOLLOW_FOCUS = """() => {
    const all = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']";
    const seen = [...document.querySelectorAll(all)].filter((e) => e.checkVisibility() && !e.disabled);
    document.body.tabIndex = -1;
    document.body.focus();
    window.focused = [];
    document.onfocusin = ({ target: e }) => {
        const s = getComputedStyle(e);
        const has = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0;
        window.focused.push([seen.indexOf(e), has, e.outerHTML.slice(0, 200)]);
    };
    document.addEventListener("focusin", document.onfocusin);
    return seen.length;
}"""
_FOCUSED = """() => {
    document.removeEventListener("focusin", document.onfocusin);
    return window.focused;
}"""


def find_chromium() -> str:
    """Returns the path of the system's Chromium, or skips the test.

    The headless shell comes first: it has no browser window to draw, and takes half the processor time.
    """
    found = os.environ.get("CHROMIUM")
    for name in ("chromium-headless-shell", "chromium", "chromium-browser"):
        found = found or shutil.which(name)
    if found is None:
        pytest.skip("there is no Chromium: `apt-get install chromium-headless-shell` (or CHROMIUM=path)")
    return found


@dataclass
class Watch:
    """What a page asks for and complains of. host: the gateway's."""

    host: str = ""
    wrong: list[str] = field(default_factory=list)

    def follow(self, page: Any) -> None:
        page.on("request", lambda request: self._check(request.url))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda message: self._log(message.type, message.text))

    def _check(self, url: str) -> None:
        if not url.startswith((f"http://{self.host}/", "data:", "blob:", "about:")):
            self.wrong.append(f"asked for {url}")

    def _log(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.wrong.append(f"{kind}: {text}")


@dataclass
class Window:
    """A page of playwright's with cookies and storage of its own."""

    page: Any
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.watch.follow(self.page)

    def go(self, operator: Operator, path: str, *, is_signed_in: bool) -> Any:
        """Returns playwright's reply."""
        self.page.context.clear_cookies()
        if is_signed_in:
            name, _, value = operator.cookie.partition("=")
            url = f"http://{operator.host}/ui"
            cookie = {"name": name, "value": value, "url": url, "sameSite": "Strict"}
            self.page.context.add_cookies([cookie])
        self.watch.host = operator.host
        self.watch.wrong.clear()
        return self.page.goto(f"http://{operator.host}/ui/{path}")


class Browser:
    """Chromium. `chromium`: playwright's browser."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium
        self._visited: Window | None = None  # opened by the first visit
        self._idle: list[Any] = []  # contexts that no window uses, with script

    @contextmanager
    def open(
        self,
        operator: Operator,
        path: str,
        *,
        width: int = 1440,
        script: bool = True,
        is_signed_in: bool = True,
        may_complain: bool = False,
    ) -> Iterator[Any]:
        """Opens a screen in a window of its own, and gives playwright's page. path: below /ui/.

        No two windows that are open share cookies. Windows with script that follow one another share a context, since
        Chromium starts a process for each context. The page stores nothing but cookies in the browser.

        may_complain: the test provokes errors of the browser's (a status of 400 or more is one).
        """
        context = self._idle.pop() if script and self._idle else self._context(script=script)
        try:
            window = Window(context.new_page())
            window.page.set_viewport_size({"width": width, "height": 900})
            window.go(operator, path, is_signed_in=is_signed_in)
            yield window.page
            assert may_complain or window.watch.wrong == []
        finally:
            for page in context.pages[1:]:
                page.close()
            if script:
                self._idle.append(context)
            else:
                context.close()

    @contextmanager
    def visit(self, operator: Operator, path: str, *, is_signed_in: bool = True) -> Iterator[tuple[Any, str]]:
        """Opens a screen, to be looked at alone, in the window of all such: a new one takes as long as two screens.

        Gives playwright's page and the HTML that came.
        """
        if self._visited is None:
            self._visited = Window(self._context(script=True).pages[0])
        window = self._visited
        window.page.set_viewport_size({"width": 1440, "height": 900})
        html = window.go(operator, path, is_signed_in=is_signed_in).text()
        yield window.page, html
        assert window.watch.wrong == []
        window.page.evaluate(_FOLLOW_NO_MORE)

    def _context(self, *, script: bool) -> Any:
        """Returns a new context. With script it has an empty page: Chromium ends the process of one without a page."""
        context = self.chromium.new_context(
            color_scheme="light",
            java_script_enabled=script,
            reduced_motion="reduce",
            locale="en-GB",
        )
        context.set_default_timeout(PATIENCE_S * 1000)
        if script:
            context.new_page()
        return context

    def looks_right(
        self, operator: Operator, path: str, *, heading: str | None = None, is_signed_in: bool = True
    ) -> None:
        """Tries a screen in all ways. heading: its h1."""
        with self.visit(operator, path, is_signed_in=is_signed_in) as (page, html):
            title, headings = page.evaluate(_TITLES)
            if heading is not None:
                assert title == f"{heading} – Mnemogate"
            assert headings == [title.removesuffix(" – Mnemogate")]
            page.evaluate(_STAND_STILL)
            self.check_ways(page, path or "overview")
            changed, came = page.evaluate(_WITH_AND_WITHOUT_SCRIPT, html)
            assert _still(came) == _still(changed), f"{path}, without script"

    def check_ways(self, page: Any, name: str) -> None:
        """Tries the page that is open at both widths and in both schemes. name: of its pictures."""
        for scheme, width in WAYS:
            way = f"{name} {scheme} {width}"
            page.set_viewport_size({"width": width, "height": 900})
            self._save(page, f"{name} {width}")
            page.emulate_media(color_scheme=scheme)
            sideways, cut_off = page.evaluate(_OUT_OF_SIGHT)
            assert sideways <= 0, f"{way}: the page scrolls sideways"
            assert cut_off == [], f"{way}: a part of a table is out of sight"
            if (scheme, width) == BY_KEYBOARD:
                self._check_keyboard(page, way)
            assert self.faults(page) == [], way

    def faults(self, page: Any) -> list[str]:
        """Returns what axe-core finds wrong."""
        from axe_playwright_python.base import AXE_SCRIPT

        if not page.evaluate("() => 'axe' in window"):
            page.evaluate(AXE_SCRIPT)
        violations = page.evaluate(_FIND_FAULTS, TAGS)
        return [
            f"{each['id']}: {each['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for each in violations
            for node in each["nodes"]
        ]

    def _check_keyboard(self, page: Any, way: str) -> None:
        """Goes through all that can be focused, in the order in which it is read, and sees where it is."""
        for _ in range(min(page.evaluate(_FOLLOW_FOCUS), 60)):
            page.keyboard.down("Tab")  # as it repeats while it is held
        page.keyboard.up("Tab")
        focused = page.evaluate(_FOCUSED)
        unseen = [html for _, has_outline, html in focused if not has_outline]
        assert unseen == [], f"{way}: the focus is not seen"
        order = [number for number, *_ in focused]
        assert order == list(range(len(order))), f"{way}: the focus does not follow the order of reading"
        assert order, f"{way}: nothing can be focused"

    def _save(self, page: Any, name: str) -> None:
        """Saves pictures of it in both schemes."""
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                file = re.sub(r"[^\w]+", "-", f"{name} {scheme}").strip("-")
                page.screenshot(path=f"{PICTURES}/{file}.png", full_page=True)


def _still(text: str) -> str:
    """The text of a page without what says that lists follow or stand still."""
    text = re.sub(r"Pause|The list follows what happens\.|Reload for newer ones\.?", "", text)
    return " ".join(text.split())
