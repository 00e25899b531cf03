"""Nobody is let in without signing in: codes, keys of operators, sessions, and what ends them."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.page.sessions import MAX_FAILURES
from gateway.settings import UiSettings
from storage.operator_records import AuditEntry
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import learn, speak
from tests.gateway.page.operator import Operator, operate, operator_of
from tests.gateway.process import command, serving
from tests.rows import each_row
from tests.server import serve, settings_for

ATTRIBUTES = "HttpOnly; SameSite=Strict; Path=/ui"
SETTINGS = '[database]\npath = "m.db"\n'


def make_code(operator: Operator) -> str:
    gateway = operator.world.gateway
    path: str = gateway.call(gateway.app.services.sign_in.make_code({}))["path"]
    return path.removeprefix("/ui/login#")


def audit(operator: Operator) -> list[AuditEntry]:
    world = operator.world
    return world.gateway.call(world.store.audit.list_page(before=1 << 62))


def test_without_a_session_a_page_leads_to_the_sign_in_and_all_else_is_refused(operator: Operator) -> None:
    page = operator.ask("GET", "keys?limit=5")
    assert (page.status, page.headers["location"]) == (303, "login?next=keys%3Flimit%3D5")
    deep = operator.ask("GET", "no/such/page")
    assert (deep.status, deep.headers["location"]) == (303, "../../login?next=no%2Fsuch%2Fpage")
    for method, path in (("GET", "keys.json"), ("DELETE", "keys"), ("HEAD", "keys"), ("OPTIONS", "keys")):
        with operator.world.gateway.connect() as client:
            client.request(method, f"/ui/{path}", None, {"host": operator.host})
            head = client.read_head()
            assert (head.status, head.headers["www-authenticate"]) == (401, "Bearer"), (method, path)
    assert operator.ask("POST", "keys.json", b"{}").status == 401
    assert operator.ask("GET", "login").status == 200


def test_the_sign_in_says_that_a_session_has_ended(operator: Operator) -> None:
    """Behind a proxy that sends each request to another gateway, a right key led to the sign-in again."""
    name = operator.cookie.partition("=")[0]
    for cookie, is_said in ((f"{name}=of-another-gateway", True), (operator.cookie, False), ("", False)):
        reply = operator.ask("GET", "login", None, {"cookie": cookie})
        assert (reply.status, b"Your session has ended." in reply.body) == (200, is_said), cookie


def test_the_page_itself_is_one_slash_further(operator: Operator) -> None:
    reply = operator.world.gateway.ask("GET", "/ui", None, {"host": operator.host})
    assert (reply.status, reply.headers["location"]) == (307, "ui/")
    # What only begins alike is no part of it.
    assert operator.world.gateway.ask("GET", "/uix").json["error"]["code"] == "unknown_url"


# -- keys


def test_a_key_of_an_operator_opens_the_page_and_managing_alone(operator: Operator) -> None:
    assert operator.get("keys").status == 200
    assert operator.twin("keys")["items"][0]["kind"] == "operator"
    ask = operator.world.gateway.ask
    for name in ("authorization", "x-api-key", "x-mnemogate-key"):
        value = f"Bearer {operator.key}" if name == "authorization" else operator.key
        refused = ask("GET", "/v1/models", None, {name: value})
        assert (refused.status, refused.error["message"]) == (403, "This key opens only /ui and /v1/manage.")
        assert ask("GET", "/metrics", None, {name: value}).status == 403
    # It is no key that callers of the API would need now.
    assert ask("GET", "/v1/models").status == 200
    world = operator.world
    _, key = world.gateway.call(world.store.keys.create("default", "app"))
    assert ask("GET", "/v1/models").status == 401
    assert ask("GET", "/v1/models", None, {"authorization": f"Bearer {key}"}).status == 200
    assert ask("GET", "/v1/models", None, {"authorization": f"Bearer {operator.key}"}).status == 403


def test_other_keys_do_not_open_the_page(operator: Operator) -> None:
    keys, call = operator.world.store.keys, operator.world.gateway.call
    for opens in (None, "metrics"):
        _, key = call(keys.create("default", "app", None, opens))
        assert operator.sign_in(key).status == 401
        assert Operator(operator.world, key).program("GET", "keys.json").status == 401
    assert operator.sign_in("mg-" + "x" * 43).status == 401


def test_a_program_needs_no_session_and_gets_none(operator: Operator) -> None:
    reply = operator.program("GET", "overview.json")
    assert reply.status == 200
    assert "set-cookie" not in reply.headers
    made = operator.twin("keys", {"name": "phone"})
    assert made["secret"].startswith("mg-")
    # A key opens twins alone: pages are for browsers, which send what they were given to any page that asks them to.
    page = operator.ask("GET", "keys", None, {"authorization": f"Bearer {operator.key}"})
    assert page.status == 303


def test_an_operator_who_may_only_read_changes_nothing(operator: Operator) -> None:
    reader = operator_of(operator.world, is_read=True)
    assert reader.get("").status == 200
    assert reader.post("keys", name="mine").status == 403
    assert reader.program("POST", "keys.json", {"name": "mine"}).status == 403
    assert [each["name"] for each in operator.twin("keys")["items"]] == ["operator-read", "operator"]


def test_keys_are_for_operators_of_all_projects_who_may_change_them(operator: Operator) -> None:
    for other in (operator_of(operator.world, "shop"), operator_of(operator.world, is_read=True)):
        assert other.get("keys").status == 403
        assert b'href="keys"' not in other.get("").body
        assert other.program("GET", "keys.json").status == 403


# -- codes


def test_a_code_works_once(operator: Operator) -> None:
    code = make_code(operator)
    assert re.fullmatch("[0-9a-f]{32}", code)
    assert operator.sign_in(code).status == 303
    assert operator.get("keys").status == 200
    used = operator.sign_in(code)
    assert used.status == 401
    assert "This sign-in code has expired or was used" in used.body.decode()
    assert "neither a sign-in code nor an operator key" in operator.sign_in("mg-" + code).body.decode()
    assert Operator(operator.world, make_code(operator)).program("GET", "keys.json").status == 401


def test_a_sign_in_code_has_one_name_on_every_screen(operator: Operator) -> None:
    """The field asked for a "code", and the audit had "a sign-in code": were they the same?"""
    login = operator.get("login").body.decode()
    assert ">Sign-in code or operator key</label>" in login
    assert "an address that ends with a sign-in code" in login
    assert operator.sign_in(make_code(operator)).status == 303
    assert "signed in with a sign-in code" in operator.get("keys").body.decode()


def test_a_code_that_several_send_at_once_opens_one_session(operator: Operator) -> None:
    code = make_code(operator)
    with ThreadPoolExecutor(8) as threads:
        statuses = [*threads.map(lambda _: Operator(operator.world, "").sign_in(code).status, range(8))]
    assert sorted(statuses) == [303, *[401] * 7]


def test_a_code_lives_for_a_minute(operator: Operator) -> None:
    early, late = make_code(operator), make_code(operator)
    operator.world.clock.sleep(59)
    assert operator.sign_in(early).status == 303
    operator.world.clock.sleep(1)
    assert operator.sign_in(late).status == 401


@pytest.mark.sqlite
def test_the_command_prints_an_address_that_signs_in(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as gateway:
        shown = command("ui", "--print", where=tmp_path)
        (line,) = shown.stdout.splitlines()
        found = re.fullmatch(rf"http://127\.0\.0\.1:{gateway.port}/ui/login#([0-9a-f]+)", line)
        assert found, line
        headers = {"content-type": "application/x-www-form-urlencoded"}
        reply = gateway.ask("POST", "/ui/login", f"key={found[1]}".encode(), headers)
        assert (reply.status, reply.headers["location"]) == (303, "./")
    assert "with a sign-in code" in " ".join(command("ui", "--help", where=tmp_path).stdout.split())
    gone = command("ui", "--print", where=tmp_path)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "no gateway" in gone.stderr


@pytest.mark.sqlite
def test_the_command_line_makes_keys_of_operators(tmp_path: Path) -> None:
    made = command("keys", "create", "--operator", "--name", "anna", where=tmp_path)
    assert made.stdout.startswith("mg-")
    assert "for all projects" in made.stderr
    assert "first key" not in made.stderr
    arguments = ("--operator", "--read", "--project", "shop", "--name", "ben")
    assert "for project 'shop'" in command("keys", "create", *arguments, where=tmp_path).stderr
    listed = command("keys", "list", where=tmp_path).stdout
    assert "(all)" in listed
    assert "operator-read only" in listed
    for wrong in (("--read",), ("--operator", "--metrics"), ("--operator", "--memory", "off")):
        assert command("keys", "create", *wrong, where=tmp_path).returncode == 1, wrong


# -- failures


def test_failures_are_slowed_down_and_lock_no_visitor_out(operator: Operator) -> None:
    for _ in range(MAX_FAILURES):
        assert operator.sign_in("wrong").status == 401
    late = operator.sign_in("wrong")
    assert late.status == 429
    assert 0 < int(late.headers["retry-after"]) <= 60
    assert b'role="alert"' in late.body
    assert operator.sign_in().status == 303
    operator.world.clock.sleep(61)
    assert operator.sign_in("wrong").status == 401
    failed = [each for each in audit(operator) if each.action == "login_failed"]
    # A flood of failures fills no table.
    assert len(failed) == MAX_FAILURES + 1


def test_a_failure_shows_the_form_again(operator: Operator) -> None:
    reply = operator.send_form("login", {"key": "wrong", "next": "keys?limit=5"})
    assert reply.status == 401
    text = reply.body.decode()
    assert 'role="alert"' in text
    assert 'value="keys?limit=5"' in text
    assert "wrong" not in text


# -- where a sign-in leads to


@each_row(
    ("wanted", "led"),
    [
        ("keys", "keys"),
        ("keys?limit=5", "keys?limit=5"),
        ("m/abc/b/a~2Eb", "m/abc/b/a~2Eb"),
        ("", "./"),
        ("//evil.example/", "./"),
        ("/v1/models", "./"),
        ("https://evil.example/", "./"),
        ("javascript:alert(1)", "./"),
        ("\\\\evil.example", "./"),
        ("../v1/models", "./"),
        ("m/../../v1/models", "./"),
        ("m/%2e%2e/%2E%2E/v1/models", "./"),
        ("./keys", "./"),
        ("keys\r\nset-cookie: a=b", "./"),
        ("keys#top", "./"),
        ("k" * 5000, "./"),
    ],
)
def test_a_sign_in_leads_to_a_page_of_the_gateway_alone(operator: Operator, wanted: str, led: str) -> None:
    reply = operator.sign_in(to=wanted)
    assert (reply.status, reply.headers["location"]) == (303, led)


# -- sessions


def test_a_session_is_a_cookie_that_no_script_and_no_other_site_gets(operator: Operator) -> None:
    cookie = operator.sign_in().headers["set-cookie"]
    found = re.fullmatch(rf"mg_ui_[0-9a-f]{{8}}=([\w-]{{43}}); {ATTRIBUTES}", cookie)
    assert found, cookie
    again = operator.sign_in().headers["set-cookie"]
    assert again != cookie
    assert again.partition("=")[0] == cookie.partition("=")[0]


@pytest.mark.sqlite
def test_the_cookie_is_named_after_the_database(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Wherever its file is: a browser sends cookies to every port of a host."""

    def name_in(folder: Path) -> str:
        with operate(upstream, folder) as operator:
            return operator.cookie.partition("=")[0]

    for folder in ("first", "other"):
        (tmp_path / folder).mkdir()
    first, other = name_in(tmp_path / "first"), name_in(tmp_path / "other")
    assert first != other
    (tmp_path / "first").rename(tmp_path / "moved")
    assert name_in(tmp_path / "moved") == first


def test_behind_tls_the_cookie_is_never_sent_without_it(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream, ui=UiSettings(https=True))) as gateway:
        _, key = gateway.call(gateway.app.services.store.keys.create("", "anna", None, "operator"))
        headers = {"content-type": "application/x-www-form-urlencoded"}
        cookie = gateway.ask("POST", "/ui/login", f"key={key}".encode(), headers).headers["set-cookie"]
        assert re.fullmatch(rf"__Secure-mg_ui_[0-9a-f]{{8}}=[\w-]+; {ATTRIBUTES}; Secure", cookie)
        session = cookie.partition(";")[0]
        assert gateway.ask("GET", "/ui/keys", None, {"cookie": session}).status == 200
        # One that a page without TLS could have set is none.
        bare = session.removeprefix("__Secure-")
        assert gateway.ask("GET", "/ui/keys", None, {"cookie": bare}).status == 303


def test_neither_a_session_nor_a_code_lives_longer_when_the_clock_is_put_back(operator: Operator) -> None:
    code = make_code(operator)
    operator.world.clock.now -= 86_400
    assert operator.get("keys").status == 303
    assert operator.sign_in(code).status == 401
    assert operator.sign_in().status == 303
    assert operator.get("keys").status == 200


def test_a_session_ends_by_itself(operator: Operator) -> None:
    """After 30 minutes without a request, and after 12 hours with them."""
    operator.world.clock.sleep(1799)
    assert operator.get("keys").status == 200
    operator.world.clock.sleep(1799)
    assert operator.get("keys").status == 200
    operator.world.clock.sleep(1801)
    assert operator.get("keys").status == 303
    operator.sign_in()
    for _ in range(30):
        operator.world.clock.sleep(1439)
        assert operator.get("keys").status == 200
    operator.world.clock.sleep(31)
    assert operator.get("keys").status == 303


def test_a_session_ends_with_its_key(operator: Operator) -> None:
    code = Operator(operator.world, "")
    code.sign_in(make_code(operator))
    other = operator_of(operator.world)
    operator.world.gateway.call(operator.world.store.keys.revoke("2"))
    assert other.get("keys").status == 303
    assert other.program("GET", "keys.json").status == 401
    assert (operator.get("keys").status, code.get("keys").status) == (200, 200)


def test_a_key_that_has_expired_opens_nothing(operator: Operator) -> None:
    """Nor do sessions that it began."""
    world = operator.world
    ends = world.clock() + 60
    _, key = world.gateway.call(world.store.keys.create("", "guest", None, "operator", expires=ends))
    guest = Operator(world, key)
    assert guest.sign_in().status == 303
    assert (guest.get("keys").status, guest.program("GET", "keys.json").status) == (200, 200)
    world.clock.sleep(61)
    assert (guest.get("keys").status, guest.program("GET", "keys.json").status) == (303, 401)
    assert guest.sign_in().status == 401
    assert operator.get("keys").status == 200


def test_signing_out_ends_a_session_everywhere(operator: Operator) -> None:
    cookie = operator.cookie
    assert operator.get("logout").status == 405
    reply = operator.post("logout")
    assert (reply.status, reply.headers["location"]) == (303, "login")
    name = cookie.partition("=")[0]
    assert reply.headers["set-cookie"] == f"{name}=; HttpOnly; Max-Age=0; SameSite=Strict; Path=/ui"
    assert operator.get("keys").status == 303
    operator.sign_in()
    assert operator.send_form("logout", {}, cookie=cookie).status == 401
    assert operator.get("keys").status == 200


def test_what_was_typed_is_not_lost_with_the_session(operator: Operator) -> None:
    operator.world.clock.sleep(1801)
    text = "Cat: Miso.\n<b>She</b> hates thunder."
    headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/m/abc/b/human?from=1"}
    reply = operator.send_form("m/abc/b/human", {"value": text, "version": "7"}, **headers)
    assert reply.status == 401
    page = reply.body.decode()
    (kept,) = re.findall(r"<textarea[^>]* readonly[^>]*>\n(.*?)</textarea>", page, re.DOTALL)
    assert kept == "Cat: Miso.\n&lt;b&gt;She&lt;/b&gt; hates thunder."
    assert 'action="../../../login"' in page
    assert 'name="next" value="m/abc/b/human?from=1"' in page


def test_ticks_of_a_forgetting_are_not_lost_with_the_session(operator: Operator) -> None:
    """The facts that were to stay went with the message, unless one ticked them once more."""
    agent = speak(operator.world, "My train leaves on 4 May.", "Hello.")
    seqs = learn(operator.world, agent, "The train leaves on 4 May.", "Alice takes trains.", "Alice travels.")
    preview = (
        f"m/{agent.uid}/forget?conversation={operator.twin(f'm/{agent.uid}/conversations')['items'][0]['id']}"
    )
    came_from = f"m/{agent.uid}/words?q=train+now"
    operator.world.clock.sleep(1801)
    headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{preview}"}
    fields = {"keep": [str(seq) for seq in seqs[:2]], "came_from": came_from, "confirm": "4"}
    ended = operator.send_form(preview, fields, **headers)
    assert ended.status == 401
    (after,) = re.findall(r'name="next" value="([^"]*)"', ended.body.decode())
    shown = operator.get(operator.sign_in(to=unescape(after)).headers["location"]).body.decode()
    assert re.findall(r'name="keep" value="(\d+)" form="confirm-form" checked', shown) == [
        str(seq) for seq in reversed(seqs[:2])
    ]
    assert f'name="came_from" value="{came_from}"' in shown
    assert "&amp;keep=" not in shown.partition('id="confirm-form"')[0].rpartition("<form")[2]
    # In an address the ticks only show what was ticked: nothing is forgotten by them.
    refused = operator.post(unescape(after), confirm="4")
    assert (refused.status, b"named in the form" in refused.body) == (400, True)
    # Whoever confirms sees first what goes now.
    assert (
        '<input id="confirm" name="confirm" type="text" inputmode="numeric" required autocomplete="off"'
        ' aria-describedby="confirm-hint">' in shown
    )


def test_the_tick_of_a_new_fact_is_not_lost_with_the_session(operator: Operator) -> None:
    """The text was copied and entered again, and the fact was told only when a question fitted."""
    memory = f"m/{speak(operator.world, 'Hello.').uid}"
    fields = {"text": "Never eats nuts.", "always": "true", "back": f"{memory}/words?q=nuts"}
    # The form also stands on the page after a forgetting, of which the address shows nothing later.
    for screen in (memory, f"{memory}/facts?all=1", f"{memory}/forget?message=1"):
        operator.world.clock.sleep(1801)
        headers = {"cookie": operator.cookie, "referer": f"http://{operator.host}/ui/{screen}"}
        ended = operator.send_form(f"{memory}/facts", fields, **headers)
        assert ended.status == 401
        (after,) = re.findall(r'name="next" value="([^"]*)"', ended.body.decode())
        shown = operator.get(operator.sign_in(to=unescape(after)).headers["location"]).body.decode()
        (form,) = re.findall(r'<form[^>]*id="add">.*?</form>', shown, re.DOTALL)
        assert re.search(r'name="always" value="true"[^>]* checked>', form)
        assert f'name="back" value="{fields["back"]}"' in form
        assert re.search(r'<textarea[^>]* autofocus aria-describedby="new-fact-hint">\n</textarea>', form)
        assert 'role="alert"' not in shown
    assert operator.twin(f"{memory}/facts")["items"] == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("m/abc/b/human", {"value": "Cat: Miso.", "version": "7"}),
        ("m/abc/facts", {"text": "Cat: Miso."}),
        ("m/abc/f/1/correct", {"text": "Cat: Miso."}),
        ("keys", {"name": "Cat: Miso.", "project": "", "kind": "app", "memory": ""}),
    ],
)
def test_a_key_that_is_mistyped_costs_no_text(operator: Operator, path: str, fields: dict[str, str]) -> None:
    operator.world.clock.sleep(1801)
    ended = operator.post(path, **fields)
    wrong = operator.send_form("login", {"key": "mg-wrong", "typed": "Cat: Miso."})
    for reply in (ended, wrong):
        assert reply.status == 401
        assert re.search(
            r'<textarea id="typed" name="typed" form="sign-in" readonly[^>]*>\nCat: Miso\.</textarea>',
            reply.body.decode(),
        )
    assert operator.send_form("login", {"key": operator.key, "typed": "Cat: Miso."}).status == 303


def test_the_audit_has_who_came_and_went(operator: Operator) -> None:
    operator.sign_in("wrong")
    operator.post("logout")
    Operator(operator.world, "").sign_in(make_code(operator))
    made = [(each.actor, each.action, each.memory, each.what) for each in reversed(audit(operator))]
    assert made == [
        ("operator", "login", None, ""),
        ("unknown", "login_failed", None, ""),
        ("operator", "logout", None, ""),
        ("code", "login", None, ""),
    ]


def test_the_settings_turn_the_page_off(upstream: StrictUpstream) -> None:
    settings = settings_for(upstream)
    with serve(replace(settings, ui=UiSettings(enabled=False))) as gateway:
        _, key = gateway.call(gateway.app.services.store.keys.create("default", "app"))
        for path in ("/ui", "/ui/", "/ui/login", "/ui/keys.json", "/ui/static/page.css"):
            assert gateway.ask("GET", path).status == 404
            assert gateway.ask("GET", path, None, {"authorization": f"Bearer {key}"}).status == 404
        assert gateway.ask("POST", "/ui/login", b"key=x").status == 404


@pytest.mark.both
def test_operators_sign_in_over_either_database(upstream: StrictUpstream, tmp_path: Path) -> None:
    with operate(upstream, tmp_path) as operator:
        assert operator.get("keys").status == 200
        assert operator.twin("keys")["items"][0]["project"] is None
