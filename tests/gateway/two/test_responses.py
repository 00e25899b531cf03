"""Responses of one gateway at another gateway over the same database, also after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.core.conversation.wire_message import read_text
from gateway.run.responses.response_attempt import GIVEN_UP_ERROR
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.process import Process, serving
from tests.gateway.two.deployment import MODULE, Database
from tests.patience import becomes
from tests.postgres import execute

SETTINGS = """
[[upstreams]]
name = "up"
kind = "vllm"
base_url = "{base_url}"
"""


class Gateways:
    """Gateways over one database."""

    def __init__(
        self, stack: ExitStack, folder: Path, url: str, upstream: StrictUpstream, settings: str = SETTINGS
    ) -> None:
        self._stack, self._folder, self._url, self._upstream = stack, folder, url, upstream
        self._settings = settings
        self.count = 0

    def start(self, *arguments: str, more_settings: str = "") -> tuple[Process, openai.OpenAI]:
        where, database = self._folder / f"gateway{self.count}", Database(self._folder / "none", self._url)
        where.mkdir()
        self.count += 1
        settings = self._settings.format(base_url=self._upstream.base_url) + more_settings
        served = serving(where, *arguments, settings=settings, module=MODULE, environ=database.environ)
        process = self._stack.enter_context(served)
        return process, self._stack.enter_context(process.client())

    def kill(self, process: Process) -> None:
        """Kills a process whose leases end at once, as if their time had passed."""
        process.kill()
        execute(self._url, "UPDATE jobs SET held_until = held_until - 1000")


@pytest.fixture
def gateways(upstream: StrictUpstream, tmp_path: Path, url: str) -> Iterator[Gateways]:
    with ExitStack() as stack:
        yield Gateways(stack, tmp_path, url, upstream)


@pytest.fixture
def sdks(gateways: Gateways) -> list[openai.OpenAI]:
    return [gateways.start()[1] for _ in range(2)]


def wait_for_chat(upstream: StrictUpstream, earlier: int = 0) -> None:
    """Waits until the upstream has more chats than `earlier`."""
    becomes(lambda: len(upstream.chats) > earlier)


def wait_for_end(sdk: openai.OpenAI, response_id: str) -> Any:
    """Returns a response when it has ended."""

    def retrieve_if_ended() -> Any:
        response = sdk.responses.retrieve(response_id)
        return None if response.status in ("queued", "in_progress") else response

    return becomes(retrieve_if_ended)


def test_a_response_of_one_gateway_is_known_at_the_other(
    sdks: list[openai.OpenAI], upstream: StrictUpstream
) -> None:
    one, two = sdks
    upstream.queue(say("A nice name."))
    first = one.responses.create(model="m", input="My cat is called Miso.")
    assert two.responses.retrieve(first.id).to_dict() == first.to_dict()
    second = two.responses.create(model="m", input="What is it called?", previous_response_id=first.id)
    assert [read_text(m) for m in upstream.last.messages][:2] == ["My cat is called Miso.", "A nice name."]
    assert len(list(one.responses.input_items.list(second.id))) == 3
    two.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(first.id)
    conversation = one.conversations.create()
    two.responses.create(model="m", input="One.", conversation=conversation.id, user="alice")
    one.responses.create(model="m", input="Two.", conversation=conversation.id, user="alice")
    assert [read_text(m) for m in upstream.last.messages] == ["One.", "Ok.", "Two."]
    assert len(list(two.conversations.items.list(conversation.id))) == 4


def test_the_other_gateway_follows_and_cancels_a_response_in_the_background(
    sdks: list[openai.OpenAI], upstream: StrictUpstream
) -> None:
    one, two = sdks
    gate = Gate()
    upstream.queue(say("One two three four.", hold_after={3: gate}))
    made = one.responses.create(model="m", input="Count.", user="alice", background=True)
    kinds = []
    with two.responses.retrieve(made.id, stream=True) as events:
        for event in events:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                gate.open()
    assert kinds[-1] == "response.completed"
    assert wait_for_end(one, made.id).output_text == "One two three four."
    held = Gate()
    upstream.queue(say("Never.", hold_before_headers=held))
    chat_count = len(upstream.chats)
    made = one.responses.create(model="m", input="Wait.", user="alice", background=True)
    wait_for_chat(upstream, chat_count)
    for sdk in (two, one):
        assert sdk.responses.cancel(made.id).status == "cancelled"
    held.open()
    assert wait_for_end(one, made.id).status == wait_for_end(two, made.id).status == "cancelled"


def test_a_response_in_the_background_survives_a_kill_of_its_process(
    gateways: Gateways, upstream: StrictUpstream
) -> None:
    """The attempt begins again: numbers only rise, and the last event is what a GET shows."""
    gate = Gate()
    upstream.queue(say("One two three four.", hold_after={3: gate}), say("Five six."))
    first, sdk = gateways.start()
    made = sdk.responses.create(model="m", input="Count.", user="alice", background=True)
    seen: list[Any] = []
    with sdk.responses.retrieve(made.id, stream=True) as events:
        for event in events:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    first.kill()
    gate.open()
    _, left = gateways.start()
    response = wait_for_end(left, made.id)
    assert (response.status, response.output_text) == ("completed", "Five six.")
    rest = list(left.responses.retrieve(made.id, stream=True, starting_after=seen[-1].sequence_number))
    numbers = [event.sequence_number for event in (*seen, *rest)]
    assert numbers == sorted(set(numbers))
    assert rest[0].type in ("response.created", "response.in_progress")
    assert rest[0].sequence_number == 10_000
    assert rest[-1].response.to_dict() == response.to_dict()
    second = left.responses.create(model="m", input="And?", previous_response_id=made.id, user="alice")
    assert second.output_text == "Ok."


def test_a_gateway_that_does_not_know_the_model_leaves_a_response_to_one_that_does(
    gateways: Gateways, upstream: StrictUpstream, url: str
) -> None:
    """As while gateways get new settings one after the other, also where the response has waited long before."""
    profile = """
        [[profiles]]
        name = "helper"
        model = "m"
    """
    _, new = gateways.start("--no-work", more_settings=profile)
    fields: Any = {"model": "agent/helper", "input": "Hi.", "user": "alice", "background": True}
    made = new.responses.create(**fields)
    execute(url, "UPDATE runs SET created = created - 3600")
    _, old = gateways.start()
    becomes(lambda: old.responses.retrieve(made.id).status != "queued")
    assert old.responses.retrieve(made.id).status == "in_progress"
    gateways.start(more_settings=profile)
    assert wait_for_end(new, made.id).output_text == "Ok."


def test_after_a_kill_the_items_of_a_conversation_are_asked_once(
    gateways: Gateways, upstream: StrictUpstream
) -> None:
    upstream.queue(say("Never.", hold_before_headers=Gate()))
    first, sdk = gateways.start()
    conversation = sdk.conversations.create(items=[{"role": "user", "content": "My cat is Miso."}]).id
    fields: Any = {"model": "m", "conversation": conversation, "user": "alice", "background": True}
    made = sdk.responses.create(input="Who?", **fields)
    wait_for_chat(upstream)
    first.kill()
    _, left = gateways.start()
    assert wait_for_end(left, made.id).output_text == "Ok."
    assert [read_text(m) for m in upstream.last.messages] == ["My cat is Miso.", "Who?"]
    assert len(list(left.conversations.items.list(conversation))) == 3


def test_three_dead_processes_end_a_response(gateways: Gateways, upstream: StrictUpstream) -> None:
    upstream.queue(*(say("Never.", hold_before_headers=Gate()) for _ in range(3)))
    process, sdk = gateways.start()
    made = sdk.responses.create(model="m", input="Hi", user="alice", background=True)
    for already in range(3):
        wait_for_chat(upstream, already)
        gateways.kill(process)
        process, sdk = gateways.start()
    response = wait_for_end(sdk, made.id)
    assert (response.status, response.output, response.error.message) == (
        *("failed", []),
        GIVEN_UP_ERROR,
    )
    assert len(upstream.chats) == 3


def test_a_request_with_a_key_is_sent_again_after_a_kill(
    gateways: Gateways, upstream: StrictUpstream
) -> None:
    upstream.queue(say("One.", hold_before_headers=Gate()), say("Two."))
    first, sdk = gateways.start()
    fields: Any = {
        "model": "m",
        "input": "Count.",
        "background": True,
        "extra_headers": {"idempotency-key": "k1"},
    }
    made = sdk.responses.create(**fields)
    wait_for_chat(upstream)
    gateways.kill(first)
    _, left = gateways.start()
    assert left.responses.create(**fields).id == made.id
    assert wait_for_end(left, made.id).output_text == "Two."


def test_after_a_kill_the_callers_key_is_gone(gateways: Gateways, upstream: StrictUpstream) -> None:
    """No key of a caller is on disk: an upstream without one in the settings refuses what is taken up."""
    upstream.key = "sk-own"
    upstream.queue(say("One.", hold_before_headers=Gate()))
    first, sdk = gateways.start()
    made = sdk.with_options(api_key="sk-own").responses.create(model="m", input="Count.", background=True)
    wait_for_chat(upstream)
    gateways.kill(first)
    _, left = gateways.start()
    response = wait_for_end(left, made.id)
    assert (response.status, response.output) == ("failed", [])
    assert "no caller's key is stored" in response.error.message
