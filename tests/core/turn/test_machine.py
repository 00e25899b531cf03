"""The turn as transcripts: which commands follow from which events."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.types import Event
from gateway.core.turn.commands import (
    CallModel,
    End,
    Finish,
    RunTool,
    Save,
    SendBody,
    SendHead,
    SendWhole,
)
from gateway.core.turn.events import (
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    ToolFinished,
)
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import UpstreamReplyBroken
from tests.core.turn.playbook import (
    DONE,
    JSON,
    SSE,
    Playbook,
    PlayedTurn,
    call_piece,
    calls,
    chat_turn,
    chunk,
    comment,
    completion,
    event,
    play,
    read_stream,
    usage,
)
from tests.core.turn.tooled import (
    ARGS,
    CLIENT_CALL,
    GATEWAY_TOOLS,
    ROLE,
    body,
    client_message,
    gateway_call,
    with_tools,
)

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def client_finish(played: PlayedTurn, stream: bool) -> str:
    if stream:
        (finish,) = played.client.finish
        return finish
    return str(played.body["choices"][0]["finish_reason"])


class TestPlain:
    def test_every_batch_leaves_at_once_with_the_bytes_in_which_it_came(self) -> None:
        odd = chunk({"content": "Hi", "x_delta": 1}, x_chunk={"a": [1]}, usage=None)
        end, tokens = chunk({}, "stop"), usage(3, 1)
        assert (
            Playbook(chat_turn(TurnTerms(wants_usage=True)))
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
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([ROLE, text, last])
            << SendHead(200, SSE)
            << body(ROLE, text)
            >> Received([tokens, DONE])
            << Save
            >> ReplyEnded()
            >> Saved(is_durable=True)
            << body(last, tokens, DONE)
            << Finish()
            >> Saved()
        )
        assert playbook
        assert playbook.outcome.state is End.FINISHED
        assert playbook.outcome.shown_reply == {"role": "assistant", "content": "Hello"}
        assert playbook.outcome.full_reply == (playbook.outcome.shown_reply,)
        assert not playbook.outcome.has_hidden_results
        assert playbook.outcome.finish_reason == "stop"

    def test_an_end_that_is_not_on_disk_says_so(self) -> None:
        end = chunk({"content": "x"}, "stop")
        assert (
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([end, DONE])
            << Save
            >> Saved(is_durable=False)
            << SendHead(200, SSE)
            << SendBody(end.raw + DONE.raw + b": mnemogate not durable\n")
            << Finish()
        )

    def test_a_usage_chunk_that_only_the_gateway_asked_for_is_not_shown_to_the_client(self) -> None:
        end = chunk({"content": "x"}, "stop")
        for holds_end in (True, False):
            turn = chat_turn(TurnTerms(adds_usage=True, holds_end=holds_end))
            played = play(turn, [completion("x", tokens=(7, 1))], stream=True)
            assert played.client.usages == []
            assert played.outcome.usage is not None
            assert played.outcome.usage["prompt_tokens"] == 7
            assert end.raw not in played.client_body  # the finish chunk was one of its own
            assert played.client.finish == ["stop"]

    def test_the_empty_usage_that_asking_brings_is_not_shown_to_a_client_that_did_not_ask(self) -> None:
        said = (
            b'{"choices":[{"index":0,"delta":{"content":"the \\",\\"usage\\":null\\" of it"}}],"usage":null}'
        )
        turn = chat_turn(TurnTerms(adds_usage=True))
        turn.feed(ReplyStarted(200, SSE))
        sent = turn.feed(Received([Event(b"data: " + said + b"\n\n", said)]))
        assert SendBody(b"data: " + said.removesuffix(b',"usage":null}') + b"}\n\n") in sent

    def test_a_stream_without_done_gets_none(self) -> None:
        end = chunk({"content": "x"}, "stop")
        assert (
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([end])
            >> ReplyEnded()
            << Save
            >> Saved()
            << SendHead(200, SSE)
            << body(end)
            << Finish()
        )

    def test_a_reply_goes_on_after_a_finish_reason_that_came_too_early(self) -> None:
        first, more, last = chunk({"content": "A"}, "stop"), chunk({"content": "B"}), chunk({}, "length")
        playbook = (
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([first])
            >> Received([more])
            << SendHead(200, SSE)
            << body(first, more)
            >> Received([last, DONE])
            << Save
            >> Saved()
            << body(last, DONE)
            << Finish()
        )
        assert playbook
        assert (playbook.outcome.text, playbook.outcome.finish_reason) == ("AB", "length")

    @pytest.mark.parametrize("breaks", [False, True])
    def test_only_the_last_chunk_waits_if_each_has_a_finish_reason(self, breaks: bool) -> None:
        pieces = [chunk({"content": f"{n} "}, "stop") for n in range(1500)]
        playbook = (
            Playbook(chat_turn(TurnTerms(holds_end=True))) >> ReplyStarted(200, SSE) >> Received(pieces)
        )
        assert playbook << SendHead(200, SSE) << body(*pieces[:-1])
        if not breaks:
            assert playbook >> Received([DONE]) << Save >> Saved() << body(pieces[-1], DONE) << Finish()
            assert playbook.outcome.text.endswith(" 1499 ")
            return
        playbook >> ReplyFailed(UpstreamReplyBroken("It broke."))
        assert playbook.outcome.state is End.FAILED
        assert b"It broke." in playbook.client_body

    def test_the_last_events_wait_for_the_save_without_blank_lines_between_them(self) -> None:
        text, end = chunk({"content": "A"}), chunk({}, "stop")
        lines = b"\n".join([each.data or b"" for each in (text, end, DONE)])
        joined = Event(b"data: " + lines.replace(b"\n", b"\ndata: ") + b"\n\n", lines)
        assert (
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([joined])
            << SendHead(200, SSE)
            << body(text)
            << Save
            >> Saved()
            << body(end, DONE)
            << Finish()
        )

    def test_all_choices_are_forwarded_and_the_first_is_stored(self) -> None:
        def choice(index: int, text: str, finish: str | None = None) -> Event:
            choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
            return event({"id": "c", "choices": [choice]})

        first, second = choice(0, "A", "stop"), choice(1, "B")
        late, last = choice(1, "C"), choice(1, "", "stop")
        playbook = (
            Playbook(chat_turn(TurnTerms(holds_end=True, choice_count=2)))
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
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, JSON)
            >> ReceivedWhole(raw)
            << Save
            >> Saved()
            << SendWhole(200, JSON, raw)
            << Finish()
        )
        assert playbook
        assert playbook.outcome.shown_reply == {"role": "assistant", "content": "Hi", "x": 1}

    def test_unknown_fields_are_retained_in_the_upstreams_message(self) -> None:
        details = [{"type": "reasoning.text", "index": 0, "text": "be"}]
        more = [{"type": "reasoning.text", "index": 0, "text": "cause", "signature": "s1"}]
        events = [
            chunk({"role": "assistant", "reasoning_content": "hm", "reasoning_details": details}),
            chunk({"reasoning_content": "m", "reasoning_details": more}),
            chunk({"content": "Yes"}, "stop"),
            DONE,
        ]
        turn = chat_turn(TurnTerms(holds_end=True))
        turn.feed(ReplyStarted(200, SSE))
        (save,) = [command for command in turn.feed(Received(events)) if isinstance(command, Save)]
        assert save.outcome.full_reply == (
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
        for terms in (with_tools(), TurnTerms(holds_end=True)):
            playbook = Playbook(chat_turn(terms)) >> ReplyStarted(200, SSE) >> Received(events)
            assert playbook << SendHead(200, SSE) << body(*events[:4]) << Save
            assert playbook >> Saved() << body(*events[4:]) << Finish()
            assert playbook.outcome.shown_reply is not None
            assert [call["id"] for call in playbook.outcome.shown_reply["tool_calls"]] == ["call_t", "call_u"]
            assert not playbook.outcome.has_hidden_results


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
            >> ToolFinished(ToolResult("call_a", "done"))
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
        client = read_stream(playbook.client_body)
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
        assert [message["role"] for message in outcome.full_reply] == ["assistant", "tool", "assistant"]
        assert outcome.shown_reply == {"role": "assistant", "content": "Noted"}
        assert outcome.has_hidden_results

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
            completion("One moment. ", (gateway_call(),), id="a"),
            completion("And. ", (gateway_call("call_b"), gateway_call("call_c", "{}", "search")), id="b"),
            completion("Done.", id="c", tokens=(30, 7)),
        ]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        assert client_message(played, stream) == {"text": "One moment. And. Done.", "calls": []}
        assert client_finish(played, stream) == "stop"
        assert [run.call_id for run in played.tool_runs] == ["call_a", "call_b", "call_c"]
        assert played.tool_runs[2].name == "search"
        assert [len(call.messages) for call in played.model_calls] == [2, 5]
        assert played.model_calls[1].messages[:2] == played.model_calls[0].messages
        assert [message["role"] for message in played.outcome.full_reply] == [
            *("assistant", "tool"),
            *("assistant", "tool", "tool"),
            "assistant",
        ]
        assert played.outcome.shown_reply == {"role": "assistant", "content": "One moment. And. Done."}
        assert len(played.heads) == 1
        if not stream:
            assert played.body["id"] == "a"
            assert played.body["usage"]["completion_tokens"] == 17
            assert played.body["usage"]["mnemogate_billed"]["rounds"] == 3

    def test_a_chunk_that_judges_the_prompt_gives_a_reply_no_identity(self) -> None:
        """Azure's first chunk has no choices, and neither id nor model."""
        judged = event({"id": "", "model": "", "created": 0, "choices": [], "prompt_filter_results": []})
        rounds = [completion("One moment. ", (gateway_call(),), id="a"), completion("Done.", id="b")]
        played = play(chat_turn(with_tools()), rounds, stream=True, group=lambda events: [[judged, *events]])
        said = [orjson.loads(data) for data in played.client_body.split(b"data: ")[1:-1]]
        assert {each["id"] for each in said if each["choices"]} == {"a"}

    @BOTH
    def test_a_renamed_tool_runs_under_the_name_that_was_offered(self, stream: bool) -> None:
        terms = TurnTerms(gateway_tools={"mnemogate_memory_insert"}, holds_end=True)
        mine, theirs = ("a", "mnemogate_memory_insert", ARGS), ("b", "memory_insert", "{}")
        played = play(chat_turn(terms), [completion(None, (mine, theirs))], stream=stream)
        assert [(run.call_id, run.name) for run in played.tool_runs] == [("a", "mnemogate_memory_insert")]
        assert client_message(played, stream)["calls"] == [theirs]

    @BOTH
    @pytest.mark.parametrize("bad", ['{"label": "hum', "[1]", '"text"', "nonsense"])
    def test_bad_arguments_are_reported_to_the_model_and_the_turn_goes_on(
        self, stream: bool, bad: str
    ) -> None:
        rounds = [completion(None, (gateway_call(arguments=bad),)), completion("Sorry.")]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        assert played.tool_runs == []
        assistant, tool = played.model_calls[0].messages
        assert "not a JSON object" in tool["content"]
        assert assistant["tool_calls"][0]["function"]["arguments"] == "{}"
        assert played.outcome.text == "Sorry."

    @BOTH
    def test_no_arguments_are_an_empty_object(self, stream: bool) -> None:
        rounds = [completion(None, (gateway_call(arguments=""),)), completion("ok")]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        assert played.tool_runs[0].arguments == {}
        assert played.model_calls[0].messages[0]["tool_calls"][0]["function"]["arguments"] == "{}"

    @BOTH
    def test_calls_without_ids_or_with_the_same_one_get_their_own(self, stream: bool) -> None:
        rounds = [
            completion(None, (gateway_call(""), gateway_call("x"), gateway_call("x"))),
            completion("ok"),
        ]
        played = play(chat_turn(with_tools()), rounds, stream=stream)
        ids = [run.call_id for run in played.tool_runs]
        assert len(set(ids)) == 3
        assert all(ids)
        assistant, *tools = played.model_calls[0].messages
        assert [call["id"] for call in assistant["tool_calls"]] == ids
        assert [tool["tool_call_id"] for tool in tools] == ids

    def test_results_that_come_out_of_order_or_twice_are_put_in_order(self) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, JSON))
        turn.feed(ReceivedWhole(orjson.dumps(completion(None, (gateway_call("a"), gateway_call("b"))))))
        playbook = (
            Playbook(turn)
            >> ToolFinished(ToolResult("b", "B"))
            >> ToolFinished(ToolResult("b", "again"))
            >> ToolFinished(ToolResult("?", ""))
        )
        playbook = playbook >> ToolFinished(ToolResult("a", "A")) << CallModel
        (call,) = playbook.commands
        assert isinstance(call, CallModel)
        assert [m["content"] for m in call.messages[1:]] == ["A", "B"]

    @BOTH
    def test_at_the_limit_calls_are_refused_and_the_client_gets_an_answer(self, stream: bool) -> None:
        rounds = [completion(None, (gateway_call(f"c{n}"),)) for n in range(3)]
        played = play(chat_turn(with_tools(), max_rounds=2), [*rounds, completion("Here.")], stream=stream)
        assert [run.call_id for run in played.tool_runs] == ["c0", "c1"]
        assert [call.offer.is_final for call in played.model_calls] == [False, False, True]
        assert "limit" in played.model_calls[-1].messages[-1]["content"]
        assert client_message(played, stream) == {"text": "Here.", "calls": []}
        assert client_finish(played, stream) == "stop"

    @BOTH
    def test_a_model_that_does_not_stop_at_the_limit_is_stopped(self, stream: bool) -> None:
        rounds = [completion("Hm. ", (gateway_call(),)), completion("Well. ", (gateway_call(),))]
        played = play(chat_turn(with_tools(), max_rounds=0), rounds, stream=stream)
        assert played.tool_runs == []
        assert client_message(played, stream) == {"text": "Hm. Well. ", "calls": []}
        assert client_finish(played, stream) == "stop"
        assert played.outcome.full_reply[-1] == {"role": "assistant", "content": "Well. "}

    def test_usage_of_hidden_rounds_is_reported_only_where_it_was_asked_for(self) -> None:
        rounds = [completion(None, (gateway_call(),)), completion("ok")]
        terms = with_tools(wants_usage=False, adds_usage=True)
        played = play(chat_turn(terms), rounds, stream=True)
        assert played.client.usages == []
        assert played.outcome.usage is not None  # it is counted all the same
        assert played.outcome.usage["mnemogate_billed"]["rounds"] == 2

    def test_details_of_usage_are_added_up_and_unknown_ones_retained(self) -> None:
        first, last = completion(None, (gateway_call(),)), completion("ok")
        first["usage"]["completion_tokens_details"] = {"reasoning_tokens": 4}
        last["usage"] |= {"completion_tokens_details": {"reasoning_tokens": 3}, "x_cost": 5}
        played = play(chat_turn(with_tools()), [first, last], stream=False)
        assert played.body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
        assert played.body["usage"]["x_cost"] == 5


class TestMixed:
    @BOTH
    @pytest.mark.parametrize("order", ["ours first", "theirs first", "between"])
    def test_gateway_tools_are_run_and_client_tools_passed_on(self, stream: bool, order: str) -> None:
        made = {
            "ours first": (gateway_call(), CLIENT_CALL),
            "theirs first": (CLIENT_CALL, gateway_call()),
            "between": (gateway_call(), CLIENT_CALL, gateway_call("call_b"), ("call_z", "unheard_of", "{}")),
        }[order]
        wrong = completion("Both. ", made, "stop")  # some upstreams say `stop` with calls
        played = play(chat_turn(with_tools()), [wrong], stream=stream)
        theirs = [call for call in made if call[1] not in GATEWAY_TOOLS]
        assert client_message(played, stream) == {"text": "Both. ", "calls": theirs}
        assert client_finish(played, stream) == "tool_calls"
        assistant, *results = played.outcome.full_reply
        assert [call["id"] for call in assistant["tool_calls"]] == [call[0] for call in made]
        assert [(m["role"], m["tool_call_id"]) for m in results] == [
            ("tool", call[0]) for call in made if call[1] in GATEWAY_TOOLS
        ]
        assert played.outcome.shown_reply is not None
        assert [call["id"] for call in played.outcome.shown_reply["tool_calls"]] == [
            call[0] for call in theirs
        ]
        assert played.model_calls == []
        if stream:
            assert sorted(played.client.calls) == list(range(len(theirs)))

    def test_a_client_call_does_not_wait_for_gateway_tools(self) -> None:
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
            >> ToolFinished(ToolResult("call_a", "ok"))
            << Save
            >> Saved()
            << body(chunk({}, "tool_calls"), DONE)
            << Finish()
        )
        assert playbook


class TestNames:
    def test_a_call_is_held_back_until_its_name_is_known(self) -> None:
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
        assert read_stream(playbook.client_body).message()["calls"] == [("call_t", "memory_game", "{}")]

    def test_a_name_that_begins_with_a_gateway_tools_name_is_the_clients(self) -> None:
        events = [
            calls(call_piece(0, id="a", name="memory_insert")),
            calls(call_piece(0, name="_all")),
            calls(call_piece(0, "{}")),
            chunk({}, "tool_calls"),
            DONE,
        ]
        turn = chat_turn(TurnTerms(gateway_tools=GATEWAY_TOOLS))
        playbook = Playbook(turn) >> ReplyStarted(200, SSE) >> Received(events)
        assert read_stream(playbook.client_body).message()["calls"] == [("a", "memory_insert_all", "{}")]

    @pytest.mark.parametrize("id", ["a", None])
    @pytest.mark.parametrize("first", ["", ARGS[:5]])
    def test_a_name_that_comes_again_with_every_piece_is_one_name(self, id: str | None, first: str) -> None:
        events = [
            calls(call_piece(0, first, id="a", name="memory_insert")),
            calls(call_piece(0, ARGS[len(first) : 9], id=id, name="memory_insert")),
            calls(call_piece(0, ARGS[9:], id=id, name="memory_insert")),
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
    def test_parallel_calls_that_share_an_index_or_have_none_are_distinguished(
        self, index: int | None
    ) -> None:
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
            completion(None, (gateway_call(),), tokens=(10, 30)),
            completion(None, (gateway_call("b"),), tokens=(10, 20)),
            completion("ok"),
        ]
        played = play(chat_turn(with_tools(budget_tokens=100)), rounds, stream=stream)
        assert [call.budget_tokens for call in played.model_calls] == [70, 50]

    def test_tokens_that_the_upstream_did_not_report_are_counted(self) -> None:
        rounds = [completion("abc", (gateway_call(),), tokens=None), completion("ok", tokens=None)]
        played = play(chat_turn(with_tools(budget_tokens=100, estimate=len)), rounds, stream=True)
        assert played.model_calls[0].budget_tokens == 100 - len("abc" + "memory_insert" + ARGS)

    @BOTH
    def test_a_hidden_call_that_was_cut_off_is_dropped(self, stream: bool) -> None:
        cut = completion("Well, ", (gateway_call(arguments=ARGS[:12]),), "length", tokens=(10, 50))
        played = play(chat_turn(with_tools(budget_tokens=50)), [cut], stream=stream)
        assert played.tool_runs == []
        assert client_message(played, stream) == {"text": "Well, ", "calls": []}
        assert client_finish(played, stream) == "length"
        assert played.outcome.full_reply == ({"role": "assistant", "content": "Well, "},)

    @BOTH
    def test_with_nothing_left_the_reply_ends_after_its_last_call(self, stream: bool) -> None:
        spent = completion(None, (gateway_call(),), tokens=(10, 50))
        played = play(chat_turn(with_tools(budget_tokens=50)), [spent], stream=stream)
        assert [run.call_id for run in played.tool_runs] == ["call_a"]
        assert client_message(played, stream) == {"text": "", "calls": []}
        assert client_finish(played, stream) == "length"
        assert [message["role"] for message in played.outcome.full_reply] == ["assistant", "tool"]
