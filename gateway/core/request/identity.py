"""The identity of a request: the user, agent and conversation that its headers and body name, and its memory mode.

This module trusts that the caller was authenticated (which named the project) and that the body was parsed and checked.
Other headers and fields pass unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.applications import APPLICATIONS
from gateway.core.json_limits import check_values
from gateway.core.json_object import read_members
from gateway.core.request.memory_mode import MEMORY_HEADER, OPEN_WEBUI_CHAT, STORING_MODES, Mode, choose_mode
from gateway.core.request.request_headers import RawHeaders, read_header, read_known_word, refuse_repeated
from gateway.core.request.request_ids import (
    CONVERSATION_ORDER,
    MAX_ID_CHARS,
    USER_ORDER,
    IdSource,
    find_id,
    normalize_id,
    parse_order,
)
from gateway.core.request.requested_agent import AGENT_HEADER, read_agent
from gateway.core.request.side_requests import SideRequests, SideRule
from gateway.core.request.signed_user import SIGNED_USER, SignedUser, read_signed_user
from gateway.errors import BadRequest, GatewayError, NotAllowed
from storage.records import Scope

# The header that the gateway adds for a key that is bound to a user. No client can send a name with a colon.
BOUND_USER_HEADER: Final = b"mnemogate:user"
# The field of `metadata` in which a dialect notes the id of a program's own device or account, which the program sends
# in place of a user's id. No client has a field of this name by chance, and one that sends it reaches no other memory.
INSTALLATION_FIELD: Final = "mnemogate:installation"

# The header with which a client chooses append mode.
HISTORY_HEADER: Final = b"x-mnemogate-history"
# The header with Open WebUI's signed user.
_SIGNED_USER_HEADER: Final = SIGNED_USER.encode()
# The header of OpenAI's SDKs with the number of earlier tries of a request.
RETRY_COUNT_HEADER: Final = b"x-stainless-retry-count"
# The headers of the user's name. Their values may be percent-encoded, as Open WebUI does.
USER_NAME_HEADER: Final = b"x-mnemogate-user-name"
_OPEN_WEBUI_NAME_HEADER: Final = b"x-openwebui-user-name"

# Returns the fields of a body that name model, user and conversation, under their names in a chat completion.
ReadNames = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class IdentityRules:
    """The rules by which a project's requests are read.

    They are cached until something is forgotten, because `side_requests` remembers the last system prompt.
    """

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
    # The rules that recognise side requests, as for the title of a chat.
    side_rules: tuple[SideRule, ...] = APPLICATIONS.side_requests
    # The secret with which Open WebUI signs its user; None: signatures are not read.
    jwt_secret: str | None = field(default=None, repr=False)

    @cached_property
    def user_sources(self) -> tuple[IdSource, ...]:
        return parse_order(self.user_order)

    @cached_property
    def conversation_sources(self) -> tuple[IdSource, ...]:
        return parse_order(self.conversation_order)

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
            MEMORY_HEADER,
            HISTORY_HEADER,
            AGENT_HEADER,
            _SIGNED_USER_HEADER,
            USER_NAME_HEADER,
        }

    @cached_property
    def relevant_headers(self) -> frozenset[bytes]:
        """All headers that are read here."""
        return self.single_headers | {
            BOUND_USER_HEADER,
            OPEN_WEBUI_CHAT,
            _OPEN_WEBUI_NAME_HEADER,
            RETRY_COUNT_HEADER,
        }

    @cached_property
    def side_requests(self) -> SideRequests:
        """The side rules, compiled. They cache the match of the last system prompt."""
        return SideRequests(self.side_rules)


class Identity(Struct, frozen=True):
    """The user, agent and conversation that a request names, and its memory mode."""

    # The project of the caller's key.
    project: str
    # The profile that the request names, or the default.
    profile: str
    # The agent's name or id in the request; None: the request names no agent.
    agent: str | None
    # The id of the user; None: the request names no user.
    user: str | None
    # The client's own id of the conversation, or an id that was made for it; None: the request names no conversation.
    conversation_key: str | None = msgspec.field(name="conversation")  # its name in stored requests
    # The scope of the memory; None: neither a user nor a conversation is named, so nothing is remembered.
    scope: Scope | None
    # The memory mode.
    mode: Mode
    # True: the client sends its new message only, without the history.
    sends_new_only: bool = msgspec.field(default=False, name="append")  # its name in stored requests
    # True: the client's library has sent this request before.
    is_retry: bool = msgspec.field(default=False, name="retry")  # its name in stored requests
    # The name of the rule that found a side request, and set the mode; None: this is no side request.
    side_request: str | None = None
    # True: no user has sent these words, by a rule or by the form of the request. The request is not stored, since the
    # user's own turn may have the same words under another prompt.
    leaves_nothing: bool = False
    # True: the mode is `read`, and the turn is stored for its id alone: it is neither recalled nor learned from.
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

    def uses_append_mode(self, agent_history: str | None) -> bool:
        """Returns whether the client sends its new messages alone, by the header or by the agent's settings.

        agent_history: the `AgentSpec.history` of the agent; None: it is not read yet, and the header alone decides.
        """
        return self.conversation_key is not None and (self.sends_new_only or agent_history == "append")

    def with_turn_apart(self, conversation_key: str | None) -> Identity:
        """Returns a copy of the identity for a turn that leaves nothing, but is stored for its id.

        conversation_key: the key of the turn's own conversation.
        """
        return replace(self, conversation_key=conversation_key, leaves_nothing=False, is_apart=True)

    def with_history(self) -> Identity:
        """Returns a copy of the identity for a history that the gateway has: no later list brings its messages back."""
        if self.mode_with_history is None:
            return self
        return replace(self, mode=self.mode_with_history, leaves_nothing=False, mode_with_history=None)

    def with_memory(self, conversation_key: str | None, scope: Scope | None) -> Identity:
        """Returns a copy of the identity with a memory, for a request that names neither a user nor a conversation.

        The identity stays without a memory if nothing would be stored, if it names another agent, or if neither a
        conversation nor a scope is given.

        conversation_key: the id of the conversation with the memory; None: the memory belongs to a user.
        scope: the scope of the memory; None: the memory belongs to that conversation alone.
        """
        identity = self.with_history()
        if scope is None:
            if identity.mode not in STORING_MODES:
                return self
            scope = _make_scope(self.project, self.profile, None, conversation_key)
        elif self.agent is None:
            identity = replace(identity, profile=scope.profile)
        elif self.profile != scope.profile:
            return self
        return replace(identity, conversation_key=conversation_key, scope=scope)


def identify(
    headers: RawHeaders, body: Mapping[str, Any], rules: IdentityRules, project: str, now: float = inf
) -> Identity:
    """Returns the identity of a request.

    now: the current time, in seconds since the epoch; by default every signed user has expired.

    Raises: BadRequest naming the header or field; NotAuthenticated: the user's signature is not valid.
    """
    header_values: dict[bytes, bytes] = {}
    relevant_headers = rules.relevant_headers
    for name, value in headers:
        if name in relevant_headers:
            if name in header_values:
                refuse_repeated(headers, rules.single_headers)
            header_values[name] = value
    user, user_name = _find_signed_user(header_values, rules, now) or (None, None)
    if user_name is None:
        user_name = _read_user_name(header_values)
    conversation_key = None
    if not (rules.source_fields.isdisjoint(body) and rules.source_headers.isdisjoint(header_values)):
        user = user or find_id(rules.user_sources, header_values, body)
        conversation_key = find_id(rules.conversation_sources, header_values, body)
    user = _find_bound_or_default(user, header_values, rules, body)
    agent = read_agent(header_values, body)
    profile = agent or rules.default_profile
    sends_new_only = _sends_new_only(header_values, conversation_key)
    default_mode = rules.profile_modes.get(profile, rules.default_mode)
    choice = choose_mode(header_values, body, default_mode, rules.side_requests)
    return Identity(
        project=project,
        profile=profile,
        agent=agent,
        user=user,
        conversation_key=conversation_key,
        scope=_make_scope(project, profile, user, conversation_key),
        mode=choice.mode,
        sends_new_only=sends_new_only,
        is_retry=was_sent_before(header_values.get(RETRY_COUNT_HEADER, b"")),
        side_request=choice.side_request,
        leaves_nothing=choice.leaves_nothing,
        mode_with_history=choice.mode_with_history,
        name=user_name,
    )


def was_sent_before(retry_count: bytes) -> bool:
    """Returns whether an SDK has sent the request before. retry_count: the header's value; "0": the first attempt."""
    return retry_count.strip(b"0").isdigit()


def find_request_user(
    headers: RawHeaders, body: bytes, rules: IdentityRules, now: float, read_names: ReadNames | None = None
) -> str | None:
    """Returns the user of a request without memory; None: the request names no user that can be read.

    body: the body; b"": the body is not known, as with an upload.
    read_names: reads the names in a request of its dialect; None: the request names users as chat completions do.

    Raises: NotAllowed: the key belongs to another user.
    """
    header_values = {name: value for name, value in headers if name in rules.relevant_headers}
    try:
        members = read_members(body) if body else {}
        values = {name: bytes(members[name]) for name in rules.source_fields & members.keys()}
        check_values(*values.values())
        fields = {name: orjson.loads(value) for name, value in values.items()}
        if read_names is not None:
            fields = {**fields, **read_names(fields)}
        signed_user = _find_signed_user(header_values, rules, now)
        user = signed_user.id if signed_user else find_id(rules.user_sources, header_values, fields)
    except (GatewayError, msgspec.DecodeError, orjson.JSONDecodeError, RecursionError):
        user = None
        fields = {}
    return _find_bound_or_default(user, header_values, rules, fields)


def _make_scope(project: str, profile: str, user: str | None, conversation_key: str | None) -> Scope | None:
    if user is not None:
        return Scope(project, profile, f"user:{user}")
    return None if conversation_key is None else Scope(project, profile, f"conversation:{conversation_key}")


def _sends_new_only(headers: Mapping[bytes, bytes], conversation_key: str | None) -> bool:
    """Returns whether the client sends its new message only. Raises: BadRequest: no conversation is named."""
    if HISTORY_HEADER not in headers:
        return False
    if read_known_word(HISTORY_HEADER, headers[HISTORY_HEADER], ("", "append"), "append") != "append":
        return False
    if conversation_key is None:
        raise BadRequest(
            "`x-mnemogate-history: append` needs a named conversation: send `x-mnemogate-conversation`.",
            param="x-mnemogate-history",
        )
    return True


def _find_bound_or_default(
    named_user: str | None, headers: Mapping[bytes, bytes], rules: IdentityRules, body: Mapping[str, Any]
) -> str | None:
    """Returns the user to which the key is bound, else the user that the request names, else the default user.

    Raises: NotAllowed: the request names another user than the user of its key.
    """
    if BOUND_USER_HEADER not in headers:
        return named_user or rules.default_user
    bound_user = headers[BOUND_USER_HEADER].decode()
    metadata = body.get("metadata")
    installation_id = metadata.get(INSTALLATION_FIELD) if isinstance(metadata, dict) else None
    if named_user not in (None, bound_user, installation_id):
        raise NotAllowed("The key of this request is another user's.", code="user_not_allowed")
    return bound_user


def _find_signed_user(headers: Mapping[bytes, bytes], rules: IdentityRules, now: float) -> SignedUser | None:
    """Returns the user that a signature vouches for; None: the request has no signature. Raises: NotAuthenticated."""
    if rules.jwt_secret is None or _SIGNED_USER_HEADER not in headers:
        return None
    user = read_signed_user(headers[_SIGNED_USER_HEADER].strip(), rules.jwt_secret, now)
    user_id = normalize_id(user.id, SIGNED_USER)
    return None if user_id is None else SignedUser(user_id, user.name)


def _read_user_name(headers: Mapping[bytes, bytes]) -> str | None:
    """Returns the name that a header gives for the user. Raises: BadRequest: the gateway's header is malformed."""
    if USER_NAME_HEADER in headers:
        header = USER_NAME_HEADER.decode()
        return normalize_id(unquote(read_header(headers[USER_NAME_HEADER], header)), header)
    if _OPEN_WEBUI_NAME_HEADER in headers:
        return unquote(headers[_OPEN_WEBUI_NAME_HEADER].decode("utf-8", "replace"))[:MAX_ID_CHARS]
    return None
