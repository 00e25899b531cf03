"""The browser, once for all tests of the page, and an operator of a gateway with memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.browser import Browser, find_chromium
from tests.gateway.page.operator import Operator, operate

ARGUMENTS = [
    "--no-sandbox",
    "--host-resolver-rules=MAP *.example 127.0.0.1",
    # One process shows all pages, so that it compiles axe-core once. Their cookies and storage are apart as before.
    "--renderer-process-limit=1",
    # No function is compiled to optimised code: axe-core runs for half a second a screen, and that would not pay off.
    "--js-flags=--no-opt --no-maglev",
]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield Browser(chromium)
        chromium.close()


@pytest.fixture
def operator(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Operator]:
    with operate(upstream, tmp_path) as made:
        yield made
