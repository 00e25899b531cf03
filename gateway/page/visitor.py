"""The visitor who makes a request: an operator who has signed in, a program with an operator's key, or a person."""

from __future__ import annotations

from msgspec import Struct

from gateway.run.admin.memory.editor import Editor
from storage.link_record import FoundLink

# Hexadecimal digits of a session's name: 64 bits, so that no two sessions share it, and no token can be found by it.
_NAME_DIGITS = 16


class Visitor(Struct, frozen=True):
    """The visitor who makes a request."""

    # The visitor's name in the audit.
    actor: str
    # The only project that the visitor sees; None: all projects.
    project: str | None
    may_write: bool
    # A name of the session, or of a program's key, by which reads are noted only once.
    session_name: str
    # The link of a person; None: the visitor is an operator.
    link: FoundLink | None = None

    @property
    def editor(self) -> Editor:
        """The visitor in the form that operations on memories take."""
        return Editor(self.actor, self.project, "person" if self.link is not None else "operator")


def make_session_name(digest: bytes) -> str:
    """Returns the name of the session of a token or a key. digest: the digest of the token or the key."""
    return digest.hex()[:_NAME_DIGITS]
