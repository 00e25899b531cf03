"""`mnemogate` as tests start it: no busy machine reaches its limits, it asks no upstream for its models, and its leases
are short, so that what a killed process held is soon taken over by another one.
"""

from __future__ import annotations

import sys
from dataclasses import fields

from gateway.run.background import worker
from gateway.run.memory import leases
from storage.postgres.pool import PoolLimits
from tests.patience import PATIENCE_S

# Longer than a busy machine lets a process wait for its turn: tests kill those whose leases are to be lost.
LEASE_S = 5.0

leases.LEASE_S, leases.PROLONG_S = LEASE_S, LEASE_S / 3
# Before any module makes limits of its own.
_defaults = list(worker.WorkerLimits.__init__.__defaults__ or ())
_defaults[1:3] = [LEASE_S, LEASE_S / 3]
worker.WorkerLimits.__init__.__defaults__ = tuple(_defaults)  # type: ignore[misc]
for _default in worker.Worker.__init__.__defaults__ or ():
    if isinstance(_default, worker.WorkerLimits):
        object.__setattr__(_default, "lease_s", LEASE_S)
        object.__setattr__(_default, "heartbeat_s", LEASE_S / 3)


def run() -> int:
    """Runs the command line."""
    # Only here: a test that has imported this may be about these limits.
    defaults = list(PoolLimits.__init__.__defaults__ or ())
    for name in ("read_s", "wait_s"):
        defaults[[each.name for each in fields(PoolLimits)].index(name)] = PATIENCE_S
    PoolLimits.__init__.__defaults__ = tuple(defaults)  # type: ignore[misc]

    from gateway.cli import main
    from gateway.limits import Limits
    from tests.gateway import deadlines

    deadlines.lift()

    return main(sys.argv[1:], Limits(models_refresh_s=0.0, commit_wait_s=PATIENCE_S, step_wait_s=PATIENCE_S))


if __name__ == "__main__":
    raise SystemExit(run())
