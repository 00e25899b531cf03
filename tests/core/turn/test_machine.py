"""The turn as transcripts: which commands follow from which events."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.types import Event
from gateway.core.turn.commands import (
    CallModel,
    CloseUpstream,
    Command,
    End,
    Finish,
    Refuse,
    RunTool,
    Save,
    SendBody,
    SendHead,
    TurnOutcome,
)
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    ToolFinished,
)
from gateway.core.turn.spec import TurnSpec
from gateway.errors import UpstreamBroke, UpstreamTimeout, UpstreamUnreachable
from tests.core.turn.playbook import (
    DONE,
    JSON,
    SSE,
    Playbook,
    Played,
    call_piece,
    calls,
    chat_turn,
    chunk,
    comment,
    completion,
    event,
    play,
    read_stream,
    streamed,
    usage,
)

OURS = frozenset({"memory_insert", "memory_replace", "search"})
ARGS = '{"label":"human","new_string":"likes tea"}'
ROLE = chunk({"role": "assistant", "content": ""})


def with_tools(**fields: Any) -> TurnSpec:
    return TurnSpec(ours=OURS, **{"hold_end": True, "wants_usage": True, **fields})


def body(*events: Event) -> SendBody:
    return SendBody(b"".join(event.raw for event in events))


def ours_call(id: str = "call_a", arguments: str = ARGS, name: str = "memory_insert") -> tuple[str, str, str]:
    return (id, name, arguments)


THEIRS = ("call_t", "get_weather", '{"city":"Paris"}')
BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def client_message(played: Played, stream: bool) -> dict[str, Any]:
    """What the client has at the end, in one form for both ways."""
    if stream:
        return played.client.message()
    message = played.body["choices"][0]["message"]
    made = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    return {"text": message["content"] or "", "calls": made}


def client_finish(played: Played, stream: bool) -> str:
    if stream:
        (finish,) = played.client.finish
        return finish
    return str(played.body["choices"][0]["finish_reason"])


class TestPlain:
    def test_every_batch_leaves_at_once_with_the_bytes_in_which_it_came(self) -> None:
        odd = chunk({"content": "Hi", "x_delta": 1}, x_chunk={"a": [1]}, usage=None)
        end, tokens = chunk({}, "stop"), usage(3, 1)
        assert (
            Playbook(chat_turn(TurnSpec(wants_usage=True)))
            >> ReplyStarted(200, SSE)
            >> Received([ROLE])
            << SendHead(200, SSE)
            << body(ROLE)
            >> Received([comment("ping"), odd])
            << body(comment("ping"), odd)
            >> Received([end, tokens, DONE])
            << body(end, tokens, DONE)
            << Save
            << Finish()
            >> ReplyEnded()
        )

    def test_the_end_waits_for_the_commit_and_text_does_not(self) -> None:
        text, last, tokens = chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop"), usage(3, 2)
        playbook = (
            Playbook(chat_turn(TurnSpec(hold_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([ROLE, text, last])
            << SendHead(200, SSE)
            << body(ROLE, text)
            >> Received([tokens, DONE])
            << Save
            >> ReplyEnded()
            >> Saved(durable=True)
            << body(last, tokens, DONE)
            << Finish()
            >> Saved()
        )
        assert playbook
        assert playbook.outcome.state is End.FINISHED
        assert playbook.outcome.said == {"role": "assistant", "content": "Hello"}
        assert playbook.outcome.full == (playbook.outcome.said,)
        assert not playbook.outcome.hidden
        assert playbook.outcome.finish_reason == "stop"

    def test_an_end_that_is_not_on_disk_says_so(self) -> None:
        end = chunk({"content": "x"}, "stop")
        assert (
            Playbook(chat_turn(TurnSpec(hold_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([end, DONE])
            << Save
            >> Saved(durable=False)
            << SendHead(200, SSE)
            << SendBody(b": mnemogate not durable\n\n" + end.raw + DONE.raw)
            << Finish()
        )

    def test_a_usage_chunk_that_only_we_asked_for_is_kept_from_the_client(self) -> None:
        end = chunk({"content": "x"}, "stop")
        for hold_end in (True, False):
            turn = chat_turn(TurnSpec(usage_added=True, hold_end=hold_end))
            played = play(turn, [completion("x", tokens=(7, 1))], stream=True)
            assert played.client.usages == []
            assert played.outcome.usage is not None
            assert played.outcome.usage["prompt_tokens"] == 7
            assert end.raw not in played.sent  # the finish chunk was one of its own
            assert played.client.finish == ["stop"]

    def test_the_empty_usage_that_asking_brings_is_kept_from_a_client_that_did_not_ask(self) -> None:
        said = (
            b'{"choices":[{"index":0,"delta":{"content":"the \\",\\"usage\\":null\\" of it"}}],"usage":null}'
        )
        turn = chat_turn(TurnSpec(usage_added=True))
        turn.feed(ReplyStarted(200, SSE))
        sent = turn.feed(Received([Event(b"data: " + said + b"\n\n", said)]))
        assert SendBody(b"data: " + said.removesuffix(b',"usage":null}') + b"}\n\n") in sent

    def test_a_stream_without_done_gets_none(self) -> None:
        end = chunk({"content": "x"}, "stop")
        assert (
            Playbook(chat_turn(TurnSpec(hold_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([end])
            >> ReplyEnded()
            << Save
            >> Saved()
            << SendHead(200, SSE)
            << body(end)
            << Finish()
        )

    def test_all_choices_are_forwarded_and_the_first_is_kept(self) -> None:
        def choice(index: int, text: str, finish: str | None = None) -> Event:
            choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
            return event({"id": "c", "choices": [choice]})

        first, second = choice(0, "A", "stop"), choice(1, "B")
        late, last = choice(1, "C"), choice(1, "", "stop")
        playbook = (
            Playbook(chat_turn(TurnSpec(hold_end=True, choices=2)))
            >> ReplyStarted(200, SSE)
            >> Received([first, second])
            << SendHead(200, SSE)
            << body(first, second)
            >> Received([late])
            << body(late)
            >> Received([last, DONE])
            << Save
            >> Saved()
            << body(last, DONE)
            << Finish()
        )
        assert playbook
        assert playbook.outcome.text == "A"

    def test_a_whole_reply_is_held_and_arrives_as_it_left(self) -> None:
        raw = b' {"id":"x", "choices":[{"index":0,"message":{"role":"assistant","content":"Hi","x":1}}], "x":2}\n'
        playbook = (
            Playbook(chat_turn(TurnSpec(hold_end=True)))
            >> ReplyStarted(200, JSON)
            >> ReceivedWhole(raw)
            << Save
            >> Saved()
            << SendHead(200, JSON)
            << SendBody(raw)
            << Finish()
        )
        assert playbook
        assert playbook.outcome.said == {"role": "assistant", "content": "Hi", "x": 1}

    def test_fields_nobody_knows_are_kept_in_what_the_upstream_said(self) -> None:
        details = [{"type": "reasoning.text", "index": 0, "text": "be"}]
        more = [{"type": "reasoning.text", "index": 0, "text": "cause", "signature": "s1"}]
        events = [
            chunk({"role": "assistant", "reasoning_content": "hm", "reasoning_details": details}),
            chunk({"reasoning_content": "m", "reasoning_details": more}),
            chunk({"content": "Yes"}, "stop"),
            DONE,
        ]
        turn = chat_turn(TurnSpec(hold_end=True))
        turn.feed(ReplyStarted(200, SSE))
        (save,) = [command for command in turn.feed(Received(events)) if isinstance(command, Save)]
        assert save.outcome.full == (
            {
                "role": "assistant",
                "reasoning_content": "hmm",
                "reasoning_details": [
                    {"type": "reasoning.text", "index": 0, "text": "because", "signature": "s1"}
                ],
                "content": "Yes",
            },
        )

    def test_the_clients_calls_alone_are_not_touched(self) -> None:
        events = [
            ROLE,
            calls(call_piece(0, id="call_t", name="get_weather")),
            calls(call_piece(0, '{"city":'), call_piece(0, '"Paris"}')),
            calls(call_piece(1, "{}", id="call_u", name="unheard_of")),
            chunk({}, "tool_calls"),
            DONE,
        ]
        for spec in (with_tools(), TurnSpec(hold_end=True)):
            playbook = Playbook(chat_turn(spec)) >> ReplyStarted(200, SSE) >> Received(events)
            assert playbook << SendHead(200, SSE) << body(*events[:4]) << Save
            assert playbook >> Saved() << body(*events[4:]) << Finish()
            assert playbook.outcome.said is not None
            assert [call["id"] for call in playbook.outcome.said["tool_calls"]] == ["call_t", "call_u"]
            assert not playbook.outcome.hidden


class TestHiddenRounds:
    def test_a_hidden_round_leaves_no_trace(self) -> None:
        """One id, one role, no head before the first word, and `[DONE]` once."""
        second = {"id": "chatcmpl-2"}
        playbook = (
            Playbook(chat_turn(with_tools()))
            >> ReplyStarted(200, SSE)
            >> Received([ROLE])
            >> Received([calls(call_piece(0, id="call_a", name="memory_insert"))])
            >> Received([calls(call_piece(0, ARGS[:9])), calls(call_piece(0, ARGS[9:]))])
            >> Received([chunk({}, "tool_calls"), usage(100, 20), DONE])
            << RunTool("call_a", "memory_insert", orjson.loads(ARGS))
            >> ReplyEnded()
            >> ToolFinished("call_a", "done")
            << CallModel(
                (
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "call_a",
                                "type": "function",
                                "function": {"name": "memory_insert", "arguments": ARGS},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "call_a", "content": "done"},
                ),
                None,
            )
            >> ReplyStarted(200, SSE)
            >> Received([chunk({"role": "assistant", "content": ""}, **second)])
            >> Received([chunk({"content": "Noted"}, **second)])
            << SendHead(200, SSE)
            << body(ROLE, chunk({"content": "Noted"}))
            >> Received([chunk({}, "stop", **second), usage(130, 4, **second), DONE])
            << Save
            >> Saved()
            << SendBody
            << Finish()
        )
        assert playbook
        client = read_stream(playbook.sent)
        assert (client.text, client.ids, client.roles) == ("Noted", {"chatcmpl-1"}, ["assistant"])
        assert (client.finish, client.done, client.calls) == (["stop"], 1, {})
        assert client.usages == [
            {
                "prompt_tokens": 130,
                "completion_tokens": 24,
                "total_tokens": 154,
                "mnemogate_billed": {"prompt_tokens": 230, "completion_tokens": 24, "rounds": 2},
            }
        ]
        outcome = playbook.outcome
        assert [message["role"] for message in outcome.full] == ["assistant", "tool", "assistant"]
        assert outcome.said == {"role": "assistant", "content": "Noted"}
        assert outcome.hidden

    def test_text_before_a_hidden_call_is_not_held(self) -> None:
        text = chunk({"content": "Let me note that. "})
        playbook = (
            Playbook(chat_turn(with_tools()))
            >> ReplyStarted(200, SSE)
            >> Received([ROLE, text])
            << SendHead(200, SSE)
            << body(ROLE, text)
            >> Received([calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))])
            >> Received([chunk({"content": "So."}, "tool_calls"), DONE])
            << body(chunk({"content": "So."}, None))  # even the text on the chunk that ends the round
            << RunTool
        )
        assert playbook

    @BOTH
    def test_text_of_all_rounds_is_one_reply(self, stream: bool) -> None:
        rounds = [
            completion("One moment. ", (ours_call(),), id="a"),
            completion("And. ", (ours_call("call_b"), ours_call("call_c", "{}", "search")), id="b"),
            completion("Done.", id="c", tokens=(30, 7)),
        ]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        assert client_message(played, stream) == {"text": "One moment. And. Done.", "calls": []}
        assert client_finish(played, stream) == "stop"
        assert [run.call_id for run in played.ran] == ["call_a", "call_b", "call_c"]
        assert played.ran[2].name == "search"
        assert [len(call.messages) for call in played.called] == [2, 5]
        assert played.called[1].messages[:2] == played.called[0].messages
        assert [message["role"] for message in played.outcome.full] == [
            *("assistant", "tool"),
            *("assistant", "tool", "tool"),
            "assistant",
        ]
        assert played.outcome.said == {"role": "assistant", "content": "One moment. And. Done."}
        assert len(played.heads) == 1
        if not stream:
            assert played.body["id"] == "a"
            assert played.body["usage"]["completion_tokens"] == 17
            assert played.body["usage"]["mnemogate_billed"]["rounds"] == 3

    @BOTH
    def test_a_renamed_tool_runs_under_the_name_that_was_offered(self, stream: bool) -> None:
        spec = TurnSpec(ours={"mnemogate_memory_insert"}, hold_end=True)
        mine, theirs = ("a", "mnemogate_memory_insert", ARGS), ("b", "memory_insert", "{}")
        played = play(chat_turn(spec), [completion(None, (mine, theirs))], stream=stream)
        assert [(run.call_id, run.name) for run in played.ran] == [("a", "mnemogate_memory_insert")]
        assert client_message(played, stream)["calls"] == [theirs]

    @BOTH
    @pytest.mark.parametrize("bad", ['{"label": "hum', "[1]", '"text"', "nonsense"])
    def test_bad_arguments_are_told_to_the_model_and_the_turn_goes_on(self, stream: bool, bad: str) -> None:
        rounds = [completion(None, (ours_call(arguments=bad),)), completion("Sorry.")]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        assert played.ran == []
        assistant, tool = played.called[0].messages
        assert "not a JSON object" in tool["content"]
        assert assistant["tool_calls"][0]["function"]["arguments"] == "{}"
        assert played.outcome.text == "Sorry."

    @BOTH
    def test_no_arguments_are_an_empty_object(self, stream: bool) -> None:
        rounds = [completion(None, (ours_call(arguments=""),)), completion("ok")]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        assert played.ran[0].arguments == {}
        assert played.called[0].messages[0]["tool_calls"][0]["function"]["arguments"] == "{}"

    @BOTH
    def test_calls_without_ids_or_with_the_same_one_get_their_own(self, stream: bool) -> None:
        rounds = [
            completion(None, (ours_call(""), ours_call("x"), ours_call("x"))),
            completion("ok"),
        ]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        ids = [run.call_id for run in played.ran]
        assert len(set(ids)) == 3
        assert all(ids)
        assistant, *tools = played.called[0].messages
        assert [call["id"] for call in assistant["tool_calls"]] == ids
        assert [tool["tool_call_id"] for tool in tools] == ids

    def test_results_that_come_out_of_order_or_twice_are_put_in_order(self) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, JSON))
        turn.feed(ReceivedWhole(orjson.dumps(completion(None, (ours_call("a"), ours_call("b"))))))
        playbook = (
            Playbook(turn) >> ToolFinished("b", "B") >> ToolFinished("b", "again") >> ToolFinished("?", "")
        )
        playbook = playbook >> ToolFinished("a", "A") << CallModel
        (call,) = playbook.seen
        assert isinstance(call, CallModel)
        assert [m["content"] for m in call.messages[1:]] == ["A", "B"]

    @BOTH
    def test_at_the_limit_the_model_is_told_and_the_client_gets_an_answer(self, stream: bool) -> None:
        rounds = [completion(None, (ours_call(f"c{n}"),)) for n in range(3)]
        played = play(chat_turn(with_tools(max_rounds=2)), [*rounds, completion("Here.")], stream=stream)
        assert [run.call_id for run in played.ran] == ["c0", "c1"]
        assert [call.tools_final for call in played.called] == [False, False, True]
        assert "limit" in played.called[-1].messages[-1]["content"]
        assert client_message(played, stream) == {"text": "Here.", "calls": []}
        assert client_finish(played, stream) == "stop"

    @BOTH
    def test_a_model_that_does_not_stop_at_the_limit_is_stopped(self, stream: bool) -> None:
        rounds = [completion("Hm. ", (ours_call(),)), completion("Well. ", (ours_call(),))]
        played = play(chat_turn(with_tools(max_rounds=0)), rounds, stream=stream)
        assert played.ran == []
        assert client_message(played, stream) == {"text": "Hm. Well. ", "calls": []}
        assert client_finish(played, stream) == "stop"
        assert played.outcome.full[-1] == {"role": "assistant", "content": "Well. "}

    def test_usage_of_hidden_rounds_is_told_only_to_who_asked(self) -> None:
        rounds = [completion(None, (ours_call(),)), completion("ok")]
        spec = with_tools(wants_usage=False, usage_added=True)
        played = play(chat_turn(spec), rounds, stream=True)
        assert played.client.usages == []
        assert played.outcome.usage is not None  # it is counted all the same
        assert played.outcome.usage["mnemogate_billed"]["rounds"] == 2

    def test_details_of_usage_are_added_up_and_unknown_ones_kept(self) -> None:
        first, last = completion(None, (ours_call(),)), completion("ok")
        first["usage"]["completion_tokens_details"] = {"reasoning_tokens": 4}
        last["usage"] |= {"completion_tokens_details": {"reasoning_tokens": 3}, "x_cost": 5}
        played = play(chat_turn(with_tools()), [first, last], stream=False)
        assert played.body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
        assert played.body["usage"]["x_cost"] == 5


class TestMixed:
    @BOTH
    @pytest.mark.parametrize("order", ["ours first", "theirs first", "between"])
    def test_ours_are_run_and_theirs_are_the_clients(self, stream: bool, order: str) -> None:
        made = {
            "ours first": (ours_call(), THEIRS),
            "theirs first": (THEIRS, ours_call()),
            "between": (ours_call(), THEIRS, ours_call("call_b"), ("call_z", "unheard_of", "{}")),
        }[order]
        wrong = completion("Both. ", made, "stop")  # some upstreams say `stop` with calls
        played = play(chat_turn(with_tools()), [wrong], stream=stream)
        theirs = [call for call in made if call[1] not in OURS]
        assert client_message(played, stream) == {"text": "Both. ", "calls": theirs}
        assert client_finish(played, stream) == "tool_calls"
        assistant, *results = played.outcome.full
        assert [call["id"] for call in assistant["tool_calls"]] == [call[0] for call in made]
        assert [(m["role"], m["tool_call_id"]) for m in results] == [
            ("tool", call[0]) for call in made if call[1] in OURS
        ]
        assert played.outcome.said is not None
        assert [call["id"] for call in played.outcome.said["tool_calls"]] == [call[0] for call in theirs]
        assert played.called == []
        if stream:
            assert sorted(played.client.calls) == list(range(len(theirs)))

    def test_a_clients_call_does_not_wait_for_ours_to_run(self) -> None:
        after = {"id": "call_t", "name": "get_weather"}
        playbook = (
            Playbook(chat_turn(with_tools()))
            >> ReplyStarted(200, SSE)
            >> Received([calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))])
            >> Received([calls(call_piece(1, "", **after))])
            << SendHead(200, SSE)
            << body(calls(call_piece(0, "", **after)))
            >> Received([calls(call_piece(1, "{}"))])
            << body(calls(call_piece(0, "{}")))
            >> Received([chunk({}, "tool_calls"), DONE])
            << RunTool
            >> ToolFinished("call_a", "ok")
            << Save
            >> Saved()
            << body(chunk({}, "tool_calls"), DONE)
            << Finish()
        )
        assert playbook


class TestNames:
    def test_a_call_is_kept_back_until_its_name_is_known(self) -> None:
        unnamed = {"index": 0, "id": "call_t", "type": "function", "function": {"arguments": ""}}
        playbook = (
            Playbook(chat_turn(with_tools()))
            >> ReplyStarted(200, SSE)
            >> Received([calls(unnamed)])
            >> Received([calls(call_piece(0, name="mem"))])
            >> Received([calls(call_piece(0, name="ory_"))])
            >> Received([calls(call_piece(0, name="game"))])
            << SendHead(200, SSE)
            << SendBody
            >> Received([calls(call_piece(0, "{}"))])
            << body(calls(call_piece(0, "{}")))
            >> Received([chunk({}, "tool_calls"), DONE])
            << Save
        )
        assert playbook
        assert read_stream(playbook.sent).message()["calls"] == [("call_t", "memory_game", "{}")]

    def test_a_name_that_goes_on_after_one_of_ours_is_the_clients(self) -> None:
        events = [
            calls(call_piece(0, id="a", name="memory_insert")),
            calls(call_piece(0, name="_all")),
            calls(call_piece(0, "{}")),
            chunk({}, "tool_calls"),
            DONE,
        ]
        turn = chat_turn(TurnSpec(ours=OURS))
        playbook = Playbook(turn) >> ReplyStarted(200, SSE) >> Received(events)
        assert read_stream(playbook.sent).message()["calls"] == [("a", "memory_insert_all", "{}")]

    def test_a_name_that_comes_again_with_every_piece_is_one_name(self) -> None:
        events = [
            calls(call_piece(0, ARGS[:5], id="a", name="memory_insert")),
            calls(call_piece(0, ARGS[5:], id="a", name="memory_insert")),
            chunk({}, "tool_calls"),
            DONE,
        ]
        turn = chat_turn(with_tools())
        assert (
            Playbook(turn)
            >> ReplyStarted(200, SSE)
            >> Received(events)
            << RunTool("a", "memory_insert", orjson.loads(ARGS))
        )

    @pytest.mark.parametrize("index", [0, None])
    def test_parallel_calls_that_share_an_index_or_have_none_are_told_apart(self, index: int | None) -> None:
        def piece(id: str, name: str, arguments: str) -> dict[str, Any]:
            made = call_piece(0, arguments, id=id, name=name)
            if index is None:
                del made["index"]
            return made

        events = [
            calls(piece("a", "memory_insert", ARGS), piece("b", "search", "{}")),
            chunk({}, "tool_calls"),
            DONE,
        ]
        playbook = Playbook(chat_turn(with_tools())) >> ReplyStarted(200, SSE) >> Received(events)
        assert (
            playbook << RunTool << (lambda command: isinstance(command, RunTool) and command.call_id == "b")
        )


class TestBudget:
    @BOTH
    def test_later_rounds_get_what_is_left(self, stream: bool) -> None:
        rounds = [
            completion(None, (ours_call(),), tokens=(10, 30)),
            completion(None, (ours_call("b"),), tokens=(10, 20)),
            completion("ok"),
        ]
        played = play(chat_turn(with_tools(budget_tokens=100)), rounds, stream=stream)
        assert [call.budget_tokens for call in played.called] == [70, 50]

    def test_tokens_that_nobody_told_are_counted(self) -> None:
        rounds = [completion("abc", (ours_call(),), tokens=None), completion("ok", tokens=None)]
        played = play(chat_turn(with_tools(budget_tokens=100, count=len)), rounds, stream=True)
        assert played.called[0].budget_tokens == 100 - len("abc" + "memory_insert" + ARGS)

    @BOTH
    def test_a_hidden_call_that_was_cut_off_is_dropped(self, stream: bool) -> None:
        cut = completion("Well, ", (ours_call(arguments=ARGS[:12]),), "length", tokens=(10, 50))
        played = play(chat_turn(with_tools(budget_tokens=50)), [cut], stream=stream)
        assert played.ran == []
        assert client_message(played, stream) == {"text": "Well, ", "calls": []}
        assert client_finish(played, stream) == "length"
        assert played.outcome.full == ({"role": "assistant", "content": "Well, "},)

    @BOTH
    def test_with_nothing_left_the_reply_ends_after_its_last_call(self, stream: bool) -> None:
        spent = completion(None, (ours_call(),), tokens=(10, 50))
        played = play(chat_turn(with_tools(budget_tokens=50)), [spent], stream=stream)
        assert [run.call_id for run in played.ran] == ["call_a"]
        assert client_message(played, stream) == {"text": "", "calls": []}
        assert client_finish(played, stream) == "length"
        assert [message["role"] for message in played.outcome.full] == ["assistant", "tool"]


LIMITED = (*JSON, ("retry-after", "7"))
TOO_MANY = b'{"error": {"message": "slow down", "type": "rate_limit", "param": null, "code": "r"}}'


def after_hidden_round(*before: Event, **fields: Any) -> Playbook:
    """A turn whose first round was ours, and whose second one has been asked for."""
    turn = chat_turn(with_tools(**fields))
    turn.feed(ReplyStarted(200, SSE))
    call = calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))
    sent = turn.feed(Received([*before, call, chunk({}, "tool_calls"), DONE]))
    (model,) = turn.feed(ToolFinished("call_a", "ok"))
    assert isinstance(model, CallModel)
    playbook = Playbook(turn)
    playbook.seen += sent
    return playbook


class TestErrors:
    @pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
    def test_an_error_of_the_upstreams_goes_through_as_it_is(self, status: int) -> None:
        playbook = (
            Playbook(chat_turn(with_tools()))
            >> ReplyStarted(status, LIMITED)
            >> ReceivedWhole(TOO_MANY)
            << SendHead(status, LIMITED)
            << SendBody(TOO_MANY)
            << Save
            << Finish()
        )
        assert playbook
        assert playbook.outcome.state is End.FAILED
        assert playbook.outcome.full == ()

    def test_an_error_after_a_hidden_round_is_still_a_status(self) -> None:
        playbook = after_hidden_round(ROLE) >> ReplyStarted(429, LIMITED) >> ReceivedWhole(TOO_MANY)
        assert playbook << SendHead(429, LIMITED) << SendBody(TOO_MANY) << Save << Finish()
        assert playbook.outcome.state is End.FAILED

    def test_an_error_after_text_is_a_last_event(self) -> None:
        text = chunk({"content": "One moment. "})
        playbook = after_hidden_round(ROLE, text) >> ReplyStarted(429, LIMITED) >> ReceivedWhole(TOO_MANY)
        assert playbook << SendBody << Save << Finish()
        client = read_stream(playbook.sent)
        assert (client.text, client.done, client.finish) == ("One moment. ", 0, [])
        assert [error["message"] for error in client.errors] == ["slow down"]

    def test_whole_replies_have_sent_nothing_whatever_was_said(self) -> None:
        turn = chat_turn(TurnSpec(ours=OURS))
        turn.feed(ReplyStarted(200, JSON))
        turn.feed(ReceivedWhole(orjson.dumps(completion("One moment. ", (ours_call(),)))))
        turn.feed(ToolFinished("call_a", "ok"))
        playbook = Playbook(turn) >> ReplyStarted(429, LIMITED) >> ReceivedWhole(TOO_MANY)
        assert playbook << SendHead(429, LIMITED) << SendBody(TOO_MANY) << Save << Finish()

    def test_an_upstream_that_cannot_be_reached_is_refused(self) -> None:
        error = UpstreamUnreachable("no route")
        playbook = Playbook(chat_turn(with_tools())) >> ReplyFailed(error)
        assert playbook << Refuse(error) << CloseUpstream() << Save << Finish()

    def test_a_stream_that_breaks_ends_with_an_error_event(self) -> None:
        text = chunk({"content": "Hel"})
        playbook = (
            Playbook(chat_turn(TurnSpec(hold_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([text])
            << SendHead(200, SSE)
            << body(text)
            >> ReplyFailed(UpstreamTimeout("nothing for 60 s"))
            << SendBody
            << CloseUpstream()
            << Save
            << Finish()
        )
        assert playbook
        assert read_stream(playbook.sent).errors[0]["message"] == "nothing for 60 s"
        assert playbook.outcome.state is End.FAILED
        assert playbook.outcome.text == "Hel"

    def test_a_stream_that_ends_in_the_middle_is_an_error_with_a_name(self) -> None:
        playbook = Playbook(chat_turn(TurnSpec())) >> ReplyStarted(200, SSE)
        playbook = playbook >> Received([chunk({"content": "Hel"})]) << SendHead << SendBody >> ReplyEnded()
        assert playbook << SendBody << CloseUpstream() << Save << Finish()
        assert read_stream(playbook.sent).errors[0]["code"] == UpstreamBroke.code

    def test_a_break_after_the_finish_reason_loses_nothing(self) -> None:
        end = chunk({"content": "x"}, "stop")
        playbook = Playbook(chat_turn(TurnSpec(hold_end=True))) >> ReplyStarted(200, SSE)
        playbook = playbook >> Received([end]) >> ReplyFailed(UpstreamBroke("reset")) << Save
        assert playbook >> Saved() << SendHead << body(end) << Finish()
        assert playbook.outcome.state is End.FINISHED

    @pytest.mark.parametrize(
        ("sent", "message"),
        [
            (event({"error": {"message": "overloaded", "x": 1}}), "overloaded"),
            (event({"error": "overloaded"}), "overloaded"),
            (event({"object": "error", "message": "too long", "code": 400}), "too long"),
            (event({"message": "gone"}, name="error"), "gone"),
            (event({"error": {"code": 5}}), "The upstream reported an error"),
        ],
    )
    def test_an_error_event_ends_the_stream_in_openais_shape(self, sent: Event, message: str) -> None:
        playbook = Playbook(chat_turn(with_tools())) >> ReplyStarted(200, SSE) >> Received([ROLE, sent, DONE])
        assert playbook << SendHead << SendBody << CloseUpstream() << Save << Finish()
        client = read_stream(playbook.sent)
        assert [error["message"] for error in client.errors] == [message]
        assert client.done == 0

    def test_an_error_in_the_shape_of_the_real_api_arrives_as_it_left(self) -> None:
        sent = event({"error": {"message": "overloaded", "x": 1}})
        playbook = Playbook(chat_turn(TurnSpec())) >> ReplyStarted(200, SSE) >> Received([sent])
        assert playbook << SendHead << body(sent) << CloseUpstream() << Save << Finish()

    @pytest.mark.parametrize(
        "raw", [b"", b"<html>", b"[]", b'{"error":{"message":"x"}}', b'{"choices":null}']
    )
    def test_a_body_that_is_no_completion_goes_through(self, raw: bytes) -> None:
        playbook = Playbook(chat_turn(with_tools())) >> ReplyStarted(200, JSON) >> ReceivedWhole(raw)
        assert playbook << SendHead(200, JSON) << SendBody(raw) << Save << Finish()
        assert playbook.outcome.state is End.FAILED

    def test_chunks_of_any_shape_pass_without_harm(self) -> None:
        odd: list[Any] = [
            {"choices": None},
            {"choices": [None, 3]},
            {"choices": [{"delta": None}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": 7, "content": ["a"]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [None, {"function": 3}]}}]},
            {"choices": {"a": 1}, "usage": 4},
            {"error": None},
            [1],
            7,
        ]
        for spec in (TurnSpec(), with_tools(usage_added=True)):
            turn = chat_turn(spec)
            turn.feed(ReplyStarted(200, SSE))
            turn.feed(Received([event(data) for data in odd] + [event(b"{broken"), Event(b"data\n\n", b"")]))
            commands = turn.feed(Received([chunk({"content": "x"}, "stop"), DONE]))
            assert any(isinstance(command, Save) for command in commands)


class TestForms:
    """What a reply looks like follows the upstream, whatever was asked for."""

    def test_a_body_in_answer_to_a_stream_request(self) -> None:
        rounds = [completion("Hm. ", (ours_call(),)), completion("ok")]
        played = play(chat_turn(with_tools()), rounds, stream=False)
        assert played.body["choices"][0]["message"]["content"] == "Hm. ok"
        assert played.heads == [SendHead(200, JSON)]

    def test_a_stream_in_answer_to_a_whole_request(self) -> None:
        spec = TurnSpec(ours=OURS, wants_usage=True)
        played = play(chat_turn(spec), [completion(None, (ours_call(),)), completion("ok")], stream=True)
        assert played.client.text == "ok"
        assert played.heads == [SendHead(200, SSE)]

    @pytest.mark.parametrize("wants_usage", [True, False])
    def test_a_body_after_a_hidden_round_of_a_stream_becomes_chunks(self, wants_usage: bool) -> None:
        whole = orjson.dumps(completion("Done.", id="other"))
        playbook = after_hidden_round(ROLE, chunk({"content": "Hm. "}), wants_usage=wants_usage)
        playbook = playbook >> ReplyStarted(200, JSON) >> ReceivedWhole(whole) << Save >> Saved()
        assert playbook << SendBody << Finish()
        client = read_stream(playbook.sent)
        assert (client.text, client.ids, client.finish) == ("Hm. Done.", {"chatcmpl-1"}, ["stop"])
        assert (client.roles, client.done, len(client.usages)) == (["assistant"], 1, int(wants_usage))

    def test_a_stream_after_a_hidden_round_in_one_body_says_what_that_had_said(self) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, JSON))
        turn.feed(ReceivedWhole(orjson.dumps(completion("Hm. ", (ours_call(),)))))
        turn.feed(ToolFinished("call_a", "ok"))
        playbook = Playbook(turn) >> ReplyStarted(200, SSE) >> Received(streamed(completion("Done.", id="x")))
        playbook = playbook << SendHead << SendBody << Save >> Saved() << SendBody << Finish()
        assert playbook
        client = read_stream(playbook.sent)
        assert (client.text, client.ids, client.roles) == ("Hm. Done.", {"chatcmpl-1"}, ["assistant"])


class TestClientGone:
    def test_in_any_state_the_upstream_is_closed_and_what_was_said_is_kept(self) -> None:
        """Gone after the first k events of a turn with a hidden round: one Save, one Finish, nothing after it."""
        happened: list[Any] = [
            ReplyStarted(200, SSE),
            Received([ROLE, chunk({"content": "Hm. "})]),
            Received([calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))]),
            Received([chunk({}, "tool_calls"), DONE]),
            ReplyEnded(),
            ToolFinished("call_a", "ok"),
            ReplyStarted(200, SSE),
            Received([chunk({"content": "Do"})]),
            Received([chunk({"content": "ne."}, "stop")]),
        ]
        texts = ["", "", *["Hm. "] * 6, "Hm. Do", "Hm. Done."]
        for k, text in enumerate(texts):
            playbook = Playbook(chat_turn(with_tools()))
            for each in happened[:k]:
                playbook.seen += playbook.turn.feed(each)
            assert playbook >> ClientLeft() << CloseUpstream() << Save << Finish()
            assert playbook.outcome.state is End.CANCELLED
            assert playbook.outcome.text == text
            assert len(playbook.outcome.full) == (2 if k > 5 else 0)
            for late in [*happened[k:], Saved(), ToolFinished("call_a", "ok"), ClientLeft(), ReplyEnded()]:
                assert playbook.turn.feed(late) == []

    def test_while_the_end_is_being_saved_the_turn_stays_finished(self) -> None:
        playbook = Playbook(chat_turn(TurnSpec(hold_end=True))) >> ReplyStarted(200, SSE)
        playbook = playbook >> Received([chunk({"content": "x"}, "stop"), DONE]) << Save
        assert playbook >> ClientLeft() << CloseUpstream() << Finish() >> Saved()
        assert playbook.outcome.state is End.FINISHED


@st.composite
def a_turn(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The scripted rounds of one turn: hidden ones, and a last one of any kind."""
    text = st.sampled_from(["", "a", "Hello, wörld. ", "x" * 30])
    mine = st.builds(
        ours_call, st.just(""), st.sampled_from([ARGS, "{}", "{bad"]), st.sampled_from(list(OURS))
    )
    other = st.sampled_from([THEIRS, ("", "memory_inserts", "{}"), ("", "mem", "{}"), ("", "m", "")])
    made = [
        (draw(text), tuple(draw(st.lists(mine, min_size=1, max_size=2))))
        for _ in range(draw(st.integers(0, 2)))
    ]
    last = tuple(draw(st.lists(st.one_of(mine, other), max_size=3)))
    if last and all(call[1] in OURS for call in last):
        last = (*last, THEIRS)
    made.append((draw(text), last))
    rounds = []
    for n, (said, some) in enumerate(made):
        named = tuple((f"call_{n}_{i}", name, arguments) for i, (_, name, arguments) in enumerate(some))
        tokens = draw(st.sampled_from([None, (9, 4)]))
        fields = {"reasoning_content": "hmm"} if draw(st.booleans()) else {}
        rounds.append(completion(said or None, named, id=f"id-{n}", tokens=tokens, **fields))
    return rounds


def cut_at(points: set[int]) -> Any:
    def cut(text: str) -> list[str]:
        edges = sorted({0, len(text), *(point for point in points if point < len(text))})
        return [text[a:b] for a, b in pairwise(edges)] or [""]

    return cut


def batches_of(sizes: list[int]) -> Any:
    def batch(events: list[Event]) -> list[list[Event]]:
        batches, at = [], 0
        for size in [*sizes, len(events)]:
            batches.append(events[at : at + size])
            at += size
        return batches

    return batch


@given(a_turn(), st.sets(st.integers(1, 12)), st.lists(st.integers(0, 3), max_size=20), st.booleans())
@settings(max_examples=150, deadline=None)
def test_however_a_reply_is_cut_client_and_memory_get_the_same(
    rounds: list[dict[str, Any]], points: set[int], sizes: list[int], hold_end: bool
) -> None:
    spec = with_tools(hold_end=hold_end)
    whole = play(chat_turn(spec), rounds, stream=False)
    smooth = play(chat_turn(spec), rounds, stream=True)
    cut = play(chat_turn(spec), rounds, stream=True, cut=cut_at(points), batches=batches_of(sizes))
    one_by_one = play(
        chat_turn(spec), rounds, stream=True, cut=cut_at(points), batches=lambda events: [[e] for e in events]
    )
    assert cut.sent == one_by_one.sent
    assert client_message(cut, True) == client_message(smooth, True) == client_message(whole, False)
    assert cut.client.reasoning == smooth.client.reasoning
    for played in (cut, smooth):
        assert kept(played.outcome) == kept(whole.outcome)
        assert played.client.ids == {"id-0"}
        assert played.client.roles == ["assistant"]
        assert played.client.done == len(played.client.finish) == 1
        assert [asked(call) for call in played.called] == [asked(call) for call in whole.called]


def asked(call: CallModel) -> bytes:
    asked = [call.messages, call.budget_tokens, call.tools_final]
    return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)


def kept(outcome: TurnOutcome) -> Any:
    return (outcome.state, outcome.full, outcome.said, outcome.finish_reason, outcome.rounds, outcome.hidden)


@given(st.lists(st.integers(0, 11), max_size=14), st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_happens_a_turn_ends_at_most_once(order: list[int], hold_end: bool) -> None:
    """Events in any order: one Save and one Finish at most, one head, and nothing after the end."""
    happened: list[Any] = [
        ReplyStarted(200, SSE),
        ReplyStarted(429, JSON),
        Received([ROLE, chunk({"content": "Hi"})]),
        Received([calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))]),
        Received([chunk({}, "tool_calls"), usage(5, 1), DONE]),
        Received([calls(call_piece(1, "{}", id="call_t", name="get_weather")), chunk({}, "stop")]),
        ReceivedWhole(orjson.dumps(completion("Hm", (ours_call(),)))),
        ReplyEnded(),
        ReplyFailed(UpstreamBroke("x")),
        ToolFinished("call_a", "ok"),
        Saved(),
        ClientLeft(),
    ]
    turn = chat_turn(with_tools(hold_end=hold_end, max_rounds=1))
    seen: list[Command] = []
    for n in order:
        seen += turn.feed(happened[n])
    kinds = [type(command) for command in seen]
    assert kinds.count(Save) <= 1
    assert kinds.count(Finish) <= 1
    assert kinds.count(SendHead) + kinds.count(Refuse) <= 1
    if Finish in kinds:
        assert kinds[-1] is Finish
        assert Save in kinds
    if SendBody in kinds:
        assert kinds.index(SendHead) < kinds.index(SendBody)


FIELDS = ["choices", "usage", "error", "index", "id", "name", "message", "completion_tokens", "x"]
anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "memory_insert", "stop"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(FIELDS), inner)),
    max_leaves=8,
)


def a_field(*likely: Any) -> st.SearchStrategy[Any]:
    return st.one_of(*likely, anything)


an_object = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3)
a_piece = st.fixed_dictionaries(
    {},
    optional={
        "index": a_field(st.just(0)),
        "id": a_field(st.just("a")),
        "function": a_field(
            st.fixed_dictionaries({}, optional={"name": a_field(), "arguments": a_field(st.just("{}"))})
        ),
    },
)
a_delta = st.fixed_dictionaries(
    {},
    optional={
        "role": a_field(),
        "content": a_field(st.just("x")),
        "tool_calls": a_field(st.lists(a_field(a_piece))),
    },
)
a_choice = st.fixed_dictionaries(
    {},
    optional={
        "index": a_field(),
        "finish_reason": a_field(),
        "delta": a_field(a_delta),
        "message": a_field(a_delta),
    },
)
a_chunk = st.one_of(
    anything,
    st.fixed_dictionaries(
        {},
        optional={"choices": a_field(st.lists(a_field(a_choice), max_size=2)), "usage": a_field(an_object)},
    ),
)


@given(st.lists(st.lists(a_chunk, max_size=4), min_size=1, max_size=2), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_json_of_an_upstream_breaks_the_machine(
    replies: list[list[Any]], stream: bool, has_tools: bool
) -> None:
    spec = with_tools(usage_added=True, wants_usage=stream) if has_tools else TurnSpec(hold_end=True)
    turn = chat_turn(spec)
    seen: list[Command] = []
    for reply in replies:
        seen += turn.feed(ReplyStarted(200, SSE if stream else JSON))
        if stream:
            seen += turn.feed(Received([*(event(data) for data in reply), DONE]))
        else:
            seen += turn.feed(ReceivedWhole(orjson.dumps(reply[0] if reply else None)))
        for command in [*seen]:
            if isinstance(command, RunTool):
                seen += turn.feed(ToolFinished(command.call_id, "ok"))
        seen += turn.feed(Saved())
    seen += turn.feed(ClientLeft())
    assert sum(isinstance(command, Save) for command in seen) == 1
    for command in seen:
        if isinstance(command, Save):
            orjson.dumps([command.outcome.full, command.outcome.said, command.outcome.usage])
