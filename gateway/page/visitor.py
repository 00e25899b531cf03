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
# Sessions of one process; the one that was not used for longest goes. Chosen: some 500 bytes each.
MAX_SESSIONS = 1_000
# Failures to sign in within this time that are answered as such; a further one is asked to wait.
MAX_FAILURES = 10
_FAILURES_S = 60.0


class PersonLink(Struct, frozen=True):
    """The link by which a person sees a memory."""

    memory_uid: str
    project: str
    rights: tuple[str, ...]
    # Seconds since the epoch.
    expires: float
    # Since when the memory is paused.
    paused: float | None


class Visitor(Struct, frozen=True):
    """The visitor who makes a request."""

    # As the audit names it.
    actor: str
    # The only project that it sees; None: all.
    project: str | None
    may_write: bool
    # Names the session, or the key of a program, for `read` in the audit.
    session: str
    # None: of an operator.
    link: PersonLink | None = None

    @property
    def editor(self) -> Editor:
        """The visitor as operations on memories name it."""
        return Editor(self.actor, self.project, "operator" if self.link is None else "person")


class _Session(Struct):
    operator: Operator
    begun: float
    seen: float


class Sessions:
    """The sessions of this process, in memory alone: a restart ends all. Of a token only the hash is held.

    now: seconds since the epoch.
    session_s: how long a session lasts; idle_s: how long it lasts while the operator asks for nothing.
    """

    def __init__(self, now: Callable[[], float], session_s: float, idle_s: float) -> None:
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
        """Returns the operator whose session this is; None: it has ended. is_use: the operator asks for something."""
        digest = _digest(token)
        now = self._now()
        session = self._sessions.get(digest)
        if session is None:
            return None
        if now >= session.begun + self._session_s or now >= session.seen + self._idle_s:
            del self._sessions[digest]
            return None
        if is_use:
            session.seen = now
            self._sessions.move_to_end(digest)
        return session.operator

    def end(self, token: str) -> None:
        self._sessions.pop(_digest(token), None)


class LoginFailures:
    """Counts failures to sign in. now: seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: deque[float] = deque(maxlen=MAX_FAILURES)

    def add(self) -> float | None:
        """Counts a failure. Returns the seconds to wait before another attempt; None: no wait is asked for."""
        now = self._now()
        oldest = self._last[0] if len(self._last) == MAX_FAILURES else None
        self._last.append(now)
        if oldest is None or not 0 <= now - oldest < _FAILURES_S:
            return None
        return _FAILURES_S - (now - oldest)


def name_of_session(token: str) -> str:
    """Returns a name for a session that does not give its token away."""
    return _digest(token).hex()[:16]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
