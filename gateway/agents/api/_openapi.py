"""`/openapi.json`, made of the rows that are served. (spec.openapis.org/oas/v3.1.0)"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from gateway.agents.api._route import AgentsRoute, ConversationConvertor
from gateway.run.admin.links import LinkRequest, MadeLink
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


class MemoryRoute(Struct, frozen=True):
    """A route below `/v1/memory/`, which gateway/web/memory_api.py serves."""

    method: str
    path: str
    summary: str
    answer: type[Struct]
    body: type[Struct] | None = None


MEMORY_ROUTES = (
    MemoryRoute(
        "GET", "/v1/memory/requests/{id}", "Show why a reply recalled what it did.", ExplainedRequest
    ),
    MemoryRoute(
        "POST", "/v1/memory/links", "Make a link that opens a memory to its person.", MadeLink, LinkRequest
    ),
)


def document(rows: Iterable[AgentsRoute], version: str) -> dict[str, Any]:
    """Returns the description of these rows, and of the routes on memories."""
    rows = [row for row in rows if row.is_served]
    kinds = {kind for row in rows for kind in (row.body, row.query, row.form) if kind is not None}
    kinds |= {kind for route in MEMORY_ROUTES for kind in (route.body, route.answer) if kind is not None}
    _, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = _PARAMETER.sub(r"{\1}", row.path)
        # Where another API has the path without a slash, only the path with it is documented.
        path += "/" if row.slashes == ("/",) or row.needs else ""
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, components)
    for route in MEMORY_ROUTES:
        paths[route.path] = {route.method.lower(): _memory_operation(route)}
    schemas = {**components, "Detail": _DETAIL, "Fault": _FAULT, "Error": _ERROR}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mnemogate: the agents API and memory", "version": version},
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
    if row.query is not None:
        schema = components[row.query.__name__]
        parameters += [
            {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": each}
            for name, each in schema.get("properties", {}).items()
        ]
    operation: dict[str, Any] = {
        "operationId": f"{row.method.lower()}{_WORD.sub('_', row.path)}",
        "summary": row.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": {}}}},
            **{status: _answer(words, "Detail") for status, words in _ERRORS.items()},
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


def _memory_operation(route: MemoryRoute) -> dict[str, Any]:
    statuses = ("400", "401", "404", "413", "503") if route.body else ("401", "404", "503")
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{_WORD.sub('_', route.path)}",
        "summary": route.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name, _ in _PARAMETER.findall(route.path)
        ],
        "responses": {
            "200": _answer("Done.", route.answer.__name__),
            **{status: _answer(_ERRORS[status], "Error") for status in statuses},
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(route.body.__name__)}
    return operation


def _answer(words: str, name: str) -> dict[str, Any]:
    return {"description": words, "content": _json(name)}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _schema(convertor: str) -> dict[str, Any]:
    """Returns the form of a parameter in a path. A conversation's pattern excludes the names of another API."""
    pattern = {"pattern": f"^({ConversationConvertor.regex})$"} if convertor == "conversation" else {}
    return {"type": "string", **pattern}


def _requires(kind: type[Struct]) -> bool:
    return any(each.required for each in msgspec.structs.fields(kind))
