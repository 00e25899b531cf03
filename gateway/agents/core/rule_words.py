"""Tool rules as sentences of the prompt, so that the model knows them before it breaks one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.core.tool_rule import RuleKind, ToolRule


def render_rules(rules: Sequence[ToolRule], tool_names: Collection[str]) -> str:
    """Returns the rules that the model has to know as sentences, one a line; "" if it has to know none."""
    lines = [_render_rule(rule) for rule in rules if rule.tool in tool_names]
    return "\n".join(dict.fromkeys(f"- {line}" for line in lines if line))


def _render_rule(rule: ToolRule) -> str:
    """Returns a rule in words, for the prompt."""
    tool, children = rule.tool, ", ".join(rule.children)
    match rule.kind:
        case RuleKind.RUN_FIRST:
            return f"Call {tool} before any other tool."
        case RuleKind.CHILDREN:
            return f"Right after {tool} call one of: {children}."
        case RuleKind.CONDITIONAL:
            cases = [f"{child} if it returns {value}" for value, child in rule.outcomes]
            if rule.default is not None:
                cases.append(f"{rule.default} otherwise")
            return f"Right after {tool} call {', '.join(cases)}." if cases else ""
        case RuleKind.PARENT_LAST:
            return f"Right after {tool}, and only then, call one of: {children}."
        case RuleKind.MAX_COUNT:
            return f"Call {tool} at most {rule.max_calls_text} for one message of the user."
        case RuleKind.EXIT:
            return f"{tool} ends your turn."
        case RuleKind.BEFORE_EXIT:
            return f"Call {tool} before you end your turn."
        case RuleKind.APPROVAL:
            return f"A person has to approve each call of {tool}."
        case RuleKind.CONTINUE:
            return ""
