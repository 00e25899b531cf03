"""Tools of a project: those that were made over REST, and the gateway's own."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from gateway.agents.core.kinds import BUILT_IN, ELSEWHERE, FILE_TOOLS, built_in_named, built_in_uid
from gateway.core import ids
from gateway.core.agent import AgentSpec
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import SCHEMAS
from gateway.errors import BadRequest, Conflict
from gateway.run.latest import on_latest
from storage.errors import WriteConflict
from storage.listing import Page
from storage.records import Definition, DefinitionKind, Scope
from storage.sql.store import Store

_CACHED = 4096
_MAKE_IT = "needs a service beside the gateway: make a tool of this name, a webhook or one of an MCP server."
_ANY = 2**62
# The built-in tools that can be called; a number in BUILT_IN without a schema is reserved.
_OWN = tuple(name for name in BUILT_IN if name in SCHEMAS)


class ToolView(Struct, frozen=True):
    """A tool as lists show it. definition: None for a built-in tool, which has a constant public name."""

    name: str
    uid: str
    definition: Definition | None = None


class ResolvedAgent(Struct, frozen=True):
    """An agent that a request names.

    scope: of its memory.
    made_of: (row, version) of each definition that the spec was made of.
    """

    spec: AgentSpec
    scope: Scope
    made_of: frozenset[tuple[int, int]] = frozenset()


@dataclass(slots=True)
class SpecCache:
    """Caches the agents that names resolve to.

    age_s: an entry is used for so long; gateways over one database may miss each other's changes.
    round: rises with each change; an agent that was read in an earlier round is not cached.
    """

    age_s: float
    resolved: OrderedDict[tuple[str, str], tuple[float, ResolvedAgent]] = field(default_factory=OrderedDict)
    round: int = 0

    def clear(self) -> None:
        self.resolved.clear()
        self.round += 1

    def get(self, key: tuple[str, str]) -> ResolvedAgent | None:
        at, agent = self.resolved.get(key, (0.0, None))
        if agent is None or time.monotonic() - at >= self.age_s:
            return None
        self.resolved.move_to_end(key)
        return agent

    def keep(self, key: tuple[str, str], agent: ResolvedAgent, round_: int) -> None:
        if round_ == self.round:
            self.resolved[key] = time.monotonic(), agent
            if len(self.resolved) > _CACHED:
                self.resolved.popitem(last=False)


class ToolRegistry:
    """Tools by their public names. project: the caller's; what another one has is not found.

    Raises besides what the methods name: NotFound, WriteConflict, Unavailable, as the store does.
    """

    def __init__(self, store: Store, cache: SpecCache, now: Callable[[], float]) -> None:
        self._store = store
        self._cache = cache
        self._now = now

    async def get(self, project: str, uid: str) -> ToolView:
        """Returns a tool by its public name."""
        name = built_in_named(uid)
        if name in _OWN:
            return ToolView(name, uid)
        return _tool_view(await self._store.definitions.get(project, DefinitionKind.TOOL, uid))

    async def list(
        self,
        project: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 50,
        newest_first: bool = True,
        name: str | None = None,
        text: str | None = None,
    ) -> Sequence[ToolView]:
        """Returns a page of tools. The gateway's own are older than all others.

        after, before: public names, in the order asked for.
        """
        first, last = (before, after) if newest_first else (after, before)
        low = -_ANY if first is None else await self._sort_key(project, first)
        high = _ANY if last is None else await self._sort_key(project, last)
        # Built-in tools have negative numbers, in their order, so that they come before every row.
        keys = {
            built_in: index - len(BUILT_IN) for index, built_in in enumerate(BUILT_IN) if built_in in _OWN
        }
        own = [
            ToolView(each, built_in_uid(each))
            for each, key in keys.items()
            if low < key < high and name in (None, each) and (text or "").lower() in each
        ]
        page = Page(low, high, limit, newest_first=False)
        if newest_first:
            page = Page(high, low, limit)
            own.reverse()
        rows = await self._store.definitions.list(project, DefinitionKind.TOOL, page, name=name, text=text)
        found = [_tool_view(each) for each in rows]
        return ([*found, *own] if newest_first else [*own, *found])[:limit]

    async def create(self, project: str, name: str, definition: ToolDefinition) -> ToolView:
        """Makes a tool. Raises: Conflict: the gateway's own have that name; WriteConflict: another one has."""
        _check_tool(name)
        uid, body = ids.new_uid(), definition.body()
        made = await self._store.definitions.add(
            project, DefinitionKind.TOOL, uid, name, body, at=self._now()
        )
        return _tool_view(made)

    async def change(
        self, project: str, uid: str, edit: Callable[[ToolDefinition], tuple[str | None, ToolDefinition]]
    ) -> ToolView:
        """Changes a tool. edit: returns its new name, if any, and its new definition. Raises: Conflict."""

        async def change() -> Definition:
            found = (await self.get(project, uid)).definition
            if found is None:
                raise Conflict("This is a tool of the gateway's own, which cannot be changed.")
            name, after = edit(ToolDefinition.of(found.body))
            if name is not None and name != found.name:
                _check_tool(name)
            return await self._store.definitions.change(found, after.body(), at=self._now(), name=name)

        changed = await on_latest(change)
        self._cache.clear()
        return _tool_view(changed)

    async def put(
        self,
        project: str,
        name: str,
        definition: ToolDefinition,
        merge: Callable[[ToolDefinition], ToolDefinition] | None = None,
    ) -> ToolView:
        """Makes a tool, or changes the one that has its name.

        merge: returns what that one becomes, of what it was before; None: the definition as it is.
        """
        named = await self._store.definitions.named(project, DefinitionKind.TOOL, name)
        if not named:
            try:
                return await self.create(project, name, definition)
            except WriteConflict:
                named = await self._store.definitions.named(project, DefinitionKind.TOOL, name)
                if not named:
                    raise
        return await self.change(
            project, named[0].uid, lambda before: (None, definition if merge is None else merge(before))
        )

    async def delete(self, project: str, uid: str) -> None:
        """Deletes a tool and takes it from all agents. Raises: Conflict: one of the gateway's own."""
        tool = await self.get(project, uid)
        if tool.definition is None:
            raise Conflict("This is a tool of the gateway's own, which cannot be deleted.")
        await self._store.attached.delete(tool.definition, at=self._now())
        self._cache.clear()

    async def named(self, project: str, name: str) -> ToolView | None:
        """Returns the tool of this name; None: there is none."""
        if name in _OWN:
            return ToolView(name, built_in_uid(name))
        named = await self._store.definitions.named(project, DefinitionKind.TOOL, name)
        return _tool_view(named[0]) if named else None

    async def all_named(self, project: str, names: Iterable[str]) -> Sequence[ToolView]:
        """Returns the tools of these names. Raises: BadRequest, naming those that are not there."""
        found = {name: await self.named(project, name) for name in names}
        missing = [name for name, tool in found.items() if tool is None]
        if missing:
            # Letta's clients recognise this message, and then make the agent without these tools.
            words = [f"Tools not found by name: {', '.join(missing)}."]
            words += [f"{name} {_MAKE_IT}" for name in missing if name in ELSEWHERE]
            raise BadRequest(" ".join(words), param="tools")
        return [tool for tool in found.values() if tool is not None]

    async def _sort_key(self, project: str, uid: str) -> int:
        tool = await self.get(project, uid)
        return BUILT_IN.index(tool.name) - len(BUILT_IN) if tool.definition is None else tool.definition.id

    async def of(self, targets: Mapping[int, Sequence[int]]) -> dict[int, Sequence[ToolView]]:
        """Returns the tools of each agent. One that was deleted meanwhile is left out."""
        rows = sorted({target for each in targets.values() for target in each if target > 0})
        found = await self._store.definitions.several(rows) if rows else {}
        known = {id: _tool_view(definition) for id, definition in found.items()}
        known.update(
            {-n: ToolView(name, built_in_uid(name)) for n, name in enumerate(BUILT_IN, 1) if name in _OWN}
        )
        return {agent: [known[t] for t in each if t in known] for agent, each in targets.items()}


def number_of(tool: ToolView) -> int:
    """Returns what names a tool among an agent's attachments."""
    return -1 - BUILT_IN.index(tool.name) if tool.definition is None else tool.definition.id


def file_tools() -> list[int]:
    """Returns the numbers of the tools that read files."""
    return [number_of(ToolView(name, built_in_uid(name))) for name in FILE_TOOLS]


def _tool_view(definition: Definition) -> ToolView:
    return ToolView(definition.name, definition.uid, definition)


def _check_tool(name: str) -> None:
    if name in BUILT_IN:
        raise Conflict(f"{name!r} is a tool of the gateway's own.", param="name")
