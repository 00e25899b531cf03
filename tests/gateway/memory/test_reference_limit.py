"""How much of what is stored the references of one request may bring in."""

from __future__ import annotations

from gateway.core.request.chat_request import ChatRequest, Reference
from gateway.run.memory.references import _ReferenceFiller

THOUGHTS = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm. " * 100}
REPLY = {"role": "assistant", "content": "Sure."}


def test_thoughts_that_are_left_out_take_no_room_from_later_replies() -> None:
    messages = [{"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": ""}]
    request = ChatRequest(b"{}", {"messages": messages}, "m", messages)
    filler = _ReferenceFiller(request, 100)
    filler.fill(Reference(0, "rs_1", None, "input", "thoughts"), [THOUGHTS])
    filler.fill(Reference(1, "msg_1", None, "input"), [REPLY])
    assert filler.make_filled_request().messages == [messages[0], REPLY]
