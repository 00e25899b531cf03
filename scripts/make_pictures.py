"""Makes the pictures of the page: `.venv/bin/python -m scripts.make_pictures`. It needs Chromium.

A gateway of its own is filled with a few conversations, and the system's Chromium looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from playwright.sync_api import ViewportSize, sync_playwright

from gateway.settings import BlockSettings, ProfileSettings
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.page.browser import find_chromium
from tests.gateway.page.memories import learn, speak
from tests.gateway.page.operator import Operator, operator_of
from tests.gateway.page.person import person_of
from tests.gateway.sdk import World, remember

PICTURES: Final = Path(__file__).parent.parent / "docs/pictures"
SCREEN: Final[ViewportSize] = {"width": 1120, "height": 860}
PHONE: Final[ViewportSize] = {"width": 420, "height": 860}
ABOUT_ME: Final = "page-about-me"
SCALE: Final = 1.25  # of pixels, so that a picture is sharp where it is shown smaller
PROFILE: Final = ProfileSettings(
    "default", blocks=(BlockSettings("human", "What is known of the person.", limit=5_000),)
)
FACTS: Final = (
    "Alice has a cat called Miso, who hates thunderstorms.",
    "Alice's sister looks after the cat while she is away.",
    "Alice's train to Lyon leaves on 4 May at nine.",
)


def main() -> None:
    with (
        StrictUpstream() as upstream,
        TemporaryDirectory() as folder,
        remember(upstream, Path(folder), PROFILE) as world,
    ):
        save(*fill(world))


def fill(world: World) -> tuple[Operator, Mapping[str, str]]:
    """Fills a gateway. Returns an operator, and the path below /ui/ of each picture."""
    world.upstream.queue(say("Hello Bob! What would you like to cook?"))
    speak(world, "Hello, I am Bob. I would like to cook something without onions.", user="bob")
    world.clock.sleep(7_200)
    world.upstream.queue(
        say("Have a good trip! Shall I remind you to pack?"),
        say("That is kind of her. I hope there is no thunder."),
    )
    alice = speak(
        world,
        "My train to Lyon leaves on 4 May at nine, and I have not packed yet.",
        "Miso, my cat, stays with my sister until I am back. She hates thunderstorms.",
        talk="conv-19",
    )
    learn(world, alice, *FACTS, block="Name: Alice.\nCat: Miso, who hates thunderstorms.")
    world.clock.sleep(3_600)
    world.upstream.queue(say("At nine, on 4 May. Your sister has Miso until you are back."))
    speak(world, "When does my train to Lyon leave, and who has the cat then?", talk="conv-20")
    world.clock.sleep(120)
    operator = operator_of(world)
    request = operator.twin("requests")["items"][0]["id"]
    person = person_of(world)
    return operator, {
        "page-memory": f"m/{alice.uid}",
        "page-request": f"r/{request}",
        ABOUT_ME: person.path,
    }


def save(operator: Operator, paths: Mapping[str, str]) -> None:
    """Saves a picture of each path."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        context = chromium.new_context(viewport=SCREEN, device_scale_factor=SCALE, color_scheme="light")
        name, _, value = operator.cookie.partition("=")
        context.add_cookies([{"name": name, "value": value, "url": f"http://{operator.host}/ui"}])
        page = context.new_page()
        for picture, path in paths.items():
            page.set_viewport_size(PHONE if picture == ABOUT_ME else SCREEN)
            page.goto(f"http://{operator.host}/ui/{path}")
            file = PICTURES / f"{picture}.png"
            page.screenshot(path=file, full_page=False)
            print(file)
        chromium.close()


if __name__ == "__main__":
    main()
