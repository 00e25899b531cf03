"""Strict batch servers of OpenAI and Anthropic on a loopback port, on a thread of their own.

    with OpenAIBatchServer(answer) as server:
        ... the SDK calls server.base_url ...

`answer` takes each request of a batch (custom_id, body) and returns its `Outcome`. The servers refuse requests that the
live endpoints refuse. A batch ends at once, or at `server.finish()` if the server is `held`.
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
class Outcome:
    """The outcome of one request of a batch."""

    kind: Literal["succeeded", "errored", "expired", "cancelled"] = "succeeded"
    # The text of the reply, unless it has calls.
    text: str = "Ok."
    # The calls of the reply, as pairs of name and arguments.
    calls: tuple[tuple[str, Json], ...] = ()
    # The blocks of Anthropic's reply, in place of text and calls.
    blocks: tuple[Json, ...] = ()
    # The status, type and message of the error, if `kind` is "errored".
    status: int = 400
    error_type: str = "invalid_request_error"
    message: str = "It is wrong."
    # How often the outcome is in the results.
    times: int = 1


Answer = Callable[[str, Json], Outcome]


@dataclass
class Batch:
    """A batch in the server."""

    id: str
    # The position among the server's batches, counted from 1.
    number: int
    # custom_id -> the body of the request
    requests: dict[str, Json]
    # The seconds since the epoch.
    created: float
    # The batch's metadata and the id of its input file (OpenAI's alone).
    metadata: Json = field(default_factory=dict)
    input_file: str = ""
    # "in_progress", "completed", "failed", or the `Outcome.kind` with which the whole batch ended.
    status: str = "in_progress"
    # The code of the error with which the batch failed.
    error_code: str = "invalid"
    # The results, as objects of their file.
    results: list[Json] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The model of its first request."""
        return str(next(iter(self.requests.values()))["model"])


def answer_ok(custom_id: str, body: Json) -> Outcome:
    return Outcome()


class _Cut(Exception):
    """Is raised to close a connection in the middle of a reply."""


class _Server(uvicorn.Server):
    """A server that starts and ends by events. uvicorn polls for both."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        # The port, as soon as the server listens.
        self.listens: Future[int] = Future()

    async def main_loop(self) -> None:
        self._loop, self._ends = asyncio.get_running_loop(), asyncio.Event()
        self.listens.set_result(self.servers[0].sockets[0].getsockname()[1])
        await self._ends.wait()

    def end(self) -> None:
        self.force_exit = True
        self._loop.call_soon_threadsafe(self._ends.set)


class BatchServer:
    """The common part of both servers."""

    # The beginning of the ids of its batches.
    id_prefix: ClassVar[str]

    def __init__(self, answer: Answer = answer_ok, *, held: bool = False) -> None:
        """answer: a function that returns the outcome of a request. held: whether batches run until `finish`."""
        self.answer, self.held = answer, held
        # The batches in the order in which they were created.
        self.batches: list[Batch] = []
        # Method and path of each request.
        self.requests: list[tuple[str, str]] = []
        # Whether the results have another order than the requests.
        self.is_shuffled = False
        # The number of bytes after which the connection is lost once while results are read.
        self.results_cut_at: int | None = None
        # Bytes that stand before the results.
        self.results_prefix = b""
        # Whether the connection is lost once after a batch is created, in the middle of the reply.
        self.drops_create_reply = False
        # The reply to all requests; None: the usual replies.
        self.fixed_response: Response | None = None
        # The status and message of the errors that refuse the next requests to create or to delete.
        self.create_refusals: list[tuple[int, str]] = []
        self.delete_refusals: list[tuple[int, str]] = []
        # The message with which a new batch fails as a whole; None: it does not fail.
        self.failure_message: str | None = None
        # The most requests of one model that may be in progress. A batch above this fails as a whole.
        self.max_running_requests: int | None = None
        # The most bytes of a batch. A larger one fails as a whole, with the limit in its message.
        self.max_bytes: int | None = None
        # How often the state of a batch was requested.
        self.polls = 0
        # The messages of the refusals of invalid requests.
        self.refusal_messages: list[str] = []
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
            self.requests.append((method, request.url.path))
            if (fault := self.find_key_error(request)) is not None:
                return fault
            if self.fixed_response is not None:
                return self.fixed_response
            try:
                response: Response = await handle(request)
                return response
            except (Refusal, Refused) as error:
                self.refusal_messages.append(str(error))
                return self.make_error(400, str(error))
            except LookupError as error:
                return self.make_error(404, f"There is no {error}.")

        return Route(path, endpoint, methods=[method])

    def find_key_error(self, request: Request) -> Response | None:
        """Returns the refusal of a request whose key is wrong; None: the key is right."""
        raise NotImplementedError

    def make_error(self, status: int, message: str) -> Response:
        raise NotImplementedError

    # -- batches

    def add_batch(self, requests: Iterable[tuple[str, Json]], **fields: Any) -> Batch:
        """Adds a batch, which has ended unless the server is held.

        requests: the requests as pairs of custom_id and body.
        fields: further fields of the `Batch`.
        """
        bodies: dict[str, Json] = {}
        for custom_id, body in requests:
            if custom_id in bodies:
                raise Refusal(f"custom_id {custom_id!r} is there twice")
            bodies[custom_id] = body
        if not bodies:
            raise Refusal("a batch has one request at least")
        number = next(self._numbers)
        batch = Batch(f"{self.id_prefix}_{number}", number, bodies, time.time(), **fields)
        running_count = sum(
            len(earlier.requests)
            for earlier in self.batches
            if (earlier.status, earlier.model) == ("in_progress", batch.model)
        )
        self.batches.append(batch)
        is_large = self.max_bytes is not None and len(json.dumps(bodies)) > self.max_bytes
        if is_large or (
            self.max_running_requests is not None and running_count + len(bodies) > self.max_running_requests
        ):
            batch.status, batch.error_code = "failed", "token_limit_exceeded"
        elif self.failure_message is not None:
            batch.status = "failed"
        elif not self.held:
            self.end(batch)
        return batch

    def finish(self) -> None:
        """Ends all batches that are in progress."""
        for batch in self.batches:
            if batch.status == "in_progress":
                self.end(batch)

    def cancel(self, batch: Batch, outcome: Outcome | None = None) -> None:
        """Ends a batch in progress. outcome: the outcome of all its requests; None: they are cancelled."""
        if batch.status == "in_progress":
            self.end(batch, outcome or Outcome("cancelled"))

    def end(self, batch: Batch, outcome: Outcome | None = None) -> None:
        """Ends a batch. outcome: the outcome of all its requests; None: `answer` decides each."""
        results = []
        for custom_id, body in batch.requests.items():
            request_outcome = outcome or self.answer(custom_id, body)
            results += [self.make_result(custom_id, body, request_outcome)] * request_outcome.times
        if self.is_shuffled:
            random.Random(batch.number).shuffle(results)
        batch.results = results
        batch.status = "completed" if outcome is None else outcome.kind

    def make_result(self, custom_id: str, body: Json, outcome: Outcome) -> Json:
        """Returns the result of a request, as it stands in the file of results."""
        raise NotImplementedError

    def find_batch(self, id: str) -> Batch:
        return next((batch for batch in self.batches if batch.id == id), None) or _raise_missing(id)

    def stream_results(self, results: Iterable[Json]) -> Response:
        """Returns results as a file, one a line."""
        data = self.results_prefix + b"".join(orjson.dumps(result) + b"\n" for result in results)
        cut, self.results_cut_at = self.results_cut_at, None

        async def pieces() -> AsyncIterator[bytes]:
            if cut is not None:
                yield data[:cut]
                raise _Cut
            for offset in range(0, len(data), 65536):
                yield data[offset : offset + 65536]

        return StreamingResponse(pieces(), media_type="application/binary")

    def make_create_reply(self, body: Json) -> Response:
        """Returns the reply to a request that has created a batch. body: the body of the reply."""
        if not self.drops_create_reply:
            return JSONResponse(body)
        self.drops_create_reply = False

        async def pieces() -> AsyncIterator[bytes]:
            yield b"{"
            raise _Cut

        return StreamingResponse(pieces(), media_type="application/json")


def _raise_missing(name: str) -> Any:
    raise LookupError(name)


class OpenAIBatchServer(BatchServer):
    """`/v1/files` and `/v1/batches`."""

    id_prefix = "batch"

    def __init__(self, answer: Answer = answer_ok, *, held: bool = False) -> None:
        super().__init__(answer, held=held)
        # id -> the content of a file that was uploaded, even if it is deleted
        self.files: dict[str, bytes] = {}
        # The files that are not deleted, as they are listed, the oldest first.
        self.listed_files: list[Json] = []
        # The ids of deleted files.
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

    def find_key_error(self, request: Request) -> Response | None:
        if request.headers.get("authorization") == "Bearer sk-own":
            return None
        return self.make_error(401, "Incorrect API key provided.")

    def make_error(self, status: int, message: str) -> Response:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return JSONResponse(
            {"error": {"message": message, "type": kind, "param": None, "code": None}}, status
        )

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
        self.listed_files.append(file)
        return JSONResponse(file)

    async def _list_files(self, request: Request) -> Response:
        assert (request.query_params["purpose"], request.query_params["order"]) == ("batch", "desc")
        return self._page(request, [*reversed(self.listed_files)], 10_000)

    async def _create(self, request: Request) -> Response:
        if self.create_refusals:
            return self.make_error(*self.create_refusals.pop(0))
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
        batch = self.add_batch(self._read_requests(self.files[file]), metadata=metadata, input_file=file)
        return self.make_create_reply(self._render_batch(batch))

    def _read_requests(self, data: bytes) -> Iterable[tuple[str, Json]]:
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

    def make_result(self, custom_id: str, body: Json, outcome: Outcome) -> Json:
        head = {"id": f"batch_req_{custom_id}", "custom_id": custom_id}
        if outcome.kind in ("expired", "cancelled"):
            error = {"code": f"batch_{outcome.kind}", "message": f"It was {outcome.kind}."}
            return {**head, "response": None, "error": error}
        if outcome.kind == "errored":
            error = {"message": outcome.message, "type": outcome.error_type, "param": None, "code": None}
            answer = {"status_code": outcome.status, "request_id": "req", "body": {"error": error}}
            return {**head, "response": answer, "error": None}
        answer = {
            "status_code": 200,
            "request_id": "req",
            "body": make_completion(body["model"], custom_id, outcome),
        }
        return {**head, "response": answer, "error": None}

    def _split_results(self, batch: Batch) -> tuple[list[Json], list[Json]]:
        """Returns the results of OpenAI's two files: those with a reply, and the others."""
        succeeded = [
            result for result in batch.results if (result["response"] or {}).get("status_code") == 200
        ]
        return succeeded, [result for result in batch.results if result not in succeeded]

    def _render_batch(self, batch: Batch) -> Json:
        succeeded, failed = self._split_results(batch)
        errors = None
        if batch.status == "failed":
            limit = "" if self.max_bytes is None else f" Limit: {self.max_bytes // 4:,} enqueued tokens."
            advice = "Please try again once some batches have been completed."
            message = self.failure_message or f"Enqueued token limit reached.{limit} {advice}"
            data = [{"code": batch.error_code, "line": None, "message": message, "param": None}]
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
        return self._page(request, [self._render_batch(batch) for batch in reversed(self.batches)], 100)

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
        return JSONResponse(self._render_batch(self.find_batch(request.path_params["id"])))

    async def _cancel(self, request: Request) -> Response:
        batch = self.find_batch(request.path_params["id"])
        if batch.status != "in_progress":
            return self.make_error(400, "Cannot cancel a batch that has ended.")
        self.cancel(batch)
        return JSONResponse(self._render_batch(batch))

    async def _content(self, request: Request) -> Response:
        kind, id = re.fullmatch(r"file-(out|err)-(.+)", request.path_params["id"]).groups()  # type: ignore[union-attr]
        return self.stream_results(self._split_results(self.find_batch(id))[kind == "err"])

    async def _delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if self.delete_refusals:
            return self.make_error(*self.delete_refusals.pop(0))
        self.deleted.append(id)
        self.listed_files = [each for each in self.listed_files if each["id"] != id]
        return JSONResponse({"id": id, "object": "file", "deleted": True})


class AnthropicBatchServer(BatchServer):
    """`/v1/messages/batches`."""

    id_prefix = "msgbatch"

    def __init__(self, answer: Answer = answer_ok, *, held: bool = False) -> None:
        super().__init__(answer, held=held)
        # The ids of deleted batches.
        self.deleted: list[str] = []
        # The version of the API with which each batch was created.
        self.api_versions: list[str] = []

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

    def find_key_error(self, request: Request) -> Response | None:
        # The SDK sends keys as bearer tokens since its version 2; the API accepts both.
        keys = request.headers.get("x-api-key"), request.headers.get("authorization")
        if keys not in (("sk-ant-own", None), (None, "Bearer sk-ant-own")):
            return self.make_error(401, "invalid x-api-key")
        if request.headers.get("anthropic-version") not in ("2023-06-01", "2026-10-21"):
            return self.make_error(400, "anthropic-version: header is required")
        return None

    def make_error(self, status: int, message: str) -> Response:
        kind = {401: "authentication_error", 404: "not_found_error"}.get(status, "invalid_request_error")
        return JSONResponse(
            {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req"}, status
        )

    async def _create(self, request: Request) -> Response:
        if self.create_refusals:
            return self.make_error(*self.create_refusals.pop(0))
        body = await request.json()
        if body.keys() != {"requests"}:
            raise Refusal("requests: the only field")
        self.api_versions.append(request.headers["anthropic-version"])
        batch = self.add_batch(self._read_requests(request, body["requests"]))
        return self.make_create_reply(self._render_batch(batch))

    def _read_requests(self, request: Request, requests: list[Json]) -> Iterable[tuple[str, Json]]:
        for index, entry in enumerate(requests):
            if entry.keys() != {"custom_id", "params"} or not _CUSTOM_ID.fullmatch(entry["custom_id"]):
                raise Refusal(f"requests.{index}: custom_id and params")
            params = entry["params"]
            if params.get("stream"):
                raise Refusal(f"requests.{index}.params.stream: not in a batch")
            check_request(orjson.dumps(params), dict(request.headers))
            yield entry["custom_id"], params

    def make_result(self, custom_id: str, body: Json, outcome: Outcome) -> Json:
        result: Json
        if outcome.kind == "succeeded":
            reply = make_message(body["model"], custom_id, outcome)
            result = {"type": "succeeded", "message": {**reply, "content": bind(reply["content"], body)}}
        elif outcome.kind == "errored":
            inner = {"type": outcome.error_type, "message": outcome.message}
            result = {"type": "errored", "error": {"type": "error", "error": inner, "request_id": "req"}}
        else:
            result = {"type": {"cancelled": "canceled"}.get(outcome.kind, outcome.kind)}
        return {"custom_id": custom_id, "result": result}

    def _render_batch(self, batch: Batch) -> Json:
        is_over = batch.status != "in_progress"
        kinds = [result["result"]["type"] for result in batch.results]
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
        page = [self._render_batch(batch) for batch in batches[:limit]]
        first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return JSONResponse(
            {"data": page, "has_more": len(batches) > limit, "first_id": first_id, "last_id": last_id}
        )

    async def _retrieve(self, request: Request) -> Response:
        self.polls += 1
        return JSONResponse(self._render_batch(self.find_batch(request.path_params["id"])))

    async def _results(self, request: Request) -> Response:
        batch = self.find_batch(request.path_params["id"])
        if batch.status == "in_progress":
            return self.make_error(400, "The batch has not ended.")
        return self.stream_results(batch.results)

    async def _cancel(self, request: Request) -> Response:
        batch = self.find_batch(request.path_params["id"])
        self.cancel(batch)
        return JSONResponse(self._render_batch(batch))

    async def _delete(self, request: Request) -> Response:
        batch = self.find_batch(request.path_params["id"])
        if self.delete_refusals:
            return self.make_error(*self.delete_refusals.pop(0))
        if batch.status == "in_progress":
            return self.make_error(400, "Cancel it first.")
        self.deleted.append(batch.id)
        return JSONResponse({"id": batch.id, "type": "message_batch_deleted"})


def make_completion(model: str, id: str, outcome: Outcome) -> Json:
    """Returns a chat completion with the reply of an outcome."""
    functions = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in outcome.calls]
    calls = [
        {"id": f"call_{id[-8:]}_{index}", "type": "function", "function": function}
        for index, function in enumerate(functions)
    ]
    message: Json = {"role": "assistant", "content": None if calls else outcome.text, "refusal": None}
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


def make_message(model: str, id: str, outcome: Outcome) -> Json:
    """Returns a message of Anthropic's API with the reply of an outcome."""
    content: list[Json] = [dict(block) for block in outcome.blocks] or [
        {"type": "tool_use", "id": f"toolu_{id[-8:]}_{index}", "name": name, "input": arguments}
        for index, (name, arguments) in enumerate(outcome.calls)
    ]
    if not content:
        content = [{"type": "text", "text": outcome.text}]
    return {
        "id": f"msg_{id}", "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }  # fmt: skip
