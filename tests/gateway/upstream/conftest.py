"""The fixture `open_failover`, with a first upstream of either dialect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import DeploymentSettings, ModelSettings, UpstreamSettings
from tests.doubles.upstream import (
    StrictUpstream,
)
from tests.gateway.sdk import remember
from tests.gateway.upstream.failover_world import FailoverWorld, OpenaiQueuedClaude, OpenFailover


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    """The dialect of the first upstream."""
    dialect: str = request.param
    return dialect


@pytest.fixture
def open_failover(tmp_path: Path, kind: Any) -> Iterator[OpenFailover]:
    with (
        OpenaiQueuedClaude() if kind == "anthropic" else StrictUpstream() as first,
        StrictUpstream() as second,
    ):

        @contextmanager
        def open_world(
            *,
            fallbacks: Sequence[str] = ("other",),
            url: str | None = None,
            window: int | None = None,
            deployments: Sequence[DeploymentSettings] = (),
            second_key: str | None = "k2",
            server: dict[str, Any] | None = None,
            profiles: Sequence[Any] = (),
            **first_options: Any,
        ) -> Iterator[FailoverWorld]:
            first_options.setdefault("api_key", "k1")
            upstreams = (
                UpstreamSettings("first", kind, url or first.base_url, **first_options),
                UpstreamSettings("second", base_url=second.base_url, api_key=second_key),
            )
            models = (
                ModelSettings(
                    "m", "big", "first", fallbacks=tuple(fallbacks), deployments=tuple(deployments)
                ),
                ModelSettings("other", "small", "second", window),
                ModelSettings("large", "large", "second"),
            )
            options: dict[str, Any] = {"upstreams": upstreams, "models": models, "server": server}
            with remember(first, tmp_path, *profiles, **options) as world:
                failover_world = FailoverWorld(world, first, second, [], kind)
                failover = world.gateway.app.services.chat.failover

                async def sleep(seconds: float) -> None:
                    failover_world.waits.append(seconds)

                failover.now = lambda: failover_world.now
                failover.sleep = sleep
                failover.chance = lambda: 1.0
                yield failover_world
                failover_world.settle()

        yield open_world
