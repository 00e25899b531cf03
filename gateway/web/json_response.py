"""Replies in JSON."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from adapters.types import JSON_TYPE


class JsonResponse(Response):
    """A response with a value that is written as JSON."""

    media_type = JSON_TYPE

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)
