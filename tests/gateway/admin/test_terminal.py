"""The command line on a terminal: tables, colours, progress and questions; help and completion, which load little."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.run.admin.work.job_operations import LISTED_JOBS
from gateway.settings.load import load_settings
from storage.job_records import NO_AGENT
from tests.doubles.upstream import Gate, Reply, StrictUpstream, fail, say
from tests.gateway.admin.test_cli import Out, owner
from tests.gateway.compacting import Notes, text_of
from tests.gateway.forked import ROOT, ForkedProcess
from tests.gateway.process import make_database_variable
from tests.patience import PATIENCE_S
from tests.server import RunningGateway

AT_ONCE = "tests.gateway.admin.at_once"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3[0-8]")
ESCAPE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {**make_database_variable(tmp_path, []), "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "mnemogate.db"


class Terminal:
    """A terminal on which a command runs."""

    def __init__(self, child: ForkedProcess | subprocess.Popen[bytes], descriptor: int) -> None:
        self.child = child
        self.seen = ""
        self._descriptor = descriptor

    def read_until(self, text: str) -> None:
        while text not in self.seen:
            assert self._read(), self.seen

    def write(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def end(self) -> int:
        """Returns the exit code when all was read."""
        while self._read():
            pass
        return self.child.wait(PATIENCE_S)

    def _read(self) -> bool:
        """Reads on. Returns whether there is more to come."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode()
        return bool(data)


@contextmanager
def terminal(
    *arguments: str, columns: int = 100, stdout: int | None = None, is_new: bool = False, **variables: str
) -> Iterator[Terminal]:
    """Runs a command on a terminal.

    stdout: a descriptor that is no terminal, in its place.
    is_new: in a process of its own, and not in a copy, which may miss an interrupt just before it reads.
    """
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (40, columns))
    environ = {**os.environ, **variables}
    out = there if stdout is None else stdout
    child: ForkedProcess | subprocess.Popen[bytes]
    if is_new:
        command = [sys.executable, "-m", AT_ONCE, *arguments]
        environ["PYTHONPATH"] = str(ROOT)
        child = subprocess.Popen(command, stdin=there, stdout=out, stderr=there, env=environ)
    else:
        streams = {0: there, 1: out, 2: there}
        child = ForkedProcess(AT_ONCE, arguments, Path.cwd(), environ, Path(os.devnull), streams)
    with child:
        os.close(there)
        try:
            yield Terminal(child, here)
        finally:
            child.kill()
            os.close(here)


def shown(*arguments: str, code: int = 0, **options: Any) -> list[str]:
    """Returns the lines that a command shows on a terminal, with its colours."""
    with terminal(*arguments, **options) as screen:
        assert screen.end() == code, screen.seen
        return screen.seen.replace("\r\n", "\n").splitlines()


def plain(lines: list[str]) -> list[str]:
    return [ESCAPE.sub("", line).rstrip() for line in lines]


@pytest.fixture
def two_keys(capsys: Out) -> None:
    assert main(["keys", "create", "--project", "blue", "--name", "ann"]) == 0
    assert main(["keys", "create", "--name", "bob", "--memory", "off"]) == 0
    assert main(["keys", "revoke", "--yes", "bob"]) == 0
    capsys.readouterr()


@pytest.mark.usefixtures("two_keys")
def test_a_list_is_a_table_and_elsewhere_lines(capsys: Out) -> None:
    lines = shown("keys", "list")
    head, rule, *rows = plain(lines)
    assert head.split() == ["id", "key", "project", "name", "state", "made", "last", "used", "memory"]
    assert set(rule) == {"─"}
    assert [row.split()[2:5] for row in rows] == [["blue", "ann", "active"], ["default", "bob", "revoked"]]
    assert rows[0].index("ann") == rows[1].index("bob") == head.index("name")
    assert rows[1].endswith(" never       off")
    assert COLOUR.search("".join(lines))
    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split("\t")[2:5] for line in out.splitlines()] == [row.split()[2:5] for row in rows]


@pytest.mark.usefixtures("two_keys")
@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_colours_are_left_out_where_they_are_not_wanted(variables: dict[str, str]) -> None:
    lines = shown("keys", "list", **variables)
    assert "active" in "".join(lines)
    assert not COLOUR.search("".join(lines))
    assert not COLOUR.search("".join(shown("keys", "nonsense", code=2, **variables)))


@pytest.mark.usefixtures("two_keys")
def test_a_narrow_terminal_gets_a_field_a_line() -> None:
    lines = plain(shown("keys", "list", columns=60))
    assert [line.split()[-1] for line in lines[2:5]] == ["blue", "ann", "active"]
    assert lines[2].split()[0] == "project"
    assert "" in lines  # between two keys
    assert max(map(len, lines)) <= 60


def test_usage_is_a_table_of_what_there_is(upstream: StrictUpstream, database: Path) -> None:
    upstream.script = lambda seen: say("Hello.", usage={"prompt_tokens": 1_234_567, "completion_tokens": 5})
    with owner(upstream, database) as gateway:
        for user in ("alice", "bob"):
            body = {"model": "m", "user": user, "messages": [{"role": "user", "content": "Hi"}]}
            assert gateway.ask("POST", "/v1/chat/completions", json.dumps(body).encode()).status == 200
        head, _, *rows = plain(shown("usage", "--by", "user", columns=80))
    assert head.split() == ["user", "requests", "calls", "input", "output", "unpriced"]
    assert rows[0].split() == ["alice", "1", "1", "1234567", "5", "1234572"]


@pytest.mark.usefixtures("two_keys")
def test_json_is_the_same_on_a_terminal(capsys: Out) -> None:
    lines = shown("keys", "list", "--json")
    assert main(["keys", "list", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert [json.loads(line)["name"] for line in lines] == ["ann", "bob"]


def talk(gateway: RunningGateway, user: str, text: str) -> None:
    body = {"model": "m", "user": user, "messages": [{"role": "user", "content": text}]}
    assert gateway.post(body, {"x-mnemogate-conversation": "chat"}).status == 200
    gateway.call(gateway.app.services.idle.wait())


def test_what_is_remembered_is_wrapped_and_gives_the_terminal_no_orders(
    upstream: StrictUpstream, database: Path
) -> None:
    text = "\x1b]0;mine\x07 \u202edlog [bold]not[/bold] " + "and on it goes " * 10
    with owner(upstream, database) as gateway:
        talk(gateway, "\u202eeve", text)
        lines = shown("memory", "show", "--user", "\u202eeve", columns=60)
        users = shown("users", columns=60)
    assert max(map(len, plain(lines))) <= 60
    whole = " ".join(line.strip() for line in plain(lines))
    assert "\\x1b]0;mine\\x07 \\u202edlog [bold]not[/bold] and on it goes and on it goes" in whole
    assert "--user=\\u202eeve" in "".join(plain(users))
    for each in (*plain(lines), *plain(users)):
        assert not set("\x1b\x07\x9b\u202e") & set(each)


@pytest.mark.parametrize("is_cut", [False, True], ids=["to a terminal", "to a file"])
def test_long_work_shows_its_progress_where_its_output_is_not(
    upstream: StrictUpstream, database: Path, tmp_path: Path, capsys: Out, *, is_cut: bool
) -> None:
    with owner(upstream, database) as gateway:
        talk(gateway, "ann", "Hello")
    with (tmp_path / "out").open("w") as out:
        stdout = out.fileno() if is_cut else None
        lines = shown("memory", "export", "--user", "ann", stdout=stdout)
    exported = [line for line in lines if line.startswith("{")]
    if is_cut:
        assert "Exporting messages 2" in "".join(plain(lines))
        exported = (tmp_path / "out").read_text().splitlines()
    else:
        assert "Exporting" not in "".join(lines)
    assert [next(iter(json.loads(line))) for line in exported][:2] == ["memory", "conversation"]
    assert main(["memory", "export", "--user", "ann", "ann.jsonl"]) == 0
    assert "Importing" in "".join(shown("memory", "import", "--user", "bob", "ann.jsonl"))
    assert "Exporting" not in capsys.readouterr().err  # where there is no terminal


CONTEXT = """
[[upstreams]]
name = "up"
base_url = "{}"
context_window = 2000
[memory]
background_model = "small"
learn_every = 0
recall_tokens = 0
history = "append"
"""


@contextmanager
def compacting(
    upstream: StrictUpstream, database: Path, reply: Reply, meanwhile: Callable[[RunningGateway], object] = id
) -> Iterator[Terminal]:
    """Asks for a summary on a terminal. reply: the background model's. meanwhile: is called before that."""
    Path("mnemogate.toml").write_text(CONTEXT.format(upstream.base_url))
    notes = Notes(upstream)
    with owner(upstream, database, load_settings()) as gateway:

        def answer(_: int) -> Reply:
            meanwhile(gateway)
            return reply

        notes.reply = answer
        for n in range(6):
            talk(gateway, "ann", text_of(n, 40))
        with terminal("compact", "--user", "ann") as screen:
            yield screen
    assert notes.asked


@pytest.mark.sqlite
def test_a_compaction_is_waited_for(upstream: StrictUpstream, database: Path) -> None:
    gate = Gate()
    reply = say("Notes: they talked of this and that.", hold_after={0: gate})
    with compacting(upstream, database, reply) as screen:
        screen.read_until("Summarising")
        gate.open()
        assert screen.end() == 0
        assert "It is done.\r\n" in screen.seen


@pytest.mark.sqlite
def test_a_compaction_that_fails_is_reported(upstream: StrictUpstream, database: Path) -> None:
    with compacting(upstream, database, fail(500)) as screen:
        assert screen.end() == 1
        assert re.search(r"The job 1 is (retrying|dead): .*500", ESCAPE.sub("", screen.seen))


@pytest.mark.sqlite
def test_a_compaction_that_fails_among_many_newer_jobs_is_reported(
    upstream: StrictUpstream, database: Path
) -> None:
    def enqueue(gateway: RunningGateway) -> None:
        jobs = gateway.app.services.store.jobs
        for n in range(LISTED_JOBS):
            gateway.call(jobs.enqueue("learn", NO_AGENT, f"later {n}", due=4e9))

    with compacting(upstream, database, fail(500), enqueue) as screen:
        assert screen.end() == 1
        assert "The job 1 is " in ESCAPE.sub("", screen.seen)


@pytest.mark.sqlite
def test_a_compaction_goes_on_where_its_waiting_is_interrupted(
    upstream: StrictUpstream, database: Path
) -> None:
    gate = Gate()
    with compacting(upstream, database, say("Notes: of this and that.", hold_after={0: gate})) as screen:
        screen.read_until("Summarising")
        screen.child.send_signal(signal.SIGINT)
        assert screen.end() == 130
        assert "Traceback" not in screen.seen
        assert main(["jobs", "show", "1"]) == 0
        gate.open()


@pytest.mark.usefixtures("two_keys")
def test_an_interrupt_at_a_question_is_one_and_does_nothing(capsys: Out) -> None:
    with terminal("keys", "revoke", "ann", is_new=True) as screen:
        screen.read_until("[y/N] ")
        screen.child.send_signal(signal.SIGINT)
        screen.write("\n")  # Python sees an interrupt that came just before it reads when it has read
        assert screen.end() == 130
        assert "Traceback" not in screen.seen
    assert main(["keys", "list"]) == 0
    assert "ann\tactive" in capsys.readouterr().out


def test_an_answer_that_is_none_is_asked_for_again() -> None:
    assert main(["keys", "create", "--name", "ann"]) == 0
    with terminal("keys", "revoke", "ann") as screen:
        screen.read_until("[y/N] ")
        screen.write("perhaps\n")
        screen.read_until("invalid input")
        screen.write("y\n")
        assert screen.end() == 0
    assert "is revoked" in screen.seen


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["memory", "show", "--usr=a"], "Did you mean --user?"),
        (["serve", "--prot", "1"], "Did you mean --port?"),
        (["memry"], "Did you mean 'memory'?"),
        (["memory", "forgt"], "Did you mean 'forget'?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_one(
    arguments: list[str], hint: str, capsys: Out
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, hint in err) == ("", True)


def complete(*words: str) -> list[str]:
    """Returns the completions of the last word, as bash asks for them."""
    asked = {"COMP_WORDS": " ".join(["mnemogate", *words]), "COMP_CWORD": str(len(words))}
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "_MNEMOGATE_COMPLETE": "bash_complete", **asked}
    command = [sys.executable, "-m", "gateway"]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_a_shell_completes_commands_options_and_choices() -> None:
    assert complete("mem") == ["memory"]
    assert complete("memory", "ex") == ["export"]
    assert complete("--db", "x.db", "keys", "r") == ["rotate", "revoke"]
    assert complete("memory", "forget", "--a") == ["--agent", "--all-users"]
    assert complete("jobs", "list", "--state", "r") == ["running", "retrying"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shell_gets_its_script(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setenv("_MNEMOGATE_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert f"_MNEMOGATE_COMPLETE={shell}_complete" in capsys.readouterr().out


LOADED = """
import json, sys
from gateway.cli import main
try:
    main({})
finally:
    print(json.dumps(list(sys.modules)))
"""
HEAVY = {
    "rich",
    "numpy",
    "orjson",
    "asyncio",
    "aiohttp",
    "gateway.cli_commands",
    "gateway.settings",
    "storage",
}


def loaded(*arguments: str) -> set[str]:
    """Returns the modules that are loaded when a command has ended."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format([*arguments])],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    return {str(name) for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["memory", "forget", "-h"], ["--version"], ["nonsense"]], ids=" ".join
)
def test_help_and_refusals_load_no_more_than_they_need(arguments: list[str]) -> None:
    assert "click" in (modules := loaded(*arguments))
    assert modules & HEAVY == set()


@pytest.mark.sqlite
def test_a_command_that_asks_a_gateway_loads_no_gateway(upstream: StrictUpstream, database: Path) -> None:
    with owner(upstream, database):
        modules = loaded("keys", "list")
    assert "gateway.cli_commands" in modules
    assert (
        modules
        & {
            "rich",
            "numpy",
            "gateway.serve",
            "gateway.run.admin.transfer.transfer_operations",
            "gateway.agents",
        }
        == set()
    )
