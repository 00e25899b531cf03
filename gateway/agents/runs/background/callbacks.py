"""The job `callback`: notifies a client's URL of the end of a run or a batch.

The request is signed as webhooks are. It is retried for some hours, with the same `webhook-id`. A redirect is not
followed, and ends the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.agents.tools.hosts import HostError
from gateway.agents.tools.webhook import Webhooks
from gateway.run.background.job_context import JobContext, JobFailed, JobGivenUp
from storage.database import Connection, Effect
from storage.job_records import NO_AGENT
from storage.run_records import Run, RunTextKind
from storage.sql.store import Store

CALLBACK_JOB = "callback"

# Returns the body about a run, given the rows of its agent and of the run; None if the run is gone.
CallbackBody = Callable[[int, int], Awaitable[Json | None]]


def enqueue_callback(
    store: Store, url: str, uid: str, *, run: Run | None = None, body: Mapping[str, object] | None = None
) -> Effect:
    """Returns an effect that enqueues a callback in the transaction of a job.

    uid: the uid of the ended run or batch.
    run: the run about which the body is made when the callback is posted; None: `body` is posted.
    body: the body of a callback about a batch, which quotes no messages.
    """
    run_rows = None if run is None else (run.agent_row, run.id)
    payload = orjson.dumps({"url": url, "id": uid, "run": run_rows, "body": body})

    async def enqueue(connection: Connection) -> None:
        await store.jobs.enqueue_in(connection, CALLBACK_JOB, NO_AGENT, uid, payload)

    return enqueue


class CallbackJobs(Struct, frozen=True):
    """Performs the jobs that post callbacks."""

    # The store to which the outcomes of callbacks are added.
    store: Store
    # Posts and signs the requests.
    webhooks: Webhooks
    # Makes the body of a callback about a run.
    make_body: CallbackBody
    # Returns seconds since the epoch.
    now: Callable[[], float]

    async def handle(self, job: JobContext) -> None:
        """Makes one attempt at a callback. The outcome of a callback about a run is stored with the run.

        Raises: JobFailed if another attempt is to follow; JobGivenUp if none is.
        """
        payload = orjson.loads(job.payload)
        run_rows, body = payload["run"], payload["body"]
        if run_rows is not None:
            body = await self.make_body(*run_rows)
            if body is None:
                return
        status, error = await self._post(payload["url"], payload["id"], body)
        if run_rows is not None:
            report = {"url": payload["url"], "at": self.now(), "status": status, "error": error}
            agent_row, run_row = run_rows
            add_report = self.store.run_texts.add_text(
                agent_row, run_row, RunTextKind.CALLBACK, job.job.attempt, orjson.dumps(report)
            )
            await asyncio.shield(add_report)
        if status is None:
            raise JobFailed(f"the callback was not delivered: {error}")
        if 300 <= status < 400:
            raise JobGivenUp(f"the callback was answered with a redirect ({status})")
        if not 200 <= status < 300:
            raise JobFailed(f"the callback was answered with status {status}")

    async def _post(self, url: str, message_id: str, body: Json) -> tuple[int | None, str | None]:
        """Posts a body. Returns the status of the answer, or None and the error if there was no answer."""
        try:
            return await self.webhooks.post(url, message_id, orjson.dumps(body)), None
        except HostError as failure:
            return None, str(failure)
        except TimeoutError:
            return None, "it did not answer in time"
