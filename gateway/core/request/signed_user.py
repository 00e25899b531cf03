"""The user that Open WebUI names in a signed JSON Web Token, the header `x-openwebui-user-jwt`.

If FORWARD_USER_INFO_HEADER_JWT_SECRET is set, Open WebUI signs a token with HS256 (RFC 7519, RFC 7518 3.2) for each
request, and leaves its plain headers out. `sub` is the id that `x-openwebui-user-id` would have.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from typing import Any, NamedTuple

from gateway.core.json_object import parse_object
from gateway.errors import NotAuthenticated

# The header with Open WebUI's signed user.
SIGNED_USER = "x-openwebui-user-jwt"
# The seconds by which the clocks of two machines may differ. Defaults of JWT libraries lie between 0 and 60.
_LEEWAY_S = 30.0


class SignedUser(NamedTuple):
    """The user of a token."""

    # The id of the user.
    id: str
    # The name of the user for people; None: the token has no name.
    name: str | None


def read_signed_user(token: bytes, secret: str, now: float) -> SignedUser:
    """Returns the user of a token.

    now: the current time, in seconds since the epoch.

    Raises: NotAuthenticated: the token is malformed, not signed with this secret, or expired.
    """
    signing_input, _, signature = token.rpartition(b".")
    # The signature is checked before the token is read, and always as HS256: an attacker chooses the `alg`.
    expected_signature = hmac.digest(secret.encode(), signing_input, "sha256")
    if not hmac.compare_digest(_decode(signature), expected_signature):
        raise _make_refusal("it is not signed with memory.openwebui_jwt_secret")
    header, _, payload = signing_input.partition(b".")
    if _parse_object(header).get("alg") != "HS256":
        raise _make_refusal("its algorithm is not HS256")
    claims = _parse_object(payload)
    if not _read_time(claims.get("nbf", 0)) - _LEEWAY_S <= now < _read_time(claims.get("exp")) + _LEEWAY_S:
        raise _make_refusal("it has expired, or is not valid yet")
    user = claims.get("sub")
    if not isinstance(user, str) or not user.strip():
        raise _make_refusal("it names no user")
    name = claims.get("name")
    return SignedUser(user, name if isinstance(name, str) else None)


def _make_refusal(reason: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"The header `{SIGNED_USER}` is refused: {reason}.", param=SIGNED_USER, code="invalid_user_token"
    )


def _read_time(value: object) -> float:
    """Returns a claim that is a time, in seconds since the epoch. Raises: NotAuthenticated."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _make_refusal("it has no time at which it expires")
    return value


def _decode(part: bytes) -> bytes:
    """Decodes base64url without padding. A malformed part is empty, so it is no signature and no JSON either."""
    try:
        return urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except (Base64Error, ValueError):
        return b""


def _parse_object(part: bytes) -> dict[str, Any]:
    """Returns the object in a part of the token. Raises: NotAuthenticated."""
    fields = parse_object(_decode(part))
    if fields is None:
        raise _make_refusal("it is no JSON Web Token")
    return fields
