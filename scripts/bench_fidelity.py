"""The fidelity matrix: what of a request and a reply survives the way, asked over sockets, `scripts/bench fidelity`.

The checks lie in tests/gateway/matrix.py, where the tests use them too. Each cell is what was found just now, with
OpenAI's SDK as the client and a strict upstream at the other end; a wrong one is marked, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

from tests.gateway.matrix import CHECKS, WAYS, Cell, open_way  # noqa: E402


def measure(name: str) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as folder, open_way(name, Path(folder)) as way:
        for check, look in CHECKS.items():
            way.upstream.forget_replies()
            try:
                found[check] = look(way)
            except Exception as error:
                found[check] = Cell(type(error).__name__, False)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=list(WAYS), action="append", help="only this one")
    ways = parser.parse_args().way or list(WAYS)
    table = {name: measure(name) for name in ways}
    width = max(map(len, CHECKS))
    columns = [max(len(name), *(len(cell.text) + 2 for cell in table[name].values())) for name in ways]
    print(" " * width, *(name.ljust(wide) for name, wide in zip(ways, columns, strict=True)), sep="  ")
    wrong = 0
    for check in CHECKS:
        cells = [table[name][check] for name in ways]
        wrong += sum(not cell.is_right for cell in cells)
        texts = [cell.text + ("" if cell.is_right else " !") for cell in cells]
        print(
            check.ljust(width),
            *(text.ljust(wide) for text, wide in zip(texts, columns, strict=True)),
            sep="  ",
        )
    print(f"\n{len(ways) * len(CHECKS) - wrong} of {len(ways) * len(CHECKS)} cells right.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
