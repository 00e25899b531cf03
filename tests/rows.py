"""Tables whose rows share the fixtures of one test."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import pytest


def each_row(names: str | tuple[str, ...], table: Collection[Any]) -> Callable[[Callable[..., None]], Any]:
    """Like `pytest.mark.parametrize`, but all rows are tried in one test, say with one gateway.

    Each row is a subtest: one that fails is shown with its values and ends no other, and none can be chosen alone. For
    rows that leave nothing which another one would notice.
    """
    given = (names,) if isinstance(names, str) else names

    def decorate(test: Callable[..., None]) -> Any:
        signature = inspect.signature(test)
        own = [each for name, each in signature.parameters.items() if name not in given]

        @wraps(test)
        def try_rows(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for row in table:
                values = (row,) if isinstance(names, str) else row
                with subtests.test(f"{values!r:.200}"):
                    test(**fixtures, **dict(zip(given, values, strict=True)))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [*own, inspect.Parameter("subtests", kind)]
        try_rows.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return try_rows

    return decorate
