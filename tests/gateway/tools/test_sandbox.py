"""Code of a tool does its work in a sandbox, and does not get out of it."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import orjson
import pytest

from gateway import event_loop
from gateway.agents.tools import sandbox as module
from gateway.agents.tools import syscall_filter
from gateway.agents.tools.sandbox import OUTPUT_BYTES, Sandbox
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from storage.records import Block
from tests.gateway.tools.sandboxes import PYTHON, needs_bwrap
from tests.patience import PATIENCE_S, comes

HUMAN = Block(1, "human", "", "Ann", 10)


def call(**arguments: Any) -> ForeignCall:
    return ForeignCall("tool", arguments, "c", "agent-1", "run-1", "k", "helper", [HUMAN])


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    sandbox = Sandbox(PYTHON, 20.0)
    assert asyncio.run(sandbox.explain_refusal()) is None
    return sandbox


# -- what works

WORKS = [
    ("def tool(x): return x * 2", {"x": "ab"}, "abab"),
    (
        "def tool(x): return {'a': [x, None, True], 'ü': 'ß'}",
        {"x": 1.5},
        '{"a": [1.5, null, true], "ü": "ß"}',
    ),
    ("def tool(): pass", {}, "null"),
    ("def tool(): return {(1, 2): 'a'}", {}, "{(1, 2): 'a'}"),
    ("def tool():\n    a = [1]\n    a.append(a)\n    return a", {}, "[1, [...]]"),
    ("def tool(x): return x + 1", {"x": 2**80}, str(2**80 + 1)),
    # What it prints is nobody's business, and its result is.
    ("import sys\ndef tool():\n    sys.stdout.close()\n    return 1", {}, "1"),
    ("import os\ndef tool():\n    os.close(1)\n    print(2)\n    return 1", {}, "1"),
    ("import sys\ndef tool():\n    sys.stdout = sys.stderr = None\n    return 1", {}, "1"),
    # Where the machine has no memory left, it goes first.
    ("def tool(): return open('/proc/self/oom_score_adj').read().strip()", {}, "1000"),
    ("async def tool(x: int, y: int = 2): return x + y", {"x": 1}, "3"),
    ("import asyncio\nasync def tool(): return await asyncio.to_thread(str, 4)", {}, "4"),
    ("def helper(x): return x + 1\ndef tool(x): return helper(x)\nX = 1", {"x": 1}, "2"),
    (
        "import json, re, datetime, dataclasses, decimal\n@dataclasses.dataclass\nclass A:\n    x: int\n"
        "def tool(): return [A(1).x, decimal.Decimal('1.5'), datetime.date(2020, 1, 2)]",
        {},
        '[1, "1.5", "2020-01-02"]',
    ),
    (
        "def tool(agent_state): return agent_state.name + agent_state.memory.get_block('human').value",
        {},
        "helperAnn",
    ),
    # As on Letta's server, all of `typing` is there, and what its sandbox itself imports.
    ("def tool(x: Optional[List[str]] = None) -> Dict: return {'a': x}", {"x": ["b"]}, '{"a": ["b"]}'),
    ("def tool(x: str): return base64.b64encode(x.encode()).decode()", {"x": "a"}, "YQ=="),
    # A class that says what an object has may be missing; the object has its fields as attributes and as keys.
    *(
        (
            f"def tool(self, x: {annotation}) -> Missing: return [x.item.name, x['item']['name'], x.items[0].a, x]",
            {"x": {"item": {"name": "bolt"}, "items": [{"a": 1}]}},
            '["bolt", "bolt", 1, {"item": {"name": "bolt"}, "items": [{"a": 1}]}]',
        )
        for annotation in ("Missing", "'Missing'", "Optional[Missing]", "missing.Missing")
    ),
    ("def tool(x: list[Missing] = ()): return [each.a for each in x]", {"x": [{"a": 1}]}, "[1]"),
    ("def tool(x: list[Missing] = ()): return len(x)", {}, "0"),
    (
        "def tool(x: dict): return [type(x).__name__, list(x.items())]",
        {"x": {"items": 1}},
        '["dict", [["items", 1]]]',
    ),
    ("def tool():\n    open('a', 'w').write('x')\n    return open('/tmp/a').read()", {}, "x"),
    (
        "import threading\ndef tool():\n    threading.Thread(target=threading.Event().wait).start()\n    return 1",
        {},
        "1",
    ),
    ("import subprocess\ndef tool(): return subprocess.check_output(['echo', 'x'], text=True)", {}, "x\n"),
    ("import sys\ndef tool(): return sys.stdin.read()", {}, ""),
    ("def tool(): return open('/dev/zero', 'rb').read(2) == bytes(2)", {}, "true"),
    (
        "import mmap\ndef tool():\n    with open('a', 'w+b') as f:\n        f.write(b'x')\n        f.flush()\n"
        "        return mmap.mmap(f.fileno(), 0)[:].decode()",
        {},
        "x",
    ),
    ("import mmap\ndef tool(): return len(mmap.mmap(-1, 9, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))", {}, "9"),
]


@needs_bwrap
@pytest.mark.parametrize(("source", "arguments", "result"), WORKS, ids=range(len(WORKS)))
async def test_python_code_runs_in_the_sandbox(
    sandbox: Sandbox, source: str, arguments: dict[str, Any], result: str
) -> None:
    assert await sandbox.run(source, call(**arguments)) == ToolAnswer(result)


FAILS = [
    ("def tool():\n    print('out')\n    raise ValueError('no')", "Error: ValueError: no (line 3)", "out\n"),
    ("def tool(x): pass", "Error: TypeError: tool() missing 1 required positional argument: 'x'", ""),
    ("1 / 0\ndef tool(): pass", "Error: ZeroDivisionError: division by zero (line 1)", ""),
    ("import numpy\ndef tool(): pass", "Error: ModuleNotFoundError: No module named 'numpy' (line 1)", ""),
    ("import sys\ndef tool(): sys.exit('bye')", "Error: SystemExit: bye (line 2)", ""),
    ("import os\ndef tool(): os._exit(7)", "Error: tool ended without a result (exit status 7).", ""),
    (
        "import os\ndef tool(): os.kill(os.getpid(), 9)",
        "Error: tool ended without a result (exit status 137).",
        "",
    ),
    *(
        # Where the program within writes its answer, other code may write one that is none.
        (
            f"import os, sys\ndef tool(): os.write(int(sys.argv[1]), {answer}); os._exit(0)",
            "Error: tool ended without a result (exit status 0).",
            "",
        )
        for answer in (
            "b'{\"error\":' + b'[' * 1000 + b']' * 1000 + b'}'",
            "b'{\"result\":' + b'[' * 1000 + b']' * 1000 + b'}'",
            """b'{"result":"x","blocks":{"human":["Bob"]}}'""",
            "b'[1]'",
        )
    ),
    ("def tool(): raise ValueError('a' + chr(0xD800))", "Error: ValueError: a? (line 1)", ""),
    # Words of its own that fail.
    (
        "class Odd(Exception):\n    def __str__(self): return 1 / 0\ndef tool(): raise Odd",
        "Error: Odd: <exception str() failed> (line 3)",
        "",
    ),
    ("x = (lambda: tool)()", "Error: IndexError: list index out of range", ""),
]


@needs_bwrap
@pytest.mark.parametrize(("source", "says", "printed"), FAILS, ids=range(len(FAILS)))
async def test_failures_of_the_code_are_reported(
    sandbox: Sandbox, source: str, says: str, printed: str
) -> None:
    answer = await sandbox.run(source, call())
    assert (answer.content, answer.status, answer.stdout) == (says, "error", printed)


# -- what does not

# The body of a tool that tries to get out. It returns what it got, or raises.
LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
ESCAPES = {
    "tcp": "import socket; return socket.create_connection(('127.0.0.1', PORT), 2)",
    "udp": "import socket; return socket.socket(2, 2).sendto(b'x', ('192.0.2.1', 9))",
    "tcp6": "import socket; return socket.create_connection(('::1', PORT), 2)",
    "an abstract socket": "import socket; s = socket.socket(1); s.connect('\\0' + NAME); return s",
    "names": "import socket; return socket.getaddrinfo('localhost.example.org', 80)",
    "a file of ours": "return open(SECRET).read()",
    "a file through /proc": "return open('/proc/1/root' + SECRET).read()",
    "a file through a symlink": "import os; os.symlink(SECRET, 'link'); return open('link').read()",
    "a folder through a symlink": "import os; os.symlink('/proc/1/root', 'link'); return open('link' + SECRET).read()",
    "a hard link": "import os; os.link('/usr/bin/env', 'link'); return 1",
    "users": "return open('/etc/passwd').read()",
    "the root": "return open('/x', 'w')",
    "programs": "return open('/usr/bin/x', 'w')",
    "shared memory": "return open('/dev/shm/x', 'w')",
    "devices": "return open('/dev/x', 'w')",
    "disks": "import glob; return glob.glob('/dev/[hsv]d*')[0]",
    "the kernel": "return open('/proc/sys/kernel/core_pattern', 'w').write('x')",
    "the kernel's keys": "return open('/proc/sysrq-trigger', 'w').write('h')",
    "the system": "import os; return os.listdir('/sys')",
    "other processes": "import glob; return [p for p in glob.glob('/proc/[0-9]*') if int(p[6:]) > 9][0]",
    "killing": "import os; return os.kill(OUTSIDE, 0)",
    "tracing": LIBC + "assert libc.ptrace(16, OUTSIDE, 0, 0) == 0",
    "keys": LIBC + "import os; call = {'x86_64': 250, 'aarch64': 219}[os.uname().machine]\n"
    "assert libc.syscall(call, 0, -3, 0) > 0",  # KEYCTL_GET_KEYRING_ID of the session
    "sockets of machines": "import socket; return socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK
    "sockets of the kernel": "import socket; return socket.socket(38, socket.SOCK_SEQPACKET)",  # AF_ALG
    "pairs of sockets": "import socket; return socket.socketpair(socket.AF_TIPC)",
    "room in sockets": "import socket; return socket.socketpair()[0].setsockopt(1, 7, 1 << 20)",  # SO_SNDBUF
    # What is sent to a socket with an address waits there, after its sender has gone.
    "a socket that listens": "import socket; s = socket.socket(1); s.bind('\\0x'); s.listen(4096); return s",
    "letters": "import socket; s = socket.socket(1, socket.SOCK_DGRAM); s.bind('\\0x'); return s",
    "an address of a pair": "import socket; s, _ = socket.socketpair(1, socket.SOCK_DGRAM); s.bind('\\0x'); return s",
    "an address unasked": "import socket; return socket.socketpair()[0].setsockopt(1, socket.SO_PASSCRED, 1)",
    "leaving a pair": "import socket; return socket.socketpair()[0].connect('\\0x')",
    "a file without a name": "import os; return os.memfd_create('x')",
    "a segment": LIBC + "assert libc.shmget(0, 1 << 20, 0o1600) >= 0",
    "a queue": LIBC + "assert libc.msgget(0, 0o1600) >= 0",
    "pages of a pipe": LIBC + "import os; r, w = os.pipe(); part = (ctypes.c_size_t * 2)(ctypes.addressof("
    "ctypes.create_string_buffer(4096)), 4096)\nassert libc.vmsplice(w, part, 1, 0) > 0",
    # All of it would stay while a page is mapped, and a file's names and marks while the file is there.
    "memory without a file": "import mmap; return mmap.mmap(-1, 1 << 20)",
    "memory of a device": "import mmap, os; return mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20)",
    "marks of a file": "import os; open('x', 'w').close(); os.setxattr('x', 'user.x', b'x')",
    "a personality": LIBC + "assert libc.personality(0xFFFFFFFF) >= 0",
    "tracing itself": LIBC + "import os\nassert libc.ptrace(0, 0, 0, 0) == 0",
    "mounting": LIBC + "assert libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
    "mounting anew": LIBC + "assert libc.mount(None, b'/usr', None, 4128, None) == 0",
    "a namespace": LIBC + "assert libc.unshare(0x10000000) == 0",
    "another user": "import os; os.setuid(0)",
    "living longer": "return open('/proc/self/oom_score_adj', 'w').write('0')",
    "rights": "return int([x for x in open('/proc/self/status') if x.startswith('CapEff')][0].split()[1], 16) or 1 / 0",
    "higher limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "descriptors": "import os; return [n for n in os.listdir('/proc/self/fd') if int(n) > 2][2]",
    "the gateway's priority": "import os; os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 1))",
    "variables": "import os; return os.environ['MARKER']",
    "where we are": "return [x for x in open('/proc/1/environ').read().split('\\0') if x.startswith('PWD=')][0]",
    "memory": "return len(bytearray(1 << 29))",
    "memory, piece by piece": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "a large file": "f = open('x', 'wb')\nfor _ in range(100): f.write(bytes(1 << 20)); f.flush()",
    "many files": "for n in range(9):\n    with open(str(n), 'wb') as f: f.write(bytes(20 << 20))",
    "many descriptors": "x = []\nwhile True: x.append(open('/dev/null'))",
    "many threads": "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    "many processes": "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)",
}


def open_to_other_accounts(folder: Path) -> None:
    """Lets the account under which sandboxed code runs reach a folder of the tests."""
    temporary = Path(tempfile.gettempdir())
    for each in (folder, *folder.parents):
        if each == temporary:
            return
        each.chmod(0o755)


@pytest.fixture
async def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """What an escape would reach."""
    monkeypatch.setenv("MARKER", "secret")
    open_to_other_accounts(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = f"mnemogate-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening, socket.create_server(("127.0.0.1", 0)) as server:
        listening.bind("\0" + name)
        listening.listen()
        yield {"PORT": server.getsockname()[1], "NAME": name, "SECRET": str(secret), "OUTSIDE": os.getpid()}


@needs_bwrap
@pytest.mark.parametrize("way", ESCAPES)
async def test_no_way_leads_out_of_the_sandbox(sandbox: Sandbox, outside: dict[str, Any], way: str) -> None:
    names = "".join(f"{name} = {value!r}\n" for name, value in outside.items())
    source = f"{names}def tool():\n{indent(ESCAPES[way], '    ')}\n    return 'out'"
    answer = await sandbox.run(source, call())
    assert answer.status == "error", answer.content
    assert "SyntaxError" not in answer.content
    assert "NameError" not in answer.content
    # It is the wall that stops it, and not our patience.
    assert "took longer" not in answer.content


@needs_bwrap
@pytest.mark.parametrize(
    "body",
    [
        "while True: print('x' * 1000)",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        f"return 'x' * {OUTPUT_BYTES}",
        "import os, stat\nfor fd in range(3, 64):\n    while stat.S_ISFIFO(os.fstat(fd).st_mode) if os.path.exists("
        "f'/proc/self/fd/{fd}') else False: os.write(fd, b'x' * 1000)",
    ],
)
async def test_the_output_of_the_code_is_bounded(sandbox: Sandbox, body: str) -> None:
    answer = await sandbox.run(f"def tool():\n{indent(body, '    ')}", call())
    assert (answer.content, answer.status) == (
        f"Error: tool printed more than {OUTPUT_BYTES:,} bytes.",
        "error",
    )
    assert len(answer.stdout) + len(answer.stderr) <= 20_000


LEAVES_BEHIND = dedent(
    """
    import os, signal, sys, time

    def tool(marker, wait):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", marker])
        time.sleep(wait)
        return "done"
    """
)


def _list_running(marker: str) -> list[int]:
    """Returns the ids of the processes that have a marker as an argument."""
    pids = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in each.read_bytes().split(b"\0"):
                pids.append(int(each.parent.name))
        except OSError:
            continue
    return pids


async def _wait_until_running(marker: str) -> None:
    await comes(lambda: _list_running(marker))


async def _wait_until_ended(marker: str) -> None:
    await comes(lambda: not _list_running(marker))


HELD = """
import os

def tool():
    held = []
    for number in range(3, 256):
        try:
            held.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return [each.partition(":")[0] for each in held]
"""


@needs_bwrap
@pytest.mark.parametrize("run", [asyncio.run, event_loop.run])
def test_the_code_gets_no_file_that_was_left_open(run: Callable[..., ToolAnswer], tmp_path: Path) -> None:
    """A descriptor of a folder is a way to all that lies below it, whatever walls stand around."""
    left = [os.open(tmp_path / "secret", os.O_CREAT, 0o600), os.open("/", os.O_RDONLY)]
    left += os.pipe()

    async def main() -> ToolAnswer:
        return await Sandbox(PYTHON, 20.0).run(HELD, call())

    try:
        for each in left:
            os.set_inheritable(each, True)
        # The pipe is the one that its result goes through.
        assert run(main()) == ToolAnswer('["pipe"]')
    finally:
        for each in left:
            os.close(each)


@needs_bwrap
async def test_nothing_is_left_behind(sandbox: Sandbox) -> None:
    marker = f"left-{os.getpid()}"
    assert await sandbox.run(LEAVES_BEHIND, call(marker=marker, wait=0.3)) == ToolAnswer("done")
    await _wait_until_ended(marker)
    # Neither by one that is given up.
    given_up = asyncio.create_task(sandbox.run(LEAVES_BEHIND, call(marker=marker, wait=600)))
    await _wait_until_running(marker)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await _wait_until_ended(marker)


@needs_bwrap
def test_a_call_that_is_given_up_at_any_moment_closes_its_own_files() -> None:
    """On the loop of a gateway. asyncio's own may wait forever for a process that is given up while it starts."""

    def count_open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        sandbox = Sandbox(PYTHON, 20.0)
        assert await sandbox.explain_refusal() is None
        source = "def tool():\n    return 'done'"
        assert await sandbox.run(source, call()) == ToolAnswer("done")
        before = count_open_files()
        for steps in range(24):
            given_up = asyncio.create_task(sandbox.run(source, call()))
            for _ in range(steps):
                await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
        await comes(lambda: count_open_files() <= before)

    event_loop.run(main())


# A gateway with a call whose walls are not set up before somebody writes to a pipe. argv: the interpreter, pipe, marker
SLOW_WALLS = """
import asyncio, sys
from gateway.agents.tools.sandbox import Sandbox
from gateway.run.tools.toolbox import ForeignCall

async def main(python, pipe, marker):
    sandbox = Sandbox(python, 600.0)
    assert await sandbox.explain_refusal() is None
    wait = ["/bin/sh", "-c", f'read _ <{pipe}; exec "$@"', "sh"]
    sandbox._command = [*wait, *sandbox._command, "--setenv", "MARKER", marker]
    source = "def tool():\\n    import time; time.sleep(600)"
    await sandbox.run(source, ForeignCall("tool", {}, "c", "agent-1", "run-1", "k"))

asyncio.run(main(*sys.argv[1:]))
"""


@needs_bwrap
async def test_nothing_begins_where_the_gateway_was_killed_meanwhile(tmp_path: Path) -> None:
    marker, pipe = f"killed-{os.getpid()}", tmp_path / "pipe"
    os.mkfifo(pipe)
    arguments = ("-c", SLOW_WALLS, str(PYTHON), str(pipe), marker)
    gateway = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    # It is opened once the call waits for it.
    with await asyncio.to_thread(pipe.open, "w") as waits:
        gateway.kill()
        await gateway.wait()
        waits.write("\n")
    await _wait_until_ended(marker)


@needs_bwrap
async def test_the_time_of_the_code_is_bounded() -> None:
    sandbox, marker = Sandbox(PYTHON, 1.0), f"slow-{os.getpid()}"
    answer = await sandbox.run(LEAVES_BEHIND, call(marker=marker, wait=600))
    assert answer.content == "Error: tool took longer than 1 s."
    await _wait_until_ended(marker)


@needs_bwrap
@pytest.mark.parametrize(
    ("wall", "instead", "passed"),
    [
        ("--unshare-all", ["--unshare-uts", "--unshare-pid"], "sockets"),
        ("--new-session", ["--bind", "/tmp", "/tmp"], "reading"),
        ("--chdir", ["--tmpfs", "/dev/shm", "--chdir"], "writing"),
    ],
)
async def test_a_sandbox_with_a_hole_is_not_used(
    monkeypatch: pytest.MonkeyPatch, wall: str, instead: list[str], passed: str
) -> None:
    whole = module.build_command
    monkeypatch.setattr("tempfile.tempdir", "/tmp")  # where the probe's file lies, and a hole is made

    def with_a_hole(*args: Any) -> list[str]:
        parts = [part for each in whole(*args) for part in (instead if each == wall else [each])]
        tmp = parts.index("--tmpfs")
        # What is laid over the hole goes as well.
        if passed == "reading":
            del parts[tmp - 2 : tmp + 2]
        return parts

    monkeypatch.setattr(module, "build_command", with_a_hole)
    refusal = await Sandbox(PYTHON, 20.0).explain_refusal()
    assert refusal is not None
    assert "a probe got out of it: " in refusal
    assert f'"{passed}"' in refusal


@needs_bwrap
async def test_an_interpreter_that_is_not_there() -> None:
    refusal = await Sandbox("/nowhere/python", 5.0).explain_refusal()
    assert refusal is not None
    assert "/nowhere/python cannot be used" in refusal


@needs_bwrap
async def test_where_no_descriptor_is_left_a_call_is_an_error_and_keeps_none(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "open_filter", none_left)
    before = len(os.listdir("/proc/self/fd"))
    answer = await sandbox.run("def tool(): return 1", call())
    assert answer.content == "Error: tool could not be started (Too many open files)."
    assert len(os.listdir("/proc/self/fd")) <= before  # files of an earlier test may be closed meanwhile


async def test_without_bubblewrap_there_are_no_such_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox = Sandbox(None, 5.0)
    refusal = await sandbox.explain_refusal()
    assert refusal is not None
    assert "install the package `bubblewrap`" in refusal
    answer = await sandbox.run("def tool(): return 1", call())
    assert answer == ToolAnswer(f"Error: tool cannot be run. {refusal}", "error")


@pytest.mark.parametrize("run", [asyncio.run, event_loop.run], ids=["asyncio", "gateway"])
def test_a_bwrap_that_may_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[[Coroutine[Any, Any, str | None]], str]
) -> None:
    """As in a container, where user namespaces are not allowed."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    open_to_other_accounts(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal = run(Sandbox(PYTHON or sys.executable, 5.0).explain_refusal())
    assert refusal is not None
    assert "cannot be used on the gateway's machine" in refusal
    assert "No permissions to create a new namespace" in refusal


async def test_a_probe_that_is_given_up_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when the client leaves whose send makes the first call."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\nexit 1\n")
    bwrap.chmod(0o755)
    open_to_other_accounts(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox = Sandbox(PYTHON or sys.executable, 5.0)
    begun, perform = asyncio.Event(), sandbox._perform

    async def note_begin(*args: Any) -> Any:
        begun.set()
        return await perform(*args)

    monkeypatch.setattr(sandbox, "_perform", note_begin)
    given_up = asyncio.create_task(sandbox.explain_refusal())
    await begun.wait()
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    refusal = await sandbox.explain_refusal()
    assert refusal is not None
    assert "cannot be used on the gateway's machine" in refusal


@needs_bwrap
async def test_missing_programs_are_searched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a machine was too busy for the first probe, or bubblewrap is installed while the gateway runs."""
    monkeypatch.setattr(module, "_PROBE_AGAIN_S", 0.0)
    sandbox = Sandbox(PYTHON or sys.executable, 5.0)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        assert "needs bubblewrap" in str(await sandbox.explain_refusal())
    assert await sandbox.explain_refusal() is None
    assert (await sandbox.run("def tool(x): return x + 1", call(x=1))).content == "2"


def test_the_sandboxed_program_needs_no_module_of_the_gateway() -> None:
    text = Path(module.sandbox_program.__file__).read_text()
    assert "gateway" not in text
    work = {"source": "def tool(x): return [x]", "arguments": {"x": 1}, "agent": {}}
    receive, send = os.pipe()
    subprocess.run(
        [sys.executable, "-I", "-c", text, str(send), "{}"],
        input=orjson.dumps(work),
        pass_fds=(send,),
        check=True,
    )
    os.close(send)
    assert os.read(receive, 100) == module.sandbox_program.READY + b'{"result": "[1]"}'
    os.close(receive)


# Each call with arguments that the kernel would answer with another error, or with success.
CALLS = """
import ctypes, errno

def tool(numbers):
    libc = ctypes.CDLL(None, use_errno=True)
    taken = []
    for name, number in numbers.items():
        ctypes.set_errno(0)
        if libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS:
            taken.append(name)
    return taken
"""


@needs_bwrap
async def test_calls_that_reach_around_the_walls_are_refused(sandbox: Sandbox) -> None:
    column = syscall_filter._ARCHITECTURES[platform.machine()].column
    numbers = {
        name: each[column]
        for name, each in syscall_filter.REFUSED_SYSCALLS.items()
        if each[column] is not None
    }
    assert await sandbox.run(CALLS, call(numbers=numbers)) == ToolAnswer("[]")
    # Neither is one that nobody has heard of, nor that of another table.
    others = {"new": syscall_filter._NEWEST_SYSCALL + 1, "x32": 0x40000000 + 39}
    assert await sandbox.run(CALLS, call(numbers=others)) == ToolAnswer("[]")


def test_a_machine_whose_calls_are_not_known_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert syscall_filter.make_filter() is None


# Each takes little by what is counted for one process, and much by what is there.
LARGE = {
    "many processes": """
        for n in range(8):
            if os.fork() == 0:
                kept = bytearray(150 << 20)
                time.sleep(600)
        time.sleep(600)
    """,
    "a page here and a page there": """
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
        for n in range(1, 50_000):
            page = libc.mmap(n << 30, 4096, 3, 0x100022, 2**64 - 1, 0)
            ctypes.memset(page, 1, 1)
        time.sleep(600)
    """,
    "many empty files": """
        for n in range(500_000):
            os.close(os.open(str(n), os.O_CREAT))
        time.sleep(600)
    """,
    "files and memory": """
        with open("x", "wb") as file:
            file.write(bytes(60 << 20))
        for n in range(2):
            if os.fork() == 0:
                kept = bytearray(180 << 20)
                time.sleep(600)
        time.sleep(600)
    """,
}


@needs_bwrap
@pytest.mark.parametrize("way", LARGE)
async def test_all_of_a_call_takes_no_more_memory_than_it_may(way: str) -> None:
    source = f"import ctypes, os, time\ndef tool():\n{indent(dedent(LARGE[way]), '    ')}"
    answer = await Sandbox(PYTHON, PATIENCE_S).run(source, call())
    assert answer.content == "Error: tool took more than 384 MB of memory in all."


@needs_bwrap
async def test_a_call_that_stays_small_is_not_ended(sandbox: Sandbox) -> None:
    """What processes share of the interpreter is not counted for each of them."""
    source = """
        import os, time

        def tool():
            children = []
            for n in range(10):
                child = os.fork()
                if child == 0:
                    time.sleep(0.2)
                    os._exit(0)
                children.append(child)
            return sum(os.waitpid(each, 0)[1] for each in children)
    """
    assert await sandbox.run(dedent(source), call()) == ToolAnswer("0")
