"""The context of a request: all that its body does not have."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from msgspec import Struct

from gateway.core.request.request_headers import RawHeaders


class RequestContext(Struct, frozen=True):
    """The headers of a request, and what its caller's key decides about it.

    Variables have the whole name, `request_context`: the short one, `context`, is for a `MemoryContext`.
    """

    # The headers, in the form of ASGI.
    headers: RawHeaders
    # The project of the caller's key.
    project: str
    # The caller's own credential, for an upstream without a key of its own.
    credential: str | None = None
    # The memory mode that the key has for requests that ask for none.
    memory_mode: str | None = None
    # Patterns of the models that the key may ask for; None: all.
    models: tuple[str, ...] | None = None
    # The id of the key; 0: it has none.
    key_id: int = 0
    # The user that the key is bound to; None: each request names its user.
    bound_user: str | None = None


def may_ask(models: Collection[str] | None, model: str) -> bool:
    """Returns whether a key with these patterns may ask for a model by this name. models: None: for all."""
    return models is None or any(fnmatchcase(model, each) for each in models)
