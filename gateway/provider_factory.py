"""Makes the providers and embedders that the settings name. No other module of the gateway names their classes.

Modules that few gateways need (the demo's model, the embedders) are imported where they are used.
"""

from __future__ import annotations

import time

from adapters.base import Embedder, Provider
from adapters.batch.anthropic import AnthropicBatches
from adapters.batch.batch_provider import BatchProvider
from adapters.batch.local import LocalBatches
from adapters.batch.openai import OpenAIBatches
from adapters.factory import make_provider
from adapters.openai import OpenAICompatible
from adapters.providers import PROVIDERS
from adapters.timeouts import Timeouts
from adapters.transport import HttpTransport
from gateway.errors import SettingsError
from gateway.run.background.embedder import LOCAL_EMBEDDER, find_embedder_route
from gateway.run.upstream.route import Route
from gateway.settings import Settings, UpstreamSettings


def make_providers(settings: Settings) -> dict[str, Provider]:
    """Returns providers by name. If an upstream has further keys, their providers are called `name#2` and so on.

    Raises: SettingsError.
    """
    providers = {}
    for upstream in settings.upstreams:
        for number, key in enumerate(upstream.keys or (None,), 1):
            name = upstream.name if number == 1 else f"{upstream.name}#{number}"
            providers[name] = _make_provider(upstream, name, key)
    return providers


def make_batches(settings: Settings) -> dict[str, BatchProvider]:
    """Returns providers of batches, with connections of their own, by the names of upstreams. Raises: SettingsError."""
    return {upstream.name: _make_batches(upstream) for upstream in settings.upstreams}


def _make_batches(upstream: UpstreamSettings) -> BatchProvider:
    provider = _make_first_provider(upstream)
    if not isinstance(provider, OpenAICompatible):
        return LocalBatches(provider)
    api = upstream.batches or _choose_default_batches_api(upstream, provider)
    if api == "none":
        return LocalBatches(provider)
    batches_type = OpenAIBatches if api == "openai" else AnthropicBatches
    return batches_type(
        provider.base_url,
        _find_first_key(upstream),
        upstream.headers,
        time.time,
        upstream.proxy,
        provider.adapt_calls,
    )


def _choose_default_batches_api(upstream: UpstreamSettings, provider: OpenAICompatible) -> str:
    """Returns the batch API of an upstream with settings that name none."""
    if upstream.kind == "anthropic":
        return "anthropic"
    # At another address another server may answer, which need not have batches.
    return "openai" if provider.base_url == PROVIDERS["openai"].base_url else "none"


def make_embedder(settings: Settings) -> Embedder | None:
    """Makes the embedder; None: the settings name none. Raises: SettingsError."""
    if settings.memory.embedder == LOCAL_EMBEDDER:
        from adapters.local_embeddings import EmbedderMissing, LocalEmbedder

        try:
            return LocalEmbedder()
        except EmbedderMissing as error:
            raise SettingsError(f"memory.embedder: {LOCAL_EMBEDDER!r} cannot be used: {error}") from error
    route = find_embedder_route(settings)
    if route is None:
        return None
    from adapters.embeddings import ApiEmbedder

    return ApiEmbedder(make_separate_provider(settings, route), route.model)


def make_separate_provider(settings: Settings, route: Route) -> Provider:
    """Makes a provider with connections that no client's turn shares. Raises: SettingsError."""
    return _make_first_provider(settings.get_upstream(route.upstream))


def _find_first_key(upstream: UpstreamSettings) -> str | None:
    return upstream.keys[0] if upstream.keys else None


def _make_first_provider(upstream: UpstreamSettings) -> Provider:
    """Makes the provider of an upstream with its first key. Raises: SettingsError."""
    return _make_provider(upstream, upstream.name, _find_first_key(upstream))


def _make_provider(upstream: UpstreamSettings, name: str, key: str | None) -> Provider:
    """Makes the provider of an upstream with one of its keys. Raises: SettingsError: the address is wrong."""
    if upstream.kind == "scripted":
        from adapters.demo import DemoProvider

        return DemoProvider(name)
    kind: str = upstream.kind
    row = PROVIDERS.get(upstream.name)
    if kind == "openai" and row is not None and row.dialect == "openai":
        # An upstream of OpenAI's dialect with a provider's name is that provider, at any address.
        kind = upstream.name
    timeouts = Timeouts(
        connect_s=upstream.connect_timeout_s,
        first_byte_s=upstream.first_byte_timeout_s,
        between_chunks_s=upstream.idle_timeout_s,
        total_s=upstream.total_timeout_s,
    )
    try:
        return make_provider(
            kind,
            name=name,
            base_url=upstream.base_url,
            key=key,
            headers=tuple(upstream.headers.items()),
            known_capabilities=upstream.capabilities,
            transport=HttpTransport(timeouts, upstream.proxy),
        )
    except ValueError as error:
        raise SettingsError(f"upstreams {upstream.name!r}: base_url: {error}") from error
