"""What is known of the windows of models, and what corrects it."""

from __future__ import annotations

import pytest

from gateway.core.upstream.context_window import GUESSED_SCALE, MAX_MODELS, ContextWindows, ModelKey

MODEL = ModelKey("up", "m")


@pytest.mark.parametrize(
    ("known", "reported", "found"),
    [(None, None, None), (8000, None, 8000), (8000, 4000, 4000), (4000, 8000, 4000)],
)
def test_the_smaller_of_what_is_known_counts(
    known: int | None, reported: int | None, found: int | None
) -> None:
    windows = ContextWindows()
    if reported is not None:
        windows.note_window(MODEL, reported)
    assert windows.find_window(MODEL, known) == found
    assert windows.find_window(ModelKey("up", "other"), known) == known


def test_an_upstreams_higher_count_makes_the_window_smaller_once_it_fills_up() -> None:
    windows = ContextWindows()
    windows.note_count(MODEL, estimated=1000, actual=1500, max_tokens=4000)
    assert windows.find_window(MODEL, 8000) == 8000, "every correction costs the provider's cache"
    windows.note_count(MODEL, estimated=3000, actual=4500, max_tokens=4000)
    assert windows.find_window(MODEL, 8000) == int(8000 / 1.5)
    windows.note_count(MODEL, estimated=2600, actual=2600, max_tokens=2666)
    assert windows.find_window(MODEL, 8000) == int(8000 / 1.5), "another prompt may be like the first again"


def test_the_tokens_of_the_chats_form_are_no_other_count() -> None:
    windows = ContextWindows()
    windows.note_count(MODEL, estimated=4000, actual=4100, max_tokens=4000)
    assert windows.find_window(MODEL, 8000) == 8000


def test_a_guess_holds_until_the_upstream_has_counted() -> None:
    windows = ContextWindows()
    windows.note_guess(MODEL)
    assert windows.find_window(MODEL, 8000) == 8000 / GUESSED_SCALE
    windows.note_count(MODEL, estimated=1000, actual=1250, max_tokens=4000)
    assert windows.find_window(MODEL, 8000) == 8000 / 1.25


def test_the_newest_of_made_up_models_are_known() -> None:
    """An upstream that serves one model under any name reports its window for each of them."""
    windows, named = ContextWindows(), [ModelKey("up", f"m{n}") for n in range(MAX_MODELS + 10)]
    for at in named:
        windows.note_window(at, 8000)
        windows.note_guess(at)
        windows.note_count(at, estimated=1000, actual=1250, max_tokens=4000)
        windows.note_window(named[0], 4000)
    assert windows.find_window(named[0], None) == 4000 / 1.25, "it was told of all the time"
    assert windows.find_window(named[1], None) is None
    assert windows.find_window(named[-1], None) == 8000 / 1.25
