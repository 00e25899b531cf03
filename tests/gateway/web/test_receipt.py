"""The receipt of a reply: the gateway's share of its time."""

from __future__ import annotations

import time

import pytest

from gateway.run.receipt import Receipt
from gateway.run.request_clock import RequestClock


def test_the_time_between_two_calls_of_an_upstream_is_not_the_gateways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([12.0, 40.0, 70.0, 73.0])  # called, answered, answered, the head
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    receipt = Receipt(clock=RequestClock(10.0))
    receipt.clock.note_call()
    receipt.clock.note_answer()  # the head of a round that calls a tool
    receipt.clock.note_call()
    receipt.clock.note_answer()
    assert receipt.note_head()[-1] == ("x-mnemogate-added-ms", "5000.00")


def test_all_time_is_the_gateways_where_no_upstream_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 12.0)
    assert Receipt(clock=RequestClock(10.0)).note_head() == [("x-mnemogate-added-ms", "2000.00")]
