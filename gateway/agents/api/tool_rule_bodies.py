"""The bodies of tool rules in requests. `gateway.core.tool_rule` explains the rules.

The words of a struct are comments here, since its docstring would be a description in `/openapi.json`.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.wire.struct_fields import Entry, Maybe, NoEffect, Strings


# The fields of all rules.
class _RuleBody(Entry, tag_field="type", kw_only=True):
    tool_name: str
    prompt_template: NoEffect[str] = UNSET


# The tool is called before any other. args: its arguments.
class RunFirstBody(_RuleBody, tag="run_first", kw_only=True):
    args: Maybe[dict[str, Any]] = UNSET


# The arguments of one child.
class ChildArguments(Entry):
    name: str
    args: Maybe[dict[str, Any]] = UNSET


# One of the children follows the tool.
class ConstrainChildrenBody(_RuleBody, tag="constrain_child_tools", kw_only=True):
    children: Strings
    child_arg_nodes: Maybe[list[ChildArguments]] = UNSET


# The result of the tool decides which child follows.
class ConditionalBody(_RuleBody, tag="conditional", kw_only=True):
    child_output_mapping: dict[str, str]
    default_child: Maybe[str] = UNSET
    require_output_mapping: bool | UnsetType = UNSET


# The children are called only right after the tool.
class ParentLastBody(_RuleBody, tag="parent_last_tool", kw_only=True):
    children: Strings


# The tool is called so often at most for one message of the user.
class MaxCountBody(_RuleBody, tag="max_count_per_step", kw_only=True):
    max_count_limit: Annotated[int, Meta(ge=0)]


# The turn goes on after the tool.
class ContinueLoopBody(_RuleBody, tag="continue_loop"): ...


# The turn ends after the tool.
class ExitLoopBody(_RuleBody, tag="exit_loop"): ...


# The tool is called before the turn ends.
class RequiredBeforeExitBody(_RuleBody, tag="required_before_exit"): ...


# A person has to approve each call of the tool.
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
