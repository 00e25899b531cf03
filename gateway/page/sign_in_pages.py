"""Signing in and out: sessions with their cookies, keys of programs, and the colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from gateway.errors import GatewayError, MethodNotAllowed
from gateway.page.defence import read_header_values
from gateway.page.page_answers import THEME_COOKIE, NotSignedIn, ReplyMaker
from gateway.page.page_reply import PageReply
from gateway.page.page_request import (
    Bodies,
    PageRequest,
    read_fields,
    read_form,
    read_query_fields,
    safe_next,
)
from gateway.page.screen import ActionResult, NoFields
from gateway.page.sessions import LoginFailures, Sessions
from gateway.page.visitor import Visitor, make_session_name
from gateway.run.admin.access.sign_in import UNKNOWN, Operator, SignIn
from gateway.run.admin.audit_operations import AuditOperations
from gateway.settings import Settings
from storage.digests import digest_secret

# The paths that `SignInPages` answers.
SIGN_IN_PATHS = ("login", "logout", "logout.json", "theme", "theme.json")
# The header of a request that the page makes by itself, to follow a list.
_POLL = b"x-mnemogate-poll"
_SESSION_COOKIE = "mg_ui_"
_THEME_S = 365 * 86_400


class SignInPages:
    """Begins and ends sessions, and finds the visitor of a request.

    now: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        sign_in: SignIn,
        audit: AuditOperations,
        bodies: Bodies,
        reply_maker: ReplyMaker,
        now: Callable[[], float],
    ) -> None:
        ui = settings.ui
        self._sign_in = sign_in
        self._audit = audit
        self._bodies = bodies
        self._reply_maker = reply_maker
        self.sessions = Sessions(now, ui.session_s, ui.idle_s)
        self._failures = LoginFailures(now)
        self._cookie_prefix = ("__Secure-" if ui.https else "") + _SESSION_COOKIE
        self._cookie_attributes = "; SameSite=Strict; Path=/ui" + ("; Secure" if ui.https else "")

    async def bears_session(self, request: PageRequest) -> bool:
        """Returns whether a request has the cookie of a session, which may have ended. Raises: StoreError."""
        return await self._make_cookie_name() in request.cookies

    async def _make_cookie_name(self) -> str:
        """Returns the name of the session's cookie.

        Each database has its own: a browser sends the cookies of a host to every port, and so to other gateways there.
        """
        return self._cookie_prefix + await self._sign_in.load_database_id()

    async def find_visitor(self, request: PageRequest, bearer: str | None) -> Visitor | None:
        """Returns the operator of a session, or of a key; None: there is no session.

        Raises: NotAuthenticated, StoreError.
        """
        if bearer is not None:
            operator = await self._sign_in.find_by_key(bearer)
            if operator is None:
                raise NotSignedIn("This is no operator key. `mnemogate keys create --operator` makes one.")
            assert operator.digest is not None  # an operator who was found by a key has the key's digest
            return _make_visitor(operator, operator.digest)
        token = request.cookies.get(await self._make_cookie_name())
        counts_as_use = not read_header_values(request.scope["headers"], _POLL)
        if token is None or (operator := self.sessions.find(token, counts_as_use=counts_as_use)) is None:
            return None
        if not await self._sign_in.is_valid(operator):
            self.sessions.end(token)
            return None
        request.token = token
        return _make_visitor(operator, digest_secret(token))

    async def respond(self, request: PageRequest) -> PageReply:
        """Answers the paths that need no session. Raises: CallerError."""
        name = request.path.removesuffix(".json")
        if request.is_read and name == "login":
            query = read_fields(read_query_fields(request.scope), _LoginQuery, is_text=True)
            has_ended = request.visitor is None and await self.bears_session(request)
            return self._reply_maker.make_login_page(
                request, next_path=safe_next(query.next), session_has_ended=has_ended
            )
        if request.method != "POST":
            allowed = ("GET", "HEAD", "POST") if name == "login" else ("POST",)
            raise MethodNotAllowed(request.method, request.scope["path"], allowed)
        form = await read_form(self._bodies, request)
        match name:
            case "login":
                return await self._log_in(request, read_fields(form, _Login, is_text=True))
            case "logout":
                read_fields(form, NoFields, is_text=True)
                return await self._log_out(request)
            case _:
                theme = read_fields(form, _Theme, is_text=True).theme
                value = f"{theme}; Max-Age={_THEME_S}" if theme != "system" else "; Max-Age=0"
                cookie = f"{THEME_COOKIE}={value}{self._cookie_attributes}"
                # The focus goes back to the button, at the end of what may be a long page.
                screen = f"{request.referrer or './'}#theme-{theme}"
                return self._reply_maker.make_reply(
                    request, ActionResult({"theme": theme}, screen, (cookie,))
                )

    async def _log_in(self, request: PageRequest, form: _Login) -> PageReply:
        next_path = safe_next(form.next)
        key = form.key.strip()
        operator = await self._sign_in.admit(key)
        if operator is None:
            error = await self._note_failure(key)
            return self._reply_maker.make_login_page(
                request, next_path=next_path, error=error, unsaved_text=form.typed
            )
        token = self.sessions.begin(operator)
        await self._audit.add(operator.actor, "login")
        cookie = f"{await self._make_cookie_name()}={token}; HttpOnly{self._cookie_attributes}"
        return self._reply_maker.make_reply(request, ActionResult({}, next_path, (cookie,)))

    async def _note_failure(self, key: str) -> GatewayError:
        """Counts a failure to sign in, and notes it in the audit. Returns the error for the visitor."""
        retry_after_s = self._failures.add()
        if retry_after_s is not None:
            return _TooMany(
                "Too many attempts have failed. Wait a minute, and try again.", retry_after_s=retry_after_s
            )
        await self._audit.add(UNKNOWN, "login_failed")
        if self._sign_in.is_code(key):
            return NotSignedIn(
                "This sign-in code has expired or was used: it works once, for a minute. "
                "“mnemogate ui” makes a new one: ask who runs the gateway."
            )
        return NotSignedIn(
            "This opens nothing: it is neither a sign-in code nor an operator key. A sign-in code works once, for a "
            "minute."
        )

    async def _log_out(self, request: PageRequest) -> PageReply:
        if request.visitor is None or request.token is None:
            raise NotSignedIn("You are not signed in.")
        self.sessions.end(request.token)
        await self._audit.add(request.visitor.actor, "logout")
        cookie = f"{await self._make_cookie_name()}=; HttpOnly; Max-Age=0{self._cookie_attributes}"
        return self._reply_maker.make_reply(request, ActionResult({"done": True}, "login", (cookie,)))


def _make_visitor(operator: Operator, digest: bytes) -> Visitor:
    """Returns an operator as a visitor. digest: the digest of the session's token, or of the key."""
    return Visitor(operator.actor, operator.project, operator.may_write, make_session_name(digest))


class _LoginQuery(Struct, frozen=True, forbid_unknown_fields=True):
    next: str = ""


class _Login(_LoginQuery, frozen=True, kw_only=True):
    key: str
    # A text that was not saved, which the page shows next to the form.
    typed: str = ""


class _Theme(Struct, frozen=True, forbid_unknown_fields=True):
    theme: Literal["system", "light", "dark"]


class _TooMany(GatewayError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"
