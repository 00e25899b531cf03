"""GET /v1/manage/usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import BadRequest
from gateway.run.admin.usage_operations import UsageOperations, as_csv
from gateway.run.store_errors import map_store_errors
from gateway.web.manage.access import Access
from gateway.web.middleware import info_of
from gateway.web.query import read_query

MANAGE_PREFIX: Final = "/v1/manage/"
USAGE_PATH: Final = f"{MANAGE_PREFIX}usage"
_CSV: Final = "text/csv; charset=utf-8"


def usage_routes(operations: UsageOperations, access: Access) -> list[Route]:
    """Returns the route of usage."""

    async def show(request: Request) -> Response:
        info_of(request.scope).route = "manage"
        manager = await access.admit(request)
        query = read_query(request.scope)
        form = query.pop("format", "json")
        if form not in ("json", "csv"):
            raise BadRequest(f"format must be json or csv, saw {form!r}.", param="format")
        with map_store_errors():
            page = await operations.show(query, project=manager.project)
        if form == "csv":
            return Response(as_csv(page), headers=_next_link(query, page["next"]), media_type=_CSV)
        return Response(orjson.dumps(page), media_type="application/json")

    return [Route(USAGE_PATH, show, methods=["GET"])]


def _next_link(query: Mapping[str, str], cursor: str | None) -> dict[str, str]:
    """Returns the header of a page of CSV that names the next one (RFC 8288); empty on the last page."""
    if cursor is None:
        return {}
    return {"link": f'<?{urlencode({**query, "format": "csv", "after": cursor})}>; rel="next"'}
