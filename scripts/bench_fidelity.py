"""The fidelity matrix: checks over sockets that all of a request and a reply arrives, `scripts/bench fidelity`.

The checks are in tests/gateway/fidelity/matrix.py, and tests perform them as well. Each cell is the result of a check
with OpenAI's SDK as the client and a strict upstream. A wrong cell is marked, and the exit code is 1.
The second table has the time from a client's close to the end of file that the upstream sees.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.gateway.fidelity.matrix import CANCEL_POINTS, CHECKS, SETUPS, CheckResult, cancel_times, open_setup

# At each point of `CANCEL_POINTS`.
CANCELS = 20
Times = dict[str, list[float]]


def measure(setup_name: str) -> tuple[dict[str, CheckResult], Times]:
    cells: dict[str, CheckResult] = {}
    with tempfile.TemporaryDirectory() as folder, open_setup(setup_name, Path(folder)) as setup:
        for name, check in CHECKS.items():
            setup.upstream.forget_replies()
            try:
                cells[name] = check(setup)
            except Exception as error:
                cells[name] = CheckResult(type(error).__name__, False)
        setup.upstream.forget_replies()
        return cells, cancel_times(setup, CANCELS)


def in_ms(times: list[float]) -> str:
    return f"{1000 * statistics.median(times):.1f} ({1000 * max(times):.1f})" if times else "-"


def main() -> int:
    """Performs the checks in all setups, and prints both tables. Returns the exit code."""
    argparse.ArgumentParser(prog="scripts/bench fidelity", description=__doc__).parse_args()
    setups = list(SETUPS)
    results = [measure(name) for name in setups]
    cells = {name: [cells_of_setup[name] for cells_of_setup, _ in results] for name in CHECKS}
    rows = {
        name: [cell.text + ("" if cell.is_right else " !") for cell in row] for name, row in cells.items()
    }
    print_table("", setups, rows)
    right = sum(cell.is_right for row in cells.values() for cell in row)
    print(f"\n{right} of {len(setups) * len(CHECKS)} cells right.\n")
    cancels = {point: [in_ms(times[point]) for _, times in results] for point in CANCEL_POINTS}
    print_table("a cancel, ms: median (longest)", setups, cancels)
    return 0 if right == len(setups) * len(CHECKS) else 1


def print_table(title: str, setups: list[str], rows: dict[str, list[str]]) -> None:
    table = [[title, *setups], *([name, *texts] for name, texts in rows.items())]
    columns = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(text.ljust(wide) for text, wide in zip(line, columns, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
