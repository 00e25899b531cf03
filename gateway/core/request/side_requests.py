"""Requests that an application makes for itself and not for its user: titles, tags, follow-up questions.

They are recognised by rules: the rules of gateway.core.applications, and the operator's. A single turn with an answer
for a program is recognised too: it reads memory and leaves nothing in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from gateway.core.grammar_fields import has_grammar
from gateway.core.lenient import as_object, as_text
from gateway.core.roles import RESULT_ROLES, SYSTEM_ROLES


class SideRule(Protocol):
    """A rule by which a side request is recognised; gateway.settings.SideRequest is one, as are the known ones."""

    @property
    def name(self) -> str: ...
    @property
    def pattern(self) -> str:
        """A regular expression, matched at the start of the text after white space, whatever the case."""

    @property
    def memory(self) -> Literal["off", "read"]:
        """The mode of memory for such a request."""

    @property
    def where(self) -> Literal["user", "system"]:
        """The message: the last one, if it is the user's; the first or the last, if it is a system message."""

    @property
    def leaves_nothing(self) -> bool:
        """True if no later list has such a request's messages, so that they need not be recognised by hashes."""


# The types of a `tool_choice` that does not force a call of a certain tool.
_FREE_CHOICES = ("allowed_tools", "auto", "none")
# The longest prompt that is cached: far above most prompts. Each project caches one.
_MAX_CACHED_CHARS = 32 * 1024


class SideRequests:
    """Rules, compiled once into one pattern for a user's message and one for a system message."""

    def __init__(self, rules: Iterable[SideRule]) -> None:
        # The rules, by the name of the group that a match of the rule ends with (`_compile`).
        self._rules_by_group = {f"rule_{number}": rule for number, rule in enumerate(rules)}
        # The pattern of the rules for a user's message.
        self._user_pattern = self._compile("user")
        # The pattern of the rules for a system message.
        self._system_pattern = self._compile("system")
        # The last prompt. An application sends the same prompt with each request, so its match is cached. The match
        # depends on the prompt alone, and is dropped with these rules after a forgetting (gateway.run.resolver).
        self._last_prompt = ""
        # The match of the last prompt.
        self._last_match = self._system_pattern.match("")

    def find(self, messages: Sequence[Mapping[str, Any]]) -> SideRule | None:
        """Returns the rule that recognises a request by its messages; None: no rule does."""
        if not messages:
            return None
        first_message = messages[0]
        last_message = messages[-1]
        match = None
        if last_message.get("role") == "user":
            match = self._match_words(last_message.get("content"))
        if match is None and first_message.get("role") in SYSTEM_ROLES:
            match = self._match_prompt(_read_first_text(first_message.get("content")))
        # NextChat appends its order to the conversation as a system message.
        if match is None and len(messages) > 1 and last_message.get("role") in SYSTEM_ROLES:
            match = self._system_pattern.match(_read_first_text(last_message.get("content")))
        return None if match is None else self._rules_by_group[str(match.lastgroup)]

    def _match_words(self, content: object) -> re.Match[str] | None:
        """Matches the content of a user's message by its first part and its last part."""
        match = self._user_pattern.match(_read_first_text(content))
        if match is None and isinstance(content, list) and len(content) > 1:
            # Claude Code asks for a summary after the person's last words.
            match = self._user_pattern.match(_read_part_text(content[-1]))
        return match

    def _match_prompt(self, prompt: str) -> re.Match[str] | None:
        """Matches the text of a system message."""
        if prompt == self._last_prompt:
            return self._last_match
        match = self._system_pattern.match(prompt)
        if len(prompt) <= _MAX_CACHED_CHARS:
            self._last_prompt = prompt
            self._last_match = match
        return match

    def _compile(self, where: str) -> re.Pattern[str]:
        """Returns one pattern for all rules with this `where`."""
        # After each rule comes its empty group, so that `lastgroup` of a match names the rule. A group around the rule
        # is slower: it is entered even for rules that the text does not begin like.
        parts = [
            f"(?:{rule.pattern})(?P<{group}>)"
            for group, rule in self._rules_by_group.items()
            if rule.where == where
        ]
        # `\s*+` never gives white space back, so that a text with much of it costs one pass. `(?!)` matches nothing.
        return re.compile(rf"\s*+(?:{'|'.join(parts) or '(?!)'})", re.IGNORECASE)


def is_single_structured_turn(body: Mapping[str, Any]) -> bool:
    """Returns whether a request is one turn with an answer for a program.

    Such a turn sets the form of its answer by OpenAI's `response_format`, by a schema or a grammar in a field of local
    servers, or by a `tool_choice` that names the only tool. If that tool has to be called once more, the program has no
    answer yet, and the turn still counts.
    """
    response_format = body.get("response_format")
    is_json = isinstance(response_format, dict) and str(response_format.get("type", "")).startswith("json")
    is_forced = _is_forced(body)
    if not (is_json or has_grammar(body) or is_forced):
        return False
    messages = body.get("messages") or ()
    roles = [message.get("role") for message in messages]
    if roles.count("user") != 1:
        return False
    question_index = roles.index("user")
    later_messages = messages[question_index + 1 :]
    return "assistant" not in roles[:question_index] and (
        not later_messages or (is_forced and all(map(_is_call_or_result, later_messages)))
    )


def _is_forced(body: Mapping[str, Any]) -> bool:
    """Returns whether the answer can only be a call of the request's one tool, which `tool_choice` names."""
    for choice_field, tools_field in (("tool_choice", "tools"), ("function_call", "functions")):
        choice = body.get(choice_field)
        if isinstance(choice, dict) and choice.get("type") not in _FREE_CHOICES:
            tools = body.get(tools_field)
            return isinstance(tools, list) and len(tools) == 1
    return False


def _is_call_or_result(message: Mapping[str, Any]) -> bool:
    """Returns whether a message is a call, or the result of one."""
    is_call = message.get("tool_calls") is not None or message.get("function_call") is not None
    return is_call or message.get("role") in RESULT_ROLES


def _read_first_text(content: object) -> str:
    """Returns the text of a content, or of its first part."""
    if isinstance(content, str):
        return content
    return _read_part_text(content[0]) if isinstance(content, list) and content else ""


def _read_part_text(part: object) -> str:
    return as_text(as_object(part).get("text"))
