"""The fidelity matrix: checks over sockets that all of a request and a reply arrives, `scripts/bench fidelity`.

The checks lie in tests/gateway/fidelity/matrix.py, where the tests use them too. Each cell is the result of a check
with OpenAI's SDK as the client and a strict upstream at the other end. A wrong cell is marked, and the exit code is 1.
The second table has the time from a client's close to the end of file that the upstream sees.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.gateway.fidelity.matrix import CHECKS, WAYS, WINDOWS, Cell, cancel_times, open_way

CANCELS = 20  # in each window
Times = dict[str, list[float]]


def measure(way_name: str) -> tuple[dict[str, Cell], Times]:
    cells: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as folder, open_way(way_name, Path(folder)) as way:
        for name, check in CHECKS.items():
            way.upstream.forget_replies()
            try:
                cells[name] = check(way)
            except Exception as error:
                cells[name] = Cell(type(error).__name__, False)
        way.upstream.forget_replies()
        return cells, cancel_times(way, CANCELS)


def in_ms(times: list[float]) -> str:
    return f"{1000 * statistics.median(times):.1f} ({1000 * max(times):.1f})" if times else "-"


def main() -> int:
    """Performs the checks in all ways, and prints both tables. Returns the exit code."""
    argparse.ArgumentParser(prog="scripts/bench fidelity", description=__doc__).parse_args()
    variants = list(WAYS)
    results = [measure(name) for name in variants]
    cells = {name: [cells_of_way[name] for cells_of_way, _ in results] for name in CHECKS}
    rows = {
        name: [cell.text + ("" if cell.is_right else " !") for cell in row] for name, row in cells.items()
    }
    print_table("", variants, rows)
    right = sum(cell.is_right for row in cells.values() for cell in row)
    print(f"\n{right} of {len(variants) * len(CHECKS)} cells right.\n")
    windows = {window: [in_ms(times[window]) for _, times in results] for window in WINDOWS}
    print_table("a cancel, ms: median (longest)", variants, windows)
    return 0 if right == len(variants) * len(CHECKS) else 1


def print_table(title: str, ways: list[str], rows: dict[str, list[str]]) -> None:
    table = [[title, *ways], *([name, *texts] for name, texts in rows.items())]
    columns = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(text.ljust(wide) for text, wide in zip(line, columns, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
