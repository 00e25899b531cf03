"""Worlds in which clients send their histories."""

from __future__ import annotations

import pytest

from tests.core.conversations import (
    World,
)


@pytest.fixture
def world() -> World:
    """Whatever is sent here goes upstream as it is."""
    return World(adds_nothing=True)


@pytest.fixture
def filling_world() -> World:
    """Here what a list left out goes before it."""
    return World()
