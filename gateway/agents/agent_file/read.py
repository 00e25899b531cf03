"""Reads an agent file in the form of Letta 0.16, or in an older one (`older.py`).

Unknown fields are ignored.

What the gateway has no place for (tools of Letta's that it lacks, groups, MCP servers, values of secrets that an
export wipes) is left out, and named. Everything else that is wrong is an Unprocessable that names the field.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from gateway.agents.agent_file.file_messages import FileCall, FileMessage, acceptable, from_file_message
from gateway.agents.agent_file.file_structs import (
    AgentExtension,
    File,
    FileAgent,
    FileConversation,
    FileExtension,
    FileIdentity,
    FileLists,
    FilePassage,
    FileSleeptime,
    FileTool,
    GroupConfig,
    ImportForm,
)
from gateway.agents.agent_file.older import is_older, translate_older
from gateway.agents.agent_file.write import EXTENSION
from gateway.agents.api.agent_bodies import CreateAgent, new_definition
from gateway.agents.api.blocks import CreateBlock, block_of
from gateway.agents.api.conversations import CreateConversation, with_update
from gateway.agents.api.identities import apply_update
from gateway.agents.api.passages import moment_of
from gateway.agents.api.tools import UpdateTool, with_tool_update
from gateway.agents.core.agent_file import (
    AgentFile,
    PortableAgent,
    PortableArchive,
    PortableConversation,
    PortableFolder,
    PortableIdentity,
    PortableMessage,
)
from gateway.agents.core.kinds import kind_of
from gateway.agents.registry.archives import MAX_SEARCHED
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import convert, parse
from gateway.checked import Fault, fault_of
from gateway.core import ids
from gateway.core.definition import (
    AgentDefinition,
    ConversationDefinition,
    IdentityDefinition,
    Sleeptime,
    ToolDefinition,
)
from gateway.core.memory.builtin import SCHEMAS
from gateway.core.memory.file_text import clean_file_name
from gateway.core.turn.asides import HEARTBEAT
from gateway.errors import BadRequest
from storage.listing import PassageDraft
from storage.records import Block

_AT = ("body", "file")
_EXTENSION_AT = (*_AT, "metadata", EXTENSION)


def read_file(data: bytes, form: ImportForm, now: float) -> AgentFile:
    """Returns the content of a file. now: the time of messages that have none.

    Raises: Unprocessable; BadRequest: it has secrets.
    """
    json = _parsed(data)
    if is_older(json):
        json = translate_older(json, _AT)
    file = convert(json, File, _AT)
    text = file.metadata.mnemogate
    extension = FileExtension() if text is None else _extension(text)
    is_own = text is not None and not extension.is_moved
    retained_uids = _retained_uids(file) if extension.is_moved else {}
    _check_ids(json)
    left_out: list[str] = []
    sleeptimes, sleepers = _groups(file, left_out)
    left_out += [f"mcp_servers.{n}" for n in range(len(file.mcp_servers))]
    left_out += [f"skills.{skill.name}" for skill in file.skills or ()]
    tools, tool_names = _tools(file.tools, left_out, is_own=is_own)
    blocks = {str(each.get("id")): _block(each, n) for n, each in enumerate(file.blocks)}
    folders = _folders(file, retained_uids)
    reader = _AgentReader(
        form=form, now=now, extension=extension, is_own=is_own, retained_uids=retained_uids, sleeptimes=sleeptimes,
        tool_names=tool_names, blocks=blocks, folders=folders, left_out=left_out,
    )  # fmt: skip
    agents = []
    for n, raw in enumerate(file.agents):
        agent = convert(raw, FileAgent, (*_AT, "agents", n))
        if agent.id in sleepers:
            # Its primary gets one of its own.
            left_out.append(f"agents.{n}")
            continue
        name = _name_of(agent, form, is_only=len(file.agents) - len(sleepers) == 1)
        agents.append(reader.read(agent, raw, n, name))
    block_uids = {key: retained_uids[key] for key in blocks if key in retained_uids}
    return AgentFile(agents, tools, blocks, folders, reader.archives, block_uids, left_out)


@dataclass(slots=True, kw_only=True)
class _AgentReader:
    """Reads the agents of a file after its other parts."""

    form: ImportForm
    now: float
    extension: FileExtension
    # Mnemogate wrote the file.
    is_own: bool
    # The uids that agents, blocks and folders retain, by their ids in the file.
    retained_uids: Mapping[str, str]
    # How sleeptime agents read an agent, by its id.
    sleeptimes: Mapping[str, FileSleeptime]
    # The names of tools by their ids in the file, as `_tools` returns them.
    tool_names: Mapping[str, str]
    blocks: Mapping[str, tuple[Block, dict[str, Any]]]
    folders: Mapping[str, PortableFolder]
    # Receives the paths of the parts of the file that cannot be taken over.
    left_out: list[str]
    # The archives of the agents that have been read, by id.
    archives: dict[str, PortableArchive] = field(default_factory=dict)

    def read(self, agent: FileAgent, raw: Mapping[str, Any], n: int, name: str) -> PortableAgent:
        """Returns the agent with the index n in the file. raw: the same as JSON."""
        form, now, at = self.form, self.now, (*_AT, "agents", n)
        extension = self.extension.agents.get(agent.id)
        own = extension or AgentExtension()
        # On Letta's server an agent that speaks by a tool thinks in text.
        is_text_thought = not self.is_own and kind_of(agent.agent_type or "").style == "message"
        messages_of = partial(_messages, now=now, left_out=self.left_out, is_text_thought=is_text_thought)
        sleeptime = self.sleeptimes.get(agent.id) or own.sleeptime
        self.left_out += _secrets(agent)
        folders = _in_file(agent.source_ids, self.folders, (*at, "source_ids"))
        # Besides its own archive, which a search asks first.
        room = MAX_SEARCHED - 1 - len(own.archives)
        self.left_out += [f"folders.{self.folders[id].name}" for id in folders[room:]]
        definition = _definition(raw, extension if self.is_own else None, form, at)
        portable = PortableAgent(
            name,
            replace(definition, sleeptime=None if sleeptime is None else Sleeptime((), sleeptime.frequency)),
            tags=agent.tags or (),
            blocks=_in_file(agent.block_ids, self.blocks, (*at, "block_ids")),
            tools=[
                tool
                for id in _in_file(agent.tool_ids, self.tool_names, (*at, "tool_ids"))
                if (tool := self.tool_names[id])
            ],
            folders=folders[:room],
            archives=_archives(own, self.archives, now),
            passages=_passages(own.passages, now),
            uid=self.retained_uids.get(agent.id),
            identities=[*map(_identity, own.identities)],
            begun=moment_of(own.created_at, _EXTENSION_AT),
        )
        _check_labels([self.blocks[key][0] for key in portable.blocks], at)
        if form.strip_messages:
            return portable
        return replace(
            portable,
            messages=messages_of(agent.messages or (), f"agents.{n}.messages"),
            conversations=[
                _conversation(each, form, now, messages_of(each.messages, f"agents.{n}.{each.id}"))
                for each in own.conversations
            ],
        )


def _identity(identity: FileIdentity) -> PortableIdentity:
    uid = _uid(identity.id, (*_EXTENSION_AT, "identities", "id"))
    definition = apply_update(IdentityDefinition(identity.name), identity)
    return PortableIdentity(uid, identity.identifier_key, definition)


def _archives(own: AgentExtension, archives: dict[str, PortableArchive], now: float) -> list[str]:
    """Adds an agent's archives to those of the file. Returns their keys."""
    keys = []
    for archive in own.archives:
        keys.append(f"archive-{len(archives)}")
        body = {"description": archive.description, "embedding": None, "embedding_config": None}
        uid = None if archive.id is None else _uid(archive.id, (*_EXTENSION_AT, "archives", "id"))
        archives[keys[-1]] = PortableArchive(archive.name, body, _passages(archive.passages, now), uid)
    return keys


def _parsed(data: bytes) -> dict[str, Any]:
    """Returns the object that a file holds. Raises: Unprocessable."""
    data = data.removeprefix(BOM_UTF8)  # editors on Windows write it in front
    _check_lists(data)
    json = parse(data, _AT)
    if isinstance(json, str):
        # Programs that save what the client returns as JSON have the file as one text.
        json = parse(json.encode(), _AT)
    if not isinstance(json, dict):
        raise Unprocessable([Fault(_AT, "Input should be an object", "model_type")])
    return json


def _check_lists(data: bytes) -> None:
    """Raises: Unprocessable: a list is too long."""
    try:
        msgspec.json.decode(data, type=FileLists)
    except msgspec.ValidationError as error:
        fault = fault_of(error, None, FileLists, _AT)
        if "length" in fault.message:
            raise Unprocessable([replace(fault, kind="value_error")]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # what else is wrong is found where all of it is read


def _extension(text: str) -> FileExtension:
    return convert(parse(text.encode(), _EXTENSION_AT), FileExtension, _EXTENSION_AT)


def _retained_uids(file: File) -> dict[str, str]:
    """Returns the uids of agents, blocks and folders that retain their uids, by id. Raises: Unprocessable."""
    parts = {
        "agents": [str(each.get("id")) for each in file.agents],
        "blocks": [str(each.get("id")) for each in file.blocks],
        "sources": [each.id for each in file.sources],
    }
    return {id: _uid(id, (*_AT, part, n, "id")) for part, some in parts.items() for n, id in enumerate(some)}


def _uid(id: str, at: tuple[str | int, ...]) -> str:
    """Returns the uid of an id that something keeps. Raises: Unprocessable."""
    uid = ids.uid_of(id.partition("-")[0], id)
    if uid is None:
        raise Unprocessable([Fault(at, "Expected an id of Letta's: a kind and a UUID", value=id[:100])])
    return uid


def _check_ids(json: Mapping[str, Any]) -> None:
    """Raises: Unprocessable: an id is missing, or there twice."""
    for part in ("agents", "blocks", "tools", "sources", "files"):
        seen: set[str] = set()
        for n, each in enumerate(json.get(part) or ()):
            id = each.get("id")
            if not isinstance(id, str) or id in seen:
                message = f"The id {id!r} is there twice" if isinstance(id, str) else "Field required"
                raise Unprocessable([Fault((*_AT, part, n, "id"), message)])
            seen.add(id)


def _in_file(ids: Sequence[str] | None, parts: Mapping[str, Any], at: tuple[str | int, ...]) -> list[str]:
    """Returns ids of parts of the file, each once. Raises: Unprocessable: one names nothing in the file."""
    for n, id in enumerate(ids or ()):
        if id not in parts:
            raise Unprocessable([Fault((*at, n), "This names nothing in the file", value=id[:100])])
    return list(dict.fromkeys(ids or ()))


def _tools(
    tools: Sequence[dict[str, Any]], left_out: list[str], *, is_own: bool
) -> tuple[dict[str, ToolDefinition], dict[str, str]]:
    """Returns the tools that are defined here, by name, and the names of all by id: "" for what is left out.

    is_own: Mnemogate wrote the file.
    """
    made: dict[str, ToolDefinition] = {}
    names: dict[str, str] = {}
    for n, raw in enumerate(tools):
        at = (*_AT, "tools", n)
        tool = convert(raw, FileTool, at)
        names[tool.id] = tool.name
        if tool.tool_type == "external_mcp":
            continue  # the project has a tool of this name, or it has not
        if tool.tool_type != "custom" and tool.name not in SCHEMAS:
            names[tool.id] = ""
            left_out.append(f"tools.{tool.name}")
        elif tool.name not in SCHEMAS:
            if raw.get("pip_requirements") or raw.get("npm_requirements"):
                left_out.append(f"tools.{tool.name}.requirements")
            fields = {name: raw[name] for name in _TOOL_FIELDS if raw.get(name) is not None}
            schema = fields.get("json_schema")
            if not isinstance(schema, dict) or schema.get("name") != tool.name:
                raise Unprocessable(
                    [Fault((*at, "json_schema", "name"), "Expected a schema with the tool's name")]
                )
            if fields.get("source_type") == "json" and fields.get("source_code") and not is_own:
                # Letta's server runs all that is not TypeScript as Python.
                fields["source_type"] = "python"
            definition = with_tool_update(ToolDefinition({}), convert(fields, UpdateTool, at))
            schema = definition.schema if is_own else _without_heartbeat(definition.schema)
            made[tool.name] = replace(definition, schema=schema)
    return made, names


def _without_heartbeat(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a schema without the argument that Letta's older agents added to each tool, which no tool is given."""
    parameters = schema["parameters"]
    properties = dict(parameters.get("properties", {}))
    if properties.pop(HEARTBEAT, None) is None:
        return dict(schema)
    required = [name for name in parameters.get("required", ()) if name != HEARTBEAT]
    return {**schema, "parameters": {**parameters, "properties": properties, "required": required}}


_TOOL_FIELDS = (
    "source_code", "source_type", "json_schema", "description", "tags", "return_char_limit",
    "default_requires_approval", "enable_parallel_execution", "metadata_",
)  # fmt: skip


def _block(raw: dict[str, Any], n: int) -> tuple[Block, dict[str, Any]]:
    names = ("label", "value", "description", "limit", "read_only", "metadata", "tags", "hidden")
    fields = {name: raw[name] for name in names if raw.get(name) is not None}
    # A file holds all of a block: one without a description is not given one.
    fields.setdefault("description", "")
    block, details = block_of(convert(fields, CreateBlock, (*_AT, "blocks", n)))
    # Letta 0.16 prints limits and does not enforce them.
    return replace(block, limit=max(block.limit, len(block.value))), details


def _check_labels(blocks: Sequence[Block], at: tuple[str | int, ...]) -> None:
    """Raises: Unprocessable: two of an agent's blocks have one label."""
    labels = [block.label for block in blocks]
    if len(set(labels)) < len(labels):
        raise Unprocessable([Fault((*at, "block_ids"), "Two blocks of an agent have the same label")])


def _folders(file: File, retained_uids: Mapping[str, str]) -> dict[str, PortableFolder]:
    made = {}
    for source in file.sources:
        body = {
            "description": source.description,
            "instructions": source.instructions,
            "metadata": source.metadata,
            "embedding_config": source.embedding_config,
        }
        made[source.id] = PortableFolder(
            source.name,
            {name: value for name, value in body.items() if value is not None},
            uid=retained_uids.get(source.id),
        )
    texts: dict[str, list[tuple[str, str, str]]] = {id: [] for id in made}
    for n, each in enumerate(file.files):
        _in_file([each.source_id], made, (*_AT, "files", n, "source_id"))
        name = clean_file_name(each.original_file_name or each.file_name or "") or each.id
        if each.content is not None:
            texts[each.source_id].append((name, each.file_type or "text/plain", each.content))
    return {id: replace(folder, files=texts[id]) for id, folder in made.items()}


def _secrets(agent: FileAgent) -> Iterable[str]:
    """Yields the names of secrets; an export wipes their values. Raises: BadRequest: a value is there."""
    for key in ("tool_exec_environment_variables", "secrets"):
        values: dict[str, str | None] = getattr(agent, key) or {}
        if any(values.values()):
            raise BadRequest(
                f"{key}: Definitions hold no secrets; the gateway's settings do (tools.headers).",
                param=key,
            )
        yield from (f"secrets.{name}" for name in values if key == "secrets" or not agent.secrets)


def _groups(file: File, left_out: list[str]) -> tuple[dict[str, FileSleeptime], set[str]]:
    """Returns the agents that are read by sleeptime agents, and those sleeptime agents. Other groups are left out."""
    known = {str(each.get("id")) for each in file.agents}
    sleeptimes: dict[str, FileSleeptime] = {}
    sleepers: set[str] = set()
    for n, group in enumerate(file.groups):
        config = group.manager_config or GroupConfig()
        manager = config.manager_agent_id
        if config.manager_type not in ("sleeptime", "voice_sleeptime") or manager not in known:
            left_out.append(f"groups.{n}")
            continue
        assert manager is not None
        sleeptimes[manager] = FileSleeptime(config.sleeptime_agent_frequency)
        sleepers |= known & {*group.agent_ids} - {manager}
    return sleeptimes, sleepers


def _name_of(agent: FileAgent, form: ImportForm, *, is_only: bool) -> str:
    name = agent.name or agent.id
    for other in (form.override_name, form.name):
        if isinstance(other, str) and is_only:
            name = other
    return f"{name}_copy" if form.append_copy_suffix else name


# Fields of an agent in a file that mean the same when an agent is created.
_FIELDS = (
    "agent_type", "description", "metadata", "hidden", "system", "llm_config", "model_settings", "context_window_limit",
    "max_tokens", "response_format", "parallel_tool_calls", "tool_rules", "message_buffer_autoclear", "timezone",
    "compaction_settings", "initial_message_sequence", "embedding", "embedding_config", "embedding_chunk_size",
    "reasoning", "enable_reasoner", "max_reasoning_tokens", "max_files_open", "per_file_view_window_char_limit",
    "model",
)  # fmt: skip


def _definition(
    raw: Mapping[str, Any], own: AgentExtension | None, form: ImportForm, at: tuple[str | int, ...]
) -> AgentDefinition:
    fields = {name: raw[name] for name in _FIELDS if raw.get(name) is not None}
    if isinstance(rules := fields.get("tool_rules"), list):
        fields["tool_rules"] = list(map(_rule, rules))
    if "compaction_settings" in fields:
        fields["compaction_settings"] = _compaction(fields["compaction_settings"])
    for name, most in (("llm_config", "max_tokens"), ("model_settings", "max_output_tokens")):
        settings = fields.get(name)
        # Letta's server takes 0 for no bound.
        if isinstance(settings, dict) and settings.get(most) == 0:
            fields[name] = {**settings, most: None}
    config = fields.get("llm_config")
    if own is not None:
        more = {
            "message_buffer_limit": own.message_buffer_limit,
            "message_buffer_min": own.message_buffer_min,
        }
        fields |= {name: value for name, value in more.items() if value is not None}
        # A copy of a user's memory belongs to no user, so nothing is learned from it.
        extension = {name: value for name, value in own.mnemogate.items() if name != "learn"}
        fields["mnemogate"] = {name: value for name, value in extension.items() if value is not None}
        # A window that was not set is the model's, whatever was shown.
        if isinstance(config, dict) and "context_window_limit" not in fields:
            fields["llm_config"] = {name: each for name, each in config.items() if name != "context_window"}
    for model in (form.override_model_handle, form.model):
        if isinstance(model, str):
            fields["model"] = model
    for embedding in (form.override_embedding_handle, form.embedding):
        if isinstance(embedding, str):
            fields["embedding"] = embedding
    return new_definition(convert(fields, CreateAgent, at))


def _conversation(
    conversation: FileConversation, form: ImportForm, now: float, messages: Sequence[PortableMessage]
) -> PortableConversation:
    model = conversation.model if form.model is UNSET else None
    fields = {"summary": conversation.summary, "model": model, "model_settings": conversation.model_settings}
    return PortableConversation(
        _uid(conversation.id, (*_EXTENSION_AT, "conversations", "id")),
        with_update(ConversationDefinition(), convert(fields, CreateConversation, _EXTENSION_AT), at=0),
        _moment_or(now, conversation.created_at),
        messages,
    )


def _rule(rule: Any) -> Any:
    """Returns a tool rule without its words for prompts, and without what is null."""
    if not isinstance(rule, dict):
        return rule
    return {name: value for name, value in rule.items() if value is not None and name != "prompt_template"}


def _compaction(settings: Any) -> Any:
    """Returns the settings of compaction that the gateway knows. A mode that it does not have is left out."""
    if not isinstance(settings, dict):
        return settings
    known = ("mode", "model", "prompt", "sliding_window_percentage", "clip_chars")
    found = {name: settings[name] for name in known if settings.get(name) is not None}
    if found.get("mode") not in ("all", "sliding_window"):
        found.pop("mode", None)
    return found


def _passages(passages: Sequence[FilePassage], now: float) -> list[PassageDraft]:
    return [
        PassageDraft(each.text, _moment_or(now, each.created_at), each.tags, each.metadata)
        for each in passages
    ]


def _moment_or(now: float, text: str | None) -> float:
    """Returns a time in seconds since the epoch; `now`: the file has none. Raises: Unprocessable."""
    moment = moment_of(text, _EXTENSION_AT)
    return now if moment is None else moment


def _joined(messages: Iterable[tuple[int, FileMessage]]) -> Iterable[tuple[int, FileMessage]]:
    """Yields messages, each reply as one: Letta's server keeps the calls that a person must allow as another."""
    replies: list[tuple[int, FileMessage, list[FileCall]]] = []
    for n, each in messages:
        calls = each.tool_calls or []
        _, last, before = replies[-1] if replies else (n, each, [])
        if each.role == "approval" and calls and last.role == "assistant" and before:
            before.extend(calls)
        else:
            replies.append((n, each, [*calls]))
    for n, each, calls in replies:
        yield n, msgspec.structs.replace(each, tool_calls=calls) if calls else each


def _messages(
    listed: Sequence[FileMessage], path: str, now: float, left_out: list[str], *, is_text_thought: bool
) -> list[PortableMessage]:
    """Returns the messages of a conversation as they are stored.

    listed: as the file has them.
    path: of the list in the file.
    left_out: receives the paths of messages that no provider would accept.
    """
    messages = [*enumerate(listed)]
    # The first one is the compiled prompt, which is compiled again.
    if messages and messages[0][1].role == "system":
        messages = messages[1:]
    found = [
        (n, made)
        for n, each in _joined(messages)
        for made in from_file_message(each, now, is_text_thought=is_text_thought)
    ]
    accepted = [*acceptable(made for _, made in found)]
    left_out += [f"{path}.{n}" for (n, _), ok in zip(found, accepted, strict=True) if not ok]
    return [made for (_, made), ok in zip(found, accepted, strict=True) if ok]
