"""Lists and changes the messages of an agent, of one of its conversations or of all in one order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct

from gateway.agents.registry.conversation_registry import erase_conversation, find_conversation
from gateway.agents.runs.calls.call_record import load_waiting_calls
from gateway.core.conversation.message_rewrite import CannotRewrite, rewrite_message
from gateway.core.conversation.stored_messages import (
    ListedMessage,
    list_messages,
    make_message_sort_key,
    map_calls_to_tool_names,
)
from gateway.core.ids import ObjectRef, make_id_with_seq
from gateway.errors import BadRequest
from storage.errors import NotFound
from storage.forget_commands import ForgetTarget
from storage.listing import LAST_NUMBER, ListedExchange, Page
from storage.records import DEFAULT_CONVERSATION, Agent, Exchange
from storage.run_records import WaitKind
from storage.sql.store import Store

# The most message numbers of a conversation that are shown.
MAX_LISTED_NUMBERS = 1000
# The most exchanges that one read returns.
_MAX_ROWS = 50


class MessageView(Struct, frozen=True):
    """A stored message as lists show it."""

    # The message, with its number and its exchange.
    listed: ListedMessage
    # The uid of the message's conversation.
    conversation_uid: str
    # The client's key of the conversation; None: the client gave it none.
    key: str | None
    # The uid of the message's run; None: no run made the message.
    run_uid: str | None
    # The number of the exchange of the message's step; None: no run made the message. A result belongs to the step that
    # made the call.
    step_seq: int | None
    # The kind of answer for which each waiting call waits, by call id; set on the last reply of a conversation.
    waiting: Mapping[str, WaitKind]
    # The names of the tools of the calls that a result may answer, by call id.
    tool_names: Mapping[str, str]


class AgentMessages:
    """Reads and changes the messages of agents. Each method raises StoreError, besides the errors that it names."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def list_agent_messages(
        self, agent: Agent, page: Page[ObjectRef], *, conversation_name: str | None = None
    ) -> Sequence[MessageView]:
        """Returns a page of messages.

        conversation_name: the name of the only conversation to list; None: all conversations.
        """
        conversation_row: int | None = None
        if conversation_name is not None:
            conversation = await find_conversation(self._store, agent, conversation_name)
            if conversation is None:
                return []
            conversation_row = conversation.id
        newest_first, (older_end, newer_end) = page.newest_first, page.ends
        low = (-1, 0) if older_end is None else make_message_sort_key(older_end.seq, older_end.hidden)
        high = (
            (LAST_NUMBER, 0) if newer_end is None else make_message_sort_key(newer_end.seq, newer_end.hidden)
        )
        views: list[MessageView] = []
        begin, end = (high[0], low[0]) if newest_first else (low[0], high[0])
        while len(views) < page.limit:
            size = min(_MAX_ROWS, page.limit - len(views))
            part = Page(begin, end, size, newest_first)
            rows = await self._store.messages.list_page(agent.id, part, conversation_row=conversation_row)
            part_views = await self._make_views(agent, rows)
            in_range = [view for view in part_views if low < view.listed.sort_key < high]
            views += reversed(in_range) if newest_first else in_range
            if len(rows) < size:
                break
            exchange = rows[-1].exchange
            begin = exchange.seq - 1 if newest_first else exchange.next_seq
        return views[: page.limit]

    async def list_project_messages(
        self, project: str, page: Page[ObjectRef]
    ) -> Sequence[tuple[Agent, MessageView]]:
        """Returns a page of the messages of all agents, in the order in which their exchanges began."""
        newest_first, (older_end, newer_end) = page.newest_first, page.ends
        low = (-1, -1, 0) if older_end is None else await self._get_sort_key(project, older_end)
        high = (LAST_NUMBER, 0, 0) if newer_end is None else await self._get_sort_key(project, newer_end)
        entries: list[tuple[Agent, MessageView]] = []
        begin, end = (high[0] + 1, low[0] - 1) if newest_first else (low[0] - 1, high[0] + 1)
        while len(entries) < page.limit:
            size = min(_MAX_ROWS, page.limit - len(entries))
            part = Page(begin, end, size, newest_first)
            rows = await self._store.messages.list_page_of_project(project, part)
            for agent, row in rows:
                views = await self._make_views(agent, [row])
                row_id = row.exchange.id
                in_range = [(agent, view) for view in views if low < (row_id, *view.listed.sort_key) < high]
                entries += reversed(in_range) if newest_first else in_range
            if len(rows) < size:
                break
            begin = rows[-1][1].exchange.id
        return entries[: page.limit]

    async def _get_sort_key(self, project: str, ref: ObjectRef) -> tuple[int, int, int]:
        """Returns a message's key in the order of all agents' messages: its exchange's row, and its key in it."""
        row = await self._store.messages.get_exchange_row(project, ref.uid, ref.seq)
        return row, *make_message_sort_key(ref.seq, ref.hidden)

    async def get(self, agent: Agent, ref: ObjectRef) -> MessageView:
        """Returns a message. Raises: NotFound."""
        with suppress(NotFound):
            row = await self._store.messages.get_exchange(agent.id, ref.seq)
            for view in await self._make_views(agent, [row]):
                if (view.listed.seq, view.listed.hidden_index) == (ref.seq, ref.hidden):
                    return view
        message_id = make_id_with_seq("message", agent.uid, ref.seq, hidden=ref.hidden)
        raise NotFound(f"there is no message {message_id!r}")

    async def rewrite(self, agent: Agent, ref: ObjectRef, text: str) -> MessageView:
        """Gives a message another text, which is shown, recalled and sent from now on. Raises: BadRequest, NotFound."""
        view = await self._get_changeable(agent, ref)
        edit = partial(rewrite_message, seq=ref.seq, text=text)
        try:
            await self._store.messages.rewrite(agent, ref.seq, edit)
        except CannotRewrite as error:
            raise BadRequest(f"This message cannot have another text: {error}.") from error
        return await self.get(agent, ObjectRef(ref.uid, view.listed.seq))

    async def delete(self, agent: Agent, ref: ObjectRef) -> None:
        """Forgets a message, with the facts and summaries that were made of it. Raises: BadRequest, NotFound."""
        await self._get_changeable(agent, ref)
        await self._store.forgetting.forget(agent.id, ForgetTarget(message_seqs=[ref.seq]))

    async def reset(self, agent: Agent) -> None:
        """Resets an agent's own conversation: its runs end and its messages are erased.

        Facts, passages and blocks that came from the conversation stay.
        """
        conversation = await find_conversation(self._store, agent, DEFAULT_CONVERSATION)
        if conversation is not None:
            await erase_conversation(self._store, agent, conversation.id, keeps_memory=True, at=self._now())

    async def list_numbers(self, agent: Agent, conversation_name: str) -> Sequence[int]:
        """Returns the numbers of at most `MAX_LISTED_NUMBERS` messages in a conversation's window, oldest first."""
        conversation = await find_conversation(self._store, agent, conversation_name)
        if conversation is None:
            return []
        return await self._store.messages.list_window_numbers(agent.id, conversation.id, MAX_LISTED_NUMBERS)

    async def list_numbers_by_agent(self, agents: Sequence[Agent]) -> Mapping[int, Sequence[int]]:
        """Returns `list_numbers` of the `default` conversations of several agents, by the rows of the agents."""
        return await self._store.messages.list_window_numbers_by_agent(
            [agent.id for agent in agents], DEFAULT_CONVERSATION, MAX_LISTED_NUMBERS
        )

    async def _get_changeable(self, agent: Agent, ref: ObjectRef) -> MessageView:
        """Returns a message that may be changed. Raises: BadRequest, NotFound."""
        if ref.hidden is not None:
            raise BadRequest("A message of a hidden round is a part of its reply: change or delete that.")
        return await self.get(agent, ref)

    async def _make_views(self, agent: Agent, rows: Sequence[ListedExchange]) -> Sequence[MessageView]:
        """Returns the messages of exchanges, in the order of the conversation."""
        messages = {row.exchange.id: list_messages(row.exchange) for row in rows}
        results = [row for row in rows if any(message.is_result for message in messages[row.exchange.id])]
        by_id = await self._load_with_parents(agent, rows, results)
        calls = {exchange_row: map_calls_to_tool_names(row.exchange) for exchange_row, row in by_id.items()}
        views: list[MessageView] = []
        for row in sorted(rows, key=lambda row: row.exchange.seq):
            exchange = row.exchange
            parent = by_id.get(row.exchange.parent or 0)
            waiting = await self._load_waiting(agent, exchange) if row.waiting else {}
            tool_names = {**calls.get(exchange.parent or 0, {}), **calls[exchange.id]}
            for message in messages[exchange.id]:
                maker = _choose_calling_exchange(row, parent) if message.is_result else row
                views.append(
                    MessageView(
                        listed=message,
                        conversation_uid=row.conversation_uid,
                        key=row.key,
                        run_uid=maker.run_uid,
                        step_seq=None if maker.run_uid is None else maker.exchange.seq,
                        waiting=waiting if message.is_reply and message.hidden_index is None else {},
                        tool_names=tool_names,
                    )
                )
        return views

    async def _load_with_parents(
        self, agent: Agent, rows: Sequence[ListedExchange], results: Sequence[ListedExchange]
    ) -> dict[int, ListedExchange]:
        """Returns the exchanges in `rows`, and the parents of those in `results`, by row.

        A parent made the calls that the results answer.
        """
        by_id = {row.exchange.id: row for row in rows}
        parents = {row.exchange.parent for row in results if row.exchange.parent is not None}
        if missing := parents - by_id.keys():
            by_id |= await self._store.messages.load_exchanges(agent.id, sorted(missing))
        return by_id

    async def _load_waiting(self, agent: Agent, exchange: Exchange) -> Mapping[str, WaitKind]:
        """Returns the kind of answer for which each waiting call of a conversation waits, by call id."""
        step = await self._store.runs.find_waiting_step(agent.id, exchange.conversation_row)
        return {} if step is None else await load_waiting_calls(self._store, step, exchange)


def _choose_calling_exchange(row: ListedExchange, parent: ListedExchange | None) -> ListedExchange:
    """Returns the exchange that made the calls for the results in `row`: `parent`, if its run goes on in `row`."""
    if parent is not None and parent.run_uid is not None and row.run_uid in (None, parent.run_uid):
        return parent
    return row
