"""No template has what would let a hostile text out of its place, or what the policy of the page forbids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gateway.page
from gateway.page.shown_text import restore_hidden, write_out_hidden
from gateway.page.text_filters import clock, marked
from tests.rows import each_row

ROOT = Path(gateway.page.__file__).parent
TEMPLATES = sorted((ROOT / "templates").iterdir())
STATIC = sorted((ROOT / "static").iterdir())
FORBIDDEN = {
    "a text that is not escaped": r"\|\s*safe\b|autoescape|\{%-?\s*filter",
    "a style of its own": r"\bstyle\s*=|<style",
    "a handler": r"\bon[a-z]+\s*=",
    "an absolute link": r"(?:href|src|action)\s*=\s*[\"']?(?:/|[a-z]+:)",
    "a script of its own": r"<script(?![^>]*\bsrc=)",
    "an attribute without quotes": r"=\s*\{\{",
}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
@each_row("what", FORBIDDEN)
def test_no_template_has(path: Path, what: str) -> None:
    assert re.findall(FORBIDDEN[what], path.read_text("utf-8"), re.I) == []


def test_the_patterns_find_what_they_look_for() -> None:
    """Else the test above could not fail."""
    found = {
        "a text that is not escaped": "{{ text | safe }}",
        "a style of its own": '<p style="color: red">',
        "a handler": '<p onclick="go()">',
        "an absolute link": '<a href="/ui/keys">',
        "a script of its own": "<script>go()</script>",
        "an attribute without quotes": "<input value={{ text }}>",
    }
    assert found.keys() == FORBIDDEN.keys()
    for what, text in found.items():
        assert re.search(FORBIDDEN[what], text, re.I), what


def test_static_files_are_small_and_load_nothing_from_elsewhere() -> None:
    assert sum(path.stat().st_size for path in STATIC) < 60_000
    (script,) = (path for path in STATIC if path.suffix == ".js")
    assert script.stat().st_size <= 10_000
    for path in STATIC:
        text = path.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", text), path.name


def test_a_time_of_another_day_has_its_day() -> None:
    """A list of requests reaches back for days, and had times of day alone."""
    at = 1_795_756_464.0
    assert ">05:14:24<" in clock(at, at + 3_600)
    assert ">27 Nov, 05:14:24<" in clock(at, at + 86_400)


def test_a_marked_text_is_cut_once() -> None:
    """A cut within a character reference leaves a few bytes, in which nothing else is shown."""
    assert marked('abcd"efgh', [(5, 9)], 8) == '<span class="words" dir="auto" lang="">abcd…</span>'


def test_letters_that_only_a_model_reads_are_written_out() -> None:
    """But for the flags of England, Scotland and Wales, which are a black flag and such characters."""
    flag = "\U0001f3f4" + "".join(chr(0xE0000 + ord(each)) for each in "gbsct") + "\U000e007f"
    assert "\U000e0073" not in write_out_hidden(flag.replace("\U000e0063", ""))
    written = write_out_hidden(f"Likes tea.\U000e0049\U000e0067 {flag}")
    assert written == f"Likes tea.‹U+E0049›‹U+E0067› {flag}"
    assert restore_hidden(written) == f"Likes tea.\U000e0049\U000e0067 {flag}"
