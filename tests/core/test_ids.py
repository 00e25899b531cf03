"""Public ids: what is made is read again, and nothing else is."""

from __future__ import annotations

import uuid

import pytest

from gateway.core.ids import (
    WITH_SEQ,
    WITH_UID,
    ObjectRef,
    make_id,
    make_id_with_seq,
    new_uid,
    parse_ref,
    parse_uid,
)

UID = "35f686ccb6714adb9f84fb1d27f50792"


@pytest.mark.parametrize("kind", sorted(WITH_UID))
def test_an_id_is_found_under_its_kind_alone(kind: str) -> None:
    uid = new_uid()
    made = make_id(kind, uid)
    assert made == f"{kind}-{uid}"
    assert parse_uid(kind, made) == uid
    assert [other for other in WITH_UID if parse_uid(other, made) is not None] == [kind]


@pytest.mark.parametrize("kind", sorted(WITH_SEQ))
@pytest.mark.parametrize("hidden", [None, 0, 12])
def test_an_id_with_a_number_is_found_under_its_kind_alone(kind: str, hidden: int | None) -> None:
    made = make_id_with_seq(kind, UID, 17, hidden=hidden)
    assert parse_ref(kind, made) == ObjectRef(UID, 17, hidden)
    assert [other for other in WITH_SEQ if parse_ref(other, made) is not None] == [kind]


def test_a_uid_may_be_written_with_the_dashes_of_a_uuid() -> None:
    assert parse_uid("agent", f"agent-{uuid.UUID(UID)}") == UID
    assert parse_uid("block", f"agent-{uuid.UUID(UID)}") is None


def test_the_attempt_of_a_reply_is_ignored() -> None:
    assert parse_ref("message", make_id_with_seq("message", UID, 18) + "-3") == ObjectRef(UID, 18)
    assert parse_ref("message", make_id_with_seq("message", UID, 18, hidden=2) + "-3") == ObjectRef(
        UID, 18, 2
    )


@pytest.mark.parametrize(
    "id",
    [
        "",
        "agent",
        "agent-",
        f"agent-{UID}x",
        f"agent-{UID}\n",
        f"agent-{UID[:-1]}",
        f"agent-{UID.upper()}",
        f"message-{UID}",
        f"message-{UID}-",
        f"message-{UID}--1",
        f"message-{UID}-{10**30}",
        f"message-{UID}-1-h",
        f"message-{UID}-١",
        "agent-../../etc/passwd",
    ],
)
def test_anything_else_names_nothing(id: str) -> None:
    assert parse_uid("agent", id) is None
    assert parse_ref("message", id) is None
