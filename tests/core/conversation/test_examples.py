"""The examples of docs/conversations.md: the requests of each leave what is drawn below them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.core.conversation.match_query import MemoryUse
from tests.core.conversations import World, assistant, user

PAGE = Path(__file__).parents[3] / "docs/conversations.md"
SECTION = PAGE.read_text("utf-8").partition("\n## Examples\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"\*\*(.+?)\.\*\*\n\n```\n(.+?)\n\n(.+?)\n```", SECTION, re.DOTALL)
LATER, LEAVES = "(a day later)", "(the client leaves)"


def send(world: World, line: str) -> None:
    """Sends the request of a line, or lets time pass."""
    if line == LATER:
        world.wait(86_400)
        return
    parts = re.fullmatch(r"(?:(named|append|off): )?(.+) -> (.+)", line)
    assert parts is not None, line
    how, listed, reply = parts.groups()
    messages = [(assistant if n % 2 else user)(text) for n, text in enumerate(listed.split(" / "))]
    request = world.begin(
        messages,
        "talk" if how in ("named", "append") else None,
        mode=MemoryUse.OFF if how == "off" else MemoryUse.ON,
        append=how == "append",
    )
    if reply == LEAVES:
        world.cancel(request)
    else:
        world.finish(request, reply)


@pytest.mark.parametrize(
    ("requests", "stored"), [each[1:] for each in EXAMPLES], ids=[e[0] for e in EXAMPLES]
)
def test_the_requests_of_an_example_leave_what_it_draws(requests: str, stored: str) -> None:
    world = World()
    for line in requests.splitlines():
        send(world, line)
    assert world.tree() == stored


def test_the_page_has_examples() -> None:
    assert SECTION.count("```") == 2 * len(EXAMPLES) >= 20
