"""The memory that replies may take: a quota that all replies of the process share, and reservations from it."""

from __future__ import annotations

from typing import Final

from adapters.errors import ProviderTooLarge, ReplyQuotaUsedUp

# Streams up to this size take nothing of the quota. A stream of 5,000 tokens that come one by one has this size.
_SMALL_STREAM_BYTES: Final = 1024 * 1024
# Far above any completion, and far below the memory of a machine. Not measured.
MAX_REPLY_BYTES = 256 * 1024 * 1024


class ReplyQuota:
    """The bytes of replies that may be in memory at once."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.left_bytes = limit_bytes


# The quota of the process is only as large as one reply may be, since parsing a reply takes several times its size.
REPLIES: Final = ReplyQuota(MAX_REPLY_BYTES)


class ReplyReservation:
    """The part of a quota that is reserved for one reply until it is released.

    small_bytes: the largest size of a reply for which nothing is reserved.
    """

    __slots__ = ("_bytes", "_quota", "_small_bytes")

    def __init__(self, small_bytes: int, quota: ReplyQuota = REPLIES) -> None:
        self._quota = quota
        self._small_bytes = small_bytes
        self._bytes = 0

    def reserve(self, size: int) -> None:
        """Reserves `size` bytes in all. Raises: ReplyQuotaUsedUp."""
        if size <= self._small_bytes:
            return
        further_bytes = size - self._bytes
        if further_bytes > self._quota.left_bytes:
            raise ReplyQuotaUsedUp(
                f"all replies under way are larger than {self._quota.limit_bytes} bytes together"
            )
        self._quota.left_bytes -= further_bytes
        self._bytes = size

    def release(self) -> None:
        """Gives back all that is reserved. Idempotent."""
        self._quota.left_bytes += self._bytes
        self._bytes = 0

    def __del__(self) -> None:
        self.release()


class StreamReservation:
    """The part of the process's quota that is reserved for the streams of one turn. Together they have a limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._reservation = ReplyReservation(_SMALL_STREAM_BYTES)

    def reserve_more(self, size: int) -> None:
        """Reserves `size` further bytes. Raises: ProviderTooLarge."""
        self._bytes += size
        if self._bytes > self._limit_bytes:
            raise ProviderTooLarge(f"the reply is larger than {self._limit_bytes} bytes")
        self._reservation.reserve(self._bytes)

    def release(self) -> None:
        """Gives back all that is reserved. Idempotent."""
        self._reservation.release()
