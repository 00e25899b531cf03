"""The identity of a request: the user, agent and conversation that its headers and body name, and its memory mode.

This module trusts that the caller was authenticated (which named the project) and that the body was parsed and checked.
Ids are checked strictly, because two callers with the same id would share a memory. Headers and fields that it does not
act on pass unseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from math import inf
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.applications import APPLICATIONS
from gateway.core.json_limits import check_values
from gateway.core.request.request_headers import RawHeaders, header_text, refuse_repeated
from gateway.core.request.side_requests import (
    SideRequests,
    SideRule,
    is_single_structured_turn,
)
from gateway.core.request.signed_user import SIGNED_USER, signed_user
from gateway.errors import BadRequest, GatewayError, NotAllowed, UnknownModel
from storage.records import Scope

# The header that the gateway adds for a key that is bound to a user. No client can send a name with a colon.
BOUND_USER: Final = b"mnemogate:user"
# The field of `metadata` in which a dialect notes the id of a program's own device or account, which the program sends
# in place of a user's id. No client has a field of this name by chance, and one that sends it reaches no other memory.
INSTALLATION: Final = "mnemogate:installation"
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Mode(StrEnum):
    """The memory mode of a request. STRICT is ON, but the request fails if memory is not available."""

    ON = "on"
    READ = "read"
    OFF = "off"
    STRICT = "strict"


# The modes in which messages are stored.
STORING_MODES = (Mode.ON, Mode.STRICT)
_OFF = Mode.OFF  # bound once: Python 3.11 is slow to read it off its class
_MODES: dict[str, Mode | None] = {"": None, **{str(mode): mode for mode in Mode}}

# The sources of the user, in order. Names with a dash are headers, the others fields of the body.
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
# The sources of the conversation, in order. `prompt_cache_key` and x-session-affinity are not among them, because whole
# workloads share one; nor is x-livekit-session-id, which is new with every request.
CONVERSATION_ORDER = (
    "x-mnemogate-conversation",
    "x-openwebui-chat-id",
    "x-claude-code-session-id",
    "x-session-id",
    "metadata.conversation_id",
    "elevenlabs_extra_body.conversation_id",
    "call.id",
    "x-livekit-room-id",
)
# OpenAI's own fields must be texts. Fields of other vendors may be numbers.
_TEXT_FIELDS = frozenset(("user", "safety_identifier"))
_CALLER_NUMBER = "customer.number"
# The words that telephone providers send for a number that its caller withholds. Such callers are not one user.
_WITHHELD_WORDS = frozenset(
    ("anonymous", "blocked", "private", "restricted", "unavailable", "unknown", "withheld")
)
_TELEPHONE_KEYS = str.maketrans("abcdefghijklmnopqrstuvwxyz", "22233344455566677778889999")
# Twilio types these words on a telephone's keys.
_WITHHELD_NUMBERS = _WITHHELD_WORDS | {word.translate(_TELEPHONE_KEYS) for word in _WITHHELD_WORDS}

_MEMORY_HEADER = b"x-mnemogate-memory"
_HISTORY_HEADER = b"x-mnemogate-history"
_AGENT_HEADER = b"x-mnemogate-agent"
_SIGNED_USER_HEADER = SIGNED_USER.encode()
_RETRY_COUNT = b"x-stainless-retry-count"
_OPEN_WEBUI_CHAT = b"x-openwebui-chat-id"
# The beginnings of a temporary chat's id: in Open WebUI, and in its older versions.
_TEMPORARY_PREFIXES = (b"temporary:", b"local:")
USER_NAME = "x-mnemogate-user-name"
# The values of both may be percent-encoded, as Open WebUI does.
_USER_NAME_HEADER, _OPEN_WEBUI_NAME = USER_NAME.encode(), b"x-openwebui-user-name"

# The beginning of a model's name that asks for an agent.
AGENT_PREFIX = "agent/"
_AGENT_ID = re.compile(r"agent-(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
# The most characters of an id: far above a UUID or an e-mail address, which front ends send.
MAX_ID_CHARS = 256
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# The beginning of the names of conversations that are made for stored responses without a user.
UNNAMED_PREFIX: Final = "mnemogate-response-"
# Returns the fields of a body that name model, user and conversation as those of a chat completion do.
ReadNames = Callable[[dict[str, Any]], dict[str, Any]]


class _Source(NamedTuple):
    """A place in a request where an id may be."""

    name: str
    # None: the id is in the body.
    header: bytes | None
    # The keys that lead to it in the body.
    keys: tuple[str, ...]


@dataclass(frozen=True)
class IdentityRules:
    """The rules by which a project's requests are read; built once."""

    # The profile of requests that name no profile.
    default_profile: str
    # The sources of the user; the first source with an id wins. Names with a dash are headers, others paths in the
    # body.
    user_order: tuple[str, ...] = USER_ORDER
    # The sources of the conversation, in the same form.
    conversation_order: tuple[str, ...] = CONVERSATION_ORDER
    # The user of requests that name no user; None: such requests have no user.
    default_user: str | None = None
    # The mode of requests without the header for it.
    default_mode: Mode = Mode.ON
    # The modes of profiles that have their own, by the profile's name.
    profile_modes: Mapping[str, Mode] = field(default_factory=dict)
    side_rules: tuple[SideRule, ...] = APPLICATIONS.side_requests
    # The secret with which Open WebUI signs its user; None: signatures are not read.
    jwt_secret: str | None = field(default=None, repr=False)

    @cached_property
    def user_sources(self) -> tuple[_Source, ...]:
        return _parse_order(self.user_order)

    @cached_property
    def conversation_sources(self) -> tuple[_Source, ...]:
        return _parse_order(self.conversation_order)

    @cached_property
    def source_headers(self) -> frozenset[bytes]:
        """The headers that may name a user or a conversation."""
        sources = self.user_sources + self.conversation_sources
        return frozenset(each.header for each in sources if each.header is not None)

    @cached_property
    def source_fields(self) -> frozenset[str]:
        """The members of a body that may name a user or a conversation."""
        sources = self.user_sources + self.conversation_sources
        return frozenset(each.keys[0] for each in sources if each.header is None)

    @cached_property
    def single_headers(self) -> frozenset[bytes]:
        """The headers that a request may have only once."""
        return self.source_headers | {
            _MEMORY_HEADER,
            _HISTORY_HEADER,
            _AGENT_HEADER,
            _SIGNED_USER_HEADER,
            _USER_NAME_HEADER,
        }

    @cached_property
    def read_headers(self) -> frozenset[bytes]:
        """All headers that are read here."""
        return self.single_headers | {BOUND_USER, _OPEN_WEBUI_CHAT, _OPEN_WEBUI_NAME, _RETRY_COUNT}

    @cached_property
    def side_requests(self) -> SideRequests:
        return SideRequests(self.side_rules)


class Identity(Struct, frozen=True):
    """The user, agent and conversation that a request names, and its memory mode."""

    project: str
    # The profile that the request names, or the default.
    profile: str
    # The agent's name or id in the request; None: the request names no agent.
    agent: str | None
    user: str | None
    # The client's own id of the conversation, or one that was made for it; None: the request names none.
    conversation_key: str | None = msgspec.field(name="conversation")  # its name in stored requests
    # The scope of the memory; None: neither a user nor a conversation is named, so nothing is remembered.
    scope: Scope | None
    mode: Mode
    # The client sends its new message only, without the history.
    append: bool = False
    # The client's library has sent this request before.
    retry: bool = False
    # The name of the rule that found a side request, and set the mode; None: it is none.
    side_request: str | None = None
    # No user has sent these words, by a rule or by the form of the request. Nothing of it is stored, since the user's
    # own turn may have the same words under another prompt.
    leaves_nothing: bool = False
    # The mode is `read`, and the turn is stored for its id alone: it is neither recalled nor learned from.
    is_apart: bool = False
    # The mode if the gateway has the history; None: the same mode. The form of a request (`is_single_structured_turn`)
    # changes the mode only if the client has the history.
    mode_with_history: Mode | None = msgspec.field(default=None, name="own")  # its name in stored requests
    # The user's name for display; None: not known.
    name: str | None = None

    @property
    def stored_scope(self) -> Scope | None:
        """The scope in which the turn of the request is stored; None: the turn is not stored."""
        is_stored = self.is_apart if self.mode is Mode.READ else self.mode in STORING_MODES
        return self.scope if is_stored and not self.leaves_nothing else None

    def with_turn_apart(self, conversation_key: str | None) -> Identity:
        """Returns the identity of a turn that leaves nothing, but is stored for its id.

        conversation_key: of the turn's own conversation.
        """
        return replace(self, conversation_key=conversation_key, leaves_nothing=False, is_apart=True)

    def with_history(self) -> Identity:
        """Returns the identity for a history that the gateway has: no later list brings back what was not stored."""
        if self.mode_with_history is None:
            return self
        return replace(self, mode=self.mode_with_history, leaves_nothing=False, mode_with_history=None)

    def with_memory(self, conversation_key: str | None, scope: Scope | None) -> Identity:
        """Returns the identity with the memory of a request that names neither a user nor a conversation.

        The identity stays without a memory if nothing would be stored, or if it names another agent.

        conversation_key: None: the memory belongs to a user.
        scope: the scope of the memory; None: the memory belongs to that conversation alone.
        """
        identity = self.with_history()
        if scope is None:
            if identity.mode not in STORING_MODES:
                return self
            scope = Scope(self.project, self.profile, f"conversation:{conversation_key}")
        elif self.agent is None:
            identity = replace(identity, profile=scope.profile)
        elif self.profile != scope.profile:
            return self
        return replace(identity, conversation_key=conversation_key, scope=scope)


def identify(
    headers: RawHeaders, body: Mapping[str, Any], rules: IdentityRules, project: str, now: float = inf
) -> Identity:
    """Returns the identity of a request. now: seconds since the epoch; without it every signed user has expired.

    Raises: BadRequest naming the header or field; NotAuthenticated: the user's signature is not valid.
    """
    header_values: dict[bytes, bytes] = {}
    read_headers = rules.read_headers
    for name, value in headers:
        if name in read_headers:
            if name in header_values:
                refuse_repeated(headers, rules.single_headers)
            header_values[name] = value
    user, user_name = _read_signed_user(header_values, rules, now)
    if user_name is None:
        user_name = _read_user_name(header_values)
    conversation_key = None
    if not (rules.source_fields.isdisjoint(body) and rules.source_headers.isdisjoint(header_values)):
        user = user or _first_id(rules.user_sources, header_values, body)
        conversation_key = _first_id(rules.conversation_sources, header_values, body)
    user = _bound_or_default(user, header_values, rules, body)
    agent = _read_agent(header_values, body)
    profile = agent or rules.default_profile
    append = _wants_append(header_values, conversation_key)
    choice = _choose_mode(header_values, body, rules, profile)
    return Identity(
        project=project,
        profile=profile,
        agent=agent,
        user=user,
        conversation_key=conversation_key,
        scope=_make_scope(project, profile, user, conversation_key),
        mode=choice.mode,
        append=append,
        retry=_RETRY_COUNT in header_values and header_values[_RETRY_COUNT].strip(b"0").isdigit(),
        side_request=choice.side_request,
        leaves_nothing=choice.leaves_nothing,
        mode_with_history=choice.mode_with_history,
        name=user_name,
    )


def _make_scope(project: str, profile: str, user: str | None, conversation_key: str | None) -> Scope | None:
    if user is not None:
        return Scope(project, profile, f"user:{user}")
    return None if conversation_key is None else Scope(project, profile, f"conversation:{conversation_key}")


def _wants_append(headers: Mapping[bytes, bytes], conversation_key: str | None) -> bool:
    """Returns whether the client sends its new message only. Raises: BadRequest: no conversation is named."""
    if _HISTORY_HEADER not in headers:
        return False
    if _known_word(_HISTORY_HEADER, headers[_HISTORY_HEADER], ("", "append"), "append") != "append":
        return False
    if conversation_key is None:
        raise BadRequest(
            "`x-mnemogate-history: append` needs a named conversation: send `x-mnemogate-conversation`.",
            param="x-mnemogate-history",
        )
    return True


def user_of(
    headers: RawHeaders, body: bytes, rules: IdentityRules, now: float, read_names: ReadNames | None = None
) -> str:
    """Returns the user of a request without memory; "": the request names no user that can be read.

    body: empty if it is not known, as of an upload.
    read_names: reads the names in a request of its dialect; None: the request names users as chat completions do.

    Raises: NotAllowed: the key belongs to another user.
    """
    header_values = {name: value for name, value in headers if name in rules.read_headers}
    try:
        members = _MEMBERS.decode(body) if body else {}
        values = {name: bytes(members[name]) for name in rules.source_fields & members.keys()}
        check_values(*values.values())
        fields = {name: orjson.loads(value) for name, value in values.items()}
        if read_names is not None:
            fields = {**fields, **read_names(fields)}
        user, _ = _read_signed_user(header_values, rules, now)
        user = user or _first_id(rules.user_sources, header_values, fields)
    except (GatewayError, msgspec.DecodeError, orjson.JSONDecodeError, RecursionError):
        user = None
        fields = {}
    return _bound_or_default(user, header_values, rules, fields) or ""


def _bound_or_default(
    named_user: str | None, headers: Mapping[bytes, bytes], rules: IdentityRules, body: Mapping[str, Any]
) -> str | None:
    """Returns the user that the key is bound to, else the user that the request names, else the default user.

    Raises: NotAllowed: the request names another user than that of its key.
    """
    if BOUND_USER not in headers:
        return named_user or rules.default_user
    bound_user = headers[BOUND_USER].decode()
    metadata = body.get("metadata")
    installation = metadata.get(INSTALLATION) if isinstance(metadata, dict) else None
    if named_user not in (None, bound_user, installation):
        raise NotAllowed("The key of this request is another user's.", code="user_not_allowed")
    return bound_user


# -- ids


def _parse_order(order: Iterable[str]) -> tuple[_Source, ...]:
    return tuple(
        _Source(name, name.lower().encode(), ())
        if "-" in name
        else _Source(name, header=None, keys=tuple(name.split(".")))
        for name in order
    )


def _read_signed_user(
    headers: Mapping[bytes, bytes], rules: IdentityRules, now: float
) -> tuple[str | None, str | None]:
    """Returns id and name of the user that a signature vouches for; None, None: the request has no signature."""
    if rules.jwt_secret is None or _SIGNED_USER_HEADER not in headers:
        return None, None
    user = signed_user(headers[_SIGNED_USER_HEADER].strip(), rules.jwt_secret, now)
    return checked_id(user.id, SIGNED_USER), user.name


def _read_user_name(headers: Mapping[bytes, bytes]) -> str | None:
    """Returns the name that a header gives for the user. Raises: BadRequest: the gateway's header is malformed."""
    if _USER_NAME_HEADER in headers:
        return checked_id(unquote(header_text(headers[_USER_NAME_HEADER], USER_NAME)), USER_NAME)
    if _OPEN_WEBUI_NAME in headers:
        return unquote(headers[_OPEN_WEBUI_NAME].decode("utf-8", "replace"))[:MAX_ID_CHARS]
    return None


def _first_id(
    order: tuple[_Source, ...], headers: Mapping[bytes, bytes], body: Mapping[str, Any]
) -> str | None:
    """Returns the id of the first source that has one."""
    for name, header, keys in order:
        if header is not None:
            if header not in headers:
                continue
            value = _header_id(headers[header], name)
        elif keys[0] not in body:
            continue
        else:
            member: Any = body
            for key in keys:
                member = member.get(key) if isinstance(member, dict) else None
            value = checked_id(member, name) if isinstance(member, str) else _number_id(member, name)
            if name == _CALLER_NUMBER and value is not None:
                is_withheld = value.lstrip("+").lower() in _WITHHELD_NUMBERS
                value = None if is_withheld else value
        if value is not None:
            return value
    return None


def _header_id(raw: bytes, name: str) -> str | None:
    return checked_id(header_text(raw, name), name)


def _number_id(value: Any, name: str) -> str | None:
    """Returns an id that is a whole number, if its vendor sends numbers; None for null."""
    if value is None:
        return None
    # A float is refused: two long whole numbers may be the same float, so that two users would share a memory.
    if name in _TEXT_FIELDS or isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(
            f"Invalid type for `{name}`: expected a string, but got {_json_type(value)}.", param=name
        )
    return checked_id(str(value), name)


def _json_type(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool):
        return "a boolean"
    return "an integer" if isinstance(value, int) else "a decimal number"


def checked_id(text: str, name: str) -> str | None:
    """Returns an id without the blanks around it; None: it is empty.

    name: the name of its header or field.

    Raises: BadRequest.
    """
    text = text.strip(" \t")
    if not text:
        return None
    if len(text) > MAX_ID_CHARS:
        raise BadRequest(
            f"`{name}` is too long: {len(text)} characters, at most {MAX_ID_CHARS} are accepted.", param=name
        )
    if not text.isprintable() and _CONTROL_CHARACTER.search(text):
        raise BadRequest(f"`{name}` contains a control character.", param=name)
    return text


def asks_agent(model: str) -> bool:
    """Returns whether a model's name asks for an agent: `agent/<name or id>`, or an agent's id by itself."""
    # Nearly all names are those of models, for which the first comparison is enough.
    return model.startswith("agent") and (
        model.startswith(AGENT_PREFIX) or _AGENT_ID.fullmatch(model) is not None
    )


def _read_agent(headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> str | None:
    raw = headers.get(_AGENT_HEADER)
    header_agent = None if raw is None else _header_id(raw, "x-mnemogate-agent")
    model = body.get("model")
    if not isinstance(model, str) or not asks_agent(model):
        return header_agent
    model_agent = checked_id(model.removeprefix(AGENT_PREFIX), "model")
    if model_agent is None:
        raise UnknownModel("`model` names no agent: expected `agent/<name or id>`.", param="model")
    if header_agent is not None and header_agent != model_agent:
        raise BadRequest(
            "`model` and `x-mnemogate-agent` name two different agents.", param="x-mnemogate-agent"
        )
    return model_agent


# -- the memory mode


class _ModeChoice(NamedTuple):
    """The memory mode of a request. The fields are those of `Identity`."""

    mode: Mode
    side_request: str | None = None
    leaves_nothing: bool = False
    mode_with_history: Mode | None = None


def _choose_mode(
    headers: Mapping[bytes, bytes], body: Mapping[str, Any], rules: IdentityRules, profile: str
) -> _ModeChoice:
    """Returns the memory mode of a request, with the reason if it is not the requested mode."""
    asked_mode = _asked_mode(headers[_MEMORY_HEADER]) if _MEMORY_HEADER in headers else None
    mode = asked_mode or rules.profile_modes.get(profile, rules.default_mode)
    if _OPEN_WEBUI_CHAT in headers and headers[_OPEN_WEBUI_CHAT].startswith(_TEMPORARY_PREFIXES):
        # The front end shows its user that this chat is off the record. A header that its operator sets for all chats
        # does not change that.
        return _ModeChoice(_OFF)
    if mode is _OFF:
        return _ModeChoice(mode)
    # A rule restricts memory even if the header asks for more: a client's library sends the header with each request,
    # also with one for a title. The header overrides only the form of the request, since a user's own turn may have a
    # schema.
    if (side_request := rules.side_requests.find(body.get("messages") or ())) is not None:
        return _ModeChoice(Mode(side_request.memory), side_request.name, side_request.leaves_nothing)
    if asked_mode is None and is_single_structured_turn(body):
        return _ModeChoice(Mode.READ, leaves_nothing=True, mode_with_history=mode)
    return _ModeChoice(mode)


def refuse_unstored(headers: RawHeaders) -> None:
    """Refuses a request that asks not to be stored, for a route that stores each request. Raises: BadRequest."""
    for name, value in headers:
        if name == _MEMORY_HEADER and (_asked_mode(value) or Mode.ON) not in STORING_MODES:
            raise BadRequest(
                "What is sent to an agent here is stored. A chat completion of `agent/<name or id>` can go without.",
                param=_MEMORY_HEADER.decode(),
            )


@lru_cache(maxsize=64)  # nearly all requests have one of a few values
def _asked_mode(raw: bytes) -> Mode | None:
    """Returns the mode that the header's value asks for; None: the value is empty. Raises: BadRequest."""
    return _MODES[_known_word(_MEMORY_HEADER, raw, _MODES, "on, read, off or strict")]


def _known_word(header: bytes, raw: bytes, known_words: Collection[str], expected: str) -> str:
    """Returns the value of a header with one word. Raises: BadRequest: the word is not known."""
    name = header.decode()
    text = header_text(raw, name).strip().lower()
    if text not in known_words:
        raise BadRequest(
            f"Invalid value for the header `{name}`: {text[:40]!r}; expected {expected}.", param=name
        )
    return text
