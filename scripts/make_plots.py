"""Draws the pictures of docs/benchmarks.md from the tables of that page: `python scripts/make_plots.py`.

A picture has the figures of one table, so a new measurement goes into the table and this script is run again.
`tests/test_docs.py` compares the files with what this script draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PICTURES: Final = ROOT / "docs/pictures"

COLOURS: Final = ("#b9c0c8", "#6fa8c7", "#1b4f72", "#d98e32")  # distinct in grey as well
WIDTH: Final = 720
LEFT: Final = 56  # pixels of the axis's numbers
RIGHT: Final = 16
TOP: Final = 84  # title and legend
HEIGHT: Final = 220  # of the plot itself
BOTTOM: Final = 40  # names of the groups

Table = dict[str, dict[str, str]]
"""Cells by the first cell of their row, then by the head of their column."""


class Series(NamedTuple):
    name: str
    values: list[float]


def read_table(page: str, column: str) -> Table:
    """Returns the first table of the page that has this column. Raises: KeyError."""
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        if column in head:
            return {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    raise KeyError(column)


def parse_number(cell: str) -> float:
    """Returns the first number of a cell: `0.57 ms`, `88.0%`."""
    match = re.search(r"\d[\d,]*(?:\.\d+)?", cell)
    if match is None:
        raise ValueError(f"no number in {cell!r}")
    return float(match[0].replace(",", ""))


def draw_added_time(page: str) -> str:
    cells = read_table(page, "bare parts")
    rows = {
        "added to a whole reply, p50": "whole reply",
        "added to the first text of a stream, 20 at a time, p50": "first text, 20 streams",
        "the same, 200 at a time": "first text, 200 streams",
    }
    names = ("bare parts", "memory off", "memory on")
    series = [Series(name, [parse_number(cells[row][name]) for row in rows]) for name in names]
    return draw_bars("Added time, p50, milliseconds", list(rows.values()), series, step=5)


def draw_agent_steps(page: str) -> str:
    cells = read_table(page, "after")
    names = ["10 steps", "10 steps and an archive", "1,000 steps", "10,000 steps"]
    series = [
        Series(head, [parse_number(row[head]) for row in cells.values()]) for head in ("before", "after")
    ]
    return draw_bars(
        "Processor time of an agent's message, milliseconds, by its history", names, series, step=2
    )


def draw_recall(page: str) -> str:
    cells = read_table(page, "LongMemEval")
    budgets = [row for row in cells if row.endswith(" tokens") and "BM25" not in row]
    heads = ("LongMemEval", "short talk", "300 asked before")
    series = [Series(head, [parse_number(cells[row][head]) for row in budgets]) for head in heads]
    return draw_bars("Evidence found by words, per cent, by the budget of the note", budgets, series, step=25)


DRAWN: Final[dict[str, Callable[[str], str]]] = {
    "added.svg": draw_added_time,
    "agents.svg": draw_agent_steps,
    "recall.svg": draw_recall,
}


def draw_bars(title: str, groups: list[str], series: list[Series], step: float) -> str:
    """Returns an SVG of grouped bars, from zero. step: the distance of the horizontal grid lines."""
    top = step * -(-max(value for each in series for value in each.values) // step)
    group_width = (WIDTH - LEFT - RIGHT) / len(groups)
    bar_width = group_width * 0.76 / len(series)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / top)

    elements = [f'<text x="{LEFT}" y="28" font-size="16" font-weight="600">{escape(title)}</text>']
    elements += draw_legend(each.name for each in series)
    for index in range(round(top / step) + 1):
        line_y = y(index * step)
        elements.append(f'<path d="M{LEFT} {line_y:.1f}H{WIDTH - RIGHT}" stroke="#d5dae0"/>')
        elements.append(
            f'<text x="{LEFT - 8}" y="{line_y + 4:.1f}" text-anchor="end">{index * step:g}</text>'
        )
    for group_index, group in enumerate(groups):
        start = LEFT + group_width * (group_index + 0.12)
        middle = LEFT + group_width * (group_index + 0.5)
        below = f'x="{middle:.1f}" y="{TOP + HEIGHT + 24}" text-anchor="middle"'
        elements.append(f"<text {below}>{escape(group)}</text>")
        for index, each in enumerate(series):
            value = each.values[group_index]
            x = start + bar_width * index
            size = f'width="{bar_width - 3:.1f}" height="{HEIGHT * value / top:.1f}"'
            elements.append(f'<rect x="{x:.1f}" y="{y(value):.1f}" {size} fill="{COLOURS[index]}"/>')
            above = f'x="{x + bar_width / 2 - 1.5:.1f}" y="{y(value) - 5:.1f}" text-anchor="middle"'
            elements.append(f"<text {above}>{value:g}</text>")
    height = TOP + HEIGHT + BOTTOM
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    font = 'font-family="sans-serif" font-size="12" fill="#2b3440"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>\n<title>{escape(title)}</title>'
    )
    background = f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, background, *elements, "</svg>\n"])


def draw_legend(names: Iterable[str]) -> list[str]:
    elements = []
    x = LEFT
    for index, name in enumerate(names):
        elements.append(f'<rect x="{x}" y="42" width="12" height="12" rx="2" fill="{COLOURS[index]}"/>')
        elements.append(f'<text x="{x + 18}" y="52">{escape(name)}</text>')
        x += 44 + 7 * len(name)
    return elements


def main() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (PICTURES / name).write_text(draw(page), "utf-8")


if __name__ == "__main__":
    main()
