"""The items of stored turns, as lists of a response's input and of a conversation show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from adapters.types import Json
from gateway.core.conversation.directions import Direction
from gateway.core.roles import SYSTEM_ROLES
from gateway.dialects.responses.items import ItemGroup, ItemList, choose_item_tag
from gateway.dialects.responses.stored_response import read_call_forms
from gateway.run.memory.named_turns import NamedTurn


def choose_system_items(waiting_items: Sequence[Json]) -> list[Json]:
    """Returns the system and developer messages of a conversation, which each response reads."""
    return [item for item in waiting_items if item.get("role") in SYSTEM_ROLES]


def group_turns(
    turns: Sequence[NamedTurn], render: Callable[[NamedTurn, NamedTurn | None], Sequence[Json]]
) -> list[ItemGroup]:
    """Returns the items of a path's turns. render: takes a turn and the turn before it, and returns its items."""
    return [
        ItemGroup(partial(render, turn, previous_turn), turn.name.tag)
        for previous_turn, turn in zip((None, *turns), turns, strict=False)
    ]


def render_turn(
    turn: NamedTurn,
    previous_turn: NamedTurn | None,
    *,
    directions: Sequence[Direction] = (),
    includes_reply: bool = True,
    shows_sealed_thoughts: bool = False,
) -> list[Json]:
    """Returns the items of a turn, as clients have them.

    previous_turn: the turn before, which has the calls of the results among the inputs; None: the turn is the first.
    directions: the system and developer messages of the turn that are shown.
    includes_reply: True if the reply is among the items.
    shows_sealed_thoughts: the value of `ResponseTerms.shows_sealed_thoughts`.
    """
    turn_items = ItemList(shows_sealed_thoughts=shows_sealed_thoughts)
    reply = turn.reply
    if previous_turn is not None:
        turn_items.record_calls(previous_turn.reply)
    tag = choose_item_tag(turn.name, reply)
    turn_items.add_inputs(tag, turn.inputs, directions, read_call_forms(reply))
    if reply and includes_reply:
        turn_items.add_reply(tag, reply)
    return turn_items.items
