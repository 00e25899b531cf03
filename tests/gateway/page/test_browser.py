"""The first screens in a real browser: signing in, keys, colours."""

from __future__ import annotations

from typing import Any

from tests.gateway.page.browser import Browser
from tests.gateway.page.operator import Operator
from tests.gateway.page.test_work import enqueue
from tests.patience import PATIENCE_S

# The second click comes when the request of the first one is under way.
_CLICK_TWICE = """async (button) => {
    for (const _ of [1, 2]) {
        button.click();
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
}"""

# Counts the forms that the page sends, which then stay where they are.
_COUNT_SENT = """() => {
    window.sent = 0;
    document.addEventListener("submit", (event) => {
        if (!event.defaultPrevented) window.sent += 1;
        event.preventDefault();
    });
}"""


def test_the_sign_in_looks_right(browser: Browser, operator: Operator) -> None:
    browser.check_screen(operator, "login", heading="Sign in", is_signed_in=False)


def test_the_keys_look_right(browser: Browser, operator: Operator) -> None:
    browser.check_screen(operator, "keys", heading="Keys")


def test_a_code_in_the_fragment_signs_in_by_itself(browser: Browser, operator: Operator) -> None:
    gateway = operator.world.gateway
    path = gateway.call(gateway.app.services.sign_in.make_code({}))["path"]
    with browser.open(operator, path.removeprefix("/ui/"), is_signed_in=False) as page:
        page.wait_for_url(f"http://{operator.host}/ui/")
        assert page.get_by_role("button", name="Sign out").is_visible()
        page.go_back()
        assert "#" not in page.url


def test_a_fresh_link_signs_in_from_the_tab_of_an_old_one(browser: Browser, operator: Operator) -> None:
    """Only the fragment of the address differs, so the browser loads nothing."""
    gateway = operator.world.gateway
    with browser.open(
        operator, "login#0123456789abcdef0123456789abcdef", is_signed_in=False, may_complain=True
    ) as page:
        page.get_by_role("alert").get_by_text("expired").wait_for()
        path = gateway.call(gateway.app.services.sign_in.make_code({}))["path"]
        page.evaluate("address => { location.href = address; }", path)
        page.wait_for_url(f"http://{operator.host}/ui/")


def test_the_link_that_skips_to_the_content_is_no_code(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "login", is_signed_in=False) as page:
        page.get_by_role("link", name="Skip to content").press("Enter")
        page.reload()
        assert page.url.endswith("/ui/login#content")
        assert page.get_by_role("alert").count() == 0


def test_without_script_a_key_is_typed(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "keys?limit=5", script=False, is_signed_in=False) as page:
        page.get_by_role("textbox", name="Sign-in code or operator key").fill(operator.key)
        page.get_by_role("button", name="Sign in").click()
        assert page.url == f"http://{operator.host}/ui/keys?limit=5"
        page.get_by_role("button", name="Sign out").click()
        assert page.url == f"http://{operator.host}/ui/login"


def test_colours_are_chosen_and_stay(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "keys?limit=5") as page:
        for name, theme in (("Dark", "dark"), ("Light", "light"), ("System", None)):
            page.get_by_role("group", name="Colours").get_by_role("button", name=name).click()
            assert page.locator("html").get_attribute("data-theme") == theme
            assert page.url.partition("#")[0] == f"http://{operator.host}/ui/keys?limit=5"
            # It was lost, and the page was at its top again.
            assert page.locator(":focus").inner_text() == name


def test_a_form_that_is_clicked_twice_is_sent_once(browser: Browser, operator: Operator) -> None:
    sent: list[Any] = []
    with browser.open(operator, "keys") as page:
        page.get_by_role("textbox", name="Name").fill("phone")
        page.route("**/ui/keys", lambda route: sent.append(route))  # no answer yet
        page.get_by_role("button", name="Make key").evaluate(_CLICK_TWICE)
        sent[-1].continue_()
        page.get_by_role("status").locator("pre").wait_for()
        assert len(sent) == 1


def test_a_list_that_follows_what_happens_keeps_no_session(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "requests") as page:
        for _ in range(3):
            operator.world.clock.sleep(700)
            with page.expect_response(f"http://{operator.host}/ui/requests", timeout=PATIENCE_S * 1000):
                pass
        page.get_by_role("textbox", name="Sign-in code or operator key").wait_for()
        assert page.url == f"http://{operator.host}/ui/login?next=requests"


def test_the_sentence_over_a_list_follows_as_well(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "work") as page:
        assert page.get_by_role("status").inner_text() == "Nothing waits."
        page.evaluate("window.status_line = document.getElementById('state')")
        enqueue(operator, "a", error="the model answered 401")
        page.get_by_role("status").get_by_text("1 job has failed for good.").wait_for()
        # The same element: a screen reader hears no new one.
        assert "1 job has failed" in page.evaluate(
            "document.getElementById('state') === status_line && status_line.innerText"
        )
        assert page.get_by_role("button", name="Retry job").count() == 1


def test_a_list_that_follows_what_happens_does_not_send_a_form_again(
    browser: Browser, operator: Operator
) -> None:
    """Its row has a new form, which does not know that the old one was sent. The script clicks as some browsers do:
    a button that is clicked has no focus there."""
    enqueue(operator, "a", error="the model answered 401")
    with browser.open(operator, "work") as page:
        page.evaluate(_COUNT_SENT)
        retry, follows = page.get_by_role("button", name="Retry job").first, f"http://{operator.host}/ui/work"
        with page.expect_response(follows):
            pass  # the next one is 2.5 s away, and a form is sent once within 3 s
        retry.evaluate("(button) => button.click()")
        enqueue(operator, "b")
        with page.expect_response(follows) as followed:
            pass
        followed.value.finished()
        page.wait_for_timeout(50)  # the reply is put into the page
        retry.evaluate("(button) => button.click()")
        assert page.evaluate("() => window.sent") == 1


def test_the_menu_fits_into_one_line_of_a_phone(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "people") as page:
        links = page.get_by_role("navigation", name="Main").get_by_role("link").all()
        assert len(links) > 1
        for width in (320, 360, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert len({(each.bounding_box() or {})["y"] for each in links}) == 1, width


def test_the_menu_marks_one_page_where_the_system_sets_the_colours(
    browser: Browser, operator: Operator
) -> None:
    """All links had the mark of the current one."""
    with browser.visit(operator, "people") as (page, _):
        page.emulate_media(forced_colors="active")
        background = "getComputedStyle(document.body).backgroundColor"
        shown = f"each => getComputedStyle(each).borderBottomColor !== {background}"
        links = page.get_by_role("navigation", name="Main").get_by_role("link").all()
        assert [each.inner_text() for each in links if each.evaluate(shown)] == ["People"]
        page.emulate_media(forced_colors="none")


def test_all_lists_grow_with_the_text_size_of_the_browser(browser: Browser, operator: Operator) -> None:
    operator.world.chat(user="alice").say("My cat is called Miso.")
    operator.world.settle()
    request = operator.twin("requests")["items"][0]["id"]
    memory = operator.twin("people")["items"][0]["uid"]
    for path in ("", "people", "requests", "work", "keys", "audit", f"r/{request}", f"m/{memory}"):
        with browser.open(operator, path) as page:
            browser.check_text_size(page)
