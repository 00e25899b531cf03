"""The types of screens and actions. Each has a path, the fields of its query or form, and a function that answers.

A screen answers GET with a record of `gateway.run.admin`: as HTML by its template, and as JSON at the same path with
`.json`. An action answers POST: a browser is redirected to the screen that shows the result, a program gets the record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct
from msgspec.structs import asdict

from gateway.errors import GatewayError
from gateway.page.visitor import Visitor
from gateway.run.admin.access.link_operations import Right

# Items of a list, if the query names no other number.
LIMIT = 50
MAX_ITEMS = 200
# The URL fragment that shows the words of a page that a change was saved.
SAVED = "#saved"
# The fragment that shows the words that nothing was changed.
UNCHANGED = "#unchanged"
# The fragment that shows the words that a fact is shown before each reply from now on, or is not.
ALWAYS_SAVED = "#always-saved"
# The fragment that shows the words that a fact is not mentioned from now on, or can be again.
MUTE_SAVED = "#mute-saved"


class NoFields(Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a query or form that has no field."""


class LimitQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a screen with a list. Queries with further fields are subclasses."""

    # The most items of a page, so that its HTML stays under 100 kB; the JSON twin may have up to `MAX_ITEMS`.
    page_limit: ClassVar[int] = LIMIT
    # The most items that the request asks for.
    limit: Annotated[int, Meta(ge=1, le=MAX_ITEMS)] = LIMIT


class ListQuery(LimitQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a list that is read from its beginning."""

    # The `next` of the previous page; None: the first page.
    after: str | None = None


class ScreenRequest(Struct, frozen=True):
    """A request to a screen or an action. Its visitor is allowed to make it."""

    # The operator or the person who asks.
    visitor: Visitor
    # The parts of the path by their names.
    params: Mapping[str, Any]
    # The query, a struct of the route's type `query`.
    query: Any
    # True if the request is for the JSON twin of a page.
    is_twin: bool
    # Notes in the audit that a memory was read, given the memory's uid; once for each session, memory and hour.
    note_read: Callable[[str], Awaitable[None]]
    # The gateway's address, as the visitor has reached it: "http://127.0.0.1:8080".
    origin: str
    # The screen with the link or the form that led here, relative to /ui/; "": unknown.
    referrer: str = ""


class View(Struct, frozen=True):
    """A record, as a page or as JSON. JSON has only the record."""

    # The record.
    record: Any
    # The file in `templates/` that renders the record. It knows `record`, `heading` and the names in `context`.
    template: str = ""
    # The one h1, and the title of the window.
    heading: str = ""
    # Further names that the template knows, and their values.
    context: Mapping[str, Any] = {}
    # The error for which a form was refused; the page shows the form again with the error, and has its status. JSON
    # has only the error. None: no form was refused.
    error: GatewayError | None = None


class ActionResult(Struct, frozen=True):
    """The result of an action: a redirect for a page, a record for a program."""

    # The record.
    record: Any
    # The path of the screen that shows the result, relative to /ui/ (`page_path`), perhaps with query and fragment.
    redirect_to: str
    # Cookies to be set.
    cookies: tuple[str, ...] = ()


class Redirect(Struct, frozen=True):
    """A redirect from a screen to another one. A JSON twin is never redirected."""

    # The path of the other screen, relative to /ui/ (`page_path`), perhaps with query and fragment.
    to: str


class Download(Struct, frozen=True):
    """A file."""

    # The media type of the file.
    content_type: str
    # The content of the file.
    body: bytes | AsyncIterator[bytes]
    # The name under which a browser saves the file; None: the browser shows the file.
    filename: str | None = None


class HtmlDownload(Struct, frozen=True):
    """A long HTML file that needs no other file: its template is rendered for each part in turn."""

    # The file in `templates/` that renders a part.
    template: str
    # For each part, the names that the template knows and their values.
    parts: AsyncIterator[Mapping[str, Any]]
    # The name under which a browser saves the file.
    filename: str


Answer = View | Redirect | ActionResult | Download | HtmlDownload
# Answers a request to a screen with its query, or a request to an action with its form or the object of the twin.
ScreenHandler = Callable[[ScreenRequest, Any], Awaitable[Answer]]


class Screen(Struct, frozen=True):
    """A screen."""

    # The path below /ui/, such as "m/{uid}/f/{seq:int}".
    path: str
    # Answers a request to the screen.
    show: ScreenHandler
    # The fields of the query. A query with unknown, missing or mistyped fields is refused.
    query: type[Struct] = NoFields
    # True if a person's link opens the screen, and a session does not.
    is_for_person: bool = False
    # The right that the link needs.
    right: Right = "see"
    # True if the screen is also answered as JSON.
    has_twin: bool = True
    # True if the screen searches a memory, and may wait for the embedder.
    searches: bool = False


class Action(Struct, frozen=True):
    """A change. An operator who may only read is refused."""

    # The path below /ui/.
    path: str
    # Makes the change.
    perform: ScreenHandler
    # The fields of the form.
    form: type[Struct] = NoFields
    # The fields of the query, as in `Screen`.
    query: type[Struct] = NoFields
    # True if a person's link allows the change, and a session does not.
    is_for_person: bool = False
    # The right that the link needs.
    right: Right = "see"


def fields_of(record: Struct) -> dict[str, Any]:
    """Returns the fields of a query or form that were sent, for a page that shows them again."""
    return {name: value for name, value in asdict(record).items() if value is not None}
