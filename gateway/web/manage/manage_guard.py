"""Admits the callers of `/v1/manage`: the owner, by the command line's token, and operators, by their keys."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.requests import Request

from gateway.errors import NotAllowed, NotAuthenticated
from gateway.run.admin.command_line.serving import ADMIN_HEADER
from gateway.web.auth import Guard
from storage.key_record import OPERATOR, Key

MANAGE_PREFIX: Final = "/v1/manage/"


class ManageGuard:
    """Admits callers to `/v1/manage/…`."""

    def __init__(self, guard: Guard, admin_token: str | None) -> None:
        """Takes the guard that finds the key of a request. admin_token: the owner's token; None: there is none."""
        self._guard = guard
        self._token = admin_token

    async def admit(self, request: Request, *, writes: bool = False) -> str | None:
        """Returns the only project that the caller of a request manages; None: all projects.

        writes: True if the request changes something.

        Raises: NotAuthenticated, NotAllowed, Overloaded.
        """
        if self._is_owner(request):
            return None
        key = await self.get_key(request)
        if not key.is_operator:
            raise NotAllowed(
                "This key does not open /v1/manage. `mnemogate keys create --operator` makes one that does."
            )
        if writes and key.opens != OPERATOR:
            raise NotAllowed("This key of an operator changes nothing.")
        return key.project or None

    async def get_key(self, request: Request) -> Key:
        """Returns the gateway key that a request presents. Raises: NotAuthenticated, Overloaded."""
        return await self._guard.get_key(request.scope["headers"])

    def _is_owner(self, request: Request) -> bool:
        """Returns whether a request presents the owner's token. Raises: NotAuthenticated: it presents another text."""
        presented_token = request.headers.get(ADMIN_HEADER)
        if presented_token is None:
            return False
        token = (self._token or "").encode()
        if not token or not hmac.compare_digest(presented_token.encode("utf-8", "surrogateescape"), token):
            raise NotAuthenticated(
                f"`{ADMIN_HEADER}` is not the token of the account that runs this gateway."
            )
        return True
