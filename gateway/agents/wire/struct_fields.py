"""Reads the bodies of the agents API into structs, which also describe them in `/openapi.json`.

Each field has a verdict. Most fields are honoured. A field that is `NoEffect` is stored and returned, without effect
here, and so are the other fields of an object that is `partly_honoured`; the reply's `x-mnemogate-kept` names such
fields that were sent. A field that is `refused` gets a 400 with the reason. A field that no struct has gets a 422.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_args, get_origin

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from gateway import validation
from gateway.agents.wire.faults import Unprocessable, name_type, phrase_fault
from gateway.core.json_limits import MAX_LEVELS, check_values, is_too_deep
from gateway.core.nul import NUL, without_nul
from gateway.errors import BadRequest
from gateway.validation import Fault, Path, list_metas, list_union_members, without_annotations

_VERDICT = "x-verdict"
_HONOURED: Final = "x-honoured"
_NAME: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MAX_REPORTED_NAMES: Final = 50
# The most bytes of a JSON object with names that its sender chooses, such as `metadata`. The object is read and written
# with its row: 300,000 names block the loop for 0.2 s each time, and as many names as fit here for 0.02 s.
MAX_OBJECT_BYTES: Final = 256 * 1024
# The most entries of a list of names or ids. A definition is written in one transaction, and other writes wait for it.
# Not measured: a prompt has room for some hundred blocks or tools.
BOUNDED_LIST: Final = Meta(max_length=1_000)
Strings: TypeAlias = Annotated[list[str], BOUNDED_LIST]
# A name, a label, a key or a tag.
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]
Names: TypeAlias = Annotated[list[Name], BOUNDED_LIST]

T = TypeVar("T")
# The type of a field that may be left out (UNSET, its default), or be null.
Maybe: TypeAlias = T | UnsetType | None
# The type of a parameter of a query that may be left out, or repeated. Unlike a field of a body it is never null.
Repeated: TypeAlias = list[T] | UnsetType
# The type of a field that may be left out, or be null, and is stored without an effect.
NoEffect: TypeAlias = Annotated[T | None, Meta(extra_json_schema={_VERDICT: "no effect"})] | UnsetType


def partly_honoured(*fields: str) -> Meta:
    """Returns the annotation of an object of which only these fields have an effect. Its other fields are stored."""
    return Meta(extra_json_schema={_VERDICT: "partly honoured", _HONOURED: fields})


def refused(reason: str) -> Meta:
    """Returns the annotation of a field that is refused. reason: a sentence for the caller."""
    return Meta(extra_json_schema={_VERDICT: "refused", "description": reason})


# The annotations of fields that several bodies and queries refuse.
HOSTED = refused("It belongs to Letta's hosted product.")
NO_SECRETS = refused("Definitions hold no secrets; the gateway's settings do (tools.headers).")
NO_TEMPLATES = refused("Templates belong to Letta's hosted product.")
READ_ONLY = refused("The gateway says this, not its caller.")
ONE_PROJECT = refused("A key opens one project, and everything that it makes belongs to that.")


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A body. A field that was not sent is UNSET, so that a null differs from a field that is missing."""


class Form(Body):
    """The fields of a form that uploads a file in its field `file`."""


class UrlQuery(Body):
    """The parameters of a query."""


class Entry(Body):
    """An entry of a list that is stored in the row of its owner. The list is bounded as an object is."""


B = TypeVar("B", bound=msgspec.Struct)


def read_body(data: bytes, struct_type: type[B]) -> B:
    """Reads a body. Raises: Unprocessable, with the field; BadRequest for a refused field; BodyTooLarge."""
    return convert(parse(data or b"{}"), struct_type, ("body",))


def parse(data: bytes, path: Path = ("body",)) -> Any:
    """Parses JSON that can be stored. path: its path in the request. Raises: Unprocessable, BodyTooLarge."""
    check_values(data)
    try:
        json = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        fault = Fault((*path, error.pos), f"JSON decode error: {error.msg}", "json_invalid")
        raise Unprocessable(fault) from error
    if is_too_deep(json):
        message = f"JSON may be nested {MAX_LEVELS} levels deep, and this is deeper"
        raise Unprocessable(Fault(path, message, "json_invalid"))
    return without_nul(json) if NUL in data else json


def read_texts(data: bytes) -> dict[str, str]:
    """Reads a body that has a text for each name. Raises: Unprocessable, with the field; BodyTooLarge."""
    try:
        return validation.convert(parse(data or b"{}"), dict[str, str], ("body",))
    except validation.InvalidValue as error:
        raise Unprocessable(phrase_fault(error.fault)) from error


def convert(json: Any, struct_type: type[B], path: Path, *, is_lax: bool = False) -> B:
    """Makes a struct of parsed JSON, or of the parameters of a query.

    path: the path of the JSON in the request, for errors.
    is_lax: True if numbers may be text, as in a query.

    Raises: the errors of `read_body`.
    """
    if not isinstance(json, dict):
        raise Unprocessable(Fault(path, f"Input should be an object, not {name_type(json)}", "model_type"))
    try:
        body = validation.convert(json, struct_type, path, strict=not is_lax)
    except validation.InvalidValue as error:
        raise Unprocessable(phrase_fault(error.fault)) from error
    _check_refused(body)
    _check_sizes(body, path)
    return body


def _check_sizes(body: msgspec.Struct, path: Path) -> None:
    """Raises: Unprocessable if an object or a list of entries in the body, or in a struct in it, is too large."""
    for struct_path, struct in _walk_structs(body):
        for name in _select_fields(type(struct), _is_bounded):
            if isinstance(value := getattr(struct, name), dict | list):
                check_size(value, (*path, *struct_path, name))


def check_size(value: dict[str, Any] | list[Any], path: Path) -> None:
    """Raises: Unprocessable if an object or a list of entries is too large to be stored.

    path: the path of the value in the request.
    """
    if (size := len(msgspec.json.encode(value))) > MAX_OBJECT_BYTES:
        message = f"Its JSON may have {MAX_OBJECT_BYTES:,} bytes, and has {size:,}"
        raise Unprocessable(Fault(path, message))


def _check_refused(body: msgspec.Struct) -> None:
    """Raises: BadRequest if a refused field was sent, in the body or in a struct in it."""
    for path, struct in _walk_structs(body):
        for name, reason in _list_refusals(type(struct)).items():
            value = getattr(struct, name)
            # A client's own defaults send null, false and empty values, which ask for no effect.
            if value is not UNSET and value:
                raise BadRequest(f"{_join_path(path, name)}: {reason}", param=_join_path(path, name))


def list_ignored_fields(body: msgspec.Struct) -> list[str]:
    """Returns the names of the fields that were sent and have no effect here, such as `hidden` or `blocks.hidden`."""
    names: dict[str, None] = {}
    for path, struct in _walk_structs(body):
        for name, honoured in list_stored_fields(type(struct)).items():
            value, dotted = getattr(struct, name), _join_path(path, name)
            if value is UNSET or value is None:
                continue
            if honoured is None:
                names[dotted] = None
            elif isinstance(value, dict):
                names |= {f"{dotted}.{key}": None for key in value if value[key] and key not in honoured}
    # The names become a header, which not every name fits.
    return [name for name in names if _NAME.fullmatch(name)][:_MAX_REPORTED_NAMES]


def _walk_structs(body: msgspec.Struct, path: Path = ()) -> Iterator[tuple[Path, msgspec.Struct]]:
    """Yields a body and the structs in it, each with its path: names of fields and indices in lists.

    The keys of objects are left out of paths, since senders choose them.
    """
    yield path, body
    for name in _select_fields(type(body), _has_struct):
        value, field_path = getattr(body, name), (*path, name)
        entries = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            entries = [*value.values()]
        for n, entry in enumerate(entries):
            if isinstance(entry, msgspec.Struct):
                yield from _walk_structs(entry, (*field_path, n) if isinstance(value, list) else field_path)


def _join_path(path: Path, name: str) -> str:
    """Returns the name of a field for a header or a refusal, without indices."""
    return ".".join([*(key for key in path if isinstance(key, str)), name])


def find_list_fields(struct_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """Returns the names of the fields that hold a list."""
    return _select_fields(struct_type, _is_list)


@cache
def _select_fields(struct_type: type[msgspec.Struct], takes_type: Callable[[Any], bool]) -> tuple[str, ...]:
    """Returns the names of the fields of which a type is taken. takes_type: returns whether a type is taken."""
    return tuple(
        name
        for name, hint in validation.list_field_types(struct_type).items()
        if any(map(takes_type, map(without_annotations, list_union_members(hint))))
    )


# -- verdicts


def _list_verdicts(struct_type: type[msgspec.Struct]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, hint in validation.list_field_types(struct_type).items():
        for meta in list_metas(hint):
            extra = meta.extra_json_schema or {}
            if _VERDICT in extra:
                yield name, extra


@cache
def _list_refusals(struct_type: type[msgspec.Struct]) -> dict[str, str]:
    return {
        name: extra["description"]
        for name, extra in _list_verdicts(struct_type)
        if extra[_VERDICT] == "refused"
    }


@cache
def list_stored_fields(struct_type: type[msgspec.Struct]) -> dict[str, tuple[str, ...] | None]:
    """Returns the fields that are only stored, each with the names that are honoured in it; None: no name is."""
    return {
        name: extra.get(_HONOURED)
        for name, extra in _list_verdicts(struct_type)
        if extra[_VERDICT] != "refused"
    }


# -- types of fields


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is list


def _is_bounded(hint: Any) -> bool:
    """Returns whether a field holds an object of any names, or a list of entries."""
    if get_origin(hint) is list:
        return all(
            validation.is_struct(member) and issubclass(member, Entry)
            for member in list_union_members(get_args(hint)[0])
        )
    return get_origin(hint) is dict and not _has_struct(hint)


def _has_struct(hint: Any) -> bool:
    """Returns whether a field holds a struct, or a list or an object of structs."""
    return validation.is_struct(hint) or any(map(_has_struct, get_args(hint)))
