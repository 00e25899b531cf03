"""Nobody is let in without signing in: codes, keys of operators, sessions, and what a session may do."""

from __future__ import annotations

from tests.gateway.page.operator import Operator, operator_of


def test_without_a_session_a_page_leads_to_the_sign_in_and_all_else_is_refused(operator: Operator) -> None:
    page = operator.ask("GET", "keys?limit=5")
    assert (page.status, page.headers["location"]) == (303, "login?next=keys%3Flimit%3D5")
    assert operator.ask("GET", "keys.json").status == 401
    assert operator.ask("DELETE", "keys").status == 401
    assert operator.ask("GET", "login").status == 200


def test_a_key_of_an_operator_opens_the_page_alone(operator: Operator) -> None:
    assert operator.get("keys").status == 200
    assert operator.twin("keys")["items"][0]["kind"] == "operator"
    headers = {"authorization": f"Bearer {operator.key}"}
    assert operator.world.gateway.ask("GET", "/v1/models", None, headers).status == 403
    # It is no key that callers of the API would need now.
    assert operator.world.gateway.ask("GET", "/v1/models").status == 200


def test_an_ordinary_key_does_not_open_the_page(operator: Operator) -> None:
    key = operator.world.gateway.call(operator.world.store.keys.create("default", "app"))[1]
    assert operator.sign_in(key).status == 401
    assert Operator(operator.world, key).program("GET", "keys.json").status == 401


def test_an_operator_of_one_project_or_who_may_only_read_sees_no_keys(operator: Operator) -> None:
    assert operator_of(operator.world, "shop").get("keys").status == 403
    assert operator_of(operator.world, is_read=True).get("keys").status == 403
