"""The bodies with which agents are created and changed, and the definitions that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from msgspec import UNSET, Meta, UnsetType, to_builtins
from msgspec.structs import replace

from gateway.agents.api.blocks import AgentBlock
from gateway.agents.api.compaction import CompactionBody, merge_compaction
from gateway.agents.api.groups import WindowFields, check_window
from gateway.agents.api.model_settings import (
    LLM_CONFIG,
    PROVIDER_SETTINGS,
    SETTINGS,
    Tokens,
    WindowTokens,
    read_model,
)
from gateway.agents.api.tool_rule_bodies import ToolRuleBody
from gateway.agents.core.kinds import DEFAULT_KIND
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.send_content import read_initial_messages
from gateway.agents.wire.sent_values import get_sent_fields, get_sent_or
from gateway.agents.wire.struct_fields import (
    BOUNDED_LIST,
    HOSTED,
    NO_SECRETS,
    ONE_PROJECT,
    READ_ONLY,
    Body,
    Maybe,
    Name,
    Names,
    NoEffect,
    Strings,
    check_size,
    list_stored_fields,
    refused,
)
from gateway.core.definition import FILLER_AFTER_MS, AgentDefinition, FixedFiller
from gateway.core.json_object import without_none
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.errors import BadRequest
from gateway.validation import Fault

AgentType = Literal[
    "memgpt_agent", "memgpt_v2_agent", "letta_v1_agent", "react_agent", "workflow_agent", "split_thread_agent",
    "sleeptime_agent", "voice_convo_agent", "voice_sleeptime_agent",
]  # fmt: skip

_NO_LIST = refused("The window is where the path begins, not a list; delete or compact messages.")
_NO_OWN_FOLDER = refused("An agent has no folder of its own; attach one.")

_Messages = Annotated[int, Meta(ge=1, le=1_000_000)]
_ModelName = Annotated[str, Meta(pattern=r"\S", max_length=200)]


class FillerBody(Body):
    """A sentence that the user hears when a tool takes longer than `after_ms`."""

    say: Annotated[str, Meta(pattern=r"\S", max_length=500)]
    after_ms: Annotated[float, Meta(ge=0, le=60_000)] = FILLER_AFTER_MS


class Own(Body):
    """The fields that an agent has here beyond those of Letta."""

    # "free" renders the memory section again when it costs nothing, "always" before each call.
    rebuild: Literal["free", "always"] | UnsetType = UNSET
    # The budget of a note in tokens; 0: no notes; null: the budget of the settings.
    recall_tokens: Maybe[Annotated[int, Meta(ge=0, le=100_000)]] = UNSET
    # Facts are learned from conversations. Only for users' memories.
    learn: bool | UnsetType = UNSET
    # The filler before a tool: a sentence of the model, or a fixed sentence if the tool takes longer; null: the filler
    # of the agent_type.
    filler: Maybe[Literal["model", "none"] | FillerBody] = UNSET


class UpdateAgent(Body):
    """A change of an agent; what is left out or null stays. The lists replace those that the agent has."""

    name: Maybe[Name] = UNSET
    description: Maybe[str] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    tags: Maybe[Names] = UNSET
    hidden: Maybe[bool] = UNSET
    system: Maybe[str] = UNSET
    model: Maybe[_ModelName] = UNSET
    llm_config: Annotated[dict[str, Any] | None, LLM_CONFIG] | UnsetType = UNSET
    model_settings: Annotated[dict[str, Any] | None, SETTINGS] | UnsetType = UNSET
    context_window_limit: Maybe[WindowTokens] = UNSET
    max_tokens: Maybe[Tokens] = UNSET
    response_format: Maybe[dict[str, Any]] = UNSET
    parallel_tool_calls: Maybe[bool] = UNSET
    block_ids: Maybe[Strings] = UNSET
    tool_ids: Maybe[Strings] = UNSET
    include_multi_agent_tools: Maybe[bool] = UNSET
    folder_ids: Maybe[Strings] = UNSET
    source_ids: Maybe[Strings] = UNSET
    identity_ids: Maybe[Strings] = UNSET
    tool_rules: Maybe[Annotated[list[ToolRuleBody], BOUNDED_LIST]] = UNSET
    message_buffer_autoclear: Maybe[bool] = UNSET
    message_buffer_limit: Maybe[_Messages] = UNSET
    message_buffer_min: Maybe[_Messages] = UNSET
    timezone: Maybe[str] = UNSET
    compaction_settings: Maybe[CompactionBody] = UNSET
    mnemogate: Maybe[Own] = UNSET

    embedding: NoEffect[str] = UNSET
    embedding_config: NoEffect[dict[str, Any]] = UNSET
    embedding_chunk_size: NoEffect[int] = UNSET
    reasoning: NoEffect[bool] = UNSET
    enable_reasoner: NoEffect[bool] = UNSET
    max_reasoning_tokens: NoEffect[int] = UNSET
    max_files_open: NoEffect[int] = UNSET
    per_file_view_window_char_limit: NoEffect[int] = UNSET

    enable_sleeptime: Maybe[bool] = UNSET
    template_id: Annotated[str | None, HOSTED] | UnsetType = UNSET
    base_template_id: Annotated[str | None, HOSTED] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET
    message_ids: Annotated[list[str] | None, _NO_LIST] | UnsetType = UNSET
    secrets: Annotated[dict[str, str] | None, NO_SECRETS] | UnsetType = UNSET
    tool_exec_environment_variables: Annotated[dict[str, str] | None, NO_SECRETS] | UnsetType = UNSET
    last_run_completion: Annotated[str | None, READ_ONLY] | UnsetType = UNSET
    last_run_duration_ms: Annotated[int | None, READ_ONLY] | UnsetType = UNSET
    last_stop_reason: Annotated[str | None, READ_ONLY] | UnsetType = UNSET


class CreateAgent(UpdateAgent):
    """A new agent."""

    agent_type: Maybe[AgentType] = UNSET
    memory_blocks: Maybe[Annotated[list[AgentBlock], BOUNDED_LIST]] = UNSET
    tools: Maybe[Strings] = UNSET
    include_base_tools: Maybe[bool] = UNSET
    include_base_tool_rules: Maybe[bool] = UNSET
    initial_message_sequence: Maybe[Annotated[list[dict[str, Any]], BOUNDED_LIST]] = UNSET

    from_template: Annotated[str | None, HOSTED] | UnsetType = UNSET
    template: Annotated[bool | None, HOSTED] | UnsetType = UNSET
    memory_variables: Annotated[dict[str, str] | None, HOSTED] | UnsetType = UNSET
    project: Annotated[str | None, HOSTED] | UnsetType = UNSET
    include_default_source: Annotated[bool | None, _NO_OWN_FOLDER] | UnsetType = UNSET


# -- the definition

_WINDOW = WindowFields("message_buffer_limit", "message_buffer_min", ("body",))
# The fields that are stored for the client as they came. Changes of `model_settings` are merged (`_merge_retained`).
_STORED_FIELDS = [name for name in list_stored_fields(UpdateAgent) if name != "model_settings"]
# The names in `AgentDefinition` of the fields with the same value in bodies and definitions, by the names in bodies.
PLAIN_FIELDS = {
    **{name: name for name in ("description", "model", "system", "metadata", "hidden", "timezone")},
    "context_window_limit": "context_window",
    _WINDOW.most: "most_messages",
    _WINDOW.least: "least_messages",
    "message_buffer_autoclear": "clears",
}
# Such fields of `Own`.
EXTENSION_FIELDS = {"recall_tokens": "recall_tokens", "learn": "learns", "filler": "filler"}
_NO_LEARNING = (
    "mnemogate.learn: No facts are learned from messages to an agent of this API. Give it remember_fact, or turn on "
    "enable_sleeptime."
)


def define_agent(create: CreateAgent) -> AgentDefinition:
    """Returns the definition of a new agent. Raises: Unprocessable, BadRequest."""
    initial = read_initial_messages(get_sent_or(create.initial_message_sequence, []))
    kind = get_sent_or(create.agent_type, DEFAULT_KIND)
    return with_update(AgentDefinition(kind, initial_messages=initial), create)


def with_update(definition: AgentDefinition, update: UpdateAgent) -> AgentDefinition:
    """Returns a copy of a definition after an update. A null leaves a field as it is.

    Raises: Unprocessable, BadRequest.
    """
    fields = without_none(get_sent_fields(update))
    values: dict[str, Any] = {field: fields[name] for name, field in PLAIN_FIELDS.items() if name in fields}
    if "timezone" in values:
        _check_timezone(values["timezone"])
    if "tool_rules" in fields:
        values["rules"] = _drop_repeated_rules(map(to_builtins, fields["tool_rules"]))
    if "compaction_settings" in fields:
        values["compaction"] = merge_compaction(definition.compaction, fields["compaction_settings"])
    values.update(read_model(definition, fields))
    if "mnemogate" in fields:
        values.update(_read_extension(definition, fields["mnemogate"]))
    values["retained"] = _merge_retained(definition, fields, values.get("model", definition.model))
    updated = replace(definition, **values)
    check_window(updated, fields, _WINDOW)
    return updated


def _drop_repeated_rules(rules: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Returns rules in their order, each once. A null in a rule has the meaning of a field that is left out."""
    return tuple(
        {orjson.dumps(without_none(rule), option=orjson.OPT_SORT_KEYS): rule for rule in rules}.values()
    )


def _read_extension(definition: AgentDefinition, extension: Own) -> dict[str, Any]:
    """Returns the changes of a definition by the fields that an agent has here beyond those of Letta."""
    fields = get_sent_fields(extension)
    if fields.get("learn") and not definition.learns:
        raise BadRequest(_NO_LEARNING, param="mnemogate.learn")
    values = {field: fields[name] for name, field in EXTENSION_FIELDS.items() if name in fields}
    if isinstance(filler := fields.get("filler"), FillerBody):
        values["filler"] = FixedFiller(filler.say, filler.after_ms)
    if "rebuild" in fields:
        values["rebuilds"] = fields["rebuild"] == "always"
    return values


def _merge_retained(
    definition: AgentDefinition, fields: Mapping[str, Any], model: str | None
) -> dict[str, Any]:
    """Returns what is stored of an agent's fields for the client, after an update. Raises: Unprocessable.

    model: the model of the agent after the update.
    """
    retained = {**definition.retained, **{name: fields[name] for name in _STORED_FIELDS if name in fields}}
    stored = definition.retained.get("model_settings", {})
    settings = stored
    if model != definition.model:
        settings = {name: value for name, value in stored.items() if name not in PROVIDER_SETTINGS}
    if "model_settings" in fields:
        settings = {**settings, **fields["model_settings"]}
        check_size(settings, ("body", "model_settings"))
    if settings != stored:
        retained["model_settings"] = settings
    return retained


def list_models(definition: AgentDefinition) -> set[str | None]:
    """Returns the model of an agent and its sleeptime agents, and the model that writes the agent's summaries."""
    return {definition.model, SummaryOptions.of(definition.compaction).model}


def _check_timezone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        message = "Expected a name of the IANA time zone database"
        raise Unprocessable(Fault(("body", "timezone"), message, "value_error", name)) from None
