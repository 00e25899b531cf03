"""Ids and names of calls, as every provider takes them when they are sent again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from typing import Final

from gateway.core.turn.tool_call import ToolCall

# The characters that some provider refuses in a tool's name.
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")
# The most characters that every provider takes (platform.openai.com/docs/guides/function-calling).
MAX_NAME_CHARS: Final = 64


def make_valid_tool_name(name: str) -> str:
    """Returns a name of a call as every provider takes it."""
    return _NOT_IN_NAMES.sub("_", name)[:MAX_NAME_CHARS] or "_"


def assign_call_ids(
    gateway_calls: Iterable[ToolCall],
    client_calls: Sequence[ToolCall],
    taken_ids: Set[str],
    reply_number: int,
    *,
    renews_client_ids: bool,
) -> None:
    """Gives an id to each call that has none, or the id of an earlier call.

    Some servers restart their count with each reply ("call_0"), but an id stands for one call of the turn.

    taken_ids: the ids of earlier calls in the turn.
    reply_number: the number of the reply in its turn, which makes the new ids unique.
    renews_client_ids: True: the client's calls may get new ids; False: the client may have their ids already.
    """
    if renews_client_ids:
        _assign_new_ids(client_calls, set(), f"call_client_{reply_number}")
    used_ids = taken_ids | {call.id for call in client_calls}
    _assign_new_ids(gateway_calls, used_ids, f"call_mnemogate_{reply_number}")


def _assign_new_ids(calls: Iterable[ToolCall], taken_ids: Set[str], prefix: str) -> None:
    """Gives a new id to each call without one, and to each call with an id that is taken or an earlier call's."""
    used_ids = {*taken_ids}
    for n, call in enumerate(calls):
        if not call.id or call.id in used_ids:
            call.new_id = f"{prefix}_{n}"
        used_ids.add(call.id)
