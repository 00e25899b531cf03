"""What is known of the contexts of models, and what corrects it."""

from __future__ import annotations

import pytest

from gateway.core.upstream.context_window import GUESS, Contexts, context_from_error

PLACE = ("up", "m")


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (
            "This model's maximum context length is 8192 tokens. However, you sent 9001 tokens.",
            8192,
        ),
        ("Prompt contains 40000 tokens, too large for model with 32768 maximum context length", 32768),
        ("prompt is too long: 210000 tokens > 200000 maximum", 200000),
        ("The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).", 1048576),
        ("the request exceeds the available context size (4096 tokens), try increasing it", 4096),
        ('{"error":{"code":400,"type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4096}}', 4096),
        ("maximum context length is 131,072 tokens", 131072),
        ("rate limit reached for gpt-4o: 30000 tokens per min", None),
        ("context length 7", None),
        ("", None),
    ],
)
def test_an_error_tells_the_context(body: str, tokens: int | None) -> None:
    assert context_from_error(body) == tokens


@pytest.mark.parametrize(
    ("known", "told", "found"),
    [(None, None, None), (8000, None, 8000), (8000, 4000, 4000), (4000, 8000, 4000)],
)
def test_the_smaller_of_what_is_known_counts(known: int | None, told: int | None, found: int | None) -> None:
    contexts = Contexts()
    if told is not None:
        contexts.told(PLACE, told)
    assert contexts.of(PLACE, known) == found
    assert contexts.of(("up", "other"), known) == known


def test_a_count_that_is_higher_than_ours_makes_the_window_smaller_once_it_fills_up() -> None:
    contexts = Contexts()
    contexts.counted(PLACE, ours=1000, theirs=1500, most=4000)
    assert contexts.of(PLACE, 8000) == 8000, "every correction costs the provider's cache"
    contexts.counted(PLACE, ours=3000, theirs=4500, most=4000)
    assert contexts.of(PLACE, 8000) == int(8000 / 1.5)
    contexts.counted(PLACE, ours=2600, theirs=2600, most=2666)
    assert contexts.of(PLACE, 8000) == int(8000 / 1.5), "another prompt may be like the first again"


def test_what_a_form_of_chat_adds_is_no_other_count() -> None:
    contexts = Contexts()
    contexts.counted(PLACE, ours=4000, theirs=4100, most=4000)
    assert contexts.of(PLACE, 8000) == 8000


def test_a_guess_holds_until_the_upstream_has_counted() -> None:
    contexts = Contexts()
    contexts.guessed(PLACE)
    assert contexts.of(PLACE, 8000) == 8000 / GUESS
    contexts.counted(PLACE, ours=1000, theirs=1250, most=4000)
    assert contexts.of(PLACE, 8000) == 8000 / 1.25
