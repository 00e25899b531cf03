"""The JSON of models in the agents API. An agent names a model by its handle."""

from __future__ import annotations

from typing import Any

from gateway.agents.runs.compact_conversation import ASSUMED_WINDOW


def choose_provider_type(handle: str) -> str:
    """Returns the type of a model's provider: of the types that clients know, the nearest."""
    return "anthropic" if handle.rpartition("/")[0] == "anthropic" else "openai"


def render_model(handle: str, window: int | None) -> dict[str, Any]:
    """Returns the JSON of a model. window: the size of its context window in tokens; None: the size is not known."""
    provider, _, name = handle.rpartition("/")
    kind = choose_provider_type(handle)
    return {
        "handle": handle,
        "name": name,
        "display_name": name,
        "model": name,
        "model_type": "llm",
        "context_window": window or ASSUMED_WINDOW,
        "max_context_window": window or ASSUMED_WINDOW,
        "provider_type": kind,
        "provider_name": provider or "mnemogate",
        "provider_category": "base",
        "model_endpoint_type": kind,
        "model_endpoint": None,
    }


def render_embedding_model(handle: str) -> dict[str, Any]:
    """Returns the JSON of the gateway's embedder."""
    provider, _, name = handle.rpartition("/")
    return {
        "handle": handle,
        "name": name,
        "display_name": name,
        "embedding_model": name,
        "model_type": "embedding",
        "embedding_dim": 0,
        "embedding_chunk_size": None,
        "embedding_endpoint": None,
        "embedding_endpoint_type": "openai",
        "provider_type": "openai",
        "provider_name": provider or "mnemogate",
    }


def render_embedder(config: dict[str, Any] | None, handle: str | None) -> dict[str, Any] | None:
    """Returns the config of an agent's embedder, which clients before 1.0 require. The config has no effect here.

    config: the config that a request gave; None: no request gave a config.
    handle: the handle from which the config is made if no request gave one; "": a config without a handle; None: no
        config.
    """
    if config or handle is None:
        return config
    return {
        "embedding_dim": 0,
        "embedding_endpoint_type": "openai",
        "embedding_model": handle.rpartition("/")[2],
        "embedding_chunk_size": 300,
        "handle": handle or None,
    }
