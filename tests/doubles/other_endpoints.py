"""The endpoints of a strict OpenAI API besides chat completions and models, each as far as a client needs it.

They are pure: a request in, an `Answer` out. A request without a required field, or with an invalid form, is refused.
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
    """A reply."""

    # The body: one piece, or several that are sent as chunks, one by one.
    pieces: Sequence[bytes]
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    # The HTTP status.
    status: int = 200
    # The gates at which the body waits, by the numbers of pieces before them.
    hold_after: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of a form."""

    # The name of the field.
    name: str
    # The value of the field, or the content of the file.
    value: bytes
    # None: the part is no file.
    filename: str | None = None


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """Returns the parts of a form. Raises: Refusal: it is no form, or is not complete."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if not content_type.startswith("multipart/form-data") or boundary is None:
        raise Refusal("Unsupported content type: send 'multipart/form-data'.")
    delimiter = b"\r\n--" + boundary[1].encode()
    preamble, *parts = (b"\r\n" + body).split(delimiter)
    if preamble or not parts or parts.pop().strip() != b"--":
        raise Refusal("Could not parse multipart form.")
    parsed = []
    for part in parts:
        head, blank, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'; name="([^"]+)"', head)
        if not blank or name is None:
            raise Refusal("Could not parse multipart form.")
        filename = re.search(rb'filename="([^"]*)"', head)
        parsed.append(Part(name[1].decode(), value, filename[1].decode() if filename else None))
    return parsed


# The lists that are always empty.
_EMPTY_LISTS = frozenset(
    (
        "batches",
        "vector_stores",
        "containers",
        "skills",
        "videos",
        "fine_tuning/jobs",
        "audio/voice_consents",
    )
)


@dataclass(frozen=True)
class _Request:
    """A request to an endpoint."""

    method: str
    # The segments of the path after the collection.
    segments: list[str]
    content_type: str
    body: bytes
    query: str

    def json(self, *required: str) -> Json:
        """Returns the fields of the body. Raises: Refusal: it is no JSON, or lacks a required field."""
        if not self.content_type.startswith("application/json"):
            raise Refusal("Unsupported content type: send 'application/json'.")
        try:
            fields = orjson.loads(self.body)
        except ValueError as error:
            raise Refusal("We could not parse the JSON body of your request.") from error
        for name in required:
            if name not in fields:
                raise Refusal(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
        return dict(fields)

    def form(self) -> list[Part]:
        """Returns the parts of the body. Raises: Refusal: it is no form, or is not complete."""
        return parse_form(self.content_type, self.body)


class Endpoints:
    """The state of the endpoints."""

    def __init__(self) -> None:
        # The contents of uploaded files, by their ids.
        self.files: dict[str, bytes] = {}
        self.responses = StoredResponses()
        # The gates at which streams of responses wait, by the numbers of events before them.
        self.hold_events: dict[int, Any] = {}
        # Makes the vector of a text for /embeddings.
        self.vector_of: Callable[[str], list[float]] = lambda text: [0.25, float(len(text))]

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, query: str = ""
    ) -> Answer | None:
        """Returns the reply to a request; None: no such endpoint exists. Raises: Refusal."""
        collection, *segments = path.removeprefix("/v1/").split("/")
        request = _Request(method, segments, headers.get("content-type", ""), body, query)
        match collection:
            case "embeddings" | "completions" | "moderations" | "rerank" if (method, segments) == (
                "POST",
                [],
            ):
                return self._ask_model(collection, request)
            case "images":
                return _make_image(request)
            case "audio" if segments != ["voice_consents"]:
                return _make_audio(request)
            case "files" | "uploads":
                return self._answer_files(collection, request)
            case "batches" if segments or method == "POST":
                return _change_batch(request)
            case "responses":
                return self._answer_responses(request)
            case "conversations":
                fields = request.json() if method == "POST" and body else {}
                return _json_or_none(self.responses.answer_conversations(method, segments, query, fields))
        if method == "GET" and path.removeprefix("/v1/") in _EMPTY_LISTS:
            return _json_answer({"object": "list", "data": [], "has_more": False})
        return None

    def _ask_model(self, collection: str, request: _Request) -> Answer:
        match collection:
            case "embeddings":
                fields = request.json("model", "input")
                inputs = _read_input(fields["input"])
                data = [
                    {"object": "embedding", "index": index, "embedding": self.vector_of(text)}
                    for index, text in enumerate(inputs)
                ]
                usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
                return _json_answer(
                    {"object": "list", "data": data, "model": fields["model"], "usage": usage}
                )
            case "completions":
                return _make_completion(request.json("model", "prompt"))
            case "moderations":
                model = request.json("input").get("model", "omni-moderation-latest")
                return _json_answer({"id": "modr-1", "model": model, "results": [{"flagged": False}]})
            case _:
                fields = request.json("model", "query", "documents")
                scored = [
                    {"index": index, "relevance_score": 1 / (index + 1)}
                    for index in range(len(fields["documents"]))
                ]
                return _json_answer({"id": "rerank-1", "model": fields["model"], "results": scored})

    def _answer_responses(self, request: _Request) -> Answer | None:
        match request.method, request.segments:
            case "POST", []:
                fields = request.json("model", "input")
                pieces = self.responses.answer(fields)
                return self._stream(pieces) if fields.get("stream") else Answer(pieces)
            case "POST", ["compact"]:
                return _json_answer(self.responses.compact(request.json("model")))
            case "POST", ["input_tokens"]:
                return _json_answer({"object": "response.input_tokens", "input_tokens": 9})
            case "GET", [id] if "stream=true" in request.query:
                return self._stream(self.responses.list_events(id, request.query))
            case method, [_, *_]:
                return _json_or_none(
                    self.responses.answer_stored_response(method, request.segments, request.query)
                )
        return None

    def _stream(self, events: Sequence[bytes]) -> Answer:
        return Answer(events, {"content-type": "text/event-stream"}, hold_after=dict(self.hold_events))

    def _answer_files(self, collection: str, request: _Request) -> Answer | None:
        match request.method, request.segments:
            case "POST", [] if collection == "files":
                parts = request.form()
                content = _get_file(parts, "file")
                if not any(part.name == "purpose" for part in parts):
                    raise Refusal("'purpose' is a required property", "purpose")
                name = f"file-{len(self.files) + 1}"
                self.files[name] = content
                return _json_answer(_render_file(name, content))
            case "POST", []:
                fields = request.json("bytes", "filename", "mime_type", "purpose")
                return _json_answer({"id": "upload_1", "object": "upload", "status": "pending", **fields})
            case "POST", [name, "parts"]:
                _get_file(request.form(), "data")
                return _json_answer({"id": "part_1", "object": "upload.part", "upload_id": name})
            case "POST", [name, "complete" | "cancel" as action]:
                return _json_answer({"id": name, "object": "upload", "status": f"{action}d"})
            case "GET", []:
                data = [_render_file(name, content) for name, content in self.files.items()]
                return _json_answer({"object": "list", "data": data, "has_more": False})
            case "GET" | "DELETE", [name, *_] if name not in self.files:
                raise Refusal(f"No such File object: {name}", "id", status=404)
            case "GET", [name]:
                return _json_answer(_render_file(name, self.files[name]))
            case "GET", [name, "content"]:
                return Answer([self.files[name]], {"content-type": "application/octet-stream"})
            case "DELETE", [name]:
                del self.files[name]
                return _json_answer({"id": name, "object": "file", "deleted": True})
        return None


def _make_image(request: _Request) -> Answer | None:
    match request.method, request.segments:
        case "POST", ["generations"]:
            request.json("prompt")
            return _json_answer({"created": CREATED, "data": [{"b64_json": "aW1hZ2U="}]})
        case "POST", ["edits"]:
            _get_file(request.form(), "image")
            return _json_answer({"created": CREATED, "data": [{"b64_json": "ZWRpdA=="}]})
    return None


def _make_audio(request: _Request) -> Answer | None:
    match request.method, request.segments:
        case "POST", ["speech"]:
            request.json("model", "input", "voice")
            return Answer([b"ID3\x00", b"\xff\xfb", b"\x90end"], {"content-type": "audio/mpeg"})
        case "POST", ["transcriptions"]:
            parts = request.form()
            audio = _get_file(parts, "file")
            form_fields = {part.name: part.value.decode() for part in parts if part.filename is None}
            if "model" not in form_fields:
                raise Refusal("you must provide a model parameter")
            return _json_answer({"text": f"{form_fields['model']} heard {len(audio)} bytes"})
    return None


def _change_batch(request: _Request) -> Answer | None:
    match request.method, request.segments:
        case "POST", []:
            fields = request.json("input_file_id", "endpoint", "completion_window")
            return _json_answer({"id": "batch_1", "object": "batch", "status": "validating", **fields})
        case "GET", [id]:
            return _json_answer({"id": id, "object": "batch", "status": "completed"})
        case "POST", [id, "cancel"]:
            return _json_answer({"id": id, "object": "batch", "status": "cancelling"})
    return None


def _json_or_none(value: Json | None) -> Answer | None:
    return None if value is None else _json_answer(value)


def _json_answer(value: Json) -> Answer:
    return Answer([orjson.dumps(value)])


def _get_file(parts: list[Part], name: str) -> bytes:
    for part in parts:
        if part.name == name and part.filename is not None:
            return part.value
    raise Refusal(f"'{name}' is a required property", name)


def _read_input(value: Any) -> list[str]:
    """Returns the texts of `input` (platform.openai.com/docs/api-reference/embeddings). Raises: Refusal.

    Lists of tokens, which the API accepts as well, are refused.
    """
    inputs = value if isinstance(value, list) else [value]
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


def _render_file(name: str, content: bytes) -> Json:
    return {
        "id": name,
        "object": "file",
        "bytes": len(content),
        "created_at": CREATED,
        "filename": "f",
        "purpose": "batch",
        "status": "processed",
    }


def _make_completion(fields: Json) -> Answer:
    frame = {"id": "cmpl-1", "object": "text_completion", "created": CREATED, "model": fields["model"]}
    choice = {"index": 0, "logprobs": None}
    if not fields.get("stream"):
        return _json_answer({**frame, "choices": [{**choice, "text": "Ok.", "finish_reason": "stop"}]})
    chunks = [
        {**choice, "text": "Ok", "finish_reason": None},
        {**choice, "text": ".", "finish_reason": "stop"},
    ]
    events = [b"data: " + orjson.dumps({**frame, "choices": [chunk]}) + b"\n\n" for chunk in chunks]
    return Answer([*events, b"data: [DONE]\n\n"], {"content-type": "text/event-stream"})
