"""Fixtures that more than one room uses. Settings of the machine that runs the tests have no say in them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.upstream import StrictUpstream

PROVIDER_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MNEMOGATE_") or name in PROVIDER_VARIABLES:
            monkeypatch.delenv(name)


@pytest.fixture
def upstream() -> Iterator[StrictUpstream]:
    with StrictUpstream() as strict:
        yield strict
