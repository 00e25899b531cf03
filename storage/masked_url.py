"""A database's URL as it may be shown and logged."""

from __future__ import annotations

import re

# A password stands among the parameters, or before the host: up to the last `@`, since a user and a password may hold
# one that is not escaped. Whatever looks like a password goes, however wrong the URL is.
_PARAMETER = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)
_BEFORE_HOST = re.compile(r"(?<=://)([^:]*):.*@")


def mask_password(url: str) -> str:
    """Returns the URL with asterisks in place of its password."""
    return _BEFORE_HOST.sub(r"\1:***@", _PARAMETER.sub(r"\1***", url))
