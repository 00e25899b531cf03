"""Replies in JSON."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.responses import Response

from adapters.types import Header

JSON_TYPE: Final[Header] = ("content-type", "application/json")


class JsonResponse(Response):
    """A response with a value that is written as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)
