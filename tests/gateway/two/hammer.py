"""Kills gateways at chance moments while people of all kinds talk at them, and checks that nothing was lost.

`python -m tests.gateway.two.hammer 200` kills 200 times (scripts/torture two). With `--older CHECKOUT` all processes
begin with the version of that checkout, and each that is killed comes back with either version.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway.open_database import open_database
from gateway.settings.load import load_settings
from tests.gateway.forked import ROOT
from tests.gateway.two.exported import check, check_files, export_memory
from tests.gateway.two.people import Agent, Person, Whole, everybody, flat
from tests.gateway.two.world import MODULE, PATIENCE_S, Gateway, Said, World
from tests.postgres import server

# A killed gateway is gone for so long, at most.
GONE_S = 0.5
# Turns of each person that are asked for again at the end, at each gateway.
RECALLED = 4


def _kill_some(world: World, dice: random.Random) -> None:
    """Kills one process, now and then all, and starts them again."""
    killed = [dice.choice(world.processes)] if dice.random() < 0.8 else [*world.processes]
    for each in killed:
        each.kill()
    time.sleep(dice.random() * GONE_S)
    for each in killed:
        each.start()


def _change_versions(older: Path) -> Callable[[World, random.Random], None]:
    """Returns a strike that kills one process, and starts it again with this version or the older one."""

    def strike(world: World, dice: random.Random) -> None:
        killed = dice.choice(world.processes)
        killed.kill()
        time.sleep(dice.random() * GONE_S)
        killed.root = dice.choice((ROOT, older))
        killed.start()

    return strike


def hammer(
    folder: Path,
    rounds: int,
    seed: int,
    *,
    url: str | None = None,
    most_s: float = 2.0,
    say_so: bool = False,
    strike: Callable[[World, random.Random], None] = _kill_some,
    module: str = MODULE,
    root: Path = ROOT,
) -> None:
    """Strikes the gateways of a database so often, at most `most_s` after the last time.

    url: of a PostgreSQL, which has two of them; without it a SQLite file has one. module: what serves. root: the
    checkout that serves at first.
    """
    dice = random.Random(seed)
    with World(folder, gateways=2 if url else 1, url=url, module=module, root=root) as world:
        people = everybody(world, seed)
        over = threading.Event()
        failures: list[BaseException] = []

        def live(person: Person) -> None:
            try:
                person.live(lambda: over.is_set() or bool(failures))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=live, args=(person,), name=person.mark) for person in people]
        for thread in threads:
            thread.start()
        try:
            for number in range(rounds):
                _wait(dice.random() * most_s, failures)
                if failures:
                    break
                strike(world, dice)
                if say_so and not number % 10:
                    print(_count(world, people, number + 1), flush=True)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        assert not world.leaks, world.leaks[0]
        for gateway in world.gateways:
            check_recall(gateway, people, dice)
            for person in people:
                if isinstance(person, Agent):
                    person.check(gateway)
        assert not world.leaks, world.leaks[0]
        rung = [bell for bell, times in Counter(world.webhook.bells).items() if times > 1]
        assert not rung, f"a foreign call was made twice: {rung}"
        if say_so:
            print(_count(world, people, rounds), flush=True)
    asyncio.run(check_all(world, people))
    check_files(world.place, world.forgotten)


def _wait(seconds: float, failures: list[BaseException]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not failures:
        time.sleep(0.02)


def _count(world: World, people: list[Person], rounds: int) -> str:
    everyone = list(flat(people))
    turns = sum(len(person.turns) for person in everyone)
    lost = sum(person.lost for person in people)
    asked = sum(person.asked for person in people)
    return (
        f"{rounds} rounds, {len(everyone)} people, {asked} requests, {lost} of them lost, "
        f"{turns} turns that must be there, {len(world.forgotten)} forgotten, not kept: {dict(world.unkept)}"
    )


def check_recall(gateway: Gateway, people: list[Person], dice: random.Random) -> None:
    """Checks that a gateway recalls what was said, for the user who said it."""
    everyone = list(flat(people))
    for person in dice.sample(everyone, min(len(everyone), 20)):
        stands = [turn for turn in person.turns.values() if turn.must_stand]
        more = {"model": "agent/noter"} if isinstance(person, Whole) and person.is_noting else {"model": "m"}
        for turn in dice.sample(stands, min(len(stands), RECALLED)):
            box = turn.text.split(" ")[3]
            body = {"user": person.user, "messages": [{"role": "user", "content": f"What is kept in {box}?"}]}
            said = _recalled(gateway, {**body, **more})
            assert turn.word in said.text, f"{turn.text!r} was not recalled: {said.text} {said.headers}"


def _recalled(gateway: Gateway, body: dict[str, Any]) -> Said:
    """Asks until memory is there: on a busy machine it may take longer than a reply waits for it."""
    until = time.monotonic() + PATIENCE_S
    while True:
        said = gateway.chat(body, {"x-mnemogate-memory": "read"})
        if said.headers["x-mnemogate-memory"] != "unavailable" or time.monotonic() > until:
            return said


async def check_all(world: World, people: list[Person]) -> None:
    settings = load_settings(
        config=str(world.gateways[0].folder / "mnemogate.toml"),
        flags={} if world.place.url else {("database", "path"): str(world.place.file)},
        environ=world.place.environ,
    )
    store = await open_database(settings)
    try:
        for person in flat(people):
            is_noting = isinstance(person, Whole) and person.is_noting
            if person.turns:
                memory = await export_memory(store, person, "noter" if is_noting else "default")
                check(memory, person, world.forgotten)
    finally:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture two", description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=200)
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--url", help="a PostgreSQL; without it one of its own, made for this")
    parser.add_argument("--older", type=Path, help="a checkout of the version before, which serves, too")
    parser.add_argument("--sqlite", action="store_true", help="one gateway over a SQLite file instead")
    options = parser.parse_args()
    root = (options.older or ROOT).resolve()
    print(f"seed {options.seed}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = options.url
        if url is None and not options.sqlite:
            url, _ = stack.enter_context(server())
        strike = _kill_some if root == ROOT else _change_versions(root)
        hammer(folder, options.kills, options.seed, url=url, say_so=True, strike=strike, root=root)
    print(f"{options.kills} kills: nothing was lost, doubled or shown to others")


if __name__ == "__main__":
    main()
