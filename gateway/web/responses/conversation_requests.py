"""/v1/conversations and the paths below it, for conversations that the gateway itself has made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import Any, Final
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from adapters.types import Json
from gateway.core.roles import SYSTEM_ROLES
from gateway.dialects.fields import (
    check_depth,
    check_length,
    make_missing_field_error,
    read_optional,
    refuse_unknown_fields,
)
from gateway.dialects.responses.compaction import make_compaction_messages
from gateway.dialects.responses.input import read_items
from gateway.dialects.responses.items import ItemGroup, find_item, list_page, render_created_item
from gateway.dialects.responses.metadata import read_metadata
from gateway.dialects.responses.request_fields import asks_for_sealed_thoughts
from gateway.dialects.responses.response_ids import parse_input_index
from gateway.dialects.responses.tools import check_item_tools
from gateway.errors import BadRequest, BodyTooLarge, Conflict, MethodNotAllowed, UnknownId, UnknownPath
from gateway.run.response_conversations import ResponseConversation, ResponseConversations
from gateway.run.stored_responses import ResponseOwner
from gateway.web.body import BodyReader, parse_json_body
from gateway.web.responses.turn_items import choose_system_items, group_turns, render_turn

CONVERSATIONS_PATH: Final = "/v1/conversations"
# The most items that one request may create, as OpenAI has it.
_MAX_CREATED_ITEMS: Final = 20
# The most items that wait for the next response. Chosen: a fifth of the messages that a request may have by default.
# Their bytes have to fit into one request, since the request for the next response gets them.
MAX_WAITING_ITEMS: Final = 1_000


@dataclass(eq=False)
class ConversationRequests:
    """Answers the requests for conversations that the gateway itself stores."""

    # Reads and changes the stored conversations.
    conversations: ResponseConversations
    # Reads bodies within their limits.
    bodies: BodyReader
    # Returns the owner for whom a request asks.
    read_owner: Callable[[Scope], ResponseOwner]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Json:
        """Returns the answer to a request. Raises: GatewayError."""
        # The segments of "/v1/conversations/conv_1/items" are "conv_1" and "items".
        segments = scope["path"].removeprefix(CONVERSATIONS_PATH).split("/")[1:]
        method: str = scope["method"]
        body: Json = {}
        if method == "POST":
            async with self.bodies.read(scope, receive) as raw:
                body = await parse_json_body(bytes(raw)) if raw else {}
        owner = self.read_owner(scope)
        query = scope["query_string"].decode("latin-1")
        if not segments:  # the route of this path takes no other method than POST
            return await self._create(owner, body)
        conversation = await self.conversations.get(owner, segments[0])
        match method, segments[1:]:
            case "GET", []:
                return _render_conversation(conversation)
            case "POST", []:
                return await self._change_metadata(conversation, body)
            case "DELETE", []:
                await self.conversations.delete(conversation)
                return {"id": conversation.id, "object": "conversation.deleted", "deleted": True}
            case "GET", ["items"]:
                return await asyncio.to_thread(list_page, await self._group_items(conversation, query), query)
            case "POST", ["items"]:
                return await self._add_items(conversation, body)
            case "GET", ["items", item_id]:
                return await self._get_item(conversation, item_id, query)
            case "DELETE", ["items", item_id]:
                await self._delete_item(conversation, item_id)
                return _render_conversation(await self.conversations.get(owner, conversation.id))
            case _, []:
                raise MethodNotAllowed(method, scope["path"], ("GET", "POST", "DELETE"))
            case _, ["items"]:
                raise MethodNotAllowed(method, scope["path"], ("GET", "POST"))
            case _, ["items", _]:
                raise MethodNotAllowed(method, scope["path"], ("GET", "DELETE"))
        raise UnknownPath(f"Unknown path: {method} {scope['path']}")

    async def _create(self, owner: ResponseOwner, body: Json) -> Json:
        """Creates a conversation with the items of a request, and returns it."""
        refuse_unknown_fields(body, ("items", "metadata"))
        items = _read_new_items(body)
        return _render_conversation(
            await self.conversations.create(owner.project, read_metadata(body), items)
        )

    async def _change_metadata(self, conversation: ResponseConversation, body: Json) -> Json:
        """Changes the metadata of a conversation, and returns it."""
        refuse_unknown_fields(body, ("metadata",))
        if "metadata" not in body:
            raise make_missing_field_error("metadata")
        metadata = read_metadata(body)
        return _render_conversation(
            await self.conversations.change(
                conversation, lambda stored_body: {**stored_body, "metadata": metadata}
            )
        )

    async def _group_items(self, conversation: ResponseConversation, query: str) -> list[ItemGroup]:
        """Returns the items of a conversation: the items of its turns, and the items that wait.

        System and developer messages come first, in the order in which each response reads them.
        """
        shows_sealed_thoughts = asks_for_sealed_thoughts(parse_qs(query))
        waiting_items = conversation.items
        turns = await self.conversations.load_turns(conversation)
        return [
            ItemGroup(lambda: choose_system_items(waiting_items)),
            *group_turns(turns, partial(render_turn, shows_sealed_thoughts=shows_sealed_thoughts)),
            ItemGroup(lambda: [item for item in waiting_items if item.get("role") not in SYSTEM_ROLES]),
        ]

    async def _get_item(self, conversation: ResponseConversation, item_id: str, query: str) -> Json:
        """Returns an item of a conversation. Raises: UnknownId."""
        groups = await self._group_items(conversation, query)
        # In a thread: for an id that no item has, the items of all turns are rendered.
        found_item = await asyncio.to_thread(find_item, groups, item_id)
        if found_item is None:
            raise UnknownId.for_id("Item", item_id)
        return found_item.item

    async def _add_items(self, conversation: ResponseConversation, body: Json) -> Json:
        """Stores items that wait for the next response. Raises: Conflict, BadRequest, BodyTooLarge."""
        if conversation.agent is not None and conversation.agent.paused_at is not None:
            raise Conflict(
                "The memory of this conversation is paused, so nothing is added to it until it is resumed."
            )
        refuse_unknown_fields(body, ("items",))
        if body.get("items") is None:
            raise make_missing_field_error("items")
        items = _read_new_items(body)

        def add(current_body: Json) -> Json:
            """Returns the stored body with the new items."""
            waiting_items = [*(current_body.get("items") or ()), *items]
            if len(waiting_items) > MAX_WAITING_ITEMS:
                raise BadRequest(
                    f"{len(waiting_items) - len(items)} items wait for the next response of this conversation; at most "
                    f"{MAX_WAITING_ITEMS} may.",
                    param="items",
                )
            if (size := len(orjson.dumps(waiting_items))) > self.bodies.limit_bytes:
                raise BodyTooLarge(
                    f"With these, {size} bytes of items wait for the next response of this conversation; at most "
                    f"{self.bodies.limit_bytes} may (server.max_body_bytes).",
                    param="items",
                )
            return {**current_body, "items": waiting_items}

        await self.conversations.change(conversation, add)
        return list_page([ItemGroup(lambda: items)], f"order=asc&limit={_MAX_CREATED_ITEMS}")

    async def _delete_item(self, conversation: ResponseConversation, item_id: str) -> None:
        """Deletes an item that waits, or forgets the message of a turn that is shown as this item alone."""
        if any(item["id"] == item_id for item in conversation.items):
            await self.conversations.change(conversation, lambda body: _without_item(body, item_id))
            return
        turns = await self.conversations.load_turns(conversation)
        found_item = await asyncio.to_thread(find_item, group_turns(turns, render_turn), item_id)
        if found_item is None:
            raise UnknownId.for_id("Item", item_id)
        turn = turns[found_item.group_index]
        turn_items = render_turn(turn, previous_turn=None)
        # None: the item is a part of the reply.
        input_index = parse_input_index(item_id)
        item_count = sum(parse_input_index(item["id"]) == input_index for item in turn_items)
        if item_count > 1:
            raise BadRequest(
                f"The item {item_id!r} is a part of a message with {item_count} items, which is forgotten as a "
                "whole. Delete the response or the conversation.",
                param="item_id",
            )
        message_index = len(turn.exchange.inputs) if input_index is None else input_index
        await self.conversations.forget_message(conversation, turn.exchange.seq + message_index)


def _read_new_items(body: Json) -> list[Json]:
    """Returns the items of a request, each with an id. Raises: BadRequest."""
    items: list[Any] = read_optional(body, "items", list) or []
    check_length("items", items, _MAX_CREATED_ITEMS)
    check_depth("items", items, depth=2)
    messages = read_items(items, field="items")
    if messages.references:
        raise BadRequest("An item of a conversation is sent whole, and not by its id.", param="items")
    # The messages are made for the BadRequest alone, which a summary that the gateway has not sealed raises.
    make_compaction_messages(items, "items")
    check_item_tools(items)
    for index, item in enumerate(items):
        # The role of an item, whatever its type, decides whether it is listed with the system messages.
        read_optional(item, "role", str, f"items[{index}]")
    return [render_created_item(item, token_hex(16)) for item in items]


def _without_item(body: Json, item_id: str) -> Json:
    """Returns the body of a conversation without a waiting item.

    Raises: UnknownId: the item does not wait any more: a response has used it.
    """
    items = body.get("items") or ()
    other_items = [item for item in items if item["id"] != item_id]
    if len(other_items) == len(items):
        raise UnknownId.for_id("Item", item_id)
    return {**body, "items": other_items}


def _render_conversation(conversation: ResponseConversation) -> Json:
    created = int(conversation.definition.created)
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": created,
        "metadata": conversation.metadata,
    }
