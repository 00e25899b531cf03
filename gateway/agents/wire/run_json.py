"""The JSON of runs and steps in the agents API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from adapters.types import Json
from gateway.agents.wire.shown_values import NO_CALLBACK, make_conversation_id, measure_ns, render_time
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect, refused
from gateway.core import ids
from gateway.core.turn.stop_reason import STOP_MESSAGES, StopReason
from storage.listing import LAST_NUMBER, RunEntry, StepEntry
from storage.run_records import Run, RunState, RunStep, TokenCounts


class Feedback(Body):
    """The judgement of a step; null takes it back."""

    feedback: Maybe[Literal["positive", "negative"]] = UNSET
    tags: Annotated[list[str] | None, refused("Steps have no tags.")] | UnsetType = UNSET


class StreamRun(Body):
    """Where the stream of a run goes on. starting_after: `seq_id` of the last event that was read."""

    starting_after: Annotated[int, Meta(ge=0, lt=LAST_NUMBER)] = 0
    include_pings: Maybe[bool] = UNSET
    batch_size: NoEffect[int] = UNSET
    poll_interval: NoEffect[float] = UNSET
    agent_id: NoEffect[str] = UNSET
    otid: NoEffect[str] = UNSET
    run_id: NoEffect[str] = UNSET


_NO_TOKENS = TokenCounts()
# The fields of metrics that only Letta's hosted product fills.
_NO_METRIC_TEMPLATE = dict.fromkeys(("project_id", "template_id", "base_template_id"))
# The stop reasons of a step that has failed.
_FAILED_STOPS = frozenset((
    StopReason.ERROR, StopReason.UPSTREAM_ERROR, StopReason.BAD_REPLY, StopReason.BAD_TOOL_CALL,
    StopReason.NO_TOOL_CALL,
))  # fmt: skip


def render_run(entry: RunEntry, error_message: str | None = None) -> Json:
    """Returns the JSON of a run. error_message: the message of the error that ended it; None: no message is stored."""
    run = entry.run
    message = error_message or find_failure_message(run)
    return {
        "id": ids.make_id("run", run.uid),
        "agent_id": ids.make_id("agent", entry.agent_uid),
        "conversation_id": make_conversation_id(entry.conversation_uid, entry.key),
        "status": run.state.value,
        "stop_reason": run.stop,
        "background": run.background,
        "created_at": render_time(run.created),
        "completed_at": render_time(run.ended),
        "total_duration_ns": measure_ns(run.begun, run.ended),
        "ttft_ns": None,
        "metadata": None if message is None else {"error": message},
        "request_config": None,
        "base_template_id": None,
        **NO_CALLBACK,
    }


def render_run_states(runs: Iterable[Run]) -> dict[str, str]:
    """Returns the states of runs by their ids."""
    return {ids.make_id("run", run.uid): run.state.value for run in runs}


def find_failure_message(run: Run) -> str | None:
    """Returns the message for the stop reason of a failed run; None if the reason has no message."""
    return STOP_MESSAGES.get(run.stop or "") if run.state is RunState.FAILED else None


def render_callback(report: Mapping[str, Any]) -> Json:
    """Returns the fields of a run about its callback. report: the stored report of the last attempt."""
    return {
        "callback_url": report["url"],
        "callback_sent_at": render_time(report["at"]),
        "callback_status_code": report["status"],
        "callback_error": report["error"],
    }


def render_step(entry: StepEntry, error_message: str | None = None) -> Json:
    """Returns the JSON of a step. error_message: the message of the error that ended it; None: no message is stored."""
    step, model = entry.step, entry.model
    if error_message is None and step.error is not None:
        error_message = STOP_MESSAGES.get(step.stop or "")
    upstream, _, name = model.partition("/")
    counts = step.counts
    return {
        "id": ids.make_id_with_seq("step", entry.agent_uid, entry.seq),
        "agent_id": ids.make_id("agent", entry.agent_uid),
        "run_id": ids.make_id("run", entry.run_uid),
        "origin": None,
        "provider_id": None,
        "provider_name": upstream or None,
        "provider_category": None,
        "model": name or None,
        "model_handle": model or None,
        "model_endpoint": None,
        "context_window_limit": None,
        **_render_tokens(counts),
        "prompt_tokens_details": {"cached_tokens": counts.cached, "cache_creation_tokens": counts.written},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
        "status": _choose_status(step),
        "stop_reason": step.stop,
        "error_type": step.error,
        "error_data": None if error_message is None else {"message": error_message},
        "feedback": step.feedback,
        "messages": [],
        "tags": [],
        "tid": None,
        "trace_id": None,
        "request_id": None,
        "project_id": None,
    }


def render_run_metrics(entry: RunEntry, tools: Sequence[str]) -> Json:
    """Returns the JSON of the times of a run. tools: the uids of the tools that the run has called."""
    run = entry.run
    return {
        "id": ids.make_id("run", run.uid),
        "agent_id": ids.make_id("agent", entry.agent_uid),
        "run_start_ns": None if run.begun is None else int(run.begun * 1e9),
        "run_ns": measure_ns(run.begun, run.ended),
        "num_steps": run.steps,
        "tools_used": [ids.make_id("tool", tool) for tool in tools] or None,
        "organization_id": None,
        **_NO_METRIC_TEMPLATE,
    }


def render_step_metrics(entry: StepEntry) -> Json:
    """Returns the JSON of the times of a step. The times of the model and of the tools are not measured separately."""
    step = entry.step
    return {
        "id": ids.make_id_with_seq("step", entry.agent_uid, entry.seq),
        "agent_id": ids.make_id("agent", entry.agent_uid),
        "run_id": ids.make_id("run", entry.run_uid),
        "step_start_ns": int(step.begun * 1e9),
        "step_ns": measure_ns(step.begun, step.ended),
        "llm_request_ns": None,
        "llm_request_start_ns": None,
        "tool_execution_ns": None,
        "provider_id": None,
        **_NO_METRIC_TEMPLATE,
    }


def _choose_status(step: RunStep) -> str:
    if step.ended is None:
        return "pending"
    if step.stop == StopReason.CANCELLED:
        return "cancelled"
    return "failed" if step.error is not None or step.stop in _FAILED_STOPS else "success"


def render_usage(
    counts: TokenCounts,
    step_count: int,
    started_run_uids: Sequence[str] = (),
    last_counts: TokenCounts = _NO_TOKENS,
) -> Json:
    """Returns the usage of a run.

    counts: the tokens of all steps.
    step_count: the number of steps.
    started_run_uids: the uids of the runs that the end of this run has started.
    last_counts: the tokens of the last step, whose prompt and reply are the present context; zeros: not known.
    """
    return {
        "message_type": "usage_statistics",
        **_render_tokens(counts),
        "step_count": step_count,
        "context_tokens": last_counts.total or None,
        "run_ids": [ids.make_id("run", uid) for uid in started_run_uids] or None,
    }


def _render_tokens(counts: TokenCounts) -> dict[str, int]:
    """Returns the fields with tokens of a run or a step."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.total,
        "cached_input_tokens": counts.cached,
        "cache_write_tokens": counts.written,
        "reasoning_tokens": counts.reasoning,
    }


def render_result(
    messages: list[Json],
    run: Run,
    started_run_uids: Sequence[str] = (),
    last_counts: TokenCounts = _NO_TOKENS,
) -> Json:
    """Returns the whole reply to a send.

    messages: the JSON of the messages of the reply.
    run: the run of the send, which has ended.
    started_run_uids: the uids of the runs that the end of this run has started.
    last_counts: the tokens of the last step; zeros: not known.
    """
    return {
        "messages": messages,
        "stop_reason": render_stop(run.stop or StopReason.END_TURN),
        "usage": render_usage(run.counts, run.steps, started_run_uids, last_counts),
    }


def make_end_events(run: Run, last_counts: TokenCounts = _NO_TOKENS) -> list[Json]:
    """Returns the last events of a stream.

    run: the run of the stream, which has ended.
    last_counts: the tokens of the run's last step; zeros: not known.
    """
    return [
        render_stop(run.stop or StopReason.END_TURN),
        render_usage(run.counts, run.steps, last_counts=last_counts),
    ]


def render_stop(stop: str) -> Json:
    """Returns the message with the stop reason of a run."""
    return {"message_type": "stop_reason", "stop_reason": stop}
