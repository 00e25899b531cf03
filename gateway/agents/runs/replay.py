"""Replays a run's reply as a chat completion, for a client that sends the same request again."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.agents.runs.run import RunResult
from gateway.core.conversation.wire_message import call_id, named_call, shown_reply_of
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.chunks import delta_of
from gateway.core.turn.client_view import MakesView, ReplyEvent
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.round import DONE_EVENT, EVENT_STREAM
from gateway.core.turn.terms import TurnTerms
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink

_JSON = ("content-type", "application/json")


async def replay(
    request: ChatRequest, result: RunResult, make_view: MakesView, sink: Sink, receipt: Receipt
) -> None:
    """Sends the reply that a run has given, streamed or whole as it is asked for now.

    Its id and time are those of the run, its model is the one that the request names. Raises: ClientGone.
    """
    steps = [orjson.loads(step.shown_reply) for step in result.steps if step.shown_reply is not None]
    calls = [call for message in steps for call in message.get("tool_calls") or ()]
    gateway_calls = {call_id(call) for call in calls if named_call(call).name not in request.tool_names}
    shown_reply = shown_reply_of(steps, gateway_calls)
    finish_reason = "tool_calls" if "tool_calls" in shown_reply else "stop"
    counts = result.run.counts
    usage = {"prompt_tokens": counts.prompt, "completion_tokens": counts.completion}
    usage["total_tokens"] = counts.prompt + counts.completion
    head = {"id": f"chatcmpl-{result.run.uid}", "created": int(result.run.created), "model": request.model}
    view = make_view(TurnTerms())  # no tools run any more, so the default terms do
    if not request.stream:
        choice = {"index": 0, "message": shown_reply, "finish_reason": finish_reason}
        completion = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        outcome = TurnOutcome(End.FINISHED, shown_reply=shown_reply, finish_reason=finish_reason, usage=usage)
        body = orjson.dumps(completion)
        view.take_whole(body, completion)
        view.begin(completion)
        await sink.send_body(
            200, [_JSON, *receipt.note_head()], view.render_body(body, outcome, is_unchanged=True)
        )
        return

    def chunk_event(*choices: dict[str, Any], **more: Any) -> ReplyEvent:
        return ReplyEvent(
            None, chunk={**head, "object": "chat.completion.chunk", "choices": [*choices], **more}
        )

    first = chunk_event({"index": 0, "delta": delta_of({"message": shown_reply}), "finish_reason": None})
    tail = [chunk_event({"index": 0, "delta": {}, "finish_reason": finish_reason})]
    if request.wants_usage:
        tail.append(chunk_event(usage=usage))
    view.begin(first.chunk or {})
    view.show(first)
    view.end(tail, None, DONE_EVENT)
    sink.start(200, [EVENT_STREAM, *receipt.note_head()])
    await sink.write(view.take())
    await sink.end()
