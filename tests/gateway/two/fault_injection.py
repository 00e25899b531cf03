"""Kills gateways at random moments while simulated users of all kinds chat, and checks that nothing was lost.

`python -m tests.gateway.two.fault_injection 200` kills 200 times (scripts/torture two). With `--older CHECKOUT` all
processes begin with the version of that checkout, and each that is killed starts again with either version.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gateway.open_database import open_database
from gateway.settings.load import load_settings
from tests.gateway.forked import ROOT
from tests.gateway.two.deployment import (
    MODULE,
    PATIENCE_S,
    RECALL_QUESTION,
    ChatReply,
    Deployment,
    Gateway,
)
from tests.gateway.two.invariants import check_files, check_memory, export_memory
from tests.gateway.two.simulated_users import AgentUser, HistoryUser, SimulatedUser, flatten_users, make_users
from tests.postgres import server

Fault = Callable[[Deployment, random.Random], None]

# The longest time between a kill and the next start of the process.
DOWN_S = 0.5
# How many users, and how many turns of each, are asked for again in the end, at each gateway.
RECALLED_USERS, RECALLED_TURNS = 20, 4


def kill_processes(deployment: Deployment, dice: random.Random) -> None:
    """Kills one process, or with a chance of 0.2 all of them, and starts them again."""
    killed = [dice.choice(deployment.processes)] if dice.random() < 0.8 else [*deployment.processes]
    for process in killed:
        process.kill()
    time.sleep(dice.random() * DOWN_S)
    for process in killed:
        process.start()


def make_version_change(older: Path) -> Fault:
    """Returns a fault that kills one process, and starts it again with this version or that of a checkout."""

    def change_version(deployment: Deployment, dice: random.Random) -> None:
        killed = dice.choice(deployment.processes)
        killed.kill()
        time.sleep(dice.random() * DOWN_S)
        killed.root = dice.choice((ROOT, older))
        killed.start()

    return change_version


def inject_faults(
    folder: Path,
    count: int,
    seed: int,
    *,
    url: str | None = None,
    max_interval_s: float = 2.0,
    is_verbose: bool = False,
    fault: Fault = kill_processes,
    module: str = MODULE,
    root: Path = ROOT,
) -> None:
    """Injects faults into a deployment while users chat, and checks the invariants of `invariants` in the end.

    folder: an empty folder for the deployment.
    count: the number of faults.
    seed: the seed of all random choices.
    url: the URL of a PostgreSQL database, which gets two gateways. None: one gateway over a SQLite file.
    max_interval_s: the longest time between two faults.
    is_verbose: whether it prints its progress.
    fault: the function that injects one fault.
    module: the module that the gateways run.
    root: the checkout that they run at first.
    """
    dice = random.Random(seed)
    gateways = 2 if url else 1
    with Deployment(folder, gateways=gateways, url=url, module=module, root=root) as deployment:
        users = make_users(deployment, seed)
        with _users_running(users) as failures:
            for number in range(count):
                _wait(dice.random() * max_interval_s, failures)
                if failures:
                    break
                fault(deployment, dice)
                if is_verbose and not number % 10:
                    print(_summarize(deployment, users, number + 1), flush=True)
        assert not deployment.leaks, deployment.leaks[0]
        for gateway in deployment.gateways:
            check_recall(gateway, users, dice)
            for user in users:
                if isinstance(user, AgentUser):
                    user.check_messages(gateway)
        assert not deployment.leaks, deployment.leaks[0]
        repeated = [bell for bell, times in Counter(deployment.webhook.bells).items() if times > 1]
        assert not repeated, f"a webhook was called twice: {repeated}"
        if is_verbose:
            print(_summarize(deployment, users, count), flush=True)
    asyncio.run(_check_memories(deployment, users))
    check_files(deployment.database, deployment.forgotten_words)


@contextmanager
def _users_running(users: Sequence[SimulatedUser]) -> Iterator[list[BaseException]]:
    """Runs each user in a thread until the block ends. Yields the list of their errors.

    All users stop at the first error, which is raised when the block has ended.
    """
    should_stop = threading.Event()
    failures: list[BaseException] = []

    def run(user: SimulatedUser) -> None:
        try:
            user.run(lambda: should_stop.is_set() or bool(failures))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(user,), name=user.mark) for user in users]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        should_stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _wait(seconds: float, failures: list[BaseException]) -> None:
    """Waits for so long, or until a user has failed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not failures:
        time.sleep(0.02)


def _summarize(deployment: Deployment, users: Sequence[SimulatedUser], fault_count: int) -> str:
    single_users = list(flatten_users(users))
    turns = sum(len(user.turns) for user in single_users)
    attempts = sum(user.attempts for user in users)
    lost = sum(user.lost for user in users)
    return (
        f"{fault_count} faults, {len(single_users)} users, {attempts} requests, {lost} replies lost, "
        f"{turns} turns that must be stored, {len(deployment.forgotten_words)} forgotten, "
        f"not stored: {dict(deployment.unstored_turns)}"
    )


def check_recall(gateway: Gateway, users: Sequence[SimulatedUser], dice: random.Random) -> None:
    """Checks for a sample of finished turns that a gateway recalls them for their user."""
    single_users = list(flatten_users(users))
    for user in dice.sample(single_users, min(len(single_users), RECALLED_USERS)):
        turns = [turn for turn in user.turns.values() if turn.must_be_active]
        takes_notes = isinstance(user, HistoryUser) and user.takes_notes
        for turn in dice.sample(turns, min(len(turns), RECALLED_TURNS)):
            box = turn.text.split(" ")[3]
            body = {
                "model": "agent/noter" if takes_notes else "m",
                "user": user.user,
                "messages": [{"role": "user", "content": f"{RECALL_QUESTION}{box}?"}],
            }
            reply = _ask_with_memory(gateway, body)
            assert turn.word in reply.text, f"{turn.text!r} is not recalled: {reply.text} {reply.headers}"


def _ask_with_memory(gateway: Gateway, body: dict[str, Any]) -> ChatReply:
    """Sends a chat again until its memory was available: a busy machine may exceed the time that a reply waits for."""
    until = time.monotonic() + PATIENCE_S
    while True:
        reply = gateway.chat(body, {"x-mnemogate-memory": "read"})
        if reply.headers["x-mnemogate-memory"] != "unavailable" or time.monotonic() > until:
            return reply


async def _check_memories(deployment: Deployment, users: Sequence[SimulatedUser]) -> None:
    """Checks the stored memory of each user, when no process runs any more."""
    database = deployment.database
    settings = load_settings(
        config=str(deployment.gateways[0].folder / "mnemogate.toml"),
        flags={} if database.url else {("database", "path"): str(database.file)},
        environ=database.environ,
    )
    store = await open_database(settings)
    try:
        for user in flatten_users(users):
            takes_notes = isinstance(user, HistoryUser) and user.takes_notes
            if user.turns:
                memory = await export_memory(store, user.user, "noter" if takes_notes else "default")
                check_memory(memory, user, deployment.forgotten_words)
    finally:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture two", description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=200)
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--url", help="a PostgreSQL database; by default one that is made for this run")
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
        fault = kill_processes if root == ROOT else make_version_change(root)
        inject_faults(folder, options.kills, options.seed, url=url, is_verbose=True, fault=fault, root=root)
    print(f"{options.kills} kills: nothing was lost, doubled or shown to others")


if __name__ == "__main__":
    main()
