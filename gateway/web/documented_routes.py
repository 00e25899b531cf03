"""The routes below `/v1/memory/` and `/v1/manage/` that `/openapi.json` describes (gateway.agents.api._openapi)."""

from __future__ import annotations

from msgspec import Struct

from gateway.run.admin import manage_records as manage
from gateway.run.admin.access.link_operations import LinkRequest, MadeLink
from gateway.run.admin.records.request_records import ExplainedRequest


class WebRoute(Struct, frozen=True):
    """A route below `/v1/memory/` (served by gateway.web.memory_api) or `/v1/manage/` (by gateway.web.manage)."""

    # The method of HTTP.
    method: str
    # The path, with the names of its parameters in braces.
    path: str
    # The sentence that describes the route.
    summary: str
    # The struct of the JSON body of the response.
    response: type[Struct]
    # The struct of the JSON body of the request; `FileBody` if the body is a file; None: the request has no body.
    body: type[Struct] | None = None
    # The struct of the parameters of the query; None: the route takes none.
    query: type[Struct] | None = None
    # The statuses of success. The response has the same form with each.
    statuses: tuple[str, ...] = ("200",)
    # The type of `id` in the path: a key or a limit has the number of its row.
    id_type: str = "string"
    # True if the response can be requested as CSV.
    has_csv: bool = False


class FileBody(Struct, frozen=True):
    """Stands for a body that is a file."""


# The paths of several routes.
_KEYS = "/v1/manage/keys"
_KEY = "/v1/manage/keys/{id}"
_LIMITS = "/v1/manage/limits"
_LIMIT = "/v1/manage/limits/{id}"
_IMPORTS = "/v1/manage/imports"
_USAGE = "/v1/manage/usage"
WEB_ROUTES = (
    WebRoute("GET", "/v1/memory/requests/{id}", "Show why a reply recalled what it did.", ExplainedRequest),
    WebRoute("POST", "/v1/memory/links", "Make a link that opens a memory to its person.", MadeLink, body=LinkRequest),
    WebRoute(
        "GET", _USAGE, "Add up what requests used.", manage.UsagePage, query=manage.UsageParameters, has_csv=True
    ),
    WebRoute("GET", "/v1/manage/me", "Show a key to its holder.", manage.HeldKey, query=manage.UserParameter),
    WebRoute("GET", _KEYS, "List keys.", manage.KeyList, query=manage.ListParameters),
    WebRoute("POST", _KEYS, "Make a key.", manage.ManagedNewKey, body=manage.KeyBody, statuses=("201",)),
    WebRoute("GET", _KEY, "Show a key.", manage.ManagedKey, id_type="integer"),
    WebRoute("PATCH", _KEY, "Change a key.", manage.ManagedKey, body=manage.KeyChange, id_type="integer"),
    WebRoute("DELETE", _KEY, "Revoke a key.", manage.DeletedRecord, id_type="integer"),
    WebRoute(
        "POST", f"{_KEY}/rotate", "Give a key another secret.", manage.ManagedNewKey, body=manage.RotationBody,
        id_type="integer",
    ),
    WebRoute("GET", _LIMITS, "List limits.", manage.LimitList, query=manage.ListParameters),
    WebRoute("POST", _LIMITS, "Add a limit.", manage.ManagedLimit, body=manage.LimitBody, statuses=("201",)),
    WebRoute("GET", _LIMIT, "Show a limit.", manage.ManagedLimit, id_type="integer"),
    WebRoute("PATCH", _LIMIT, "Change a limit.", manage.ManagedLimit, body=manage.LimitChange, id_type="integer"),
    WebRoute("DELETE", _LIMIT, "Remove a limit.", manage.DeletedRecord, id_type="integer"),
    WebRoute("GET", _IMPORTS, "List imports.", manage.ImportList, query=manage.ListParameters),
    WebRoute(
        "POST", _IMPORTS, "Import a file.", manage.ManagedImport, body=FileBody, query=manage.ImportParameters,
        statuses=("200", "202"),
    ),
    WebRoute("GET", f"{_IMPORTS}/{{id}}", "Show an import.", manage.ManagedImport),
    WebRoute("DELETE", f"{_IMPORTS}/{{id}}", "Undo an import.", manage.ManagedImport),
)  # fmt: skip
