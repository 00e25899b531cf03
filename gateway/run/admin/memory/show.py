"""`mnemogate memory show`: one memory as text for operators. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.core.dates import render_minute
from gateway.core.memory.mcp_tools import describe_mcp_origin
from gateway.core.memory.visibility import list_recallable_messages
from gateway.run.admin.memory_by_uid import load_other_profiles
from gateway.run.admin.memory_names import make_nothing_found_error
from gateway.run.admin.operation_arguments import NO_DEFAULTS, Arguments, Defaults, RawArguments
from gateway.run.admin.plain_text import count_noun
from gateway.run.memory.trial import TrialRunner
from storage.commands import MemorySnapshot
from storage.operator_records import ImportOrigin, RetainedContent
from storage.records import IMPORT, Agent, Block, Exchange, ExchangeState, Fact, Message, Scope
from storage.sql.store import Store

# The number of newest exchanges that are shown.
_MAX_EXCHANGES = 10
# The most messages that are listed of a question's hits.
_MAX_FOUND_MESSAGES = 20
# The most versions of a block that `--why` shows.
_MAX_VERSIONS = 5
# The most passages and the most facts that are listed.
_MAX_PASSAGES = 100
MAX_FACTS = 100
# The most sources that `--why` quotes for a version, a passage or a fact.
MAX_SOURCES = 4
# The characters to which a text is cut.
SHOWN_CHARS = 100

# The words for the writer of a version, by the part of `Revision.origin` before its colon.
_WRITER_WORDS = {
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
    trial_runner: TrialRunner
    defaults: Defaults = NO_DEFAULTS

    async def show(self, raw: RawArguments) -> dict[str, str]:
        """Shows the memory of a user, or of a conversation without a user. Returns {"text"}.

        The fields of `raw`, after those of the memory's owner:

        query: adds the note that this text would recall, and the messages that it finds, with their numbers.
        why: adds the sources of blocks, passages, messages and facts.
        """
        arguments = Arguments(raw)
        scope = arguments.read_owner(self.defaults).scope
        query = arguments.read_optional_text("query")
        with_sources = arguments.read_flag("why")
        store = self.store
        agent = await store.agents.find(scope)
        snapshot = None if agent is None else await store.turns.find_snapshot(agent, None, None)
        if agent is None or snapshot is None:
            return {"text": "\n".join(await self._render_not_found(scope))}
        retained = await store.overview.measure(agent.id)
        recent = await store.overview.list_newest_exchanges(agent.id, _MAX_EXCHANGES)
        facts = await store.facts.list_page(agent.id, limit=MAX_FACTS)
        waiting_count = len(await store.turn_edits.list_pending_labels(agent.id))
        lines = _render_memory_lines(agent, snapshot, facts, waiting_count)
        lines += ["", "Retained", f"  {_render_retained(retained)}", "", "Recent messages"]
        lines += _render_section_lines(
            [f"  {line}" for each in recent for line in _render_exchange_lines(*each)]
        )
        if query is not None:
            lines += await self._render_recall(agent, query)
        if with_sources:
            lines += await _render_sources(store, agent, snapshot, [exchange for exchange, *_ in recent])
        return {"text": "\n".join(lines)}

    async def _render_not_found(self, scope: Scope) -> list[str]:
        """Returns the message that there is no such memory. It names the profiles that have one for the same user."""
        others = await load_other_profiles(self.store, scope)
        return [
            make_nothing_found_error(scope).message,
            *(f"Profile {name!r} has a memory: --profile {name}" for name in others),
        ]

    async def _render_recall(self, agent: Agent, query: str) -> list[str]:
        """Returns the note that would be recalled for a question, and the messages that it finds."""
        result = await self.trial_runner.try_sentence(agent, query, 0)
        messages = [message for message in result.record.messages if message.kind == "message"]
        note = result.note.strip() or "nothing"
        lines = ["", "Would be recalled", *(f"  {line}" for line in note.splitlines())]
        if messages:
            lines += [
                "",
                "Found, best first",
                *(
                    f"  {_shorten_to_line(_render_message_line(message))}"
                    for message in messages[:_MAX_FOUND_MESSAGES]
                ),
            ]
        return lines


def _render_memory_lines(
    agent: Agent, snapshot: MemorySnapshot, facts: Sequence[Fact], waiting_count: int
) -> list[str]:
    """Returns the lines of a memory's blocks and facts. waiting_count: the number of unconfirmed edits."""
    scope = agent.scope
    lines = [
        f"{scope.subject}  (project {scope.project}, profile {scope.profile}, memory {agent.uid})",
        "",
        "Blocks",
        *_render_section_lines([line for block in snapshot.blocks for line in _render_block_lines(block)]),
    ]
    if waiting_count:
        lines.append(f"  edits of turns that are not confirmed: {waiting_count}")
    if facts:
        lines += ["", "Facts", *(f"  {_render_fact(fact)}" for fact in facts)]
    return lines


def _render_retained(retained: RetainedContent) -> str:
    """Returns how much is retained, as `users` and `conversations` count it."""
    turns = count_noun(retained.turns, "turns")
    conversations = count_noun(retained.conversations, "conversations")
    cancelled = f" ({retained.cancelled} cancelled)" if retained.cancelled else ""
    return f"{count_noun(retained.messages, 'messages')} in {turns}{cancelled} of {conversations}"


def _render_exchange_lines(exchange: Exchange, prefix_is_shared: bool, previous: int | None) -> list[str]:
    """Returns the lines of an exchange's messages. Each ends with the reason if the exchange is not active.

    prefix_is_shared, previous: the arguments of `list_recallable_messages`.
    """
    reason = ""
    if exchange.state is ExchangeState.CANCELLED:
        reason = "cancelled"
    elif exchange.state is ExchangeState.OPEN:
        reason = "not answered"
    elif not exchange.active:
        reason = "superseded"
    mark = f"  ({reason})" if reason else ""
    return [
        f"{_render_message_line(message)}{mark}"
        for message in list_recallable_messages(exchange, prefix_is_shared, previous)
    ]


async def _render_sources(
    store: Store, agent: Agent, snapshot: MemorySnapshot, recent: Sequence[Exchange]
) -> list[str]:
    """Returns the lines of `--why`: the last versions of blocks, passages and facts, with the messages they came from.

    Messages and facts that were imported are shown with their imports.
    """
    return [
        *await _render_block_sources(store, agent, snapshot.blocks),
        *await _render_passage_sources(store, agent),
        *await _render_import_sources(store, agent, recent),
        *await _render_fact_sources(store, agent),
    ]


async def _render_block_sources(store: Store, agent: Agent, blocks: Sequence[Block]) -> list[str]:
    """Returns the last versions of each block, with the writers and the quoted sources."""
    lines: list[str] = []
    for block in blocks:
        lines.append(f"  {block.label}")
        for revision in await store.blocks.list_revisions(block.id, limit=_MAX_VERSIONS):
            origin = revision.origin
            writer = describe_mcp_origin(origin) or _WRITER_WORDS.get(origin.partition(":")[0], origin)
            if revision.restores is not None:
                writer = f"{writer}, back to version {revision.restores}"
            size = f"({len(revision.value)} characters)"
            lines.append(f"    version {revision.version}  [{render_minute(revision.at)}]  {writer}  {size}")
            lines += [f"      {line}" for line in await _quote_sources(store, agent, revision.sources)]
    return ["", "Where blocks come from", *_render_section_lines(lines)]


async def _render_passage_sources(store: Store, agent: Agent) -> list[str]:
    lines: list[str] = []
    for passage in await store.passages.list_texts(agent.id, limit=_MAX_PASSAGES):
        lines.append(f"  {passage.seq}  [{render_minute(passage.at)}]  {_shorten_to_line(passage.text)}")
        lines += [f"    {line}" for line in await _quote_sources(store, agent, passage.sources)]
    return ["", "Passages", *_render_section_lines(lines)]


async def _render_import_sources(store: Store, agent: Agent, recent: Sequence[Exchange]) -> list[str]:
    origins = await store.imports.load_origins(agent.id, "exchange", [exchange.id for exchange in recent])
    if not origins:
        return []
    lines = [
        f"  {each.seq}  {_render_import_line(origins[each.id])}" for each in recent if each.id in origins
    ]
    return ["", "Where messages come from", *lines]


async def _render_fact_sources(store: Store, agent: Agent) -> list[str]:
    """Returns all facts, also ended ones, with their successors, their origins and the quoted sources."""
    facts = await store.facts.list_page(agent.id, includes_ended=True, limit=MAX_FACTS)
    origins = await store.imports.load_origins(
        agent.id, "fact", [each.id for each in facts if each.origin == IMPORT]
    )
    lines: list[str] = []
    for fact in facts:
        lines.append(f"  {_shorten_to_line(_render_fact(fact))}{_render_end(fact)}")
        if (client := describe_mcp_origin(fact.origin)) is not None:
            lines.append(f"    {client}")
        if fact.id in origins:
            lines.append(f"    {_render_import_line(origins[fact.id])}")
        lines += [f"    {line}" for line in await _quote_sources(store, agent, fact.sources)]
    return ["", "Facts, and what they were before", *_render_section_lines(lines)]


def _render_end(fact: Fact) -> str:
    """Returns the words that follow a fact that has ended, with its successor; "": the fact is true."""
    if fact.ended_at is None:
        return ""
    successor = fact.successor or "something that is forgotten"
    return f"  (until {render_minute(fact.ended_at)}; then {successor})"


def _render_import_line(origin: ImportOrigin) -> str:
    return f"import ({origin.format}, {render_minute(origin.begun)[:10]})"


async def _quote_sources(store: Store, agent: Agent, exchange_rows: Sequence[int]) -> list[str]:
    """Returns lines that quote the user messages of exchanges, at most of the first `MAX_SOURCES`."""
    lines = []
    for row in exchange_rows[:MAX_SOURCES]:
        exchange = await store.turns.find_exchange(agent, row)
        if exchange is None:
            # A source of a shared block may be in another user's memory, of which nothing is shown.
            lines.append("from a message that is not in this memory")
            continue
        lines += [
            f"from message {_shorten_to_line(_render_message_line(message))}"
            for message in list_recallable_messages(exchange, prefix_is_shared=False, previous=None)
            if message.role == "user"
        ]
    if len(exchange_rows) > MAX_SOURCES:
        lines.append(f"and {len(exchange_rows) - MAX_SOURCES} more")
    return lines


def _shorten_to_line(text: str) -> str:
    """Returns the first `SHOWN_CHARS` of a text in one line."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _render_section_lines(lines: list[str]) -> list[str]:
    """Returns the lines of a section; if there are none, one line that says so."""
    return lines or ["  none"]


def _render_block_lines(block: Block) -> list[str]:
    kind = ", read-only" if block.read_only else ""
    heading = (
        f"  {block.label}  (version {block.version}, {len(block.value)} of {block.limit} characters{kind})"
    )
    return [heading, *(f"    {line}" for line in block.value.splitlines())]


def _render_fact(fact: Fact) -> str:
    always = ", always" if fact.standing else ""
    return f"{fact.seq}  [{render_minute(fact.valid_from)}{always}]  {fact.text}"


def _render_message_line(message: Message) -> str:
    """Returns a message in one line: number, date, speaker and text."""
    speaker = message.speaker or message.role
    text = " ".join(message.text.split())
    return f"{message.seq}  [{render_minute(message.at)}] {speaker}: {text}"
