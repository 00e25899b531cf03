"""What the operator is shown of a memory: `mnemogate memory show`. Reads only, and only the scope that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.core import recall
from gateway.core.tell import messages_of
from gateway.errors import BadRequest
from gateway.run.operate import Operation
from storage.base import Store
from storage.records import Agent, Block, Look, Message, Scope

__all__ = ["show_operation"]

RECENT = 10  # exchanges


def show_operation(store: Store, recall_tokens: int, now: Callable[[], float]) -> Operation:
    """project, profile; user or else conversation; query: what to recall for."""

    async def show(arguments: Mapping[str, Any]) -> Any:
        scope = _scope(arguments)
        agent = store.agents.find(scope)
        look = None if agent is None else store.turns.look(agent, None, None)
        if agent is None or look is None:
            return {"text": f"Nothing is remembered for {scope.subject} in profile {scope.profile!r}."}
        recent = store.recall.recent(agent, RECENT, messages_of)
        query = arguments.get("query")
        note = None
        if isinstance(query, str) and query:
            found = await store.recall.search(
                agent,
                recall.make_query(query),
                messages_of,
                size=look.next_seq,
                indexed=look.indexed_seq,
                only_strong=True,
                deadline_ms=5000.0,
            )
            hits = recall.choose(found, query, budget_tokens=recall_tokens)
            note = recall.render_note(hits, (), now())
        return {"text": _text(agent, look, recent, note)}

    return show


def _scope(arguments: Mapping[str, Any]) -> Scope:
    user, conversation = arguments.get("user"), arguments.get("conversation")
    if user:
        subject = f"user:{user}"
    elif conversation:
        subject = f"conversation:{conversation}"
    else:
        raise BadRequest("Say whose memory: user or conversation.", param="user")
    return Scope(arguments.get("project") or "default", arguments.get("profile") or "default", subject)


def _text(agent: Agent, look: Look, recent: Sequence[Message], note: str | None) -> str:
    scope = agent.scope
    lines = [
        f"{scope.subject}  (project {scope.project}, profile {scope.profile}, memory {agent.uid})",
        "",
        "Blocks",
        *([line for b in look.blocks for line in _block(b)] or ["  none"]),
    ]
    if look.ops:
        lines.append(f"  {len(look.ops)} edits wait for their turns to be confirmed")
    lines += ["", "Recent messages", *([f"  {_line(m)}" for m in recent] or ["  none"])]
    if note is not None:
        lines += ["", "Would be recalled", *(f"  {line}" for line in (note or "nothing").splitlines())]
    return "\n".join(lines)


def _block(b: Block) -> list[str]:
    kind = ", read-only" if b.read_only else ""
    head = f"  {b.label}  (version {b.version}, {len(b.value)} of {b.limit} characters{kind})"
    return [head, *(f"    {line}" for line in b.value.splitlines())]


def _line(m: Message) -> str:
    at = datetime.fromtimestamp(m.at, UTC).strftime("%Y-%m-%d %H:%M")
    return f"[{at}] {m.speaker or m.role}: {' '.join(m.text.split())}"
