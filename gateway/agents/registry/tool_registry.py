"""Tools of a project: built-in tools, and tools that callers have defined.

A built-in tool has no row. A list sorts it, and the attachment of an agent names it, by a negative number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from msgspec import Struct

from gateway.agents.core.kinds import BUILT_IN_NUMBERS, BUILT_IN_UIDS, EXTERNAL_TOOLS
from gateway.agents.registry.resolved_agents import ResolvedAgentCache
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import BUILT_IN_TOOLS
from gateway.errors import BadRequest, Conflict
from gateway.run.store_errors import retry_changed_record
from storage.definition_records import Definition, DefinitionKind
from storage.errors import WriteConflict
from storage.listing import LAST_NUMBER, DefinitionDraft, Page
from storage.sql.store import Store

_NEEDS_SERVICE = (
    "needs a service beside the gateway: make a tool of this name, a webhook or one of an MCP server."
)
_BUILT_IN_NAMES = {uid: name for name, uid in BUILT_IN_UIDS.items()}
# The numbers that sort the built-in tools in lists: before every row, in the order of `BUILT_IN_TOOLS`.
_SORT_KEYS = {name: index - len(BUILT_IN_TOOLS) for index, name in enumerate(BUILT_IN_TOOLS)}


class ToolView(Struct, frozen=True):
    """A tool as lists show it."""

    # The name by which models call the tool.
    name: str
    # The uid, a constant for a built-in tool.
    uid: str
    # The stored definition; None: the tool is built in.
    definition: Definition | None = None


class ToolRegistry:
    """Finds, lists and changes tools.

    Each method takes the caller's project, and finds only tools of that project. Besides the errors that a method
    names, it raises NotFound, WriteConflict and StoreUnavailable.
    """

    def __init__(self, store: Store, cache: ResolvedAgentCache, now: Callable[[], float]) -> None:
        self._store = store
        self._cache = cache
        self._now = now

    async def get(self, project: str, uid: str) -> ToolView:
        """Returns the tool with this uid."""
        if uid in _BUILT_IN_NAMES:
            return make_built_in(_BUILT_IN_NAMES[uid])
        return _make_view(await self._store.definitions.get(project, DefinitionKind.TOOL, uid))

    async def select(
        self, project: str, page: Page[str], *, name: str | None = None, name_part: str | None = None
    ) -> AsyncIterator[ToolView]:
        """Yields tools. Built-in tools count as older than all others.

        page: the page, with uids as cursors; its limit is ignored.
        name: the name of the only tool to yield; None: tools of any name.
        name_part: a text in the names of the tools to yield; None: tools of any name.
        """
        newest_first = page.newest_first
        first, last = page.ends
        low = -LAST_NUMBER if first is None else await self._get_sort_key(project, first)
        high = LAST_NUMBER if last is None else await self._get_sort_key(project, last)
        built_in = [
            make_built_in(built_in_name)
            for built_in_name, sort_key in _SORT_KEYS.items()
            if low < sort_key < high
            and name in (None, built_in_name)
            and (name_part or "").lower() in built_in_name
        ]
        if not newest_first:
            for tool in built_in:
                yield tool
        start, end = (high, low) if newest_first else (low, high)
        definitions = self._store.definitions.iterate(
            project,
            DefinitionKind.TOOL,
            Page(start, end, newest_first=newest_first),
            name=name,
            name_part=name_part,
        )
        async for definition in definitions:
            yield _make_view(definition)
        if newest_first:
            for tool in reversed(built_in):
                yield tool

    async def create(self, project: str, name: str, definition: ToolDefinition) -> ToolView:
        """Makes a tool. Raises: Conflict if a built-in tool has that name; WriteConflict if another tool has it."""
        _check_name(name)
        draft = DefinitionDraft(project, DefinitionKind.TOOL, ids.new_uid(), definition.dump(), name)
        return _make_view(await self._store.definitions.add(draft, at=self._now()))

    async def change(
        self, project: str, uid: str, edit: Callable[[ToolDefinition], tuple[str | None, ToolDefinition]]
    ) -> ToolView:
        """Changes a tool. Raises: Conflict if the tool is built in, or a built-in tool has the new name.

        edit: the function that returns the new name (None: the name stays) and the new definition for the present one.
        """

        async def change() -> Definition:
            definition = (await self.get(project, uid)).definition
            if definition is None:
                raise Conflict("This is a tool of the gateway's own, which cannot be changed.")
            name, after = edit(ToolDefinition.of(definition.body))
            if name is not None and name != definition.name:
                _check_name(name)
            return await self._store.definitions.change(definition, after.dump(), at=self._now(), name=name)

        changed_tool = await retry_changed_record(change)
        self._cache.clear()
        return _make_view(changed_tool)

    async def put(
        self,
        project: str,
        name: str,
        definition: ToolDefinition,
        merge: Callable[[ToolDefinition], ToolDefinition] | None = None,
    ) -> ToolView:
        """Makes a tool, or changes the tool that has this name.

        merge: the function that makes the new definition from the present one; None: `definition` is the new one.
        """
        while not (found := await self._store.definitions.find_by_name(project, DefinitionKind.TOOL, name)):
            with suppress(WriteConflict):  # another request has made it meanwhile
                return await self.create(project, name, definition)
        return await self.change(
            project, found[0].uid, lambda before: (None, definition if merge is None else merge(before))
        )

    async def delete(self, project: str, uid: str) -> None:
        """Deletes a tool and detaches it from all agents. Raises: Conflict if the tool is built in."""
        tool = await self.get(project, uid)
        if tool.definition is None:
            raise Conflict("This is a tool of the gateway's own, which cannot be deleted.")
        await self._store.attached.delete(tool.definition, at=self._now())
        self._cache.clear()

    async def find_named(self, project: str, name: str) -> ToolView | None:
        """Returns the tool of this name; None if the project has no such tool."""
        if name in BUILT_IN_TOOLS:
            return make_built_in(name)
        namesakes = await self._store.definitions.find_by_name(project, DefinitionKind.TOOL, name)
        return _make_view(namesakes[0]) if namesakes else None

    async def get_named(self, project: str, names: Iterable[str]) -> Sequence[ToolView]:
        """Returns the tools with these names. Raises: BadRequest, which lists the names without a tool."""
        by_name = {name: await self.find_named(project, name) for name in names}
        missing_names = [name for name, tool in by_name.items() if tool is None]
        if missing_names:
            # Letta's clients recognise this message, and then make the agent without these tools.
            sentences = [f"Tools not found by name: {', '.join(missing_names)}."]
            sentences += [f"{name} {_NEEDS_SERVICE}" for name in missing_names if name in EXTERNAL_TOOLS]
            raise BadRequest(" ".join(sentences), param="tools")
        return [tool for tool in by_name.values() if tool is not None]

    async def load_of_agents(self, attached: Mapping[int, Sequence[int]]) -> dict[int, Sequence[ToolView]]:
        """Returns the tools of each agent. A tool that was deleted meanwhile is left out.

        attached: the attachment numbers of an agent's tools, by the rows of agents.
        """
        rows = sorted({number for numbers in attached.values() for number in numbers if number > 0})
        definitions = await self._store.definitions.load_by_rows(rows) if rows else {}
        tools = {row: _make_view(definition) for row, definition in definitions.items()}
        tools.update({number_tool(tool): tool for tool in map(make_built_in, BUILT_IN_TOOLS)})
        return {
            agent_row: [tools[number] for number in numbers if number in tools]
            for agent_row, numbers in attached.items()
        }

    async def _get_sort_key(self, project: str, uid: str) -> int:
        tool = await self.get(project, uid)
        return _SORT_KEYS[tool.name] if tool.definition is None else tool.definition.id


def make_built_in(name: str) -> ToolView:
    """Returns a built-in tool."""
    return ToolView(name, BUILT_IN_UIDS[name])


def number_tool(tool: ToolView) -> int:
    """Returns the number of a tool in agents' attachments: its row, or a negative number for a built-in tool."""
    return BUILT_IN_NUMBERS[tool.name] if tool.definition is None else tool.definition.id


def _make_view(definition: Definition) -> ToolView:
    return ToolView(definition.name, definition.uid, definition)


def _check_name(name: str) -> None:
    if name in BUILT_IN_TOOLS:
        raise Conflict(f"{name!r} is a tool of the gateway's own.", param="name")
