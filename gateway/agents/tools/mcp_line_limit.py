"""A limit for the lines that a program prints in a session with an MCP server.

The `mcp` package has no such limit: it reads a line of any length as a whole, and copies it with each piece. But it
reads a program in any registered encoding, by the encoding's name. So the decoder of an encoding has the limit.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from contextvars import ContextVar
from encodings import utf_8
from typing import TYPE_CHECKING

from anyio import BrokenResourceError

from gateway.agents.tools.mcp_host_transport import MAX_REPLY_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# The name of UTF-8 with the limit.
BOUNDED_UTF8 = "mnemogate_bounded_utf_8"
# The function that ends the session of a task after a line that is too long. A session sets it before it starts its
# program, since the package makes the decoder itself.
end_session_of_task: ContextVar[Callable[[], None]] = ContextVar("end_session_of_task")


class _BoundedDecoder(utf_8.IncrementalDecoder):
    """Decodes the output of a program, and ends the session if a line is too long."""

    _line_bytes = 0

    def decode(self, data: ReadableBuffer, final: bool = False) -> str:
        *ended_lines, last_line = bytes(data).split(b"\n")
        self._line_bytes = len(last_line) + (0 if ended_lines else self._line_bytes)
        if self._line_bytes > MAX_REPLY_BYTES:
            end_session_of_task.get()()
            raise BrokenResourceError  # the package then drops the rest of the output
        return super().decode(data, final)


_CODEC = codecs.CodecInfo(utf_8.encode, utf_8.decode, incrementaldecoder=_BoundedDecoder, name=BOUNDED_UTF8)
codecs.register(lambda name: _CODEC if name == BOUNDED_UTF8 else None)
