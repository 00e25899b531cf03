"""Replays a run's reply as a chat completion, for a client that sends the same request again."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.agents.runs.run import RunResult
from gateway.core.conversation.canonical import call_id, visible_reply
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.client_view import MakesView, ReplyEvent
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.draft import delta_of
from gateway.core.turn.terms import TurnTerms
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink

_JSON = ("content-type", "application/json")
_EVENTS = ("content-type", "text/event-stream; charset=utf-8")
_DONE = b"data: [DONE]\n\n"


async def replay(
    request: ChatRequest, result: RunResult, view: MakesView, sink: Sink, receipt: Receipt
) -> None:
    """Sends the reply that a run has given, streamed or whole as it is asked for now. Raises: ClientGone."""
    full = [orjson.loads(e.shown_reply) for e in result.steps if e.shown_reply is not None]
    calls = [call for m in full for call in m.get("tool_calls") or ()]
    shown_reply = visible_reply(full, {call_id(call) for call in calls if _name(call) not in request.tools})
    finish = "tool_calls" if "tool_calls" in shown_reply else "stop"
    counts = result.run.counts
    usage = {"prompt_tokens": counts.prompt, "completion_tokens": counts.completion}
    usage["total_tokens"] = counts.prompt + counts.completion
    head = {"id": f"chatcmpl-{result.run.uid}", "created": int(result.run.created), "model": request.model}
    made = view(TurnTerms())
    if not request.stream:
        choice = {"index": 0, "message": shown_reply, "finish_reason": finish}
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        outcome = TurnOutcome(End.FINISHED, shown_reply=shown_reply, finish_reason=finish, usage=usage)
        body = orjson.dumps(whole)
        made.take_whole(body, whole)
        made.begin(whole)
        await sink.whole(200, [_JSON, *receipt.note_head()], made.whole(body, outcome, is_unchanged=True))
        return

    def event(*choices: dict[str, Any], **more: Any) -> ReplyEvent:
        return ReplyEvent(
            None, chunk={**head, "object": "chat.completion.chunk", "choices": [*choices], **more}
        )

    first = event({"index": 0, "delta": delta_of({"message": shown_reply}), "finish_reason": None})
    tail = [event({"index": 0, "delta": {}, "finish_reason": finish})]
    if request.wants_usage:
        tail.append(event(usage=usage))
    made.begin(first.chunk or {})
    made.show(first)
    made.end(tail, None, _DONE)
    sink.start(200, [_EVENTS, *receipt.note_head()])
    await sink.write(made.take())
    await sink.end()


def _name(call: dict[str, Any]) -> Any:
    return (call.get("function") or {}).get("name")
