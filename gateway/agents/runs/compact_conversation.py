"""Compaction on request: a stored conversation of an agent is summarised while the client waits."""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.run import RunRequest
from gateway.agents.runs.send_queue import MAX_SENDS
from gateway.core.conversation.kind import QueueName
from gateway.core.prompt.summary import limit_summary
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.errors import BadRequest
from gateway.run.background.compact import Compactor
from gateway.run.memory.memory_agent import check_not_paused
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_body import make_body
from gateway.run.memory.queue import QueueTicket
from gateway.run.receipt import Receipt
from gateway.run.upstream.route import make_agent_route

# The size of a model's window in tokens that is assumed if the settings do not have it.
ASSUMED_WINDOW = 128_000


class CompactedConversation(Struct, frozen=True):
    """The outcome of a compaction."""

    # The text of the new summary.
    summary: str
    # The number of messages in the prompt before the compaction.
    message_count_before: int
    # The number of messages in the next prompt after the compaction.
    message_count_after: int


async def compact_conversation(
    agent_runs: AgentRuns,
    compactor: Compactor,
    agent_uid: str,
    run_request: RunRequest,
    options: SummaryOptions,
    receipt: Receipt,
) -> CompactedConversation:
    """Summarises a conversation of an agent. Waits for the sends of the conversation that came earlier.

    run_request: a send without messages to the conversation.
    options: the options of the summary, which replace the agent's own.
    receipt: the receipt of the client's request, which counts the calls of the model.

    Raises: BadRequest if the conversation has not begun, or has nothing to summarise; NotAllowed if the memory is
        paused; UpstreamError, Overloaded if the model gave no summary; LimitReached; TooManySends; StoreError.
    """
    keeper = agent_runs.keeper
    store, conversation_name = keeper.store, run_request.conversation_name
    with QueueTicket() as ticket:
        await keeper.queues.enter(QueueName(agent_uid, conversation_name), ticket, MAX_SENDS)
        agent = (await store.defined_agents.get(run_request.scope.project, agent_uid)).agent
        check_not_paused(agent)
        prompt_before = await agent_runs.preview(run_request)
        conversation = await store.stored_paths.find_conversation(agent, conversation_name)
        if conversation is None or not conversation.last_exchange:
            raise BadRequest("Only a stored conversation that has begun can be compacted by hand.")
        summary = await compactor.compact_now(
            agent,
            conversation,
            options,
            fallback=partial(make_agent_route, compactor.settings, run_request.spec),
            max_tokens=limit_summary(prompt_before.target.context_window or ASSUMED_WINDOW),
            admit=partial(agent_runs.admit_call, receipt),
        )
        prompt_after = await agent_runs.preview(run_request)
    return CompactedConversation(summary, _count_messages(prompt_before), _count_messages(prompt_after))


def _count_messages(prompt: Prompt) -> int:
    return len(make_body(prompt)["messages"])
