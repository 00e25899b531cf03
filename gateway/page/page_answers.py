"""Answers of the page: HTML by templates, JSON, files, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.errors import BadRequest, GatewayError, MemoryNotFound, NotAuthenticated, UnknownPath
from gateway.page.page_reply import PageReply, add_error_headers, redirect
from gateway.page.page_request import JSON, PageRequest
from gateway.page.screen import ActionResult, Answer, Download, HtmlDownload, Redirect, View
from gateway.page.visitor import Visitor
from gateway.run.admin.page_paths import STATIC

if TYPE_CHECKING:
    from gateway.page.rendering import Renderer

THEME_COOKIE = "mg_ui_theme"


class NotSignedIn(NotAuthenticated):
    """The visitor has not signed in, or the session has ended."""

    code = "not_signed_in"


class _MenuLink(NamedTuple):
    name: str
    path: str
    # The attribute `aria-current`: "page": the link leads to this page; "true": to the list that this page belongs to;
    # "": elsewhere.
    aria_current: str


class ReplyMaker:
    """Turns the answers of screens and actions, and errors, into replies."""

    def __init__(self, now: Callable[[], float], paths: Collection[str]) -> None:
        """Makes the maker; templates are loaded when they are needed.

        now: the function that returns the seconds since the epoch.
        paths: the paths of all screens and actions. The navigation has no link to any other path.
        """
        self._now = now
        self._paths = paths
        self._loaded_renderer: Renderer | None = None

    def make_reply(self, request: PageRequest, answer: Answer) -> PageReply:
        """Returns the answer of a screen or an action as a page, as JSON, as a file, or as a redirect.

        Any thread may call it.
        """
        match answer:
            case Download():
                return _make_file_reply(answer)
            case HtmlDownload():
                return _make_file_reply(
                    Download("text/html; charset=utf-8", self._render_parts(answer), answer.filename)
                )
            case Redirect():
                return redirect(request.path_to_root + answer.to, 303)
            case ActionResult():
                return _make_action_reply(request, answer)
            case View() if request.is_twin:
                if answer.error is not None:
                    raise answer.error
                return PageReply(200, JSON, msgspec.json.encode(answer.record))
            case View():
                return self._render_view(request, answer)

    async def _render_parts(self, answer: HtmlDownload) -> AsyncIterator[bytes]:
        made_at = self._now()
        async for context in answer.parts:
            html = await asyncio.to_thread(
                self.renderer.render, answer.template, "", {}, made_at=made_at, **context
            )
            yield html.encode("utf-8", "replace")

    def _render_view(self, request: PageRequest, view: View) -> PageReply:
        visitor, error = request.visitor, view.error
        html = self.renderer.render(
            view.template,
            request.raw_path,
            request.query,
            record=view.record,
            heading=view.heading,
            alert=None if error is None else error.message,
            visitor=visitor,
            may_write=visitor is not None and visitor.may_write,
            menu=self._list_menu(request, visitor),
            theme=_read_theme(request.cookies),
            **view.context,
        )
        reply = PageReply(200, "text/html; charset=utf-8", html.encode("utf-8", "replace"))
        if error is not None:
            reply.status = error.status
            add_error_headers(reply, error)
        return reply

    def _list_menu(self, request: PageRequest, visitor: Visitor | None) -> list[_MenuLink]:
        """Returns the links of the navigation."""
        if visitor is None or visitor.link is not None:
            return []
        names = {"": "Overview", "people": "People", "requests": "Requests", "work": "Work"}
        if visitor.project is None and visitor.may_write:
            names["keys"] = "Keys"
        names["audit"] = "Audit"
        first_part = request.path.partition("/")[0]
        # A request and a run are in lists of their own, and lead on from the memory of a person or an agent.
        list_path = {"m": "people", "r": "requests", "runs": "work"}.get(first_part)
        if list_path is None:
            list_path = first_part
        elif request.referrer.startswith("m/"):
            list_path = "people"
        aria_current = {list_path: "true", request.path: "page"}
        return [
            _MenuLink(name, path, aria_current.get(path, ""))
            for path, name in names.items()
            if path in self._paths
        ]

    def make_error(self, request: PageRequest, error: GatewayError) -> PageReply:
        """Returns the page or the JSON of an error."""
        if request.is_twin:
            body = {"message": error.message, "code": error.code or error.kind, "param": error.param}
            reply = PageReply(error.status, JSON, msgspec.json.encode({"error": body}))
        elif isinstance(error, NotSignedIn):
            return self.make_login_page(
                request, next_path=request.referrer, error=error, unsaved_text=request.unsaved_text
            )
        else:
            reply = self._render_view(
                request,
                View(
                    None,
                    "error.html",
                    error.message,
                    {"unsaved_text": request.unsaved_text, "home": _find_home(request, error)},
                ),
            )
            reply.status = error.status
        add_error_headers(reply, error)
        return reply

    def get_static(self, request: PageRequest) -> PageReply:
        """Returns a static file. Raises: UnknownPath."""
        file = self.renderer.files.get(request.path.removeprefix(STATIC))
        if file is None or not request.is_read:
            raise make_unknown_page_error()
        return PageReply(200, file.content_type, file.data, may_be_cached=True)

    def make_login_page(
        self,
        request: PageRequest,
        *,
        next_path: str,
        error: GatewayError | None = None,
        unsaved_text: str = "",
        session_has_ended: bool = False,
    ) -> PageReply:
        """Returns the page to sign in at.

        next_path: the page that follows the sign-in, relative to /ui/.
        unsaved_text: a text that was not saved, since the session had ended.
        session_has_ended: True if the browser has a session's cookie, and this process has no such session.
        """
        request.visitor = None
        context = {"next": next_path, "unsaved_text": unsaved_text, "session_has_ended": session_has_ended}
        return self._render_view(request, View(None, "login.html", "Sign in", context, error))

    @property
    def renderer(self) -> Renderer:
        """The renderer of all pages. Any thread may use it."""
        if self._loaded_renderer is None:
            # Jinja2 is loaded with the first page: a gateway whose pages are not visited does not need it.
            from gateway.page.rendering import Renderer

            self._loaded_renderer = Renderer(self._now)
        return self._loaded_renderer


def _make_file_reply(file: Download) -> PageReply:
    headers = []
    if file.filename is not None:
        headers.append(("content-disposition", f'attachment; filename="{file.filename}"'))
    return PageReply(200, file.content_type, file.body, headers)


def _make_action_reply(request: PageRequest, result: ActionResult) -> PageReply:
    cookies = [("set-cookie", cookie) for cookie in result.cookies]
    if request.is_twin:
        return PageReply(200, JSON, msgspec.json.encode(result.record), cookies)
    reply = redirect((request.path_to_root + result.redirect_to) or "./", 303)
    reply.headers += cookies
    return reply


def make_unknown_page_error() -> UnknownPath:
    """Returns the error of a path that no screen or action has."""
    return UnknownPath("There is no such page.")


def _read_theme(cookies: Mapping[str, str]) -> str | None:
    """Returns the theme that a visitor has chosen; None: that of the system."""
    theme = cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else None


def _find_home(request: PageRequest, error: GatewayError) -> tuple[str, str] | None:
    """Returns the path and the text of the link on an error's page; None: the visitor is not signed in."""
    visitor = request.visitor
    if visitor is None:
        return None
    if request.referrer and isinstance(error, BadRequest):
        # There it can be put right: the search of too many ticks.
        return request.referrer, "Back"
    first_part, *other_parts = request.raw_path.split("/")
    if visitor.link is not None:
        return f"{first_part}/{other_parts[0]}", "What is remembered about you"
    is_in_memory = first_part == "m" and len(other_parts) > 1
    if is_in_memory and not isinstance(error, MemoryNotFound | UnknownPath):
        return f"m/{other_parts[0]}", "Back to the memory"
    if first_part == "r" and request.referrer:
        # A list still has what was forgotten since.
        return request.referrer, "Back"
    return "", "Back to the overview"
