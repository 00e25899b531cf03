"""`/openapi.json`, made of the rows that are served. (spec.openapis.org/oas/v3.1.0)"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from gateway.agents.api._route import AgentsRoute, ConversationConvertor
from gateway.run.admin import manage_records as manage
from gateway.run.admin.link_operations import LinkRequest, MadeLink
from gateway.run.admin.page_records import ExplainedRequest

_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")
_WORD = re.compile(r"\W+")
_DETAIL = {
    "type": "object",
    "properties": {"detail": {"type": ["string", "array"], "items": {"$ref": "#/components/schemas/Fault"}}},
    "required": ["detail"],
}
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
_ERRORS = {
    "400": "A value that is not allowed here.",
    "401": "No key, or a wrong one.",
    "403": "A key that does not open this.",
    "404": "There is no such thing in this project.",
    "409": "Somebody else was faster, or a name is taken.",
    "413": "The body is too large.",
    "415": "A file that cannot be read.",
    "422": "A value of the wrong form; `detail` names the field.",
    "429": "Too many sends wait for this agent.",
    "503": "The store or the upstream cannot be had at the moment.",
}
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


class PlainRoute(Struct, frozen=True):
    """A route below `/v1/memory/` or `/v1/manage/`, which gateway/web/memory_api.py or gateway/web/manage serves."""

    method: str
    path: str
    summary: str
    answer: type[Struct]
    # The struct of the JSON body; `FileBody`: the body is a file; None: there is none.
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    status: str = "200"


class FileBody(Struct, frozen=True):
    """Stands for a body that is a file."""


_KEYS, _LIMITS, _IMPORTS = "/v1/manage/keys", "/v1/manage/limits", "/v1/manage/imports"
PLAIN_ROUTES = (
    PlainRoute("GET", "/v1/memory/requests/{id}", "Show why a reply recalled what it did.", ExplainedRequest),
    PlainRoute(
        "POST", "/v1/memory/links", "Make a link that opens a memory to its person.", MadeLink, LinkRequest
    ),
    PlainRoute(
        "GET",
        "/v1/manage/usage",
        "Add up what requests used.",
        manage.UsagePage,
        query=manage.UsageParameters,
    ),
    PlainRoute("GET", "/v1/manage/me", "Show a key to its holder.", manage.HeldKey, query=manage.OfUser),
    PlainRoute("GET", _KEYS, "List keys.", manage.KeyList, query=manage.ListParameters),
    PlainRoute("POST", _KEYS, "Make a key.", manage.ManagedNewKey, manage.KeyBody, status="201"),
    PlainRoute("GET", f"{_KEYS}/{{id}}", "Show a key.", manage.ManagedKey),
    PlainRoute("PATCH", f"{_KEYS}/{{id}}", "Change a key.", manage.ManagedKey, manage.KeyChange),
    PlainRoute("DELETE", f"{_KEYS}/{{id}}", "Revoke a key.", manage.DeletedRecord),
    PlainRoute(
        "POST",
        f"{_KEYS}/{{id}}/rotate",
        "Give a key another secret.",
        manage.ManagedNewKey,
        manage.RotationBody,
    ),
    PlainRoute("GET", _LIMITS, "List limits.", manage.LimitList, query=manage.ListParameters),
    PlainRoute("POST", _LIMITS, "Add a limit.", manage.ManagedLimit, manage.LimitBody, status="201"),
    PlainRoute("GET", f"{_LIMITS}/{{id}}", "Show a limit.", manage.ManagedLimit),
    PlainRoute("PATCH", f"{_LIMITS}/{{id}}", "Change a limit.", manage.ManagedLimit, manage.LimitChange),
    PlainRoute("DELETE", f"{_LIMITS}/{{id}}", "Remove a limit.", manage.DeletedRecord),
    PlainRoute("GET", _IMPORTS, "List imports.", manage.ImportList, query=manage.ListParameters),
    PlainRoute(
        "POST", _IMPORTS, "Import a file.", manage.ManagedImport, FileBody, manage.ImportParameters, "202"
    ),
    PlainRoute("GET", f"{_IMPORTS}/{{id}}", "Show an import.", manage.ManagedImport),
    PlainRoute("DELETE", f"{_IMPORTS}/{{id}}", "Undo an import.", manage.ManagedImport),
)


def document(rows: Iterable[AgentsRoute], version: str) -> dict[str, Any]:
    """Returns the description of these rows, and of the routes on memories and of operators."""
    rows = [row for row in rows if row.is_served]
    kinds = {kind for row in rows for kind in (row.body, row.query, row.form) if kind is not None}
    kinds |= {
        kind
        for route in PLAIN_ROUTES
        for kind in (route.body, route.answer, route.query)
        if kind not in (None, FileBody)
    }
    _, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = _PARAMETER.sub(r"{\1}", row.path)
        # Where another API has the path without a slash, only the path with it is documented.
        path += "/" if row.slashes == ("/",) or row.needs else ""
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, components)
    for route in PLAIN_ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _plain_operation(route, components)
    schemas = {**components, "Detail": _DETAIL, "Fault": _FAULT, "Error": _ERROR}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mnemogate: the agents API, memory and management", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(row: AgentsRoute, components: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _schema(convertor)}
        for name, convertor in _PARAMETER.findall(row.path)
    ]
    parameters += _query(row.query, components)
    operation: dict[str, Any] = {
        "operationId": f"{row.method.lower()}{_WORD.sub('_', row.path)}",
        "summary": row.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": {}}}},
            **{
                status: _answer(description, "Detail")
                for status, description in _ERRORS.items()
                if status != "403"
            },
        },
    }
    if row.body is not None:
        operation["requestBody"] = {
            "required": _requires(row.body),
            "content": _json(row.body.__name__),
        }
    if row.form is not None:
        fields = components[row.form.__name__].get("properties", {})
        form = {"type": "object", "properties": {"file": _FILE, **fields}, "required": ["file"]}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return operation


def _plain_operation(route: PlainRoute, components: dict[str, Any]) -> dict[str, Any]:
    is_managing = route.path.startswith("/v1/manage/")
    statuses = ["401", *(["403"] if is_managing else []), "404", "503"]
    if route.body is not None or route.query is not None:
        statuses = ["400", *statuses, "413"]
    kind = "integer" if is_managing and route.path.startswith((_KEYS, _LIMITS)) else "string"
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{_WORD.sub('_', route.path)}",
        "summary": route.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": kind}}
            for name, _ in _PARAMETER.findall(route.path)
        ]
        + _query(route.query, components),
        "responses": {
            route.status: _answer("Done.", route.answer.__name__),
            **{status: _answer(_ERRORS[status], "Error") for status in sorted(statuses)},
        },
    }
    if route.body is FileBody:
        operation["requestBody"] = {
            "required": True,
            "content": {_FILE["contentMediaType"]: {"schema": _FILE}},
        }
    elif route.body is not None:
        operation["requestBody"] = {"required": _requires(route.body), "content": _json(route.body.__name__)}
    return operation


def _query(kind: type[Struct] | None, components: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the parameters of a query."""
    if kind is None:
        return []
    schema = components[kind.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": each}
        for name, each in schema.get("properties", {}).items()
    ]


def _answer(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": _json(name)}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _schema(convertor: str) -> dict[str, Any]:
    """Returns the form of a parameter in a path. A conversation's pattern excludes the names of another API."""
    pattern = {"pattern": f"^({ConversationConvertor.regex})$"} if convertor == "conversation" else {}
    return {"type": "string", **pattern}


def _requires(kind: type[Struct]) -> bool:
    """Returns whether a body has to be sent: one of its fields is required."""
    return any(each.required for each in msgspec.structs.fields(kind))
