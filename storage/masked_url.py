"""A database's URL as it may be shown and logged."""

from __future__ import annotations

import re

# A password is a parameter, or comes before the host. There it ends at the last `@`, since a user and a password may
# have an `@` that is not escaped. A URL that is not valid is masked as well.
_PASSWORD_PARAMETER = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)
_PASSWORD_BEFORE_HOST = re.compile(r"(?<=://)([^:]*):.*@")


def mask_password(url: str) -> str:
    """Returns the URL with asterisks in place of its password."""
    return _PASSWORD_BEFORE_HOST.sub(r"\1:***@", _PASSWORD_PARAMETER.sub(r"\1***", url))
