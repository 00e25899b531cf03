"""The tools of an agent of the agents API: built-in tools, and tools that callers have defined."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from adapters.types import Json
from gateway.agents.tools.agent_messages import AgentMessenger, perform_call
from gateway.agents.tools.argument_check import validate_arguments
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.agents.tools.file_tools import FileTools
from gateway.agents.tools.written_blocks import edit_blocks, write_blocks
from gateway.core import ids
from gateway.core.agent import AgentSpec, AgentTool
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import BUILT_IN_TOOLS, MEMORY_USES, SPEAKING_TOOLS, ToolUse, find_tool_entry
from gateway.core.memory.call_arguments import find_number_error
from gateway.core.memory.edit_calls import RefusedCall, read_edit_calls
from gateway.core.memory.edit_ids import shorten_call_id
from gateway.core.memory.memory_lookup import read_lookup
from gateway.core.nul import without_nul
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, combine_shown
from gateway.core.tags import escape_tags
from gateway.core.turn.asides import FILLER, HEARTBEAT, THINKING, Asides, with_asides
from gateway.core.turn.commands import RunTool
from gateway.run.tools.memory import MemoryTools
from gateway.run.tools.toolbox import CallDeduplicator, ForeignCall, ToolAnswer, choose_max_chars, cut_result
from storage.batch_records import make_call_origin
from storage.records import Block, Exchange

# The most characters of a result, however large the window is. Not measured: about 12,000 tokens.
MAX_RESULT_CHARS = 50_000
_EDITS_FINISHED = "All edits are done."


@dataclass(slots=True)
class AgentTools:
    """The tools of one step of an agent. Implements `Toolbox`, which documents the methods."""

    # Edits and searches the agent's memory.
    memory: MemoryTools
    # Calls the tools that callers have defined.
    defined_tools: DefinedTools
    # The agent, with its tools.
    spec: AgentSpec
    # The names of the client's tools, which take precedence over the agent's tools.
    client_tools: Collection[str] = ()
    # The size of the model's context window in tokens; None: the size is not known.
    window: int | None = None
    # The uid of the run that makes the calls; None: a chat completion makes them, and its turn is written as a whole,
    # with its edits of blocks.
    run_uid: str | None = None
    # The stored step that made the calls; None: a chat completion makes the calls, or an item of a batch, which stores
    # its step after the calls.
    step: Exchange | None = None
    # Sends messages to other agents; None: the tools are described and never called.
    agent_sender: AgentMessenger | None = None
    # The record of calls that leave the gateway; None: they are not recorded.
    call_record: CallDeduplicator | None = None
    # The tools that run here, by name.
    _tools: dict[str, AgentTool] = field(init=False)
    # The entries for a request's `tools`, by name, without asides.
    _plain_entries: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self._plain_entries = _make_entries(self.spec, self.client_tools)
        self._tools = {tool.name: tool for tool in self.spec.tools if tool.name in self._plain_entries}

    # -- a toolbox

    def list_definitions(self) -> list[dict[str, Any]]:
        asides = _read_asides(self.spec, self._plain_entries.values()).by_tool
        return [with_asides(entry, asides.get(name, ())) for name, entry in self._plain_entries.items()]

    def owns(self, name: str) -> bool:
        return name in self._tools

    def find_serial_group(self, call: RunTool) -> str | None:
        is_built_in = self._tools[call.name].definition is None
        return "memory" if is_built_in and BUILT_IN_TOOLS[call.name].use in MEMORY_USES else None

    async def run(self, call: RunTool) -> ToolAnswer:
        tool = self._tools[call.name]
        parameters = self._plain_entries[call.name]["function"].get("parameters") or {}
        children = self.defined_tools.children
        validated = await validate_arguments(children, call.name, parameters, call.arguments)
        if validated.error is not None:
            # The error may quote the arguments.
            return _sanitize(ToolAnswer.failed(validated.error))
        call = replace(call, arguments=validated.arguments)
        if tool.definition is None:
            if BUILT_IN_TOOLS[call.name].use is ToolUse.ASK_AGENT:
                return await self._perform_once(call, partial(self._ask_agent, call))
            if (number_error := find_number_error(call.name, call.arguments)) is not None:
                return ToolAnswer.failed(number_error)
            return self._cut(await self._run_built_in(call), MAX_RESULT_CHARS)
        answer = await self._perform_once(call, partial(self._run_defined, call, tool.definition))
        # Only the answer of a chat completion still has changed blocks. They become edits of its turn outside of the
        # call that is performed once, so that a recorded answer changes the blocks of a new turn as well.
        return edit_blocks(self.memory, answer, call.call_id) if answer.changed_blocks else answer

    async def _perform_once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Performs a call that leaves the gateway, or returns its recorded answer.

        perform: the function that performs the call, and returns the answer as the model reads it.
        """
        return await (perform() if self.call_record is None else self.call_record.perform_once(call, perform))

    async def _ask_agent(self, call: RunTool) -> ToolAnswer:
        assert self.agent_sender is not None  # without it the tools are only described
        max_chars = choose_max_chars(MAX_RESULT_CHARS, self.window)
        return _sanitize(await perform_call(self.agent_sender, call, max_chars))

    async def _run_defined(self, call: RunTool, tool: ToolDefinition) -> ToolAnswer:
        """Performs a call of a tool that was defined.

        Changes that code has made in its copy of the blocks are written, unless the turn is written as a whole.
        """
        blocks = await self._load_blocks() if tool.source_type == "python" else []
        answer = _sanitize(await self.defined_tools.run(tool, self._make_foreign_call(call, blocks)))
        answer = self._cut(answer, min(MAX_RESULT_CHARS, tool.result_chars))
        if self.run_uid is None or not answer.changed_blocks:
            return answer
        memory, step = self.memory, self.step
        return await write_blocks(
            memory.store,
            answer,
            at=memory.now(),
            origin=make_call_origin(self.run_uid, call.call_id) if step is None else f"tool:{call.call_id}",
            exchange_row=None if step is None else step.id,
            edited_labels=self._find_edited_labels(),
            agent=memory.context.agent,
        )

    async def _load_blocks(self) -> Sequence[Block]:
        """Returns the stored blocks. A block with edits that are not stored yet has the value that the model sees."""
        memory = self.memory
        if self.run_uid is None:
            return memory.block_edits.blocks
        stored_blocks = {block.id: block for block in await memory.store.blocks.load(memory.context.agent.id)}
        edited_labels = self._find_edited_labels()
        return [
            block if block.label in edited_labels else stored_blocks[block.id]
            for block in memory.block_edits.blocks
            if block.id in stored_blocks
        ]

    def _find_edited_labels(self) -> set[str]:
        """Returns the labels of blocks with edits that are not in the store yet."""
        context, block_edits = self.memory.context, self.memory.block_edits
        path_ids = context.path_ids
        edited_before = {edit.label for edit in context.snapshot.edits if edit.exchange_row in path_ids}
        return edited_before | {edit.label for edit in block_edits.edits}

    def _make_foreign_call(self, call: RunTool, blocks: Sequence[Block]) -> ForeignCall:
        """Returns a call for a tool outside of the gateway. The key is unique to a call of a step."""
        uid, run = self.spec.uid, self.run_uid
        step = "" if self.step is None else ids.make_id_with_seq("step", uid, self.step.seq)
        return ForeignCall(
            tool=call.name,
            arguments=call.arguments,
            call_id=call.call_id,
            agent=ids.make_id("agent", uid),
            run="" if run is None else ids.make_id("run", run),
            # Providers choose the ids of calls, and a header takes few of the characters.
            key=f"{step or ids.new_uid()}/{quote(shorten_call_id(call.call_id), safe='')}",
            agent_name=self.spec.name,
            blocks=blocks,
            project=self.memory.context.agent.scope.project,
        )

    async def _run_built_in(self, call: RunTool) -> ToolAnswer:
        """Performs a call of a built-in tool that sends no message."""
        name, arguments, memory, search = call.name, call.arguments, self.memory, self.memory.searches
        match BUILT_IN_TOOLS[name].use:
            case ToolUse.EDIT:
                return self._edit(call)
            case ToolUse.STORE_FACT:
                return memory.remember_fact(call.call_id, str(arguments["fact"]))
            case ToolUse.STORE_PASSAGE:
                tags = arguments.get("tags")
                passage = {"content": arguments["content"], **({"tags": tags} if tags else {})}
                return memory.remember(call.call_id, passage)
            case ToolUse.SEARCH:
                lookup = read_lookup(name, arguments, memory.now(), self.spec.definition.timezone)
                return ToolAnswer.failed(lookup) if isinstance(lookup, str) else await search.look_up(lookup)
            case ToolUse.SEARCH_FILES:
                files = FileTools(
                    memory.store, memory.context.agent, self.defined_tools.children, search.embed_query
                )
                return _sanitize(await files.run(name, arguments))
            case ToolUse.FINISH:
                return ToolAnswer(_EDITS_FINISHED)
            case ToolUse.ASK_AGENT | ToolUse.SPEAK:
                raise NotImplementedError(f"{name} sends a message, which is not a use of memory")

    def _edit(self, call: RunTool) -> ToolAnswer:
        """Performs the edits of a call, which may be several."""
        try:
            edits = read_edit_calls(call.name, call.arguments)
        except RefusedCall as refusal:
            return ToolAnswer.failed(str(refusal))
        results = [
            self.memory.edit(call.call_id, edit.op, edit.label, edit.arguments, number=n)
            for n, edit in enumerate(edits)
        ]
        has_failed = any(result.status == "error" for result in results)
        shown = combine_shown([result.shown for result in results], NOTHING_SHOWN)
        content = "\n".join(result.content for result in results)
        return ToolAnswer(content, "error" if has_failed else "success", shown=shown)

    def _cut(self, answer: ToolAnswer, max_chars: int) -> ToolAnswer:
        """Returns an answer that is short enough to leave room in the window, and has at most `max_chars`."""
        return replace(answer, content=cut_result(answer.content, choose_max_chars(max_chars, self.window)))


def _sanitize(answer: ToolAnswer) -> ToolAnswer:
    """Returns an answer from outside of the gateway without U+0000, and without tags that look like the gateway's."""
    return replace(answer, content=escape_tags(without_nul(answer.content)))


def read_asides(spec: AgentSpec, client_tools: Collection[str] = ()) -> Asides:
    """Returns the arguments that the gateway adds to an agent's tools, and those that are spoken to the user."""
    return _read_asides(spec, _make_entries(spec, client_tools).values())


def _read_asides(spec: AgentSpec, entries: Iterable[dict[str, Any]]) -> Asides:
    return Asides.of(entries, _list_aside_names(spec), SPEAKING_TOOLS)


def find_serial_tools(spec: AgentSpec) -> frozenset[str]:
    """Returns the tools with calls that must run one after another."""
    return frozenset(tool.name for tool in spec.tools if tool.definition and not tool.definition.is_parallel)


def find_approval_tools(spec: AgentSpec) -> frozenset[str]:
    """Returns the tools that always need a person's approval, whatever the rules allow."""
    return frozenset(tool.name for tool in spec.tools if tool.definition and tool.definition.needs_approval)


def _list_aside_names(spec: AgentSpec) -> frozenset[str]:
    """Returns the names of the arguments that the gateway adds to an agent's tools."""
    speaks_by_tool = spec.style == "message"
    thinks = spec.definition.thinks_aloud
    is_added = {
        HEARTBEAT: speaks_by_tool,
        THINKING: speaks_by_tool if thinks is None else thinks,
        FILLER: spec.filler == "model",
    }
    return frozenset(name for name, added in is_added.items() if added)


def _make_entries(spec: AgentSpec, client_tools: Collection[str]) -> dict[str, dict[str, Any]]:
    """Returns the entries for a request's `tools`, by name, without asides.

    Tools that this version of the gateway does not have are left out.
    """
    entries = {tool.name: _make_entry(tool) for tool in spec.tools if tool.name not in client_tools}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _make_entry(tool: AgentTool) -> dict[str, Any] | None:
    """Returns the entry of a tool for a request's `tools`; None if the gateway has no such built-in tool."""
    if tool.definition is None:
        return find_tool_entry(tool.name)
    schema = tool.definition.schema
    return {
        "type": "function",
        "function": {**schema, "name": tool.name, "parameters": _make_parameters(schema.get("parameters"))},
    }


def _make_parameters(schema: Json | None) -> Json:
    """Returns a schema of arguments in a form that every provider takes.

    The schema of an MCP tool without arguments is often {"type": "object"}, but OpenAI requires properties.
    """
    fields = {name: value for name, value in (schema or {}).items() if value is not None}
    return {**fields, "type": fields.get("type", "object"), "properties": fields.get("properties", {})}
