"""The bodies of tool rules in requests. `gateway.core.tool_rule` explains the rules."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.wire.struct_fields import MAX_PARTS, Entry, Maybe, NoEffect


class _Rule(Entry, kw_only=True):
    tool_name: str
    prompt_template: NoEffect[str] = UNSET


class RunFirstBody(_Rule, tag_field="type", tag="run_first", kw_only=True):
    args: Maybe[dict[str, Any]] = UNSET


class ChildArguments(Entry):
    name: str
    args: Maybe[dict[str, Any]] = UNSET


class ConstrainChildrenBody(_Rule, tag_field="type", tag="constrain_child_tools", kw_only=True):
    children: Annotated[list[str], MAX_PARTS]
    child_arg_nodes: Maybe[list[ChildArguments]] = UNSET


class ConditionalBody(_Rule, tag_field="type", tag="conditional", kw_only=True):
    child_output_mapping: dict[str, str]
    default_child: Maybe[str] = UNSET
    require_output_mapping: bool | UnsetType = UNSET


class ParentLastBody(_Rule, tag_field="type", tag="parent_last_tool", kw_only=True):
    children: Annotated[list[str], MAX_PARTS]


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
