"""By which fields a request names its user and conversation, in each dialect: those that its client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.request.request_ids import CONVERSATION_ORDER, USER_ORDER
from gateway.dialects.chat.parse import parse as parse_chat
from gateway.dialects.messages.parse import parse
from gateway.dialects.responses.native import read_native
from gateway.dialects.responses.parse import parse as parse_responses
from tests.rows import each_row

Json = dict[str, Any]
HELLO: Json = {"role": "user", "content": "Hi"}


def by_chat(fields: Json) -> ChatRequest:
    return parse_chat(orjson.dumps({"model": "m", "messages": [HELLO], **fields}), 9)


def by_responses(fields: Json) -> ChatRequest:
    return parse_responses(orjson.dumps({"model": "m", "input": "Hi", **fields})).chat


def by_native_responses(fields: Json) -> ChatRequest:
    found = read_native(orjson.dumps({"model": "m", "input": "Hi", **fields}), "/responses", 9)
    assert found is not None
    return found.chat


def by_messages(fields: Json, *, is_lenient: bool = False) -> ChatRequest:
    json = {"model": "m", "max_tokens": 9, "messages": [HELLO], **fields}
    return parse(orjson.dumps(json), json, (), 9, is_lenient=is_lenient).chat


def by_native_messages(fields: Json) -> ChatRequest:
    return by_messages(fields, is_lenient=True)


OPENAIS = (by_chat, by_responses, by_native_responses)
CLAUDES = (by_messages, by_native_messages)
ALL = (*OPENAIS, *CLAUDES)
NAMED: Json = {"user": "u", "safety_identifier": "s", "metadata": {"user_id": "m"}}
CODE = '{"device_id": "d", "account_uuid": "a", "session_id": "talk"}'
# dialects, the order of the settings, fields, the users in them
ROWS: list[tuple[tuple[Callable[[Json], ChatRequest], ...], tuple[str, ...], Json, str | None]] = [
    (OPENAIS, USER_ORDER, NAMED, "u"),
    (OPENAIS, USER_ORDER, {"safety_identifier": "s", "metadata": {"user_id": "m"}}, "s"),
    (ALL, USER_ORDER, {"metadata": {"user_id": "m"}}, "m"),
    (CLAUDES, USER_ORDER, {"metadata": {"user_id": CODE}}, "a"),
    # Without `metadata.user_id` in the order nobody is named by it, in any dialect.
    (ALL, ("x-mnemogate-user", "user", "safety_identifier"), {"metadata": {"user_id": "m"}}, None),
    (OPENAIS, ("safety_identifier", "user"), NAMED, "s"),
    # The Responses API's own metadata are texts alone.
    (
        (by_chat, by_native_responses),
        ("metadata.tenant.person",),
        {"metadata": {"tenant": {"person": "t"}}},
        "t",
    ),
    # A field that is no chat completion's: Codex's, and one of the operator's own.
    ((by_responses, by_native_responses), ("client_metadata.who",), {"client_metadata": {"who": "c"}}, "c"),
    ((*OPENAIS, by_native_messages), ("tenant",), {"tenant": "t"}, "t"),
]


@each_row(("way", "order", "fields", "user"), [(way, *row) for ways, *row in ROWS for way in ways])
def test_the_order_of_the_settings_reads_the_clients_own_fields(
    way: Callable[[Json], ChatRequest], order: tuple[str, ...], fields: Json, user: str | None
) -> None:
    rules = IdentityRules("default", user_order=order)
    assert identify((), way(fields).identity_fields, rules, "p").user == user


@pytest.mark.parametrize(
    ("way", "order", "fields", "conversation"),
    [
        (by_messages, CONVERSATION_ORDER, {"metadata": {"user_id": CODE}}, "talk"),
        (by_responses, ("client_metadata.thread",), {"client_metadata": {"thread": "t1"}}, "t1"),
        (by_native_responses, ("client_metadata.thread",), {"client_metadata": {"thread": "t1"}}, "t1"),
    ],
)
def test_so_does_that_of_conversations(
    way: Callable[[Json], ChatRequest], order: tuple[str, ...], fields: Json, conversation: str
) -> None:
    rules = IdentityRules("default", conversation_order=order)
    assert identify((), way(fields).identity_fields, rules, "p").conversation_key == conversation
