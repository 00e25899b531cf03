"""Real clients by name. Each is imported when it is made: the frameworks together take a quarter of a minute."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from tests.clients.base import City, Client, Failure

__all__ = ["CANCELLED", "CLIENTS", "CLOSED", "City", "Client", "Failure", "make"]

CLIENTS = {
    "httpx": ("bare", "Httpx"),
    "aiohttp": ("bare", "Aiohttp"),
    "requests": ("bare", "Requests"),
    "urllib": ("bare", "Urllib"),
    "openai": ("sdks", "Async"),
    "openai-sync": ("sdks", "Sync"),
    "openai-helpers": ("sdks", "Helpers"),
    "pydantic-ai": ("frameworks", "PydanticAI"),
    "langchain": ("frameworks", "LangChain"),
    "openai-agents": ("frameworks", "OpenAIAgents"),
    "agno": ("frameworks", "Agno"),
    "haystack": ("frameworks", "Haystack"),
    "smolagents": ("frameworks", "Smolagents"),
    "livekit": ("frameworks", "LiveKit"),
}
CLOSED = ("requests", "urllib", "openai-sync")
"""Those that are not async: a call of theirs cannot be cancelled, but a stream be closed."""
CANCELLED = tuple(name for name in CLIENTS if name not in (*CLOSED, "smolagents"))
"""smolagents can do neither: what is left of a stream is collected some time."""


def make(name: str, url: str, model: str, headers: Mapping[str, str]) -> Client:
    module, kind = CLIENTS[name]
    made: Client = getattr(import_module(f"tests.clients.{module}"), kind)(url, model, headers)
    return made
