"""Gateway keys, as frozen values."""

from __future__ import annotations

from msgspec import Struct

# The beginning of each key that the gateway makes.
KEY_PREFIX = "mg-"
# The value of `Key.opens` for the key of an operator, which opens the page and the operators' API.
OPERATOR = "operator"
# The value for a key that lets an operator read, and change nothing.
OPERATOR_READ = "operator-read"


class Key(Struct, frozen=True):
    """A gateway key. Only the SHA-256 of its secret is stored. Times are in seconds since the epoch."""

    # The row of the key.
    id: int
    # The project of the key; "": an operator's key, for all projects.
    project: str
    # The name that the key was given.
    name: str
    # The beginning of the secret, which `keys list` shows.
    prefix: str
    # The time at which the key was made.
    created: float
    # The time at which the key was revoked; None: the key is in use.
    revoked: float | None = None
    # The mode of memory for requests that name no mode; None: the mode of the settings.
    memory: str | None = None
    # The part of the gateway that the key opens: "metrics", OPERATOR, OPERATOR_READ; None: the API.
    opens: str | None = None
    # The time at which the key was last presented, to within an hour; None: never.
    used: float | None = None
    # The time from which on the key opens nothing; None: the key does not expire.
    expires: float | None = None
    # Patterns of the model names that the key may ask for; None: all.
    models: tuple[str, ...] | None = None
    # The user of all requests with the key; None: each request names its own user.
    user: str | None = None
    # The time until which the secret before the last rotation is valid; None: the key was not rotated.
    rotated_until: float | None = None

    @property
    def is_operator(self) -> bool:
        """True for the key of an operator."""
        return self.opens in (OPERATOR, OPERATOR_READ)
