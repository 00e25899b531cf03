"""The program of a child process: it answers each line of JSON on stdin with a line on stdout.

The arguments that `children.py` gives it:

    argv[1]   the paths of `sys.path`; `children._PROGRAM` sets them before it imports this module
    argv[2]   the function that makes the answers, `module:name`
    argv[3]   the limits of the process, {name: value}
"""

from __future__ import annotations

import importlib
import json
import resource
import sys

# The first line on stdout: the process is ready for questions.
READY = b"\n"


def main() -> None:
    """Sets the limits of the process, reports that it is ready, and answers each line until stdin ends."""
    module, _, name = sys.argv[2].partition(":")
    perform = getattr(importlib.import_module(module), name)
    for limit, value in json.loads(sys.argv[3]).items():
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
        except (ValueError, OSError):
            # macOS refuses some of these limits. On other systems no work begins without its limits.
            if sys.platform != "darwin":
                raise
    out = sys.stdout.buffer
    out.write(READY)
    out.flush()
    for line in sys.stdin.buffer:
        out.write(json.dumps(perform(json.loads(line))).encode() + b"\n")
        out.flush()
