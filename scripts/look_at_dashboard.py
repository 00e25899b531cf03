"""Asks Prometheus every query of `deploy/grafana.json` while a gateway is used in all the ways that the panels show.

Needs `prometheus` on the PATH. Prints each query with the number of its series and their last values. The exit code is
1 if a query finds nothing. `--picture FILE.png` draws the panels by Chromium, for machines without Grafana:
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
from typing import Any, Final, NamedTuple

from playwright.sync_api import sync_playwright

from scripts.load import ServedGateway, fetch, find_free_port, run_process, serve_gateway
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, say
from tests.gateway.page.browser import find_chromium

ROOT: Final = Path(__file__).parent.parent
SCRAPE_S: Final = 1
# What Grafana puts in for `$__rate_interval`: four scrapes at least.
RATE_INTERVAL: Final = "10s"
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


# By the label: (seconds since the epoch, value) of each point, without gaps.
FoundSeries = dict[str, list[tuple[float, float]]]


class Period(NamedTuple):
    """The time during which the gateway was used, in seconds since the epoch."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def answer(request: UpstreamRequest) -> Reply:
    """Answers as upstreams do: mostly with a text, sometimes with a call of a tool or an error."""
    body = request.json
    usage = {
        "prompt_tokens": 900,
        "completion_tokens": 40,
        "total_tokens": 940,
        "prompt_tokens_details": {"cached_tokens": 640},
    }
    text = json.dumps(body["messages"][-1])
    if "overload" in text:
        return fail(503)
    if body.get("tools") and "remember" in text and body["messages"][-1]["role"] == "user":
        return call_tools(Call("memory_insert", {"label": "human", "new_string": "Likes tea."}), usage=usage)
    return say("That is noted. " * 4, usage=usage)


def ask(port: int, body: dict[str, Any], *, leaves: bool = False) -> None:
    """Sends a chat completion. leaves: the client does not wait for the reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        if not leaves:
            connection.getresponse().read()


def send_requests(port: int, stop: threading.Event) -> None:
    """Sends requests of all kinds, some a second, until `stop` is set."""
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


def set_limit(served: ServedGateway, folder: Path) -> None:
    """Sets a limit that refuses most requests of one user."""
    token = json.loads((folder / "mnemogate.db.admin").read_text())["token"]
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    with contextlib.closing(connection):
        limit = {"user": "limited", "unit": "requests", "per": "day", "most": 1}
        connection.request("POST", "/v1/manage/limits", json.dumps(limit), {"x-mnemogate-admin": token})
        assert connection.getresponse().status == 201


@contextlib.contextmanager
def prometheus(folder: Path, port: int) -> Iterator[int]:
    """Runs Prometheus, which scrapes the gateway at `port`, and yields the port of Prometheus."""
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(every=SCRAPE_S, port=port))
    prometheus_port = find_free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
               f"--web.listen-address=127.0.0.1:{prometheus_port}"]  # fmt: skip
    with run_process(command, folder / "prometheus.log", stdout=subprocess.DEVNULL):
        for _ in range(600):
            with contextlib.suppress(OSError):
                fetch(prometheus_port, "/-/ready")
                break
            time.sleep(0.1)
        yield prometheus_port


def find_series(port: int, expression: str, period: Period) -> FoundSeries:
    """Returns the series that a query finds. port: the port of Prometheus."""
    promql = expression.replace("$__rate_interval", RATE_INTERVAL)
    query = urllib.parse.urlencode({"query": promql, "start": period.start, "end": period.end, "step": 1})
    reply = json.loads(fetch(port, f"/api/v1/query_range?{query}"))
    assert reply["status"] == "success", reply
    series = {}
    for each in reply["data"]["result"]:
        label = ", ".join(f"{value or '(none)'}" for value in each["metric"].values()) or "value"
        points = [(float(at), float(value)) for at, value in each["values"]]
        series[label] = [point for point in points if math.isfinite(point[1])]
    return {label: points for label, points in series.items() if points}


def render_panel(panel: dict[str, Any], found: list[FoundSeries], period: Period) -> str:
    """Returns a panel as HTML. found: the series of each of its queries."""
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    for target, series in zip(panel["targets"], found, strict=True):
        legend = target.get("legendFormat", "")
        for label, points in series.items():
            lines.append((label if "{{" in legend or not legend else legend, points))
    most = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
    polylines, legends = [], []
    for index, (label, points) in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(
            f"{(at - period.start) / period.seconds * WIDTH:.1f},{HEIGHT - 4 - value / most * (HEIGHT - 12):.1f}"
            for at, value in points
        )
        polylines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        legends.append(f'<span style="color:{colour}">{escape(label)} {points[-1][1]:.3g}</span>')
    unit = escape(panel["fieldConfig"]["defaults"].get("unit", ""))
    return (
        f"<div><b>{escape(panel['title'])}</b> <small>up to {most:.3g} {unit}</small><br>"
        f'<svg width="{WIDTH}" height="{HEIGHT}">{"".join(polylines)}</svg><br><small>{" ".join(legends)}</small></div>'
    )


def save_picture(file: Path, html: str) -> None:
    """Draws a page of HTML into a PNG file."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium())
        page = browser.new_page(viewport={"width": 1780, "height": 900})
        page.set_content(html)
        page.screenshot(path=str(file), full_page=True)
        browser.close()


def use_gateway(port: int, seconds: float) -> Period:
    """Sends requests by two clients for some seconds."""
    stop, start = threading.Event(), time.time()
    clients = [threading.Thread(target=send_requests, args=(port, stop)) for _ in range(2)]
    for client in clients:
        client.start()
    time.sleep(seconds)
    stop.set()
    for client in clients:
        client.join()
    return Period(start, time.time())


def query_panel(panel: dict[str, Any], port: int, period: Period) -> list[FoundSeries]:
    """Asks the queries of a panel, and prints their series. port: the port of Prometheus."""
    series_of_queries = []
    for target in panel["targets"]:
        series = find_series(port, target["expr"], period)
        last_values = ", ".join(f"{label} {points[-1][1]:.3g}" for label, points in series.items())
        print(f"{panel['title']}: {len(series)} series: {last_values or 'NOTHING FOUND: ' + target['expr']}")
        series_of_queries.append(series)
    return series_of_queries


def main() -> int:
    """Uses a gateway for some time, and queries all panels of the dashboard. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for how long the gateway is used")
    parser.add_argument("--picture", type=Path, help="the PNG into which the panels are drawn")
    options = parser.parse_args()
    # The loop of the upstream would warn of clients that leave.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    # No collector listens at this address, so that spans are dropped, which a panel shows.
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text("utf-8"))
    has_all, html = True, []
    with tempfile.TemporaryDirectory() as name, StrictUpstream() as upstream:
        folder = Path(name)
        upstream.script = answer
        with (
            serve_gateway(folder, SETTINGS.format(url=upstream.base_url)) as served,
            prometheus(folder, served.port) as port,
        ):
            set_limit(served, folder)
            period = use_gateway(served.port, options.seconds)
            for panel in dashboard["panels"]:
                if panel["type"] == "row":
                    print(f"# {panel['title']}")
                    html.append(f'<h2 style="grid-column:1/-1;margin:6px">{escape(panel["title"])}</h2>')
                    continue
                series_of_queries = query_panel(panel, port, period)
                has_all = has_all and all(series_of_queries)
                html.append(render_panel(panel, series_of_queries, period))
            metrics = set(re.findall(r"^# TYPE (\w+)", fetch(served.port, "/metrics").decode(), re.M))
            print(f"{len(metrics)} metrics are served")
    if options.picture:
        save_picture(options.picture, f"<style>{STYLE}</style>{''.join(html)}")
    return 0 if has_all else 1


if __name__ == "__main__":
    raise SystemExit(main())
