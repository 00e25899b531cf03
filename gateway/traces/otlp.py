"""Reads the standard `OTEL_` variables that say how traces are exported.

(opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables, .../protocol/exporter)
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct, field

from gateway.errors import SettingsError
from gateway.traces.sampling import SAMPLERS

# The name of the service if no variable sets it.
_SERVICE: Final = "mnemogate"
_PATH: Final = "/v1/traces"
_OTLP: Final = "OTEL_EXPORTER_OTLP_"
_TRACES: Final = f"{_OTLP}TRACES_"
_PROTOCOL: Final = "http/protobuf"
_DELAY: Final = "OTEL_BSP_SCHEDULE_DELAY"
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"


class OtlpSettings(Struct, frozen=True):
    """How traces are exported."""

    # The URL to which spans are posted.
    endpoint: str
    # The headers of each post, which may hold keys.
    headers: tuple[tuple[str, str], ...] = ()
    # The authorities that a collector's certificate has to be from, and the gateway's own certificate; None: no TLS.
    tls: ssl.SSLContext | None = None
    # The most seconds that one post may take.
    timeout_s: float = 10.0
    # True if posts are compressed with gzip.
    is_compressed: bool = False
    # Attributes of the resource, `service.name` among them.
    resource: Mapping[str, str] = field(default_factory=lambda: {"service.name": _SERVICE})
    # The name of the sampler, as OpenTelemetry names it.
    sampler: str = "parentbased_always_on"
    # The share of traces that is sampled, by a sampler that takes a ratio.
    ratio: float = 1.0
    # The most seconds that a span waits to be sent.
    delay_s: float = 5.0
    # The most spans that wait; others are dropped.
    queue_spans: int = 8192
    # The most spans of a request. When so many wait, they are sent at once.
    batch_spans: int = 512

    def __repr__(self) -> str:
        """Leaves the headers out: they may hold keys."""
        return f"OtlpSettings({self.endpoint!r})"


_DEFAULTS: Final = OtlpSettings(endpoint="")


def read_otlp(environ: Mapping[str, str]) -> OtlpSettings | None:
    """Returns how traces are exported; None: they are not. Raises: SettingsError: a variable cannot be read."""
    variables = {name: value.strip() for name, value in environ.items() if name.startswith("OTEL_")}

    def read_exporter_variable(name: str) -> tuple[str, str]:
        """Returns the name and the value of a variable: of the one for traces, or else of the one for all signals."""
        whole_name = _TRACES + name if variables.get(_TRACES + name) else _OTLP + name
        return whole_name, variables.get(whole_name, "")

    endpoint_name, endpoint = read_exporter_variable("ENDPOINT")
    if endpoint and not endpoint_name.startswith(_TRACES):
        endpoint = endpoint.rstrip("/") + _PATH
    if not endpoint or variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporters = {each.strip() for each in variables.get(_EXPORTER, "").lower().split(",")} - {""}
    if exporters == {"none"}:
        return None
    _check_encoding(variables)
    if exporters and "otlp" not in exporters:
        raise _make_error(_EXPORTER, "otlp or none", variables[_EXPORTER])
    _check_endpoint(endpoint_name, endpoint)
    _check_choice(*read_exporter_variable("PROTOCOL"), [_PROTOCOL], expected=_PROTOCOL)
    compression_name, compression = read_exporter_variable("COMPRESSION")
    _check_choice(compression_name, compression, ["gzip", "none"], expected="gzip or none")
    sampler = variables.get("OTEL_TRACES_SAMPLER") or _DEFAULTS.sampler
    _check_choice("OTEL_TRACES_SAMPLER", sampler, SAMPLERS, expected="one of " + ", ".join(SAMPLERS))

    def read_number(name: str, default: int) -> int:
        text = variables.get(name, "")
        return _read_number(name, text) if text else default

    def read_seconds(name: str, text: str, default_s: float) -> float:
        """Reads a time, which the variables give in milliseconds."""
        return _read_number(name, text) / 1000 if text else default_s

    queue_spans = read_number("OTEL_BSP_MAX_QUEUE_SIZE", _DEFAULTS.queue_spans)
    ratio = variables.get("OTEL_TRACES_SAMPLER_ARG", "")
    return OtlpSettings(
        endpoint,
        headers=_read_headers(*read_exporter_variable("HEADERS")),
        tls=_make_tls(read_exporter_variable) if endpoint.lower().startswith("https:") else None,
        timeout_s=read_seconds(*read_exporter_variable("TIMEOUT"), _DEFAULTS.timeout_s),
        is_compressed=compression == "gzip",
        resource=_read_resource(variables),
        sampler=sampler,
        ratio=_read_ratio(ratio) if ratio and "ratio" in sampler else _DEFAULTS.ratio,
        delay_s=read_seconds(_DELAY, variables.get(_DELAY, ""), _DEFAULTS.delay_s),
        queue_spans=queue_spans,
        batch_spans=min(read_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _DEFAULTS.batch_spans), queue_spans),
    )


def _check_choice(name: str, value: str, choices: Collection[str], *, expected: str) -> None:
    """Raises: SettingsError if a variable is set, and to none of the choices. expected: the choices in words."""
    if value and value not in choices:
        raise _make_error(name, expected, value)


def _check_encoding(variables: Mapping[str, str]) -> None:
    """Raises: SettingsError if a variable is not text in UTF-8."""
    for name, value in variables.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            # The value may be a key, so it is not shown.
            raise _make_error(name, "text in UTF-8", "other bytes") from None


def _check_endpoint(name: str, endpoint: str) -> None:
    """Raises: SettingsError if the endpoint is no URL. name: the name of its variable."""
    try:
        url = urlsplit(endpoint)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise _make_error(name, "a URL that begins with http:// or https://", "another")


def _make_tls(read_exporter_variable: Callable[[str], tuple[str, str]]) -> ssl.SSLContext:
    """Returns the TLS of the connections to a collector. Raises: SettingsError: a file cannot be read."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    name, path = read_exporter_variable("CERTIFICATE")
    try:
        if path:
            tls.load_verify_locations(path)
        else:
            tls.load_default_certs()
    except OSError as error:  # an SSLError, too
        raise _make_error(name, "the path of a file with certificates in PEM", path) from error
    name, path = read_exporter_variable("CLIENT_CERTIFICATE")
    if path:
        _, key_path = read_exporter_variable("CLIENT_KEY")
        try:
            # With a password, OpenSSL does not ask for one at the start.
            tls.load_cert_chain(path, key_path or None, password="")
        except OSError as error:
            raise _make_error(
                name, "the path of a certificate in PEM, with its key there or in CLIENT_KEY", path
            ) from error
    return tls


def _read_headers(variable: str, text: str) -> tuple[tuple[str, str], ...]:
    """Reads `name=value,name=value`, where values may be percent-encoded."""
    headers = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, mark, value = part.partition("=")
        name, value = unquote(name.strip()).lower(), unquote(value.strip())
        is_sent = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not (mark and is_sent and value.isascii() and value.isprintable()):
            # The value may be a key, so it is not shown.
            raise _make_error(variable, "name=value, several with commas between", "another")
        headers.append((name, value))
    return tuple(headers)


def _read_resource(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the attributes of the resource. The name of the service has a variable of its own."""
    attributes = dict(_DEFAULTS.resource)
    for part in filter(None, map(str.strip, variables.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))):
        name, mark, value = part.partition("=")
        if not (mark and name.strip()):
            raise _make_error("OTEL_RESOURCE_ATTRIBUTES", "name=value, several with commas between", part)
        attributes[name.strip()] = unquote(value.strip())
    if service := variables.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = service
    return attributes


def _read_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1 << 31):
        raise _make_error(name, "a whole number from 1", text)
    return int(text)


def _read_ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0.0 <= ratio <= 1.0:
        raise _make_error("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", text)
    return ratio


def _make_error(name: str, expected: str, seen: str) -> SettingsError:
    return SettingsError(f"{name}: expected {expected}, saw {seen!r}", is_in_file=False)
