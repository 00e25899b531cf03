"""A list that goes on from one that was sent before is hashed from there on, and reads the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.request.chat_request import ChatRequest
from gateway.dialects.chat.parse import parse
from gateway.run.memory.resent import ResentLists
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import agent, remember

HASHER = MessageHasher(b"s" * 32)
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "My cat is called Miso."},
    {"role": "assistant", "content": "A fine name."},
    {"role": "user", "content": "What is she called?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "look"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "Miso"},
    {"role": "assistant", "content": "Miso."},
    {"role": "user", "content": "Thanks."},
]


def ask(messages: list[dict[str, Any]], **fields: Any) -> ChatRequest:
    return parse(orjson.dumps({"model": "m", "messages": messages, "user": "u", **fields}))


def agrees(found: HashedList, request: ChatRequest) -> None:
    fresh = HashedList(HASHER, request.messages)
    assert (found.positions, found.messages, found.atoms) == (
        fresh.positions,
        fresh.messages,
        fresh.atoms,
    )
    assert (found.answered_count, found.offsets, found.new_atoms) == (
        fresh.answered_count,
        fresh.offsets,
        fresh.new_atoms,
    )
    assert found.hash_path(len(found)) == fresh.hash_path(len(fresh))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the roles of the messages that were hashed."""
    roles: list[str] = []
    plain = MessageHasher.make_atoms

    def make_atoms(self: MessageHasher, message: Any, text: bytes | None = None) -> Any:
        roles.append(message["role"])
        return plain(self, message, text)

    monkeypatch.setattr(MessageHasher, "make_atoms", make_atoms)
    return roles


def test_each_turn_hashes_what_is_new(hashed: list[str]) -> None:
    resent = ResentLists()
    seen = []
    for end in (2, 4, 6, 8):
        request = ask(TALK[:end])
        listing = resent.hash_list(HASHER, request)
        seen.append([*hashed])
        agrees(listing, request)
        hashed.clear()
    # What opens a conversation is short, and not cached.
    assert seen == [["user"], ["user", "assistant", "user"], ["assistant", "tool"], ["assistant", "user"]]
    assert len(resent) == 1  # the conversation's last list


def answer(resent: ResentLists, request: ChatRequest, said: dict[str, Any]) -> None:
    """Answers a list, as the gateway does when it records the turn."""
    found, reply = resent.hash_list(HASHER, request), HASHER.make_atoms(said)
    new = [atom for atoms in found.new_atoms for atom in atoms]
    resent.cache_reply(
        request, found, said, reply, HASHER.hash_path((*new, *reply), found.answered_path_hash)
    )


@pytest.mark.parametrize(
    ("came_back", "is_known"),
    [
        ({"role": "assistant", "content": "It is Miso."}, True),
        ({"content": "It is Miso.", "role": "assistant", "refusal": None, "tool_calls": None}, True),
        ({"role": "assistant", "content": "It is"}, False),
        ({"role": "assistant", "content": [{"type": "text", "text": "It is Miso."}]}, False),
        # With these the atoms are others.
        ({"role": "assistant", "content": "It is Miso.", "name": "Ann"}, False),
        ({"role": "assistant", "content": "It is Miso.", "tool_calls": TALK[4]["tool_calls"]}, False),
        ({"role": "assistant", "content": "It is Miso.", "function_call": {}}, False),
    ],
)
def test_a_reply_that_comes_back_with_its_text_is_not_hashed_again(
    came_back: dict[str, Any], is_known: bool, hashed: list[str]
) -> None:
    # A system message has no place among the others.
    for first in (TALK[:4], [*TALK[:4], TALK[0]]):
        resent, request = ResentLists(), ask([*first, came_back, TALK[7]])
        answer(resent, ask(first), {"role": "assistant", "content": "It is Miso."})
        hashed.clear()
        listing = resent.hash_list(HASHER, request)
        assert hashed == (["user"] if is_known else ["assistant", "user"])
        agrees(listing, request)


def test_a_list_counts_with_all_of_its_calls() -> None:
    calls = [{"id": f"{n}", "function": {"name": f"f{n}", "arguments": "{}"}} for n in range(1000)]
    request = ask([TALK[1], {"role": "assistant", "content": None, "tool_calls": calls}, TALK[7]])
    resent = ResentLists(limit_bytes=20_000)
    for n in range(3):
        resent.hash_list(MessageHasher(bytes([n]) * 32), request)
    assert len(resent) == 1


def test_a_plain_turn_hashes_its_message_and_its_reply(
    upstream: StrictUpstream, tmp_path: Path, hashed: list[str]
) -> None:
    with remember(upstream, tmp_path, agent(memory_tools=False)) as world:
        chat = world.chat(user="ann")
        chat.say("My cat is called Miso.")
        chat.say("What is she called?")
        for _ in range(3):
            hashed.clear()
            chat.say("Thanks.")
            world.settle()
            assert hashed == ["user", "assistant"]


def test_a_reply_belongs_to_its_own_list(hashed: list[str]) -> None:
    resent, said = ResentLists(), {"role": "assistant", "content": "It is Miso."}
    first = ask(TALK[:4])
    listing = resent.hash_list(HASHER, first)
    other = ask([*TALK[:3], {"role": "user", "content": "And mine?"}])
    resent.hash_list(HASHER, other)
    resent.cache_reply(first, listing, said, HASHER.make_atoms(said), b"p" * 16)
    for asked in (other, first):
        request = ask([*asked.messages, said, TALK[7]])
        hashed.clear()
        agrees(resent.hash_list(HASHER, request), request)
        assert hashed[-2:] == ["assistant", "user"]


def test_a_list_that_was_changed_at_its_beginning_is_hashed_again(hashed: list[str]) -> None:
    resent = ResentLists()
    resent.hash_list(HASHER, ask(TALK[:4]))
    hashed.clear()
    request = ask([{**TALK[0], "content": "Be long."}, *TALK[1:6]])
    listing = resent.hash_list(HASHER, request)
    assert hashed == [m["role"] for m in TALK[1:6]]
    agrees(listing, request)


@pytest.mark.parametrize("size", [1, 4_000])
def test_another_list_of_as_many_messages_is_no_beginning(size: int, hashed: list[str]) -> None:
    resent = ResentLists()
    resent.hash_list(HASHER, ask([*TALK[:3], {"role": "user", "content": "x" * size}]))
    hashed.clear()
    request = ask(TALK[:6])
    agrees(resent.hash_list(HASHER, request), request)
    assert hashed[:2] == ["user", "assistant"]


def test_what_one_memory_has_hashed_is_no_other_s() -> None:
    resent, other = ResentLists(), MessageHasher(b"o" * 32)
    resent.hash_list(HASHER, ask(TALK[:4]))
    assert resent.hash_list(other, ask(TALK[:6])).atoms == HashedList(other, TALK[:6]).atoms


def test_messages_after_the_list_may_change(hashed: list[str]) -> None:
    resent = ResentLists()
    resent.hash_list(HASHER, ask(TALK[:4], temperature=1, stream=True))
    request = ask(TALK[:6], top_p=0.5)
    hashed.clear()
    agrees(resent.hash_list(HASHER, request), request)
    assert hashed[:2] == ["assistant", "tool"]


def test_a_list_may_be_written_in_another_way(hashed: list[str]) -> None:
    resent = ResentLists()
    resent.hash_list(HASHER, ask(TALK[:4]))
    hashed.clear()
    request = parse(json.dumps({"messages": TALK[:6], "model": "m"}, indent=1).encode())
    agrees(resent.hash_list(HASHER, request), request)
    assert hashed[:2] == ["assistant", "tool"]


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "user", "content": "My cat is called Miso"},
        {"role": "user", "content": "My cat is called Miso.", "name": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": "My cat is called Miso."}]},
        {"role": "assistant", "content": "My cat is called Miso."},
    ],
)
def test_each_part_of_a_message_counts(changed: dict[str, Any]) -> None:
    resent = ResentLists()
    resent.hash_list(HASHER, ask(TALK[:4]))
    request = ask([TALK[0], changed, *TALK[2:6]])
    agrees(resent.hash_list(HASHER, request), request)


def test_the_cached_lists_are_bounded() -> None:
    resent = ResentLists(limit_bytes=4_000)
    for n in range(100):
        resent.hash_list(
            MessageHasher(bytes([n]) * 32), ask([*TALK[:3], {"role": "user", "content": "x" * 4_000}])
        )
        assert resent.size_bytes <= 4_000
    assert len(resent) == 4
