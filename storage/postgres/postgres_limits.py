"""The bounds and pauses of a PostgreSQL database."""

from __future__ import annotations

from storage.health_check import CHECK_S
from storage.postgres.pool import PoolLimits


class PostgresLimits(PoolLimits, frozen=True):
    """The bounds and pauses of a database, besides its pool's. Where no figure is named, none was measured."""

    # The connections that are left to turns: neither bulk work nor long reads may have them, if the pool has as many.
    reserved_connections: int = 2
    # The seconds that a read waits for a connection that others use.
    acquire_timeout_s: float = 0.25
    # The seconds that a read waits for a connection that is opened for it. A gateway that had just started on a busy
    # machine needed 0.3 s and more.
    connect_timeout_s: float = 1.0
    # The bytes of all writes that wait; a write beyond them is refused.
    queue_bytes: int = 64 << 20
    # The seconds after which a read of a turn is given up.
    read_timeout_s: float = 2.0
    # The seconds after which a read of a list, or of other bulk, is given up.
    long_read_timeout_s: float = 60.0
    # A turn that waits longer for a connection makes the status `slow`.
    slow_wait_s: float = 1.0
    # The seconds between two VACUUMs.
    vacuum_interval_s: float = 60.0
    # The seconds between two checks of health.
    health_check_interval_s: float = CHECK_S
    # The seconds after an outage in which no lease is taken over. By then each process has connected and renewed its
    # own leases: an attempt that hung, and the longest pause after it, are over.
    settle_s: float = 20.0

    @property
    def max_long_reads(self) -> int:
        """The most long reads at a time. Each has a connection."""
        return max(1, self.size - self.bulk_connections - self.reserved_connections)
