"""The page of one gateway after a forgetting at another gateway of the same database."""

from __future__ import annotations

from contextlib import ExitStack

from gateway.settings import BlockSettings, ProfileSettings
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import speak
from tests.gateway.page.operator import operator_of
from tests.gateway.sdk import Clock, remember
from tests.patience import becomes
from tests.reachable import texts_with


def test_no_list_of_requests_has_what_another_gateway_forgot(upstream: StrictUpstream, url: str) -> None:
    clock = Clock()
    with ExitStack() as stack:
        first = stack.enter_context(remember(upstream, url, clock=clock))
        second = stack.enter_context(remember(upstream, url, clock=clock))
        here, there = operator_of(first), operator_of(second)
        agent = speak(first, "My train to Zqtrain leaves on 4 May.", user="zqmisox")
        speak(first, "Hello.", user="bob")
        requests = here.twin("requests")["items"]
        gone = next(each["id"] for each in requests if each["name"] == "zqmisox")
        assert here.twin(f"r/{gone}")["name"] == "zqmisox"
        there.twin(f"m/{agent.uid}/forget?all=1", {"confirm": "2"})
        # The database notifies of it.
        becomes(lambda: [each["name"] for each in here.twin("requests")["items"]] == ["bob"])
        assert here.program("GET", f"r/{gone}.json").status == 404
        for path in ("overview", "requests", "audit", "people", "work"):
            assert b"zqmisox" not in here.program("GET", f"{path}.json").body, path
            assert b"zqmisox" not in here.get("" if path == "overview" else path).body, path
        becomes(lambda: [*texts_with("Zqtrain", first.gateway.app)] == [])


def test_operators_of_two_gateways_work_on_one_memory(upstream: StrictUpstream, url: str) -> None:
    clock = Clock()
    profile = ProfileSettings("default", blocks=(BlockSettings("human"),))
    with ExitStack() as stack:
        first = stack.enter_context(remember(upstream, url, profile, clock=clock))
        second = stack.enter_context(remember(upstream, url, profile, clock=clock))
        here, there = operator_of(first), operator_of(second)
        block = f"m/{speak(first, 'Hello.').uid}/b/human"
        here.twin(block, {"value": "Cat: Miso.", "version": 1})
        assert there.twin(block)["block"]["value"] == "Cat: Miso."
        # An edit of what was seen before is refused, and an undo of the other's edit is not.
        assert there.post(block, value="Cat: Misu.", version=1).status == 409
        assert there.post(f"{block}/undo", version=2).status == 303
        assert here.twin(block)["block"]["value"] == ""
        # A session is one gateway's; a key is known at both, and goes at both.
        assert here.get("people").status == 200
        there.cookie, own = here.cookie, there.cookie
        assert there.get("people").headers["location"] == "login?next=people"
        there.cookie = own
        newest = max(each["id"] for each in here.twin("keys")["items"])  # the second operator's
        here.twin(f"keys/{newest}/revoke", {})
        becomes(lambda: there.get("people").status == 303)
        assert here.get("people").status == 200
