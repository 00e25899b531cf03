"""The parts of a batch as its job's journal has them."""

from __future__ import annotations

from typing import Any, cast

from gateway.agents.batches.parts import PartJournal, ProviderPart
from gateway.run.background.job_context import JobContext

POLL_S = 60.0


class Journal:
    """Keeps what a job writes down."""

    def __init__(self) -> None:
        self.jobs = self
        self.job = None
        self.kept: dict[str, bytes] = {}

    async def journal(self, job: Any, name: str, result: bytes) -> bytes:
        return self.kept.setdefault(name, result)


def part(number: int, count: int) -> ProviderPart:
    return ProviderPart(number, "open", "m", f"mark{number}", 0.0, count)


async def test_a_part_that_a_kill_has_left_empty_says_nothing_of_room() -> None:
    whole, empty, half = part(1, 4), part(2, 2), part(3, 2)
    now = 1000.0
    parts = PartJournal(cast(JobContext, Journal()), lambda: now, POLL_S, [whole, empty, half])
    await parts.note_over(whole, found_no_room=True)
    now = 1001.0
    assert parts.choose_submission_wait_s(half) == POLL_S
    await parts.note_over(empty, was_submitted=False)
    assert parts.choose_submission_wait_s(half) == POLL_S - 1.0
    # One that was answered makes room.
    other = part(4, 1)
    parts.parts.append(other)
    await parts.note_over(other)
    assert parts.choose_submission_wait_s(half) == 0.0
