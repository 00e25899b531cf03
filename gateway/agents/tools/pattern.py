"""Finds the lines of a text that a regular expression matches. A child process runs this module."""

from __future__ import annotations

import re
from typing import Any


def find(work: dict[str, Any]) -> dict[str, Any]:
    """Returns {"found": the numbers of lines, from 1 on}, or {"wrong": the error in the pattern}.

    work: "pattern", "text", and "most", the largest number of lines to find.
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
