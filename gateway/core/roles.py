"""The roles of messages that mean the same, old and new."""

from __future__ import annotations

from typing import Final

# "developer" is the newer name of "system", and "tool" of "function". Clients send both.
SYSTEM_ROLES: Final = frozenset({"system", "developer"})
RESULT_ROLES: Final = frozenset({"tool", "function"})
