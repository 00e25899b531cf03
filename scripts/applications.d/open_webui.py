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
ORIGIN = f"http://127.0.0.1:{port}"
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
CHROMIUM_FLAGS = (
    "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
)


def api(path, body=None, token=""):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    return json.load(urllib.request.urlopen(urllib.request.Request(ORIGIN + path, data, headers), timeout=30))


def wait_for_server():
    for _ in range(600):
        try:
            return api("/api/version")["version"]
        except OSError:
            time.sleep(0.2)
    raise SystemExit("Open WebUI did not start")


class Person:
    """A user with a browser."""

    def __init__(self, browser, signed_in):
        self.page = browser.new_context().new_page()
        self.page.add_init_script(f"localStorage.setItem('token', {signed_in['token']!r})")
        user_settings = {"ui": {"version": version, "showChangelog": False}}
        api("/api/v1/users/user/settings/update", user_settings, signed_in["token"])

    def open_chat(self, path="/"):
        self.page.goto(ORIGIN + path)
        self.page.wait_for_selector("#chat-input")

    def wait_for_replies(self):
        """Waits for the reply and the requests after it, such as the one for a title. Prints the text of the page."""
        self.page.wait_for_timeout(4000)
        self.page.screenshot(path=f"{next(shots)}.png")
        print(self.page.inner_text("body"))

    def send(self, text):
        self.page.click("#chat-input")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        self.wait_for_replies()

    def press(self, label):
        self.page.locator(f"button[aria-label='{label}']:visible").last.click()


shots = itertools.count(1)
version = wait_for_server()
alice = api(
    "/api/v1/auths/signup", {"name": "Alice", "email": "alice@example.org", "password": "a-long-word-1"}
)
account = {"name": "Bob", "email": "bob@example.org", "password": "a-long-word-2", "role": "user"}
bob = api("/api/v1/auths/add", account, alice["token"])
with sync_playwright() as playwright:
    flags = [f"--{flag}" for flag in CHROMIUM_FLAGS.split()]
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
    person = Person(browser, alice)
    person.open_chat()
    person.send(scene["SAY"])
    person.send(scene["MORE"])
    person.press("Regenerate")
    person.page.get_by_text("Try Again").click()
    person.wait_for_replies()
    person.page.locator(".user-message").last.hover()
    person.page.locator(".user-message").last.locator("button[aria-label='Edit']").click()
    person.page.locator("[id^='message-edit-']").last.fill(scene["EDIT"])
    person.page.screenshot(path="edit.png")
    person.page.get_by_text("Send", exact=True).click()
    person.wait_for_replies()
    person.open_chat()
    person.send(scene["ASK"])
    person.open_chat()
    person.send(scene["TOOL"])
    person.send(scene["STREAM"])
    person.open_chat("/?temporary-chat=true")
    person.send(scene["HIDE"])
    person.open_chat()
    person.send(scene["SEEK"])
    other = Person(browser, bob)
    other.open_chat()
    other.send(scene["OTHER"])
    browser.close()
