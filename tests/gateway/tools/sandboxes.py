"""What tests of tools in a sandbox need of the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def _find_obstacle() -> str | None:
    """Returns why no sandbox can be made here; None: it can be made."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    process = subprocess.run(["bwrap", "--unshare-user", "--ro-bind", "/", "/", "true"], capture_output=True)
    return None if process.returncode == 0 else "user namespaces are not allowed here"


_OBSTACLE = _find_obstacle()
needs_bwrap = pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))
# The Python of the sandbox. One in a home could not be read: the sandbox has no user with that home.
PYTHON = next((each for each in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(each).exists()), None)
