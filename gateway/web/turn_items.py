"""The items of stored turns, as lists of a response's input and of a conversation show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from adapters.types import Json
from gateway.core.conversation.canonical import SYSTEM_ROLES
from gateway.core.conversation.directions import Direction
from gateway.dialects.responses.items import ItemGroup, ItemList, item_tag
from gateway.dialects.responses.stored_response import read_call_forms
from gateway.run.memory.named_turns import NamedTurn


def system_items(waiting_items: Sequence[Json]) -> list[Json]:
    """Returns the system and developer messages of a conversation, which each response reads."""
    return [item for item in waiting_items if item.get("role") in SYSTEM_ROLES]


def group_turns(
    turns: Sequence[NamedTurn], render: Callable[[NamedTurn, NamedTurn | None], Sequence[Json]]
) -> list[ItemGroup]:
    """Returns the items of a path's turns. render: returns the items of a turn, given it and the turn before it."""
    return [
        ItemGroup(partial(render, turn, before), turn.name.tag)
        for before, turn in zip((None, *turns), turns, strict=False)
    ]


def render_turn(
    turn: NamedTurn,
    before: NamedTurn | None,
    *,
    directions: Sequence[Direction] = (),
    is_answered: bool = True,
    shows_sealed_thoughts: bool = False,
) -> list[Json]:
    """Returns the items of a turn, as clients have them.

    before: the turn with the calls whose results are among the inputs; None: the turn is the first.
    directions: the system and developer messages of the turn that are shown.
    is_answered: the reply is among the items, too.
    shows_sealed_thoughts: as in `ResponseTerms`.
    """
    items = ItemList(shows_sealed_thoughts=shows_sealed_thoughts)
    reply = turn.reply
    if before is not None:
        items.record_calls(before.reply)
    tag = item_tag(turn.name, reply)
    items.add_inputs(tag, turn.inputs, directions, read_call_forms(reply))
    if reply and is_answered:
        items.add_reply(tag, reply)
    return items.items
