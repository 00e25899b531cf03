"""Reads of a JSON request to any endpoint the model that it names, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from gateway.core.nesting import check_values
from gateway.core.request.scan import scan
from gateway.core.request.splice import Splice
from gateway.errors import BadRequest


@dataclass(frozen=True, slots=True)
class NamedRequest:
    """A request with the model that it names.

    raw: the body as it came. model: None where it names none, or where the value is no name.
    """

    raw: bytes
    model: str | None = None
    stream: bool = False

    def with_model(self, model: str) -> bytes:
        """Returns the same bytes with another value for `model`; a body that names no model stays as it is."""
        if self.model is None or model == self.model:
            return self.raw
        splice = Splice(scan(self.raw))
        splice.set_member("model", orjson.dumps(model))
        return splice.render()


def parse_named(raw: bytes) -> NamedRequest:
    """Reads a body. raw: empty for a request without one. Raises: BadRequest, BodyTooLarge."""
    if not raw:
        return NamedRequest(raw)
    check_values(raw)
    try:
        json = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(json, dict):
        raise BadRequest("We could not parse the JSON body of your request: expected an object.")
    # Upstreams differ in which of two fields they take; the route and the upstream must mean the same one.
    # (No writer escapes a small letter but to hide it.)
    may_repeat = raw.count(b'"model"') > 1 or b"\\u006" in raw
    if may_repeat and "model" in scan(raw).duplicates:
        raise BadRequest("Duplicate key in the request body: `model`.", param="model")
    model = json.get("model")
    return NamedRequest(raw, model if isinstance(model, str) and model else None, json.get("stream") is True)
