"""The other endpoints of a strict OpenAI: enough of each for a client to be satisfied.

Pure: a request in, status, headers and pieces of a body out. It refuses what is cheap to refuse, a form above all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.doubles.openai_rules import Refusal
from tests.doubles.responses_rules import StoredResponses

Json = dict[str, Any]
CREATED = 1_700_000_000


@dataclass(frozen=True)
class Answer:
    """An answer; several pieces are written one by one, chunked."""

    pieces: Sequence[bytes]
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    status: int = 200
    hold_after: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of a form."""

    name: str
    value: bytes
    filename: str | None = None


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """Returns the parts of a form. Raises: Refusal: the form is not complete."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    if not content_type.startswith("multipart/form-data") or found is None:
        raise Refusal("Unsupported content type: send 'multipart/form-data'.")
    mark = b"\r\n--" + found[1].encode()
    first, *parts = (b"\r\n" + body).split(mark)
    if first or not parts or parts.pop().strip() != b"--":
        raise Refusal("Could not parse multipart form.")
    read = []
    for part in parts:
        head, blank, value = part.partition(b"\r\n\r\n")
        named = re.search(rb'; name="([^"]+)"', head)
        if not blank or named is None:
            raise Refusal("Could not parse multipart form.")
        filename = re.search(rb'filename="([^"]*)"', head)
        read.append(Part(named[1].decode(), value, filename[1].decode() if filename else None))
    return read


class Endpoints:
    """The state of the endpoints.

    files: id -> content, as they were uploaded. hold_events: gates of the streams of responses, by how many events
    have left. vector_of: makes the vector of a text for /embeddings.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.responses = StoredResponses()
        self.hold_events: dict[int, Any] = {}
        self.vector_of: Callable[[str], list[float]] = lambda text: [0.25, float(len(text))]

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, query: str = ""
    ) -> Answer | None:
        """Returns the answer to a request, None where there is no such endpoint. Raises: Refusal."""
        place = path.removeprefix("/v1/").split("/")
        kind = headers.get("content-type", "")
        match method, place:
            case "POST", ["embeddings"]:
                asked = _json(body, kind, "model", "input")
                inputs = _check_input(asked["input"])
                data = [
                    {"object": "embedding", "index": i, "embedding": self.vector_of(text)}
                    for i, text in enumerate(inputs)
                ]
                usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
                return _say({"object": "list", "data": data, "model": asked["model"], "usage": usage})
            case "POST", ["completions"]:
                return _completion(_json(body, kind, "model", "prompt"))
            case "POST", ["moderations"]:
                asked = _json(body, kind, "input")
                model = asked.get("model", "omni-moderation-latest")
                return _say({"id": "modr-1", "model": model, "results": [{"flagged": False}]})
            case "POST", ["rerank"]:
                asked = _json(body, kind, "model", "query", "documents")
                scored = [
                    {"index": i, "relevance_score": 1 / (i + 1)} for i in range(len(asked["documents"]))
                ]
                return _say({"id": "rerank-1", "model": asked["model"], "results": scored})
            case "POST", ["images", "generations"]:
                _json(body, kind, "prompt")
                return _say({"created": CREATED, "data": [{"b64_json": "aW1hZ2U="}]})
            case "POST", ["images", "edits"]:
                _need_file(parse_form(kind, body), "image")
                return _say({"created": CREATED, "data": [{"b64_json": "ZWRpdA=="}]})
            case "POST", ["audio", "speech"]:
                _json(body, kind, "model", "input", "voice")
                return Answer([b"ID3\x00", b"\xff\xfb", b"\x90end"], {"content-type": "audio/mpeg"})
            case "POST", ["audio", "transcriptions"]:
                parts = parse_form(kind, body)
                heard = _need_file(parts, "file")
                fields = {part.name: part.value.decode() for part in parts if part.filename is None}
                if "model" not in fields:
                    raise Refusal("you must provide a model parameter")
                return _say({"text": f"{fields['model']} heard {len(heard)} bytes"})
            case _, ["files" | "uploads", *rest]:
                return self._file(method, place[0], rest, kind, body)
            case "POST", ["batches"]:
                asked = _json(body, kind, "input_file_id", "endpoint", "completion_window")
                return _say({"id": "batch_1", "object": "batch", "status": "validating", **asked})
            case (
                "GET",
                ["batches" | "vector_stores" | "containers" | "skills" | "videos"]
                | ["fine_tuning", "jobs"]
                | ["audio", "voice_consents"],
            ):
                return _say({"object": "list", "data": [], "has_more": False})
            case "GET", ["batches", name]:
                return _say({"id": name, "object": "batch", "status": "completed"})
            case "POST", ["batches", name, "cancel"]:
                return _say({"id": name, "object": "batch", "status": "cancelling"})
            case "POST", ["responses"]:
                asked = _json(body, kind, "model", "input")
                events = {"content-type": "text/event-stream"}
                pieces = self.responses.answer(asked)
                return (
                    Answer(pieces, events, hold_after=dict(self.hold_events))
                    if asked.get("stream")
                    else Answer(pieces)
                )
            case "POST", ["responses", "compact"]:
                return _say(self.responses.compact(_json(body, kind, "model")))
            case "POST", ["responses", "input_tokens"]:
                return _say({"object": "response.input_tokens", "input_tokens": 9})
            case "GET", ["responses", name] if "stream=true" in query:
                events = {"content-type": "text/event-stream"}
                return Answer(self.responses.events(name, query), events, hold_after=dict(self.hold_events))
            case _, ["responses", *rest] if rest:
                return _said(self.responses.respond(method, rest, query))
            case _, ["conversations", *rest]:
                asked = _json(body, kind) if method == "POST" and body else {}
                return _said(self.responses.converse(method, rest, query, asked))
        return None

    def _file(self, method: str, where: str, rest: list[str], kind: str, body: bytes) -> Answer | None:
        match method, rest:
            case "POST", [] if where == "files":
                parts = parse_form(kind, body)
                content = _need_file(parts, "file")
                if not any(part.name == "purpose" for part in parts):
                    raise Refusal("'purpose' is a required property", "purpose")
                name = f"file-{len(self.files) + 1}"
                self.files[name] = content
                return _say(_file(name, content))
            case "POST", []:
                asked = _json(body, kind, "bytes", "filename", "mime_type", "purpose")
                return _say({"id": "upload_1", "object": "upload", "status": "pending", **asked})
            case "POST", [name, "parts"]:
                _need_file(parse_form(kind, body), "data")
                return _say({"id": "part_1", "object": "upload.part", "upload_id": name})
            case "POST", [name, "complete" | "cancel" as what]:
                return _say({"id": name, "object": "upload", "status": f"{what}d"})
            case "GET", []:
                data = [_file(name, content) for name, content in self.files.items()]
                return _say({"object": "list", "data": data, "has_more": False})
            case "GET" | "DELETE", [name, *rest] if name not in self.files:
                raise Refusal(f"No such File object: {name}", "id", status=404)
            case "GET", [name]:
                return _say(_file(name, self.files[name]))
            case "GET", [name, "content"]:
                return Answer([self.files[name]], {"content-type": "application/octet-stream"})
            case "DELETE", [name]:
                del self.files[name]
                return _say({"id": name, "object": "file", "deleted": True})
        return None


def _said(value: Json | None) -> Answer | None:
    return None if value is None else _say(value)


def _say(value: Json) -> Answer:
    return Answer([orjson.dumps(value)])


def _json(body: bytes, kind: str, *needed: str) -> Json:
    if not kind.startswith("application/json"):
        raise Refusal("Unsupported content type: send 'application/json'.")
    try:
        asked = orjson.loads(body)
    except ValueError as error:
        raise Refusal("We could not parse the JSON body of your request.") from error
    for name in needed:
        if name not in asked:
            raise Refusal(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    return dict(asked)


def _need_file(parts: list[Part], name: str) -> bytes:
    for part in parts:
        if part.name == name and part.filename is not None:
            return part.value
    raise Refusal(f"'{name}' is a required property", name)


def _check_input(given: Any) -> list[str]:
    """Checks `input` as platform.openai.com/docs/api-reference/embeddings has it, without lists of tokens."""
    inputs = given if isinstance(given, list) else [given]
    if not inputs or len(inputs) > 2048:
        raise Refusal(f"Invalid 'input': an array of 1 to 2048 was expected, got {len(inputs)}.", "input")
    for text in inputs:
        if not isinstance(text, str):
            raise Refusal("Invalid type for 'input'.", "input")
        if not text:
            raise Refusal("Invalid 'input': it cannot be an empty string.", "input")
        if len(text) > 4 * 8192:
            raise Refusal("This model's maximum context length is 8192 tokens.", "input")
    return inputs


def _file(name: str, content: bytes) -> Json:
    return {
        "id": name,
        "object": "file",
        "bytes": len(content),
        "created_at": CREATED,
        "filename": "f",
        "purpose": "batch",
        "status": "processed",
    }


def _completion(asked: Json) -> Answer:
    frame = {"id": "cmpl-1", "object": "text_completion", "created": CREATED, "model": asked["model"]}
    choice = {"index": 0, "logprobs": None}
    if not asked.get("stream"):
        return _say({**frame, "choices": [{**choice, "text": "Ok.", "finish_reason": "stop"}]})
    chunks = [
        {**choice, "text": "Ok", "finish_reason": None},
        {**choice, "text": ".", "finish_reason": "stop"},
    ]
    events = [b"data: " + orjson.dumps({**frame, "choices": [chunk]}) + b"\n\n" for chunk in chunks]
    return Answer([*events, b"data: [DONE]\n\n"], {"content-type": "text/event-stream"})
