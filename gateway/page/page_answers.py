"""Answers of the page: HTML by templates, JSON, files, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

import msgspec

from gateway.errors import GatewayError, MemoryNotFound, NotAuthenticated, UnknownPath
from gateway.page.page_reply import PageReply, add_retry, redirect
from gateway.page.page_request import JSON, PageRequest
from gateway.page.screen import ActionResult, Answer, Download, HtmlDownload, View
from gateway.page.visitor import Visitor
from gateway.run.admin.page_paths import STATIC

THEME_COOKIE = "mg_ui_theme"


class NotSignedIn(NotAuthenticated):
    """The visitor has not signed in, or the session has ended."""

    code = "not_signed_in"


class Answers:
    """Turns the answers of screens and actions, and errors, into replies.

    now: seconds since the epoch.
    paths: of all screens and actions; the navigation links to those of them that it has a name for.
    """

    def __init__(self, now: Callable[[], float], paths: Collection[str]) -> None:
        self._now = now
        self._paths = paths
        self._renderer: Any = None

    def reply(self, request: PageRequest, answer: Answer) -> PageReply:
        """Returns the answer of a screen or an action as a page, as JSON, as a file, or as a redirect.

        Any thread may call it.
        """
        match answer:
            case Download():
                return _file_reply(answer)
            case HtmlDownload():
                return _file_reply(
                    Download("text/html; charset=utf-8", self._rendered(answer), answer.filename)
                )
            case ActionResult():
                return _action_reply(request, answer)
            case View() if request.is_twin:
                if answer.error is not None:
                    raise answer.error
                return PageReply(200, JSON, msgspec.json.encode(answer.record))
            case View():
                return self._html(request, answer)

    async def _rendered(self, answer: HtmlDownload) -> AsyncIterator[bytes]:
        made_at = self._now()
        async for part in answer.parts:
            text = await asyncio.to_thread(
                self._pages.render, answer.template, "", {}, made_at=made_at, **part
            )
            yield text.encode("utf-8", "replace")

    def _html(self, request: PageRequest, view: View) -> PageReply:
        visitor, error = request.visitor, view.error
        text = self._pages.render(
            view.template,
            request.raw_path,
            request.query,
            record=view.record,
            heading=view.heading,
            alert=None if error is None else error.message,
            visitor=visitor,
            may_write=visitor is not None and visitor.may_write,
            menu=self._menu(request, visitor),
            theme=theme_of(request.cookies),
            **view.context,
        )
        reply = PageReply(200, "text/html; charset=utf-8", text.encode("utf-8", "replace"))
        if error is not None:
            reply.status = error.status
            add_retry(reply, error)
        return reply

    def _menu(self, request: PageRequest, visitor: Visitor | None) -> list[tuple[str, str, str]]:
        """Returns the links of the navigation: name, path, and its `aria-current`: "page", or "true" above the page."""
        if visitor is None or visitor.link is not None:
            return []
        names = {"": "Overview", "people": "People", "requests": "Requests", "work": "Work"}
        if visitor.project is None and visitor.may_write:
            names["keys"] = "Keys"
        names["audit"] = "Audit"
        first = request.path.partition("/")[0]
        above = {"m": "people", "runs": "people", "r": "requests"}.get(first)
        current = {first: "page", above: "true"}
        return [(name, path, current.get(path, "")) for path, name in names.items() if path in self._paths]

    def error(self, request: PageRequest, error: GatewayError) -> PageReply:
        """Returns the page or the JSON of an error."""
        if request.is_twin:
            body = {"message": error.message, "code": error.code or error.kind, "param": error.param}
            reply = PageReply(error.status, JSON, msgspec.json.encode({"error": body}))
        elif isinstance(error, NotSignedIn):
            return self.login_page(
                request, to=request.referrer, error=error, unsaved_text=request.unsaved_text
            )
        else:
            reply = self._html(
                request, View(None, "error.html", error.message, _error_context(request, error))
            )
            reply.status = error.status
        if error.status == 401:
            reply.headers.append(("www-authenticate", "Bearer"))
        add_retry(reply, error)
        return reply

    def static(self, request: PageRequest) -> PageReply:
        """Returns a static file. Raises: UnknownPath."""
        file = self._pages.files.get(request.path.removeprefix(STATIC))
        if file is None or not request.is_read:
            raise unknown_page()
        _, content_type, data = file
        return PageReply(200, content_type, data, may_be_cached=True)

    def login_page(
        self, request: PageRequest, *, to: str, error: GatewayError | None = None, unsaved_text: str = ""
    ) -> PageReply:
        """Returns the page to sign in at.

        to: the page that follows, relative to /ui/.
        unsaved_text: a text that was not saved, since the session had ended.
        """
        request.visitor = None
        return self._html(
            request, View(None, "login.html", "Sign in", {"next": to, "unsaved_text": unsaved_text}, error)
        )

    @property
    def _pages(self) -> Any:
        if self._renderer is None:
            # Jinja2 is loaded with the first page: a gateway without visitors does without.
            from gateway.page.rendering import Renderer

            self._renderer = Renderer(self._now)
        return self._renderer


def _file_reply(file: Download) -> PageReply:
    headers = []
    if file.filename is not None:
        headers.append(("content-disposition", f'attachment; filename="{file.filename}"'))
    return PageReply(200, file.content_type, file.body, headers)


def _action_reply(request: PageRequest, result: ActionResult) -> PageReply:
    cookies = [("set-cookie", cookie) for cookie in result.cookies]
    if request.is_twin:
        return PageReply(200, JSON, msgspec.json.encode(result.record), cookies)
    reply = redirect(request.path_to_root + result.redirect_to or "./", 303)
    reply.headers += cookies
    return reply


def unknown_page() -> UnknownPath:
    """Returns the error of a path that leads nowhere."""
    return UnknownPath("There is no such page.")


def theme_of(cookies: Mapping[str, str]) -> str | None:
    """Returns the theme that a visitor has chosen; None: that of the system."""
    theme = cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else None


def _error_context(request: PageRequest, error: GatewayError) -> dict[str, Any]:
    """Returns the context of an error's page: a text that was not saved, and where to go on (path and text)."""
    visitor = request.visitor
    home = None
    first, *rest = request.raw_path.split("/")
    if visitor is not None and visitor.link is not None:
        home = f"{first}/{rest[0]}", "What is remembered about you"
    elif (
        visitor is not None
        and first == "m"
        and rest[1:]
        and not isinstance(error, MemoryNotFound | UnknownPath)
    ):
        home = f"m/{rest[0]}", "Back to the memory"
    elif visitor is not None and first == "r" and request.referrer:
        # A list still has what was forgotten since.
        home = request.referrer, "Back"
    elif visitor is not None:
        home = "", "Back to the overview"
    return {"unsaved_text": request.unsaved_text, "home": home}
