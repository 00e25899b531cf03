"""The door of the page: hosts, origins, content types, headers, bounds, and what the log has of it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import Any
from urllib.parse import urlencode

import pytest

from gateway.page.page_request import MAX_BODY_BYTES
from gateway.page.rendering import Renderer
from gateway.settings import UiSettings
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import speak
from tests.gateway.page.operator import FORM, Operator
from tests.gateway.page.person import person_of
from tests.patience import becomes
from tests.rows import each_row
from tests.server import RawReply, serve, settings_for

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
OTHER = "http://evil.example"


def check_headers(reply: RawReply, *, may_be_cached: bool = False) -> None:
    expected = HEADERS | ({"cache-control": "max-age=31536000, immutable"} if may_be_cached else {})
    assert {name: reply.headers.get(name) for name in expected} == expected
    timing = reply.headers["server-timing"]
    assert timing.startswith("total;dur=")
    assert float(timing.removeprefix("total;dur=")) >= 0
    assert not [name for name in reply.headers if name.startswith("access-control-")]


def asset(operator: Operator, ending: str) -> str:
    """Returns the path of a static file below /ui/, as pages link it."""
    text = operator.ask("GET", "login").body.decode()
    return next(part for part in text.split('"') if part.startswith("static/") and part.endswith(ending))


# -- the event loop


def test_a_page_is_rendered_outside_the_event_loop(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    render = Renderer.render

    def watched(self: Renderer, *given: Any, **context: Any) -> str:
        threads.append(threading.current_thread())
        return render(self, *given, **context)

    monkeypatch.setattr(Renderer, "render", watched)
    assert operator.ask("GET", "requests", headers={"cookie": operator.cookie}).status == 200

    async def loop_thread() -> threading.Thread:
        return threading.current_thread()

    assert len(threads) == 1
    assert operator.world.gateway.call(loop_thread()) is not threads[0]


def test_the_first_page_has_all_templates_loaded(operator: Operator) -> None:
    """The first look at a conversation took 120 ms, of which its templates were compiled for 110."""
    assert operator.ask("GET", "login").status == 200
    renderer = operator.world.gateway.app._page._reply_maker.renderer
    cache = renderer._environment.cache

    def list_missing() -> set[str]:
        return {*renderer.list_templates()} - {name for _, name in cache}

    becomes(lambda: not list_missing(), explain=list_missing)


# -- headers


def test_each_answer_has_the_same_headers(operator: Operator) -> None:
    cookie = {"cookie": operator.cookie}
    form = {**cookie, "content-type": FORM, "origin": f"http://{operator.host}"}
    for status, method, path, body, headers in (
        (200, "GET", "", None, cookie),
        (200, "GET", "overview.json", None, cookie),
        (200, "GET", "login", None, {}),
        (303, "GET", "keys", None, {}),
        (303, "POST", "theme", b"theme=dark", form),
        (400, "GET", "keys?colour=red", None, cookie),
        (400, "GET", "keys.json?colour=red", None, cookie),
        (401, "GET", "keys.json", None, {}),
        (401, "POST", "login", b"key=wrong", form),
        (403, "GET", "keys", None, {"host": "evil.example"}),
        (404, "GET", "no/such/page", None, cookie),
        (404, "GET", "no/such/page.json", None, cookie),
        (404, "GET", "static/none.css", None, {}),
        (405, "DELETE", "keys", None, form),
        (413, "POST", "keys", b"name=" + b"a" * MAX_BODY_BYTES, form),
        (415, "POST", "keys", b"{}", {**form, "content-type": "application/json"}),
    ):
        reply = operator.ask(method, path, body, headers)
        assert reply.status == status, (method, path, reply.body)
        check_headers(reply)


def test_the_redirect_to_the_page_has_the_same_headers(operator: Operator) -> None:
    check_headers(operator.world.gateway.ask("GET", "/ui", None, {"host": operator.host}))


def test_the_page_of_a_fault_has_the_same_headers(
    operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    """And shows nothing of what went wrong."""
    app = operator.world.gateway.app

    async def fail(_: object) -> None:
        raise RuntimeError("a secret")

    app.services.sign_in.is_valid = fail  # type: ignore[method-assign]
    for path in ("keys", "keys.json"):
        reply = operator.get(path)
        assert reply.status == 500
        assert b"a secret" not in reply.body
        check_headers(reply)
    assert "RuntimeError" in caplog.text


def test_static_files_are_open_and_may_be_cached_for_ever(operator: Operator) -> None:
    for ending, kind in ((".css", "text/css"), (".js", "text/javascript"), (".svg", "image/svg+xml")):
        reply = operator.ask("GET", asset(operator, ending))
        assert reply.status == 200
        assert reply.headers["content-type"].startswith(kind)
        check_headers(reply, may_be_cached=True)
    assert operator.ask("GET", "static/../page_app.py").status == 404
    assert operator.ask("GET", "static/page.css").status == 404


# -- hosts


@pytest.mark.parametrize("is_keyed", [False, True])
def test_only_known_host_names_are_served(operator: Operator, is_keyed: bool) -> None:
    """Whether or not there are keys, also static files and the sign-in."""
    if is_keyed:
        operator.world.gateway.call(operator.world.store.keys.create("default", "app"))
    port = operator.world.gateway.port
    for path in ("login", "keys", "keys.json", asset(operator, ".css")):
        unknown = ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.7", "")
        # What some parsers take for this machine, or for a list.
        unknown += ("127.0.0.1@evil.example", "a@127.0.0.1", f"127.0.0.1:{port}.evil.example", "127.1")
        unknown += (
            "2130706433",
            "0x7f000001",
            f"0.0.0.0:{port}",
            "localhost,evil.example",
            "localhost:80:80",
        )
        for host in unknown:
            reply = operator.ask("GET", path, None, {"host": host, "cookie": operator.cookie})
            assert reply.status == 403, (path, host)
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "[::1]", "a.localhost", "LOCALHOST"):
            reply = operator.ask("GET", path, None, {"host": host, "cookie": operator.cookie})
            assert reply.status == 200, (path, host)


def test_the_settings_name_further_hosts(upstream: StrictUpstream) -> None:
    settings = settings_for(upstream, server={"allowed_hosts": ("memory.example",)})
    with serve(settings) as gateway:
        assert gateway.ask("GET", "/ui/login", None, {"host": "memory.example"}).status == 200
        assert gateway.ask("GET", "/ui/login", None, {"host": "other.example"}).status == 403


def test_a_request_with_two_hosts_is_refused(operator: Operator) -> None:
    with operator.world.gateway.connect() as client:
        client.send(f"GET /ui/login HTTP/1.1\r\nhost: {operator.host}\r\nhost: evil.example\r\n\r\n".encode())
        assert client.read_reply().status in (400, 403)


# -- origins


@each_row(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"origin": "own"}, 303),
        ({"sec-fetch-site": "same-origin", "origin": "own"}, 303),
        # Another port of this machine is another page, and the cookie goes there all the same.
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": OTHER}, 403),
        ({"origin": ""}, 403),
        ({"origin": "user@own"}, 403),
        ({"origin": "own/"}, 403),
        ({"origin": f"own {OTHER}"}, 403),
        ({"sec-fetch-site": "same-origin, cross-site"}, 403),
        # That it is a page of this gateway is said by these two alone.
        ({"referer": "own/"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": OTHER}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "own"}, 403),
        ({}, 403),
    ],
)
def test_a_change_comes_from_a_page_of_the_gateway(
    operator: Operator, headers: dict[str, str], status: int
) -> None:
    spelled = {"user@own": f"http://user@{operator.host}"}
    given = {
        name: spelled.get(value, value.replace("own", f"http://{operator.host}"))
        for name, value in headers.items()
    }
    operator.sign_in()
    cookie = {"cookie": operator.cookie}
    form = operator.ask("POST", "logout", b"", {**cookie, "content-type": FORM, **given})
    assert form.status == status
    if status == 303:
        operator.sign_in()
        cookie = {"cookie": operator.cookie}
    kind = {"content-type": "application/json"}
    twin = operator.ask("POST", "logout.json", b"{}", {**cookie, **kind, **given})
    assert twin.status == {303: 200}.get(status, status)


def test_with_tls_a_page_without_it_is_another_origin(upstream: StrictUpstream) -> None:
    """Whoever is on the network can make one of the same name. Its form names its origin, and not whence it is sent."""
    with serve(settings_for(upstream, ui=UiSettings(https=True))) as gateway:
        _, key = gateway.call(gateway.app.services.store.keys.create("", "anna", None, "operator"))
        host = f"127.0.0.1:{gateway.port}"
        form = {"content-type": FORM, "host": host}
        reply = gateway.ask("POST", "/ui/login", f"key={key}".encode(), {**form, "origin": f"https://{host}"})
        form["cookie"] = reply.headers["set-cookie"].partition(";")[0]
        for origin, status in ((f"http://{host}", 403), (f"https://{host}", 303)):
            assert gateway.ask("POST", "/ui/logout", b"", {**form, "origin": origin}).status == status


def test_another_site_is_refused_before_it_learns_who_is_signed_in(operator: Operator) -> None:
    for path in ("keys", "keys.json", "login", "theme", "logout"):
        for headers in ({"origin": OTHER}, {"sec-fetch-site": "cross-site"}):
            reply = operator.ask("POST", path, b"key=x", {"content-type": FORM, **headers})
            assert reply.status == 403, (path, headers)


def test_a_program_with_a_key_needs_no_origin(operator: Operator) -> None:
    assert operator.program("POST", "keys.json", {"name": "phone"}).status == 200


def test_no_other_origin_may_read_whatever_the_settings_say(upstream: StrictUpstream) -> None:
    settings = settings_for(upstream, server={"cors_origins": (OTHER, "*")})
    with serve(settings) as gateway:
        key = gateway.call(gateway.app.services.store.keys.create("", "anna", None, "operator"))[1]
        asked = {"origin": OTHER, "access-control-request-method": "GET"}
        for method, path, headers in (
            ("OPTIONS", "/ui/keys.json", asked),
            ("OPTIONS", "/ui", asked),
            ("GET", "/ui/keys.json", {"origin": OTHER, "authorization": f"Bearer {key}"}),
            ("GET", "/ui/login", {"origin": OTHER}),
        ):
            check_headers(gateway.ask(method, path, None, headers))


# -- bodies and fields


def test_a_page_takes_forms_and_a_twin_takes_json(operator: Operator) -> None:
    form = {"cookie": operator.cookie, "origin": f"http://{operator.host}"}
    body = urlencode({"name": "phone"}).encode()
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        reply = operator.ask("POST", "keys", body, {**form, "content-type": kind})
        assert reply.status == 415, kind
    assert operator.ask("POST", "keys", body, form).status == 415
    bearer = {"authorization": f"Bearer {operator.key}"}
    for kind in (FORM, "text/plain"):
        reply = operator.ask("POST", "keys.json", b'{"name": "phone"}', {**bearer, "content-type": kind})
        assert reply.status == 415
        assert reply.error["param"] == "content-type"
    assert operator.post("keys", name="phone").status == 200


@each_row(
    ("value", "param"),
    [
        ([], None),
        ("text", None),
        ({}, "name"),
        ({"name": 5}, "name"),
        ({"name": "a", "colour": "red"}, "colour"),
        ({"name": "a", "kind": "king"}, "kind"),
        ({"name": ""}, "name"),
    ],
)
def test_wrong_fields_are_refused_by_name(operator: Operator, value: object, param: str | None) -> None:
    reply = operator.program("POST", "keys.json", value)
    assert reply.status == 400
    assert set(reply.error) == {"message", "code", "param"}
    assert reply.error["param"] == param


def test_a_query_is_checked_as_a_body_is(operator: Operator) -> None:
    for query in ("limit=0", "limit=201", "limit=many", "after=x", "after=", "limit=1&limit=2", "colour=red"):
        assert operator.get(f"keys?{query}").status == 400, query
        assert operator.program("GET", f"keys.json?{query}").status == 400, query
    assert operator.get("keys?limit=200").status == 200


def test_a_form_has_bounded_bytes_and_fields(operator: Operator) -> None:
    body = b"name=" + b"a" * MAX_BODY_BYTES
    headers = {"cookie": operator.cookie, "origin": f"http://{operator.host}", "content-type": FORM}
    assert operator.ask("POST", "keys", body, headers).status == 413
    many = urlencode([(f"n{number}", "") for number in range(501)]).encode()
    assert operator.ask("POST", "keys", many, headers).status == 400
    assert operator.ask("POST", "login", body, {"content-type": FORM}).status == 413


def test_no_get_changes_anything(operator: Operator) -> None:
    for path in ("logout", "theme", "keys/1/revoke", "keys/1/revoke.json"):
        assert operator.get(path).status == 405
    assert operator.get("keys").status == 200


# -- lists


def test_a_list_goes_on_where_the_page_before_ended(operator: Operator) -> None:
    for number in range(4):
        operator.twin("keys", {"name": f"key {number}"})
    first = operator.twin("keys?limit=2")
    second = operator.twin(f"keys?limit=2&after={first['next']}")
    third = operator.twin(f"keys?limit=2&after={second['next']}")
    names = [each["name"] for page in (first, second, third) for each in page["items"]]
    assert names == ["key 3", "key 2", "key 1", "key 0", "operator"]
    assert third["next"] is None
    assert f'href="?limit=2&amp;after={first["next"]}"' in operator.get("keys?limit=2").body.decode()


# -- the log


def test_the_log_has_no_token_query_uid_or_label(operator: Operator) -> None:
    for path, logged in (
        ("", "/ui/"),
        ("keys?limit=5", "/ui/keys"),
        ("keys.json", "/ui/keys"),
        ("keys/1/revoke", "/ui/keys/…"),
        ("login?next=m/secret", "/ui/login"),
        ("secret", "/ui/…"),
        ("secret/secret", "/ui/…/…"),
        ("static/secret.css", "/ui/static/…"),
    ):
        operator.get(path)
        line = operator.world.gateway.last_line()
        assert line["path"] == logged
        assert "secret" not in str(line)


def test_no_error_quotes_the_token_of_a_link(operator: Operator) -> None:
    """The path of a person's page has the token, and people send the texts of errors to others."""
    speak(operator.world, "My cat is Miso.")
    person = person_of(operator.world)
    token = person.path.removeprefix("me/")
    for method, below, body, status in (
        ("DELETE", "", None, 405),
        ("GET", "/pause", None, 405),
        ("GET", "/nowhere", None, 404),
        ("GET", "/f/9", None, 404),
        ("GET", "?none=1", None, 400),
        ("POST", "/pause", b"paused=perhaps", 400),
        ("POST", "/pause", b"a" * (MAX_BODY_BYTES + 1), 413),
    ):
        for twin in ("", ".json"):
            path, mark, query = below.partition("?")
            headers = {
                "origin": f"http://{operator.host}",
                "content-type": "application/json" if twin else FORM,
            }
            reply = person.ask(method, f"{path}{twin}{mark}{query}", body, **headers)
            assert reply.status == status, (method, below, twin)
            # The page's own links begin below the token's page.
            text = re.sub(r'(href|action)="[^"]*"', "", reply.body.decode())
            assert token not in text, (method, below, twin)
            assert token not in str(operator.world.gateway.last_line())


def test_a_request_without_a_descriptor_is_logged_without_its_token(
    upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the page has read its path."""
    monkeypatch.setattr("gateway.web.server.resource.getrlimit", lambda _: (4, 4))  # 0 to 3, which are taken
    with serve(settings_for(upstream)) as gateway:
        assert gateway.ask("GET", "/ui/me/secret").status == 503
        assert gateway.last_line()["path"] == "/ui/…"


def test_an_operator_is_no_project_of_the_log(operator: Operator) -> None:
    """A page is no request of a project: the line is like that of `/health`."""
    operator.get("keys")
    assert operator.world.gateway.last_line()["project"] == "default"


def test_a_gateway_without_visitors_loads_no_templates() -> None:
    code = "import sys, gateway.app; sys.exit('jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_key_of_an_operator_is_shown_once(operator: Operator) -> None:
    reply = operator.post("keys", name="phone", kind="operator-read", project="shop", memory="")
    page = reply.body.decode()
    (secret,) = (
        word for word in page.replace("<", ">").split(">") if word.startswith("mg-") and len(word) > 40
    )
    assert secret not in operator.get("keys").body.decode()
    reader = Operator(operator.world, secret)
    assert reader.sign_in().status == 303
