"""`deploy/` names files, settings and paths that there are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.cli import root
from gateway.page.defence import compare_origin
from gateway.settings.load import load_settings
from gateway.traces.otlp import OtlpSettings
from gateway.web.middleware import OPEN_PATHS
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import remember
from tests.nginx import DEPLOY, run_nginx
from tests.patience import PATIENCE_S
from tests.server import serve, settings_for

ROOT = Path(__file__).parent.parent
KEY = "mg-" + "0123456789abcdef" * 3


def read_compose(name: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    read: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text("utf-8"))
    return read


@pytest.fixture
def compose() -> dict[str, Any]:
    return read_compose("compose.yaml")


@pytest.fixture
def many() -> dict[str, Any]:
    return read_compose("compose.postgres.yaml")


def test_every_variable_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [path for path in DEPLOY.iterdir() if path.is_file()]
    names = {name for path in files for name in re.findall(r"\bMNEMOGATE_[A-Z_]+\b", path.read_text("utf-8"))}
    assert {"MNEMOGATE_KEY", "MNEMOGATE_HOST", "MNEMOGATE_DATABASE_URL"} <= names
    values = {"MNEMOGATE_KEY": KEY, "MNEMOGATE_PORT": "8080", "MNEMOGATE_DATABASE_URL": ""}
    load_settings(environ={name: values.get(name, "x") for name in names})


def test_the_image_is_made_of_what_the_wheel_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = {name for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.M) for name in line.split()}
    assert {"pyproject.toml", "README.md", "gateway", "adapters", "storage"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    let_in = set(re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.M))
    assert let_in == copied
    assert re.search(r"^USER 10001", text, re.M)
    checked = re.search(r"'GET', '(/[\w/]*)'", text)
    assert checked is not None
    # A health check has no key.
    assert checked[1] in OPEN_PATHS


def test_the_image_has_the_versions_of_the_lock(tmp_path: Path) -> None:
    """Of each package that the gateway needs, and its extras."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lock_step = re.search(r"^RUN (python -c .+?) > locked\.txt$", text, re.M | re.S)
    assert lock_step is not None
    assert "install --no-cache-dir -c locked.txt " in text
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["/bin/sh", "-c", lock_step[1].replace("\\\n", "")]
    output = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout
    locked = {each.name: each for each in map(Requirement, output.splitlines()) if has_marker(each)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for each in map(Requirement, needed):
        (version,) = locked[canonicalize_name(each.name)].specifier
        assert version.operator == "=="
        assert version.version in each.specifier, each


def has_marker(requirement: Requirement) -> bool:
    """Returns whether the requirement is one of this Python."""
    return requirement.marker is None or requirement.marker.evaluate()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_images_health_check_asks_the_port_of_its_variable_and_no_proxy(status: int, code: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    health_check = re.search(
        r"^    CMD (python .+?)\nENTRYPOINT", (DEPLOY / "Dockerfile").read_text("utf-8"), re.M | re.S
    )
    assert health_check is not None
    with HTTPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(server.handle_request)
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MNEMOGATE_PORT": str(server.server_port),
            "http_proxy": "http://127.0.0.1:9",
        }
        command = ["/bin/sh", "-c", health_check[1].replace("\\\n", "")]
        assert subprocess.run(command, env=environ, timeout=PATIENCE_S, check=False).returncode == code


def test_a_settings_file_in_the_image_may_name_another_database(tmp_path: Path) -> None:
    (tmp_path / "mnemogate.toml").write_text('[database]\nurl = "postgresql://a@b/c"\n')
    image = dict(re.findall(r"^ +(MNEMOGATE_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text("utf-8"), re.M))
    assert "MNEMOGATE_HOST" in image
    database = load_settings(config=str(tmp_path / "mnemogate.toml"), environ=image).database
    assert database.url == "postgresql://a@b/c"


def test_open_webui_says_who_is_speaking_and_has_the_key(compose: dict[str, Any]) -> None:
    gateway, open_webui = compose["services"]["mnemogate"], compose["services"]["open-webui"]
    assert (DEPLOY / gateway["build"]["context"] / gateway["build"]["dockerfile"]).is_file()
    assert open_webui["environment"]["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    assert open_webui["environment"]["OPENAI_API_BASE_URL"] == "http://mnemogate:8080/v1"
    assert open_webui["environment"]["OPENAI_API_KEY"] == "${MNEMOGATE_KEY}"
    assert gateway["environment"]["MNEMOGATE_KEY"].startswith("${MNEMOGATE_KEY:?")
    volumes = {volume.partition(":")[0] for each in (gateway, open_webui) for volume in each["volumes"]}
    assert volumes == set(compose["volumes"])
    assert "memory:/data" in gateway["volumes"]


def test_gateways_and_a_worker_share_one_postgres(many: dict[str, Any]) -> None:
    services = many["services"]
    ours = {name: each for name, each in services.items() if each["image"] == "mnemogate-postgres"}
    commands = {name: each["command"] for name, each in ours.items()}
    image = dict(re.findall(r"\b(MNEMOGATE_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text("utf-8")))
    assert commands == {
        "migrate": ["migrate"],
        "gateway1": ["serve", "--no-work"],
        "gateway2": ["serve", "--no-work"],
        "worker": ["worker", "--port", image["MNEMOGATE_PORT"]],
    }
    for command in commands.values():
        name, *options = command
        root.commands[name].make_context(name, options)
    for each in ours.values():
        assert each["build"]["args"]["EXTRAS"] == "[postgres]"
        environ = {**image, **each["environment"], "MNEMOGATE_KEY": KEY}
        assert load_settings(environ=environ).database.url == each["environment"]["MNEMOGATE_DATABASE_URL"]
        user, _, host = each["environment"]["MNEMOGATE_DATABASE_URL"].partition("@")
        assert user.startswith("postgresql://mnemogate:${POSTGRES_PASSWORD:?")
        assert host == f"postgres/{services['postgres']['environment']['POSTGRES_DB']}"
    # The image's own check asks a port, which a command that ends does not have.
    assert {name for name, each in ours.items() if "healthcheck" in each} == {"migrate"}
    connections = sum(load_settings(environ={"MNEMOGATE_KEY": KEY}).database.pool + 1 for _ in ours)
    assert "max_connections=60" in services["postgres"]["command"]
    assert connections < 60
    # The server that the image starts to make the database listens on no address.
    assert "127.0.0.1" in services["postgres"]["healthcheck"]["test"]
    text = (DEPLOY / "nginx.postgres.conf").read_text("utf-8")
    assert re.findall(r"^    server (\w+):8080 ", text, re.M) == 2 * ["gateway1", "gateway2"]


@pytest.mark.parametrize("name", ["nginx.conf", "nginx.postgres.conf"])
def test_nginx_logs_no_link_of_a_person(upstream: StrictUpstream, tmp_path: Path, name: str) -> None:
    with serve(settings_for(upstream)) as gateway, run_nginx(name, [gateway.port], tmp_path) as port:
        for path in ("/v1/models", "/ui/me/secret", "/ui/people"):
            reply = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S)
            assert reply.status_code in (200, 303, 404)
    log = (tmp_path / "access.log").read_text("utf-8")
    assert "/v1/models" in log
    assert "/ui/people" in log
    assert "secret" not in log


def test_the_service_waits_longer_than_the_gateway_drains(
    compose: dict[str, Any], many: dict[str, Any]
) -> None:
    drains_s = load_settings(environ={"MNEMOGATE_KEY": KEY}).server.shutdown_s
    unit = (DEPLOY / "mnemogate.service").read_text("utf-8")
    waited = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert waited is not None
    assert int(waited[1]) > drains_s
    for each in (compose["services"]["mnemogate"], many["services"]["gateway1"]):
        assert int(each["stop_grace_period"].rstrip("s")) > drains_s


def test_what_tools_need_of_the_service_gives_up_what_it_has() -> None:
    unit = (DEPLOY / "mnemogate.service").read_text("utf-8")
    has = dict(re.findall(r"^(\w+)=(.*)$", unit.partition("[Service]\nType")[2], re.M))
    given_up = dict(re.findall(r"^#   (\w+)=(.*)$", unit, re.M))
    assert given_up.keys() < has.keys()
    assert not [name for name, value in given_up.items() if has[name] == value]


@pytest.mark.parametrize("name", ["nginx.conf", "nginx.postgres.conf"])
def test_nginx_holds_no_stream_back(name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    assert {"proxy_buffering off;", "proxy_request_buffering off;"} <= {
        line.strip() for line in text.splitlines()
    }
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("name", ["nginx.conf", "nginx.postgres.conf"])
def test_the_page_knows_its_own_origin_behind_nginx(name: str) -> None:
    """At another port than the scheme's, as compose.postgres.yaml has it, too."""
    text = (DEPLOY / name).read_text("utf-8")
    (variable,) = re.findall(r"proxy_set_header Host (\S+);", text)
    # As nginx's documentation has them (ngx_http_core_module).
    passed_on = {"$host": b"127.0.0.1", "$http_host": b"127.0.0.1:8080"}[variable]
    assert compare_origin([(b"host", passed_on), (b"origin", b"http://127.0.0.1:8080")], has_tls=False)


# Each process over a database shows these of the whole database.
SHARED_GAUGES = ("mnemogate_jobs", "mnemogate_batches", "mnemogate_batch_items")


def test_the_dashboard_does_not_add_up_what_each_gateway_shows_of_all() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    shared = [each for each in queries if any(f"({name})" in each for name in SHARED_GAUGES)]
    assert shared
    assert not [each for each in shared if not each.startswith("max by")]


_IN_QUERY = re.compile(r"\b((?:mnemogate|gen_ai)_[a-z_]+?)(?:_bucket|_count|_sum|_total)?(?=[\[)]|$)")


def test_the_dashboard_asks_for_metrics_and_labels_that_exist(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    panels = [each for each in dashboard["panels"] if each["type"] != "row"]
    assert len({each["id"] for each in dashboard["panels"]}) == len(dashboard["panels"])
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    with remember(upstream, tmp_path, otlp=OtlpSettings("http://127.0.0.1:9/v1/traces")) as world:
        known = {each.name: each for each in world.gateway.app.services.metrics.collect()}
    labels = {name: set(family._labelnames) | {"le"} for name, family in known.items()}  # type: ignore[attr-defined]
    for query in queries:
        bare = re.sub(r"by \([^)]*\)|\{[^}]*\}", "", query)
        names = _IN_QUERY.findall(bare)
        assert names, query
        assert set(names) <= known.keys(), query
        used_labels = {
            each.strip() for part in re.findall(r"by \(([^)]*)\)", query) for each in part.split(",")
        }
        used_labels |= set(re.findall(r"[{,]\s*([a-z_]+)\s*[=!]", query))
        assert used_labels <= set.union(*(labels[name] for name in names)), query
