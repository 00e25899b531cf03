"""Who asks for a stored response or conversation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from starlette.types import Scope

from adapters.types import Json
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.request.request_headers import refuse_misspelt
from gateway.run.stored_responses import ResponseOwner
from gateway.web.middleware import info_of
from storage.sql.store import Store


class ResponseOwners:
    """Reads from requests who asks. The default user does not count: whoever knows a response's id may read it."""

    def __init__(self, rules: Callable[[str], IdentityRules], store: Store) -> None:
        """Begins with no rules. rules: returns those of a project."""
        self._rules = lru_cache(maxsize=256)(lambda project: replace(rules(project), default_user=None))
        # As those of chats they hold the last system prompt of the project.
        store.forgetting.when_gone(self._rules.cache_clear)

    def read(self, scope: Scope, body: Json | None = None) -> ResponseOwner:
        """Returns who asks. body: that of the request, which may name the user. Raises: BadRequest."""
        project = info_of(scope).caller.project
        refuse_misspelt(scope["headers"])  # a user in one would be taken for none
        identity = identify(scope["headers"], body or {}, self._rules(project), project, time.time())
        return ResponseOwner(project, identity.user)
