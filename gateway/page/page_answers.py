"""Answers of the page: HTML by templates, JSON, files, errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

import msgspec

from gateway.errors import GatewayError, NotAuthenticated, UnknownPath
from gateway.page.page_reply import PageReply, add_retry, redirect
from gateway.page.page_request import JSON, PageRequest, referrer_of
from gateway.page.screen import Answer, Done, Download, Readable, View
from gateway.page.visitor import Visitor

STATIC = "static/"
THEME_COOKIE = "mg_ui_theme"


class NotSignedIn(NotAuthenticated):
    """The visitor has not signed in, or the session has ended."""

    code = "not_signed_in"


class Answers:
    """Makes replies.

    now: seconds since the epoch.
    paths: of all screens and actions.
    """

    def __init__(self, now: Callable[[], float], paths: Collection[str]) -> None:
        self._now = now
        self._paths = paths
        self._renderer: Any = None

    def reply(self, request: PageRequest, found: Answer) -> PageReply:
        """Returns what a screen or an action has found: as a page, as JSON, as a file, or the way to its page."""
        if isinstance(found, Download):
            headers = []
            if found.filename is not None:
                headers.append(("content-disposition", f'attachment; filename="{found.filename}"'))
            return PageReply(200, found.content_type, found.body, headers)
        if isinstance(found, Readable):
            file = Download("text/html; charset=utf-8", self._rendered(found), found.filename)
            return self.reply(request, file)
        if isinstance(found, Done):
            cookies = [("set-cookie", cookie) for cookie in found.cookies]
            if request.is_twin:
                return PageReply(200, JSON, msgspec.json.encode(found.record), cookies)
            reply = redirect(request.up + found.to or "./", 303)
            reply.headers += cookies
            return reply
        if request.is_twin:
            if found.error is not None:
                raise found.error
            return PageReply(200, JSON, msgspec.json.encode(found.record))
        return self._html(request, found)

    async def _rendered(self, found: Readable) -> AsyncIterator[bytes]:
        made_at = self._now()
        async for part in found.parts:
            yield self._pages.render(found.template, "", {}, made_at=made_at, **part).encode(
                "utf-8", "replace"
            )

    def _html(self, request: PageRequest, shown: View) -> PageReply:
        visitor, error = request.visitor, shown.error
        text = self._pages.render(
            shown.template,
            request.raw_path,
            request.query,
            record=shown.record,
            heading=shown.heading,
            alert=None if error is None else error.message,
            visitor=visitor,
            may_write=visitor is not None and visitor.may_write,
            menu=self._menu(request, visitor),
            theme=theme_of(request.cookies),
            **shown.context,
        )
        reply = PageReply(200, "text/html; charset=utf-8", text.encode("utf-8", "replace"))
        if error is not None:
            reply.status = error.status
            add_retry(reply, error)
        return reply

    def _menu(self, request: PageRequest, visitor: Visitor | None) -> list[tuple[str, str, bool]]:
        """Returns the links of the navigation: name, path, whether it is this page."""
        if visitor is None or visitor.link is not None:
            return []
        names = {"": "Overview", "people": "People", "requests": "Requests", "work": "Work"}
        if visitor.project is None and visitor.may_write:
            names["keys"] = "Keys"
        names["audit"] = "Audit"
        first = request.path.partition("/")[0]
        return [(name, path, path == first) for path, name in names.items() if path in self._paths]

    def error(self, request: PageRequest, error: GatewayError) -> PageReply:
        """Returns the page or the JSON of an error."""
        if request.is_twin:
            shown = {"message": error.message, "code": error.code or error.kind, "param": error.param}
            reply = PageReply(error.status, JSON, msgspec.json.encode({"error": shown}))
        elif isinstance(error, NotSignedIn):
            return self.login_page(request, to=referrer_of(request), error=error, typed=request.typed)
        else:
            reply = self._html(request, View(None, "error.html", error.message, _error_context(request)))
            reply.status = error.status
        if error.status == 401:
            reply.headers.append(("www-authenticate", "Bearer"))
        add_retry(reply, error)
        return reply

    def static(self, request: PageRequest) -> PageReply:
        """Returns a static file. Raises: UnknownPath."""
        found = self._pages.files.get(request.path.removeprefix(STATIC))
        if found is None or not request.is_read:
            raise unknown_page()
        _, content_type, data = found
        return PageReply(200, content_type, data, may_be_cached=True)

    @property
    def _pages(self) -> Any:
        if self._renderer is None:
            # Jinja2 is loaded with the first page: a gateway without visitors does without.
            from gateway.page.rendering import Renderer

            self._renderer = Renderer(self._now)
        return self._renderer

    def login_page(
        self, request: PageRequest, *, to: str, error: GatewayError | None = None, typed: str = ""
    ) -> PageReply:
        """Returns the sign-in. to: where it leads, relative to /ui/. typed: a text that was not saved."""
        request.visitor = None
        shown = View(None, "login.html", "Sign in", {"next": to, "typed": typed}, error)
        return self._html(request, shown)


def unknown_page() -> UnknownPath:
    """Returns the error of a path that leads nowhere."""
    return UnknownPath("There is no such page.")


def theme_of(cookies: Mapping[str, str]) -> str | None:
    theme = cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else None


def _error_context(request: PageRequest) -> dict[str, Any]:
    """Returns what an error's page knows: a text that was not saved, and a person's way back."""
    visitor = request.visitor
    is_persons = visitor is not None and visitor.link is not None
    home = "/".join(request.raw_path.split("/")[:2]) if is_persons else None
    return {"typed": request.typed, "home": home}
