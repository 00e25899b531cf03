"""A JSON request of any endpoint, of which only the model it names is understood."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from gateway.core.request.splice import Splice, scan
from gateway.errors import BadRequest

__all__ = ["NamedRequest", "parse_named"]


@dataclass(frozen=True, slots=True)
class NamedRequest:
    """raw: the body as it came. model: None where it names none, or with a value that is no name."""

    raw: bytes
    model: str | None = None
    stream: bool = False

    def with_model(self, model: str) -> bytes:
        """The same bytes with another value for `model`, if there is one."""
        if self.model is None or model == self.model:
            return self.raw
        splice = Splice(scan(self.raw), self.raw)
        splice.set_member("model", orjson.dumps(model))
        return splice.render()


def parse_named(raw: bytes) -> NamedRequest:
    """raw: empty for a request without a body. Raises: BadRequest."""
    if not raw:
        return NamedRequest(raw)
    try:
        json = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(json, dict):
        raise BadRequest("We could not parse the JSON body of your request: expected an object.")
    if raw.count(b'"model"') > 1 and "model" in scan(raw).duplicates:  # which one would be meant?
        raise BadRequest("Duplicate key in the request body: `model`.", param="model")
    model = json.get("model")
    return NamedRequest(raw, model if isinstance(model, str) and model else None, json.get("stream") is True)
