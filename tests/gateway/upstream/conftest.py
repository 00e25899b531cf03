"""The gateway before two upstreams, of either kind."""

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
from tests.gateway.upstream.two import Claude, Open, Two


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def two(tmp_path: Path, kind: Any) -> Iterator[Open]:
    with Claude() if kind == "anthropic" else StrictUpstream() as first, StrictUpstream() as second:

        @contextmanager
        def opened(
            *,
            fallbacks: Sequence[str] = ("other",),
            url: str | None = None,
            window: int | None = None,
            deployments: Sequence[DeploymentSettings] = (),
            second_key: str | None = "k2",
            server: dict[str, Any] | None = None,
            profiles: Sequence[Any] = (),
            **of_first: Any,
        ) -> Iterator[Two]:
            of_first.setdefault("api_key", "k1")
            upstreams = (
                UpstreamSettings("first", kind, url or first.base_url, **of_first),
                UpstreamSettings("second", base_url=second.base_url, api_key=second_key),
            )
            models = (
                ModelSettings(
                    "m", "big", "first", fallbacks=tuple(fallbacks), deployments=tuple(deployments)
                ),
                ModelSettings("other", "small", "second", window),
                ModelSettings("large", "large", "second"),
            )
            parts: dict[str, Any] = {"upstreams": upstreams, "models": models, "server": server}
            with remember(first, tmp_path, *profiles, **parts) as world:
                found = Two(world, first, second, [], kind)
                failover = world.gateway.app.services.chat.failover

                async def sleep(seconds: float) -> None:
                    found.waits.append(seconds)

                failover.now, failover.sleep, failover.chance = (lambda: found.now), sleep, (lambda: 1.0)
                yield found
                found.settle()

        yield opened
