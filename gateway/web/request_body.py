"""The body of a JSON request to any endpoint: its fields as they are written, and the model that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.json_limits import check_values
from gateway.core.json_object import read_members
from gateway.dialects.fields import check_model_name
from gateway.dialects.repeated_keys import find_repeated_keys
from gateway.dialects.responses.members import encode_members
from gateway.errors import BadRequest, BodyTooLarge

_MODEL_KEY = b'"model"'


class RequestBody(Struct, frozen=True):
    """A request's body, with the model that it names."""

    # The bytes of the body as they came.
    raw: bytes
    # The model that the body names; None: the body has no `model`, or its value is empty or no text.
    model: str | None = None
    # True: the body asks for a stream.
    is_streamed: bool = False
    # All fields as they are written, by their names.
    members: Mapping[str, msgspec.Raw] = {}
    # The keys that the body has more than once; parsers differ in which value they take.
    repeated_keys: Sequence[str] = ()

    def read_value(self, key: str) -> Any:
        """Returns the decoded value of a field; None: the field is missing, or its value cannot be read."""
        member = self.members.get(key)
        if member is None:
            return None
        value_json = bytes(member)
        try:
            check_values(value_json)
            return orjson.loads(value_json)
        except (BodyTooLarge, orjson.JSONDecodeError):
            return None

    def with_model(self, model: str) -> bytes:
        """Returns the bytes of the body with another value for `model`; a body that names no model stays as it is."""
        if self.model is None or model == self.model:
            return self.raw
        if not _may_repeat(self.raw):
            before_key, key, after_key = self.raw.partition(_MODEL_KEY)
            colon, _, after_value = after_key.partition(bytes(self.members["model"]))
            return b"".join((before_key, key, colon, orjson.dumps(model), after_value))
        members = {key: bytes(value) for key, value in self.members.items()}
        return encode_members({**members, "model": orjson.dumps(model)})

    def with_usage(self) -> RequestBody:
        """Returns the body with `include_usage` in its `stream_options`.

        A body that has it, asks for no stream, or has options that cannot be read stays as it is.
        """
        options = self.read_value("stream_options")
        if options is None:
            options = {}
        # The upstream judges bad or repeated fields.
        if not self.is_streamed or self.repeated_keys or not isinstance(options, dict):
            return self
        if options.get("include_usage") is True:
            return self
        members = {
            **self.members,
            "stream_options": msgspec.Raw(orjson.dumps({**options, "include_usage": True})),
        }
        raw = encode_members({key: bytes(value) for key, value in members.items()})
        return replace(self, raw=raw, members=members)


def read_request_body(raw: bytes) -> RequestBody:
    """Reads a body. raw: the bytes of the body; b"": the request has none. Raises: BadRequest, BodyTooLarge."""
    if not raw:
        return RequestBody(raw)
    try:
        if not raw.isascii():
            raw.decode()  # refuses bytes that are no UTF-8; below only the value of `model` is decoded
        members = read_members(raw)
        model_json = bytes(members.get("model", b"null"))
        model = orjson.loads(model_json) if model_json.startswith(b'"') else None
    except msgspec.ValidationError as error:
        raise BadRequest("We could not parse the JSON body of your request: expected an object.") from error
    except (msgspec.DecodeError, orjson.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from error
    # Upstreams differ in which of two fields counts; for the route and the upstream the same model must count.
    repeated_keys = find_repeated_keys(raw, members)
    if "model" in repeated_keys:
        raise BadRequest("Duplicate key in the request body: `model`.", param="model")
    if model is not None:
        check_model_name(model)
    is_streamed = bytes(members.get("stream", b"null")) == b"true"
    return RequestBody(
        raw, model=model or None, is_streamed=is_streamed, members=members, repeated_keys=repeated_keys
    )


def _may_repeat(raw: bytes) -> bool:
    """Returns whether a body may have the key `model` twice, once perhaps with an escaped letter."""
    return raw.count(_MODEL_KEY) > 1 or b"\\u006" in raw
