"""The word by which a person confirms a forgetting that a program asks for over MCP.

Nothing is stored: to check a word, the same word is made again from its time.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from typing import Final

# The seconds for which a word is valid. Chosen, not measured: a person has to read the list of texts that would go.
_VALID_S: Final = 300
# 80 bits are enough against guesses within that time.
_MAC_BYTES: Final = 10


def make_confirm_word(secret: bytes, text_id: str, given_at: float) -> str:
    """Returns the word that confirms the forgetting of an id.

    secret: the secret of the memory.
    given_at: the time at which the word is given, in seconds since the epoch.
    """
    stamp = f"{int(given_at):x}"
    mac = blake2b(f"{stamp} {text_id}".encode(), key=secret, person=b"mcp forget", digest_size=_MAC_BYTES)
    return f"{stamp}-{mac.hexdigest()}"


def confirms(word: str, secret: bytes, text_id: str, now: float) -> bool:
    """Returns whether a word confirms the forgetting of an id now."""
    stamp, _, _ = word.partition("-")
    try:
        given_at = int(stamp, 16)
    except ValueError:
        return False
    right = make_confirm_word(secret, text_id, given_at)
    return given_at <= now < given_at + _VALID_S and hmac.compare_digest(
        word.encode("utf-8", "replace"), right.encode()
    )
