"""Planning a step of a stored conversation: everything that came in is new, and follows the last exchange."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.exchange import count_atoms_to_end, list_input_atoms
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import with_private
from gateway.core.conversation.stored_path import (
    abandon,
    begin_step,
    begins_fork,
    finish_step,
    hash_exchanges,
    mark_refused,
    plan_step,
    supersede_refused,
)
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.compose import compose
from storage.records import EvictedPart, Exchange, ExchangeState
from tests.core.conversations import SECRET, assistant, call, result, user

HASHER = MessageHasher(SECRET)


class Conversation:
    """One that grows step by step, without a store."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.last: Exchange | None = None

    def plan(
        self, *messages: WireMessage, pending: Sequence[WireMessage] = (), evicted: EvictedPart | None = None
    ) -> Plan:
        query = Query(
            HashedList(HASHER, messages),
            True,
            MemoryUse.ON,
            1.0,
            60.0,
            kind=ConversationKind.AGENT,
            model="up/m",
        )
        return plan_step(self.tree, query, self.last, 1, pending=pending, evicted=evicted)

    def step(
        self,
        plan: Plan,
        reply: WireMessage | None,
        said: WireMessage | None = None,
        evicted: EvictedPart | None = None,
    ) -> Exchange:
        number = len(self.tree.by_id) + 1
        e = replace(begin_step(plan, {}, None), id=number)
        above = self.last.path_hash if self.last else b""
        self.last = self.tree.add(
            finish_step(
                e,
                HASHER,
                above,
                full_reply=[reply] if reply else [],
                shown_reply=said,
                model="up/m",
                evicted=evicted,
                now=2.0,
            )
        )
        return self.last

    def sent(self, plan: Plan) -> list[WireMessage]:
        """The gateway's messages that go before those of the request."""
        return [each.message for each in compose(self.tree, plan, (), {}).inserted]


def test_all_of_a_send_is_new_its_assistant_messages_too() -> None:
    talk = Conversation()
    e = talk.step(talk.plan(user("one"), assistant("Said elsewhere."), user("two")), assistant("Second."))
    assert len(e.inputs) == 3
    assert e.prefix_length == 0
    again = talk.plan(user("one"), assistant("Said elsewhere."), user("two"))
    assert len(again.messages) == 3
    assert again.exchange.parent == e.id
    assert [m["content"] for m in talk.sent(again)] == ["one", "Said elsewhere.", "two", "Second."]


def test_results_of_tools_come_after_the_path() -> None:
    talk = Conversation()
    talk.step(talk.plan(user("Weather?")), assistant(None, call("1")))
    plan = talk.plan(pending=[with_private(result("1", "sunny"), status="success")])
    sent = talk.sent(plan)
    assert [m["role"] for m in sent] == ["user", "assistant", "tool"]
    assert "mnemogate" not in sent[-1]
    e = talk.step(plan, assistant("Sunny."))
    assert orjson.loads(e.input or b"")[0]["mnemogate"] == {"status": "success"}
    assert "mnemogate" not in talk.sent(talk.plan(user("Thanks.")))[2]


def test_the_next_body_begins_with_the_one_before() -> None:
    """Also where the reply that the model gave has fields that say nothing."""
    talk = Conversation()
    asked = talk.plan(user("Weather?"))
    first = [*talk.sent(asked), user("Weather?")]
    talk.step(asked, {**assistant(None, call("1")), "refusal": None, "annotations": []})
    second = talk.sent(talk.plan(pending=[result("1", "sunny")]))
    assert second[: len(first)] == first
    assert second[1] == assistant(None, call("1"))
    talk.step(talk.plan(pending=[result("1", "sunny")]), assistant("Sunny."))
    assert talk.sent(talk.plan(user("Thanks.")))[: len(second)] == second


def test_what_was_said_may_be_something_else_than_what_goes_upstream() -> None:
    talk = Conversation()
    spoken = assistant(None, call("1", "send_message", '{"message":"Hello"}'))
    e = talk.step(talk.plan(user("Hi")), spoken, assistant("Hello"))
    assert e.reply == HASHER.make_atoms(assistant("Hello"))
    assert talk.tree.contents.get(e).shown_reply == assistant("Hello")
    assert talk.sent(talk.plan(pending=[result("1", "sent")]))[1] == spoken


def test_an_unanswered_call_gets_a_result() -> None:
    talk = Conversation()
    talk.step(talk.plan(user("Weather?")), assistant(None, call("1")))
    sent = talk.sent(talk.plan(user("Never mind.")))
    assert [m["role"] for m in sent] == ["user", "assistant", "tool"]


def test_a_step_without_a_reply_stays_in_the_path() -> None:
    talk = Conversation()
    e = talk.step(talk.plan(user("Hello?")), None)
    assert (e.state, e.reply, e.continued, e.active) == (ExchangeState.FINISHED, None, True, True)
    plan = talk.plan(user("Are you there?"))
    assert [m["content"] for m in talk.sent(plan)] == ["Hello?"]
    assert plan.exchange.offset == count_atoms_to_end(e)
    after = talk.step(plan, assistant("Yes."))
    said = [user("Hello?"), user("Are you there?"), assistant("Yes.")]
    assert after.path_hash == HashedList(HASHER, said).hash_path(3)


def test_what_was_left_open_ends_without_a_reply() -> None:
    talk = Conversation()
    e = abandon(begin_step(talk.plan(user("Hello?")), {0: "note"}, None), HASHER, b"", 3.0)
    assert (e.state, e.reply, e.ended, e.continued) == (ExchangeState.FINISHED, None, 3.0, True)
    assert e.notes == {0: "note"}


def test_what_has_left_the_window_is_not_put_in_front() -> None:
    """A reply without atoms has the place of what follows it; it leaves nevertheless."""
    talk = Conversation()
    talk.step(talk.plan(user("one")), assistant(None, call("1")), assistant(""))
    e = talk.step(talk.plan(pending=[result("1", "done")]), assistant(None, call("2")), assistant(""))
    begin = EvictedPart(e.depth + 1, count_atoms_to_end(e), 10, 1000)
    talk.step(talk.plan(user("two")), assistant("Second."))
    assert [m["content"] for m in talk.sent(talk.plan(user("three"), evicted=begin))] == ["two", "Second."]


def test_of_what_plain_turns_have_cut_nothing_is_put_in_front() -> None:
    """They know how much of a path has left, and not in which exchange it ends."""
    talk = Conversation()
    for n in range(3):
        e = talk.step(talk.plan(user(f"Question {n}")), assistant(f"Answer {n}."))
    begin = EvictedPart(1, count_atoms_to_end(e), 10, 1000)
    talk.step(talk.plan(user("two")), assistant("Second."))
    assert [m["content"] for m in talk.sent(talk.plan(user("three"), evicted=begin))] == ["two", "Second."]


def test_its_path_is_that_of_the_list_that_says_the_same() -> None:
    talk = Conversation()
    talk.step(talk.plan(user("Weather?")), assistant("Let me see.", call("1")))
    e = talk.step(talk.plan(pending=[result("1", "sunny")]), assistant("Sunny."))
    said = [user("Weather?"), assistant("Let me see.", call("1")), result("1", "sunny"), assistant("Sunny.")]
    assert e.path_hash == HashedList(HASHER, said).hash_path(4)
    assert e.length == 4


def test_the_hash_of_a_path_goes_on_over_exchanges_without_one() -> None:
    talk = Conversation()
    first = talk.step(talk.plan(user("one")), assistant("First."))
    second = talk.step(talk.plan(user("two")), assistant("Second."))
    empty = replace(
        first, id=9, inputs=(), media=(), reply=None, path_hash=b"", state=ExchangeState.OFF, parent=second.id
    )
    assert begins_fork(empty)
    assert not begins_fork(second)
    for path in (
        [],
        [first],
        [first, second],
        [first, second, empty],
        [first, replace(second, path_hash=b"")],
    ):
        whole = [atom for e in path for atom in (*list_input_atoms(e), *(e.reply or ()))]
        assert hash_exchanges(path, HASHER) == HASHER.hash_path(whole)


def test_what_is_refused_in_a_fork_leaves_what_stands_above_it() -> None:
    talk = Conversation()
    first = talk.step(talk.plan(user("one")), None)
    fork = replace(
        first,
        id=9,
        inputs=(),
        media=(),
        path_hash=b"",
        state=ExchangeState.OFF,
        parent=first.id,
        conversation_row=2,
    )
    left = EvictedPart(1, 2, 30, 40)
    own = replace(first, id=10, parent=9, conversation_row=2)
    path = [first, replace(fork, evicted=left), own]
    # What was compacted in the fork stays out.
    refusal = mark_refused(own, path[:2])
    assert (refusal.superseded, refusal.evicted) == (True, left)
    again = replace(own, id=11, parent=10, inputs=(HASHER.make_atoms(user("two")),))
    behind = [*path[:2], own, replace(again, superseded=True)]
    said = supersede_refused(behind, own.inputs)
    assert said is not None
    assert said.id == own.id
    assert supersede_refused([*path[:2], replace(again, superseded=True)], first.inputs) is None
