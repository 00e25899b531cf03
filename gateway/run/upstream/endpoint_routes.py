"""Chooses the upstream of a request to an endpoint that has no route of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from adapters.base import Provider
from adapters.capabilities import Capabilities
from gateway.core.request.requested_agent import asks_agent
from gateway.errors import BadRequest, UnknownModel, UnknownPath
from gateway.run.upstream.route import Route, find_aliased_route, is_listed, make_unknown_upstream_error
from gateway.settings import Settings

# The code of the error for a path that an upstream does not serve.
_NO_ENDPOINT: Final = "unsupported_endpoint"
_RESPONSES_HINT: Final = (
    " What the gateway answered itself is kept as turns of its user's memory: go on from it by `previous_response_id`, "
    "and see or delete it with `mnemogate memory show` and `mnemogate memory forget`."
)
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


class EndpointRoutes:
    """The routes to the endpoints of upstreams. One for the process."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        get_model_route: Callable[[str], Route],
    ) -> None:
        """Makes the routes; no upstream is asked for them.

        providers: the providers by the names of their upstreams.
        get_model_route: returns the route for a model's name. Raises: UnknownModel.
        """
        self._settings = settings
        self._providers = providers
        # Returns the route for a model's name. Raises: UnknownModel.
        self.get_model_route = get_model_route
        # The names of the upstreams.
        self._upstream_names = frozenset(each.name for each in settings.upstreams)

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
        if not self.has_endpoint_at(upstream, path, needs_messages_api=needs_messages_api):
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

    def has_endpoint_at(self, upstream: str, path: str, *, needs_messages_api: bool = False) -> bool:
        """Returns whether an upstream has an endpoint. needs_messages_api: as for `get_route`."""
        provider = self._providers[upstream]
        return provider.capabilities.speaks_messages if needs_messages_api else provider.has_endpoint(path)

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
        return self.get_model_route(model)

    def _choose_upstream(self, path: str, *, needs_messages_api: bool) -> str:
        """Returns the name of the first upstream with an endpoint; if none has it, of the first upstream."""
        names = [each.name for each in self._settings.upstreams]
        having = (
            name for name in names if self.has_endpoint_at(name, path, needs_messages_api=needs_messages_api)
        )
        return next(having, names[0])
