"""Usage as CSV, for spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import Any, Final

from storage.usage_records import SHOWN_COUNTERS

# A spreadsheet takes a field that begins with one of these characters for a formula.
_FORMULA_SIGNS: Final = ("=", "+", "-", "@")


def render_usage_csv(page: Mapping[str, Any]) -> str:
    """Returns the rows of a page of `UsageOperations.show` as CSV, with the names of the columns in the first line."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    columns = [*page["by"], *SHOWN_COUNTERS]
    writer.writerow(columns)
    for row in page["data"]:
        writer.writerow([_without_formula(row[name]) for name in columns])
    return out.getvalue()


def _without_formula(value: Any) -> Any:
    """Returns a value for CSV; a text that a spreadsheet would take for a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_SIGNS) else value
