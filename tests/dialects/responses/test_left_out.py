"""What a chat completion has no place for is named, wherever it stands in a request, and nothing else is."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.dialects.responses.call_form import UpstreamTools
from gateway.dialects.responses.parse import parse
from tests.rows import each_row

Json = dict[str, Any]
HI: Json = {"role": "user", "content": "Hi"}
CALL: Json = {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{}"}
RESULT: Json = {"type": "function_call_output", "call_id": "1", "output": "done"}
THOUGHT: Json = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
TOOL: Json = {"type": "function", "name": "f", "parameters": {}}


def named(*items: Json, **fields: Any) -> tuple[str, ...]:
    """Returns the names of what is left out of a request with these items."""
    takes = UpstreamTools(takes_web_search=True)
    return parse(
        orjson.dumps({"model": "m", "input": [HI, *items], **fields}), upstream_tools=takes
    ).chat.consumed


def part(**fields: Any) -> Json:
    return {"role": "user", "content": [{"type": "input_text", "text": "Hi", **fields}]}


def reply(**fields: Any) -> Json:
    text = {"type": "output_text", "text": "Yes.", "annotations": [], "logprobs": [], **fields}
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}


@each_row(
    ("items", "fields", "expected"),
    [
        # What a client sends back as it came.
        ([reply(), CALL, RESULT], {"tools": [TOOL]}, []),
        ([{**reply(), "phase": "commentary"}], {}, ["input.phase"]),
        ([{**reply(), "phase": None}], {}, []),
        ([part(prompt_cache_breakpoint={"mode": "explicit"})], {}, ["input.content.prompt_cache_breakpoint"]),
        ([reply(annotations=[{"type": "url_citation"}])], {}, ["input.content.annotations"]),
        ([{**CALL, "caller": {"type": "direct"}}, RESULT], {}, ["input.caller"]),
        ([CALL, {**RESULT, "next_month": 0}], {}, ["input.next_month"]),
        (
            [CALL, {**RESULT, "output": [{"type": "input_text", "text": "a", "later": 1}]}],
            {},
            ["input.output.later"],
        ),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "f", "detail": "low"}]}], {},
         ["input.content.detail"]),
        ([THOUGHT, reply()], {}, ["input.summary"]),
        ([{**THOUGHT, "encrypted_content": 'mnemogate:{"reasoning_content": "Hm."}'}, reply()], {}, []),
        ([{"type": "ghost_snapshot", "commit": "1"}], {}, ["input.ghost_snapshot"]),
        ([{"type": "configuration_update", "reasoning": {"effort": "low"}}], {}, ["input.reasoning"]),
        ([], {"tools": [{**TOOL, "defer_loading": True}]}, ["tools.defer_loading"]),
        ([{"type": "additional_tools", "tools": [{**TOOL, "defer_loading": True}]}], {},
         ["input.tools.defer_loading"]),
        ([], {"tools": [{"type": "web_search", "filters": {"blocked_domains": ["a.b"]}}]},
         ["tools.filters.blocked_domains"]),
        ([], {"tools": [{"type": "web_search", "search_context_size": "low"}]}, ["tools.search_context_size"]),
        ([], {"tools": [{"type": "shell", "environment": {"type": "local"}}]}, []),
        ([], {"tools": [{"type": "shell", "environment": {"type": "local", "skills": [{"name": "s"}]}}]},
         ["tools.environment.skills"]),
        ([], {"reasoning": {"effort": "low", "context": "all_turns"}}, ["reasoning.context"]),
        ([], {"text": {"verbosity": "low", "next_month": True}}, ["text.next_month"]),
    ],
)  # fmt: skip
def test_fields_that_are_left_out_are_named(items: list[Json], fields: Json, expected: list[str]) -> None:
    assert named(*items, **fields) == tuple(expected)


def test_thoughts_that_are_stored_here_are_not_left_out() -> None:
    assert named({**THOUGHT, "id": f"rs_{'0' * 32}{'1' * 24}_0"}, reply()) == ()


def test_names_fit_into_a_header_whatever_a_client_sends() -> None:
    hostile = dict.fromkeys(["a\r\nset-cookie: b", "ü", "x" * 5000, *map(str, range(1000))], 1)
    names = named({**reply(), **hostile})
    assert "..." in names
    assert len(",".join(names)) < 4096
    assert ",".join(names).isascii()
    assert not any(char.isspace() for char in ",".join(names))


def test_a_name_that_comes_again_is_no_further_name() -> None:
    fields = dict.fromkeys(map(str, range(30)), 1)
    names = named({**reply(), **fields})
    assert named({**reply(), **fields}, {**reply(), **fields}) == names
    assert "..." not in names
