"""The text of the report on a moved agent: the numbers of its parts, and the parts that the gateway leaves out."""

import re
from collections.abc import Mapping, Sequence

from gateway.agents.migrate.letta_agent import LettaAgent
from gateway.agents.migrate.letta_messages import count_messages

# The name by which an import reports a tool that it has made and that the gateway cannot run.
_UNRUNNABLE_TOOL = re.compile(r"tools\.(.+)\.(python|typescript|webhook)")


def describe_losses(left_out: Sequence[str], servers: Mapping[str, str]) -> str:
    """Returns the end of a line that names the parts of an agent that the gateway leaves out or cannot run; "": none.

    left_out: the names of the parts, as the import reports them.
    servers: the names of the MCP servers of the agent's tools, by the names of the tools.
    """
    unrunnable = [
        _UNRUNNABLE_TOOL.sub(r"\1 (\2)", tool) for tool in left_out if _UNRUNNABLE_TOOL.fullmatch(tool)
    ]
    left_out_names = [
        f"{tool} (of the MCP server {servers[tool]!r})" if tool in servers else tool
        for tool in left_out
        if not _UNRUNNABLE_TOOL.fullmatch(tool)
    ]
    unrunnable_part = f"; cannot run here: {', '.join(unrunnable)}" if unrunnable else ""
    left_out_part = f"; left out: {', '.join(left_out_names)}" if left_out_names else ""
    return f"{unrunnable_part}{left_out_part}"


def describe_counts(agent: LettaAgent) -> str:
    """Returns the numbers of an agent's messages and other parts as text."""
    counts = (
        (count_messages(agent.messages), "message"),
        (len(agent.conversations), "further conversation"),
        (len(agent.passages), "passage"),
        (len(agent.state.get("blocks") or ()), "block"),
        (len(agent.state.get("sources") or ()), "folder"),
    )
    texts = [f"{number} {part}{'' if number == 1 else 's'}" for number, part in counts if number]
    return ", ".join(texts) or "nothing was said to it"
