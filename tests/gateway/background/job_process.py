"""A process with a worker, for tests that kill it: five steps that each leave a mark outside the database.

python job_process.py DATABASE MARKS [STOP_AT]; it says what it does line by line, and stands still once it has said
STOP_AT.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.run.background.job_context import JobContext
from gateway.run.background.worker import Worker, WorkerLimits
from storage.sql.passages import insert_passage
from tests.gateway.patient import LEASE_S
from tests.stored import open_store

STEPS = 5


async def main(database: str, marks: Path, stop_at: str) -> None:
    store = await open_store(database)
    finished = asyncio.Event()

    async def say(line: str) -> None:
        print(line, flush=True)
        if line == stop_at:
            await asyncio.Event().wait()

    async def work(job: JobContext) -> None:
        for number in range(STEPS):
            await say(f"before {number}")

            async def perform(number: int = number) -> bytes:
                with marks.open("a") as file:
                    file.write(f"{number}\n")
                await say(f"within {number}")
                return b"%d" % number

            result = await job.step(
                f"step {number}",
                perform,
                lambda result: (
                    lambda c: insert_passage(c, job.agent_row, f"passage {result.decode()}", at=0.0)
                ),
            )
            assert result == b"%d" % number
            await say(f"after {number}")
        await job.finish()
        await say("finished")
        finished.set()

    limits = WorkerLimits(lease_s=LEASE_S, heartbeat_s=LEASE_S / 3)
    worker = asyncio.create_task(Worker(store.jobs, {"work": work}, limits).run())
    await finished.wait()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
