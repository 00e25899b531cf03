"""`mnemogate` as tests start it: no busy machine reaches its limits, it asks no upstream for its models, and its leases
are short, so that what a killed process held is soon taken over by another one.
"""

from __future__ import annotations

import sys

from msgspec.structs import force_setattr

from gateway.run.background import worker
from gateway.run.memory import leases
from storage.postgres import database
from storage.postgres.postgres_limits import PostgresLimits
from storage.sqlite import writer
from tests.patience import PATIENCE_S

# Longer than a busy machine lets a process wait for its turn: tests kill those whose leases are to be lost.
LEASE_S = 5.0

leases.LEASE_S, leases.RENEW_INTERVAL_S = LEASE_S, LEASE_S / 3


class ShortLeases(worker.WorkerLimits, frozen=True):
    """The worker's limits, with leases that end while a test waits."""

    lease_s: float = LEASE_S
    heartbeat_s: float = LEASE_S / 3


# Before any module makes limits of its own.
worker.WorkerLimits = ShortLeases  # type: ignore[misc]
for _name, _seconds in (("lease_s", LEASE_S), ("heartbeat_s", LEASE_S / 3)):
    force_setattr(worker.LIMITS, _name, _seconds)


class PatientPostgres(PostgresLimits, frozen=True):
    """PostgreSQL's limits, with waits that no busy machine reaches; leases are taken over as soon as they end."""

    read_s: float = PATIENCE_S
    wait_s: float = PATIENCE_S
    slow_s: float = PATIENCE_S
    settle_s: float = 0.0


class PatientWriter(writer.WriterLimits, frozen=True):
    """The same for SQLite's writer."""

    slow_s: float = PATIENCE_S


def run() -> int:
    """Runs the command line."""
    # Only here: a test that has imported this may be about these limits.
    database.PostgresLimits = PatientPostgres  # type: ignore[attr-defined]
    writer.WriterLimits = PatientWriter  # type: ignore[misc]

    from gateway.cli import main
    from gateway.limits import Limits
    from gateway.run.memory.recall import Recaller
    from tests.gateway import deadlines

    deadlines.lift()
    Recaller.limit_ms = lambda *_: PATIENCE_S * 1000  # type: ignore[method-assign]

    return main(
        sys.argv[1:],
        Limits(
            models_refresh_s=0.0,
            commit_wait_s=PATIENCE_S,
            limit_read_s=PATIENCE_S,
            step_wait_s=PATIENCE_S,
            page_read_s=PATIENCE_S,
        ),
    )


if __name__ == "__main__":
    raise SystemExit(run())
