"""`mnemogate move` fills a PostgreSQL from a SQLite file, and a file from that, however often it is killed."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.agents.letta import letta
from tests.doubles.upstream import StrictUpstream
from tests.gateway.admin.test_move import BLOCKS, contents, live
from tests.gateway.process import ROOT, command
from tests.gateway.sdk import agent
from tests.stored import open_store


@pytest.mark.sqlite
def test_a_move_that_is_killed_continues(upstream: StrictUpstream, tmp_path: Path, url: str) -> None:
    folder = tmp_path / "lived"
    folder.mkdir()
    with letta(upstream, folder, agent("helper", blocks=BLOCKS), admin_token="the-owner") as world:
        for n in range(20):
            world.world.chat(user=f"person-{n}").say(f"I am number {n}.")
        live(world)  # makes a key in the end
        world.world.settle()
    (file,) = folder.glob("*.db")
    dice = random.Random(3)
    arguments = ("move", url, "--db", str(file))
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
        ) as child:
            # It takes about a second until it begins, and another for all.
            time.sleep(0.6 + dice.random())
            child.kill()
    process = command(*arguments, where=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "Not moved" not in process.stdout

    async def compare(filled: str | Path) -> None:
        source, target = await open_store(file), await open_store(filled)
        try:
            there, here = await contents(target), await contents(source)
            assert there.keys() == here.keys()
            for name, value in here.items():
                assert there[name] == value, name
        finally:
            await source.close()
            await target.close()

    asyncio.run(compare(url))
    again = command(*arguments, where=tmp_path)
    assert again.returncode == 0
    assert again.stdout.startswith("Moved: 0 memories; ")
    # The file is as it was.
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute(
            "SELECT count(*) FROM agents WHERE subject LIKE 'user:person%'"
        ).fetchone() == (20,)
    back = command("move", "back.db", where=tmp_path, environ={"MNEMOGATE_DATABASE_URL": url})
    assert back.returncode == 0, back.stderr
    assert "Not moved" not in back.stdout
    asyncio.run(compare(tmp_path / "back.db"))


@pytest.mark.sqlite
def test_a_move_reports_a_database_that_it_cannot_use(tmp_path: Path, url: str) -> None:
    none = command("move", url, "--db", str(tmp_path / "none.db"), where=tmp_path)
    assert none.returncode == 1
    assert "no database" in none.stderr
    assert not (tmp_path / "none.db").exists()
    process = command("keys", "create", "--db", str(tmp_path / "m.db"), where=tmp_path)
    assert process.returncode == 0
    nowhere = (
        url.rpartition("/")[0] + "/no_such_database" + (f"?{url.partition('?')[2]}" if "?" in url else "")
    )
    refused = command("move", nowhere, "--db", str(tmp_path / "m.db"), where=tmp_path)
    assert refused.returncode in (1, 2)
    assert "no_such_database" in refused.stderr
    other = command("move", "sqlite:///other.db", "--db", str(tmp_path / "m.db"), where=tmp_path)
    assert other.returncode == 2
    assert "expected postgresql://" in other.stderr
    assert "Traceback" not in other.stderr
    files = command("move", "other.db", "--db", str(tmp_path / "m.db"), where=tmp_path)
    assert files.returncode == 1
    assert "MNEMOGATE_DATABASE_URL" in files.stderr
    assert not (tmp_path / "other.db").exists()
