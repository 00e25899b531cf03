"""Makes the write of a turn that has ended: one value, which the store commits in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from gateway.core.conversation import settle
from gateway.core.conversation.change import plan_change
from gateway.core.conversation.fast_path import finish_opening, finish_plain
from gateway.core.conversation.lookup import (
    RECENT_EXCHANGES,
    make_probes_for_list,
    make_probes_for_plain_turn,
)
from gateway.core.conversation.openings import digest_opening
from gateway.core.conversation.plan import find_lowest_change_depth
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.turn.commands import FINISHED, End, TurnOutcome
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.recall_rows import pack_recall
from gateway.run.receipt import Receipt
from storage.commands import (
    CandidateExchanges,
    MissingContents,
    PlainTurn,
    Probes,
    RecallRow,
    TurnChange,
    TurnWrite,
)
from storage.recall_record import pack_request_id
from storage.records import MemoryEdit, SentSection

# The outcome that is written with a user's message before the model is asked, so that it survives the process.
OPENED_OUTCOME = TurnOutcome(End.CANCELLED)


def make_turn_write(
    context: MemoryContext,
    prompt: Prompt,
    block_edits: BlockEdits,
    outcome: TurnOutcome,
    now: float,
    rule: settle.SettleRule | None = None,
    receipt: Receipt | None = None,
) -> TurnWrite:
    """Returns the write of a turn.

    now: the time at which the turn ended, in seconds since the epoch.
    rule: the function that settles a turn that has not finished; None: the rule for the turn's outcome.
    receipt: the receipt of the reply; None: no record of the turn's recall is written.
    """
    plan, snapshot, spec = context.plan, context.snapshot, context.request.spec
    # `settle.finish` settles a finished turn, so its exchange can be made without a look at the tree.
    is_finished = outcome.state is FINISHED
    request_end = _make_request_end(context, prompt, block_edits.edits, outcome, now)
    decide = partial(plan_change, plan=plan, request_end=request_end, rule=rule or _choose_rule(outcome))
    section = _choose_section(context, prompt)
    recall = None
    if receipt is not None and not plan.is_off_record:
        recall = make_recall_row_maker(prompt, outcome, receipt)
    return TurnWrite(
        agent=context.agent,
        key=context.request.identity.conversation_key,
        uid=context.conversation_uid,
        now=request_end.now,
        plain=_make_plain_turn(context, request_end, section) if is_finished else None,
        probes=partial(_make_probes, context),
        decide=decide,
        change=_decide_ahead(context, request_end, decide, is_finished=is_finished),
        planned_next_seq=snapshot.next_seq
        if context.opened_exchange is None
        else context.opened_exchange.next_seq,
        planned_agent_rev=snapshot.rev,
        edits=block_edits.edits,
        section=section,
        defaults=() if context.agent.is_stored else spec.own_blocks,
        shared=() if context.agent.is_stored else spec.shared_blocks,
        opening=None if context.is_plain else digest_opening(plan, request_end.now),
        has_given_uid=plan.query.makes_response,
        chars=sum(map(len, map(read_text, (*plan.messages, *request_end.full_reply)))),
        recall=recall,
    )


def _make_plain_turn(
    context: MemoryContext, request_end: RequestEnd, section: SentSection | None
) -> PlainTurn | None:
    """Returns a finished turn as one insert, which fails if the conversation has moved since it was read.

    Returns None if the turn is not plain, or begins its conversation.
    """
    conversation = context.snapshot.conversation
    if not context.is_plain or conversation is None:
        return None
    section_row = None if section is None or not section.is_stored else section.id
    return PlainTurn(finish_plain(context.plan, request_end, section_row), conversation.rev)


def _choose_rule(outcome: TurnOutcome) -> settle.SettleRule:
    """Returns the rule that settles a turn with this outcome."""
    if outcome.is_refused:
        return settle.refuse
    return settle.finish if outcome.state is FINISHED else settle.cancel


def make_recall_row_maker(
    prompt: Prompt, outcome: TurnOutcome, receipt: Receipt
) -> Callable[[], RecallRow] | None:
    """Returns a function that makes the record of the turn's recall, and notes in the receipt that there is a record.

    The writer's thread calls the function. Returns None if the turn has not searched its memory, or if its request has
    no id.
    """
    search = prompt.recall.search
    if search is None or not receipt.request_id:
        return None
    receipt.memory.has_recall_record = True
    added_ms = receipt.clock.measure_added_ms()
    ms = receipt.clock.measure_ms()

    def make() -> RecallRow:
        data = pack_recall(prompt, search, outcome, receipt, ms, added_ms)
        return RecallRow(pack_request_id(receipt.request_id), data)

    return make


def _make_request_end(
    context: MemoryContext, prompt: Prompt, edits: Sequence[MemoryEdit], outcome: TurnOutcome, now: float
) -> RequestEnd:
    """Returns the end of a request as the rules of conversations read it. edits: the turn's edits of memory."""
    shown_reply = outcome.shown_reply or {"role": "assistant", "content": ""}
    has_words = outcome.state is FINISHED or bool(outcome.text)
    full_reply = outcome.full_reply if has_words or outcome.has_hidden_results else ()
    if has_words and not full_reply:
        full_reply = (shown_reply,)
    gateway_call_ids: frozenset[str] = frozenset()
    if full_reply != (shown_reply,):  # else the client has all of the reply
        # The calls in `shown_reply` are the client's. The gateway ran the others.
        gateway_call_ids = frozenset(_list_call_ids(full_reply) - _list_call_ids([shown_reply]))
    return RequestEnd(
        id=context.exchange_row,
        full_reply=full_reply,
        shown_reply=shown_reply,
        now=now,
        notes=prompt.new_notes,
        gateway_call_ids=gateway_call_ids,
        has_edits=bool(edits),
        evicted=prompt.window.evicted,
    )


def _list_call_ids(messages: Iterable[WireMessage]) -> set[str]:
    """Returns the ids of all calls in some messages."""
    return {str(call.get("id")) for message in messages for call in message.get("tool_calls") or ()}


def _decide_ahead(
    context: MemoryContext,
    request_end: RequestEnd,
    decide: Callable[[CandidateExchanges], TurnChange],
    *,
    is_finished: bool,
) -> TurnChange | None:
    """Returns the change by a turn if its memory is still as it was read, but for the exchange that was opened since.

    Returns None if the list is plain, since such a turn is written as planned. Returns None as well if the decision
    needs contents that were not loaded, or more of a long conversation.
    """
    tree = context.tree
    conversation = context.snapshot.conversation
    opened_exchange = context.opened_exchange
    if context.is_plain or tree.is_partial or (context.exchange_row >= 0 and opened_exchange is None):
        return None
    opening = finish_opening(tree, context.plan, request_end) if is_finished else None
    if opening is not None:
        return TurnChange(opening)
    has_key = context.request.identity.conversation_key is not None
    conversation_row = conversation.id if has_key and conversation is not None else None
    min_depth = _find_min_depth(context) or 0
    exchanges = [each for each in tree if each.depth >= min_depth or not each.depth]
    if opened_exchange is not None:
        exchanges.append(opened_exchange)
        conversation_row = opened_exchange.conversation_row
    try:
        return decide(
            CandidateExchanges(
                exchanges,
                conversation_row,
                contents=tree.contents.loaded,
                forgotten_hashes=tree.forgotten_hashes,
            )
        )
    except MissingContents:
        return None


def _choose_section(context: MemoryContext, prompt: Prompt) -> SentSection | None:
    """Returns the memory section that the path has from now on, or None if it has no section."""
    if context.plan.is_off_record:
        # Nothing new is stored, and the path's section stays.
        match_point = context.plan.match.match_point
        number = match_point.section if match_point is not None else None
        return None if number is None else SentSection(number, "", {})
    return prompt.section.sent


def _find_min_depth(context: MemoryContext) -> int | None:
    """Returns the least depth at which exchanges matter to a turn, besides first exchanges, or None if any may."""
    change_depth = find_lowest_change_depth(context.tree, context.plan)
    return None if change_depth is None else max(0, change_depth - RECENT_EXCHANGES)


def _make_probes(context: MemoryContext) -> Probes:
    """Returns the probes by which the transaction of the turn reads its conversation again."""
    plan, key = context.plan, context.request.identity.conversation_key
    if context.is_plain:
        return make_probes_for_plain_turn(plan, key)
    min_depth = _find_min_depth(context)
    if min_depth is not None:
        return make_probes_for_list(plan.query, key, min_depth=min_depth)
    return make_probes_for_list(
        plan.query, key, max_exchanges=RECENT_EXCHANGES if context.tree.is_partial else None
    )
