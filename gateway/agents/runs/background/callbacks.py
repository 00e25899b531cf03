"""Job `callback`: posts to a URL that a run or a batch has ended, signed as webhooks are, with retries for some hours.

A redirect is not followed and ends the job. A repetition has the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.agents.tools.hosts import HostError
from gateway.agents.tools.webhook import Webhooks
from gateway.run.background.worker import GiveUp, JobContext, JobFailed
from storage.database import Connection, Effect
from storage.records import RunTextKind
from storage.sql.jobs import NO_AGENT
from storage.sql.store import Store

CALLBACK_JOB = "callback"

# Returns the body about a run, by the row of its agent and its own row; None if the run is gone.
CallbackBody = Callable[[int, int], Awaitable[Json | None]]


def enqueue_callback(
    store: Store,
    url: str,
    id: str,
    *,
    run: tuple[int, int] | None = None,
    body: Mapping[str, object] | None = None,
) -> Effect:
    """Returns an effect that enqueues a callback with its transaction.

    id: unique for the run or batch that has ended.
    run: the rows of an agent and its run, from which the body is made when the job runs.
    body: the body where there is no run; it quotes no messages.
    """
    payload = orjson.dumps({"url": url, "id": id, "run": run, "body": body})

    async def enqueue(connection: Connection) -> None:
        await store.jobs.enqueue_in(connection, CALLBACK_JOB, NO_AGENT, id, payload)

    return enqueue


class Callbacks(Struct, frozen=True):
    """Runs the jobs `callback`."""

    store: Store
    webhooks: Webhooks
    body_of: CallbackBody
    # Returns seconds since the epoch.
    now: Callable[[], float]

    async def handle(self, job: JobContext) -> None:
        """Makes one attempt. If it is about a run, its outcome is stored with the run.

        Raises: JobFailed if it is to be tried again; GiveUp if not.
        """
        payload = orjson.loads(job.payload)
        run, body = payload["run"], payload["body"]
        if run is not None:
            body = await self.body_of(*run)
            if body is None:
                return
        status, error = None, None
        try:
            status = await self.webhooks.post(payload["url"], payload["id"], orjson.dumps(body))
        except HostError as failure:
            error = str(failure)
        except TimeoutError:
            error = "it did not answer in time"
        if run is not None:
            report = orjson.dumps({"url": payload["url"], "at": self.now(), "status": status, "error": error})
            agent_row, run_row = run
            add_text = self.store.run_texts.add_text
            await asyncio.shield(add_text(agent_row, run_row, RunTextKind.CALLBACK, job.job.attempt, report))
        if error is not None:
            raise JobFailed(f"the callback was not delivered: {error}")
        if status is not None and 300 <= status < 400:
            raise GiveUp(f"the callback was answered with a redirect ({status})")
        if status is None or not 200 <= status < 300:
            raise JobFailed(f"the callback was answered with status {status}")
