"""`/openapi.json` (spec.openapis.org/oas/v3.1.0): the agents API, and the routes on memories and of operators."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from gateway.agents.api._route import AgentsRoute, ConversationConvertor
from gateway.agents.wire.struct_fields import Form
from gateway.web.documented_routes import WEB_ROUTES, FileBody, WebRoute

_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")
_NOT_WORD = re.compile(r"\W+")
# The body of an error of the agents API.
_AGENTS_ERROR_SCHEMA = {
    "type": "object",
    "properties": {"detail": {"type": ["string", "array"], "items": {"$ref": "#/components/schemas/Fault"}}},
    "required": ["detail"],
}
# A fault in the fields of a request, as such an error lists it.
_FAULT_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
        "msg": {"type": "string"},
        "input": {},
    },
    "required": ["type", "loc", "msg"],
}
_FILE_SCHEMA = {"type": "string", "contentMediaType": "application/octet-stream"}
# The patterns of parameters in paths, by convertor. OpenAI's conversations have the same path with other ids.
_PATTERNS = {"conversation": {"pattern": f"^({ConversationConvertor.regex})$"}}
# The descriptions of errors, by status.
_STATUS_MEANINGS = {
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
# The body of an error of the routes below `/v1/memory/` and `/v1/manage/`.
_WEB_ERROR_SCHEMA = {
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


def describe_routes(agents_routes: Iterable[AgentsRoute], version: str) -> dict[str, Any]:
    """Returns the description of the agents API's routes that are served, and of `WEB_ROUTES`."""
    agents_routes = [route for route in agents_routes if route.is_served]
    types: list[type[Struct] | None] = [
        struct for route in agents_routes for struct in (route.body, route.query)
    ]
    types += [
        struct for web_route in WEB_ROUTES for struct in (web_route.body, web_route.query, web_route.response)
    ]
    structs = {struct for struct in types if struct is not None and struct is not FileBody}
    _, components = msgspec.json.schema_components(
        sorted(structs, key=lambda struct: struct.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in agents_routes:
        path = _PARAMETER.sub(r"{\1}", route.documented_path)
        paths.setdefault(path, {})[route.method.lower()] = _describe_agents_route(route, components)
    for web_route in WEB_ROUTES:
        operations = paths.setdefault(web_route.path, {})
        operations[web_route.method.lower()] = _describe_web_route(web_route, components)
    errors = {"Detail": _AGENTS_ERROR_SCHEMA, "Fault": _FAULT_SCHEMA, "Error": _WEB_ERROR_SCHEMA}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mnemogate: the agents API, memory and management", "version": version},
        "paths": paths,
        "components": {
            "schemas": components | errors,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _describe_agents_route(route: AgentsRoute, components: dict[str, Any]) -> dict[str, Any]:
    """Returns the operation of a route of the agents API. components: the schemas of all structs, by name."""
    errors = {status: _make_response(meaning, "Detail") for status, meaning in _STATUS_MEANINGS.items()}
    success = {"description": "Done.", "content": {"application/json": {"schema": {}}}}
    operation = {**_make_head(route, components), "responses": {"200": success, **errors}}
    if route.body is not None and issubclass(route.body, Form):
        fields = components[route.body.__name__].get("properties", {})
        form = {"type": "object", "properties": {"file": _FILE_SCHEMA, **fields}, "required": ["file"]}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    elif route.body is not None:
        operation["requestBody"] = _make_body(route.body)
    return operation


def _describe_web_route(route: WebRoute, components: dict[str, Any]) -> dict[str, Any]:
    """Returns the operation of a route of `WEB_ROUTES`. components: the schemas of all structs, by name."""
    statuses = {"401", "404", "503"} | ({"403"} if route.path.startswith("/v1/manage/") else set())
    if route.body is not None or route.query is not None:
        statuses |= {"400", "413"}
    operation = {
        **_make_head(route, components, route.id_type),
        "responses": {
            **{status: _make_response("Done.", route.response.__name__) for status in route.statuses},
            **{status: _make_response(_STATUS_MEANINGS[status], "Error") for status in sorted(statuses)},
        },
    }
    if route.has_csv:
        operation["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    if route.body is FileBody:
        content = {_FILE_SCHEMA["contentMediaType"]: {"schema": _FILE_SCHEMA}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.body is not None:
        operation["requestBody"] = _make_body(route.body)
    return operation


def _make_head(
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
            {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": property_}
            for name, property_ in schema.get("properties", {}).items()
        ]
    return {
        "operationId": f"{route.method.lower()}{_NOT_WORD.sub('_', route.path)}",
        "summary": route.summary,
        "parameters": parameters,
    }


def _make_body(struct: type[Struct]) -> dict[str, Any]:
    """Returns a JSON body. It has to be sent if one of its fields is required."""
    is_required = any(field.required for field in msgspec.structs.fields(struct))
    return {"required": is_required, "content": _make_content(struct.__name__)}


def _make_response(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": _make_content(schema)}


def _make_content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
