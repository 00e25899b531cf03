"""Tables, colours and progress bars on a terminal, by rich. Imported only when something is shown on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.json import JSON
from rich.progress import (
    BarColumn,
    DownloadColumn,
    FileSizeColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# The most rows of a table. A longer list becomes several tables, since rich holds a whole table in memory.
_ROWS_PER_TABLE = 1000
# Cells between two columns.
_GAP_CELLS = 3
_TIME_PATTERN = r"\[\d{4}-\d\d-\d\d \d\d:\d\d\]"
# The styles of the states of keys, jobs and batches: the more a state needs an operator, the more it stands out.
_STYLES = {
    "active": "green",
    "completed": "green",
    "running": "cyan",
    "retrying": "yellow",
    "failed": "red",
    "dead": "red",
    "revoked": "dim",
    "expired": "dim",
    "cancelled": "dim",
}


class Heading(NamedTuple):
    """The heading of a column."""

    text: str
    # True: the column has numbers, so it is aligned at the right.
    is_number: bool = False


def show_table(headings: Sequence[Heading], rows: Iterable[Sequence[str]]) -> int:
    """Prints rows below headings, or one field a line if the terminal is too narrow. Returns the number of rows.

    Columns without any text are left out; the last one may be wrapped between words.
    """
    console = Console(highlight=False)
    remaining_rows = iter(rows)
    count = 0
    while page_rows := list(islice(remaining_rows, _ROWS_PER_TABLE)):
        count += len(page_rows)
        columns = [column for column in range(len(headings)) if any(row[column] for row in page_rows)]
        column_headings = [headings[column] for column in columns]
        texts = [[row[column] for column in columns] for row in page_rows]
        table = _fit_table(column_headings, texts, console.width)
        if table is not None:
            console.print(table)
        else:
            _show_stacked(console, column_headings, texts)
    return count


def _fit_table(headings: Sequence[Heading], rows: Sequence[Sequence[str]], max_cells: int) -> Table | None:
    """Returns rows as a table; None: its lines would have more than `max_cells`."""
    names = [heading.text for heading in headings]
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
    longest_word = max(cell_len(word) for row in (names, *rows) for word in row[-1].split() or ("",))
    if sum(widths[:-1]) + longest_word + _GAP_CELLS * (len(widths) - 1) > max_cells:
        return None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading, width in zip(headings, (*widths[:-1], None), strict=True):
        table.add_column(heading.text, justify="right" if heading.is_number else "left", min_width=width)
    for row in rows:
        table.add_row(*(Text(text, _STYLES.get(text, "")) for text in row))
    return table


def _show_stacked(console: Console, headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    """Prints one field a line, with an empty line between two rows."""
    width = max(len(heading.text) for heading in headings) + 2
    for number, row in enumerate(rows):
        if number:
            console.print()
        for heading, text in zip(headings, row, strict=True):
            if text:
                line = Text.assemble((heading.text.ljust(width), "bold"), (text, _STYLES.get(text, "")))
                console.print(line, soft_wrap=True)


def show_text(text: str) -> None:
    """Prints a text in which lines without an indent are headings."""
    console = Console(highlight=False)
    for line in text.split("\n"):
        words = line.lstrip(" ")
        indent = min(len(line) - len(words), console.width // 2)
        styled_text = Text(words, "" if indent else "bold")
        styled_text.highlight_regex(_TIME_PATTERN, "dim")
        parts = styled_text.wrap(console, max(console.width - indent - 2, 1))
        for number, part in enumerate(parts):
            console.print(Text(" " * (indent + 2 * (number > 0))) + part, soft_wrap=True)


def show_coloured_json(text: str) -> None:
    """Prints JSON in colours, with its lines unbroken."""
    Console().print(JSON(text), soft_wrap=True)


def make_bar(description: str, total: int | None, *, is_counted: bool, is_bytes: bool) -> Progress:
    """Makes a progress bar on stderr, which vanishes at its end. Lines that are printed meanwhile appear above it.

    total: the number of bytes or things in all; None: not known.
    is_counted: True: the bar shows how much is done.
    is_bytes: True: the numbers are of bytes; False: of things.
    """
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn(description, markup=False)]
    if total is not None:
        columns.append(BarColumn(bar_width=30))
    if is_counted and is_bytes:
        columns.append(FileSizeColumn() if total is None else DownloadColumn())
    elif is_counted:
        total_text = "" if total is None else " of {task.total:,}"
        columns.append(TextColumn(f"{{task.completed:,}}{total_text}"))
    columns.append(TimeElapsedColumn() if total is None else TimeRemainingColumn())
    # Printed lines are only moved above the bar if they go to the terminal, not to a file or another program.
    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    )
