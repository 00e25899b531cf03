"""`/openapi.json` (spec.openapis.org/oas/v3.1.0): the agents API, and the routes on memories and of operators."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from gateway.agents.api._route import AgentsRoute, ConversationConvertor
from gateway.agents.wire.struct_fields import Form
from gateway.run.admin import manage_records as manage
from gateway.run.admin.link_operations import LinkRequest, MadeLink
from gateway.run.admin.request_records import ExplainedRequest

_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")
_NOT_WORD = re.compile(r"\W+")
# An error of the agents API.
_DETAIL = {
    "type": "object",
    "properties": {"detail": {"type": ["string", "array"], "items": {"$ref": "#/components/schemas/Fault"}}},
    "required": ["detail"],
}
# A fault in the fields of a request, as such an error lists it.
_FAULT = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
        "msg": {"type": "string"},
        "input": {},
    },
    "required": ["type", "loc", "msg"],
}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
# The patterns of parameters in paths, by convertor. OpenAI's conversations have the same path with other ids.
_PATTERNS = {"conversation": {"pattern": f"^({ConversationConvertor.regex})$"}}
# The meanings of the statuses of errors.
_ERRORS = {
    "400": "A value that is not allowed here.",
    "401": "No key, or a wrong one.",
    "403": "A key that does not open this, or a memory that is paused.",
    "404": "There is no such thing in this project.",
    "409": "Another request was faster, or a name is taken.",
    "413": "The body is too large.",
    "415": "A file that cannot be read.",
    "422": "A value of the wrong form; `detail` names the field.",
    "429": "Too many sends wait for this agent.",
    "503": "The store or the upstream cannot be had at the moment.",
}
# An error of the routes below `/v1/memory/` and `/v1/manage/`.
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
            "required": ["message"],
        }
    },
    "required": ["error"],
}


class WebRoute(Struct, frozen=True):
    """A route below `/v1/memory/` or `/v1/manage/`, which gateway/web/memory_api.py or gateway/web/manage serves."""

    method: str
    path: str
    summary: str
    answer: type[Struct]
    # The struct of the JSON body; `FileBody`: the body is a file; None: there is none.
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    status: str = "200"
    # The type of `id` in the path: a key or a limit has the number of its row.
    id_type: str = "string"


class FileBody(Struct, frozen=True):
    """Stands for a body that is a file."""


_KEYS, _KEY = "/v1/manage/keys", "/v1/manage/keys/{id}"
_LIMITS, _LIMIT = "/v1/manage/limits", "/v1/manage/limits/{id}"
_IMPORTS, _USAGE = "/v1/manage/imports", "/v1/manage/usage"
WEB_ROUTES = (
    WebRoute("GET", "/v1/memory/requests/{id}", "Show why a reply recalled what it did.", ExplainedRequest),
    WebRoute("POST", "/v1/memory/links", "Make a link that opens a memory to its person.", MadeLink, LinkRequest),
    WebRoute("GET", _USAGE, "Add up what requests used.", manage.UsagePage, query=manage.UsageParameters),
    WebRoute("GET", "/v1/manage/me", "Show a key to its holder.", manage.HeldKey, query=manage.OfUser),
    WebRoute("GET", _KEYS, "List keys.", manage.KeyList, query=manage.ListParameters),
    WebRoute("POST", _KEYS, "Make a key.", manage.ManagedNewKey, manage.KeyBody, status="201"),
    WebRoute("GET", _KEY, "Show a key.", manage.ManagedKey, id_type="integer"),
    WebRoute("PATCH", _KEY, "Change a key.", manage.ManagedKey, manage.KeyChange, id_type="integer"),
    WebRoute("DELETE", _KEY, "Revoke a key.", manage.DeletedRecord, id_type="integer"),
    WebRoute(
        "POST", f"{_KEY}/rotate", "Give a key another secret.", manage.ManagedNewKey, manage.RotationBody,
        id_type="integer",
    ),
    WebRoute("GET", _LIMITS, "List limits.", manage.LimitList, query=manage.ListParameters),
    WebRoute("POST", _LIMITS, "Add a limit.", manage.ManagedLimit, manage.LimitBody, status="201"),
    WebRoute("GET", _LIMIT, "Show a limit.", manage.ManagedLimit, id_type="integer"),
    WebRoute("PATCH", _LIMIT, "Change a limit.", manage.ManagedLimit, manage.LimitChange, id_type="integer"),
    WebRoute("DELETE", _LIMIT, "Remove a limit.", manage.DeletedRecord, id_type="integer"),
    WebRoute("GET", _IMPORTS, "List imports.", manage.ImportList, query=manage.ListParameters),
    WebRoute(
        "POST", _IMPORTS, "Import a file.", manage.ManagedImport, FileBody, manage.ImportParameters, status="202"
    ),
    WebRoute("GET", f"{_IMPORTS}/{{id}}", "Show an import.", manage.ManagedImport),
    WebRoute("DELETE", f"{_IMPORTS}/{{id}}", "Undo an import.", manage.ManagedImport),
)  # fmt: skip


def describe_routes(rows: Iterable[AgentsRoute], version: str) -> dict[str, Any]:
    """Returns the description of the routes in these rows that are served, and of `WEB_ROUTES`."""
    rows = [row for row in rows if row.is_served]
    types: list[type[Struct] | None] = [each for row in rows for each in (row.body, row.query)]
    types += [each for route in WEB_ROUTES for each in (route.body, route.query, route.answer)]
    structs = {each for each in types if each is not None and each is not FileBody}
    _, components = msgspec.json.schema_components(
        sorted(structs, key=lambda each: each.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = _PARAMETER.sub(r"{\1}", row.path)
        # Where another API has the path without a slash, only the path with it is documented.
        path += "/" if row.slashes == ("/",) or row.needs else ""
        paths.setdefault(path, {})[row.method.lower()] = _describe_agents_route(row, components)
    for route in WEB_ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _describe_web_route(route, components)
    schemas = {**components, "Detail": _DETAIL, "Fault": _FAULT, "Error": _ERROR}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mnemogate: the agents API, memory and management", "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _describe_agents_route(row: AgentsRoute, components: dict[str, Any]) -> dict[str, Any]:
    errors = {status: _response(description, "Detail") for status, description in _ERRORS.items()}
    done = {"description": "Done.", "content": {"application/json": {"schema": {}}}}
    operation = {**_operation_head(row, components), "responses": {"200": done, **errors}}
    if row.body is not None and issubclass(row.body, Form):
        fields = components[row.body.__name__].get("properties", {})
        form = {"type": "object", "properties": {"file": _FILE, **fields}, "required": ["file"]}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    elif row.body is not None:
        operation["requestBody"] = _json_body(row.body)
    return operation


def _describe_web_route(route: WebRoute, components: dict[str, Any]) -> dict[str, Any]:
    is_managing = route.path.startswith("/v1/manage/")
    statuses = ["401", *(["403"] if is_managing else []), "404", "503"]
    if route.body is not None or route.query is not None:
        statuses = ["400", *statuses, "413"]
    operation = {
        **_operation_head(route, components, route.id_type),
        "responses": {
            route.status: _response("Done.", route.answer.__name__),
            **{status: _response(_ERRORS[status], "Error") for status in sorted(statuses)},
        },
    }
    if route.body is FileBody:
        content = {_FILE["contentMediaType"]: {"schema": _FILE}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.body is not None:
        operation["requestBody"] = _json_body(route.body)
    return operation


def _operation_head(
    route: AgentsRoute | WebRoute, components: dict[str, Any], id_type: str = "string"
) -> dict[str, Any]:
    """Returns the id, summary and parameters of an operation. id_type: the type of the parameters in the path."""
    parameters: list[dict[str, Any]] = []
    for name, convertor in _PARAMETER.findall(route.path):
        schema = {"type": id_type, **_PATTERNS.get(convertor, {})}
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.query is not None:
        schema = components[route.query.__name__]
        parameters += [
            {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": each}
            for name, each in schema.get("properties", {}).items()
        ]
    return {
        "operationId": f"{route.method.lower()}{_NOT_WORD.sub('_', route.path)}",
        "summary": route.summary,
        "parameters": parameters,
    }


def _json_body(struct: type[Struct]) -> dict[str, Any]:
    """Returns a JSON body. It has to be sent if one of its fields is required."""
    is_required = any(each.required for each in msgspec.structs.fields(struct))
    return {"required": is_required, "content": _json_content(struct.__name__)}


def _response(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": _json_content(schema)}


def _json_content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
