"""`mnemogate memory show`: one memory as text for operators. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.core.dates import minute_text
from gateway.core.memory.mcp_tools import through_mcp
from gateway.core.memory.visibility import recallable_messages
from gateway.run.admin.memory_lists import other_profiles
from gateway.run.admin.operation_arguments import (
    NO_DEFAULTS,
    Arguments,
    Defaults,
    RawArguments,
    nothing_found,
)
from gateway.run.admin.printed import plural
from gateway.run.memory.trial import TrialRecall
from storage.commands import MemorySnapshot
from storage.listing import Retained
from storage.records import IMPORT, Agent, Block, Exchange, Fact, Message, Scope, State
from storage.sql.store import Store

# The number of newest exchanges that are shown.
RECENT = 10
# The number of messages that are listed of those that a question finds.
FOUND = 20
# The number of versions that `--why` shows of a block.
VERSIONS = 5
# The passages and the facts that are listed at most.
PASSAGES = 100
FACTS = 100
# The number of sources that `--why` quotes for a version or a note.
SOURCES = 4
# The characters to which a text is cut.
SHOWN_CHARS = 100

# The words for the origin of a version, by the part before its colon.
ORIGINS = {
    "default": "the profile's default",
    "-": "forgotten",
    "forget": "what forgetting left",
    "undo": "undo",
    "learning": "learned from conversations",
    "tool": "a call of a tool",
    "api": "the agents API",
}


class ShowOperation(Struct, frozen=True):
    """Shows memories as text."""

    store: Store
    trial: TrialRecall
    defaults: Defaults = NO_DEFAULTS

    async def show(self, raw: RawArguments) -> dict[str, str]:
        """Shows the memory of a user, or of a conversation without a user. Returns {"text"}.

        The fields of `raw`, besides those of the memory's owner:

        query: adds what would be recalled for it, and the messages found with their numbers.
        why: adds where each memory comes from.
        """
        arguments = Arguments(raw)
        scope = arguments.owner(self.defaults).scope
        query, with_sources = arguments.optional_text("query"), arguments.flag("why")
        store = self.store
        agent = await store.agents.find(scope)
        snapshot = None if agent is None else await store.turns.snapshot(agent, None, None)
        if agent is None or snapshot is None:
            return {"text": "\n".join(await self._nothing(scope))}
        retained = await store.overview.retained(agent.id)
        recent = await store.overview.recent(agent.id, RECENT)
        facts = await store.facts.list(agent.id, limit=FACTS)
        waiting = len(await store.blocks.waiting(agent.id))
        lines = [_text(agent, snapshot, facts, waiting)]
        lines += ["", "Retained", f"  {_retained(retained)}", "", "Recent messages"]
        lines += [f"  {line}" for each in recent for line in _lines_of(*each)] or ["  none"]
        if query is not None:
            lines += await self._found(agent, query)
        if with_sources:
            lines += await _why(store, agent, snapshot, [e for e, *_ in recent])
        return {"text": "\n".join(lines)}

    async def _nothing(self, scope: Scope) -> list[str]:
        """Returns the message that there is no such memory, and which profiles have one."""
        others = await other_profiles(self.store, scope)
        return [
            nothing_found(scope),
            *(f"Profile {name!r} has a memory: --profile {name}" for name in others),
        ]

    async def _found(self, agent: Agent, query: str) -> list[str]:
        """Returns the note that would be recalled for a question, and the messages that it finds."""
        result = await self.trial.recall(agent, query, 0)
        messages = [m for m in result.search.messages if m.source == "message"][:FOUND]
        note = result.note.strip() or "nothing"
        lines = ["", "Would be recalled", *(f"  {line}" for line in note.splitlines())]
        if messages:
            lines += ["", "Found, best first", *(f"  {_short(_line(m))}" for m in messages)]
        return lines


def _text(agent: Agent, snapshot: MemorySnapshot, facts: Sequence[Fact], waiting: int) -> str:
    scope = agent.scope
    lines = [
        f"{scope.subject}  (project {scope.project}, profile {scope.profile}, memory {agent.uid})",
        "",
        "Blocks",
        *([line for b in snapshot.blocks for line in _block(b)] or ["  none"]),
    ]
    if waiting:
        lines.append(f"  edits of turns that are not confirmed: {waiting}")
    if facts:
        lines += ["", "Facts", *(f"  {_fact(f)}" for f in facts)]
    return "\n".join(lines)


def _retained(retained: Retained) -> str:
    """Returns how much is retained, as `users` and `conversations` count it."""
    turns, conversations = plural(retained.turns, "turns"), plural(retained.conversations, "conversations")
    cancelled = f" ({retained.cancelled} cancelled)" if retained.cancelled else ""
    return f"{plural(retained.messages, 'messages')} in {turns}{cancelled} of {conversations}"


def _lines_of(e: Exchange, prefix_is_shared: bool, previous: int | None) -> list[str]:
    """Returns the lines of an exchange's messages. Those of a turn that is not active end with the reason.

    prefix_is_shared, previous: as `recallable_messages` has them.
    """
    why = ""
    if e.state is State.CANCELLED:
        why = "cancelled"
    elif e.state is State.OPEN:
        why = "not answered"
    elif not e.active:
        why = "superseded"
    mark = f"  ({why})" if why else ""
    return [f"{_line(m)}{mark}" for m in recallable_messages(e, prefix_is_shared, previous)]


async def _why(store: Store, agent: Agent, snapshot: MemorySnapshot, recent: Sequence[Exchange]) -> list[str]:
    """Lists the last versions of each block, the passages and the facts, each with the message that it came from.

    Messages and facts that were imported are listed with their imports.
    """
    lines = ["", "Where blocks come from", *([] if snapshot.blocks else ["  none"])]
    for b in snapshot.blocks:
        lines.append(f"  {b.label}")
        for r in (await store.blocks.revisions(b.id))[:VERSIONS]:
            if r.restores is not None:
                origin = f"undo, back to version {r.restores}"
            else:
                origin = through_mcp(r.origin) or ORIGINS.get(r.origin.partition(":")[0], r.origin)
            lines.append(
                f"    version {r.version}  [{minute_text(r.at)}]  {origin}  ({len(r.value)} characters)"
            )
            lines += [f"      {line}" for line in await _sources(store, agent, r.sources)]
    passages = await store.passages.list(agent.id, limit=PASSAGES)
    lines += ["", "Passages", *([] if passages else ["  none"])]
    for p in passages:
        lines.append(f"  {p.seq}  [{minute_text(p.at)}]  {_short(p.text)}")
        lines += [f"    {line}" for line in await _sources(store, agent, p.sources)]
    imported = await store.imports.origins(agent.id, "exchange", [e.id for e in recent])
    if imported:
        lines += ["", "Where messages come from"]
        lines += [f"  {e.seq}  {_import(*imported[e.id])}" for e in recent if e.id in imported]
    facts = await store.facts.list(agent.id, is_all=True, limit=FACTS)
    origins = await store.imports.origins(agent.id, "fact", [f.id for f in facts if f.origin == IMPORT])
    lines += ["", "Facts, and what they were before", *([] if facts else ["  none"])]
    for f in facts:
        ended = ""
        if f.ended_at is not None:
            ended = (
                f"  (until {minute_text(f.ended_at)}; then {f.successor or 'something that is forgotten'})"
            )
        lines.append(f"  {_short(_fact(f))}{ended}")
        if (client := through_mcp(f.origin)) is not None:
            lines.append(f"    {client}")
        if f.id in origins:
            lines.append(f"    {_import(*origins[f.id])}")
        lines += [f"    {line}" for line in await _sources(store, agent, f.sources)]
    return lines


def _import(format: str, at: float) -> str:
    return f"import ({format}, {minute_text(at)[:10]})"


async def _sources(store: Store, agent: Agent, exchanges: Sequence[int]) -> list[str]:
    """Returns lines that quote the user messages of the first `SOURCES` of these exchanges."""
    lines = []
    # A shared block may come from another user's memory, of which nothing is shown: its exchange is not found here.
    for id in exchanges[:SOURCES]:
        e = await store.turns.exchange(agent, id)
        messages = recallable_messages(e, False, None, None) if e is not None else []
        lines += [f"from message {_short(_line(m))}" for m in messages if m.role == "user"]
        if e is None:
            lines.append("from a message that is not in this memory")
    if len(exchanges) > SOURCES:
        lines.append(f"and {len(exchanges) - SOURCES} more")
    return lines


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _block(b: Block) -> list[str]:
    kind = ", read-only" if b.read_only else ""
    heading = f"  {b.label}  (version {b.version}, {len(b.value)} of {b.limit} characters{kind})"
    return [heading, *(f"    {line}" for line in b.value.splitlines())]


def _fact(f: Fact) -> str:
    return f"{f.seq}  [{minute_text(f.valid_from)}{', always' if f.standing else ''}]  {f.text}"


def _line(m: Message) -> str:
    """Returns a message in one line: number, date, speaker and text."""
    return f"{m.seq}  [{minute_text(m.at)}] {m.speaker or m.role}: {' '.join(m.text.split())}"
