"""Makes the tracer, if the environment names an endpoint for traces.

No other module imports the modules of gateway/traces that need an extra package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapters.base import Provider
from gateway.core.usage.gen_ai import ModelNames
from gateway.errors import SettingsError
from gateway.metrics import Metrics
from gateway.run.upstream.propagation import get_base_url
from gateway.run.usage.gen_ai_metrics import list_model_names
from gateway.settings import Settings
from gateway.traces.otlp import OtlpSettings

if TYPE_CHECKING:
    from gateway.traces.tracer import Tracer


def check_package() -> None:
    """Raises: SettingsError: the package that traces need is missing, or does not fit the others."""
    try:
        import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401
    except Exception as error:
        # Protobuf refuses code for another version by a TypeError, or by an error of its own.
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: traces need the extra `traces`: in the clone run "
            f"pip install -e '.[traces]', or uv sync --extra traces: {error}",
            is_in_file=False,
        ) from error


def make_tracer(
    settings: Settings, otlp: OtlpSettings, providers: Mapping[str, Provider], metrics: Metrics
) -> Tracer:
    """Returns the tracer. Raises: SettingsError: a package is missing, or does not fit the others."""
    check_package()
    # Not at the start of every gateway: the package takes some 30 ms, and few export traces.
    from gateway.traces.spans import SpanMaker
    from gateway.traces.tracer import Tracer

    addresses = {
        upstream.name: get_base_url(providers[upstream.name])
        for upstream in settings.upstreams
        if upstream.name in providers
    }
    models = ModelNames(list_model_names(settings))
    return Tracer(otlp, SpanMaker(models, addresses, settings.traces.user), metrics)
