"""Who is asking: headers and body in, scope and wishes out.

It trusts that the caller was authenticated (that named the project) and that the body was parsed and checked. What
it takes as an id it checks strictly, since two callers whose ids fall together would share a memory; everything
it does not act on passes unseen. Also here: which of a client's headers may go on to an upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

from gateway.errors import BadRequest
from storage.records import Scope

__all__ = [
    "AGENT_PREFIX",
    "CONVERSATION_ORDER",
    "SIDE_RULES",
    "USER_ORDER",
    "Identity",
    "IdentityRules",
    "Mode",
    "SideRule",
    "forwardable",
    "has_structured_output",
    "identify",
]

RawHeaders = Sequence[tuple[bytes, bytes]]  # as ASGI has them: names in lower case


class Mode(StrEnum):
    """What memory may do for a request. STRICT is ON, and rather no answer than one without memory."""

    ON = "on"
    READ = "read"
    OFF = "off"
    STRICT = "strict"


@dataclass(frozen=True, slots=True)
class SideRule:
    """A request that an application makes for itself, not for its user.

    pattern: a regular expression, matched at the start of the text (white space before it is skipped, case ignored).
    where: in the last message, if that is the user's, or in the first, if that is a system message.
    """

    name: str
    pattern: str
    memory: Literal["off", "read"] = "off"
    where: Literal["user", "system"] = "user"


# The fixed sentences of chat front ends, from their sources. Whole sentences, because a person may well ask for
# "a short title" or "tags for this post", and Open WebUI's template for answers from documents, which is the
# person's own question, begins with "### Task:" like its side requests do.
SIDE_RULES = (
    SideRule("open-webui title", r"### Task:\s+Generate a concise, 3-5 word title"),
    SideRule("open-webui tags", r"### Task:\s+Generate 1-3 broad tags categorizing"),
    SideRule("open-webui follow-ups", r"### Task:\s+Suggest 3-5 relevant follow-up questions"),
    SideRule(
        "open-webui queries", r"### Task:\s+Analyze the chat history to determine the necessity of generating"
    ),
    SideRule(
        "open-webui image prompt", r"### Task:\s+Generate a detailed prompt for am? image generation task"
    ),
    SideRule("open-webui autocompletion", r"### Task:\s+You are an autocompletion system"),
    SideRule(
        "open-webui emoji",
        r"Your task is to reflect the speaker's likely facial expression through a fitting emoji",
    ),
    SideRule(
        "librechat title", r"(?:Please generate|Provide) a concise, 5-word-or-less title for the conversation"
    ),
    SideRule(
        "librechat title and language",
        r"Analyze this conversation and provide:\s+1\. The detected language of the conversation",
    ),
    SideRule("nextchat title", r"Please generate a four to five word title summarizing our conversation"),
    SideRule(
        "lobechat title",
        r"You are a professional conversation summarizer\. Generate a concise title that captures the essence",
        where="system",
    ),
    SideRule(
        "cherry studio title",
        r"You are an assistant skilled in conversation\.? (?:who needs|You need) to summarize (?:the )?user",
        where="system",
    ),
    SideRule("chat-ui title", r"You are a chat thread titling assistant\.", where="system"),
)

# Names with a dash are headers, the others fields of the body.
USER_ORDER = (
    "x-mnemogate-user",
    "x-openwebui-user-id",
    "user",
    "safety_identifier",
    "metadata.user_id",
    "user_id",
    "elevenlabs_extra_body.user_id",
    "customer.number",
    "customer.id",
)
# OpenAI's own refuse numbers; what vendors put beside them may be one.
_STRINGS = frozenset(("user", "safety_identifier"))
# Not `prompt_cache_key` nor x-session-affinity, which whole workloads share; not x-livekit-session-id, which is
# new with every request.
CONVERSATION_ORDER = (
    "x-mnemogate-conversation",
    "x-openwebui-chat-id",
    "x-claude-code-session-id",
    "x-session-id",
    "metadata.conversation_id",
    "call.id",
    "x-livekit-room-id",
)

_MEMORY, _HISTORY, _AGENT = b"x-mnemogate-memory", b"x-mnemogate-history", b"x-mnemogate-agent"
_RETRIES = b"x-stainless-retry-count"
AGENT_PREFIX = "agent/"  # of a model's name that asks for an agent
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_Source = tuple[str, bytes | None, tuple[str, ...]]  # name, header or else path in the body


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """How a project's requests are read; built once.

    default_profile: for requests that name no agent. default_mode, profile_modes: without a control header.
    default_user: who speaks when nobody is named; None: nobody does.
    structured_mode: for a single turn whose answer goes to a program.
    """

    user_order: tuple[str, ...] = USER_ORDER
    conversation_order: tuple[str, ...] = CONVERSATION_ORDER
    default_user: str | None = None
    default_profile: str = "default"
    default_mode: Mode = Mode.ON
    profile_modes: Mapping[str, Mode] = field(default_factory=dict)
    side_rules: tuple[SideRule, ...] = SIDE_RULES
    structured_mode: Mode = Mode.READ
    max_id_chars: int = 256
    _user: tuple[_Source, ...] = field(init=False, repr=False, compare=False)
    _conversation: tuple[_Source, ...] = field(init=False, repr=False, compare=False)
    _side: Mapping[str, re.Pattern[str]] = field(init=False, repr=False, compare=False)
    _single: frozenset[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        user, conversation = map(_sources, (self.user_order, self.conversation_order))
        object.__setattr__(self, "_user", user)
        object.__setattr__(self, "_conversation", conversation)
        object.__setattr__(self, "_side", _side_patterns(self.side_rules))
        named = {header for _, header, _ in (*user, *conversation) if header is not None}
        object.__setattr__(self, "_single", frozenset(named | {_MEMORY, _HISTORY, _AGENT}))


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request says about itself.

    agent: the name or id asked for, None for the default; profile: that, or the default's name.
    subject: as in Scope; None when neither a person nor a conversation is named, and nothing is remembered.
    append: the client sends its new message only. retry: the client's library sends this again.
    side: the rule that recognised it as a side request, if one did.
    """

    project: str
    profile: str
    agent: str | None
    user: str | None
    conversation: str | None
    subject: str | None
    mode: Mode
    append: bool = False
    retry: bool = False
    side: str | None = None

    @property
    def scope(self) -> Scope | None:
        return None if self.subject is None else Scope(self.project, self.profile, self.subject)


def identify(headers: RawHeaders, body: Mapping[str, Any], rules: IdentityRules, project: str) -> Identity:
    """Raises: BadRequest naming the header or field."""
    found = dict(headers)
    if len(found) != len(headers):
        _refuse_repeated(headers, rules._single)
    limit = rules.max_id_chars
    user = _first(rules._user, found, body, limit) or rules.default_user
    conversation = _first(rules._conversation, found, body, limit)
    if user is not None:
        subject: str | None = f"user:{user}"
    else:
        subject = None if conversation is None else f"conversation:{conversation}"
    agent = _agent(found, body, limit)
    profile = agent or rules.default_profile
    append = _append(found)
    if append and conversation is None:
        raise BadRequest(
            "`x-mnemogate-history: append` needs a named conversation: send `x-mnemogate-conversation`.",
            param="x-mnemogate-history",
        )
    asked, side = _asked_mode(found), None
    mode = asked or rules.profile_modes.get(profile, rules.default_mode)
    if asked is None and mode is not Mode.OFF:
        side, limited = _side_request(body, rules)
        mode = limited or mode
    return Identity(
        project, profile, agent, user, conversation, subject, mode, append, _is_retry(found), side
    )


def has_structured_output(body: Mapping[str, Any]) -> bool:
    """Whether the answer is for a program: OpenAI's `response_format`, or a grammar as local servers take it."""
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and str(wanted.get("type", "")).startswith("json"):
        return True
    return not _GRAMMARS.isdisjoint(body) and any(body.get(key) for key in _GRAMMARS)


_GRAMMARS = frozenset(
    (
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "grammar",
        "json_schema",
    )
)


# ids


def _sources(order: Iterable[str]) -> tuple[_Source, ...]:
    return tuple(
        (name, name.lower().encode(), ()) if "-" in name else (name, None, tuple(name.split(".")))
        for name in order
    )


def _first(
    sources: tuple[_Source, ...], headers: Mapping[bytes, bytes], body: Mapping[str, Any], limit: int
) -> str | None:
    for name, header, path in sources:
        if header is not None:
            raw = headers.get(header)
            value = None if raw is None else _header_id(raw, name, limit)
        else:
            inner: Any = body
            for key in path:
                inner = inner.get(key) if isinstance(inner, dict) else None
            value = None if inner is None else _body_id(inner, name, limit)
        if value is not None:
            return value
    return None


def _header_id(raw: bytes, name: str, limit: int) -> str | None:
    return _checked_id(_header_text(raw, name), name, limit)


def _header_text(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"The header `{name}` is not valid UTF-8.", param=name) from error


def _body_id(value: Any, name: str, limit: int) -> str | None:
    # A float is refused, not printed: it may be a whole number too long to be exact, and two people the same float.
    kinds = str if name in _STRINGS else str | int
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise BadRequest(
            f"Invalid type for `{name}`: expected a string, but got {_json_type(value)}.", param=name
        )
    return _checked_id(str(value), name, limit)


def _json_type(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool):
        return "a boolean"
    return "an integer" if isinstance(value, int) else "a decimal number"


def _checked_id(text: str, name: str, limit: int) -> str | None:
    text = text.strip(" \t")
    if not text:
        return None
    if len(text) > limit:
        raise BadRequest(
            f"`{name}` is too long: {len(text)} characters, at most {limit} are taken.", param=name
        )
    if not text.isprintable() and _CONTROL.search(text):
        raise BadRequest(f"`{name}` contains a control character.", param=name)
    return text


def _agent(headers: Mapping[bytes, bytes], body: Mapping[str, Any], limit: int) -> str | None:
    raw = headers.get(_AGENT)
    by_header = None if raw is None else _header_id(raw, "x-mnemogate-agent", limit)
    model = body.get("model")
    if not isinstance(model, str) or not model.startswith(AGENT_PREFIX):
        return by_header
    by_model = _checked_id(model[len(AGENT_PREFIX) :], "model", limit)
    if by_model is None:
        raise BadRequest("`model` names no agent: expected `agent/<name or id>`.", param="model")
    if by_header is not None and by_header != by_model:
        raise BadRequest(
            "`model` and `x-mnemogate-agent` name two different agents.", param="x-mnemogate-agent"
        )
    return by_model


def _refuse_repeated(headers: RawHeaders, single: frozenset[bytes]) -> None:
    """A proxy and we might each take another one of two."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in single and seen.setdefault(name, value) != value:
            text = name.decode("ascii", "replace")
            raise BadRequest(f"The header `{text}` was sent twice, with different values.", param=text)


# wishes


def _asked_mode(headers: Mapping[bytes, bytes]) -> Mode | None:
    raw = headers.get(_MEMORY)
    if raw is None:
        return None
    text = _header_text(raw, "x-mnemogate-memory").strip().lower()
    if not text:
        return None
    try:
        return Mode(text)
    except ValueError as error:
        raise BadRequest(
            f"Invalid value for the header `x-mnemogate-memory`: {text[:40]!r}; expected on, read, off or strict.",
            param="x-mnemogate-memory",
        ) from error


def _append(headers: Mapping[bytes, bytes]) -> bool:
    raw = headers.get(_HISTORY)
    if raw is None:
        return False
    text = _header_text(raw, "x-mnemogate-history").strip().lower()
    if text not in ("", "append"):
        raise BadRequest(
            f"Invalid value for the header `x-mnemogate-history`: {text[:40]!r}; expected append.",
            param="x-mnemogate-history",
        )
    return text == "append"


def _is_retry(headers: Mapping[bytes, bytes]) -> bool:
    raw = headers.get(_RETRIES)
    return raw is not None and raw.isdigit() and raw.strip(b"0") != b""


# side requests


def _side_patterns(rules: tuple[SideRule, ...]) -> Mapping[str, re.Pattern[str]]:
    """One pattern for each place; the name of its matching group is the rule's number."""
    patterns = {}
    for where in ("user", "system"):
        parts = [f"(?P<r{n}>{rule.pattern})" for n, rule in enumerate(rules) if rule.where == where]
        if parts:
            patterns[where] = re.compile(rf"\s*(?:{'|'.join(parts)})", re.IGNORECASE)
    return patterns


def _side_request(body: Mapping[str, Any], rules: IdentityRules) -> tuple[str | None, Mode | None]:
    messages: list[dict[str, Any]] = body.get("messages") or []
    for where, pattern in rules._side.items():
        message = messages[-1 if where == "user" else 0] if messages else {}
        if message.get("role") not in (("user",) if where == "user" else ("system", "developer")):
            continue
        match = pattern.match(_first_text(message))
        if match is not None:
            number = next(
                n for n in range(len(rules.side_rules)) if match.groupdict().get(f"r{n}") is not None
            )
            rule = rules.side_rules[number]
            return rule.name, Mode(rule.memory)
    if has_structured_output(body) and _is_single_turn(messages):
        return "structured output", rules.structured_mode
    return None, None


def _first_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        part = content[0] if content else None
        content = part.get("text") if isinstance(part, dict) else None
    return content if isinstance(content, str) else ""


def _is_single_turn(messages: Sequence[Mapping[str, Any]]) -> bool:
    roles = [message.get("role") for message in messages]
    return roles.count("user") == 1 and roles[-1] == "user" and "assistant" not in roles


# headers that go on

# What the client says to the upstream. A list of what may pass, not of what may not: gateways stand behind
# sign-on proxies and load balancers whose headers (names, addresses, tokens) nobody can list, and they are no
# provider's business.
_PASS = frozenset(
    (
        b"accept",
        b"user-agent",
        b"idempotency-key",
        b"x-idempotency-key",
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        b"x-client-request-id",
        b"anthropic-beta",
        b"anthropic-version",
        b"http-referer",  # OpenRouter: which application asks
        b"x-title",
        b"x-session-id",  # which conversation; some upstreams keep its prompt cache by it
        b"x-session-affinity",
        b"x-grok-conv-id",
    )
)
_PASS_PREFIXES = (b"openai-", b"x-stainless-", b"x-openrouter-")
# Never, whatever the settings add: credentials, which belong to us or to the connection, and what is ours.
_NEVER = frozenset(
    (
        b"authorization",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"cookie",
        b"set-cookie",
        b"host",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"content-length",
        b"content-type",  # of the body as we send it: the transport's
        b"content-encoding",
        b"accept-encoding",  # what we can undo: the transport's
    )
)
_NEVER_PREFIXES = (b"x-mnemogate-", b"x-forwarded-", b"forwarded", b"sec-")


def forwardable(headers: RawHeaders, extra: frozenset[bytes] = frozenset()) -> tuple[tuple[str, str], ...]:
    """The client's headers that go upstream. extra: further names (lower case) from the settings."""
    passed = []
    nominated: set[str] = set()  # by `Connection`, to go no further than here
    for raw, value in headers:
        name = _passing_name(raw, extra) if len(raw) <= 64 else None  # the cache shall not keep long ones
        if name is not None:
            passed.append((name, value.decode("latin-1")))
        elif raw == b"connection":
            nominated.update(part.strip() for part in value.decode("latin-1").lower().split(","))
    if nominated:
        return tuple((name, value) for name, value in passed if name not in nominated)
    return tuple(passed)


@lru_cache(maxsize=1024)  # clients send the same few names with every request
def _passing_name(name: bytes, extra: frozenset[bytes]) -> str | None:
    if name in _NEVER or name.startswith(_NEVER_PREFIXES):
        return None
    if name in _PASS or name in extra or name.startswith(_PASS_PREFIXES):
        return name.decode("latin-1")
    return None
