"""`mnemogate` as tests start it: no busy machine reaches its limits, and it asks no upstream for its models."""

from __future__ import annotations

import sys

from gateway.cli import main
from gateway.limits import Limits

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], Limits(models_refresh_s=0.0, commit_wait_s=20.0)))
