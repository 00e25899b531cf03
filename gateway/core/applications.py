"""Signatures of well-known applications and frameworks, read from `gateway/data/applications.toml`.

With them the gateway separates a person's words from texts that an application writes in the place of a person or of
the system. The file describes its tables; `seen` is the version, or the month, in which the words were seen. An
operator can add side requests in the settings.
"""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from typing import Final, Literal

import msgspec


class KnownSideRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that an application makes for itself.

    Implements `SideRule` (gateway.core.request.side_requests), which documents the methods.
    """

    name: str
    seen: str  # the application's version, or the month, in which the words were seen
    patterns: tuple[str, ...]  # alternatives, matched at the start of the message
    where: Literal["user", "system"] = "user"  # the role of the message with the words
    memory: Literal["off", "read"] = "off"  # the request's use of memory
    is_passing: bool = False  # written in the user's place, and in no later list

    @property
    def pattern(self) -> str:
        return "|".join(self.patterns)

    @property
    def leaves_nothing(self) -> bool:
        return self.is_passing or self.where == "system"


class AddedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text between two tags that an application puts next to a person's words."""

    application: str
    seen: str
    begin: str  # the tag before the text
    end: str  # the tag after it


class TextInPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that a framework writes in the user's place."""

    application: str
    seen: str
    pattern: str  # matched at the start of the message


class QuestionTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template in which a framework puts a person's question between two fixed texts, `before` and `after`."""

    application: str
    seen: str
    begin: str  # the message begins with this
    before: str  # the text before the question
    after: str  # the text after the question
    # The template ends the message: the question follows the last `before`, and a message that goes on after `after`
    # only quotes the template. Otherwise the question follows the first `before`.
    is_last: bool = True

    def read_question(self, text: str) -> str:
        """Returns the question in a text, without surrounding white space; "": no question."""
        if not self.is_last:
            question, is_there, _ = text.partition(self.before)[2].partition(self.after)
        elif text.endswith(self.after):
            _, is_there, question = text.removesuffix(self.after).rpartition(self.before)
        else:
            return ""
        return question.strip() if is_there else ""


class AppendedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fixed text that a framework appends to a person's words. All text after it is the framework's, too."""

    application: str
    seen: str
    text: str


class Applications(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All signatures, in the order in which they are tried."""

    side_requests: tuple[KnownSideRequest, ...]  # requests that applications make for themselves
    added: tuple[AddedText, ...]  # texts next to a person's words
    in_place: tuple[TextInPlace, ...]  # messages in the place of a person's message
    templates: tuple[QuestionTemplate, ...]  # templates around a person's question
    appended: tuple[AppendedText, ...]  # texts after a person's words


def _read() -> Applications:
    text = resources.files("gateway").joinpath("data", "applications.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Applications)


APPLICATIONS: Final = _read()
IN_PLACE: Final = re.compile("|".join(each.pattern for each in APPLICATIONS.in_place))
"""Matches a text that an application writes in the user's place, at the start of a message."""
