"""The routes to the models of requests, and which requests the upstreams of a route take."""

from __future__ import annotations

from functools import lru_cache, partial
from operator import attrgetter

from gateway.core.conversation.kind import ConversationKind
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.requested_agent import asks_agent
from gateway.run.call import ChatCall
from gateway.run.resolver import ResolvedRequest
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.form_choice import choose_native_body
from gateway.run.upstream.route import Route, make_agent_route, resolve_route
from gateway.settings import Settings

# The most routes that are cached, by the model's name. Bounded, since callers choose the names.
_MAX_ROUTES = 256
# The capabilities that an upstream needs for tools, by the types of the tools. Functions are taken or translated
# everywhere.
_TOOL_CAPABILITIES = {
    "custom": attrgetter("custom_tools"),
    "web_search_20250305": attrgetter("web_search"),
}


class ModelRoutes:
    """The routes to models. One for the process."""

    def __init__(self, settings: Settings, failover: Failover) -> None:
        self._settings = settings
        self._failover = failover
        # Returns the route to a model. Raises: UnknownModel.
        self.get_route = lru_cache(maxsize=_MAX_ROUTES)(partial(resolve_route, settings))

    def get_requested_route(self, resolved: ResolvedRequest) -> Route:
        """Returns the route to the model that a request names, or to the model of the agent that it names."""
        if resolved.identity.agent is not None and asks_agent(resolved.request.model):
            return make_agent_route(self._settings, resolved.spec)
        return self.get_route(resolved.request.model)

    def may_answer(self, call: ChatCall, model: str) -> bool:
        """Returns whether another model may answer a request.

        The upstreams of the model have to take the request as it is. The request of an agent goes to its own model.
        """
        if call.native_request is not None:
            upstream = self.get_route(model).upstream
            if not self._takes_responses(upstream):
                return False
            # The objects that a request refers to are stored at the upstream that was asked.
            return not call.native_request.refers_to_stored or upstream == call.route.upstream
        return call.kind is not ConversationKind.AGENT and self._takes_whole(model, call.request)

    def _takes_whole(self, model: str, request: ChatRequest) -> bool:
        """Returns whether all upstreams of a model take a request: its tools, and fields that have no translation."""
        endpoints = [*self._failover.list_endpoints(self.get_route(model))]
        body = request.native_body
        is_untranslatable = body is not None and bool(body.untranslatable)
        if is_untranslatable and any(choose_native_body(request, endpoint) is None for endpoint in endpoints):
            return False
        tools = [tool for tool in request.json.get("tools") or () if isinstance(tool, dict)]
        tool_types = {str(tool.get("type")) for tool in tools}
        checks = [check for tool_type, check in _TOOL_CAPABILITIES.items() if tool_type in tool_types]
        return all(check(endpoint.provider.capabilities) for endpoint in endpoints for check in checks)

    def _takes_responses(self, upstream: str) -> bool:
        """Returns whether an upstream takes requests for responses as they are."""
        endpoints = self._failover.endpoints[upstream]
        return bool(endpoints) and endpoints[0].provider.has_endpoint("/responses")

    def takes_messages(self, route: Route) -> bool:
        """Returns whether the upstream of a route takes requests in Anthropic's dialect as they are."""
        endpoints = self._failover.endpoints[route.upstream]
        return bool(endpoints) and endpoints[0].provider.capabilities.speaks_messages

    def all_take_native_body(self, call: ChatCall) -> bool:
        """Returns whether all endpoints that may answer a request speak its client's dialect."""
        return call.request.native_body is not None and all(
            choose_native_body(call.request, endpoint) is not None
            for endpoint in self._failover.list_endpoints(call.route)
        )
