"""The embedder of the settings, as memory calls it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from adapters.base import Embedder
from adapters.errors import ProviderError
from adapters.types import EmbeddingResult, ModelRequest
from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from gateway.errors import SettingsError, UnknownModel
from gateway.run.background.background_model import CALL_S
from gateway.run.background.memory_call import open_memory_call
from gateway.run.upstream.route import Route, make_unknown_model_error, resolve_route
from gateway.run.usage.meter import Meter
from gateway.settings import Settings
from storage.records import Vector
from storage.run_records import TokenCounts

_log = logging.getLogger("mnemogate")

# The name of the embedder that runs in this process, in `memory.embedder`.
LOCAL_EMBEDDER = "local"


def find_embedder_route(settings: Settings) -> Route | None:
    """Returns the route of memory.embedder; None: no embedder is named, or it is local. Raises: SettingsError."""
    model = settings.memory.embedder
    if model is None or model == LOCAL_EMBEDDER:
        return None
    try:
        route = resolve_route(settings, model, is_named_by_operator=True)
    except UnknownModel as error:
        mistake = make_unknown_model_error(settings, "memory.embedder", error)
        raise SettingsError(f"{mistake.message}; {LOCAL_EMBEDDER!r} is the one in this process") from error
    upstream = settings.get_upstream(route.upstream)
    if upstream.kind in ("anthropic", "scripted"):
        raise SettingsError(f"memory.embedder: {upstream.name!r} ({upstream.kind}) has no embeddings")
    return route


def read_upstream_kind(settings: Settings, embedder: Embedder) -> str:
    """Returns the kind of the upstream of an embedder; "": it is local."""
    name = embedder.name.partition("/")[0]
    return next((each.kind for each in settings.upstreams if each.name == name), "")


class MeteredEmbedder:
    """The embedder, with calls that are in the receipt of the present work, and tokens that are counted."""

    def __init__(self, embedder: Embedder, meter: Meter | None = None, kind: str = "") -> None:
        """Begins without vectors of the baseline texts.

        meter: the meter that counts the tokens of questions; None: no tokens are counted.
        kind: the kind of the embedder's upstream, in the settings.
        """
        self._embedder = embedder
        self._meter = meter
        self._kind = kind
        # The name of the embedder, which is stored with its vectors.
        self.name = embedder.name
        # True: the embedder runs in this process.
        self.is_local = embedder.is_local
        # The names of the embedder's upstream and of its model.
        self.upstream, _, self.model = embedder.name.partition("/")
        # The vectors of the baseline texts (gateway.core.memory.baseline_texts); None: not made yet.
        self.baseline: Sequence[bytes] | None = None

    async def warm(self) -> None:
        """Embeds the baseline texts, so that the first question does not wait for files or connections to open."""
        try:
            embedded = await self.embed(BASELINE_TEXTS, CALL_S)
            self.meter_call(0, embedded)  # the call is for no memory
            self.baseline = embedded.vectors
        except Exception as error:
            # Jobs will try again.
            reason = error.message if isinstance(error, ProviderError) else repr(error)
            _log.warning(
                "The embedder %s does not answer; it is asked again with the next job: %s", self.name, reason
            )

    async def embed(self, texts: Sequence[str], wait_s: float) -> EmbeddingResult:
        """Calls the embedder. A call of an upstream is added to the receipt of the request or job under way.

        Raises: TimeoutError; ProviderError.
        """
        if self.is_local:
            async with asyncio.timeout(wait_s):
                return await self._embedder.embed(texts)
        # The embedder makes its request by itself. Only the path of the request is known here.
        request = ModelRequest(b"", path="/embeddings")
        with open_memory_call(request, self.upstream, self._kind, self.model) as call:
            async with asyncio.timeout(wait_s):
                embedded = await self._embedder.embed(texts)
            call.status = 200
            call.counts = TokenCounts(embedded.tokens)
            return embedded

    def meter_call(self, agent_row: int, embedded: EmbeddingResult) -> None:
        """Counts the tokens of a call that no budget bounds. agent_row: the memory's row; 0: it was for no memory."""
        if embedded.tokens and self._meter is not None:
            counts = TokenCounts(embedded.tokens)
            self._meter.background.add("", agent_row, self.upstream, self.model, counts)

    def make_vector(self, data: bytes) -> Vector:
        """Returns the vector of a question, compared with the baseline if that is known. data: as in `Vector`."""
        if self.baseline is None or len(self.baseline[0]) != len(data):
            # The embedder's vectors have another length than before: the next job embeds the baseline again.
            self.baseline = None
            return Vector(self.name, data)
        # Not at start: numpy is loaded by the first search of a memory, which comes before this.
        import numpy as np

        baseline = np.frombuffer(b"".join(self.baseline), "<f4").reshape(len(self.baseline), -1)
        similarities = np.einsum("ij,j->i", baseline, np.frombuffer(data, "<f4"))
        return Vector(self.name, data, float(similarities.mean()), float(similarities.std()))
