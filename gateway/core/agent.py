"""An agent as a turn needs it, whether the settings or the store define it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from gateway.core.definition import (
    NO_DEFINITION,
    AgentDefinition,
    Filler,
    FixedFiller,
    Sleeptime,
    ToolDefinition,
)
from storage.records import Block


class AgentTool(Struct, frozen=True):
    """A tool of an agent."""

    # The name by which the model calls the tool.
    name: str
    # The definition of the tool; None: the tool is built in, and known by its name.
    definition: ToolDefinition | None = None


# The way in which an agent speaks. reply: by its text, and the turn goes on after any call. message: by a tool, and the
# turn goes on only after calls that ask for it.
SpeakingStyle = Literal["reply", "message"]


class MessageBounds(Struct, frozen=True):
    """The bounds of a window in messages."""

    # A window with more messages is cut.
    max_messages: int
    # At least so many messages stay when it is cut.
    min_messages: int

    @property
    def summarise_above(self) -> int:
        """With more messages than this a summary is made, so that it is ready when the window is cut."""
        return self.max_messages - max(2, self.max_messages // 10)


class AgentSpec(Struct, frozen=True):
    """One agent as a turn needs it: a profile of the settings, or an agent of the agents API.

    A turn uses the same value to its end, even if the definition changes meanwhile.
    """

    # The name of the profile, or of the agent.
    name: str
    # The agent's own prompt, which stands before the memory blocks.
    system: str = ""
    # The model that answers to `agent/<name>`; None: the request names the model.
    model: str | None = None
    # The upstream of that model; None: the model's name decides.
    upstream: str | None = None
    # True: a caller named the model, not the settings: a closed list of models holds for it.
    has_callers_model: bool = False
    # The context window of the agent's model in tokens; None: the window of the upstream's settings.
    context_window: int | None = None
    # True: memory tools go to the model even if the client has no tools of its own.
    offers_tools: bool = False
    # The source of the conversation's history. full: the client's list, completed from memory. append: the stored
    # conversation, to which the client sends only new messages. client: the client's list alone.
    history: Literal["full", "append", "client"] = "full"
    # True: the memory section is rendered again with each request.
    rebuilds_section: bool = False
    # True: messages that leave the window are summarised.
    summarises: bool = True
    # The memory blocks with which a new user begins, in the order in which they stand in the prompt.
    blocks: tuple[Block, ...] = ()
    # Labels of the blocks that all users of the agent see.
    shared_labels: frozenset[str] = frozenset()
    # The filler that the user hears while a gateway tool runs.
    filler: Filler = "none"
    # The sleeptime agents that read the agent's turns; None: no sleeptime agents.
    sleeptime: Sleeptime | None = None
    # The public id of an agent of the agents API; "": a profile. A profile has no value in the fields below.
    uid: str = ""
    # The speaking style of the agent.
    style: SpeakingStyle = "reply"
    # The tools of the agent, in the order in which the model gets them.
    tools: tuple[AgentTool, ...] = ()
    # The agent as its caller has defined it. Fields above that the definition has as well hold the value in force: with
    # the defaults of the agent's kind, the rules of its tools, and the settings of a conversation and a send.
    definition: AgentDefinition = NO_DEFINITION

    @property
    def is_profile(self) -> bool:
        """True if the agent is a profile, with a memory for each user; an agent of the agents API has one memory."""
        return not self.uid

    @property
    def initial_messages(self) -> tuple[dict[str, Any], ...]:
        """The messages with which each of its stored conversations begins."""
        return self.definition.initial_messages

    @property
    def fixed_filler(self) -> FixedFiller | None:
        return self.filler if isinstance(self.filler, FixedFiller) else None

    @property
    def window_bounds(self) -> MessageBounds | None:
        """The bounds of its window in messages; None: tokens count alone."""
        max_messages = self.definition.most_messages
        min_messages = self.definition.least_messages
        if max_messages is None:
            return None
        if min_messages is None:
            min_messages = max_messages // 2
        # At least the newest message stays: half of a window of one message is none.
        return MessageBounds(max_messages, max(1, min(max_messages, min_messages)))

    @property
    def own_blocks(self) -> list[Block]:
        return [block for block in self.blocks if block.label not in self.shared_labels]

    @property
    def shared_blocks(self) -> list[Block]:
        return [block for block in self.blocks if block.label in self.shared_labels]
