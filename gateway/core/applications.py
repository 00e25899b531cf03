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

    # The name of the kind of request, such as "title".
    name: str
    # The application's version, or the month, in which the words were seen.
    seen: str
    # Alternatives, matched at the start of the message.
    patterns: tuple[str, ...]
    # The role of the message with the words.
    where: Literal["user", "system"] = "user"
    # The request's use of memory.
    memory: Literal["off", "read"] = "off"
    # True: the words are written in the user's place, and are in no later list.
    is_passing: bool = False

    @property
    def pattern(self) -> str:
        return "|".join(self.patterns)

    @property
    def leaves_nothing(self) -> bool:
        return self.is_passing or self.where == "system"


class AddedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text between two tags that an application puts next to a person's words."""

    # The name of the application.
    application: str
    # The version of the application, or the month, in which the text was seen.
    seen: str
    # The tag before the text.
    begin: str
    # The tag after it.
    end: str


class TextInPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that a framework writes in the user's place."""

    # The name of the framework.
    application: str
    # The version of the framework, or the month, in which the text was seen.
    seen: str
    # Matched at the start of the message.
    pattern: str


class QuestionTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template in which a framework puts a person's question between two fixed texts, `before` and `after`."""

    # The name of the framework.
    application: str
    # The version of the framework, or the month, in which the template was seen.
    seen: str
    # The beginning of the message.
    begin: str
    # The text before the question.
    before: str
    # The text after the question.
    after: str
    # True: the template ends the message: the question follows the last `before`, and a message that goes on after
    # `after` only quotes the template. Otherwise the question follows the first `before`.
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

    # The name of the framework.
    application: str
    # The version of the framework, or the month, in which the text was seen.
    seen: str
    # The fixed text.
    text: str


class Applications(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All signatures, in the order in which they are tried."""

    # The requests that applications make for themselves.
    side_requests: tuple[KnownSideRequest, ...]
    # The texts next to a person's words.
    added: tuple[AddedText, ...]
    # The messages in the place of a person's message.
    in_place: tuple[TextInPlace, ...]
    # The templates around a person's question.
    templates: tuple[QuestionTemplate, ...]
    # The texts after a person's words.
    appended: tuple[AppendedText, ...]


def _read() -> Applications:
    text = resources.files("gateway").joinpath("data", "applications.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Applications)


# The signatures that are known, read once.
APPLICATIONS: Final = _read()
# Matches a text that an application writes in the user's place, at the start of a message.
IN_PLACE: Final = re.compile("|".join(each.pattern for each in APPLICATIONS.in_place))
