"""The other endpoints: forwards a request to an upstream as it is, and the answer to the client. No memory.

A request fails over as a chat does (`gateway.run.upstream.failover`), with two exceptions. Objects that an upstream
stores (files, batches, responses and the like) are in the account of one key: only that key is used, and a request that
may have created one is not sent again. An upload cannot be read twice, so it is sent once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Final

from adapters.base import Provider
from adapters.capabilities import Capabilities
from gateway.core.request.identity import IdentityRules, find_request_user
from gateway.core.request.requested_agent import asks_agent
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.usage.reported import costs_tokens
from gateway.errors import BadRequest, NotAllowed, UnknownModel, UnknownPath, UpstreamError
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.outgoing import COMPLETIONS_PATH, OutgoingRequest
from gateway.run.upstream.relay import relay
from gateway.run.upstream.route import Route, find_aliased_route, is_listed, make_unknown_upstream_error
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.planned_call import PlannedCall
from gateway.settings import Settings
from storage.records import DEFAULT_PROJECT

# A JSON answer up to this size is held, so that one which breaks off is an error status. Not measured: a larger one is
# streamed, and breaks off for the client as well.
_HELD_JSON_BYTES: Final = 8 * 1024 * 1024
# The code of the error for a path that an upstream does not serve.
_NO_ENDPOINT: Final = "unsupported_endpoint"
_RESPONSES_HINT: Final = (
    " What the gateway answered itself is kept as turns of its user's memory: go on from it by `previous_response_id`, "
    "and see or delete it with `mnemogate memory show` and `mnemogate memory forget`."
)
_RESPONSES: Final = "/responses"
# Paths of requests that another model may answer once a limit is reached.
_WITH_SUBSTITUTE: Final = (COMPLETIONS_PATH, "/messages", _RESPONSES)
# Paths with bodies that name no model: of a batch, the models stand in a file.
_WITHOUT_MODEL: Final = (
    "/files",
    "/uploads",
    "/batches",
    "/vector_stores",
    "/containers",
    "/skills",
    "/videos/",
    "/content_provenance_checks",
)


class Forwarder:
    """The pass-through of every endpoint that has no route of its own; one for the process."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        failover: Failover,
        rules: Callable[[str], IdentityRules],
        get_model_route: Callable[[str], Route],
        limiter: Limiter,
    ) -> None:
        """Makes the forwarder; no upstream is asked yet.

        rules: returns the identity rules of a project.
        get_model_route: returns the route for a model's name.
        """
        self._limiter = limiter
        self._settings = settings
        self._get_model_route = get_model_route
        self._rules = rules
        self._providers = providers
        # The names of the upstreams.
        self._upstream_names = frozenset(each.name for each in settings.upstreams)
        self._failover = failover
        # The numbers by which requests without a conversation are spread over endpoints, the next number first.
        self._round_robin = count()

    def get_route(
        self,
        path: str,
        model: str | None,
        upstream_name: str | None,
        *,
        is_searched: bool = True,
        needs_messages_api: bool = False,
    ) -> Route:
        """Returns the route of a request, to an upstream that has the endpoint. The model is "" if none is named.

        path: the path below the base URL.
        upstream_name: the upstream that the caller asks for. If no upstream and no model is named, the first upstream
            with such an endpoint answers.
        is_searched: False: a part of the body was not read, so `model` may be None although the request names one.
        needs_messages_api: True: only an upstream that speaks Anthropic's Messages API has the endpoint, unless the
            caller names one.

        Raises: BadRequest, UnknownModel, UnknownPath.
        """
        needs_messages_api = needs_messages_api and upstream_name is None
        if not is_searched and self._settings.models and not path.startswith(_WITHOUT_MODEL):
            raise BadRequest(
                "The models of this gateway are a closed list, so the body must be one that can be read: JSON "
                "(`content-type: application/json`, not compressed), or a form whose `model` stands before its file.",
                param="model",
            )
        route = self._resolve_route(path, model, upstream_name, needs_messages_api=needs_messages_api)
        upstream = route.upstream
        if not self._has_endpoint(upstream, path, needs_messages_api=needs_messages_api):
            public_path = "/v1" + path.partition("?")[0]
            if model is None:
                hint = _RESPONSES_HINT if path.startswith("/responses/") else ""
                raise UnknownPath(f"The upstream {upstream!r} has no {public_path}.{hint}", code=_NO_ENDPOINT)
            raise UnknownPath(
                f"The model {model!r} is served by the upstream {upstream!r}, which has no {public_path}.",
                param="model",
                code=_NO_ENDPOINT,
            )
        return route

    def has_endpoint(self, path: str) -> bool:
        """Returns whether some upstream has an endpoint."""
        return any(self._providers[name].has_endpoint(path) for name in self._upstream_names)

    def has_upstream_without(self, path: str) -> bool:
        """Returns whether some upstream has no such endpoint, so that its models answer by chat completions."""
        return not all(self._providers[name].has_endpoint(path) for name in self._upstream_names)

    def is_translated_to_chat(
        self, path: str, model: str | None, upstream_name: str | None, *, continues_here: bool
    ) -> bool:
        """Returns whether a request for a response is answered by way of chat completions.

        This is so for agents, for upstreams that do not store responses, and for a request that continues a response of
        the gateway. The last two are ruled out by a header that names another upstream than the model's.

        continues_here: True if the request continues a response that the gateway stores.
        path: the path below the base URL.
        model: the model that the request names; None: the request names no model.
        upstream_name: the upstream that the caller asks for; None: the caller asks for no upstream.

        Raises: UnknownModel, BadRequest.
        """
        if model is not None and asks_agent(model):
            return True
        upstream = self._resolve_route(path, model, upstream_name).upstream
        if self._providers[upstream].has_endpoint(path) and not continues_here:
            return False
        names_other_upstream = (
            upstream_name is not None and self._resolve_route(path, model, None).upstream != upstream_name
        )
        return not names_other_upstream

    def list_capabilities(
        self, path: str, model: str | None, upstream_name: str | None
    ) -> list[Capabilities]:
        """Returns the capabilities of all upstreams that may answer, or [] while the model of an agent is not known.

        The arguments are as for `get_route`.
        """
        if model is None or asks_agent(model):
            return []
        route = self._resolve_route(path, model, upstream_name)
        return [self._providers[each.upstream].capabilities for each in route.targets]

    def _resolve_route(
        self, path: str, model: str | None, upstream_name: str | None, *, needs_messages_api: bool = False
    ) -> Route:
        """Returns the route of a request, whether its upstream has the endpoint or not."""
        if upstream_name is not None and upstream_name not in self._upstream_names:
            raise make_unknown_upstream_error(upstream_name)
        # Files, models and the like are asked for without a model.
        if model is None:
            return Route(
                upstream_name or self._choose_upstream(path, needs_messages_api=needs_messages_api), model=""
            )
        if asks_agent(model):
            raise BadRequest(
                f"{model!r} answers chat completions and responses only; name the model itself here.",
                param="model",
            )
        if upstream_name is not None:
            aliased_route = find_aliased_route(self._settings, upstream_name, model)
            if aliased_route is not None:
                return aliased_route
            if not is_listed(self._settings, upstream_name, model):
                raise UnknownModel.for_name(model)
            return Route(upstream_name, model)
        return self._get_model_route(model)

    def _choose_upstream(self, path: str, *, needs_messages_api: bool) -> str:
        """Returns the name of the first upstream with an endpoint; if none has it, of the first upstream."""
        names = [each.name for each in self._settings.upstreams]
        having = (
            name for name in names if self._has_endpoint(name, path, needs_messages_api=needs_messages_api)
        )
        return next(having, names[0])

    def _has_endpoint(self, name: str, path: str, *, needs_messages_api: bool) -> bool:
        """Returns whether an upstream has an endpoint. needs_messages_api: as for `get_route`."""
        provider = self._providers[name]
        return provider.capabilities.speaks_messages if needs_messages_api else provider.has_endpoint(path)

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
        return route if substitute is None else self._get_model_route(substitute).in_place_of(route)

    def _may_answer(self, route: Route, outgoing: OutgoingRequest, model: str) -> bool:
        """Returns whether another model may answer a request: its upstream has the endpoint and all that is stored."""
        path, upstream = outgoing.upstream_path.partition("?")[0], self._get_model_route(model).upstream
        if not path.startswith(_WITH_SUBSTITUTE) or not self._providers[upstream].has_endpoint(path):
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
