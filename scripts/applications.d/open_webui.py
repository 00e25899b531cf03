# Open WebUI: pip open-webui playwright
# note: in headless Chromium, with regenerate, edit, a temporary chat, titles, tags, follow-ups and a second user
import itertools
import json
import os
import socket
import subprocess
import time
import urllib.request
from os import environ as scene

from playwright.sync_api import sync_playwright

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = str(probe.getsockname()[1])
HERE = f"http://127.0.0.1:{port}"
settings = {
    "DATA_DIR": os.getcwd(),
    "OPENAI_API_BASE_URL": scene["URL"],
    "OPENAI_API_KEY": scene["KEY"],
    "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
    "BYPASS_MODEL_ACCESS_CONTROL": "true",
    "ENABLE_OLLAMA_API": "false",
    "OFFLINE_MODE": "true",
    "RAG_EMBEDDING_ENGINE": "openai",
    "AUDIO_STT_ENGINE": "openai",
    "WEBUI_SECRET_KEY": "open",
}
command = ["open-webui", "serve", "--host", "127.0.0.1", "--port", port]
subprocess.Popen(command, env={**scene, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
FLAGS = (
    "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
)


def api(path, body=None, token=""):
    data = None if body is None else json.dumps(body).encode()
    head = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    return json.load(urllib.request.urlopen(urllib.request.Request(HERE + path, data, head), timeout=30))


def wait_for_server():
    for _ in range(600):
        try:
            return api("/api/version")["version"]
        except OSError:
            time.sleep(0.2)
    raise SystemExit("Open WebUI did not start")


class Person:
    def __init__(self, browser, signed_in):
        self.page = browser.new_context().new_page()
        self.page.add_init_script(f"localStorage.setItem('token', {signed_in['token']!r})")
        seen = {"ui": {"version": version, "showChangelog": False}}
        api("/api/v1/users/user/settings/update", seen, signed_in["token"])

    def begin(self, path="/"):
        self.page.goto(HERE + path)
        self.page.wait_for_selector("#chat-input")

    def settled(self):
        """Waits until no request of the page has begun or ended for a while: titles come after the reply."""
        self.page.wait_for_timeout(4000)
        for number in shots:
            self.page.screenshot(path=f"{number}.png")
            break
        print(self.page.inner_text("body"))

    def say(self, text):
        self.page.click("#chat-input")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        self.settled()

    def press(self, label):
        self.page.locator(f"button[aria-label='{label}']:visible").last.click()


shots = itertools.count(1)
version = wait_for_server()
alice = api(
    "/api/v1/auths/signup", {"name": "Alice", "email": "alice@example.org", "password": "a-long-word-1"}
)
more = {"name": "Bob", "email": "bob@example.org", "password": "a-long-word-2", "role": "user"}
bob = api("/api/v1/auths/add", more, alice["token"])
with sync_playwright() as playwright:
    flags = [f"--{flag}" for flag in FLAGS.split()]
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
    person = Person(browser, alice)
    person.begin()
    person.say(scene["SAY"])
    person.say(scene["MORE"])
    person.press("Regenerate")
    person.page.get_by_text("Try Again").click()
    person.settled()
    person.page.locator(".user-message").last.hover()
    person.page.locator(".user-message").last.locator("button[aria-label='Edit']").click()
    person.page.locator("[id^='message-edit-']").last.fill(scene["EDIT"])
    person.page.screenshot(path="edit.png")
    person.page.get_by_text("Send", exact=True).click()
    person.settled()
    person.begin()
    person.say(scene["ASK"])
    person.begin()
    person.say(scene["TOOL"])
    person.say(scene["STREAM"])
    person.begin("/?temporary-chat=true")
    person.say(scene["HIDE"])
    person.begin()
    person.say(scene["SEEK"])
    other = Person(browser, bob)
    other.begin()
    other.say(scene["OTHER"])
    browser.close()
