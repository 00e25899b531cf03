from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.responses.response_client import serve_memory
from tests.gateway.sdk import World, agent


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    """A gateway before an upstream that has chat completions only. Other modules replace it by one of their own."""
    with serve_memory(upstream, tmp_path, agent()) as made:
        yield made
