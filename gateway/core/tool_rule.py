"""Tool rules of an agent as values, read from its definition. `gateway.agents.core.tool_rules` decides by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RuleKind(StrEnum):
    """The kinds of rules, by their names in a definition."""

    RUN_FIRST = "run_first"
    CHILDREN = "constrain_child_tools"
    CONDITIONAL = "conditional"
    PARENT_LAST = "parent_last_tool"
    AT_MOST = "max_count_per_step"
    GO_ON = "continue_loop"
    EXIT = "exit_loop"
    BEFORE_EXIT = "required_before_exit"
    APPROVAL = "requires_approval"


@dataclass(frozen=True, slots=True)
class ToolRule:
    """One rule about one tool."""

    kind: RuleKind
    tool: str
    children: tuple[str, ...] = ()  # tools that may or must follow (CHILDREN, PARENT_LAST)
    outcomes: tuple[tuple[str, str], ...] = ()  # (result, tool that follows it) (CONDITIONAL)
    default: str | None = None  # the tool that follows any other result (CONDITIONAL)
    is_strict: bool = False  # without a default nothing follows another result, else anything (CONDITIONAL)
    most: int = 0  # how often the tool may run (AT_MOST)
    # tool -> arguments that the gateway sets (RUN_FIRST, CHILDREN)
    arguments: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)


def read_rules(raw: Iterable[Mapping[str, Any]]) -> tuple[ToolRule, ...]:
    """Reads the rules of a definition, which a dialect has checked. Raises: ValueError, for an unknown kind."""
    return tuple(_read(each) for each in raw)


def _read(raw: Mapping[str, Any]) -> ToolRule:
    kind, tool = RuleKind(raw["type"]), raw["tool_name"]
    arguments = {node["name"]: node["args"] for node in raw.get("child_arg_nodes") or () if node.get("args")}
    if raw.get("args"):
        arguments[tool] = raw["args"]
    return ToolRule(
        kind,
        tool,
        children=tuple(raw.get("children") or ()),
        outcomes=tuple(
            (str(value), child) for value, child in (raw.get("child_output_mapping") or {}).items()
        ),
        default=raw.get("default_child"),
        is_strict=bool(raw.get("require_output_mapping")),
        most=raw.get("max_count_limit") or 0,
        arguments=arguments,
    )
