"""Lists of items: the turns of a stored path as items that clients read, and pages of such lists.

(platform.openai.com/docs/api-reference/responses/input-items)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.directions import Direction
from gateway.core.conversation.private import without_private
from gateway.core.conversation.wire_message import WireMessage, read_call_id, read_result_id
from gateway.core.turn_name import TurnName
from gateway.dialects.fields import make_unknown_value_error
from gateway.dialects.responses.call_form import CallForm
from gateway.dialects.responses.call_items import render_result
from gateway.dialects.responses.render import rebuild_response, render_output
from gateway.dialects.responses.stored_response import read_call_forms, read_stored_response
from gateway.errors import QUOTED_ID_CHARS, BadRequest

# The most items of a page, as in OpenAI's API.
MAX_ITEMS: Final = 100
# The most items of a page without a `limit`, as in OpenAI's API.
_DEFAULT_LIMIT: Final = 20
# The type of the item with the result of a call, by the type of the item with the call.
_OUTPUT_TYPES: Final = {
    "custom_tool_call": "custom_tool_call_output",
    "tool_search_call": "tool_search_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
}

# The beginning of an item's id, by the type of the item.
_ID_PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
# The fields that a part of a message has in a list, even if the client left them out.
_PART_DEFAULTS: Final[Mapping[str, Json]] = {
    "output_text": {"annotations": [], "logprobs": []},
    "input_image": {"detail": "auto"},
}


class _PlacedMessage(NamedTuple):
    """A message of a client with its position in the turn."""

    # The index of the message in the turn; a direction has the index of the input after it.
    turn_index: int
    # The end of the item's id.
    id_end: str
    # The message.
    message: Json


class ItemList:
    """The items of a path, oldest first."""

    def __init__(self, *, shows_sealed_thoughts: bool = False) -> None:
        """Makes an empty list. shows_sealed_thoughts: True if thoughts are shown sealed, as in `ResponseTerms`."""
        self.items: list[Json] = []
        self._shows_sealed_thoughts = shows_sealed_thoughts
        # The types of the items of calls, by the ids of the calls.
        self._call_types: dict[str, str] = {}

    def add_inputs(
        self,
        tag: str,
        inputs: Sequence[tuple[int, WireMessage]],
        directions: Sequence[Direction],
        forms: Mapping[str, CallForm],
    ) -> None:
        """Adds the messages of a client, in their order.

        tag: the part that the ids of the turn's items share.
        inputs: pairs of an index in the turn and a message that is no direction.
        directions: the system and developer messages.
        forms: the forms of calls, by the names that their tools have upstream.
        """
        input_count = 1 + max((index for index, _ in inputs), default=-1)
        # Directions come first, since sorting leaves a direction before the input that has the same index.
        messages = [
            _PlacedMessage(
                input_count - direction.following_count, f"s{len(directions) - index}", direction.message
            )
            for index, direction in enumerate(directions)
        ]
        messages += [
            _PlacedMessage(index, f"i{index}", without_private(message)) for index, message in inputs
        ]
        for _, id_end, message in sorted(messages, key=attrgetter("turn_index")):
            self.items.extend(self._render_input(f"{tag}_{id_end}", message, forms))

    def add_reply(self, tag: str, reply: WireMessage) -> None:
        """Adds a reply, as its response had it. tag: the part that the ids of the turn's items share."""
        response = rebuild_response(tag, reply, shows_sealed_thoughts=self._shows_sealed_thoughts)
        output = response["output"] if response is not None else render_output(tag, without_private(reply))
        self.record_calls(reply)
        self.items.extend(output)

    def record_calls(self, reply: WireMessage) -> None:
        """Records the types of a reply's calls, which decide the types of their results."""
        self._record_call_types(reply, read_call_forms(reply))

    def _record_call_types(self, reply: WireMessage, forms: Mapping[str, CallForm]) -> None:
        for call in reply.get("tool_calls") or ():
            name = str((call.get("function") or {}).get("name"))
            call_type = forms[name].item_type if name in forms else f"{call.get('type', 'function')}_call"
            if call_type == "custom_call":
                call_type = "custom_tool_call"
            self._call_types[str(read_call_id(call))] = call_type

    def _render_input(self, id_end: str, message: Json, forms: Mapping[str, CallForm]) -> list[Json]:
        """Returns the items of a message. id_end: the end of the items' ids; their types decide the beginning."""
        role = message.get("role")
        content = message.get("content")
        if role == "assistant":
            self._record_call_types(message, forms)
            return render_output(id_end, message, forms)
        if role == "tool":
            call_id = read_result_id(message)
            output_type = _OUTPUT_TYPES.get(self._call_types.get(call_id, ""), "function_call_output")
            output = content if isinstance(content, str) else _render_parts(content)
            return [{"id": f"fco_{id_end}", "call_id": call_id, **render_result(output_type, output)}]
        return [render_message(f"msg_{id_end}", message)]


def render_created_item(item: Json, id_end: str) -> Json:
    """Returns a client's item as a list shows it. id_end: the end of the item's id; its type decides the beginning."""
    item_type = item.get("type") or "message"
    client_fields = {key: value for key, value in item.items() if value is not None}
    created_item = {
        "type": item_type,
        "status": "completed",
        **client_fields,
        "id": f"{_ID_PREFIXES.get(item_type, 'item')}_{id_end}",
    }
    if item_type == "message":
        parts = item["content"]
        if isinstance(parts, str):
            text_type = "output_text" if item.get("role") == "assistant" else "input_text"
            parts = [{"type": text_type, "text": parts}]
        created_item["content"] = [{**_PART_DEFAULTS.get(part["type"], {}), **part} for part in parts]
    return created_item


def render_message(item_id: str, message: WireMessage) -> Json:
    """Returns a message of a client, but for a reply or a result, as an item."""
    item = {"id": item_id, "type": "message", "status": "completed", "role": message.get("role")}
    return {**item, "content": _render_parts(message.get("content"))}


def _render_parts(content: Any) -> list[Json]:
    """Returns the parts of a user's message."""
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [_add_part_defaults(part) for part in content or () if isinstance(part, dict)]


def choose_item_tag(turn: TurnName, reply: WireMessage) -> str:
    """Returns the part that the ids of a turn's items share: the tag of its response, else of the turn's name."""
    stored_response = read_stored_response(reply)
    id_tag = "" if stored_response is None else stored_response.id_tag
    return id_tag or turn.tag


class ItemGroup(Struct, frozen=True):
    """Consecutive items of a list."""

    # A function that returns the items, oldest first.
    render: Callable[[], Sequence[Json]]
    # The tag in the items' ids; "": not known. (The output of a response in the background has another tag in its ids.)
    tag: str = ""


class FoundItem(NamedTuple):
    """An item of a list, with the index of its group."""

    # The index of the item's group.
    group_index: int
    # The item.
    item: Json


def find_item(groups: Sequence[ItemGroup], item_id: str) -> FoundItem | None:
    """Returns an item by its id; None: no group has such an item."""
    # Groups with the tag of the id come first. For an id with another tag (`ItemGroup.tag`) all groups may be rendered.
    for index in sorted(range(len(groups)), key=lambda index: groups[index].tag not in item_id):
        for item in groups[index].render():
            if item["id"] == item_id:
                return FoundItem(index, item)
    return None


def list_page(groups: Sequence[ItemGroup], query: str) -> Json:
    """Returns a page of items. Only the groups on the page, and up to it, are rendered.

    groups: the groups, oldest first.
    query: the query of the request, with `order`, `limit` and `after`.

    Raises: BadRequest.
    """
    parameters = parse_qs(query, keep_blank_values=True)
    step = _read_step(parameters.get("order", ["desc"])[-1])
    limit = _read_limit(parameters.get("limit", [str(_DEFAULT_LIMIT)])[-1])
    groups = groups[::step]
    after_id = parameters.get("after", [""])[-1]
    first_group_index = 0
    if after_id:
        found_item = find_item(groups, after_id)
        if found_item is None:
            raise BadRequest(f"There is no item {after_id[:QUOTED_ID_CHARS]!r} in this list.", param="after")
        first_group_index = found_item.group_index
    items = chain.from_iterable(group.render()[::step] for group in groups[first_group_index:])
    if after_id:
        next(item for item in items if item["id"] == after_id)  # reads `items` up to this item
    page_and_next_item = list(islice(items, limit + 1))
    page = page_and_next_item[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(page_and_next_item) > len(page),
    }


def _add_part_defaults(part: Json) -> Json:
    """Returns a part of a user's message in the form of the Responses API, with the fields that a list adds."""
    match part:
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **other_fields}}:
            return {"type": "input_image", "image_url": url, "detail": other_fields.get("detail", "auto")}
        case {"type": "file", "file": dict(file)}:
            return {"type": "input_file", **file}
    return part


def _read_step(order: str) -> int:
    """Returns the step through a list that is oldest first. Raises: BadRequest."""
    if order not in ("asc", "desc"):
        raise make_unknown_value_error("order", order, "'asc' and 'desc'")
    return 1 if order == "asc" else -1


def _read_limit(text: str) -> int:
    """Returns the most items of a page. Raises: BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_ITEMS):
        raise BadRequest(f"Invalid 'limit': expected a number from 1 to {MAX_ITEMS}.", param="limit")
    return int(text)
