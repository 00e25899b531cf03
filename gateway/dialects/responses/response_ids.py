"""The ids of a response and of its items. They contain the name of the turn, so that a client may continue from them.

    resp_<conversation><turn>                    a response
    msg_<conversation><turn>_<item>              an item of its reply
    msg_<conversation><turn>_i<message>_<item>   an item of a client's message; `_<item>` if the message has several
    msg_<conversation><turn>_s<number>           a system or developer message; from this id no turn is read

If the turn is not stored, the ids are random and name no turn. Ids of any other form are an upstream's.
"""

from __future__ import annotations

import re
from secrets import token_hex
from typing import TypeGuard

from gateway.core.turn_name import TurnName

_ID_WITH_TURN = re.compile(r"[a-z]+_([0-9a-f]{32})([0-9a-f]{24})(?:_(?:i([0-9]{1,6})_?)?[0-9]*)?")
_GATEWAY_ID = re.compile(r"resp_[0-9a-f]{56}|conv_[0-9a-f]{32}")
_OPENAI_CONVERSATION_ID = re.compile(r"conv_[0-9a-f]{40,}")
# The size of the random part in place of a turn's name: 16 bytes for the conversation and 12 for the turn.
TAG_BYTES = 28


def make_tag(turn: TurnName | None) -> str:
    """Returns the part that all ids of a response share. turn: the name of its turn; None: the turn is not stored."""
    return turn.tag if turn is not None else token_hex(TAG_BYTES)


def is_gateway_id(object_id: object) -> TypeGuard[str]:
    """Returns whether an id is of a response or a conversation that the gateway itself has made."""
    return isinstance(object_id, str) and _GATEWAY_ID.fullmatch(object_id) is not None


def is_openai_conversation(object_id: object) -> bool:
    """Returns whether an id has the form that OpenAI gives the ids of conversations."""
    return isinstance(object_id, str) and _OPENAI_CONVERSATION_ID.fullmatch(object_id) is not None


def continues_gateway_response(previous_response_id: object, conversation: object) -> bool:
    """Returns whether a request with these fields continues a response or a conversation of the gateway's own."""
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return is_gateway_id(previous_response_id) or is_gateway_id(conversation)


def parse_turn_name(object_id: str) -> TurnName | None:
    """Returns the name of the turn in an id; None: the id names no turn."""
    match = _ID_WITH_TURN.fullmatch(object_id)
    return TurnName(match[1], match[2]) if match else None


def parse_input_index(object_id: str) -> int | None:
    """Returns the index, in its turn's input, of an input item's message; None: the id names no input item."""
    match = _ID_WITH_TURN.fullmatch(object_id)
    return int(match[3]) if match and match[3] else None
