"""Agents, as the agents API takes and shows them: its fields, and the definition that they become.

A definition's body speaks the gateway's words (`gateway.core.agent` reads it). Fields that have no effect here lie in
its `kept` and are given back as they came.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from gateway.dialects.letta.block import CreateBlock
from gateway.dialects.letta.body import KEPT, Body, refused

AgentType = Literal[
    "memgpt_agent", "memgpt_v2_agent", "letta_v1_agent", "react_agent", "workflow_agent", "split_thread_agent",
    "sleeptime_agent", "voice_convo_agent", "voice_sleeptime_agent",
]  # fmt: skip
DEFAULT_TYPE = "letta_v1_agent"
# Shown where nothing is known of the model's window.
_WINDOW = 128_000

_HOSTED = refused("It belongs to Letta's hosted product.")
_ALL_SCHEMA = refused("A summary replaces what left the window; its modes are 'all' and 'sliding_window'.")

# -- tool rules


class _Rule(Body, kw_only=True):
    tool_name: str
    prompt_template: Annotated[str | None, KEPT] | UnsetType = UNSET


class RunFirstBody(_Rule, tag_field="type", tag="run_first", kw_only=True):
    args: dict[str, Any] | UnsetType | None = UNSET


class ChildArguments(Body):
    name: str
    args: dict[str, Any] | UnsetType | None = UNSET


class ConstrainChildrenBody(_Rule, tag_field="type", tag="constrain_child_tools", kw_only=True):
    children: list[str]
    child_arg_nodes: list[ChildArguments] | UnsetType | None = UNSET


class ConditionalBody(_Rule, tag_field="type", tag="conditional", kw_only=True):
    child_output_mapping: dict[str, str]
    default_child: str | UnsetType | None = UNSET
    require_output_mapping: bool | UnsetType = UNSET


class ParentLastBody(_Rule, tag_field="type", tag="parent_last_tool", kw_only=True):
    children: list[str]


class MaxCountBody(_Rule, tag_field="type", tag="max_count_per_step", kw_only=True):
    max_count_limit: Annotated[int, Meta(ge=0)]


class ContinueLoopBody(_Rule, tag_field="type", tag="continue_loop", kw_only=True): ...


class ExitLoopBody(_Rule, tag_field="type", tag="exit_loop", kw_only=True): ...


class RequiredBeforeExitBody(_Rule, tag_field="type", tag="required_before_exit", kw_only=True): ...


class RequiresApprovalBody(_Rule, tag_field="type", tag="requires_approval", kw_only=True): ...


ToolRuleBody = (
    RunFirstBody
    | ConstrainChildrenBody
    | ConditionalBody
    | ParentLastBody
    | MaxCountBody
    | ContinueLoopBody
    | ExitLoopBody
    | RequiredBeforeExitBody
    | RequiresApprovalBody
)

# -- the bodies


class CompactionBody(Body):
    """How what leaves the window is summarised."""

    mode: Literal["all", "sliding_window"] | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    prompt: str | UnsetType | None = UNSET
    sliding_window_percentage: Annotated[float, Meta(gt=0, le=1)] | UnsetType | None = UNSET
    clip_chars: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET
    model_settings: Annotated[dict[str, Any] | None, KEPT] | UnsetType = UNSET
    prompt_acknowledgement: Annotated[bool | None, KEPT] | UnsetType = UNSET


class Own(Body):
    """What an agent may say beyond Letta's fields.

    rebuild: "free" renders the memory section anew when it costs nothing, "always" before each call. recall_tokens: of
    a note; 0: none. learn: facts are learned from what is said.
    """

    rebuild: Literal["free", "always"] | UnsetType = UNSET
    recall_tokens: Annotated[int, Meta(ge=0, le=100_000)] | UnsetType = UNSET
    learn: bool | UnsetType = UNSET


_Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]
_Messages = Annotated[int, Meta(ge=1, le=1_000_000)]
_Names = list[Annotated[str, Meta(min_length=1, max_length=200)]]


class UpdateAgent(Body):
    """What is to change of an agent; what is left out stays. The lists replace those that the agent has."""

    name: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    tags: _Names | UnsetType | None = UNSET
    hidden: bool | UnsetType | None = UNSET
    system: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    llm_config: dict[str, Any] | UnsetType | None = UNSET
    model_settings: dict[str, Any] | UnsetType | None = UNSET
    context_window_limit: _Tokens | UnsetType | None = UNSET
    max_tokens: _Tokens | UnsetType | None = UNSET
    response_format: dict[str, Any] | UnsetType | None = UNSET
    parallel_tool_calls: bool | UnsetType | None = UNSET
    block_ids: list[str] | UnsetType | None = UNSET
    tool_ids: list[str] | UnsetType | None = UNSET
    tool_rules: list[ToolRuleBody] | UnsetType | None = UNSET
    message_buffer_autoclear: bool | UnsetType | None = UNSET
    message_buffer_limit: _Messages | UnsetType | None = UNSET
    message_buffer_min: _Messages | UnsetType | None = UNSET
    timezone: str | UnsetType | None = UNSET
    compaction_settings: CompactionBody | UnsetType | None = UNSET
    mnemogate: Own | UnsetType | None = UNSET

    embedding: Annotated[str | None, KEPT] | UnsetType = UNSET
    embedding_config: Annotated[dict[str, Any] | None, KEPT] | UnsetType = UNSET
    embedding_chunk_size: Annotated[int | None, KEPT] | UnsetType = UNSET
    reasoning: Annotated[bool | None, KEPT] | UnsetType = UNSET
    enable_reasoner: Annotated[bool | None, KEPT] | UnsetType = UNSET
    max_reasoning_tokens: Annotated[int | None, KEPT] | UnsetType = UNSET
    max_files_open: Annotated[int | None, KEPT] | UnsetType = UNSET
    per_file_view_window_char_limit: Annotated[int | None, KEPT] | UnsetType = UNSET

    enable_sleeptime: (
        Annotated[bool | None, refused("Agents that work after the turn are not served yet.")] | UnsetType
    ) = UNSET
    folder_ids: Annotated[list[str] | None, refused("Folders are not served yet.")] | UnsetType = UNSET
    source_ids: Annotated[list[str] | None, refused("Folders are not served yet.")] | UnsetType = UNSET
    template_id: Annotated[str | None, _HOSTED] | UnsetType = UNSET
    base_template_id: Annotated[str | None, _HOSTED] | UnsetType = UNSET
    identity_ids: (
        Annotated[
            list[str] | None, refused("A user is a memory of a profile: send `user` to agent/<profile>.")
        ]
        | UnsetType
    ) = UNSET
    project_id: (
        Annotated[
            str | None, refused("A key opens one project, and everything that it makes belongs to that.")
        ]
        | UnsetType
    ) = UNSET
    message_ids: (
        Annotated[
            list[str] | None,
            refused("The window is where the path begins, not a list; delete or compact messages."),
        ]
        | UnsetType
    ) = UNSET
    secrets: (
        Annotated[
            dict[str, str] | None,
            refused("Definitions hold no secrets; the gateway's settings do (tools.headers)."),
        ]
        | UnsetType
    ) = UNSET
    tool_exec_environment_variables: (
        Annotated[
            dict[str, str] | None,
            refused("Definitions hold no secrets; the gateway's settings do (tools.headers)."),
        ]
        | UnsetType
    ) = UNSET
    last_run_completion: (
        Annotated[str | None, refused("The gateway says this, not its caller.")] | UnsetType
    ) = UNSET
    last_run_duration_ms: (
        Annotated[int | None, refused("The gateway says this, not its caller.")] | UnsetType
    ) = UNSET
    last_stop_reason: Annotated[str | None, refused("The gateway says this, not its caller.")] | UnsetType = (
        UNSET
    )


class CreateAgent(UpdateAgent):
    """A new agent."""

    agent_type: AgentType | UnsetType | None = UNSET
    memory_blocks: list[CreateBlock] | UnsetType | None = UNSET
    tools: list[str] | UnsetType | None = UNSET
    include_base_tools: bool | UnsetType | None = UNSET
    include_base_tool_rules: bool | UnsetType | None = UNSET
    include_multi_agent_tools: bool | UnsetType | None = UNSET
    initial_message_sequence: list[dict[str, Any]] | UnsetType | None = UNSET

    from_template: Annotated[str | None, _HOSTED] | UnsetType = UNSET
    template: Annotated[bool | None, _HOSTED] | UnsetType = UNSET
    memory_variables: Annotated[dict[str, str] | None, _HOSTED] | UnsetType = UNSET
    project: Annotated[str | None, _HOSTED] | UnsetType = UNSET
    include_default_source: Annotated[bool | None, refused("Folders are not served yet.")] | UnsetType = UNSET
