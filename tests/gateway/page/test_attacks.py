"""Other pages in an operator's browser, which has a session: on another port of this machine, or under another name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.gateway.page.browser import Browser
from tests.gateway.page.operator import Operator

# Sends what a page of another origin can send, and notes what it can read.
ATTACK = """
<!doctype html><title>wait</title>
<iframe name="frame" src="{target}keys"></iframe>
<form id="form" method="post" action="{target}keys" target="frame"><input name="name" value="stolen"></form>
<form id="plain" method="post" action="{target}keys.json" enctype="text/plain" target="frame">
<input name='{{"name": "stolen", "project": "' value='"}}'></form>
<script>
const read = [];
async function attempt(path, options) {{
  try {{ read.push(await (await fetch("{target}" + path, options)).text()); }} catch {{ }}
}}
async function attack() {{
  await attempt("keys.json", {{credentials: "include"}});
  await attempt("keys.json", {{credentials: "include", mode: "no-cors"}});
  const json = {{method: "POST", credentials: "include", body: '{{"name": "stolen"}}'}};
  await attempt("keys.json", json);
  await attempt("keys.json", {{...json, mode: "no-cors"}});
  await attempt("keys.json", {{...json, headers: {{"content-type": "application/json"}}}});
  document.getElementById("plain").submit();
  document.getElementById("form").submit();
  try {{ read.push(frames[0].document.body.innerText); }} catch {{ }}
  document.title = "read:" + read.join("");
}}
attack();
</script>
"""


@contextmanager
def site(text: str) -> Iterator[int]:
    """Serves a page on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def names_of_keys(operator: Operator) -> list[str]:
    return [each["name"] for each in operator.twin("keys")["items"]]


def test_a_page_on_another_port_neither_changes_nor_reads_anything(
    browser: Browser, operator: Operator
) -> None:
    """Cookies do not know ports: this page is of the same site, and its requests bear the session."""
    target = f"http://{operator.host}/ui/"
    with (
        site(ATTACK.format(target=target)) as port,
        browser.open(operator, "keys", may_complain=True) as page,
    ):
        asked = []
        page.on("response", lambda reply: asked.append((reply.request.method, reply.url, reply.status)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("document.title.startsWith('read:')")
        page.wait_for_load_state("networkidle")
        assert page.title() == "read:"
        posts = {status for method, url, status in asked if method == "POST" and url.startswith(target)}
        assert posts == {403}
        # With the session, or the test would show nothing.
        assert ("GET", f"{target}keys", 200) in asked
        page.goto(f"{target}keys")
        assert page.get_by_role("table", name="Keys").is_visible()
    assert names_of_keys(operator) == ["operator"]


def test_a_name_that_leads_to_this_machine_opens_nothing(browser: Browser, operator: Operator) -> None:
    """DNS rebinding: a page's own name resolves to this machine, so that the browser takes the gateway for its host."""
    port = operator.world.gateway.port
    with browser.open(operator, "keys", may_complain=True) as page:
        for path in ("", "login", "keys.json"):
            reply = page.goto(f"http://rebound.example:{port}/ui/{path}")
            assert reply.status == 403
        read = page.evaluate("async () => (await fetch('/ui/keys.json')).status")
        assert read == 403


def test_a_page_of_the_gateway_is_shown_in_no_frame(browser: Browser, operator: Operator) -> None:
    frame = f'<!doctype html><iframe src="http://{operator.host}/ui/login"></iframe>'
    with site(frame) as port, browser.open(operator, "login", may_complain=True) as page:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_load_state("networkidle")
        assert page.frame_locator("iframe").get_by_role("button", name="Sign in").count() == 0


def test_a_code_that_was_seen_is_of_no_use(browser: Browser, operator: Operator) -> None:
    """It is in no history, no log and no referrer, and it was used by the page that it opened."""
    gateway = operator.world.gateway
    path = gateway.call(gateway.app.services.sign_in.make_code({}))["path"]
    code = path.partition("#")[2]
    with browser.open(operator, path.removeprefix("/ui/"), is_signed_in=False) as page:
        page.wait_for_url(f"http://{operator.host}/ui/")
    gateway.flush_log()
    assert code not in str(gateway.lines)
    assert operator.sign_in(code).status == 401
