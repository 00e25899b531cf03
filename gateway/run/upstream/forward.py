"""The other endpoints: forwards a request to an upstream as it is, and the answer to the client. No memory.

A request fails over as a chat does (`gateway.run.upstream.failover`), with two exceptions. Objects that an upstream
stores (files, batches, responses and the like) are in the account of one key: only that key is used, and a request that
may have created one is not sent again. An upload cannot be read twice, so it is sent once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final

from gateway.core.request.identity import IdentityRules, find_request_user
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.usage.reported import costs_tokens
from gateway.errors import NotAllowed, UpstreamError
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.endpoint_routes import EndpointRoutes
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.outgoing import COMPLETIONS_PATH, OutgoingRequest
from gateway.run.upstream.relay import relay
from gateway.run.upstream.route import Route
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.planned_call import PlannedCall
from gateway.settings import Settings
from storage.records import DEFAULT_PROJECT

# A JSON answer up to this size is held, so that one which breaks off is an error status. Not measured: a larger one is
# streamed, and breaks off for the client as well.
_HELD_JSON_BYTES: Final = 8 * 1024 * 1024
_RESPONSES: Final = "/responses"
# Paths of requests that another model may answer once a limit is reached.
_WITH_SUBSTITUTE: Final = (COMPLETIONS_PATH, "/messages", _RESPONSES)


class Forwarder:
    """The pass-through of every endpoint that has no route of its own; one for the process."""

    def __init__(
        self,
        settings: Settings,
        routes: EndpointRoutes,
        failover: Failover,
        rules: Callable[[str], IdentityRules],
        limiter: Limiter,
    ) -> None:
        """Makes the forwarder; no upstream is asked yet.

        rules: returns the identity rules of a project.
        """
        # The routes of requests.
        self.routes = routes
        self._limiter = limiter
        self._settings = settings
        self._rules = rules
        self._failover = failover
        # The numbers by which requests without a conversation are spread over endpoints, the next number first.
        self._round_robin = count()

    def _check_may_list(self, project: str) -> None:
        """Checks that a project may list all objects of an upstream's account, which projects share.

        Raises: NotAllowed.
        """
        settings = self._settings.projects.get(project)
        may_list = None if settings is None else settings.lists_account
        if not (project == DEFAULT_PROJECT if may_list is None else may_list):
            raise NotAllowed(
                "This list has what all projects keep in the upstream's account. "
                f"`projects.{project}.lists_account = true` in the gateway's settings shows it to this one."
            )

    async def forward(
        self,
        route: Route,
        outgoing: OutgoingRequest,
        sink: Sink,
        receipt: Receipt,
        change: ReplyChange | None = None,
    ) -> None:
        """Answers `sink` with the upstream's reply. change: changes the reply; None: the reply passes as it is.

        Raises: NotAllowed; LimitReached; UpstreamError and below; ClientGone, with the upstream's connection closed.
            If the upload failed, its error is raised instead of the upstream's.
        """
        body = b"" if outgoing.body is None else outgoing.body.raw
        rules = self._rules(outgoing.project)
        user = find_request_user(
            outgoing.headers, body, rules, self._failover.wall_clock(), outgoing.read_names
        )
        receipt.user = user or ""
        if costs_tokens(outgoing.method, outgoing.upstream_path):
            route = await self._admit_request(route, outgoing, body, receipt)
        with self._make_attempts(route, outgoing, receipt) as attempts:
            try:
                make = partial(outgoing.make_request, upstream=route.original.upstream, receipt=receipt)
                await relay(
                    attempts,
                    make,
                    sink,
                    receipt,
                    keep_alive_s=self._settings.server.keep_alive_comment_s,
                    json_bytes=_HELD_JSON_BYTES if change is None else None,
                    change=change,
                )
            except UpstreamError as error:
                # The upload broke off on the client's side, and the upstream's error about it is less specific.
                if (cause := outgoing.find_upload_error()) is not None:
                    raise cause from error
                raise

    async def _admit_request(
        self, route: Route, outgoing: OutgoingRequest, body: bytes, receipt: Receipt
    ) -> Route:
        """Admits a request within its limits. Returns its route, which a limit may change. Raises: LimitReached."""
        substitute = await self._limiter.admit(
            receipt,
            PlannedCall(body, None, route.first),
            may_answer=partial(self._may_answer, route, outgoing),
        )
        return route if substitute is None else self.routes.get_model_route(substitute).in_place_of(route)

    def _may_answer(self, route: Route, outgoing: OutgoingRequest, model: str) -> bool:
        """Returns whether another model may answer a request: its upstream has the endpoint and all that is stored."""
        path = outgoing.upstream_path.partition("?")[0]
        upstream = self.routes.get_model_route(model).upstream
        if not path.startswith(_WITH_SUBSTITUTE) or not self.routes.has_endpoint_at(upstream, path):
            return False
        is_response = path.startswith(_RESPONSES)
        return not is_response or upstream == route.upstream or not outgoing.refers_to_stored

    def _make_attempts(self, route: Route, outgoing: OutgoingRequest, receipt: Receipt) -> Attempts:
        """Returns the attempts of a request; nothing is sent yet. Raises: NotAllowed."""
        if outgoing.is_about_stored:
            attempts = self._failover.make_attempts_at_first_key(
                route, receipt, sends_once=outgoing.sends_once, caller_error=outgoing.find_upload_error
            )
            if outgoing.is_list and attempts.endpoint.has_key:
                self._check_may_list(outgoing.project)
            return attempts
        # A request without a conversation belongs to no endpoint, so they take turns.
        return self._failover.make_attempts(
            route,
            lambda: next(self._round_robin),
            receipt,
            outgoing.upstream_path,
            caller_error=outgoing.find_upload_error,
        )
