"""`deploy/` names files, settings and paths that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.settings_load import load_settings
from gateway.web.middleware import OPEN_PATHS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KEY = "mg-" + "0123456789abcdef" * 3


@pytest.fixture
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return read


def test_every_variable_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [path for path in DEPLOY.iterdir() if path.is_file()]
    named = {name for path in files for name in re.findall(r"\bMNEMOGATE_[A-Z_]+\b", path.read_text("utf-8"))}
    assert {"MNEMOGATE_KEY", "MNEMOGATE_HOST", "MNEMOGATE_DB"} <= named
    values = {"MNEMOGATE_KEY": KEY, "MNEMOGATE_PORT": "8080"}
    load_settings(environ={name: values.get(name, "x") for name in named})


def test_the_image_is_made_of_what_the_wheel_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = {name for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.M) for name in line.split()}
    assert {"pyproject.toml", "README.md", "gateway", "adapters", "storage"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    let_in = set(re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.M))
    assert let_in == copied
    assert re.search(r"^USER 10001", text, re.M)
    checked = re.search(r"127\.0\.0\.1:8080(/[\w/]*)", text)
    assert checked is not None
    # A health check has no key.
    assert checked[1] in OPEN_PATHS


def test_open_webui_says_who_is_speaking_and_has_the_key(compose: dict[str, Any]) -> None:
    ours, theirs = compose["services"]["mnemogate"], compose["services"]["open-webui"]
    assert (DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]).is_file()
    assert theirs["environment"]["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    assert theirs["environment"]["OPENAI_API_BASE_URL"] == "http://mnemogate:8080/v1"
    assert theirs["environment"]["OPENAI_API_KEY"] == "${MNEMOGATE_KEY}"
    assert ours["environment"]["MNEMOGATE_KEY"].startswith("${MNEMOGATE_KEY:?")
    named = {volume.partition(":")[0] for each in (ours, theirs) for volume in each["volumes"]}
    assert named == set(compose["volumes"])
    assert "memory:/data" in ours["volumes"]


def test_the_service_waits_longer_than_the_gateway_drains(compose: dict[str, Any]) -> None:
    drains_s = load_settings(environ={"MNEMOGATE_KEY": KEY}).server.shutdown_s
    unit = (DEPLOY / "mnemogate.service").read_text("utf-8")
    waited = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert waited is not None
    assert int(waited[1]) > drains_s
    assert int(compose["services"]["mnemogate"]["stop_grace_period"].rstrip("s")) > drains_s


def test_nginx_holds_no_stream_back() -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    assert {"proxy_buffering off;", "proxy_request_buffering off;"} <= {
        line.strip() for line in text.splitlines()
    }
    assert text.count("{") == text.count("}")
