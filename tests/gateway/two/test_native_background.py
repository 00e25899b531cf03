"""Responses that an upstream makes in the background: asked for at one gateway, seen to end at another one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.doubles.responses_rules import message_item
from tests.doubles.upstream import Gate, StrictUpstream
from tests.gateway.process import Process
from tests.gateway.two.test_responses import Gateways

SETTINGS = """
[[upstreams]]
name = "up"
kind = "openai"
base_url = "{base_url}"
takes = {{ responses = "stored" }}
"""
ASKED: Any = {"model": "m", "user": "alice", "input": "My cat is call_item Miso.", "background": True}


@pytest.fixture
def gateways(upstream: StrictUpstream, tmp_path: Path, url: str) -> Iterator[Gateways]:
    with ExitStack() as stack:
        yield Gateways(stack, tmp_path, url, upstream, SETTINGS)


def answers(sdk: openai.OpenAI, upstream: StrictUpstream) -> list[str]:
    """Returns how often the replies of the words of `ASKED` are recalled, by another conversation's note."""
    sdk.responses.create(model="m", user="alice", input="What do you know of the cat Miso?")
    return [line for line in str(upstream.endpoints.responses.bodies[-1]["input"]).splitlines() if line]


def recalled(sdk: openai.OpenAI, upstream: StrictUpstream, words: str) -> int:
    return sum(line.count(words) for line in answers(sdk, upstream))


def test_a_native_background_response_is_polled_at_the_other_gateway(
    gateways: Gateways, upstream: StrictUpstream
) -> None:
    (_, one), (_, two) = gateways.start(), gateways.start()
    responses = upstream.endpoints.responses
    responses.outputs.append([message_item("Miso is a soup as well.")])
    responses.is_busy = True
    made = one.responses.create(**ASKED)
    assert made.status == "queued"
    assert two.responses.retrieve(made.id).status == "in_progress"
    responses.is_busy = False
    with ThreadPoolExecutor(4) as pool:
        polled = pool.map(lambda sdk: sdk.responses.retrieve(made.id).output_text, (one, two, one, two))
        assert {*polled} == {"Miso is a soup as well."}
    assert recalled(one, upstream, "Miso is a soup as well.") == 1
    again = two.responses.create(model="m", user="alice", input="So?", previous_response_id=made.id)
    assert again.output_text == "Ok."


def test_a_native_background_response_is_streamed_from_a_cursor_at_the_other_gateway(
    gateways: Gateways, upstream: StrictUpstream
) -> None:
    (_, one), (_, two) = gateways.start(), gateways.start()
    gate = Gate()
    upstream.endpoints.responses.outputs.append([message_item("Miso is a soup as well.")])
    upstream.endpoints.hold_events[6] = gate
    with one.responses.create(**ASKED, stream=True) as events:
        first = [next(iter(events)) for _ in range(2)]
    made = first[0].response.id
    upstream.endpoints.hold_events.clear()
    gate.open()
    after = first[-1].sequence_number
    rest = list(two.responses.retrieve(made, stream=True, starting_after=after))
    assert [event.sequence_number for event in rest] == list(range(after + 1, after + 1 + len(rest)))
    assert rest[-1].type == "response.completed"
    assert recalled(one, upstream, "Miso is a soup as well.") == 1


def test_a_native_background_response_is_cancelled_at_the_other_gateway(
    gateways: Gateways, upstream: StrictUpstream
) -> None:
    (_, one), (_, two) = gateways.start(), gateways.start()
    upstream.endpoints.responses.is_busy = True
    upstream.endpoints.responses.outputs.append([message_item("Miso is a soup as well.")])
    made = one.responses.create(**ASKED)
    for sdk in (two, one):
        assert sdk.responses.cancel(made.id).status == "cancelled"
        assert sdk.responses.retrieve(made.id).status == "cancelled"
    assert recalled(two, upstream, "Miso is a soup as well.") == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_native_background_response_is_stored_although_its_gateway_was_killed(
    gateways: Gateways, upstream: StrictUpstream, stream: bool
) -> None:
    first, one = gateways.start()
    upstream.endpoints.responses.outputs.append([message_item("Miso is a soup as well.")])
    upstream.endpoints.responses.is_busy = True
    if stream:
        upstream.endpoints.hold_events[6] = Gate()
        made = killed_in_stream(first, one)
        upstream.endpoints.hold_events.clear()
    else:
        made = one.responses.create(**ASKED).id
        first.kill()
    _, left = gateways.start()
    upstream.endpoints.responses.is_busy = False
    assert left.responses.retrieve(made).output_text == "Miso is a soup as well."
    assert recalled(left, upstream, "Miso is a soup as well.") == 1


def killed_in_stream(process: Process, sdk: openai.OpenAI) -> str:
    """Kills a gateway when the first event of a response has come. Returns the response's id."""
    ids: list[str] = []

    def listen() -> None:
        for event in sdk.responses.create(**ASKED, stream=True):
            if event.type == "response.created":
                ids.append(event.response.id)
                process.kill()

    with pytest.raises((httpx.HTTPError, openai.APIError)):
        listen()
    return ids[0]


def test_a_stream_that_is_read_to_its_end_is_one_turn(gateways: Gateways, upstream: StrictUpstream) -> None:
    """While it runs another gateway may see its end first."""
    (_, one), (_, two) = gateways.start(), gateways.start()
    upstream.endpoints.responses.outputs.append([message_item("Miso is a soup as well.")])
    for event in one.responses.create(**ASKED, stream=True):
        if event.type == "response.output_text.done":
            assert two.responses.retrieve("resp_1").status == "completed"
    assert recalled(two, upstream, "Miso is a soup as well.") == 1
