"""What cannot be exported is said at the start, with the exit code of mistaken settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace import v1
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from gateway.errors import SettingsError
from gateway.serve import read_otlp_settings
from tests.gateway.process import command

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize("name", ["serve", "check-config"])
def test_another_protocol_is_refused(tmp_path: Path, name: str) -> None:
    process = command(name, where=tmp_path, environ={**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert process.returncode == 2
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, saw 'grpc'" in process.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=caf\udce9"),
        ("OTEL_SERVICE_NAME", "caf\udce9"),
    ],
)
def test_a_variable_that_is_not_in_utf_8_is_refused(name: str, value: str) -> None:
    """A resource with such a value cannot be encoded, and no span would leave the gateway."""
    with pytest.raises(SettingsError, match=f"{name}: expected text in UTF-8"):
        read_otlp_settings({**ENDPOINT, name: value})


@pytest.mark.parametrize("text", [None, "", "no certificate"], ids=["missing", "empty", "text"])
@pytest.mark.parametrize("name", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
def test_a_file_without_a_certificate_is_refused(tmp_path: Path, name: str, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    variables = {**ENDPOINT, f"OTEL_EXPORTER_OTLP_{name}": str(path)}
    assert read_otlp_settings(variables) is not None, "an endpoint without TLS has no use for it"
    variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:9"}
    with pytest.raises(SettingsError, match=f"OTLP_{name}: expected the path of a .*{path}"):
        read_otlp_settings(variables)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, trace_service_pb2.__name__, None)
    assert read_otlp_settings({}) is None
    with pytest.raises(SettingsError, match=r"pip install -e '\.\[traces\]'"):
        read_otlp_settings(ENDPOINT)


def test_a_package_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As protobuf 4 does with code that was made for protobuf 3."""
    (tmp_path / "trace_service_pb2.py").write_text(
        "raise TypeError('Descriptors cannot be created directly.')"
    )
    monkeypatch.setattr(v1, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, trace_service_pb2.__name__)
    with pytest.raises(SettingsError, match=r"--extra traces: Descriptors cannot be created directly\."):
        read_otlp_settings(ENDPOINT)
