"""`/v1/manage/usage`: the sums of usage, as JSON or as CSV, for operators.

An operator of one project sees the sums of this project alone. Both formats come in pages: a page of JSON has the
next page's cursor among its fields, a page of CSV has the next page's URL in a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import BadRequest
from gateway.run.admin.usage.usage_csv import render_usage_csv
from gateway.run.admin.usage.usage_operations import UsageOperations
from gateway.run.store_errors import map_store_errors
from gateway.web.json_response import JsonResponse
from gateway.web.manage.manage_guard import MANAGE_PREFIX, ManageGuard
from gateway.web.query import read_query
from gateway.web.request_info import get_request_info

_USAGE_PATH: Final = f"{MANAGE_PREFIX}usage"
_CSV_TYPE: Final = "text/csv; charset=utf-8"


def make_usage_routes(operations: UsageOperations, guard: ManageGuard) -> list[Route]:
    """Returns the route of usage."""

    async def show_usage(request: Request) -> Response:
        """Answers with a page of sums. Raises: BadRequest, NotAuthenticated, NotAllowed."""
        get_request_info(request.scope).route = "manage"
        project = await guard.admit(request)
        query = read_query(request.scope)
        page_format = query.pop("format", "json")
        if page_format not in ("json", "csv"):
            raise BadRequest(f"format must be json or csv, saw {page_format!r}.", param="format")
        with map_store_errors():
            page = await operations.show(query, project=project)
        if page_format == "csv":
            return Response(
                render_usage_csv(page), headers=_make_link_headers(query, page["next"]), media_type=_CSV_TYPE
            )
        return JsonResponse(page)

    return [Route(_USAGE_PATH, show_usage, methods=["GET"])]


def _make_link_headers(query: Mapping[str, str], cursor: str | None) -> dict[str, str]:
    """Returns the headers by which a page of CSV links to the next page (RFC 8288).

    query: the parameters of the request.
    cursor: the cursor of the next page; None: the page is the last, and has no such headers.
    """
    if cursor is None:
        return {}
    return {"link": f'<?{urlencode({**query, "format": "csv", "after": cursor})}>; rel="next"'}
