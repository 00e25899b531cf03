"""Sessions of operators who have signed in to the page, and the limit of failures to sign in."""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Callable

from msgspec import Struct

from gateway.run.admin.access.sign_in import Operator
from storage.digests import digest_secret

# The random bytes of a session's token.
_TOKEN_BYTES = 32
# The most sessions of one process; the least recently used session is dropped. Chosen: some 500 bytes each.
MAX_SESSIONS = 1_000
# After 10 failures of all visitors together within a minute, further failures are answered by 429 and not audited,
# but each key is still checked, so that no visitor can lock an operator out. Guesses fail because keys and codes are
# random. Chosen: more than operators mistype.
MAX_FAILURES = 10
# The seconds for which a failure counts.
_FAILURES_S = 60.0


class _Session(Struct):
    """A session of an operator."""

    # The operator who has signed in.
    operator: Operator
    # The time of the sign-in, in seconds since the epoch.
    began_at: float
    # The time at which a request last used the session, in seconds since the epoch.
    used_at: float


class Sessions:
    """The sessions of this process, in memory alone: a restart ends them all. Of tokens only the hashes are held."""

    def __init__(self, now: Callable[[], float], session_s: float, idle_s: float) -> None:
        """Makes a table without sessions.

        now: returns seconds since the epoch.
        session_s: the most seconds that a session lasts.
        idle_s: the seconds without a request after which it ends.
        """
        self._now = now
        self._session_s = session_s
        self._idle_s = idle_s
        # The sessions by the hashes of their tokens, the least recently used first.
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self, operator: Operator) -> str:
        """Begins a session and returns its token."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._now()
        self._sessions[digest_secret(token)] = _Session(operator, now, now)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def find(self, token: str, *, counts_as_use: bool = True) -> Operator | None:
        """Returns the operator of a session; None: the session has ended.

        counts_as_use: True if the request prolongs the session.
        """
        digest = digest_secret(token)
        now = self._now()
        session = self._sessions.get(digest)
        if session is None:
            return None
        ends_at = min(session.began_at + self._session_s, session.used_at + self._idle_s)
        # If the last use is in the future, the clock was put back, and how much time has passed is unknown.
        if not session.used_at <= now < ends_at:
            del self._sessions[digest]
            return None
        if counts_as_use:
            session.used_at = now
            self._sessions.move_to_end(digest)
        return session.operator

    def end(self, token: str) -> None:
        """Ends a session, if there is one with this token."""
        self._sessions.pop(digest_secret(token), None)


class LoginFailures:
    """Counts the failures of all visitors to sign in. now: returns seconds since the epoch."""

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
