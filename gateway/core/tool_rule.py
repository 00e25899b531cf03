"""Tool rules of an agent as values, read from its definition. `gateway.agents.core.tool_rules` applies the rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from gateway.validation import convert


class RuleKind(StrEnum):
    """The kinds of rules, by their names in a definition."""

    RUN_FIRST = "run_first"
    CHILDREN = "constrain_child_tools"
    CONDITIONAL = "conditional"
    PARENT_LAST = "parent_last_tool"
    MAX_COUNT = "max_count_per_step"
    CONTINUE = "continue_loop"
    EXIT = "exit_loop"
    BEFORE_EXIT = "required_before_exit"
    APPROVAL = "requires_approval"


class ToolRule(Struct, frozen=True):
    """One rule about one tool."""

    # The kind of the rule, on which the other fields depend.
    kind: RuleKind
    # The name of the tool.
    tool: str
    # The tools that may or must follow (CHILDREN, PARENT_LAST).
    children: tuple[str, ...] = ()
    # Pairs of a result and the tool that follows it (CONDITIONAL).
    outcomes: tuple[tuple[str, str], ...] = ()
    # The tool that follows any other result (CONDITIONAL).
    default: str | None = None
    # Without a default, no tool may follow any other result; False: every tool may (CONDITIONAL).
    is_strict: bool = False
    # The most runs of the tool (MAX_COUNT).
    max_calls: int = 0
    # The arguments that the gateway sets (RUN_FIRST, CHILDREN), by the names of the tools.
    arguments: dict[str, dict[str, object]] = {}

    @property
    def max_calls_text(self) -> str:
        """The most runs of the tool, in words (MAX_COUNT)."""
        return "once" if self.max_calls == 1 else f"{self.max_calls} times"


class RawRule(Struct, frozen=True):
    """A rule in a definition, under the field names of the agents API (`ToolRule` has the meanings)."""

    type: RuleKind
    tool_name: str
    children: tuple[str, ...] | None = None
    child_output_mapping: dict[str, str] | None = None
    default_child: str | None = None
    require_output_mapping: bool | None = None
    max_count_limit: int | None = None
    # Each {"name": a tool, "args": the arguments that the gateway sets}.
    child_arg_nodes: list[dict[str, Any]] | None = None
    args: dict[str, Any] | None = None


def read_rules(raw: Iterable[Mapping[str, Any]]) -> tuple[ToolRule, ...]:
    """Reads the rules of a definition. Raises: InvalidValue."""
    return tuple(_read(convert(each, RawRule)) for each in raw)


def _read(raw: RawRule) -> ToolRule:
    """Returns a rule with the arguments that it prefills, by the names of their tools."""
    arguments = {node["name"]: node["args"] for node in raw.child_arg_nodes or () if node.get("args")}
    if raw.args:
        arguments[raw.tool_name] = raw.args
    return ToolRule(
        raw.type,
        raw.tool_name,
        children=raw.children or (),
        outcomes=tuple((raw.child_output_mapping or {}).items()),
        default=raw.default_child,
        is_strict=bool(raw.require_output_mapping),
        max_calls=raw.max_count_limit or 0,
        arguments=arguments,
    )
