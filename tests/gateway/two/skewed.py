"""`mnemogate` on a machine whose clock is wrong by SKEW_S seconds; its leases are short."""

from __future__ import annotations

import os
import time

_right, _skew = time.time, float(os.environ["SKEW_S"])
time.time = lambda: _right() + _skew

if __name__ == "__main__":
    from tests.gateway.patient import run

    raise SystemExit(run())
