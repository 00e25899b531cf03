"""The result of a tool's call, as a message."""

from __future__ import annotations

from msgspec import Struct, field

from adapters.types import Json
from gateway.core.conversation.private import CallStatus, with_private
from gateway.core.prompt.shown_blocks import ShownBlocks

# The fields of a result that are stored in its message under their own names, unless they are empty.
_STORED_FIELDS = ("stdout", "stderr", "approval", "reason")


class ToolResult(Struct, frozen=True):
    """The result of a call."""

    # The id of the call.
    call_id: str
    # The text that the tool returned.
    content: str
    # The outcome of the call.
    status: CallStatus = "success"
    # The output of the tool's code.
    stdout: str = ""
    # The errors of the tool's code.
    stderr: str = ""
    # "approved" or "denied"; "": no person was asked.
    approval: str = ""
    # The person's reason.
    reason: str = ""
    # The tool was run; False: a rule forbids the call, or the call is unreadable.
    was_run: bool = True
    # True: the call needs an approval, and no client can give it.
    is_unapproved: bool = False
    # The note of the changes in memory since the call began, which follows the content; "": no changes.
    changes: str = ""
    # The memory blocks that `content` and `changes` show.
    shown: ShownBlocks = field(default_factory=dict)

    def as_message(self) -> Json:
        """Returns the message that goes upstream; its private fields name the blocks and changes that it shows."""
        message = {"role": "tool", "tool_call_id": self.call_id, "content": self.content}
        if self.changes:
            # A person is shown the tool's own text.
            message["content"] += f"\n\n{self.changes}"
            message = with_private(message, own_length=len(self.content))
        return with_private(message, shown_blocks=dict(self.shown)) if self.shown else message

    def as_stored(self) -> Json:
        """Returns the message as it is stored."""
        return with_private(
            self.as_message(),
            status=self.status if self.status != "success" else None,
            unrun=None if self.was_run else True,
            unapproved=self.is_unapproved or None,
            **{name: value for name in _STORED_FIELDS if (value := getattr(self, name))},
        )
