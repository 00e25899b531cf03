"""The directory of agents that the settings declare: by its name each becomes an `AgentSpec`.

Those that were made over REST are the registry's (gateway/run/agents/registry.py).
"""

from __future__ import annotations

from typing import Literal

from gateway.core.agent import AgentSpec, Filler, FixedFiller
from gateway.core.definition import Sleeptime
from gateway.core.request.identity import AGENT_PREFIX, Identity, asks_agent
from gateway.errors import BadRequest, CallerError, UnknownModel
from gateway.settings import (
    DEFAULT_PROFILE,
    BlockSettings,
    FillerSettings,
    MemorySettings,
    ProfileSettings,
    Settings,
)
from storage.records import Block


class Directory:
    """The agents of the settings. specs: those that are declared there, in their order."""

    def __init__(self, settings: Settings) -> None:
        self.specs = tuple(_spec_of(profile, settings.memory) for profile in settings.profiles)
        self._by_name = {spec.name: spec for spec in self.specs}
        self._default = _spec_of(ProfileSettings(DEFAULT_PROFILE), settings.memory)

    def profile(self, identity: Identity) -> AgentSpec | None:
        """Returns the agent of a request if the settings declare it, or the request names none."""
        found = self._by_name.get(identity.profile)
        # The default need not be declared.
        return self._default if found is None and identity.agent is None else found


def unknown(identity: Identity, model: str) -> CallerError:
    """Returns the error for an agent that is not there, in the words of how the request names it."""
    if asks_agent(model):
        return UnknownModel.unlisted(model)
    return BadRequest(
        f"There is no agent {identity.agent!r} here. GET /v1/models lists those that there are, each behind "
        f"`{AGENT_PREFIX}`.",
        param="x-mnemogate-agent",
    )


def _spec_of(profile: ProfileSettings, memory: MemorySettings) -> AgentSpec:
    """Returns what a profile of the settings says of an agent; what it leaves open, `[memory]` decides."""
    return AgentSpec(
        name=profile.name,
        system=profile.system or "",
        model=profile.model,
        upstream=profile.upstream,
        context_window=profile.context_window,
        offers_tools=profile.memory_tools,
        history=profile.history or memory.history,
        rebuilds=profile.rebuild == "always",
        summarises=(profile.compaction or memory.compaction) == "summary",
        blocks=tuple(_block_of(block) for block in profile.blocks),
        filler=_filler_of(profile.filler),
        sleeptime=Sleeptime() if profile.sleeptime else None,
        shared=frozenset(block.label for block in profile.blocks if block.shared),
    )


def _filler_of(filler: Literal["model"] | FillerSettings | None) -> Filler:
    return FixedFiller(filler.after_ms, filler.say) if isinstance(filler, FillerSettings) else filler


def _block_of(block: BlockSettings) -> Block:
    # Blocks that users share are read-only to models unless the operator says otherwise.
    is_read_only = block.read_only or (block.shared and not block.writable)
    return Block(0, block.label, block.description, block.value, block.limit, is_read_only)
