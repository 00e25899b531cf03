"""Reads the user of a request for a stored response or conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import orjson
from starlette.types import Scope

from adapters.types import Json
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.request.request_headers import refuse_misspelt
from gateway.run.stored_responses import ResponseOwner
from gateway.web.request_info import get_request_info
from storage.sql.store import Store


class ResponseOwners:
    """Reads the users of requests.

    The default user does not count: a caller that names no user may read every response of its project by the id.
    """

    def __init__(self, rules: Callable[[str], IdentityRules], store: Store) -> None:
        """Makes the reader. rules: a function that returns the rules of a project; its results are cached."""
        self._rules = lru_cache(maxsize=256)(lambda project: replace(rules(project), default_user=None))
        # Rules hold the last system prompt of their project, which a forgetting removes as well.
        store.forgetting.add_forget_listener(self._rules.cache_clear)

    def read_user(self, scope: Scope, members: Mapping[str, bytes]) -> str | None:
        """Returns the user that a request names, or None if it names no user. Raises: BadRequest, NotAllowed.

        scope: the ASGI scope of the handshake.
        members: the members of the request's body, each value as it is written.
        """
        fields = self._rules(get_request_info(scope).caller.project).source_fields
        body = {name: orjson.loads(members[name]) for name in fields & members.keys()}
        return self.read_owner(scope, body).user

    def read_owner(self, scope: Scope, body: Json | None = None) -> ResponseOwner:
        """Returns the project and the user of a request, which `body` may name, too. Raises: BadRequest."""
        caller = get_request_info(scope).caller
        project = caller.project
        refuse_misspelt(scope["headers"])  # a user in a misspelt header would count as no user
        identity = identify(scope["headers"], body or {}, self._rules(project), project, time.time())
        return ResponseOwner(project, identity.user, is_bound=caller.user is not None)
