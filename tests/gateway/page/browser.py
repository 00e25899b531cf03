"""The page in a real browser: the system's Chromium, driven by playwright, with axe-core.

def test_people(browser: Browser, operator: Operator) -> None:
    browser.check_screen(operator, "people", heading="People")
    with browser.open(operator, "people", width=320) as page:
        page.get_by_role("link", name="alice").click()

`check_screen` opens a screen at 320 and 1,440 pixels, light and dark, and moves through it by keyboard. It fails if the
page scrolls sideways, if axe-core finds a fault, if the console has an error, if another host is requested, or if the
text differs without the script. The fixture `browser` is in `conftest.py`. Without Chromium its tests are skipped, with
the reason.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.gateway.page.operator import Operator
from tests.patience import PATIENCE_S

Scheme = Literal["light", "dark"]
# The views of each screen, which is loaded once. Its layout depends on the width alone, and its colours on the scheme.
VIEWS: tuple[tuple[Scheme, int], ...] = (("dark", 1440), ("light", 320))
# The view that is checked by keyboard: the order and the mark of the focus are the same in all views.
KEYBOARD_VIEW = ("light", 320)
# The rules of axe-core: WCAG 2.2 AA, and its best practice.
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# The folder in which `check_screen` saves pictures; None: it saves none.
PICTURE_FOLDER = os.environ.get("MNEMOGATE_TEST_PICTURES")
# Returns the violations, without the nodes of the rules that hold, which are nearly all.
_FIND_FAULTS = """async (tags) => (await axe.run({
    runOnly: { type: "tag", values: tags }, resultTypes: ["violations"],
})).violations"""
# Returns the pixels by which the page scrolls sideways, and the boxes of tables of which a part is hidden.
_OUT_OF_SIGHT = """() => [
    document.documentElement.scrollWidth - document.documentElement.clientWidth,
    [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.ariaLabel),
]"""
# Returns the size of the text of each element that has text of its own, but not of headings, which the width bounds.
_TEXT_SIZES = """() => [...document.body.querySelectorAll(":not(h1, h1 *, .title, h2, caption)")].filter(
    (e) => [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())
).map((e) => parseFloat(getComputedStyle(e).fontSize))"""
_TITLES = "() => [document.title, [...document.querySelectorAll('h1')].map((e) => e.textContent)]"
# Returns the text of the main part, and its text as it came, before the script changed it.
_WITH_AND_WITHOUT_SCRIPT = """(html) => {
    const main = document.querySelector("main"), changed = main.innerText;
    const came = new DOMParser().parseFromString(html, "text/html").querySelector("main");
    main.replaceWith(document.adoptNode(came));
    if (location.hash) location.replace(location.hash); // the hash names another element now
    return [changed, came.innerText];
}"""
# Stops lists from following new entries, which would replace their elements.
_STOP_LISTS = "() => document.querySelectorAll('[data-live]').forEach((e) => e.removeAttribute('id'))"
# Stops all timers: lists would go on to request a gateway that has ended. Opening an empty page instead takes Chromium
# half as long as a screen.
_STOP_TIMERS = """() => {
    for (let timer = setTimeout(() => {}); timer > 0; timer--) clearTimeout(timer);
    window.setTimeout = () => 0;
}"""
# Numbers the elements that can have the focus, in the order of the document, and notes each that gets it from now on.
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
# Returns the elements that had the focus: the number, whether it is outlined, and the HTML.
_GET_FOCUSED = """() => {
    document.removeEventListener("focusin", document.onfocusin);
    return window.focused;
}"""


def find_chromium() -> str:
    """Returns the path of the system's Chromium, or skips the test.

    The headless shell comes first: it has no browser window to draw, and takes half the processor time.
    """
    path = os.environ.get("CHROMIUM")
    for name in ("chromium-headless-shell", "chromium", "chromium-browser"):
        path = path or shutil.which(name)
    if path is None:
        pytest.skip("there is no Chromium: `apt-get install chromium-headless-shell` (or CHROMIUM=path)")
    return path


@dataclass
class Watch:
    """Notes the faults of a page: requests to other hosts, errors, and warnings of the console."""

    # The host of the gateway.
    host: str = ""
    faults: list[str] = field(default_factory=list)

    def follow(self, page: Any) -> None:
        """Begins to watch a page of playwright's."""
        page.on("request", lambda request: self._check(request.url))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda message: self._log(message.type, message.text))

    def _check(self, url: str) -> None:
        if not url.startswith((f"http://{self.host}/", "data:", "blob:", "about:")):
            self.faults.append(f"requested {url}")

    def _log(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"{kind}: {text}")


@dataclass
class Window:
    """A page of playwright's with cookies and storage of its own."""

    page: Any
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.watch.follow(self.page)

    def go(self, operator: Operator, path: str, *, is_signed_in: bool) -> Any:
        """Opens a screen, and returns playwright's reply. path: the path of the screen, below /ui/."""
        self.page.context.clear_cookies()
        if is_signed_in:
            name, _, value = operator.cookie.partition("=")
            url = f"http://{operator.host}/ui"
            cookie = {"name": name, "value": value, "url": url, "sameSite": "Strict"}
            self.page.context.add_cookies([cookie])
        self.watch.host = operator.host
        self.watch.faults.clear()
        return self.page.goto(f"http://{operator.host}/ui/{path}")


class Browser:
    """Chromium, with windows for tests."""

    def __init__(self, chromium: Any) -> None:
        """chromium: playwright's browser."""
        self.chromium = chromium
        # The window of `visit`; None: there was no visit yet.
        self._visited: Window | None = None
        # The contexts with script that no window uses.
        self._idle_contexts: list[Any] = []

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
        """Opens a screen in a window of its own, and yields playwright's page.

        Windows that are open at the same time share no cookies. Windows with script that follow one another share a
        context, since Chromium starts a process for each context. The page stores only cookies in the browser.

        path: the path of the screen, below /ui/.
        width: the width of the window, in pixels.
        script: whether scripts run.
        may_complain: whether the browser may report errors, as it does for a status of 400 or more.
        """
        context = (
            self._idle_contexts.pop() if script and self._idle_contexts else self._make_context(script=script)
        )
        try:
            window = Window(context.new_page())
            window.page.set_viewport_size({"width": width, "height": 900})
            window.go(operator, path, is_signed_in=is_signed_in)
            yield window.page
            assert may_complain or window.watch.faults == []
        finally:
            for page in context.pages[1:]:
                page.close()
            if script:
                self._idle_contexts.append(context)
            else:
                context.close()

    @contextmanager
    def visit(self, operator: Operator, path: str, *, is_signed_in: bool = True) -> Iterator[tuple[Any, str]]:
        """Opens a screen that the test only reads. Yields playwright's page, and the HTML that came.

        All such screens share a window, since a new one takes as long as two screens.
        """
        if self._visited is None:
            self._visited = Window(self._make_context(script=True).pages[0])
        window = self._visited
        window.page.set_viewport_size({"width": 1440, "height": 900})
        html = window.go(operator, path, is_signed_in=is_signed_in).text()
        yield window.page, html
        assert window.watch.faults == []
        window.page.evaluate(_STOP_TIMERS)

    def _make_context(self, *, script: bool) -> Any:
        """Returns a new context. With script it has an empty page, without which Chromium would end its process."""
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

    def check_screen(
        self, operator: Operator, path: str, *, heading: str | None = None, is_signed_in: bool = True
    ) -> None:
        """Checks a screen in all views. heading: the text that its h1 must have; None: any text."""
        with self.visit(operator, path, is_signed_in=is_signed_in) as (page, html):
            title, headings = page.evaluate(_TITLES)
            if heading is not None:
                assert title == f"{heading} – Mnemogate"
            assert headings == [title.removesuffix(" – Mnemogate")]
            page.evaluate(_STOP_LISTS)
            self.check_views(page, path or "overview")
            changed, came = page.evaluate(_WITH_AND_WITHOUT_SCRIPT, html)
            assert _without_list_status(came) == _without_list_status(changed), f"{path}, without script"

    def check_views(self, page: Any, name: str) -> None:
        """Checks the page that is open in all views. name: the name of its pictures."""
        for scheme, width in VIEWS:
            view = f"{name} {scheme} {width}"
            page.set_viewport_size({"width": width, "height": 900})
            self._save(page, f"{name} {width}")
            page.emulate_media(color_scheme=scheme)
            sideways, cut_off = page.evaluate(_OUT_OF_SIGHT)
            assert sideways <= 0, f"{view}: the page scrolls sideways"
            assert cut_off == [], f"{view}: a part of a table is hidden"
            if (scheme, width) == KEYBOARD_VIEW:
                self._check_keyboard(page, view)
            assert self.list_faults(page) == [], view

    def check_widths(self, page: Any, widths: Iterable[int]) -> None:
        """Checks that the page that is open shows its tables whole at some widths."""
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            sideways, cut_off = page.evaluate(_OUT_OF_SIGHT)
            assert (sideways <= 0, cut_off) == (True, []), f"{page.url}, {width} pixels"

    def check_text_size(self, page: Any) -> None:
        """Checks that all text of the page that is open grows with the browser's text size, and fits on a phone."""
        page.set_viewport_size({"width": 320, "height": 900})
        sizes = page.evaluate(_TEXT_SIZES)
        session = page.context.new_cdp_session(page)
        session.send("Page.setFontSizes", {"fontSizes": {"standard": 32}})
        assert page.evaluate(_TEXT_SIZES) == [2 * size for size in sizes], page.url
        sideways, _ = page.evaluate(_OUT_OF_SIGHT)
        session.send("Page.setFontSizes", {"fontSizes": {"standard": 16}})
        assert sideways <= 0, f"{page.url} scrolls sideways"

    def list_faults(self, page: Any) -> list[str]:
        """Returns the faults that axe-core finds."""
        from axe_playwright_python.base import AXE_SCRIPT

        if not page.evaluate("() => 'axe' in window"):
            page.evaluate(AXE_SCRIPT)
        violations = page.evaluate(_FIND_FAULTS, AXE_TAGS)
        return [
            f"{each['id']}: {each['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for each in violations
            for node in each["nodes"]
        ]

    def _check_keyboard(self, page: Any, view: str) -> None:
        """Moves the focus through the page, and checks that it is visible and follows the order of the document."""
        for _ in range(min(page.evaluate(_FOLLOW_FOCUS), 60)):
            page.keyboard.down("Tab")  # a key that is held repeats
        page.keyboard.up("Tab")
        focused = page.evaluate(_GET_FOCUSED)
        hidden = [html for _, has_outline, html in focused if not has_outline]
        assert hidden == [], f"{view}: the focus is not visible"
        order = [number for number, *_ in focused]
        assert order == list(range(len(order))), (
            f"{view}: the focus does not follow the order of the document"
        )
        assert order, f"{view}: nothing can be focused"

    def _save(self, page: Any, name: str) -> None:
        """Saves pictures of a page in both schemes, if `PICTURE_FOLDER` names a folder."""
        if PICTURE_FOLDER:
            Path(PICTURE_FOLDER).mkdir(parents=True, exist_ok=True)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                file = re.sub(r"[^\w]+", "-", f"{name} {scheme}").strip("-")
                page.screenshot(path=f"{PICTURE_FOLDER}/{file}.png", full_page=True)


def _without_list_status(text: str) -> str:
    """Returns the text of a page without the texts that say whether lists follow new entries."""
    text = re.sub(r"Pause|The list follows what happens\.|Reload for newer ones\.?", "", text)
    return " ".join(text.split())
