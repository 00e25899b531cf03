"""The reasons of all makers are read in the words of one."""

from __future__ import annotations

from typing import Any

from gateway.core.finish_reasons import CUT_REASONS, read_finish_reason
from tests.rows import each_row


@each_row(
    ("reason", "read"),
    [
        *((each, each) for each in ("stop", "tool_calls", *CUT_REASONS)),
        *((each, "stop") for each in ("STOP", "eos", "COMPLETE", "end_turn", "of tomorrow", "", None, 3, ["length"])),
        *((each, "length") for each in ("MAX_TOKENS", "model_length", "model_context_window_exceeded")),
        *((each, "content_filter") for each in ("SAFETY", "refusal", "content-filter", "IMAGE_SAFETY")),
        *((each, "content_filter") for each in ("content_filter: PROHIBITED_CONTENT", "content_filter: OTHER")),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", "error"),
        *((each, "tool_calls") for each in ("function_call", "TOOL_CALL", "tool_use")),
        *((each, "error") for each in ("ERROR", "insufficient_system_resource", "abort", "MALFORMED_FUNCTION_CALL")),
    ],
)  # fmt: skip
def test_a_reason(reason: Any, read: str) -> None:
    assert read_finish_reason(reason) == read
