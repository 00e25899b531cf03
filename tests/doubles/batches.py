"""Strict batch servers of OpenAI and Anthropic on a loopback port, on a thread of their own.

    with OpenAIBatchServer(answer) as server:
        ... the SDK calls server.base_url ...

`answer` takes each request of a batch (custom_id, body) and returns its `Fate`. The requests obey the rules of the live
endpoints. A batch ends at once, or with `server.finish()` if the server is `held`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, Self

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.doubles.anthropic_rules import Refused, bind, check_request
from tests.doubles.openai_rules import Refusal, check_chat
from tests.doubles.other_endpoints import parse_form
from tests.patience import PATIENCE_S

Json = dict[str, Any]
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Fate:
    """The outcome of one request of a batch."""

    kind: Literal["succeeded", "errored", "expired", "cancelled"] = "succeeded"
    # The reply: its text, or its calls (name, arguments).
    text: str = "Ok."
    calls: tuple[tuple[str, Json], ...] = ()
    # The blocks of Anthropic's reply, in place of text and calls.
    blocks: tuple[Json, ...] = ()
    # The error: its status, type and message.
    status: int = 400
    error: str = "invalid_request_error"
    words: str = "It is wrong."
    # How often the request is in the results.
    times: int = 1


Answers = Callable[[str, Json], Fate]


@dataclass
class Batch:
    """A batch in the server."""

    id: str
    number: int
    requests: dict[str, Json]
    created: float
    metadata: Json = field(default_factory=dict)
    input_file: str = ""
    status: str = "in_progress"
    code: str = "invalid"
    lines: list[Json] = field(default_factory=list)

    @property
    def model(self) -> str:
        """Returns the model of its first request."""
        return str(next(iter(self.requests.values()))["model"])


def ok(custom_id: str, body: Json) -> Fate:
    return Fate()


class _Cut(Exception):
    """Ends a connection within a reply."""


class _Server(uvicorn.Server):
    """A server with events for its start and its end, instead of uvicorn's polling."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens: Future[int] = Future()

    async def main_loop(self) -> None:
        self._loop, self._ends = asyncio.get_running_loop(), asyncio.Event()
        self.listens.set_result(self.servers[0].sockets[0].getsockname()[1])
        await self._ends.wait()

    def end(self) -> None:
        self.force_exit = True
        self._loop.call_soon_threadsafe(self._ends.set)


class BatchServer:
    """The common part of both servers. held: batches are in progress until `finish`."""

    key: ClassVar[str]

    def __init__(self, answer: Answers = ok, *, held: bool = False) -> None:
        self.answer, self.held = answer, held
        # In the order in which they were created.
        self.batches: list[Batch] = []
        # Method and path of each request.
        self.calls: list[tuple[str, str]] = []
        # Results come in another order than the requests.
        self.shuffled = False
        # The connection is lost after so many bytes of the next results.
        self.cut_results: int | None = None
        # Bytes before all results.
        self.garbage = b""
        # The next batch is created, but the connection is lost before the reply.
        self.drop_create = False
        # The reply to every request.
        self.instead: Response | None = None
        # Status and message with which the next requests to create or delete are refused.
        self.refuse_create: list[tuple[int, str]] = []
        self.refuse_delete: list[tuple[int, str]] = []
        # The message with which a batch fails as a whole.
        self.rejects: str | None = None
        # How many requests of one model may be in progress. A batch that exceeds it fails as a whole.
        self.room: int | None = None
        # The largest batch in bytes; a larger one fails as a whole, with the limit in its message.
        self.most_bytes: int | None = None
        # How often the state of a batch was requested.
        self.polls = 0
        # The messages with which invalid requests were refused.
        self.faults: list[str] = []
        self._numbers = itertools.count(1)

    # -- start and stop

    def __enter__(self) -> Self:
        config = uvicorn.Config(
            Starlette(routes=self.routes()), port=0, log_level="critical", lifespan="off", ws="none"
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        self.port = self._server.listens.result(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.end()
        self._thread.join(PATIENCE_S)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def routes(self) -> list[Route]:
        raise NotImplementedError

    def route(self, method: str, path: str, handle: Callable[[Request], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            self.calls.append((method, request.url.path))
            if (fault := self.unauthorised(request)) is not None:
                return fault
            if self.instead is not None:
                return self.instead
            try:
                response: Response = await handle(request)
                return response
            except (Refusal, Refused) as error:
                self.faults.append(str(error))
                return self.refused(400, str(error))
            except LookupError as error:
                return self.refused(404, f"There is no {error}.")

        return Route(path, endpoint, methods=[method])

    def unauthorised(self, request: Request) -> Response | None:
        raise NotImplementedError

    def refused(self, status: int, words: str) -> Response:
        raise NotImplementedError

    # -- batches

    def make(self, requests: Iterable[tuple[str, Json]], **fields: Any) -> Batch:
        bodies: dict[str, Json] = {}
        for custom_id, body in requests:
            if custom_id in bodies:
                raise Refusal(f"custom_id {custom_id!r} is there twice")
            bodies[custom_id] = body
        if not bodies:
            raise Refusal("a batch has one request at least")
        number = next(self._numbers)
        batch = Batch(f"{self.key}_{number}", number, bodies, time.time(), **fields)
        under_way = sum(
            len(earlier.requests)
            for earlier in self.batches
            if (earlier.status, earlier.model) == ("in_progress", batch.model)
        )
        self.batches.append(batch)
        is_large = self.most_bytes is not None and len(json.dumps(bodies)) > self.most_bytes
        if is_large or (self.room is not None and under_way + len(bodies) > self.room):
            batch.status, batch.code = "failed", "token_limit_exceeded"
        elif self.rejects is not None:
            batch.status = "failed"
        elif not self.held:
            self._end(batch)
        return batch

    def finish(self) -> None:
        for batch in self.batches:
            if batch.status == "in_progress":
                self._end(batch)

    def cancel(self, batch: Batch, fate: Fate | None = None) -> None:
        if batch.status == "in_progress":
            self._end(batch, fate or Fate("cancelled"))

    def _end(self, batch: Batch, fate: Fate | None = None) -> None:
        lines = []
        for custom_id, body in batch.requests.items():
            request_fate = fate or self.answer(custom_id, body)
            lines += [self.line(custom_id, body, request_fate)] * request_fate.times
        if self.shuffled:
            random.Random(batch.number).shuffle(lines)
        batch.lines = lines
        batch.status = "completed" if fate is None else fate.kind

    def line(self, custom_id: str, body: Json, fate: Fate) -> Json:
        raise NotImplementedError

    def find(self, id: str) -> Batch:
        return next((batch for batch in self.batches if batch.id == id), None) or _raise_missing(id)

    def stream(self, lines: Iterable[Json]) -> Response:
        data = self.garbage + b"".join(orjson.dumps(line) + b"\n" for line in lines)
        cut, self.cut_results = self.cut_results, None

        async def pieces() -> AsyncIterator[bytes]:
            if cut is not None:
                yield data[:cut]
                raise _Cut
            for offset in range(0, len(data), 65536):
                yield data[offset : offset + 65536]

        return StreamingResponse(pieces(), media_type="application/binary")

    def created(self, body: Json) -> Response:
        if not self.drop_create:
            return JSONResponse(body)
        self.drop_create = False

        async def pieces() -> AsyncIterator[bytes]:
            yield b"{"
            raise _Cut

        return StreamingResponse(pieces(), media_type="application/json")


def _raise_missing(what: str) -> Any:
    raise LookupError(what)


class OpenAIBatchServer(BatchServer):
    """`/v1/files` and `/v1/batches`.

    files: the contents of all files that were uploaded, by their ids.
    shown: the files that are not deleted, as they are listed, the oldest first.
    deleted: the ids of the deleted files.
    """

    key = "batch"

    def __init__(self, answer: Answers = ok, *, held: bool = False) -> None:
        super().__init__(answer, held=held)
        self.files: dict[str, bytes] = {}
        self.shown: list[Json] = []
        self.deleted: list[str] = []

    def routes(self) -> list[Route]:
        return [
            self.route("POST", "/v1/files", self._upload),
            self.route("GET", "/v1/files", self._list_files),
            self.route("GET", "/v1/files/{id}/content", self._content),
            self.route("DELETE", "/v1/files/{id}", self._delete),
            self.route("POST", "/v1/batches", self._create),
            self.route("GET", "/v1/batches", self._list),
            self.route("GET", "/v1/batches/{id}", self._retrieve),
            self.route("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]

    def unauthorised(self, request: Request) -> Response | None:
        if request.headers.get("authorization") == "Bearer sk-own":
            return None
        return self.refused(401, "Incorrect API key provided.")

    def refused(self, status: int, words: str) -> Response:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return JSONResponse({"error": {"message": words, "type": kind, "param": None, "code": None}}, status)

    async def _upload(self, request: Request) -> Response:
        parts = {
            part.name: part for part in parse_form(request.headers["content-type"], await request.body())
        }
        if parts["purpose"].value != b"batch":
            raise Refusal("purpose: only 'batch' here")
        name = parts["file"].filename or ""
        if not name.endswith(".jsonl"):
            raise Refusal("Invalid file format for Batch API. Must be .jsonl")
        id = f"file-{len(self.files) + 1}"
        self.files[id] = parts["file"].value
        size = len(parts["file"].value)
        file = {
            "id": id, "object": "file", "bytes": size, "created_at": int(time.time()), "filename": name,
            "purpose": "batch", "status": "processed",
        }  # fmt: skip
        self.shown.append(file)
        return JSONResponse(file)

    async def _list_files(self, request: Request) -> Response:
        assert (request.query_params["purpose"], request.query_params["order"]) == ("batch", "desc")
        return self._page(request, [*reversed(self.shown)], 10_000)

    async def _create(self, request: Request) -> Response:
        if self.refuse_create:
            return self.refused(*self.refuse_create.pop(0))
        body = await request.json()
        if unknown := body.keys() - {"completion_window", "endpoint", "input_file_id", "metadata"}:
            raise Refusal(f"Unknown parameter: {sorted(unknown)}")
        if (body.get("completion_window"), body.get("endpoint")) != ("24h", "/v1/chat/completions"):
            raise Refusal("completion_window is 24h, endpoint /v1/chat/completions")
        metadata = body.get("metadata") or {}
        if len(metadata) > 16 or any(len(k) > 64 or len(str(v)) > 512 for k, v in metadata.items()):
            raise Refusal("metadata: too much")
        file = body["input_file_id"]
        if file not in self.files:
            _raise_missing(file)
        batch = self.make(self._requests(self.files[file]), metadata=metadata, input_file=file)
        return self.created(self._shown(batch))

    def _requests(self, data: bytes) -> Iterable[tuple[str, Json]]:
        models = set()
        for number, line in enumerate(data.splitlines(), 1):
            request = json.loads(line)
            if request.keys() != {"custom_id", "method", "url", "body"}:
                raise Refusal(f"line {number}: its fields are {sorted(request)}")
            if (request["method"], request["url"]) != ("POST", "/v1/chat/completions"):
                raise Refusal(f"line {number}: it goes elsewhere")
            if not isinstance(request["custom_id"], str) or not 0 < len(request["custom_id"]) <= 512:
                raise Refusal(f"line {number}: custom_id")
            check_chat(request["body"])
            if request["body"].get("stream"):
                raise Refusal(f"line {number}: a batch does not stream")
            models.add(request["body"]["model"])
            yield request["custom_id"], request["body"]
        if len(models) > 1:
            raise Refusal("A batch has one model.")

    def line(self, custom_id: str, body: Json, fate: Fate) -> Json:
        head = {"id": f"batch_req_{custom_id}", "custom_id": custom_id}
        if fate.kind in ("expired", "cancelled"):
            return {
                **head, "response": None, "error": {"code": f"batch_{fate.kind}", "message": f"It was {fate.kind}."}
            }  # fmt: skip
        if fate.kind == "errored":
            error = {"message": fate.words, "type": fate.error, "param": None, "code": None}
            answer = {"status_code": fate.status, "request_id": "req", "body": {"error": error}}
            return {**head, "response": answer, "error": None}
        answer = {"status_code": 200, "request_id": "req", "body": completion(body["model"], custom_id, fate)}
        return {**head, "response": answer, "error": None}

    def _files_of(self, batch: Batch) -> tuple[list[Json], list[Json]]:
        succeeded = [line for line in batch.lines if (line["response"] or {}).get("status_code") == 200]
        return succeeded, [line for line in batch.lines if line not in succeeded]

    def _shown(self, batch: Batch) -> Json:
        succeeded, failed = self._files_of(batch)
        errors = None
        if batch.status == "failed":
            limit = "" if self.most_bytes is None else f" Limit: {self.most_bytes // 4:,} enqueued tokens."
            advice = "Please try again once some batches have been completed."
            message = self.rejects or f"Enqueued token limit reached.{limit} {advice}"
            data = [{"code": batch.code, "line": None, "message": message, "param": None}]
            errors = {"object": "list", "data": data}
        return {
            "id": batch.id, "object": "batch", "endpoint": "/v1/chat/completions", "errors": errors,
            "input_file_id": batch.input_file, "completion_window": "24h", "status": batch.status,
            "output_file_id": f"file-out-{batch.id}" if succeeded else None,
            "error_file_id": f"file-err-{batch.id}" if failed else None,
            "created_at": int(batch.created), "metadata": batch.metadata,
            "request_counts": {"total": len(batch.requests), "completed": len(succeeded), "failed": len(failed)},
        }  # fmt: skip

    async def _list(self, request: Request) -> Response:
        return self._page(request, [self._shown(batch) for batch in reversed(self.batches)], 100)

    def _page(self, request: Request, items: list[Json], max_limit: int) -> Response:
        if after := request.query_params.get("after"):
            items = items[1 + [item["id"] for item in items].index(after) :]
        limit = int(request.query_params.get("limit", 20))
        assert 1 <= limit <= max_limit
        page = items[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return JSONResponse({"object": "list", "data": page, "has_more": len(items) > limit, **ends})

    async def _retrieve(self, request: Request) -> Response:
        self.polls += 1
        return JSONResponse(self._shown(self.find(request.path_params["id"])))

    async def _cancel(self, request: Request) -> Response:
        batch = self.find(request.path_params["id"])
        if batch.status != "in_progress":
            return self.refused(400, "Cannot cancel a batch that has ended.")
        self.cancel(batch)
        return JSONResponse(self._shown(batch))

    async def _content(self, request: Request) -> Response:
        kind, id = re.fullmatch(r"file-(out|err)-(.+)", request.path_params["id"]).groups()  # type: ignore[union-attr]
        return self.stream(self._files_of(self.find(id))[kind == "err"])

    async def _delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if self.refuse_delete:
            return self.refused(*self.refuse_delete.pop(0))
        self.deleted.append(id)
        self.shown = [each for each in self.shown if each["id"] != id]
        return JSONResponse({"id": id, "object": "file", "deleted": True})


class AnthropicBatchServer(BatchServer):
    """`/v1/messages/batches`."""

    key = "msgbatch"

    def __init__(self, answer: Answers = ok, *, held: bool = False) -> None:
        super().__init__(answer, held=held)
        self.deleted: list[str] = []
        # The version of the API of each batch.
        self.versions: list[str] = []

    def routes(self) -> list[Route]:
        batch_path = "/v1/messages/batches/{id}"
        return [
            self.route("POST", "/v1/messages/batches", self._create),
            self.route("GET", "/v1/messages/batches", self._list),
            self.route("GET", batch_path, self._retrieve),
            self.route("DELETE", batch_path, self._delete),
            self.route("GET", f"{batch_path}/results", self._results),
            self.route("POST", f"{batch_path}/cancel", self._cancel),
        ]

    def unauthorised(self, request: Request) -> Response | None:
        # The SDK sends keys as bearer tokens since its version 2; the API accepts both.
        keys = request.headers.get("x-api-key"), request.headers.get("authorization")
        if keys not in (("sk-ant-own", None), (None, "Bearer sk-ant-own")):
            return self.refused(401, "invalid x-api-key")
        if request.headers.get("anthropic-version") not in ("2023-06-01", "2026-10-21"):
            return self.refused(400, "anthropic-version: header is required")
        return None

    def refused(self, status: int, words: str) -> Response:
        kind = {401: "authentication_error", 404: "not_found_error"}.get(status, "invalid_request_error")
        return JSONResponse(
            {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req"}, status
        )

    async def _create(self, request: Request) -> Response:
        if self.refuse_create:
            return self.refused(*self.refuse_create.pop(0))
        body = await request.json()
        if body.keys() != {"requests"}:
            raise Refusal("requests: the only field")
        self.versions.append(request.headers["anthropic-version"])
        batch = self.make(self._requests(request, body["requests"]))
        return self.created(self._shown(batch))

    def _requests(self, request: Request, requests: list[Json]) -> Iterable[tuple[str, Json]]:
        for index, entry in enumerate(requests):
            if entry.keys() != {"custom_id", "params"} or not _CUSTOM_ID.fullmatch(entry["custom_id"]):
                raise Refusal(f"requests.{index}: custom_id and params")
            params = entry["params"]
            if params.get("stream"):
                raise Refusal(f"requests.{index}.params.stream: not in a batch")
            check_request(orjson.dumps(params), dict(request.headers))
            yield entry["custom_id"], params

    def line(self, custom_id: str, body: Json, fate: Fate) -> Json:
        result: Json
        if fate.kind == "succeeded":
            reply = message(body["model"], custom_id, fate)
            result = {"type": "succeeded", "message": {**reply, "content": bind(reply["content"], body)}}
        elif fate.kind == "errored":
            inner = {"type": fate.error, "message": fate.words}
            result = {"type": "errored", "error": {"type": "error", "error": inner, "request_id": "req"}}
        else:
            result = {"type": {"cancelled": "canceled"}.get(fate.kind, fate.kind)}
        return {"custom_id": custom_id, "result": result}

    def _shown(self, batch: Batch) -> Json:
        is_over = batch.status != "in_progress"
        kinds = [line["result"]["type"] for line in batch.lines]
        counts = {kind: kinds.count(kind) for kind in ("succeeded", "errored", "canceled", "expired")}
        counts["processing"] = 0 if is_over else len(batch.requests)
        at = datetime.fromtimestamp(batch.created, UTC).isoformat()
        return {
            "id": batch.id, "type": "message_batch", "processing_status": "ended" if is_over else "in_progress",
            "request_counts": counts, "created_at": at, "expires_at": at, "ended_at": at if is_over else None,
            "cancel_initiated_at": None, "archived_at": None,
            "results_url": f"{self.base_url}/messages/batches/{batch.id}/results" if is_over else None,
        }  # fmt: skip

    async def _list(self, request: Request) -> Response:
        batches = [*reversed(self.batches)]
        if after := request.query_params.get("after_id"):
            batches = batches[1 + [batch.id for batch in batches].index(after) :]
        limit = int(request.query_params.get("limit", 20))
        page = [self._shown(batch) for batch in batches[:limit]]
        first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return JSONResponse(
            {"data": page, "has_more": len(batches) > limit, "first_id": first_id, "last_id": last_id}
        )

    async def _retrieve(self, request: Request) -> Response:
        self.polls += 1
        return JSONResponse(self._shown(self.find(request.path_params["id"])))

    async def _results(self, request: Request) -> Response:
        batch = self.find(request.path_params["id"])
        if batch.status == "in_progress":
            return self.refused(400, "The batch has not ended.")
        return self.stream(batch.lines)

    async def _cancel(self, request: Request) -> Response:
        batch = self.find(request.path_params["id"])
        self.cancel(batch)
        return JSONResponse(self._shown(batch))

    async def _delete(self, request: Request) -> Response:
        batch = self.find(request.path_params["id"])
        if self.refuse_delete:
            return self.refused(*self.refuse_delete.pop(0))
        if batch.status == "in_progress":
            return self.refused(400, "Cancel it first.")
        self.deleted.append(batch.id)
        return JSONResponse({"id": batch.id, "type": "message_batch_deleted"})


def completion(model: str, id: str, fate: Fate) -> Json:
    """Returns a chat completion."""
    functions = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in fate.calls]
    calls = [
        {"id": f"call_{id[-8:]}_{index}", "type": "function", "function": function}
        for index, function in enumerate(functions)
    ]
    message: Json = {"role": "assistant", "content": None if calls else fate.text, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "tool_calls" if calls else "stop",
    }
    return {
        "id": f"chatcmpl-{id}", "object": "chat.completion", "created": int(time.time()), "model": model,
        "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


def message(model: str, id: str, fate: Fate) -> Json:
    """Returns a message of Anthropic's API."""
    content: list[Json] = [dict(block) for block in fate.blocks] or [
        {"type": "tool_use", "id": f"toolu_{id[-8:]}_{index}", "name": name, "input": arguments}
        for index, (name, arguments) in enumerate(fate.calls)
    ]
    if not content:
        content = [{"type": "text", "text": fate.text}]
    return {
        "id": f"msg_{id}", "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }  # fmt: skip
