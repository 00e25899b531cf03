"""`mnemogate` on a machine whose clock is wrong by SKEW_S seconds; its leases are short."""

from __future__ import annotations

import os
import sys
import time

_right, _skew = time.time, float(os.environ["SKEW_S"])
time.time = lambda: _right() + _skew

if __name__ == "__main__":
    from gateway.cli import main
    from gateway.limits import Limits
    from tests.gateway.two import hurried

    assert hurried.LEASE_S
    raise SystemExit(main(sys.argv[1:], Limits(models_refresh_s=0.0, commit_wait_s=20.0)))
