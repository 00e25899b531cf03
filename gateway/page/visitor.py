"""Visitors of the page: operators who have signed in, programs with an operator's key, people with a link."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable

from msgspec import Struct

from gateway.run.admin.memory_edits import Editor
from gateway.run.admin.sign_in import Operator

_TOKEN_BYTES = 32
# The most sessions of one process; the least recently used session is dropped. Chosen: some 500 bytes each.
MAX_SESSIONS = 1_000
# After so many failures to sign in within `_FAILURES_S`, the next failure is asked to wait.
MAX_FAILURES = 10
_FAILURES_S = 60.0


class PersonLink(Struct, frozen=True):
    """The link by which a person sees a memory."""

    memory_uid: str
    project: str
    rights: tuple[str, ...]
    # Seconds since the epoch.
    expires: float
    # Since when the memory is paused, in seconds since the epoch; None: it is not paused.
    paused: float | None


class Visitor(Struct, frozen=True):
    """The visitor who makes a request."""

    # The visitor's name in the audit.
    actor: str
    # The only project that the visitor sees; None: all projects.
    project: str | None
    may_write: bool
    # A name of the session, or of a program's key, by which reads are noted only once.
    session: str
    # The link of a person; None: the visitor is an operator.
    link: PersonLink | None = None

    @property
    def editor(self) -> Editor:
        """The visitor in the form that operations on memories take."""
        return Editor(self.actor, self.project, "person" if self.link is not None else "operator")


class _Session(Struct):
    operator: Operator
    began_at: float
    used_at: float


class Sessions:
    """The sessions of this process, in memory alone: a restart ends them all. Of tokens only the hashes are held."""

    def __init__(self, now: Callable[[], float], session_s: float, idle_s: float) -> None:
        """now: returns seconds since the epoch.

        session_s: how long a session lasts.
        idle_s: how long it lasts without a request.
        """
        self._now = now
        self._session_s = session_s
        self._idle_s = idle_s
        # The least recently used first.
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self, operator: Operator) -> str:
        """Begins a session and returns its token."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._now()
        self._sessions[_digest(token)] = _Session(operator, now, now)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def find(self, token: str, *, is_use: bool = True) -> Operator | None:
        """Returns the operator of a session; None: the session has ended. is_use: the request counts as a use of it."""
        digest = _digest(token)
        now = self._now()
        session = self._sessions.get(digest)
        if session is None:
            return None
        ends_at = min(session.began_at + self._session_s, session.used_at + self._idle_s)
        # If the last use is in the future, the clock was put back, and how much time has passed is unknown.
        if not session.used_at <= now < ends_at:
            del self._sessions[digest]
            return None
        if is_use:
            session.used_at = now
            self._sessions.move_to_end(digest)
        return session.operator

    def end(self, token: str) -> None:
        self._sessions.pop(_digest(token), None)


class LoginFailures:
    """Counts failures to sign in. now: seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last_failures: deque[float] = deque(maxlen=MAX_FAILURES)

    def add(self) -> float | None:
        """Counts a failure. Returns the seconds to wait before another attempt; None: no wait is asked for."""
        now = self._now()
        oldest = self._last_failures[0] if len(self._last_failures) == MAX_FAILURES else None
        self._last_failures.append(now)
        if oldest is None or not 0 <= now - oldest < _FAILURES_S:
            return None
        return _FAILURES_S - (now - oldest)


def make_session_name(token: str) -> str:
    """Returns a name for a session that does not give its token away."""
    return _digest(token).hex()[:16]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
