"""Real clients by name. `make_client` imports a client's library: the imports of all take a quarter of a minute."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from tests.clients.base import City, Client, ErrorReport

__all__ = ["CANCELLABLE", "CLIENTS", "CLOSABLE", "City", "Client", "ErrorReport", "make_client"]

# name -> (module of this package, class)
CLIENTS = {
    "httpx": ("bare", "Httpx"),
    "aiohttp": ("bare", "Aiohttp"),
    "requests": ("bare", "Requests"),
    "urllib": ("bare", "Urllib"),
    "openai": ("sdks", "AsyncSdk"),
    "openai-sync": ("sdks", "SyncSdk"),
    "openai-helpers": ("sdks", "SdkHelpers"),
    "pydantic-ai": ("frameworks", "PydanticAI"),
    "langchain": ("frameworks", "LangChain"),
    "openai-agents": ("frameworks", "OpenAIAgents"),
    "agno": ("frameworks", "Agno"),
    "haystack": ("frameworks", "Haystack"),
    "smolagents": ("frameworks", "Smolagents"),
    "livekit": ("frameworks", "LiveKit"),
}
# Clients that are not async: a call cannot be cancelled, but a stream can be closed.
CLOSABLE = ("requests", "urllib", "openai-sync")
# Async clients, whose calls can be cancelled. smolagents is not async, and does not close a stream.
CANCELLABLE = tuple(name for name in CLIENTS if name not in (*CLOSABLE, "smolagents"))


def make_client(name: str, url: str, model: str, headers: Mapping[str, str]) -> Client:
    module, class_name = CLIENTS[name]
    client: Client = getattr(import_module(f"tests.clients.{module}"), class_name)(url, model, headers)
    return client
