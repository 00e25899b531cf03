"""Tables of cases that share the fixtures of one test, such as a gateway."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import pytest


def each_row(names: str | tuple[str, ...], table: Collection[Any]) -> Callable[[Callable[..., None]], Any]:
    """Tries all rows of a table in one test, unlike `pytest.mark.parametrize`, which makes a test of each.

    Each row is a subtest. A row that fails is shown with its values, and the other rows are tried all the same. A row
    cannot be selected alone, and must not change what another row sees.

    names: the name of the test's parameter, or the names of several.
    table: the values of the parameter, or tuples with the values of all.
    """
    row_names = (names,) if isinstance(names, str) else names

    def decorate(test: Callable[..., None]) -> Any:
        signature = inspect.signature(test)
        fixture_parameters = [each for name, each in signature.parameters.items() if name not in row_names]

        @wraps(test)
        def try_rows(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for row in table:
                values = (row,) if isinstance(names, str) else row
                with subtests.test(f"{values!r:.200}"):
                    test(**fixtures, **dict(zip(row_names, values, strict=True)))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [*fixture_parameters, inspect.Parameter("subtests", kind)]
        try_rows.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return try_rows

    return decorate
