"""Links with which users open a page about their own memory.

An application creates a link for a user, with the rights that it gives and the time at which it expires.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

from gateway.core.nul import check_no_nul
from gateway.core.request.request_ids import normalize_id
from gateway.errors import BadRequest, NotAllowed, UnknownId
from gateway.run.admin.fault_errors import make_fault_error
from gateway.run.admin.memory.editor import LINK
from gateway.validation import InvalidValue, convert
from storage.link_record import FoundLink
from storage.records import Scope
from storage.sql.store import Store

Right = Literal["see", "correct", "forget", "export", "pause"]
RIGHTS: tuple[Right, ...] = get_args(Right)
LINK_PATH = "/ui/me/"
_NO_LINK_MESSAGE = "There is no such page. Links end after a time: ask for another one."


class LinkRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request for a link."""

    user: Annotated[str, Meta(min_length=1)]
    # The profile of the user's memory; None: the project's default profile.
    profile: str | None = None
    ttl_s: Annotated[int, Meta(ge=60, le=86_400)] = 3_600
    rights: tuple[Right, ...] = RIGHTS


class MadeLink(Struct, frozen=True):
    """A link that was created."""

    # The path of the link: no host is known here.
    url: str
    # Seconds since the epoch.
    expires_at: float
    rights: tuple[Right, ...]


class LinkOperations(Struct, frozen=True):
    """Creates links, and finds the memory that a link opens."""

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Returns the default profile of a project.
    default_profile: Callable[[str], str]

    async def create(
        self, body: Any, project: str, key_id: int, key_name: str = "", key_expires_at: float | None = None
    ) -> MadeLink:
        """Creates a link to a user's memory.

        body: the parsed JSON of the request, which must have the form of `LinkRequest`.
        key_id: the id of the caller's key; 0: the gateway has no keys.
        key_name: the name of that key in the audit; "": the audit names the link.
        key_expires_at: the time at which the key expires, and the link with it, in seconds since the epoch; None: the
            key does not expire.

        Raises: BadRequest; UnknownId: nothing is remembered of the user.
        """
        try:
            request = convert(body, LinkRequest)
        except InvalidValue as error:
            raise make_fault_error(error.fault) from error
        user = normalize_id(request.user, "user")
        if user is None:
            raise BadRequest("`user` is empty.", param="user")
        check_no_nul(body)
        rights = tuple(right for right in RIGHTS if right in request.rights)
        scope = Scope(project, request.profile or self.default_profile(project), f"user:{user}")
        agent = await self.store.agents.find(scope)
        if agent is None:
            where = f" in the profile {scope.profile}" if request.profile else ""
            raise UnknownId(f"Nothing is remembered of this user yet{where}.", param="user")
        now = self.now()
        expires_at = min(now + request.ttl_s, math.inf if key_expires_at is None else key_expires_at)
        token = await self.store.links.create(agent.id, key_id, expires_at, rights, now)
        await self.store.audit.add(now, key_name or LINK, "link_create", agent.uid)
        return MadeLink(LINK_PATH + token, expires_at, rights)

    async def open(self, token: str, right: Right = "see") -> FoundLink:
        """Returns the link with this token.

        Raises: UnknownId: there is no such link, or it has expired; NotAllowed: the link lacks the right.
        """
        link = await self.store.links.find(token, self.now())
        if link is None:
            raise UnknownId(_NO_LINK_MESSAGE)
        if right not in link.rights:
            raise NotAllowed("This link does not allow that.")
        return link
