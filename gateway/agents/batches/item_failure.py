"""The failures of a batch's items: the errors that callers read, and the exception that ends an item."""

from __future__ import annotations

from gateway.core.turn.stop_reason import StopReason
from storage.run_records import RunState

# The errors that callers read.
FORGOTTEN = (
    "Something of this agent's memory was forgotten meanwhile: what came back may quote it, and is not kept."
)
AGENT_GONE = "The agent was deleted, or its conversation."
AGENT_CHANGED = "The agent was changed meanwhile: by its tools and rules of today its turn had ended already."
NEEDS_APPROVAL = "A call needs a person's approval, and a batch has no client that could give it."
UNKNOWN_TOOL = "The reply calls a tool that the agent does not have."


class ItemFailed(Exception):
    """An item cannot continue."""

    def __init__(self, message: str, stop: str = StopReason.ERROR, state: RunState = RunState.FAILED) -> None:
        super().__init__(message)
        # The error that the caller of the batch reads.
        self.message = message
        # The stop reason and the final state of the item's run.
        self.stop = stop
        self.state = state
