"""`mnemogate` as tests start it.

Its limits are so long that no busy machine reaches them. It asks no upstream for its models. Its leases are short, so
another process soon takes over the work of a process that was killed.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

from msgspec.structs import force_setattr

from gateway.run.background import worker
from gateway.run.memory import leases
from storage.postgres import database
from storage.postgres.postgres_limits import PostgresLimits
from storage.sqlite import writer
from tests.patience import PATIENCE_S

# Longer than a process waits for its turn on a busy machine: only a killed process loses its leases.
LEASE_S = 5.0

leases.LEASE_S, leases.RENEW_INTERVAL_S = LEASE_S, LEASE_S / 3


class ShortLeases(worker.WorkerLimits, frozen=True):
    """The worker's limits, with leases that end while a test waits."""

    lease_s: float = LEASE_S
    heartbeat_s: float = LEASE_S / 3


# Before another module makes limits.
worker.WorkerLimits = ShortLeases  # type: ignore[misc]
for _name, _seconds in (("lease_s", LEASE_S), ("heartbeat_s", LEASE_S / 3)):
    force_setattr(worker.LIMITS, _name, _seconds)


class PatientPostgres(PostgresLimits, frozen=True):
    """PostgreSQL's limits, with waits that no busy machine reaches; leases are taken over as soon as they end."""

    read_timeout_s: float = PATIENCE_S
    acquire_timeout_s: float = PATIENCE_S
    slow_wait_s: float = PATIENCE_S
    settle_s: float = 0.0


class PatientWriter(writer.WriterLimits, frozen=True):
    """The same for SQLite's writer."""

    slow_s: float = PATIENCE_S


def run() -> int:
    """Runs the command line."""
    # Only here, since tests of these limits may import this module.
    database.PostgresLimits = PatientPostgres  # type: ignore[attr-defined]
    writer.WriterLimits = PatientWriter  # type: ignore[misc]

    from gateway.cli import main
    from gateway.limits import Limits
    from gateway.run.memory.recall import Recaller
    from tests.gateway import deadlines

    deadlines.lift()
    # `patch.object` fails if there is no such method.
    patch.object(Recaller, "_choose_time_limit_ms", lambda *_: PATIENCE_S * 1000).start()

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
