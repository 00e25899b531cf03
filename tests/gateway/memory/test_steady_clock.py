"""What came later is the newer one, also where the machine's clock was set back in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.steady_clock import MAX_STEP_S, SteadyClock
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import remember


@pytest.mark.parametrize("step_s", [1.0, 7_200.0, 2 * 86_400.0])
@pytest.mark.both
def test_an_edit_after_a_step_back_of_the_clock_takes_the_place_of_what_it_edits(
    upstream: StrictUpstream, tmp_path: Path, step_s: float
) -> None:
    with remember(upstream, tmp_path) as world:
        chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"})
        chat.say("Good morning.")
        chat.say("My tortoise is called Sheldon.")
        world.settle()
        world.clock.now -= step_s
        del chat.messages[2:]
        chat.say("My tortoise is called Leonard.")
        world.pass_time(3600)
        world.chat(user="alice").say("What is my tortoise called?")
        assert "Leonard" in upstream.last.body.decode()
        assert "Sheldon" not in upstream.last.body.decode()


@pytest.mark.both
def test_messages_that_are_appended_after_a_step_back_of_the_clock_go_on_from_each_other(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    headers = {
        "x-mnemogate-user": "alice",
        "x-mnemogate-conversation": "c1",
        "x-mnemogate-history": "append",
    }
    with remember(upstream, tmp_path) as world:
        texts = ["My cat is Tom.", "He is red.", "He is old.", "He is asleep."]
        for text in texts:
            assert world.post([{"role": "user", "content": text}], headers).status == 200
            world.settle()
            world.clock.now -= 2 * MAX_STEP_S
        sent = [each["content"] for each in upstream.last.json["messages"] if each["role"] == "user"]
        assert sent == texts


def test_a_small_step_back_is_hidden_until_the_clock_has_caught_up() -> None:
    times = iter((100.0, 99.0, 99.5, 100.0, 101.0))
    clock = SteadyClock(lambda: next(times))
    first, *behind, last = [clock() for _ in range(5)]
    assert (first, last) == (100.0, 101.0)
    assert sorted({first, *behind, last}) == [first, *behind, last]
    assert behind[-1] - first < 0.001


def test_a_clock_that_was_wrong_is_mended_at_once() -> None:
    times = iter((10_000.0, 10_000.0 - MAX_STEP_S - 1.0, 10_000.0 - MAX_STEP_S))
    clock = SteadyClock(lambda: next(times))
    assert [clock() for _ in range(3)] == [10_000.0, 10_000.0 - MAX_STEP_S - 1.0, 10_000.0 - MAX_STEP_S]
