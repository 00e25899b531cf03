"""The routes of a gateway: which handler serves which path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.dialects.responses.errors import ResponsesErrors
from gateway.errors import ErrorForm
from gateway.operations import (
    ServingParts,
    make_limit_operations,
    make_operations,
    make_request_operations,
)
from gateway.run.admin.access.key_management import KeyManagement, KeyReport
from gateway.run.admin.access.link_operations import LinkOperations
from gateway.run.admin.operation_table import OperationTable
from gateway.run.admin.usage.usage_operations import UsageOperations
from gateway.run.stored_responses import StoredResponses
from gateway.run.upstream.endpoint_routes import EndpointRoutes
from gateway.run.upstream.forward import Forwarder
from gateway.services import Services
from gateway.web.admin import make_admin_routes
from gateway.web.auth import Guard
from gateway.web.body import BodyReader
from gateway.web.completions import CHAT_PATH, LETTA_CHAT_PATHS, ChatRoute
from gateway.web.forwarding import ForwardingParts, make_forwarding_routes
from gateway.web.manage.import_routes import make_import_routes
from gateway.web.manage.key_routes import make_key_routes
from gateway.web.manage.manage_guard import ManageGuard
from gateway.web.manage.record_routes import LIMITS_PATH, ManageRouteFactory, make_record_routes
from gateway.web.manage.usage_routes import make_usage_routes
from gateway.web.memory_api import make_memory_routes
from gateway.web.messages import CountRoute, MessagesRoute
from gateway.web.messages_paths import COUNT_PATH, MESSAGES_PATH
from gateway.web.models import make_model_routes
from gateway.web.responses.compaction_routes import (
    COMPACT_PATH,
    INPUT_TOKENS_PATH,
    CompactRoute,
    InputTokensRoute,
)
from gateway.web.responses.gateway_responses import GatewayResponses
from gateway.web.responses.response_call import ResponseCallRoute
from gateway.web.responses.response_owners import ResponseOwners
from gateway.web.responses.responses import ResponsesRoute
from gateway.web.responses.stored_routes import make_stored_routes
from gateway.web.responses.upstream_responses import UpstreamResponses
from gateway.web.sockets.responses_socket import RESPONSES_PATH, HandshakeRoute


class DialectPath(NamedTuple):
    """A path at which a dialect is spoken."""

    # The path.
    path: str
    # Answers POSTs to the path. They do not pass the router, which costs time.
    app: ASGIApp
    # True: a user's own key may be used here, since no request reaches data of other users.
    is_for_users: bool
    # The form of errors before a route is found (a wrong key, an unknown path), at all paths that begin with this one;
    # None: OpenAI's form, or the form that `choose_messages_error_form` returns.
    error_form: ErrorForm | None = None


class Endpoints(NamedTuple):
    """The endpoints of a gateway."""

    # Answers POSTs to the paths of chat completions.
    chat: ChatRoute
    # The paths of all dialects.
    dialects: Sequence[DialectPath]
    # Reads the users of requests for stored responses.
    owners: ResponseOwners
    # Makes all other routes, in the order in which the router tries them. Health and MCP have routes of their own.
    make_routes: Callable[[], list[Route]]


def make_endpoints(
    services: Services, bodies: BodyReader, guard: Guard, admin_token: str | None
) -> Endpoints:
    """Makes the endpoints.

    admin_token: the token with which the command line calls operations; None: no operation can be called so.
    """
    settings, limits, chat = services.settings, services.limits, services.chat
    forwarder = Forwarder(
        settings=settings,
        routes=EndpointRoutes(settings, services.providers, chat.model_routes.get_route),
        failover=chat.failover,
        rules=chat.resolver.rules,
        limiter=services.accounting.limiter,
    )
    forwarding_parts = ForwardingParts(forwarder, bodies, settings.server.max_upload_bytes, limits)
    chat_route = _make_chat_route(services, bodies)
    stored_responses = StoredResponses(services.store, chat.turn_services)
    owners = ResponseOwners(chat.resolver.rules, services.store)
    gateway_responses = GatewayResponses(
        stored=stored_responses,
        background=services.background_responses,
        conversations=chat.conversations,
        owners=owners,
        bodies=bodies,
        send_timeout_s=limits.send_timeout_s,
    )
    upstream_responses = UpstreamResponses(
        stored=stored_responses,
        owners=owners,
        native_chat=services.native_chat,
        pending_usage=services.accounting.pending_usage,
        max_messages=settings.server.max_messages,
    )

    def make_responses_route(route_type: type[ResponseCallRoute]) -> ResponseCallRoute:
        return route_type("responses", forwarding_parts, chat_route, gateway_responses)

    dialects = _list_dialect_paths(
        chat_route, make_responses_route(ResponsesRoute), MessagesRoute(chat_route, forwarder)
    )

    def make_routes() -> list[Route]:
        prompts = [spec.system for spec in chat.directory.specs]
        return [
            # Gives other methods their 405. POSTs to these paths are answered before the router.
            *(Route(dialect.path, _answered_before_router, methods=["POST"]) for dialect in dialects),
            # Before the routes of agents, one of which has a pattern that this path fits as well.
            Route(COUNT_PATH, CountRoute(chat_route, forwarder), methods=["POST"]),
            # Before the routes of models and conversations, with which they share some paths.
            *(
                []
                if services.agents is None
                else services.agents.make_routes(services.models, limits, bodies)
            ),
            *make_model_routes(
                services.models,
                None if services.agents is None else services.store.defined_agents,
            ),
            Route(INPUT_TOKENS_PATH, make_responses_route(InputTokensRoute), methods=["POST"]),
            Route(COMPACT_PATH, make_responses_route(CompactRoute), methods=["POST"]),
            Route(RESPONSES_PATH, HandshakeRoute(), methods=["GET"]),
            *make_stored_routes(forwarding_parts, prompts, gateway_responses, upstream_responses),
            *make_forwarding_routes(forwarding_parts),
            *_make_user_routes(services, bodies, owners),
            *_make_manage_routes(services, bodies, ManageGuard(guard, admin_token)),
            *([] if admin_token is None else make_admin_routes(_make_operations(services), admin_token)),
        ]

    return Endpoints(chat_route, dialects, owners, make_routes)


def _make_chat_route(services: Services, bodies: BodyReader) -> ChatRoute:
    return ChatRoute(
        settings=services.settings.server,
        chat=services.chat,
        native_chat=services.native_chat,
        bodies=bodies,
        send_timeout_s=services.limits.send_timeout_s,
        requests=services.requests,
    )


def _list_dialect_paths(
    chat: ChatRoute, responses: ResponseCallRoute, messages: MessagesRoute
) -> list[DialectPath]:
    """Returns the paths of the dialects, with the applications that answer them."""
    return [
        DialectPath(CHAT_PATH, chat, is_for_users=True),
        *(DialectPath(path, chat, is_for_users=False) for path in LETTA_CHAT_PATHS),
        DialectPath(RESPONSES_PATH, responses, is_for_users=True, error_form=ResponsesErrors()),
        DialectPath(MESSAGES_PATH, messages, is_for_users=True),
    ]


def _make_user_routes(services: Services, bodies: BodyReader, owners: ResponseOwners) -> list[Route]:
    """Returns the routes at which applications explain a reply to its user, and link to the user's memory."""
    settings, store = services.settings, services.store
    return make_memory_routes(
        make_request_operations(settings, store, services.requests),
        LinkOperations(store, services.now, settings.choose_default_profile),
        bodies,
        settings.ui,
        owners.read_owner,
    )


def _make_manage_routes(services: Services, bodies: BodyReader, guard: ManageGuard) -> list[Route]:
    """Returns the routes at which operators manage a gateway."""
    settings, store, now, accounting = services.settings, services.store, services.now, services.accounting
    limits = make_limit_operations(settings, store)
    route_factory = ManageRouteFactory(guard, bodies)
    return [
        *make_usage_routes(UsageOperations(store.usage, now, accounting.meter), guard),
        *make_record_routes(LIMITS_PATH, limits, route_factory),
        *make_import_routes(
            services.imports,
            route_factory,
            limit_bytes=settings.server.max_upload_bytes,
            timeout_s=services.limits.body_timeout_s,
        ),
        *make_key_routes(
            KeyManagement(store.keys, limits),
            KeyReport(store.usage, accounting.meter, accounting.limiter, now),
            route_factory,
        ),
    ]


def _make_operations(services: Services) -> OperationTable:
    """Returns the operations of the command line, for the process that serves requests."""
    parts = ServingParts(services.requests, services.sign_in, services.accounting.meter, services.imports)
    return make_operations(services.settings, services.store, services.embed_query, services.mcp, parts)


async def _answered_before_router(request: Request) -> Any:
    """Stands in for a handler that is called before the router. The route refuses other methods."""
    raise HTTPException(404)
