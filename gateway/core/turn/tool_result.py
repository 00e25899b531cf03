"""The result of a tool's call, as a message."""

from __future__ import annotations

from msgspec import Struct, field

from adapters.types import Json
from gateway.core.conversation.private import CallStatus, with_private
from gateway.core.prompt.shown_blocks import Shown

# Fields of a result that are stored with its message if they are set.
_STORED_FIELDS = ("stdout", "stderr", "approval", "reason")


class ToolResult(Struct, frozen=True):
    """The result of a call."""

    call_id: str
    # The tool's own text.
    content: str
    status: CallStatus = "success"
    # The two outputs of code that the tool ran.
    stdout: str = ""
    stderr: str = ""
    # "approved" or "denied"; "": no person was asked.
    approval: str = ""
    # The person's reason.
    reason: str = ""
    # False: a rule forbids the call, or the call is unreadable.
    was_run: bool = True
    # The call needs an approval, and no client can give it.
    is_unapproved: bool = False
    # A note of the changes in memory since the call began, which stands after the content.
    changes: str = ""
    # The memory blocks that `content` and `changes` show.
    shown: Shown = field(default_factory=dict)

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
