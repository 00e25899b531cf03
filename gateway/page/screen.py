"""Screens and actions: a path each, the fields that they take, and what they answer.

A screen answers GET with a record of `gateway.run.admin`: as HTML by its template, and at the same path with `.json`
as JSON. An action answers POST: a page is sent on to where the result is seen, a program gets the record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct
from msgspec.structs import asdict

from gateway.errors import GatewayError
from gateway.page.visitor import Visitor
from gateway.run.admin.link_operations import Right

# Items of a list, where no other number is asked for.
LIMIT = 50
MAX_ITEMS = 200
# Leads to the words of a page that are shown after a change alone.
SAVED = "#saved"


class NoFields(Struct, frozen=True, forbid_unknown_fields=True):
    """Neither query nor form has a field."""


class LimitQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a screen with a list; those with further fields are made of it."""

    # The most items of a page, so that its HTML stays under 100 kB. A twin has as many as are asked for.
    page_limit: ClassVar[int] = LIMIT
    limit: Annotated[int, Meta(ge=1, le=MAX_ITEMS)] = LIMIT


class ListQuery(LimitQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a list that is read from its beginning."""

    # `next` of the page before.
    after: str | None = None


class ScreenRequest(Struct, frozen=True):
    """A request to a screen or an action, whose visitor may make it."""

    visitor: Visitor
    # The parts of the path by their names.
    params: Mapping[str, Any]
    # As the route's `query` has it.
    query: Any
    # The request is for the JSON twin of a page.
    is_twin: bool
    # Notes once a session, memory and hour that a memory was read. memory: its uid.
    note_read: Callable[[str], Awaitable[None]]
    # The screen with the link or the form that led here, relative to /ui/; "": nothing says it.
    referrer: str = ""


class View(Struct, frozen=True):
    """A record, as a page or as JSON. A twin needs nothing but the record."""

    record: Any
    # The file in `templates/` that renders it. It knows `record`, `heading` and what is in `context`.
    template: str = ""
    # The one h1, and the title of the window.
    heading: str = ""
    context: Mapping[str, Any] = {}
    # Why a form was refused, which comes back with its text; the status is the error's. JSON has the error alone.
    error: GatewayError | None = None


class ActionResult(Struct, frozen=True):
    """The result of an action: a redirect for a page, a record for a program."""

    record: Any
    # The path where the result is seen, relative to /ui/ (`page_path`), with a query or a fragment if need be.
    redirect_to: str
    # Cookies to be set.
    cookies: tuple[str, ...] = ()


class Download(Struct, frozen=True):
    """A file."""

    content_type: str
    body: bytes | AsyncIterator[bytes]
    # The name under which a browser saves it; None: it shows it.
    filename: str | None = None


class HtmlDownload(Struct, frozen=True):
    """A file of HTML that stands by itself and may be long: its template is rendered for each part in turn."""

    template: str
    # What the template knows of a part.
    parts: AsyncIterator[Mapping[str, Any]]
    filename: str


Answer = View | ActionResult | Download | HtmlDownload


class Screen(Struct, frozen=True):
    """A screen, at a path below /ui/: "m/{uid}/f/{seq:int}"."""

    path: str
    # Called with the request and its query.
    show: Callable[[ScreenRequest, Any], Awaitable[Answer]]
    # Its fields; unknown, missing and mistyped ones are refused.
    query: type[Struct] = NoFields
    # A person's link opens it, and no session.
    is_for_person: bool = False
    # The right that the link needs.
    right: Right = "see"
    has_twin: bool = True
    # It searches a memory, and may wait for the embedder.
    searches: bool = False


class Action(Struct, frozen=True):
    """A change, at a path below /ui/. An operator who may only read is refused."""

    path: str
    # Called with the request and the form, or the object of the twin.
    perform: Callable[[ScreenRequest, Any], Awaitable[Answer]]
    form: type[Struct] = NoFields
    query: type[Struct] = NoFields
    is_for_person: bool = False
    right: Right = "see"


def fields_of(record: Struct) -> dict[str, Any]:
    """Returns a query or form as it was sent, for a page that shows it again."""
    return {name: value for name, value in asdict(record).items() if value is not None}
