"""Asks Prometheus every query of `deploy/grafana.json` while a gateway is used in all the ways that the panels show.

Needs `prometheus` on the PATH. Prints each query with the number of its series and their last values, fails where one
finds nothing, and draws the panels as one picture (`--picture FILE.png`, with Chromium), since no Grafana is at hand:
`python -m scripts.look_at_dashboard --picture /tmp/dashboard.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import logging
import math
import os
import re
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from playwright.sync_api import sync_playwright

from scripts.load import ServedGateway, fetch, find_free_port, run_process, serve_gateway
from tests.doubles.upstream import Call, Reply, Seen, StrictUpstream, call_tools, fail, say
from tests.gateway.page.browser import find_chromium

ROOT: Final = Path(__file__).parent.parent
SCRAPE_S: Final = 1
# As Grafana takes it: four scrapes at least.
RATE: Final = "10s"
COLOURS: Final = ("#3274d9", "#d9822b", "#299c46", "#c4162a", "#8f3bb8", "#7d7d7d", "#b8a200", "#0f8b8d")
WIDTH, HEIGHT = 420, 150
STYLE: Final = (
    "body{font:13px sans-serif;display:grid;grid-template-columns:repeat(4,430px)}svg{background:#f7f8fa}"
)
SETTINGS: Final = """
[[upstreams]]
name = "up"
base_url = "{url}"
models = ["m", "small"]

[[upstreams]]
name = "down"
base_url = "http://127.0.0.1:9/v1"
models = ["gone"]
retries = 1

[[models]]
alias = "m"
model = "m"
upstream = "up"
price = {{ input = 0.15, output = 0.6 }}

[[models]]
alias = "small"
model = "small"
upstream = "up"

[[models]]
alias = "gone"
model = "gone"
upstream = "down"
fallbacks = ["m"]

[memory]
background_model = "small"
idle_s = 1

[[profiles]]
name = "helper"
model = "m"
system = "You help."
memory_tools = true

[[profiles.blocks]]
label = "human"
"""
PROMETHEUS: Final = """
global:
  scrape_interval: {every}s
scrape_configs:
  - job_name: mnemogate
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


class Drawn(Struct):
    """One query of a panel with what was found."""

    expression: str
    # Label -> (seconds since the epoch, value), without gaps.
    series: dict[str, list[tuple[float, float]]]


def script(seen: Seen) -> Reply:
    """Answers as upstreams do: mostly well, a tool now and then, an error now and then."""
    body = seen.json
    cached = {"cached_tokens": 640}
    usage = {
        "prompt_tokens": 900,
        "completion_tokens": 40,
        "total_tokens": 940,
        "prompt_tokens_details": cached,
    }
    text = json.dumps(body["messages"][-1])
    if "overload" in text:
        return fail(503)
    if body.get("tools") and "remember" in text and body["messages"][-1]["role"] == "user":
        return call_tools(Call("memory_insert", {"label": "human", "new_string": "Likes tea."}), usage=usage)
    return say("That is noted. " * 4, usage=usage)


def ask(port: int, body: dict[str, Any], *, leaves: bool = False) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        if not leaves:
            connection.getresponse().read()


def use(port: int, stop: threading.Event) -> None:
    """Asks in all ways, some requests a second, until it is stopped."""
    number = 0
    while not stop.is_set():
        number += 1
        user = f"user-{number % 7}"
        text = ("Remember: remember that I like tea.", "What do I like?", f"Turn {number}.")[number % 3]
        body: dict[str, Any] = {"model": ("agent/helper", "m", "small")[number % 3], "user": user,
                                "stream": number % 2 == 0, "messages": [{"role": "user", "content": text}]}  # fmt: skip
        if number % 19 == 0:
            body["messages"] = [{"role": "user", "content": "overload"}]
        elif number % 23 == 0:
            body["model"] = "gone"
        elif number % 29 == 0:
            body = {**body, "user": "limited"}
        elif number % 31 == 0:
            body = {**body, "messages": "wrong"}
        ask(port, body, leaves=number % 37 == 0)
        time.sleep(0.03)


def limit(served: ServedGateway, folder: Path) -> None:
    """Has one user be refused."""
    token = json.loads((folder / "mnemogate.db.admin").read_text())["token"]
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    with contextlib.closing(connection):
        limit = {"user": "limited", "unit": "requests", "per": "day", "most": 1}
        connection.request("POST", "/v1/manage/limits", json.dumps(limit), {"x-mnemogate-admin": token})
        assert connection.getresponse().status == 201


@contextlib.contextmanager
def prometheus(folder: Path, port: int) -> Iterator[int]:
    """Runs Prometheus, which scrapes a gateway."""
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(every=SCRAPE_S, port=port))
    own = find_free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
               f"--web.listen-address=127.0.0.1:{own}"]  # fmt: skip
    with run_process(command, folder / "prometheus.log", stdout=subprocess.DEVNULL):
        for _ in range(600):
            with contextlib.suppress(OSError):
                fetch(own, "/-/ready")
                break
            time.sleep(0.1)
        yield own


def look_up(port: int, expression: str, begun: float, ended: float) -> dict[str, list[tuple[float, float]]]:
    """Returns what a query finds, by the labels of the series."""
    query = {"query": expression.replace("$__rate_interval", RATE), "start": begun, "end": ended, "step": 1}
    answer = json.loads(fetch(port, f"/api/v1/query_range?{urllib.parse.urlencode(query)}"))
    assert answer["status"] == "success", answer
    series = {}
    for each in answer["data"]["result"]:
        label = ", ".join(f"{value or '(none)'}" for value in each["metric"].values()) or "value"
        points = [(float(at), float(value)) for at, value in each["values"]]
        series[label] = [point for point in points if math.isfinite(point[1])]
    return {label: points for label, points in series.items() if points}


def drawing(panel: dict[str, Any], queries: list[Drawn], started: float, ended: float) -> str:
    """Returns a panel as HTML."""
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    for target, drawn in zip(panel["targets"], queries, strict=True):
        legend = target.get("legendFormat", "")
        for label, points in drawn.series.items():
            lines.append((label if "{{" in legend or not legend else legend, points))
    most = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
    parts, legends = [], []
    for n, (label, points) in enumerate(lines):
        colour = COLOURS[n % len(COLOURS)]
        path = " ".join(
            f"{(at - started) / (ended - started) * WIDTH:.1f},{HEIGHT - 4 - value / most * (HEIGHT - 12):.1f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        legends.append(f'<span style="color:{colour}">{escape(label)} {points[-1][1]:.3g}</span>')
    unit = escape(panel["fieldConfig"]["defaults"].get("unit", ""))
    return (
        f"<div><b>{escape(panel['title'])}</b> <small>up to {most:.3g} {unit}</small><br>"
        f'<svg width="{WIDTH}" height="{HEIGHT}">{"".join(parts)}</svg><br><small>{" ".join(legends)}</small></div>'
    )


def draw(file: Path, html: str) -> None:
    """Writes a page as a picture."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium())
        page = browser.new_page(viewport={"width": 1780, "height": 900})
        page.set_content(html)
        page.screenshot(path=str(file), full_page=True)
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for how long the gateway is used")
    parser.add_argument("--picture", type=Path, help="the PNG into which the panels are drawn")
    options = parser.parse_args()
    # Of clients that leave the upstream's loop would complain; no collector listens there, so that spans are dropped.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as name, StrictUpstream() as upstream:
        folder = Path(name)
        upstream.script = script
        with (
            serve_gateway(folder, SETTINGS.format(url=upstream.base_url)) as served,
            prometheus(folder, served.port) as port,
        ):
            limit(served, folder)
            stop, started = threading.Event(), time.time()
            users = [threading.Thread(target=use, args=(served.port, stop)) for _ in range(2)]
            for each in users:
                each.start()
            time.sleep(options.seconds)
            ended, empty, html = time.time(), 0, []
            for panel in dashboard["panels"]:
                if panel["type"] == "row":
                    print(f"# {panel['title']}")
                    html.append(f'<h2 style="grid-column:1/-1;margin:6px">{escape(panel["title"])}</h2>')
                    continue
                queries = []
                for target in panel["targets"]:
                    series = look_up(port, target["expr"], started, ended)
                    queries.append(Drawn(target["expr"], series))
                    empty += not series
                    shown = ", ".join(f"{label} {points[-1][1]:.3g}" for label, points in series.items())
                    print(
                        f"{panel['title']}: {len(series)} series: {shown or 'NOTHING FOUND: ' + target['expr']}"
                    )
                html.append(drawing(panel, queries, started, ended))
            stop.set()
            for each in users:
                each.join()
            names = set(re.findall(r"^# TYPE (\w+)", fetch(served.port, "/metrics").decode(), re.M))
            print(f"{len(names)} metrics are served")
    if options.picture:
        draw(options.picture, f"<style>{STYLE}</style>{''.join(html)}")
    return 1 if empty else 0


if __name__ == "__main__":
    raise SystemExit(main())
