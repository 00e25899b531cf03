"""Agents: made, listed, changed, deleted; their blocks, and what stands in their context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._query import AgentQuery, AgentsQuery, RecompileQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, uid_in
from gateway.agents.api.blocks import AgentBlock, block_json, block_of
from gateway.agents.api.context import context_json
from gateway.agents.api.dependencies import AgentsApi, sent_or_none, uid_or_none
from gateway.agents.api.folders import folder_json
from gateway.agents.api.groups import check_window, group_json
from gateway.agents.api.identities import identity_json
from gateway.agents.api.model import WINDOW, embedding_config_json
from gateway.agents.api.tools import ToolRuleBody, tool_json
from gateway.agents.core.kinds import DEFAULT_KIND, kind_of
from gateway.agents.registry.registry import AgentEdit, AgentView, NewAgent
from gateway.agents.runs.message_listing import AgentMessages
from gateway.agents.runs.run import RunRequest
from gateway.agents.runs.system_message import system_id
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.message import Showing
from gateway.agents.wire.send import read_initial_messages
from gateway.agents.wire.struct_fields import (
    HOSTED,
    MOST_PARTS,
    NO_SECRETS,
    ONE_PROJECT,
    READ_ONLY,
    Body,
    Maybe,
    NoEffect,
    honoured_in,
    iso_time,
    refused,
    sent_fields,
)
from gateway.checked import Fault
from gateway.core import ids
from gateway.core.agent import FILLER_AFTER_MS
from gateway.core.definition import AgentDefinition
from gateway.core.prompt.summary import SummaryTerms
from gateway.core.turn.guide import StopReason
from gateway.errors import BadRequest
from gateway.run.memory.prompt import Prompt
from storage.listing import AgentFilter
from storage.records import DEFAULT, Run, RunStep

AgentType = Literal[
    "memgpt_agent", "memgpt_v2_agent", "letta_v1_agent", "react_agent", "workflow_agent", "split_thread_agent",
    "sleeptime_agent", "voice_convo_agent", "voice_sleeptime_agent",
]  # fmt: skip

_NO_LIST = refused("The window is where the path begins, not a list; delete or compact messages.")
_NO_OWN_FOLDER = refused("An agent has no folder of its own; attach one.")

# -- the bodies

# The fields of `llm_config` and of `model_settings` that have an effect, with their types; others are only stored.
_LLM_TYPES: dict[str, tuple[type, ...]] = {
    "handle": (str,), "model": (str,), "context_window": (int,), "temperature": (int, float), "max_tokens": (int,),
    "reasoning_effort": (str,), "put_inner_thoughts_in_kwargs": (bool,), "parallel_tool_calls": (bool,),
}  # fmt: skip
_SETTINGS_TYPES: dict[str, tuple[type, ...]] = {
    "temperature": (int, float), "parallel_tool_calls": (bool,), "response_format": (dict,), "verbosity": (str,),
    "thinking": (dict,), "max_output_tokens": (int,), "effort": (str,), "reasoning": (dict,),
}  # fmt: skip
# The settings that are shown for every model, besides its reasoning effort.
_OF_EVERY_MODEL = ("max_output_tokens", "parallel_tool_calls", "temperature", "response_format")
_NEVER_NULL = frozenset(
    {
        "temperature",
        "enable_reasoner",
        "max_reasoning_tokens",
        "strict",
        "return_logprobs",
        "return_token_ids",
    }
)
_MOST_TOKENS = frozenset({"max_tokens", "max_output_tokens"})
SETTINGS = honoured_in(*_SETTINGS_TYPES, "provider_type")


class CompactionBody(Body):
    """The way in which what leaves the window is summarised."""

    mode: Maybe[Literal["all", "sliding_window", "self_compact_all", "self_compact_sliding_window"]] = UNSET
    model: Maybe[str] = UNSET
    prompt: Maybe[str] = UNSET
    sliding_window_percentage: Maybe[Annotated[float, Meta(gt=0, le=1)]] = UNSET
    clip_chars: Maybe[Annotated[int, Meta(ge=1)]] = UNSET
    model_settings: NoEffect[dict[str, Any]] = UNSET
    prompt_acknowledgement: NoEffect[bool] = UNSET


class FillerBody(Body):
    """A sentence that the user hears when a tool takes longer than `after_ms`."""

    say: Annotated[str, Meta(pattern=r"\S", max_length=500)]
    after_ms: Annotated[float, Meta(ge=0, le=60_000)] = FILLER_AFTER_MS


class Compact(Body):
    """A summary that is wanted now. compaction_settings: in place of the agent's, as far as they are given."""

    compaction_settings: Maybe[CompactionBody] = UNSET


class Own(Body):
    """The fields that an agent has here beyond those of Letta."""

    # "free" renders the memory section again when it costs nothing, "always" before each call.
    rebuild: Literal["free", "always"] | UnsetType = UNSET
    # The budget of a note in tokens; 0: no notes; null: as the settings have it.
    recall_tokens: Maybe[Annotated[int, Meta(ge=0, le=100_000)]] = UNSET
    # Facts are learned from conversations. Only for users' memories.
    learn: bool | UnsetType = UNSET
    # The filler before a tool: a sentence of the model's own, or a fixed one when the tool takes longer;
    # null: as its agent_type has it.
    filler: Maybe[Literal["model", "none"] | FillerBody] = UNSET


# A system text, a note and a reply take some hundreds of tokens, so no prompt fits into a smaller window.
LEAST_WINDOW = 1000
WindowTokens = Annotated[int, Meta(ge=LEAST_WINDOW, le=100_000_000)]
_Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]
_Messages = Annotated[int, Meta(ge=1, le=1_000_000)]
# An agent is made in one transaction, and other writes wait for it, so each list is bound. No measurement: a prompt has
# room for some hundred blocks or tools.
_Names = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], MOST_PARTS]
_Ids = Annotated[list[str], MOST_PARTS]


class UpdateAgent(Body):
    """A change of an agent; what is left out or null stays. The lists replace those that the agent has."""

    name: Maybe[Annotated[str, Meta(min_length=1, max_length=200)]] = UNSET
    description: Maybe[str] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    tags: Maybe[_Names] = UNSET
    hidden: Maybe[bool] = UNSET
    system: Maybe[str] = UNSET
    model: Maybe[Annotated[str, Meta(pattern=r"\S", max_length=200)]] = UNSET
    llm_config: Annotated[dict[str, Any] | None, honoured_in(*_LLM_TYPES)] | UnsetType = UNSET
    model_settings: Annotated[dict[str, Any] | None, SETTINGS] | UnsetType = UNSET
    context_window_limit: Maybe[WindowTokens] = UNSET
    max_tokens: Maybe[_Tokens] = UNSET
    response_format: Maybe[dict[str, Any]] = UNSET
    parallel_tool_calls: Maybe[bool] = UNSET
    block_ids: Maybe[_Ids] = UNSET
    tool_ids: Maybe[_Ids] = UNSET
    include_multi_agent_tools: Maybe[bool] = UNSET
    folder_ids: Maybe[_Ids] = UNSET
    source_ids: Maybe[_Ids] = UNSET
    identity_ids: Maybe[_Ids] = UNSET
    tool_rules: Maybe[Annotated[list[ToolRuleBody], MOST_PARTS]] = UNSET
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
    memory_blocks: Maybe[Annotated[list[AgentBlock], MOST_PARTS]] = UNSET
    tools: Maybe[_Ids] = UNSET
    include_base_tools: Maybe[bool] = UNSET
    include_base_tool_rules: Maybe[bool] = UNSET
    initial_message_sequence: Maybe[Annotated[list[dict[str, Any]], MOST_PARTS]] = UNSET

    from_template: Annotated[str | None, HOSTED] | UnsetType = UNSET
    template: Annotated[bool | None, HOSTED] | UnsetType = UNSET
    memory_variables: Annotated[dict[str, str] | None, HOSTED] | UnsetType = UNSET
    project: Annotated[str | None, HOSTED] | UnsetType = UNSET
    include_default_source: Annotated[bool | None, _NO_OWN_FOLDER] | UnsetType = UNSET


# -- from a body to a definition

_MOST, _LEAST = "message_buffer_limit", "message_buffer_min"
_STORED_FIELDS = (
    "embedding", "embedding_config", "embedding_chunk_size", "reasoning", "enable_reasoner", "max_reasoning_tokens",
    "max_files_open", "per_file_view_window_char_limit",
)  # fmt: skip


def new_definition(create: CreateAgent) -> AgentDefinition:
    """Returns the definition that a new agent begins with. Raises: Unprocessable."""
    kind = create.agent_type if isinstance(create.agent_type, str) else DEFAULT_KIND
    initial = create.initial_message_sequence
    messages = read_initial_messages(initial) if isinstance(initial, list) else ()
    return with_update(AgentDefinition(kind, initial_messages=messages), create)


def with_update(definition: AgentDefinition, update: UpdateAgent) -> AgentDefinition:
    """Returns a definition after an update. A null leaves a field as it is. Raises: Unprocessable, BadRequest."""
    sent = _without_none(sent_fields(update))
    values: dict[str, Any] = {field: sent[name] for name, field in _SAME_VALUES.items() if name in sent}
    if "timezone" in values:
        _check_timezone(values["timezone"])
    if "tool_rules" in sent:
        values["rules"] = _unique_rules(map(msgspec.to_builtins, sent["tool_rules"]))
    if "compaction_settings" in sent:
        values["compaction"] = merge_compaction(definition.compaction, sent["compaction_settings"])
    values.update(_model_values(definition, sent))
    if "mnemogate" in sent:
        values.update(_own_values(definition, sent["mnemogate"]))
    stored = {name: sent[name] for name in _STORED_FIELDS if name in sent}
    values["retained"] = {**definition.retained, **values.get("retained", {}), **stored}
    updated = replace(definition, **values)
    check_window(updated, sent, _MOST, _LEAST)
    return updated


def _unique_rules(rules: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Returns rules in their order, each once. A null means the same as a field that is left out."""
    return tuple(
        {orjson.dumps(_without_none(rule), option=orjson.OPT_SORT_KEYS): rule for rule in rules}.values()
    )


def _own_values(definition: AgentDefinition, own: Own) -> dict[str, Any]:
    """Returns the changes of a definition by the fields that an agent has here beyond those of Letta."""
    sent = sent_fields(own)
    if sent.get("learn") and not definition.learns:
        raise BadRequest(NO_LEARNING, param="mnemogate.learn")
    values = {field: msgspec.to_builtins(sent[name]) for name, field in _OWN.items() if name in sent}
    if "rebuild" in sent:
        values["rebuilds"] = sent["rebuild"] == "always"
    return values


# Fields with the same value in bodies and in definitions: the name in a body -> the name in `AgentDefinition`.
_SAME_VALUES = {
    **{name: name for name in ("description", "model", "system", "metadata", "hidden", "timezone")},
    "context_window_limit": "context_window",
    _MOST: "most_messages",
    _LEAST: "least_messages",
    "message_buffer_autoclear": "clears",
}
NO_LEARNING = (
    "mnemogate.learn: No facts are learned from messages to an agent of this API. Give it remember_fact, or turn on "
    "enable_sleeptime."
)
_OWN = {"recall_tokens": "recall_tokens", "learn": "learns", "filler": "filler"}


def merge_compaction(stored: Mapping[str, Any], settings: Maybe[CompactionBody]) -> dict[str, Any]:
    """Returns the stored summary settings with those sent in them. Raises: BadRequest: an unknown mode."""
    sent = msgspec.to_builtins(settings) if isinstance(settings, CompactionBody) else {}
    merged = _without_none({**stored, **sent})
    if str(merged.get("mode")).startswith("self_compact"):
        raise BadRequest(
            "compaction_settings.mode: A call of its own makes the summary, never the conversation's; use 'all' or "
            "'sliding_window'.",
            param="mode",
        )
    return merged


def _model_values(definition: AgentDefinition, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a definition by the fields about the model.

    A field of its own takes precedence over the older objects.
    """
    values: dict[str, Any] = {}
    sampling = dict(definition.sampling)
    retained: dict[str, Any] = {}
    config = sent.get("llm_config")
    if config is not None:
        retained["llm_config"] = config
        _check_types(config, "llm_config", _LLM_TYPES)
        model = config.get("handle") or config.get("model")
        if model and "model" not in sent:
            values["model"] = model
        if config.get("context_window") and "context_window_limit" not in sent:
            values["context_window"] = _checked_window(config)
        if config.get("put_inner_thoughts_in_kwargs") is not None:
            values["thinks_aloud"] = config["put_inner_thoughts_in_kwargs"]
        for name in ("temperature", "max_tokens", "reasoning_effort", "parallel_tool_calls"):
            _copy_or_remove(sampling, name, config, name)
    settings = sent.get("model_settings")
    if settings is not None:
        retained["model_settings"] = {**definition.retained.get("model_settings", {}), **settings}
        set_sampling(sampling, settings)
    for name in ("max_tokens", "response_format", "parallel_tool_calls"):
        _copy_or_remove(sampling, name, sent, name)
    values["sampling"] = sampling
    if retained:
        values["retained"] = retained
    return values


def models_of(definition: AgentDefinition) -> set[str | None]:
    """Returns the models that an agent and its sleeptime agents ask, and the one that writes its summaries."""
    return {definition.model, SummaryTerms.of(definition.compaction).model}


def set_sampling(sampling: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Copies the settings of a model that have an effect on its replies. Raises: Unprocessable."""
    _check_types(settings, "model_settings", _SETTINGS_TYPES)
    for name in ("temperature", "parallel_tool_calls", "response_format", "verbosity", "thinking"):
        _copy_or_remove(sampling, name, settings, name)
    _copy_or_remove(sampling, "max_tokens", settings, "max_output_tokens")
    _copy_or_remove(sampling, "reasoning_effort", settings, "effort")
    _copy_or_remove(sampling, "reasoning_effort", settings.get("reasoning") or {}, "reasoning_effort")


def _check_types(values: Mapping[str, Any], where: str, types: Mapping[str, tuple[type, ...]]) -> None:
    """Checks the fields that have an effect; the rest may be anything. Raises: Unprocessable."""
    for name, allowed in types.items():
        value = values.get(name)
        if value is None:
            continue
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join(each.__name__ for each in allowed)
            raise Unprocessable([Fault(("body", where, name), f"Expected {words}", "type_error", value)])
        if name in _MOST_TOKENS and isinstance(value, int) and value < 1:
            raise Unprocessable([Fault(("body", where, name), "Expected 'int' >= 1", "value_error", value)])


def _checked_window(config: Mapping[str, Any]) -> int:
    window: int = config["context_window"]
    if window < LEAST_WINDOW:
        at = ("body", "llm_config", "context_window")
        raise Unprocessable([Fault(at, f"Expected 'int' >= {LEAST_WINDOW}", "type_error", window)])
    return window


def _copy_or_remove(target: dict[str, Any], name: str, source: Mapping[str, Any], key: str) -> None:
    """Copies a value; a null removes it."""
    if key in source:
        if source[key] is None:
            target.pop(name, None)
        else:
            target[name] = source[key]


def _check_timezone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        fault = Fault(
            ("body", "timezone"), "Expected a name of the IANA time zone database", "value_error", name
        )
        raise Unprocessable([fault]) from None


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# -- from a definition to what is shown

# Fields that only Letta's hosted product fills; the client requires some of them.
_OF_THE_HOSTED_PRODUCT: dict[str, Any] = {
    **dict.fromkeys(
        (
            "created_by_id", "last_updated_by_id", "project_id", "template_id", "base_template_id", "deployment_id",
            "entity_id",
        )
    ),
    **dict.fromkeys(("secrets", "tool_exec_environment_variables"), ()),
}  # fmt: skip


def agent_json(
    view: AgentView,
    *,
    window: int | None,
    message_ids: Sequence[str] = (),
    pending: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns an agent with all that the client requires, whatever it asks to be included.

    window: tokens of the model's context, if they are known.
    message_ids: those of the messages in its window, oldest first.
    pending: the message that waits for an answer.
    """
    row = view.definition
    definition = AgentDefinition.of(row.body)
    model, retained = definition.model or "", definition.retained
    group = group_json(row.uid, definition, view.readers)
    blocks, identities = list(map(block_json, view.blocks)), list(map(identity_json, view.identities))
    return {
        "id": ids.id_of("agent", row.uid),
        "name": row.name,
        "agent_type": definition.kind,
        **{name: getattr(definition, field) for name, field in _SAME_VALUES.items()},
        "model": model,  # "" where it has none
        "tags": list(view.tags),
        "model_settings": _settings_json(definition, model),
        "llm_config": _llm_json(definition, model, window),
        "response_format": definition.sampling.get("response_format"),
        "embedding": retained.get("embedding"),
        "embedding_config": embedding_config_json(
            retained.get("embedding_config"), retained.get("embedding")
        ),
        "blocks": blocks,
        "memory": _memory_json(definition, blocks),
        "tools": [tool_json(tool) for tool in view.tools],
        "tool_rules": list(definition.rules),
        "sources": list(map(folder_json, view.folders)),
        "identities": identities,
        "identity_ids": [each["id"] for each in identities],
        "message_ids": list(message_ids),
        "compaction_settings": definition.compaction or None,
        "enable_sleeptime": group is not None,
        "multi_agent_group": group,
        "managed_group": group,
        **{name: retained.get(name) for name in ("max_files_open", "per_file_view_window_char_limit")},
        "pending_approval": pending,
        **_last_run_json(view.last_run),
        "created_at": iso_time(row.created),
        "updated_at": iso_time(row.updated),
        **_OF_THE_HOSTED_PRODUCT,
        "mnemogate": _own_json(definition),
    }


def _memory_json(definition: AgentDefinition, blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the older object about an agent's memory."""
    return {
        "blocks": blocks,
        "file_blocks": [],
        "agent_type": definition.kind,
        "git_enabled": False,
        "prompt_template": "",
    }


def _own_json(definition: AgentDefinition) -> dict[str, Any]:
    """Returns the fields that an agent has here beyond those of Letta, as `Own` takes them."""
    return {
        "rebuild": "always" if definition.rebuilds else "free",
        **{name: getattr(definition, field) for name, field in _OWN.items()},
        "filler": definition.filler or kind_of(definition.kind).filler,
    }


def _last_run_json(run: Run | None) -> dict[str, Any]:
    """Returns the fields of an agent's newest run, if it has one."""
    duration_ms = None
    if run is not None and run.begun is not None and run.ended is not None:
        duration_ms = max(0, int((run.ended - run.begun) * 1000))
    return {
        "last_run_completion": None if run is None else iso_time(run.ended),
        "last_run_duration_ms": duration_ms,
        "last_stop_reason": None if run is None else run.stop,
    }


def _llm_json(definition: AgentDefinition, model: str, window: int | None) -> dict[str, Any]:
    """Returns the older object about the model, which the client still requires."""
    upstream, _, name = model.rpartition("/")
    sampling = definition.sampling
    shown = {
        **definition.retained.get("llm_config", {}),
        "model": name,
        "handle": model,
        "display_name": name,
        "model_endpoint_type": "anthropic" if upstream == "anthropic" else "openai",
        "model_endpoint": None,
        "provider_name": upstream or None,
        "provider_category": "base",
        "context_window": definition.context_window or window or WINDOW,
        "temperature": sampling.get("temperature"),
        "max_tokens": sampling.get("max_tokens"),
        "reasoning_effort": sampling.get("reasoning_effort"),
        "parallel_tool_calls": sampling.get("parallel_tool_calls"),
        "response_format": sampling.get("response_format"),
        "put_inner_thoughts_in_kwargs": definition.thinks_aloud,
    }
    # Letta's server takes these as a value or not at all: it would refuse an agent file with a null.
    return {name: value for name, value in shown.items() if value is not None or name not in _NEVER_NULL}


def _settings_json(definition: AgentDefinition, model: str) -> dict[str, Any]:
    """Returns the settings of a model: what is honoured as it holds, whichever field set it, the rest as it came.

    A null among those that every model has: no field has set it, so it is the model's own.
    """
    sampling, sent = definition.sampling, definition.retained.get("model_settings", {})
    kind = "anthropic" if model.rpartition("/")[0] == "anthropic" else "openai"
    known = {name: sampling.get(name) for name in _SETTINGS_TYPES}
    known["max_output_tokens"] = sampling.get("max_tokens")
    effort = sampling.get("reasoning_effort")
    form = "effort" if "effort" in sent or kind == "anthropic" else "reasoning"
    known[form] = {"reasoning_effort": effort} if form == "reasoning" and effort is not None else effort
    rest = {name: value for name, value in sent.items() if name not in _SETTINGS_TYPES}
    always = {*_OF_EVERY_MODEL, form}
    shown = {name: value for name, value in known.items() if value is not None or name in always}
    return {"provider_type": kind, **rest, **shown}


class AgentRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def rows(self) -> list[AgentsRoute]:
        one = "/v1/agents/{agent_id}"
        return [
            AgentsRoute(
                "GET", "/v1/agents", self.index, "List agents, users' memories among them.", query=AgentsQuery
            ),
            AgentsRoute("POST", "/v1/agents", self.create, "Make an agent.", body=CreateAgent),
            AgentsRoute("GET", "/v1/agents/count", self.count, "Count agents.", query=AgentsQuery),
            AgentsRoute("GET", one, self.retrieve, "Return an agent.", query=AgentQuery),
            AgentsRoute("PATCH", one, self.update, "Change an agent.", body=UpdateAgent),
            AgentsRoute("DELETE", one, self.delete, "Delete an agent, and forget all that it knew."),
            AgentsRoute(
                "GET", f"{one}/context", self.context, "Return what goes to the model, and what it takes up."
            ),
            AgentsRoute(
                "POST",
                f"{one}/recompile",
                self.recompile,
                "Render the memory section anew.",
                query=RecompileQuery,
            ),
        ]

    async def index(self, request: ApiRequest) -> Any:
        query: AgentsQuery = request.query
        views = await self._api.registry.list(
            request.project,
            replace(_filter_of(query), order=query.sorting),
            after=uid_or_none("agent", query.after),
            before=uid_or_none("agent", query.before),
            limit=query.size(),
            newest_first=query.newest_first(),
        )
        return await self._api.agents_json(views)

    async def count(self, request: ApiRequest) -> Any:
        return await self._api.registry.count(request.project, _filter_of(request.query))

    async def create(self, request: ApiRequest) -> Any:
        create: CreateAgent = request.body
        sent = sent_fields(create)
        definition = new_definition(create)
        if definition.model is None:
            definition = replace(definition, model=self._api.first_model())
        request.check_models(models_of(definition))
        new = NewAgent(
            definition,
            own=[block_of(block) for block in sent.get("memory_blocks") or ()],
            tool_names=sent.get("tools") or (),
            base_tools=sent.get("include_base_tools") is not False,
            base_rules=sent.get("include_base_tool_rules"),
            **_part_fields(sent),
        )
        return await self._api.view_json(await self._api.registry.create(request.project, new))

    async def retrieve(self, request: ApiRequest) -> Any:
        return await self._api.agent_json(request)

    async def update(self, request: ApiRequest) -> Any:
        update: UpdateAgent = request.body
        sent = sent_fields(update)

        def edit(definition: AgentDefinition) -> AgentDefinition:
            updated = with_update(definition, update)
            request.check_models(models_of(updated) - models_of(definition))
            return updated

        change = AgentEdit(edit=edit, **_part_fields(sent))
        uid = request.uid("agent", "agent_id")
        return await self._api.view_json(await self._api.registry.change(request.project, uid, change))

    async def delete(self, request: ApiRequest) -> Any:
        agent = await self._api.agent(request)
        await self._api.registry.delete(request.project, agent.uid)
        self._api.runs.stop_deleted(agent.id)
        self._api.background.close_runs_of(agent.uid)
        return {"message": "The agent is deleted, and what it knew is forgotten."}

    async def context(self, request: ApiRequest) -> Any:
        view, prompt = await self._api.agent_view(request), await self._prompt(request)
        agent, shown = view.agent, await self._api.view_json(view)
        return context_json(
            orjson.loads(prompt.body()),
            window=prompt.target.context_window or shown["llm_config"]["context_window"],
            system=AgentDefinition.of(view.definition.body).system,
            section=prompt.section.text,
            summary=prompt.window.summary,
            passages=await self._api.store.passages.count(agent.id),
            recalled=await self._api.store.overview.count_messages(agent.id),
        )

    async def recompile(self, request: ApiRequest) -> Any:
        query: RecompileQuery = request.query
        agent = await self._api.agent(request)
        if not query.dry_run:
            await self._api.store.blocks.invalidate_snapshots(agent.id)
        return (await self._prompt(request)).system

    async def _prompt(self, request: ApiRequest) -> Prompt:
        found = await self._api.registry.resolve_uid(request.project, request.uid("agent", "agent_id"))
        return await self._api.runs.preview(RunRequest(found.spec, found.scope))


def _filter_of(query: AgentsQuery) -> AgentFilter:
    """Returns the agents that a query asks for, in any order."""
    return AgentFilter(
        name=sent_or_none(query.name),
        text=sent_or_none(query.query_text),
        tags=sent_or_none(query.tags) or (),
        needs_all_tags=query.match_all_tags,
        stop=sent_or_none(query.last_stop_reason),
        identity=uid_or_none("identity", query.identity_id),
        identity_keys=sent_or_none(query.identifier_keys) or (),
        with_hidden=query.show_hidden_agents is True,
    )


def _part_fields(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a body says of an agent's parts, as the fields of `AgentParts`. Raises: UnknownId."""
    return {
        "name": sent.get("name"),
        "blocks": _uids("block", sent.get("block_ids")),
        "tools": _uids("tool", sent.get("tool_ids")),
        "tags": sent.get("tags"),
        "folders": _folders(sent),
        "identities": _uids("identity", sent.get("identity_ids")),
        "multi_agent_tools": sent.get("include_multi_agent_tools"),
        "sleeptime": sent.get("enable_sleeptime"),
    }


def _uids(prefix: str, named: Sequence[str] | None) -> list[str] | None:
    return None if named is None else [uid_in(prefix, each) for each in named]


def _folders(sent: Mapping[str, Any]) -> list[str] | None:
    """Returns the folders that a body names, under either name; None: it names none."""
    lists = [sent[name] for name in ("folder_ids", "source_ids") if sent.get(name) is not None]
    return [uid_in("source", each) for named in lists for each in named] if lists else None


async def agents_json(api: AgentsApi, views: Sequence[AgentView]) -> list[dict[str, Any]]:
    """Returns agents with what is read for each. Raises: StoreError."""
    numbers = await AgentMessages(api.store, api.now).numbers_of([view.agent for view in views])
    paused = await api.store.runs.paused([view.agent.id for view in views], DEFAULT)
    return [
        agent_json(
            view,
            window=api.registry.context_window(view.definition),
            message_ids=[system_id(agent), *(ids.id_at("message", agent.uid, n) for n in numbers[agent.id])],
            pending=await _pending(api, view, paused.get(agent.id)),
        )
        for view in views
        for agent in (view.agent,)
    ]


async def _pending(api: AgentsApi, view: AgentView, own: RunStep | None) -> dict[str, Any] | None:
    """Returns the message with the calls that wait for an answer.

    own: the step that waits in the agent's own conversation; None: that of its newest run may, wherever it is.
    """
    agent, last, runs = view.agent, view.last_run, api.store.runs
    step = own
    if step is None and last is not None and last.stop == StopReason.REQUIRES_APPROVAL:
        step = await runs.waiting(agent.id, last.conversation)
    run = None if step is None else await runs.load(agent.id, step.run)
    e = None if step is None else await api.store.turns.exchange(agent, step.exchange)
    if run is None or e is None:
        return None
    shown = await MessageRenderer(api.store, agent, Showing()).run_messages(run, [e], with_input=False)
    return next((each for each in shown if each["message_type"] == "approval_request_message"), None)
