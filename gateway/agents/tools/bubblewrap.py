"""The command that sets up a sandbox for an interpreter, with bubblewrap."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path

from gateway.agents.tools.syscall_filter import make_filter

# The user of the processes in the sandbox.
NOBODY = 65534
# The most bytes of files in /tmp.
TMP_BYTES = 64 * 1024 * 1024
# The seconds in which the interpreter has to print the folders of its files. Not measured: it prints two lines.
_INTERPRETER_S = 10.0
# The kernel does not count root's processes, so limits would not hold for code that root has started, even though the
# sandbox gives it another user.
_AS_NOBODY = f"""
import os, sys
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
os.execv(sys.argv[1], sys.argv[1:])
"""
# Makes the sandbox the first process that the kernel kills when memory runs out. Since /proc is read-only, the code
# cannot undo this. PWD is unset, since it has the gateway's directory.
_FIRST_VICTIM_SCRIPT = '{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; unset PWD; exec "$@"'


async def find_prefixes(python: str) -> Sequence[str]:
    """Returns the folders of an interpreter's files. Raises: OSError, TimeoutError, ValueError."""
    process = await asyncio.create_subprocess_exec(
        *(python, "-I", "-S", "-c", "import sys; print(sys.prefix); print(sys.base_prefix)"),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        env={},
    )
    try:
        async with asyncio.timeout(_INTERPRETER_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        raise ValueError(f"exit status {process.returncode}")
    return sorted({prefix for prefix in os.fsdecode(out).splitlines() if prefix})


def build_command(bwrap: str, python: str, prefixes: Sequence[str]) -> Sequence[str]:
    """Returns the command that sets up the sandbox for `python`. The caller adds the filter and the program.

    bwrap: the path of bubblewrap.
    python: the path of the interpreter.
    prefixes: the folders of the interpreter's files.
    """
    options = [
        *(bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--clearenv", "--cap-drop", "ALL", "--hostname", "tool"),
        *("--uid", str(NOBODY), "--gid", str(NOBODY)),
        *("--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
    ]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        # On most systems these folders are links into /usr.
        if os.path.islink(name):
            options += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            options += ["--ro-bind", name, name]
    for prefix in prefixes:
        if not Path(prefix).is_relative_to("/usr"):
            options += ["--ro-bind", prefix, prefix]
    options += ["--proc", "/proc", "--dev", "/dev", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
    # A mapping of the real /dev/zero is shared memory, which no limit of a process counts. /dev/full reads as zeros,
    # too.
    options += ["--dev-bind", "/dev/full", "/dev/zero"]
    # A file in /dev or / would lie in memory without a bound.
    options += ["--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp"]
    variables = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
    for name, value in variables.items():
        options += ["--setenv", name, value]
    drop_root = [python, "-I", "-S", "-c", _AS_NOBODY] if os.geteuid() == 0 else []
    return ["/bin/sh", "-c", _FIRST_VICTIM_SCRIPT, "sh", *drop_root, *options]


def open_filter() -> int:
    """Returns the reading end of a pipe that holds the filter of system calls."""
    program = make_filter()
    assert program is not None  # without a filter no sandbox is started
    receive, send = os.pipe()
    with os.fdopen(send, "wb") as out:
        out.write(program)
    return receive
