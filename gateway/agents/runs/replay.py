"""Replays a run's reply as a chat completion, for a client that sends the same request again."""

from __future__ import annotations

import orjson

from adapters.types import EVENT_STREAM_HEADER, JSON_HEADER, Json
from gateway.agents.runs.run import RunResult
from gateway.core.conversation import wire_message
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.chunks import split_into_chunks
from gateway.core.turn.client_view import ReplyEvent, ViewFactory
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.round import DONE_EVENT
from gateway.core.turn.terms import TurnTerms
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink


async def replay(
    request: ChatRequest, result: RunResult, make_view: ViewFactory, sink: Sink, receipt: Receipt
) -> None:
    """Sends the reply of an earlier run, streamed or whole as this request asks. Raises: ClientGone."""
    completion = _make_completion(request, result)
    view = make_view(TurnTerms())  # default terms, since no tools run
    if request.stream:
        first, *others = split_into_chunks(completion, with_usage=request.wants_usage)
        view.begin(first)
        view.show(ReplyEvent(None, chunk=first))
        view.end([ReplyEvent(None, chunk=chunk) for chunk in others], None, DONE_EVENT)
        sink.start(200, [EVENT_STREAM_HEADER, *receipt.note_head()])
        await sink.write(view.take())
        await sink.end()
        return
    [choice] = completion["choices"]
    message, finish_reason, usage = choice["message"], choice["finish_reason"], completion["usage"]
    outcome = TurnOutcome(End.FINISHED, shown_reply=message, finish_reason=finish_reason, usage=usage)
    body = orjson.dumps(completion)
    view.add_whole_reply(body, completion)
    view.begin(completion)
    client_body = view.render_body(body, outcome, is_unchanged=True)
    await sink.send_body(200, [JSON_HEADER, *receipt.note_head()], client_body)


def _make_completion(request: ChatRequest, result: RunResult) -> Json:
    """Returns a run's reply as a completion with the run's id and time, and the model that the request names."""
    steps = [orjson.loads(step.shown_reply) for step in result.steps if step.shown_reply is not None]
    calls = [call for message in steps for call in wire_message.list_raw_calls(message)]
    own_calls = (call for call in calls if wire_message.read_named_call(call).name not in request.tool_names)
    reply = wire_message.make_shown_reply(steps, {*map(wire_message.read_call_id, own_calls)})
    finish_reason = "tool_calls" if "tool_calls" in reply else "stop"
    counts = result.run.counts
    usage = {"prompt_tokens": counts.prompt, "completion_tokens": counts.completion}
    usage["total_tokens"] = counts.total
    return {
        "id": f"chatcmpl-{result.run.uid}",
        "created": int(result.run.created),
        "model": request.model,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": reply, "finish_reason": finish_reason}],
        "usage": usage,
    }
