"""`mnemogate` whose commands show their progress at once, and each report of it."""

from __future__ import annotations

from gateway.__main__ import main
from gateway.run.admin.command_line import progress

if __name__ == "__main__":
    progress._SHOWN_AFTER_S = 0
    raise SystemExit(main())
