"""Batches, as Letta's server 0.16 named and showed them: a batch is a job."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gateway.core import ids
from gateway.dialects.letta.body import Body, Kept, Maybe, refused
from gateway.dialects.letta.query import PageQuery
from gateway.dialects.letta.run import usage_json
from gateway.dialects.letta.send import MAX_STEPS, MessageType
from gateway.dialects.letta.shown import lasted_ns, time_of
from storage.batches import Batch, BatchCounts, BatchItem
from storage.records import Counts

_ANTHROPICS = (
    "This is a batch of Anthropic's Messages API, which is not served here; a batch of agents names an agent_id "
    "in each request."
)
_NOBODY = "A batch goes on when its client is gone, so nobody can answer calls of the client's tools."
_UNREAD = "The client's own tools read its skills, and a batch has none of these."


class BatchRequest(Body):
    """One send of a batch. The messages are those of a send; answers to calls that wait are none."""

    agent_id: str | UnsetType = UNSET
    messages: Maybe[list[dict[str, Any]]] = UNSET
    input: Maybe[str | list[dict[str, Any]]] = UNSET
    max_steps: Annotated[int, Meta(ge=1, le=200)] = MAX_STEPS
    conversation_id: Maybe[str] = UNSET
    override_model: Maybe[str] = UNSET
    override_system: Maybe[str] = UNSET
    client_tools: Annotated[list[dict[str, Any]] | None, refused(_NOBODY)] | UnsetType = UNSET
    client_skills: Annotated[list[dict[str, Any]] | None, refused(_UNREAD)] | UnsetType = UNSET
    custom_id: Annotated[str | None, refused(_ANTHROPICS)] | UnsetType = UNSET
    params: Annotated[dict[str, Any] | None, refused(_ANTHROPICS)] | UnsetType = UNSET
    include_return_message_types: Kept[list[MessageType]] = UNSET
    enable_thinking: Kept[str | bool] = UNSET
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"


class CreateBatch(Body):
    """Sends to many agents, one to each. callback_url: is told when all have ended."""

    requests: list[BatchRequest]
    callback_url: Maybe[str] = UNSET


class BatchesQuery(PageQuery):
    """A page of batches."""


class BatchItemsQuery(Body):
    """A page of a batch's items, in the order in which they were given. after: a run's id."""

    after: Maybe[str] = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class BatchMessagesQuery(Body):
    """A page of the messages of a batch's items; those of one item stand together. after: a message's id."""

    after: Maybe[str] = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    agent_id: Maybe[str] = UNSET
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"


def batch_json(batch: Batch, counts: BatchCounts) -> dict[str, Any]:
    """Returns a batch."""
    return {
        "id": ids.named("job", batch.uid),
        "job_type": "batch",
        "status": batch.state.value,
        "counts": {
            "total": counts.total,
            "waiting": counts.waiting,
            "running": counts.running,
            "completed": counts.completed,
            "failed": counts.failed,
            "expired": counts.expired,
            "cancelled": counts.cancelled,
        },
        "created_at": time_of(batch.created),
        "updated_at": time_of(batch.ended or batch.created),
        "completed_at": time_of(batch.ended),
        "total_duration_ns": lasted_ns(batch.created, batch.ended),
        "ttft_ns": None,
        "stop_reason": None,
        "background": True,
        "agent_id": None,
        "metadata": {},
        "created_by_id": None,
        "last_updated_by_id": None,
        "callback_url": batch.callback,
        "callback_sent_at": None,
        "callback_status_code": None,
        "callback_error": None,
    }


def item_json(item: BatchItem, words: str) -> dict[str, Any]:
    """Returns an item. words: why it failed, or ""."""
    run = item.run
    counts, steps = (Counts(), 0) if run is None else (run.counts, run.steps)
    return {
        "agent_id": None if run is None else ids.named("agent", item.agent),
        "run_id": None if run is None else ids.named("run", run.uid),
        "status": item.state,
        "stop_reason": None if run is None else run.stop,
        "error": item.why(words),
        "usage": usage_json(counts, steps, []),
    }
