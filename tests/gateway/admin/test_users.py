"""`mnemogate users` and `conversations`: what they list is what `memory forget` takes."""

from __future__ import annotations

import json
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import gateway.run.admin.memory.memory_lists
from gateway.cli import main
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.admin.test_cli import Out, owner
from tests.gateway.process import make_database_variable
from tests.patience import PATIENCE_S
from tests.server import RunningGateway


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in make_database_variable(tmp_path, []).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gateway.run.admin.memory.memory_lists, "PAGE_LINES", 2)
    return tmp_path / "mnemogate.db"


def talk(gateway: RunningGateway, user: str | None, chat: str, text: str = "Hello", **headers: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **({"user": user} if user else {})}
    sent = {"x-mnemogate-conversation": chat, **{name.replace("_", "-"): v for name, v in headers.items()}}
    assert gateway.post(body, sent).status == 200
    gateway.call(gateway.app.services.idle.wait())


def listed(capsys: Out, *arguments: str) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("is_served", [False, True], ids=["here", "served"])
def test_a_chat_is_found_and_forgotten_by_what_the_lists_say(
    upstream: StrictUpstream, database: Path, capsys: Out, *, is_served: bool
) -> None:
    with owner(upstream, database) as gateway:
        for user, chat in (("alice", "c1"), ("alice", "c2"), ("bob", "c1"), ("alice", "c3"), (None, "room")):
            talk(gateway, user, chat)
    with owner(upstream, database) if is_served else nullcontext():
        users = listed(capsys, "users")
        assert [each.get("user") for each in users] == ["alice", "bob", None]
        assert [each["messages"] for each in users] == [6, 2, 2]
        assert (users[0]["conversations"], users[2]["conversation"]) == (3, "room")
        chats = listed(capsys, "conversations", "--user", "alice")
        assert [each["client_id"] for each in chats] == ["c3", "c2", "c1"]

        assert main(["memory", "forget", "--yes", *chats[1]["forget"]]) == 0
        assert "Forgotten: 2 messages, with what was learned from them." in capsys.readouterr().err
        left = listed(capsys, "conversations", "--user", "alice")
        assert [each["client_id"] for each in left] == ["c3", "c1"]
        assert main(["memory", "forget", "--yes", *users[2]["forget"]]) == 0
        assert main(["memory", "forget", "--yes", *users[1]["forget"]]) == 0
        assert "Forgotten: 1 memory." in capsys.readouterr().err
        assert [each["user"] for each in listed(capsys, "users")] == ["alice"]


def test_a_line_ends_with_the_arguments_as_a_shell_takes_them(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    names = ["o'hara \\o/", "-x", "\u202eeve", "$(id)"]
    with owner(upstream, database) as gateway:
        for name in names:
            talk(gateway, None, "chat", x_mnemogate_user=name.encode().decode("latin-1"))
    assert main(["users"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "\u202e" not in "".join(lines)
    for line, name in zip(lines, names, strict=True):
        last, *sizes, forget = line.split("\t")
        assert last[:2] == "20"
        assert sizes == ["2 messages", "1 kB", "1 conversation", "0 blocks", "0 facts", "0 passages"]
        done = subprocess.run(["bash", "-c", f"printf '%s\\0' {forget}"], capture_output=True, check=True)
        arguments = done.stdout.decode().split("\0")[:-1]
        assert arguments == ["--profile=default", f"--user={name}"]
        assert main(["memory", "forget", "--yes", *arguments]) == 0
        assert "Forgotten: 1 memory." in capsys.readouterr().err
    assert shlex.split(lines[0])[-1] == f"--user={names[0]}"


@pytest.mark.parametrize("is_served", [False, True], ids=["here", "served"])
def test_lists_and_memory_show_count_alike_and_what_is_retained_of_a_cancelled_turn_is_shown(
    upstream: StrictUpstream, database: Path, capsys: Out, *, is_served: bool
) -> None:
    with owner(upstream, database) as gateway:
        talk(gateway, "alice", "c1")
        never = Gate()
        upstream.queue(say("One moment, please, while I look.", hold_after={3: never}))
        messages = [{"role": "user", "content": "Where is it?"}]
        body = {"model": "m", "user": "alice", "messages": messages, "stream": True}
        with gateway.connect() as client:
            client.request("POST", "/v1/chat/completions", json.dumps(body).encode())
            client.read_until(b"moment")
        upstream.requests[-1].gone.wait_sync()
        gateway.call(gateway.app.services.idle.wait())
        gateway.call(gateway.app.services.chat.turn_services.pending.drain(PATIENCE_S))
        upstream.queue(say("Once."), say("Twice."))
        for text in ("Say it.", "Say it."):  # asked again
            talk(gateway, "alice", "c3", text)
    with owner(upstream, database) if is_served else nullcontext():
        (user,) = listed(capsys, "users")
        chats = listed(capsys, "conversations", "--user", "alice")
        for name, count in (("messages", 8), ("turns", 4), ("cancelled_turns", 1)):
            assert (user[name], sum(each[name] for each in chats)) == (count, count)
        assert main(["memory", "show", "--user", "alice"]) == 0
        shown = capsys.readouterr().out
        assert "\n  8 messages in 4 turns (1 cancelled) of 3 conversations\n" in shown
        lines = [line.partition("] ")[2] for line in shown.partition("Recent messages")[2].splitlines()[1:]]
        assert lines[2:4] == ["user: Where is it?  (cancelled)", "assistant: One moment,  (cancelled)"]
        assert lines[5:] == ["assistant: Once.  (superseded)", "user: Say it.", "assistant: Twice."]
        assert main(["memory", "export", "--user", "alice", "alice.jsonl"]) == 0
        assert "Exported: 1 user (alice), 8 messages, " in capsys.readouterr().err


def test_what_is_said_of_an_agents_chats_forgets_them(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    json_type = {"content-type": "application/json"}
    with owner(upstream, database) as gateway:
        made = gateway.ask("POST", "/v1/agents/", b'{"name": "ann", "model": "up/m"}', json_type)
        id = made.json["id"]
        for text in (b"Hello", b"And now?"):
            body = b'{"input": "%b"}' % text
            assert gateway.ask("POST", f"/v1/agents/{id}/messages", body, json_type).status == 200
        assert main(["memory", "forget", "--yes", "--agent", id, "--message", "1"]) == 0
        commands = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()[1:]]
        assert commands[0] == f"mnemogate memory forget --agent={id} --exchange 1"
        assert main([*shlex.split(commands[0])[1:], "--yes"]) == 0
        (chat,) = listed(capsys, "conversations", "--agent", id)
        assert chat["forget"] == [f"--agent={id}", f"--in={chat['id']}"]
        assert main(["memory", "forget", "--yes", *chat["forget"]]) == 0
        assert "Forgotten: 2 messages, with what was learned from them." in capsys.readouterr().err


def test_lists_are_of_one_project_and_of_so_many_lines(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    for project in ("blue", "red"):
        assert main(["keys", "create", "--project", project, "--name", project]) == 0
    secrets = dict(zip(("blue", "red"), capsys.readouterr().out.split(), strict=True))
    with owner(upstream, database) as gateway:
        for project, user in (("blue", "a"), ("red", "a"), ("blue", "b"), ("blue", "c")):
            talk(gateway, user, "chat", authorization=f"Bearer {secrets[project]}")
    assert [each["project"] for each in listed(capsys, "users")] == ["blue", "red", "blue", "blue"]
    (red,) = listed(capsys, "users", "--project", "red")
    assert red["forget"] == ["--project=red", "--profile=default", "--user=a"]
    assert len(listed(capsys, "users", "--limit", "3")) == 3
    with pytest.raises(SystemExit):
        main(["users", "--limit", str(10**19)])
    assert "'--limit'" in capsys.readouterr().err
    assert listed(capsys, "conversations", "--user", "a", "--project", "red")[0]["project"] == "red"
    assert main(["conversations", "--user", "a"]) == 0
    assert "nothing to list" in capsys.readouterr().err


def test_a_user_is_named_by_the_settings_or_has_to_be(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    with owner(upstream, database) as gateway:
        talk(gateway, "owner", "chat")
    assert main(["conversations"]) == 1
    assert "Say whose conversations: --user, --conversation or --agent." in capsys.readouterr().err
    Path("mnemogate.toml").write_text("[memory]\nsingle_user = true")
    assert [each["user"] for each in listed(capsys, "conversations")] == ["owner"]
    with pytest.raises(SystemExit):
        main(["users", "--limit", "0"])
