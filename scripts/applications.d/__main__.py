"""Runs real applications through a gateway and without one, and prints a table of the results.

A driver is a file of this folder: a program in the application's own language. It gets the address, the key, the model,
the user and the texts of the scene in its environment, and prints the replies that it gets. Its first lines are
comments:

    LangChain: pip langchain-openai    the application, and the packages to install
    memory: off                        the driver gets a gateway key with this mode
    note: ...                          a note for the table
    api: responses                     the gateway answers this API by chat completions, so the first run also needs a
                                       gateway, with memory off (the same for `messages`)
    also: claude                       the scene is played once more, before a strict Claude

The scene is two turns, a second conversation that asks about the first, a stream and a tool. It is played directly
against a strict upstream, then through a gateway before the same upstream. The gateway is an ordinary process with a
new database. The upstream must get the same requests both times, except for the texts that memory adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from gateway.core.prompt.frame import without_frame
from gateway.core.prompt.note_text import strip_notes
from gateway.core.request.identity import Identity, IdentityRules, identify
from gateway.core.request.request_ids import CONVERSATION_ORDER, USER_ORDER
from scripts.load import clean_environment, serve_gateway
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, say

HERE = Path(__file__).parent
SCENE = {
    "SAY": "My cat is called Miso.",
    "MORE": "She is afraid of thunder.",
    "ASK": "What is my cat called?",
    "STREAM": "Tell me a story about a lighthouse.",
    "TOOL": "What is the weather in Rome?",
    # For coding agents: the model gives `TASK` to a sub-agent.
    "DELEGATE": "Ask a helper about my garden.",
    # For front ends: an edited message, a chat off the record, a question about it, and a question of another user.
    "EDIT": "She is afraid of thunder and of fireworks.",
    "HIDE": "Purple tulips grow in my garden.",
    "SEEK": "Which tulips grow in my garden?",
    "OTHER": "Tell me what my own cat is called.",
}
TASK = "Find out which hedgehogs sleep in the garden."
MODEL, CLAUDE = "gpt-4o-mini", "claude-opus-5-5"
# The longest times of one run and of one installation.
RUN_LIMIT_S = 420.0
INSTALL_LIMIT_S = 1800.0
# Applications that are in no package index, or hosted by their companies.
NOT_TRIED = {
    "Home Assistant": "its integrations come with a server of its own",
    "Vapi": "hosted",
    "ElevenLabs": "hosted",
}
SETTINGS = """
[server]
port = 0
[memory]
default_user = "alice"
recall_deadline_ms = 10000
[[upstreams]]
name = "strict"
base_url = "{url}"
"""
# Parts of a request that differ in each run.
VOLATILE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|127\.0\.0\.1:\d+|\b[0-9a-f]{32,64}\b"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d:.+Z]*|\b\d{1,2}:\d\d(?::\d\d)?\b|\b1\d{9}(?:\d{3})?\b"
    # In the result of a command that Codex ran.
    r"|\bChunk ID: [0-9a-f]{6}\b|\bWall time: [\d.]+ seconds\b"
    # In the result of a sub-agent of Claude Code.
    r"|\ba[0-9a-f]{16}\b|\bduration_ms: \d+|\bsubagent_tokens: \d+"
)
REPLY = re.compile(r"Reply [0-9a-f]{8}")
# Variables of the environment that an application gets.
PASSED_VARIABLES = ("LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Application:
    """An application as its driver's first lines describe it."""

    # The file of the driver.
    driver: Path
    title: str
    # The installer: "pip" or "npm".
    installer: str
    # The packages to install, the application's own first.
    packages: tuple[str, ...]
    # The memory mode of the gateway key.
    memory: str = "on"
    # A note for the table.
    note: str = ""
    # The API that the application uses.
    api: str = "chat"
    # "claude": the scene is also played before a strict Claude.
    also: str = ""


@dataclass(slots=True)
class Row:
    """A row of the table; "-" stands for nothing."""

    title: str
    version: str = "-"
    # "yes", "no", or the reason why it is not known.
    works: str = "not tried"
    # The headers and fields by which a user and a conversation are found.
    user: str = "-"
    conversation: str = "-"
    # The rules that recognised requests as side requests.
    side: str = "-"
    # The parts of the scene that reached the upstream.
    played_parts: str = "-"
    notes: list[str] = field(default_factory=list)

    def reject(self, *reasons: str) -> None:
        """Notes that the application does not work, with the reasons. Without reasons nothing changes."""
        if reasons:
            self.works = "no"
            self.notes += reasons


class Failed(Exception):
    """An application could not be installed or run; the message has one line."""


# --- the upstream


def answer(request: UpstreamRequest) -> Reply:
    """Returns a reply that depends on the question alone, so that memory does not change it.

    A question about the weather gets a call of a tool.
    """
    body = request.json
    # Claude Code ends its list with a system message.
    last_message = next(
        message for message in reversed(body["messages"]) if message["role"] not in ("system", "developer")
    )
    text = strip_notes(read_last_user_text(body["messages"])).strip()
    tool_choice = body.get("tool_choice")
    tools = {
        tool["function"]["name"]: tool["function"] for tool in body.get("tools") or () if "function" in tool
    }
    if isinstance(tool_choice, dict):
        return make_call_reply(tools[tool_choice["function"]["name"]])
    if tool_choice == "required":
        return make_call_reply(next(iter(tools.values())))
    if last_message["role"] == "user" and SCENE["DELEGATE"] in text and "Agent" in tools:
        return make_delegation_reply()
    if last_message["role"] == "user" and "weather" in text:
        for word in ("weather", "bash", "shell", "terminal", "timestamp", "exec_command"):
            for name in tools:
                if word in name.lower():
                    return make_call_reply(tools[name])
    # Copilot CLI puts the time before each question.
    reply = f"Reply {zlib.crc32(VOLATILE.sub('#', text).encode()):08x}"
    json_schema = (body.get("response_format") or {}).get("json_schema")
    if json_schema:
        return say(json.dumps(make_value(json_schema["schema"])))
    if text.startswith("### Task:"):  # Open WebUI asks for JSON of one of these forms
        return say(json.dumps({"title": reply, "follow_ups": [f"{reply}?"], "tags": ["cats"], "queries": []}))
    if "[[ ## completed ## ]]" in text:  # DSPy
        return say(f"[[ ## answer ## ]]\n{reply}\n\n[[ ## completed ## ]]")
    return say(f"{reply}: I heard that, and I have nothing to add.")


def make_delegation_reply() -> Reply:
    """Returns a reply that gives `TASK` to a sub-agent."""
    arguments = {
        "description": "Look",
        "prompt": TASK,
        "subagent_type": "general-purpose",
        "run_in_background": False,
    }
    return call_tools(Call("Agent", arguments, id="call_2"))


def make_call_reply(function: Json) -> Reply:
    """Returns a reply that calls a function with made-up arguments."""
    return call_tools(Call(function["name"], make_value(function.get("parameters") or {}), id="call_1"))


def make_value(schema: Json) -> Any:
    """Returns a value that fits a schema, with the required fields. A command is a harmless one."""
    type_ = schema.get("type", "object")
    if type_ != "object":
        examples = {
            "string": "Rome",
            "integer": 3,
            "number": 3.5,
            "boolean": False,
            "array": ["echo", "Rain"],
        }
        return examples.get(str(type_))
    properties = schema.get("properties") or {}
    required = {
        name: make_value(properties[name]) for name in schema.get("required", ()) if name in properties
    }
    return required | {
        name: "echo Rain" for name in ("command", "code", "cmd") if required.get(name) == "Rome"
    }


def read_last_user_text(messages: Sequence[Json]) -> str:
    """Returns the last text of the user's; what an application alone has written counts only if there is no other."""
    texts = [read_text(message) for message in reversed(messages) if message["role"] == "user"]
    return next((text for text in texts if without_frame(strip_notes(text)).strip()), (texts or [""])[0])


def read_text(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


# --- installing and running


def list_applications() -> list[Application]:
    """Returns the applications that have a driver."""
    drivers = []
    for driver in sorted(HERE.iterdir()):
        if driver.suffix in (".py", ".sh", ".mjs") and not driver.name.startswith("_"):
            title_line, *option_lines = (line.lstrip("#/ ") for line in driver.read_text().splitlines()[:3])
            title, _, needs = title_line.partition(": ")
            kind, *packages = needs.split()
            options = dict(
                line.split(": ", 1)
                for line in option_lines
                if line.startswith(("memory: ", "note: ", "api: ", "also: "))
            )
            drivers.append(Application(driver, title, kind, tuple(packages), **options))
    return drivers


def install(app: Application, folder: Path) -> str:
    """Installs an application, unless it is installed, and returns its version. folder: the folder for it."""
    installed_marker = folder / "installed"
    if not installed_marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in list_install_commands(app, folder):
            run(command, folder, dict(os.environ), folder / "install.log", INSTALL_LIMIT_S)
        installed_marker.touch()
    name = re.split(r"[\[=<>]", app.packages[0])[0]
    if app.installer == "npm":
        package = folder / "node_modules" / re.sub(r"(?<=.)@.*", "", app.packages[0]) / "package.json"
        return str(json.loads(package.read_text())["version"])
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.check_output([folder / "bin/python", "-c", code], text=True).strip()


def list_install_commands(app: Application, folder: Path) -> list[list[str]]:
    if app.installer == "npm":
        return [["nice", "npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *app.packages]]
    python = str(folder / "bin/python")
    pip = (
        ["uv", "pip", "install", "--python", python]
        if shutil.which("uv")
        else [python, "-m", "pip", "install"]
    )
    return [[sys.executable, "-m", "venv", str(folder)], ["nice", *pip, "-q", *app.packages]]


def run_driver(app: Application, folder: Path, url: str, key: str, model: str = MODEL) -> str:
    """Runs a driver with an empty home directory, and returns its output."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "home").mkdir(parents=True)
    driver = shutil.copy(app.driver, work / f"driver{app.driver.suffix}")
    python = str(folder / "bin/python")
    runners = {".py": [python], ".sh": ["bash", "-eu"], ".mjs": ["node"]}
    command = ["nice", *runners[app.driver.suffix], str(driver)]
    search_path = f"{folder / 'bin'}:{folder / 'node_modules/.bin'}:{os.environ['PATH']}"
    inherited = {name: value for name, value in clean_environment().items() if name in PASSED_VARIABLES}
    own_variables = {
        "PATH": search_path,
        "HOME": str(work / "home"),
        "URL": url,
        "KEY": key,
        "MODEL": model,
        "WHO": "alice",
    }
    environment = {**inherited, **own_variables, **SCENE, "OPENAI_API_KEY": key}
    run(command, work, environment, work / "printed", RUN_LIMIT_S)
    return (work / "printed").read_text(errors="replace")


def run(command: list[str], folder: Path, environment: dict[str, str], log: Path, limit_s: float) -> None:
    """Runs a command to its end, and kills the processes that it leaves.

    Raises: Failed, with the last line of the output.
    """
    with log.open("ab") as sink:
        running = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        try:
            code: int | str = running.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = f"none after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    if code != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(f"exit code {code}: {(lines or [''])[-1][:120]}")


# --- comparing


def without_memory(value: Any) -> Any:
    """Returns a part of a request without the texts of memory, and without the parts that differ in each run."""
    if isinstance(value, str):
        return VOLATILE.sub("#", strip_notes(value))
    if isinstance(value, dict):
        return {name: without_memory(part) for name, part in value.items()}
    if isinstance(value, list):
        parts = [(part, without_memory(part)) for part in value]
        return [after for part, after in parts if not (is_note(part) and not after["text"].strip())]
    return value


def is_note(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and strip_notes(part["text"]) != part["text"]


def list_posts(upstream: StrictUpstream) -> list[UpstreamRequest]:
    """Returns the POSTs that an upstream got."""
    return [request for request in upstream.requests if request.method == "POST"]


def parse_body(request: UpstreamRequest) -> Any:
    try:
        return json.loads(request.body)
    except ValueError:
        return request.body.hex()


def find_differences(direct: Sequence[UpstreamRequest], through: Sequence[UpstreamRequest]) -> list[str]:
    """Returns the differences of the requests. Their order does not count, since some are sent at the same time."""
    if len(direct) != len(through):
        return [f"{len(through)} requests instead of {len(direct)}"]
    ordered = [
        sorted(json.dumps(without_memory(parse_body(request)), sort_keys=True) for request in requests)
        for requests in (direct, through)
    ]
    return [f"request {n} differs" for n, pair in enumerate(zip(*ordered, strict=True)) if pair[0] != pair[1]]


def find_names(
    order: str,
    names: Sequence[str],
    requests: Sequence[UpstreamRequest],
    read_id: Callable[[Identity], str | None],
) -> str:
    """Returns the headers and fields in which the gateway finds an id, the first of each request.

    order: the field of `IdentityRules` with the sources of the id, whose names are `names`.
    read_id: returns the id of an `Identity`.
    """
    found: dict[str, None] = {}
    for request in requests:
        headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
        for name in names:
            rules = IdentityRules("default", **{order: (name,)})  # type: ignore[arg-type]
            if read_id(identify(headers, request.json, rules, "default")) is not None:
                found[name] = None
                break
    return ", ".join(f"`{name}`" for name in found)


def find_side_rule(request: UpstreamRequest) -> str | None:
    """Returns the rule that recognises a side request; None: it is a user's request."""
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return identify(headers, request.json, IdentityRules("default"), "default").side_request


def describe_played_parts(chats: Sequence[UpstreamRequest]) -> str:
    """Returns the parts of the scene that reached the upstream."""
    lists = [request.json["messages"] for request in chats]
    texts = ["\n".join(map(read_text, messages)) for messages in lists]
    parts = {
        "2 turns": any(SCENE["SAY"] in text and SCENE["MORE"] in text for text in texts),
        "2nd chat": any(SCENE["ASK"] in text and SCENE["SAY"] not in text for text in texts),
        "stream": any(request.json.get("stream") for request in chats),
        "tool": any(message["role"] == "tool" for messages in lists for message in messages),
        "edit": any(SCENE["EDIT"] in text for text in texts),
        "off the record": any(SCENE["SEEK"] in text for text in texts),
        "2nd user": any(SCENE["OTHER"] in text for text in texts),
    }
    return ", ".join(name for name, was_played in parts.items() if was_played)


def read_exchanges(database: Path) -> dict[int, tuple[int | None, str]]:
    """Returns the exchanges of a database: row -> the row of its parent, and its input."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT id, parent, input FROM exchanges").fetchall()
    return {id: (parent, (data or b"").decode()) for id, parent, data in rows}


def second_turn_continues(exchanges: Mapping[int, tuple[int | None, str]]) -> bool:
    """Returns whether the scene's second turn continues the first."""
    for parent, text in exchanges.values():
        while SCENE["MORE"] in text and parent is not None:
            parent, parent_text = exchanges[parent]
            if SCENE["SAY"] in parent_text:
                return True
    return False


def has_word(requests: Sequence[UpstreamRequest], question: str, word: str) -> bool:
    """Returns whether a request with this question as the newest message has a word of an earlier chat."""
    chats = [request for request in requests if request.json and "messages" in request.json]
    return any(
        SCENE[question] in read_last_user_text(s.json["messages"]) and word in s.body.decode() for s in chats
    )


def note_outcome(
    row: Row, app: Application, direct: list[UpstreamRequest], through: list[UpstreamRequest], database: Path
) -> None:
    """Notes the results of both plays. database: the file of the gateway's database."""
    chats = [request for request in direct if request.path.endswith("/chat/completions") and request.json]
    if not chats:
        paths = sorted({request.path for request in direct})
        row.works = "passed through, no memory" if direct else "no"
        row.notes.append(f"requests {', '.join(paths)}" if paths else "no request")
    else:
        note_chats(row, app, chats, through, read_exchanges(database))
    row.reject(*find_differences(direct, through)[:3])
    refused = {request.refusal.args[0] for request in direct if request.refusal is not None}
    row.notes += [f"the upstream refused: {text[:80]}" for text in sorted(refused)]


def note_chats(
    row: Row,
    app: Application,
    chats: list[UpstreamRequest],
    through: list[UpstreamRequest],
    exchanges: Mapping[int, tuple[int | None, str]],
) -> None:
    """Notes the results of an application that uses chat completions.

    chats: the chat completions of the play without a gateway.
    through: all requests of the play through a gateway.
    exchanges: the exchanges that the gateway has stored.
    """
    side = {rule: None for request in chats if (rule := find_side_rule(request))}
    conversation_chats = [request for request in chats if not find_side_rule(request)]
    users = find_names("user_order", USER_ORDER, conversation_chats, attrgetter("user"))
    conversations = find_names(
        "conversation_order", CONVERSATION_ORDER, conversation_chats, attrgetter("conversation_key")
    )
    row.user, row.conversation = users or "`memory.default_user`", conversations or "its messages"
    row.side, row.played_parts = ", ".join(side) or "-", describe_played_parts(chats)
    row.works = "yes"
    has_memory = app.memory == "on"
    for is_true, expected, text in (
        (has_word(through, "ASK", "Miso"), has_memory, "the second chat knows"),
        (second_turn_continues(exchanges), has_memory, "the second turn continues the first"),
        (SCENE["HIDE"] in str(exchanges), False, "a chat off the record is stored"),
        (has_word(through, "SEEK", "Purple"), False, "a chat off the record is remembered"),
        (has_word(through, "OTHER", "Miso"), False, "another person's memory is shown"),
    ):
        if is_true is not expected:
            row.reject(text if is_true else f"not: {text}")


def try_application(app: Application, cache: Path) -> Row:
    """Installs an application, and plays the scene with it. Returns its row of the table."""
    row = Row(app.title, notes=[app.note] if app.note else [])
    folder = cache / app.driver.stem
    try:
        row.version = install(app, folder)
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        row.works = "not installed"
        row.notes.append(str(error))
        return row
    try:
        with (
            StrictUpstream(script=answer, models=[MODEL]) as upstream,
            tempfile.TemporaryDirectory() as home_name,
        ):
            play_both_ways(app, folder, Path(home_name), upstream, row)
    except Failed as error:
        row.reject(str(error))
    return row


def play_both_ways(app: Application, folder: Path, home: Path, upstream: StrictUpstream, row: Row) -> None:
    """Plays the scene directly and through a gateway, and notes the results in the row.

    folder: the application's folder, which also gets the requests of both plays and the gateway's log.
    home: an empty folder for the gateway.

    Raises: Failed.
    """
    settings = SETTINGS.format(url=upstream.base_url)
    if app.api != "chat":
        settings += "takes = { responses = false }\n"
        direct_output = play_without_memory(app, folder, home / "direct", settings)
    else:
        direct_output = run_driver(app, folder, upstream.base_url, "sk-app")
    direct, upstream.requests = list_posts(upstream), []
    key = make_key(home, app.memory)
    with serve_gateway(home, settings) as served:
        gateway_output = run_driver(app, folder, f"http://127.0.0.1:{served.port}/v1", key)
    through = list_posts(upstream)
    for name, requests in (("direct", direct), ("through", through)):
        recorded = [{"path": s.path, "headers": s.headers, "body": parse_body(s)} for s in requests]
        (folder / f"{name}.json").write_text(json.dumps(recorded, indent=1))
    shutil.copy(home / "log", folder / "gateway.log")
    note_outcome(row, app, direct, through, home / "mnemogate.db")
    if any(key in json.dumps([s.headers, parse_body(s)]) for s in through):
        row.reject("the gateway's key went upstream")
    if app.also == "claude":
        row.reject(*play_over_claude(app, folder, home / "claude"))
    if set(REPLY.findall(direct_output)) != set(REPLY.findall(gateway_output)):
        row.reject("other replies were printed")


def play_without_memory(app: Application, folder: Path, home: Path, settings: str) -> str:
    home.mkdir()
    key = make_key(home, "off")
    with serve_gateway(home, settings) as served:
        return run_driver(app, folder, f"http://127.0.0.1:{served.port}/v1", key)


def play_over_claude(app: Application, folder: Path, home: Path) -> list[str]:
    """Plays the scene before a strict Claude. Returns the claims that do not hold."""
    home.mkdir()
    key = make_key(home, app.memory)
    with StrictAnthropic(script=answer_as_claude, models=[CLAUDE]) as claude:
        settings = SETTINGS.format(url=claude.base_url) + 'kind = "anthropic"\napi_key = "none"\n'
        with serve_gateway(home, settings) as served:
            run_driver(app, folder, f"http://127.0.0.1:{served.port}/v1", key, CLAUDE)
        stored_text = str(read_exchanges(home / "mnemogate.db"))
        bodies = [request.json for request in claude.requests if request.json and "messages" in request.json]
    # The last message of each request, and the whole request.
    requests = [(json.dumps(find_last_spoken_message(body)), json.dumps(body)) for body in bodies]
    claims = {
        "what a model writes to a sub-agent is not stored": TASK not in stored_text,
        "the second chat knows": any(SCENE["ASK"] in last and "Miso" in whole for last, whole in requests),
        "a tool's result came back": any("tool_result" in last for last, _ in requests),
        "no request is refused": not any(request.refusal for request in claude.requests),
    }
    return [f"over Claude: not: {claim}" for claim, holds in claims.items() if not holds]


def answer_as_claude(request: UpstreamRequest) -> Reply:
    """Returns a reply that depends on the question alone. A question about the weather gets a call of a tool."""
    content = find_last_spoken_message(request.json)["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = strip_notes(" ".join(block.get("text", "") for block in blocks)).strip()
    if any(block["type"] == "tool_result" for block in blocks):
        return say("So it is.")
    names = [tool["name"] for tool in request.json.get("tools") or ()]
    if SCENE["DELEGATE"] in text and "Agent" in names:
        return make_delegation_reply()
    if "weather" in text:
        for tool in request.json.get("tools") or ():
            if "exec_command" in tool["name"] or tool["name"] == "Bash":
                return make_call_reply({"name": tool["name"], "parameters": tool["input_schema"]})
    return say(f"Reply {zlib.crc32(text.encode()):08x}: I heard that, and I have nothing to add.")


def find_last_spoken_message(body: Json) -> Json:
    """Returns the last message that is no system message, with which Claude Code ends its list."""
    return next(message for message in reversed(body["messages"]) if message["role"] != "system")


def make_key(folder: Path, memory: str) -> str:
    command = [sys.executable, "-m", "gateway", "keys", "create", "--memory", memory]
    clean = clean_environment(PYTHONPATH=str(HERE.parent.parent))
    printed = subprocess.check_output(command, cwd=folder, env=clean, text=True, stderr=subprocess.DEVNULL)
    match = re.search(r"mg-[\w-]+", printed)
    assert match is not None
    return match[0]


def main() -> int:
    """Plays the scene with the applications of the command line, and prints a row for each. Returns the exit code."""
    all_applications = list_applications()
    names = [app.driver.stem for app in all_applications]
    parser = argparse.ArgumentParser(prog="scripts/applications", description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / "mnemogate-applications"
    parser.add_argument(
        "--into", type=Path, default=default, help="the folder for the installed applications (%(default)s)"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {' '.join(names)}; without a name all")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no driver named {', '.join(sorted(unknown))}; there are {' '.join(names)}")
    headings = (
        "application",
        "version",
        "works",
        "who is speaking by",
        "conversation by",
        "side requests",
        "played parts",
        "notes",
    )
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}", flush=True)
    failed = False
    for app in all_applications:
        if app.driver.stem in (options.names or names):
            row = try_application(app, options.into.resolve())
            failed = failed or row.works == "no"
            print_row(row)
    for title, reason in NOT_TRIED.items() if not options.names else ():
        print_row(Row(title, notes=[reason]))
    return int(failed)


def print_row(row: Row) -> None:
    """Prints a row of the table."""
    texts = (
        row.title,
        row.version,
        row.works,
        row.user,
        row.conversation,
        row.side,
        row.played_parts,
        "; ".join(row.notes),
    )
    print(f"| {' | '.join(text.replace('|', '/') for text in texts)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
