"""Embedders that `scripts/bench recall --embedder` measures: the product's own, and whatever serves `/embeddings`."""

from __future__ import annotations

from adapters.base import Embedder
from adapters.embeddings import ApiEmbedder
from adapters.local_embeddings import LocalEmbedder
from adapters.openai import OpenAICompatible


def make_embedder(name: str) -> Embedder:
    """Returns an embedder.

    name: `local`, or the base URL of a server, with the model's name after a `#`.
    """
    if name == "local":
        return LocalEmbedder()
    base_url, _, model = name.partition("#")
    return ApiEmbedder(OpenAICompatible("embedder", base_url), model or "embedder")
