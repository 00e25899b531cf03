"""Routes for load balancers and collectors: `/health` (it lives), `/health/ready` (it takes requests), `/metrics`.

`/` explains the gateway to a visitor with a browser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.metrics import Metrics
from gateway.web.json_response import JsonResponse

HOME = """\
This is Mnemogate, an OpenAI-compatible gateway that remembers.

The API lies under /v1 of this address. Give an application the address with /v1 as its base URL.
Letta's client adds the /v1 itself: give it the address alone.

POST /v1/chat/completions   a reply, with memory
POST /v1/responses          the same for clients of OpenAI's Responses API
POST /v1/messages           the same for clients of Anthropic's API
POST /v1/agents/            the agents API, for Letta's clients
GET  /v1/models             the models there are
GET  /health/ready          whether requests are taken
"""


@dataclass(slots=True)
class Readiness:
    """The state of the process, for load balancers."""

    # Returns the status of the store: "ok", or its fault.
    read_store_status: Callable[[], str]
    # True once the startup is over: the store is open, and requests are taken.
    has_started: bool = False
    # True while the process stops: running requests end, and new ones should go elsewhere.
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        """True if requests are taken."""
        return self.has_started and not self.is_draining

    def report(self) -> dict[str, str]:
        """Returns the statuses of the process and of the store.

        If the store is down, the gateway is degraded and still ready, because chat goes on without memory.
        """
        store_status = self.read_store_status()
        if not self.is_ready:
            status = "draining" if self.is_draining else "starting"
        else:
            status = "ok" if store_status == "ok" else "degraded"
        return {"status": status, "store": store_status}


def make_home_routes() -> list[Route]:
    """Returns the routes that explain the gateway to a visitor."""

    async def home(_: Request) -> Response:
        return Response(HOME, media_type="text/plain")

    # Before a run Claude Code sends HEAD to one of these paths. Starlette serves HEAD where GET is served.
    return [Route("/", home), Route("/api/hello", home)]


def make_health_routes(readiness: Readiness, metrics: Metrics) -> list[Route]:
    """Returns the routes for load balancers and for collectors of metrics."""

    async def live(_: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        return JsonResponse(readiness.report(), 200 if readiness.is_ready else 503)

    async def scrape(_: Request) -> Response:
        return Response(await metrics.scrape(), headers={"content-type": metrics.content_type})

    return [Route("/health", live), Route("/health/ready", ready), Route("/metrics", scrape)]
