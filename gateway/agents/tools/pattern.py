"""Finds the lines of a text that a regular expression is in. It is run in a child process."""

from __future__ import annotations

import re
from typing import Any


def find(work: dict[str, Any]) -> dict[str, Any]:
    """Returns {"found": numbers of lines, from 1 on}, or {"wrong": what is wrong with the pattern}.

    work: "pattern", "text", and "most": how many lines are looked for.
    """
    try:
        pattern = re.compile(work["pattern"], re.IGNORECASE)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        return {"wrong": str(error)}
    numbers: list[int] = []
    for number, line in enumerate(work["text"].splitlines(), 1):
        if pattern.search(line):
            numbers.append(number)
            if len(numbers) == work["most"]:
                break
    return {"found": numbers}
