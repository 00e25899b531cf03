"""What the operator is shown of a memory: `mnemogate memory show`. Reads only, and only the scope that is named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gateway.core.memory.visibility import messages_of
from gateway.core.prompt import note as recall
from gateway.errors import BadRequest
from gateway.run.admin.operations import Operation
from storage.base import Store
from storage.commands import Look
from storage.records import Agent, Block, Fact, Message, Scope, Vector

__all__ = ["show_operation"]

DEFAULT = "default"
RECENT = 10  # exchanges
VERSIONS = 5  # of a block, with `--why`
PASSAGES = 100
FACTS = 100
SEARCH_MS = 5000.0
SOURCES = 4  # of one version or note
SHOWN_CHARS = 100

ORIGINS = {
    "default": "the profile's default",
    "-": "forgotten",
    "forget": "what forgetting left",
    "undo": "undo",
    "learning": "learned from conversations",
}


def show_operation(
    store: Store,
    recall_tokens: int,
    now: Callable[[], float],
    profiles: Sequence[str] = (),
    embed_query: Callable[[int, str, float], Awaitable[Vector | None]] | None = None,
) -> Operation:
    """project, profile; user or else conversation; query: what to recall for; why: where each memory comes from.

    profiles: those of the settings. Where one has no memory of somebody, those that have one are named.
    embed_query: as replies have it, so that what is shown is what they get.
    """

    async def show(arguments: Mapping[str, Any]) -> Any:
        scope = _scope(arguments)
        agent = store.agents.find(scope)
        look = None if agent is None else store.turns.look(agent, None, None)
        if agent is None or look is None:
            nothing = f"Nothing is remembered for {scope.subject} in profile {scope.profile!r}."
            others = [
                each for each in (DEFAULT, *profiles) if store.agents.find(replace(scope, profile=each))
            ]
            hints = [f"Profile {each!r} has a memory: --profile {each}" for each in dict.fromkeys(others)]
            return {"text": "\n".join([nothing, *hints])}
        recent = store.recall.recent(agent, RECENT, messages_of)
        query = arguments.get("query")
        note = None
        if isinstance(query, str) and query:
            question = recall.make_query(query)
            vector = None if embed_query is None else await embed_query(agent.id, question, SEARCH_MS)
            found = await store.recall.search(
                agent,
                question,
                messages_of,
                size=look.next_seq,
                indexed=look.indexed_seq,
                only_strong=True,
                deadline_ms=SEARCH_MS,
                vector=vector,
            )
            hits = recall.choose(found, query, budget_tokens=recall_tokens)
            note = recall.render_note(hits, (), now())
        why = _why(store, agent, look) if arguments.get("why") else []
        facts = store.facts.list(agent.id, limit=FACTS)
        return {"text": "\n".join([_text(agent, look, facts, recent, note), *why])}

    return show


def _scope(arguments: Mapping[str, Any]) -> Scope:
    user, conversation = arguments.get("user"), arguments.get("conversation")
    if user:
        subject = f"user:{user}"
    elif conversation:
        subject = f"conversation:{conversation}"
    else:
        raise BadRequest("Say whose memory: user or conversation.", param="user")
    return Scope(arguments.get("project") or DEFAULT, arguments.get("profile") or DEFAULT, subject)


def _text(
    agent: Agent, look: Look, facts: Sequence[Fact], recent: Sequence[Message], note: str | None
) -> str:
    scope = agent.scope
    lines = [
        f"{scope.subject}  (project {scope.project}, profile {scope.profile}, memory {agent.uid})",
        "",
        "Blocks",
        *([line for b in look.blocks for line in _block(b)] or ["  none"]),
    ]
    if look.ops:
        lines.append(f"  edits of turns that are not confirmed: {len(look.ops)}")
    if facts:
        lines += ["", "Facts", *(f"  {_fact(f)}" for f in facts)]
    lines += ["", "Recent messages", *([f"  {_line(m)}" for m in recent] or ["  none"])]
    if note is not None:
        lines += ["", "Would be recalled", *(f"  {line}" for line in (note or "nothing").splitlines())]
    return "\n".join(lines)


def _why(store: Store, agent: Agent, look: Look) -> list[str]:
    """The last versions of each block and the saved notes, each with its origin and the message it came from."""
    lines = ["", "Where blocks come from", *([] if look.blocks else ["  none"])]
    for b in look.blocks:
        lines.append(f"  {b.label}")
        for r in store.blocks.revisions(b.id)[:VERSIONS]:
            what = (
                f"undo, back to version {r.restores}"
                if r.restores is not None
                else ORIGINS.get(r.origin, r.origin)
            )
            lines.append(f"    version {r.version}  [{_when(r.at)}]  {what}  ({len(r.value)} characters)")
            lines += [f"      {line}" for line in _sources(store, agent, r.sources)]
    passages = store.passages.list(agent.id, limit=PASSAGES)
    lines += ["", "Saved notes", *([] if passages else ["  none"])]
    for p in passages:
        lines.append(f"  {p.seq}  [{_when(p.at)}]  {_short(p.text)}")
        lines += [f"    {line}" for line in _sources(store, agent, p.sources)]
    facts = store.facts.list(agent.id, is_all=True, limit=FACTS)
    lines += ["", "Facts, and what they were before", *([] if facts else ["  none"])]
    for f in facts:
        ended = ""
        if f.ended_at is not None:
            ended = f"  (until {_when(f.ended_at)}; then {f.successor or 'something that is forgotten'})"
        lines.append(f"  {_short(_fact(f))}{ended}")
        lines += [f"    {line}" for line in _sources(store, agent, f.sources)]
    return lines


def _sources(store: Store, agent: Agent, exchanges: Sequence[int]) -> list[str]:
    """What was said there; nothing of another memory's, which a shared block may come from."""
    lines = []
    for id in exchanges[:SOURCES]:
        e = store.turns.exchange(agent, id)
        said = messages_of(e, False, None, None) if e is not None else []
        lines += [f"from message {_short(_line(m))}" for m in said if m.role == "user"]
        if e is None:
            lines.append("from a message that is not in this memory")
    if len(exchanges) > SOURCES:
        lines.append(f"and {len(exchanges) - SOURCES} more")
    return lines


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _block(b: Block) -> list[str]:
    kind = ", read-only" if b.read_only else ""
    head = f"  {b.label}  (version {b.version}, {len(b.value)} of {b.limit} characters{kind})"
    return [head, *(f"    {line}" for line in b.value.splitlines())]


def _fact(f: Fact) -> str:
    return f"{f.seq}  [{_when(f.valid_from)}]  {f.text}"


def _line(m: Message) -> str:
    return f"{m.seq}  [{_when(m.at)}] {m.speaker or m.role}: {' '.join(m.text.split())}"
