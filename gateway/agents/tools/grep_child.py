"""A grep in a child process (`children.py`): it finds the lines of a text that a regular expression matches."""

from __future__ import annotations

import re
from typing import Any


def find_lines(question: dict[str, Any]) -> dict[str, Any]:
    """Returns {"line_numbers": the numbers of the lines, from 1 on}, or {"pattern_error": the error in the pattern}.

    question: "pattern", "text", and "max_count", the largest number of lines to find.
    """
    try:
        pattern = re.compile(question["pattern"], re.IGNORECASE)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        return {"pattern_error": str(error)}
    numbers: list[int] = []
    for number, line in enumerate(question["text"].splitlines(), 1):
        if pattern.search(line):
            numbers.append(number)
            if len(numbers) == question["max_count"]:
                break
    return {"line_numbers": numbers}
