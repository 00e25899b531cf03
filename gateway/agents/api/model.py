"""Models, as the agents API lists them: by the handles that agents name."""

from __future__ import annotations

from typing import Any

from gateway.agents.runs.compact_conversation import UNKNOWN_WINDOW


def provider_type(handle: str) -> str:
    """Returns the kind of a model's provider as the client knows it. handle: as an agent names the model."""
    return "anthropic" if handle.rpartition("/")[0] == "anthropic" else "openai"


def model_json(handle: str, window: int | None) -> dict[str, Any]:
    """Returns a model.

    handle: as an agent names it.
    window: tokens, None where it is not known.
    """
    provider, _, name = handle.rpartition("/")
    kind = provider_type(handle)
    return {
        "handle": handle,
        "name": name,
        "display_name": name,
        "model": name,
        "model_type": "llm",
        "context_window": window or UNKNOWN_WINDOW,
        "max_context_window": window or UNKNOWN_WINDOW,
        "provider_type": kind,
        "provider_name": provider or "mnemogate",
        "provider_category": "base",
        "model_endpoint_type": kind,
        "model_endpoint": None,
    }


def embedding_model_json(handle: str) -> dict[str, Any]:
    """Returns the embedder of the gateway, of which there is one."""
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


def embedding_config_json(config: dict[str, Any] | None, handle: str | None) -> dict[str, Any] | None:
    """Returns the older object about an embedder: as given, else made of its handle.

    handle: None: there is no such object. "": it is made, without a handle.

    Clients before 1.0 demand one where a handle was given; what makes vectors here is the setting memory.embedder.
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
