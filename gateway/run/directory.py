"""The agents of the settings: `Directory` makes an `AgentSpec` of each profile."""

from __future__ import annotations

from typing import Literal

from gateway.core.agent import AgentSpec
from gateway.core.definition import Filler, FixedFiller, Sleeptime
from gateway.core.request.identity import Identity
from gateway.core.request.requested_agent import AGENT_PREFIX, asks_agent
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
    """The agents of the settings."""

    def __init__(self, settings: Settings) -> None:
        # In the order in which the settings declare them.
        self.specs = tuple(_make_spec(profile, settings.memory) for profile in settings.profiles)
        # The profiles by their names.
        self._by_name = {spec.name: spec for spec in self.specs}
        # The default profile, which the settings need not declare.
        self._default = _make_spec(ProfileSettings(DEFAULT_PROFILE), settings.memory)

    def find_requested_spec(self, identity: Identity) -> AgentSpec | None:
        """Returns the agent that a request asks for; None: the settings declare no such agent."""
        spec = self._by_name.get(identity.profile)
        # The default need not be declared.
        return self._default if spec is None and identity.agent is None else spec

    def find_spec_by_name(self, name: str) -> AgentSpec | None:
        """Returns the agent of the profile with this name; None: the settings declare no such profile."""
        return self._by_name.get(name, self._default if name == self._default.name else None)


def make_unknown_agent_error(identity: Identity, model: str) -> CallerError:
    """Returns the error for an agent that does not exist, by the field in which the request names it."""
    if asks_agent(model):
        return UnknownModel.for_name(model)
    return BadRequest(
        f"There is no agent {identity.agent!r} here. GET /v1/models lists the agents that there are, each as "
        f"`{AGENT_PREFIX}<name>`.",
        param="x-mnemogate-agent",
    )


def _make_spec(profile: ProfileSettings, memory: MemorySettings) -> AgentSpec:
    """Returns the agent of a profile. Where the profile has no value, `[memory]` has one."""
    return AgentSpec(
        name=profile.name,
        system=profile.system or "",
        model=profile.model,
        upstream=profile.upstream,
        context_window=profile.context_window,
        offers_tools=profile.memory_tools,
        history=profile.history or memory.history,
        rebuilds_section=profile.rebuild == "always",
        summarises=(profile.compaction or memory.compaction) == "summary",
        blocks=tuple(_make_block(block) for block in profile.blocks),
        filler=_make_filler(profile.filler),
        sleeptime=Sleeptime() if profile.sleeptime else None,
        shared_labels=frozenset(block.label for block in profile.blocks if block.shared),
    )


def _make_filler(filler: Literal["model"] | FillerSettings | None) -> Filler:
    if isinstance(filler, FillerSettings):
        return FixedFiller(filler.say, filler.after_ms)
    return filler or "none"


def _make_block(block: BlockSettings) -> Block:
    """Returns a block of the settings as new memories begin with it."""
    # Blocks that users share are read-only to models unless the operator decides otherwise.
    is_read_only = block.read_only or (block.shared and not block.writable)
    return Block(
        id=0,
        label=block.label,
        description=block.description,
        value=block.value,
        limit=block.limit,
        read_only=is_read_only,
    )
