"""Requests to the page: reads their headers, queries and bodies."""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import msgspec
import orjson
from msgspec import Struct
from starlette.types import Receive, Scope

from gateway.core.nul import check_no_nul
from gateway.errors import BadRequest, BodyTooLarge, CallerError
from gateway.page.defence import RawHeader, read_header_values
from gateway.page.shown_text import restore_hidden
from gateway.page.visitor import Visitor
from gateway.run.admin.fault_errors import make_fault_error
from gateway.validation import InvalidValue, convert

S = TypeVar("S", bound=Struct)

PAGE_PREFIX = "/ui/"
# The pages of people with a link, relative to PAGE_PREFIX.
PERSON_PREFIX = "me/"
# Bytes of a body: three blocks of 100,000 characters, each written as %XX%XX%XX%XX.
MAX_BODY_BYTES = 4 << 20
FORM, JSON = "application/x-www-form-urlencoded", "application/json"
# More than the texts of a search that can be ticked: 200 of its page, 200 facts that are no longer true, 50 others.
_MAX_FIELDS = 500
_MAX_NEXT_CHARS = 1_000
# A percent sign that begins no escape, and counts as a character.
_BARE_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# A part of a path as `page_path` writes it, with escapes. No part begins with a dot, so ".." is excluded.
_PATH_PART = "[A-Za-z0-9_~%-][A-Za-z0-9_~%.-]*"
# A path below /ui/, which may be empty, with or without a query. It has no place for a scheme or a host.
_NEXT = re.compile(rf"({_PATH_PART}(/{_PATH_PART})*)?(\?[!-~]*)?")


class _UnsupportedType(CallerError):
    status = 415
    code = "unsupported_content_type"


class Bodies(Protocol):
    """Reads bodies within limits."""

    def read(self, scope: Scope, receive: Receive) -> AbstractAsyncContextManager[bytes]: ...


class PageRequest(Struct):
    """A request below /ui/. Fields with a default are set while it is served."""

    # The request in the form of ASGI, and the function that returns its body.
    scope: Scope
    receive: Receive
    # The path below /ui/, percent-decoded.
    path: str
    # The path below /ui/ as it came.
    raw_path: str
    # The cookies by their names.
    cookies: dict[str, str]
    # The person or operator who has signed in; None: none has.
    visitor: Visitor | None = None
    # The token of the visitor's session; None: a request without a session.
    token: str | None = None
    # The screen with the link or the form that led here, relative to /ui/; "": unknown.
    referrer: str = ""
    # The text that was typed into a form (`read_typed_text`), for the page of an error.
    unsaved_text: str = ""
    # The fields of the query by their names.
    query: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def is_twin(self) -> bool:
        """The request is for the JSON twin of a page."""
        return self.path.endswith(".json")

    @property
    def is_for_person(self) -> bool:
        """A person's link opens the page, and a session does not."""
        return self.path.startswith(PERSON_PREFIX)

    @property
    def is_read(self) -> bool:
        """The request changes nothing."""
        return self.method in ("GET", "HEAD")

    @property
    def path_to_root(self) -> str:
        """The relative path from the page to `/ui/`, such as "../../"."""
        return "../" * self.raw_path.count("/")


async def read_form(bodies: Bodies, request: PageRequest, repeated: Collection[str] = ()) -> dict[str, Any]:
    """Returns the fields of a form, or the object of a twin.

    repeated: the same as for `read_query_fields`.

    Raises: CallerError.
    """
    expected = JSON if request.is_twin else FORM
    content_types = [
        value.partition(";")[0].strip().lower()
        for value in read_header_values(request.scope["headers"], b"content-type")
    ]
    if content_types != [expected]:
        raise _UnsupportedType(f"The body must be {expected}.", param="content-type")
    try:
        async with bodies.read(request.scope, request.receive) as raw:
            body = bytes(raw)
    except BodyTooLarge as error:
        raise BodyTooLarge(f"The body has more than {MAX_BODY_BYTES} bytes.") from error
    if request.is_twin:
        try:
            value = orjson.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise BadRequest("The body must be a JSON object.")
        return value
    try:
        pairs = _read_pairs(body)
    except ValueError as error:
        raise BadRequest("The form cannot be read.") from error
    return _collect_fields([(name, restore_hidden(text)) for name, text in pairs], repeated)


def read_fields(value: Mapping[str, Any], fields_type: type[S], *, is_text: bool) -> S:
    """Returns the fields of a query, form or twin's body. is_text: True if all values are texts. Raises: BadRequest."""
    try:
        return convert(value, fields_type, strict=not is_text)
    except InvalidValue as error:
        raise make_fault_error(error.fault) from error


def read_typed_text(form: Mapping[str, str]) -> str:
    """Returns the text of a block or a fact, or the name of a key, in a form; "": the form has no such field."""
    return form.get("value") or form.get("text") or form.get("name") or ""


def resume_at(screen: str, form: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Returns the address of a form's screen, relative to /ui/, with some fields of the form in its query.

    names: the names that the screen's query has for these fields, by the names of the form.
    """
    path, _, query = screen.partition("?")
    pairs = [(name, text) for name, text in parse_qsl(query) if name not in names.values()]
    for field, name in names.items():
        value = form.get(field, "")
        pairs += [(name, text) for text in ([value] if isinstance(value, str) else value) if text]
    return safe_next(f"{path}?{urlencode(pairs)}") or screen


def read_bearer(headers: Iterable[RawHeader]) -> str | None:
    """Returns the bearer token of the header `Authorization`; None: there is no such token, or several headers."""
    values = read_header_values(headers, b"authorization")
    if len(values) != 1 or values[0][:7].lower() != "bearer ":
        return None
    return values[0][7:].strip()


def read_cookies(headers: Iterable[RawHeader]) -> dict[str, str]:
    """Returns the cookies of a request. The first cookie of a name counts, since browsers send the closest first."""
    cookies: dict[str, str] = {}
    for part in ";".join(read_header_values(headers, b"cookie")).split(";"):
        name, _, value = part.partition("=")
        cookies.setdefault(name.strip(), value.strip())
    return cookies


def read_query_fields(scope: Scope, repeated: Collection[str] = ()) -> dict[str, Any]:
    """Returns the fields of the query by their names.

    repeated: the names of fields that may come several times; their values are lists.

    Raises: BadRequest.
    """
    try:
        fields = _collect_fields(_read_pairs(scope["query_string"]), repeated)
    except ValueError as error:
        raise BadRequest("The query cannot be read.") from error
    check_no_nul(fields)
    return fields


def make_next(request: PageRequest) -> str:
    """Returns the requested page, for the parameter `next` of the sign-in."""
    query = request.scope["query_string"].decode("latin-1")
    return safe_next(request.raw_path + (f"?{query}" if query else ""))


def safe_next(text: str) -> str:
    """Returns a path relative to /ui/ if a redirect may lead to it; "": it may not."""
    is_safe = len(text) <= _MAX_NEXT_CHARS and _NEXT.fullmatch(text) is not None
    return text if is_safe and "%2e" not in text.partition("?")[0].lower() else ""


def read_referrer(request: PageRequest) -> str:
    """Returns the page with the link or the form that led to a request, relative to /ui/; "": unknown."""
    headers = request.scope["headers"]
    referers, hosts = read_header_values(headers, b"referer"), read_header_values(headers, b"host")
    try:
        url = urlsplit(referers[0] if referers else "")
    except ValueError:
        return ""
    if url.netloc not in hosts:
        return ""
    path = url.path.partition(PAGE_PREFIX)[2]
    return safe_next(path + (f"?{url.query}" if url.query else ""))


def read_searched_words(referrer: str, screen_path: str) -> str:
    """Returns the words of the search that led to the screen with the form of a change; "": none did.

    screen_path: the path of the screen, relative to /ui/. Its query has the words as `words`.
    """
    return read_query_field(referrer, "words") if referrer.partition("?")[0] == screen_path else ""


def read_query_field(address: str, name: str) -> str:
    """Returns the first value of a field in the query of an address; "": the query has no such field."""
    return next(iter(parse_qs(address.partition("?")[2]).get(name, ())), "")


def _read_pairs(encoded: bytes) -> list[tuple[str, str]]:
    """Returns the names and values of `application/x-www-form-urlencoded` (https://url.spec.whatwg.org/, section 5.1).

    Raises: ValueError: they are not UTF-8. BadRequest: they are too many.
    """
    fields = [field for field in encoded.split(b"&", _MAX_FIELDS) if field]
    if len(fields) > _MAX_FIELDS:
        raise BadRequest(f"A request has at most {_MAX_FIELDS} fields. Go back, and choose fewer.")
    parts = (field.partition(b"=") for field in fields)
    return [(_unescape(name), _unescape(value)) for name, _, value in parts]


def _unescape(encoded: bytes) -> str:
    # `urllib.parse` decodes escapes one by one: for a long Chinese text all replies would wait a second.
    # Quoted-printable has the same escapes after another sign, and binascii decodes a text in one call.
    escaped = _BARE_PERCENT.sub(b"%25", encoded).replace(b"+", b" ")
    return a2b_qp(escaped.replace(b"=", b"=3D").replace(b"%", b"=")).decode()


def _collect_fields(pairs: Iterable[tuple[str, str]], repeated: Collection[str]) -> dict[str, Any]:
    """Returns the values of fields by their names. repeated: the same as for `read_query_fields`.

    Raises: BadRequest: another field comes twice.
    """
    fields: dict[str, Any] = {}
    for name, text in pairs:
        if name in repeated:
            fields.setdefault(name, []).append(text)
        elif name in fields:
            raise BadRequest(f"The field {name} is given twice.", param=name)
        else:
            fields[name] = text
    return fields
