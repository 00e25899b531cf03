"""Embedders: those of an API, with answers that are checked, and those in this process."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters.embeddings import ApiEmbedder
from adapters.errors import ProviderRefused, ProviderReplyBroken, ProviderUnreachable
from adapters.factory import make_provider
from adapters.local_embeddings import EmbedderMissing, LocalEmbedder
from tests.doubles.upstream import Reply, StrictUpstream, fail

JSON = {"content-type": "application/json"}


@pytest.fixture
async def embedder(upstream: StrictUpstream) -> AsyncIterator[ApiEmbedder]:
    made = ApiEmbedder(make_provider("openai", name="up", base_url=upstream.base_url, key="sk-up"), "vec")
    yield made
    await made.aclose()


def numbers(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


def answer(*vectors: Any, **more: Any) -> Reply:
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return Reply(headers=JSON, body=[orjson.dumps({"object": "list", "data": data, **more})])


async def test_each_text_has_a_vector_of_length_one_in_its_place(
    embedder: ApiEmbedder, upstream: StrictUpstream
) -> None:
    upstream.key = "sk-up"
    upstream.endpoints.vector_of = lambda text: [3.0, 4.0] if text == "a" else [0.0, 2.0]
    made = await embedder.embed(["a", "b"])
    assert [numbers(v) for v in made.vectors] == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]
    assert (embedder.name, made.tokens) == ("up/vec", 2)
    assert orjson.loads(upstream.last.body) == {"model": "vec", "input": ["a", "b"]}


async def test_a_count_of_tokens_that_cannot_be_is_estimated(
    embedder: ApiEmbedder, upstream: StrictUpstream
) -> None:
    upstream.queue(answer([1.0], usage={"total_tokens": 2**63}))
    assert 0 < (await embedder.embed(["a"])).tokens < 100


async def test_vectors_are_put_where_their_index_says(
    embedder: ApiEmbedder, upstream: StrictUpstream
) -> None:
    data = [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}]
    upstream.queue(Reply(headers=JSON, body=[orjson.dumps({"data": data})]))
    made = await embedder.embed(["a", "b"])
    assert [numbers(v) for v in made.vectors] == [[1.0, 0.0], [0.0, 1.0]]
    assert made.tokens > 0  # it did not say, and is counted by what was asked


async def test_a_vector_of_zeros_is_like_nothing(embedder: ApiEmbedder, upstream: StrictUpstream) -> None:
    upstream.queue(answer([0, 0, 0]))
    (vector,) = (await embedder.embed(["a"])).vectors
    assert numbers(vector) == [0.0] * 3


async def test_a_large_answer_is_read_in_a_thread(embedder: ApiEmbedder, upstream: StrictUpstream) -> None:
    upstream.endpoints.vector_of = lambda text: [1.0] * 3072
    assert len((await embedder.embed(["text"] * 64)).vectors) == 64


@pytest.mark.parametrize(
    "reply",
    [
        answer([1, 2]),  # one too few
        answer([1, 2], [3, 4], [5, 6]),
        answer([1, 2], [3]),
        answer([], []),
        answer([1, 2], None),
        answer([1, 2], [None, 1]),
        answer([1, 2], ["a", "b"]),
        answer([1e300, 1e300], [1, 2]),
        answer([[1, 2]], [[3, 4]]),
        answer("AAAA", "BBBB"),
        Reply(headers=JSON, body=[b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}']),
        Reply(
            headers=JSON,
            body=[b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]}'],
        ),
        Reply(
            headers=JSON,
            body=[b'{"data": [{"index": 0, "embedding": [1]}, {"index": 7, "embedding": [2]}]}'],
        ),
        Reply(
            headers=JSON,
            body=[b'{"data": [{"index": 0, "embedding": [1]}, {"index": -1, "embedding": [2]}]}'],
        ),
        Reply(headers=JSON, body=[b'{"data": {"a": 1, "b": 2}}']),
        Reply(headers=JSON, body=[b'{"data": 3}']),
        Reply(headers=JSON, body=[b"[]"]),
        Reply(headers=JSON, body=[b"<html>"]),
    ],
)
async def test_garbage_is_refused(embedder: ApiEmbedder, upstream: StrictUpstream, reply: Reply) -> None:
    upstream.queue(reply)
    with pytest.raises(ProviderReplyBroken):
        await embedder.embed(["a", "b"])


async def test_an_error_has_its_status_and_when_to_retry(
    embedder: ApiEmbedder, upstream: StrictUpstream
) -> None:
    upstream.queue(fail(429, "Slow down.", retry_after="7"), fail(500, "Oh."))
    with pytest.raises(ProviderRefused) as refused:
        await embedder.embed(["a"])
    assert (refused.value.status, refused.value.retry_after_s) == (429, 7.0)
    with pytest.raises(ProviderRefused) as refused:
        await embedder.embed(["a"])
    assert (refused.value.status, refused.value.retry_after_s) == (500, None)


async def test_an_embedder_without_a_server_is_unreachable(
    embedder: ApiEmbedder, upstream: StrictUpstream
) -> None:
    upstream.stop()
    with pytest.raises(ProviderUnreachable):
        await embedder.embed(["a"])


# -- in this process

_TOKENIZERS = """
class Tokenizer:
    @staticmethod
    def from_file(path):
        assert path.endswith("l2_supercat_tokenizer_config.json")
        return Tokenizer()
    def no_truncation(self): pass
    def no_padding(self): pass
    def encode(self, text, add_special_tokens):
        self.ids = [len(word) for word in text.split()]
        return self
"""


def safetensors(rows: list[list[float]], dtype: str = "F16") -> bytes:
    data = b"".join(struct.pack(f"<{len(row)}e", *row) for row in rows)
    shape = [len(rows), len(rows[0])]
    header = orjson.dumps(
        {"embedding.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    )
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Lays out what the extra installs, with a table of three words and pieces that are words by their length."""

    def make(table: bytes | None = None) -> Path:
        package = tmp_path / "wordllama"
        for folder in ("weights", "tokenizers"):
            (package / folder).mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('its code is not wanted')")
        data = safetensors([[0, 0], [3, 0], [0, 4]]) if table is None else table
        (package / "weights" / "l2_supercat_256.safetensors").write_bytes(data)
        (package / "tokenizers" / "l2_supercat_tokenizer_config.json").write_text("{}")
        (tmp_path / "tokenizers").mkdir()
        (tmp_path / "tokenizers" / "__init__.py").write_text(_TOKENIZERS)
        for name in ("wordllama", "tokenizers"):
            monkeypatch.setitem(
                sys.modules, name, sys
            )  # so that it is taken out again, even if it was not there
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        return package

    return make


async def test_a_text_is_the_mean_of_its_pieces(install: Callable[..., Path]) -> None:
    install()
    embedder = LocalEmbedder()
    made = await embedder.embed(["a", "a bb", "", *["bb"] * 20])
    await embedder.aclose()
    assert numbers(made.vectors[0]) == [1.0, 0.0]
    assert numbers(made.vectors[1]) == pytest.approx([0.6, 0.8])
    assert numbers(made.vectors[2]) == [0.0, 0.0]
    assert [numbers(v) for v in made.vectors[3:]] == [[0.0, 1.0]] * 20
    assert made.tokens == 0


async def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, install: Callable[..., Path]
) -> None:
    monkeypatch.setattr("adapters.local_embeddings.find_spec", lambda name: None)
    with pytest.raises(EmbedderMissing, match=r"\.\[local\]"):
        LocalEmbedder()
    monkeypatch.undo()


async def test_a_package_that_is_laid_out_otherwise_is_refused(install: Callable[..., Path]) -> None:
    package = install(safetensors([[1, 2]], dtype="F64"))
    embedder = LocalEmbedder()
    with pytest.raises(EmbedderMissing, match="F64"):
        await embedder.embed(["a"])
    await embedder.aclose()
    (package / "tokenizers" / "l2_supercat_tokenizer_config.json").unlink()
    with pytest.raises(EmbedderMissing, match=r"version 0\.4 has"):
        LocalEmbedder()


async def test_the_installed_table_puts_similar_texts_near_each_other() -> None:
    embedder = LocalEmbedder()
    cat, kitten, tax = map(
        numbers, (await embedder.embed(["My cat is ill.", "The kitten is sick.", "Tax law in Peru"])).vectors
    )
    await embedder.aclose()
    assert len(cat) == 256
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (kitten, tax))
    assert near > far + 0.2
