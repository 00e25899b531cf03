"""Estimates of tokens, where no upstream has counted them yet: of a request's body, and of a text by its characters."""

from __future__ import annotations

import string
from typing import Final

from adapters.token_counts import BYTES_PER_TOKEN

# The characters of a token on average, for rough sums over texts. (A note is estimated by `note_text.estimate_tokens`.)
CHARS_PER_TOKEN: Final = 4
# A piece that has no blanks, punctuation, escapes or letters beyond ASCII is no text, but media in base64. The pieces
# at both ends of an image are partly text, so they count. The image's part of them is on average one piece, or 1,024
# tokens, which is about what an image costs.
_PIECE_BYTES: Final = 4 * 1024
# The first bytes of a piece, of which one is a blank in most texts.
_BEGINNING_BYTES: Final = 64
# The characters of base 64, in both alphabets.
_BASE64: Final = f"{string.ascii_letters}{string.digits}+/=-_".encode()
_BASE64_OR_ESCAPES: Final = _BASE64 + b"\\"
# An integer, since `bytes.find` is five times as fast for it as for bytes.
_BLANK: Final = ord(" ")


def estimate_prompt_tokens(body: bytes) -> int:
    """Returns the estimated tokens of a body: a quarter of its bytes, without the bytes of media."""
    # The first piece has names of fields, and is text.
    text_bytes = min(_PIECE_BYTES, len(body))
    for start in range(_PIECE_BYTES, len(body), _PIECE_BYTES):
        # Each call is estimated, and most text has a blank at its beginning.
        has_blank = body.find(_BLANK, start, start + _BEGINNING_BYTES) >= 0
        if has_blank or _is_text(body[start : start + _PIECE_BYTES]):
            text_bytes += min(_PIECE_BYTES, len(body) - start)
    return text_bytes // BYTES_PER_TOKEN


def _is_text(piece: bytes) -> bool:
    """Returns whether a piece of JSON is a text, and no base64."""
    # Most text shows at its beginning.
    if piece[:_BEGINNING_BYTES].translate(None, _BASE64_OR_ESCAPES):
        return True
    # Some clients escape each slash of base64: `\/`.
    if b"\\" in piece:
        piece = piece.replace(rb"\/", b"/").rstrip(b"\\")
    return bool(piece.translate(None, _BASE64))
