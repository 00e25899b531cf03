"""The log on stderr: JSON lines, and a line that repeats is counted."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from typing import Any

import orjson
import pytest

from gateway.log import JsonFormatter, LogOutput, RepeatHandler
from gateway.masks import mask_keys
from tests.doubles.upstream import StrictUpstream
from tests.patience import PATIENCE_S
from tests.rows import each_row
from tests.server import serve, settings_for

Lines = list[dict[str, Any]]


class Log:
    """A logger with a handler of its own. counted_s: how long a line is counted."""

    def __init__(self, counted_s: float) -> None:
        self._stream = io.StringIO()
        handler = RepeatHandler(self._stream, counted_s)
        handler.setFormatter(JsonFormatter())
        self.logger = logging.Logger("mnemogate")
        self.logger.addHandler(handler)

    def lines(self) -> Lines:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


def said(lines: Lines) -> list[tuple[str, int]]:
    return [(line["message"], line.get("again", 0)) for line in lines]


@pytest.fixture
def log() -> Log:
    """Counts for longer than a test takes."""
    return Log(3600.0)


async def test_a_line_is_written_once(log: Log) -> None:
    for _ in range(3):
        for why in ("full", "locked"):
            log.logger.warning("a turn was not written: %s", why)
    assert said(log.lines()) == [("a turn was not written: full", 0), ("a turn was not written: locked", 0)]


async def test_an_error_is_written_with_its_trace_and_another_error_is_another_line(log: Log) -> None:
    for kind in (ValueError, KeyError, ValueError):
        try:
            raise kind("x")
        except kind:
            log.logger.exception("a tool failed")
    traces = [line["trace"].splitlines()[-1] for line in log.lines()]
    assert traces == ["ValueError: x", "KeyError: 'x'"]


async def test_a_repeated_warning_is_written_with_its_count_until_it_stops() -> None:
    log = Log(0.001)
    for _ in range(4):
        log.logger.warning("full")
    async with asyncio.timeout(PATIENCE_S):
        while len(log.lines()) < 2:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)
        assert said(log.lines()) == [("full", 0), ("full", 3)]
        assert "trace" not in log.lines()[1]
        # After a while without it, it is a new line.
        while said(log.lines())[-1] != ("full", 0):
            await asyncio.sleep(0.05)
            log.logger.warning("full")


def test_without_an_event_loop_every_line_is_written(log: Log) -> None:
    for _ in range(2):
        log.logger.warning("full")
    assert said(log.lines()) == [("full", 0)] * 2


def test_the_gateways_own_progress_is_written_and_that_of_libraries_is_not() -> None:
    code = (
        "import logging; from gateway.log import configure_logging; configure_logging(); "
        "logging.getLogger('httpx').info('a library'); logging.getLogger('mnemogate').info('a batch')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in process.stderr.splitlines()] == ["a batch"]


# -- keys

OURS = "mg-" + "a1B2_c3-" * 6
PROVIDERS = "sk-proj-" + "d4E5_f6-" * 6


@each_row(
    ("line", "logged"),
    [
        (f"/v1/{OURS}/x", "/v1/mg-***/x"),
        (f"Bearer {OURS}", "Bearer mg-***"),
        (f"key{OURS}", "keymg-***"),  # pasted after another word
        (f"a line\n{OURS}\n", "a line\nmg-***\n"),
        (f"\x01{OURS}", "\x01mg-***"),
        (OURS.replace("-", "%2D"), "mg%2D***"),  # of a query as it came
        (OURS.replace("-", "%252d"), "mg%252d***"),  # encoded twice, and read once
        (OURS.replace("mg", "%6d%67"), "%6d%67-***"),
        (f"key{OURS.replace('-', '%2D')}", "keymg%2D***"),
        (OURS.replace("mg-", "mg–"), "mg–***"),  # a dash
        (OURS.replace("mg-", "mg－"), "mg－***"),  # a wide one
        (f"Bearer%20{PROVIDERS}", "Bearer%20sk-***"),
        (OURS[:14], "mg-***"),  # cut where the line's room ended
        (f"?api_key={PROVIDERS}&user=bob", "?api_key=sk-***&user=bob"),
        ("gsk_" + "g7" * 20, "gsk_***"),
        ("AIza" + "h8" * 18, "AIza***"),
        ("AQ." + "k2-_" * 12, "AQ.***"),
        ("fw_" + "i9" * 12, "fw_***"),
        ("tgp_v1_" + "j1_-" * 10, "tgp_v1_***"),
        ("pplx-" + "l3" * 12, "pplx-***"),
        ("csk-" + "m4" * 12, "csk-***"),
        ("nvapi-" + "n5_-" * 10, "nvapi-***"),
        (f"{OURS} and {PROVIDERS}", "mg-*** and sk-***"),
        # What only looks so.
        ("img-generation-model", "img-generation-model"),
        ("task-summary-of-the-week", "task-summary-of-the-week"),
        ("xai-grok-4-fast", "xai-grok-4-fast"),
        ("fw_update-of-the-house_2", "fw_update-of-the-house_2"),
        ("pplx-embed-context-v1-0.6b", "pplx-embed-context-v1-0.6b"),
        ("mg-dev", "mg-dev"),
    ],
)
def test_a_key_is_masked_wherever_it_stands_in_a_line(line: str, logged: str) -> None:
    written = json.loads(mask_keys(orjson.dumps({"path": line})))
    assert written == {"path": logged}


def test_no_line_and_no_metric_has_a_key_that_a_caller_put_elsewhere(
    upstream: StrictUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    hello = {"messages": [{"role": "user", "content": "Hi"}]}
    with serve(settings_for(upstream)) as gateway:
        assert gateway.ask("GET", f"/v1/{OURS}").status == 404
        assert gateway.ask("GET", f"/v1/files/{PROVIDERS}?key={OURS}").status == 404
        assert gateway.post({"model": OURS, "user": OURS, **hello}).status == 200
        headers = {"x-request-id": OURS, "x-mnemogate-upstream": PROVIDERS, "user-agent": OURS}
        assert gateway.post({"model": PROVIDERS, **hello}, headers).status == 200
        assert gateway.ask("GET", f"/{'x' * 239}/{OURS}").status == 404  # the path is cut within it
        gateway.flush_log()
        metrics = gateway.ask("GET", "/metrics").body.decode()
    formatted = [JsonFormatter().format(record) for record in caplog.records]
    written = "\n".join((*map(json.dumps, gateway.lines), *formatted, metrics))
    assert [line["path"] for line in gateway.lines][:2] == ["/v1/mg-***", "/v1/files/sk-***"]
    assert [gateway.lines[2]["model"], gateway.lines[3]["model"]] == ["mg-***", "sk-***"]
    assert gateway.lines[3]["id"] == "mg-***"
    assert not [key for key in (OURS, PROVIDERS) if key[3:11] in written]


def test_an_error_that_quotes_a_key_is_logged_without_it(log: Log) -> None:
    try:
        raise ValueError(f"header x-mnemogate-key: {OURS}\n{PROVIDERS}")
    except ValueError:
        log.logger.exception("a header %r was refused", PROVIDERS)
    (line,) = log.lines()
    assert line["message"] == "a header 'sk-***' was refused"
    assert "x-mnemogate-key: mg-***\nsk-***" in line["trace"]


def test_a_file_whose_name_is_no_utf8_is_named_with_escapes(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"/data/d\xff.db")
    try:
        raise OSError(f"{name} is full")
    except OSError:
        log.logger.exception("%s cannot be used", name)
    (line,) = log.lines()
    assert line["message"] == "/data/d\\udcff.db cannot be used"
    assert "OSError: /data/d\\udcff.db is full" in line["trace"]
    # There `logging` prints what it cannot format, with its arguments.
    assert capsys.readouterr().err == ""


def test_a_log_that_is_not_read_holds_nothing_up() -> None:
    """As of a terminal that is paused, or a collector that hangs."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, os.fdopen(writer, "w") as stream:
        output = LogOutput(stream, max_held_bytes=10_000)
        lines = [b'{"n": %d, "text": "%b"}\n' % (n, b"x" * 100) for n in range(2000)]
        for line in lines:
            output.write_bytes(line)
        found = pipe.read(1_000_000)
        output.write_bytes(b'{"n": "next"}\n')
        found += pipe.read(1_000_000)
    *written, note, last = found.splitlines(keepends=True)
    assert 0 < len(written) < len(lines)
    assert written == lines[: len(written)]
    assert json.loads(note)["message"].startswith(
        f"{len(lines) - len(written)} lines of the log are missing here"
    )
    assert json.loads(last) == {"n": "next"}
