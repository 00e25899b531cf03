"""Steps of a stored conversation (`plan_step`): all messages of a send are new, and follow the last exchange."""

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
    """A stored conversation that grows step by step, without a store."""

    def __init__(self) -> None:
        self.tree = Tree()
        # The exchange of the last step; None: there was no step.
        self.last: Exchange | None = None

    def plan(
        self, *messages: WireMessage, pending: Sequence[WireMessage] = (), evicted: EvictedPart | None = None
    ) -> Plan:
        """Plans a step with new messages. The keyword arguments are those of `plan_step`."""
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
        shown_reply: WireMessage | None = None,
    ) -> Exchange:
        """Performs a step, and returns its exchange.

        reply: the reply of the model; None: there is no reply.
        shown_reply: the reply as the client gets it; None: like `reply`.
        """
        exchange = replace(begin_step(plan, {}, None), id=len(self.tree.by_id) + 1)
        path_hash_before = self.last.path_hash if self.last else b""
        self.last = self.tree.add(
            finish_step(
                exchange,
                HASHER,
                path_hash_before,
                full_reply=[reply] if reply else [],
                shown_reply=shown_reply,
                model="up/m",
                evicted=None,
                now=2.0,
            )
        )
        return self.last

    def list_inserted(self, plan: Plan) -> list[WireMessage]:
        """Returns the messages that the gateway inserts before those of the request."""
        return [each.message for each in compose(self.tree, plan, (), {}).inserted]


def test_all_messages_of_a_send_are_new_even_assistant_messages() -> None:
    conversation = Conversation()
    e = conversation.step(
        conversation.plan(user("one"), assistant("Said elsewhere."), user("two")), assistant("Second.")
    )
    assert len(e.inputs) == 3
    assert e.prefix_length == 0
    next_plan = conversation.plan(user("one"), assistant("Said elsewhere."), user("two"))
    assert len(next_plan.messages) == 3
    assert next_plan.exchange.parent == e.id
    assert [m["content"] for m in conversation.list_inserted(next_plan)] == [
        "one",
        "Said elsewhere.",
        "two",
        "Second.",
    ]


def test_results_of_tools_come_after_the_path() -> None:
    conversation = Conversation()
    conversation.step(conversation.plan(user("Weather?")), assistant(None, call("1")))
    plan = conversation.plan(pending=[with_private(result("1", "sunny"), status="success")])
    inserted = conversation.list_inserted(plan)
    assert [m["role"] for m in inserted] == ["user", "assistant", "tool"]
    assert "mnemogate" not in inserted[-1]
    e = conversation.step(plan, assistant("Sunny."))
    assert orjson.loads(e.input or b"")[0]["mnemogate"] == {"status": "success"}
    assert "mnemogate" not in conversation.list_inserted(conversation.plan(user("Thanks.")))[2]


def test_each_prompt_begins_with_the_one_before() -> None:
    """Fields of the model's reply that are null or empty change nothing."""
    conversation = Conversation()
    plan = conversation.plan(user("Weather?"))
    first = [*conversation.list_inserted(plan), user("Weather?")]
    conversation.step(plan, {**assistant(None, call("1")), "refusal": None, "annotations": []})
    second = conversation.list_inserted(conversation.plan(pending=[result("1", "sunny")]))
    assert second[: len(first)] == first
    assert second[1] == assistant(None, call("1"))
    conversation.step(conversation.plan(pending=[result("1", "sunny")]), assistant("Sunny."))
    assert conversation.list_inserted(conversation.plan(user("Thanks.")))[: len(second)] == second


def test_the_shown_reply_may_differ_from_the_reply_that_goes_upstream() -> None:
    conversation = Conversation()
    spoken = assistant(None, call("1", "send_message", '{"message":"Hello"}'))
    e = conversation.step(conversation.plan(user("Hi")), spoken, assistant("Hello"))
    assert e.reply == HASHER.make_atoms(assistant("Hello"))
    assert conversation.tree.contents.get(e).shown_reply == assistant("Hello")
    assert conversation.list_inserted(conversation.plan(pending=[result("1", "sent")]))[1] == spoken


def test_an_unanswered_call_gets_a_result() -> None:
    conversation = Conversation()
    conversation.step(conversation.plan(user("Weather?")), assistant(None, call("1")))
    inserted = conversation.list_inserted(conversation.plan(user("Never mind.")))
    assert [m["role"] for m in inserted] == ["user", "assistant", "tool"]


def test_a_step_without_a_reply_stays_in_the_path() -> None:
    conversation = Conversation()
    e = conversation.step(conversation.plan(user("Hello?")), None)
    assert (e.state, e.reply, e.continued, e.active) == (ExchangeState.FINISHED, None, True, True)
    plan = conversation.plan(user("Are you there?"))
    assert [m["content"] for m in conversation.list_inserted(plan)] == ["Hello?"]
    assert plan.exchange.offset == count_atoms_to_end(e)
    after = conversation.step(plan, assistant("Yes."))
    messages = [user("Hello?"), user("Are you there?"), assistant("Yes.")]
    assert after.path_hash == HashedList(HASHER, messages).hash_path(3)


def test_an_abandoned_step_ends_without_a_reply() -> None:
    conversation = Conversation()
    e = abandon(begin_step(conversation.plan(user("Hello?")), {0: "note"}, None), HASHER, b"", 3.0)
    assert (e.state, e.reply, e.ended, e.continued) == (ExchangeState.FINISHED, None, 3.0, True)
    assert e.notes == {0: "note"}


def test_messages_that_have_left_the_window_are_not_inserted() -> None:
    """This includes a reply without atoms, which has the same offset as the message after it."""
    conversation = Conversation()
    conversation.step(conversation.plan(user("one")), assistant(None, call("1")), assistant(""))
    e = conversation.step(
        conversation.plan(pending=[result("1", "done")]), assistant(None, call("2")), assistant("")
    )
    evicted = EvictedPart(e.depth + 1, count_atoms_to_end(e), 10, 1000)
    conversation.step(conversation.plan(user("two")), assistant("Second."))
    assert [
        m["content"] for m in conversation.list_inserted(conversation.plan(user("three"), evicted=evicted))
    ] == ["two", "Second."]


def test_messages_that_a_plain_turn_has_evicted_are_not_inserted() -> None:
    """A plain turn knows the number of evicted atoms, and not the exchange in which they end."""
    conversation = Conversation()
    for n in range(3):
        e = conversation.step(conversation.plan(user(f"Question {n}")), assistant(f"Answer {n}."))
    evicted = EvictedPart(1, count_atoms_to_end(e), 10, 1000)
    conversation.step(conversation.plan(user("two")), assistant("Second."))
    assert [
        m["content"] for m in conversation.list_inserted(conversation.plan(user("three"), evicted=evicted))
    ] == ["two", "Second."]


def test_the_path_of_steps_has_the_hash_of_the_list_with_the_same_messages() -> None:
    conversation = Conversation()
    conversation.step(conversation.plan(user("Weather?")), assistant("Let me see.", call("1")))
    e = conversation.step(conversation.plan(pending=[result("1", "sunny")]), assistant("Sunny."))
    messages = [
        user("Weather?"),
        assistant("Let me see.", call("1")),
        result("1", "sunny"),
        assistant("Sunny."),
    ]
    assert e.path_hash == HashedList(HASHER, messages).hash_path(4)
    assert e.length == 4


def test_the_hash_of_a_path_continues_over_exchanges_without_a_hash() -> None:
    conversation = Conversation()
    first = conversation.step(conversation.plan(user("one")), assistant("First."))
    second = conversation.step(conversation.plan(user("two")), assistant("Second."))
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


def test_a_refused_step_in_a_fork_leaves_the_exchanges_before_the_fork() -> None:
    conversation = Conversation()
    first = conversation.step(conversation.plan(user("one")), None)
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
    evicted = EvictedPart(1, 2, 30, 40)
    own = replace(first, id=10, parent=9, conversation_row=2)
    path = [first, replace(fork, evicted=evicted), own]
    # Messages that the fork has compacted stay evicted.
    refusal = mark_refused(own, path[:2])
    assert (refusal.superseded, refusal.evicted) == (True, evicted)
    retry = replace(own, id=11, parent=10, inputs=(HASHER.make_atoms(user("two")),))
    longer_path = [*path[:2], own, replace(retry, superseded=True)]
    superseded = supersede_refused(longer_path, own.inputs)
    assert superseded is not None
    assert superseded.id == own.id
    assert supersede_refused([*path[:2], replace(retry, superseded=True)], first.inputs) is None
