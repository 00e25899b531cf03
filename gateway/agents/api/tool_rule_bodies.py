"""The bodies of tool rules in requests. `gateway.core.tool_rule` explains the rules."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.wire.struct_fields import Entry, Maybe, NoEffect, Strings


class _RuleBody(Entry, tag_field="type", kw_only=True):
    tool_name: str
    prompt_template: NoEffect[str] = UNSET


class RunFirstBody(_RuleBody, tag="run_first", kw_only=True):
    args: Maybe[dict[str, Any]] = UNSET


class ChildArguments(Entry):
    name: str
    args: Maybe[dict[str, Any]] = UNSET


class ConstrainChildrenBody(_RuleBody, tag="constrain_child_tools", kw_only=True):
    children: Strings
    child_arg_nodes: Maybe[list[ChildArguments]] = UNSET


class ConditionalBody(_RuleBody, tag="conditional", kw_only=True):
    child_output_mapping: dict[str, str]
    default_child: Maybe[str] = UNSET
    require_output_mapping: bool | UnsetType = UNSET


class ParentLastBody(_RuleBody, tag="parent_last_tool", kw_only=True):
    children: Strings


class MaxCountBody(_RuleBody, tag="max_count_per_step", kw_only=True):
    max_count_limit: Annotated[int, Meta(ge=0)]


class ContinueLoopBody(_RuleBody, tag="continue_loop"): ...


class ExitLoopBody(_RuleBody, tag="exit_loop"): ...


class RequiredBeforeExitBody(_RuleBody, tag="required_before_exit"): ...


class RequiresApprovalBody(_RuleBody, tag="requires_approval"): ...


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
