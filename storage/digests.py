"""The digests by which keys, links, sessions and codes are found. None of these is stored as it is."""

from __future__ import annotations

import hashlib


def digest_secret(secret: str) -> bytes:
    """Returns the SHA-256 of a secret. Any string has one, so whatever a caller sends can be looked up."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
