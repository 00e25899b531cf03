"""The names by which people, programs and assistive technology find what is on a screen (roles and accessible names).

They are looked for as a client of the page would: without `exact`, so that one name is not a part of another's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import memory_of
from tests.gateway.page.operator import Operator, operator_of
from tests.gateway.page.person import person_of
from tests.gateway.page.test_memory_browser import full
from tests.gateway.page.test_memory_screens import PROFILE
from tests.gateway.page.test_work import enqueue
from tests.gateway.sdk import remember


@pytest.fixture
def operator(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Operator]:
    with remember(upstream, tmp_path, PROFILE) as world:
        yield operator_of(world)


def check(page: Any, *names: tuple[str, str]) -> None:
    """Each name leads to one element in the main part of the page."""
    main = page.get_by_role("main")
    found = {each: main.get_by_role(each[0], name=each[1]).count() for each in names}
    assert {each: count for each, count in found.items() if count != 1} == {}, page.url


def branch(operator: Operator) -> str:
    """Has alice ask a second question in two ways. Returns the id of the conversation, which has two branches."""
    chat = operator.world.chat(headers={"x-mnemogate-user": "alice", "x-mnemogate-conversation": "two"})
    chat.say("Who looks after my cat?")
    chat.say("Is green tea good?")
    del chat.messages[2:]
    chat.say("Is the train to Lyon late?")
    operator.world.settle()
    conversations = operator.twin(f"m/{memory_of(operator.world).uid}/conversations")["items"]
    return next(each["id"] for each in conversations if each["client_id"] == "two")


def test_each_screen_has_its_names(browser: Browser, operator: Operator) -> None:
    uid, seq, talk = full(operator)
    memory = f"m/{uid}"
    request = operator.twin("requests")["items"][0]["id"]
    branched = branch(operator)
    late_request, _, early_request = (each["id"] for each in operator.twin("requests")["items"][:3])
    job = enqueue(operator, "a", "alice", error="failed")
    screens: dict[str, tuple[tuple[str, str], ...]] = {
        "people": (
            ("heading", "People"),
            ("searchbox", "Name begins with"),
            ("button", "Find"),
            ("table", "People"),
            ("link", "alice"),
        ),
        "people?limit=1": (("link", "Next page"),),
        memory: (
            ("heading", "alice"),
            ("searchbox", "Try a sentence"),
            ("button", "Search memory"),
            ("region", "Blocks"),
            ("region", "Facts"),
            ("region", "Conversations"),
            ("link", "Edit human"),
            ("link", "History of human"),
            ("button", "Undo human"),
            ("table", "Facts"),
            ("textbox", "New fact"),
            ("button", "Add a fact"),
            ("link", f"Correct fact {seq}"),
            ("link", f"Forget fact {seq}"),
            ("button", f"Do not mention fact {seq}"),
            ("button", f"Mention fact {seq - 1} again"),
            ("table", "Conversations"),
            ("link", "Export"),
            ("link", "Requests"),
            ("link", "Forget everything"),
        ),
        f"{memory}/search?q=When+does+my+train+leave%3F": (
            ("heading", "What would be recalled"),
            ("table", "Recalled"),
            ("table", "Left out"),
        ),
        f"{memory}/b/human": (
            ("heading", "human"),
            ("textbox", "Text of human"),
            ("button", "Save"),
            ("button", "Undo last change"),
            ("region", "History"),
            ("heading", "Version 2"),
            ("button", "Bring back version 1"),
        ),
        f"{memory}/f/{seq}": (
            ("heading", f"Fact {seq}"),
            ("textbox", "Correct text"),
            ("button", "Save correction"),
            ("button", "Do not mention"),
            ("link", "Forget"),
        ),
        f"{memory}/f/{seq - 1}": (("button", "Mention again"),),
        f"{memory}/c/{talk}": (
            ("heading", f"Conversation {talk}"),
            ("article", "alice, message 1"),
            ("link", "Forget message 1"),
        ),
        f"{memory}/c/{talk}?limit=2": (("link", "Earlier messages"), ("link", "Why this reply")),
        f"{memory}/c/{branched}": (("navigation", "Branches"),),
        f"{memory}/forget?conversation={talk}": (
            ("heading", f"Forget conversation {talk}"),
            ("table", "What will go"),
            ("list", "What stays"),
            ("textbox", "Type 6 to confirm"),
            ("button", "Forget for good"),
            ("link", "Cancel"),
        ),
        f"r/{request}": (
            ("heading", f"Request {request}"),
            ("table", "Recalled"),
            ("table", "Window"),
            ("region", "What the model was told"),
            ("region", "What fills the window"),
        ),
        f"r/{early_request}": (
            ("link", f"Forget fact {seq}"),
            ("link", f"Correct fact {seq}"),
            ("button", f"Do not mention fact {seq}"),
        ),
        f"r/{late_request}": (("table", "Left out"),),
        "requests": (("table", "Requests"), ("button", "Pause")),
        "audit": (
            ("table", "Audit"),
            ("textbox", "Person"),
            ("combobox", "Action"),
            ("button", "Show"),
        ),
        "work": (
            ("table", "Jobs"),
            ("table", "Batches"),
            ("button", f"Retry job {job}"),
            ("button", f"Cancel job {job}"),
        ),
        "keys": (("table", "Keys"), ("textbox", "Name"), ("button", "Make key"), ("button", "Revoke")),
    }
    for path, names in screens.items():
        with browser.visit(operator, path) as (page, _):
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            check(page, *names)
            assert page.title() == f"{' '.join(page.inner_text('h1').split())} – Mnemogate"
            assert page.evaluate("document.documentElement.lang") == "en"
            assert page.get_by_role("banner").count() == page.get_by_role("contentinfo").count() == 1
            navigation = page.get_by_role("navigation", name="Main")
            if "/" not in path:
                assert (
                    navigation.locator("[aria-current=page]").inner_text().lower() == path.partition("?")[0]
                )
            links = navigation.get_by_role("link").all_inner_texts()
            assert links == ["Overview", "People", "Requests", "Work", "Keys", "Audit"]
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.textContent") == "Skip to content"
            assert page.get_by_role("button", name="Sign out").count() == 1
            colours = page.get_by_role("group", name="Colours").get_by_role("button").all_inner_texts()
            assert colours == ["System", "Light", "Dark"]


def test_a_person_finds_the_same_names(browser: Browser, operator: Operator) -> None:
    _, seq, talk = full(operator)
    person = person_of(operator.world)
    screens: dict[str, tuple[tuple[str, str], ...]] = {
        "": (
            ("heading", "What is remembered about you"),
            ("region", "Blocks"),
            ("region", "Facts"),
            ("region", "Conversations"),
            ("link", "Edit human"),
            ("link", "History of human"),
            ("table", "Facts"),
            ("textbox", "New fact"),
            ("button", "Add a fact"),
            ("link", f"Correct fact {seq}"),
            ("link", f"Forget fact {seq}"),
            ("button", f"Do not mention fact {seq}"),
            ("button", f"Mention fact {seq - 1} again"),
            ("table", "Conversations"),
            ("button", "Pause memory"),
            ("link", "Download (JSON)"),
            ("link", "Download (readable)"),
            ("link", "Forget everything"),
        ),
        "/b/human": (
            ("heading", "human"),
            ("textbox", "Text of human"),
            ("button", "Save"),
            ("region", "History"),
            ("heading", "Version 2"),
        ),
        f"/f/{seq}": (
            ("heading", f"Fact {seq}"),
            ("textbox", "Correct text"),
            ("button", "Save correction"),
            ("button", "Do not mention"),
            ("link", "Forget"),
        ),
        f"/c/{talk}": (("heading", f"Conversation {talk}"), ("article", "You, message 1")),
        "/forget?all=1": (
            ("table", "What will go"),
            ("list", "What stays"),
            ("textbox", "to confirm"),
            ("button", "Forget for good"),
            ("link", "Cancel"),
        ),
    }
    for path, names in screens.items():
        with browser.visit(operator, person.path + path, is_signed_in=False) as (page, _):
            check(page, *names)
    person.send("pause", paused="true")
    with browser.visit(operator, person.path, is_signed_in=False) as (page, _):
        check(page, ("button", "Resume memory"))
