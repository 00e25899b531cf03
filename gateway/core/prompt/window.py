"""The window: the part of a long conversation that fits the token budget.

A cut is a pure function of the list, so that a caller who resends everything gets the same first message again without
anything being stored. Let T be the tokens of the list, H the most that it may have (`Budget.max_list_tokens`) and S the
step by which a cut goes below H (`Budget.step_tokens`):

    T <= H    everything stays
    T >  H    ceil((T - H) / S) * S tokens or a little more are cut from the front

While the list grows by S, the same messages are left out and the prefix that the provider has cached stays; then the
cut moves once. Between H - S and H tokens stay. A cut may fall before the user message that opens a turn, or, after
that message, between two rounds of its turn; never between a tool call and its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from msgspec import Struct

from gateway.core.agent import MessageBounds
from gateway.core.roles import RESULT_ROLES, SYSTEM_ROLES

# A cut removes a fifth of the context, so the provider's cached prefix breaks once per fifth. Not measured: a larger
# share loses more of the conversation at once, a smaller one breaks the prefix more often.
_STEPS_IN_CONTEXT = 5
# The grains of a step. The tokens outside of the list are rounded up to a grain, so that a clock in the system message
# does not move the cut. Not measured.
_GRAINS_IN_STEP = 8
# The tokens that are left for the reply where the request sets no limit. Not measured: fewer cut a long reply short,
# more take room from the conversation.
_DEFAULT_RESERVE_TOKENS = 4_096
# At most this share of the context is left for the reply: a client may allow more than a small model has. Not measured.
_MAX_RESERVE_SHARE = 1 / 4

# The roles of the messages that may open a turn.
OPENERS = SYSTEM_ROLES | {"user"}
# The role that the window gives a nudge. It is no opener: a nudge is a part of its turn, like a reply.
_NUDGE_ROLE = "nudge"


class Budget(Struct, frozen=True):
    """The tokens that the list may take."""

    # The most tokens of the list without the system message.
    max_list_tokens: int
    # A cut goes this far below `max_list_tokens`.
    step_tokens: int
    # The most tokens of the list and a note together.
    max_tokens_with_note: int


class WindowItem(Struct, frozen=True):
    """One message as the window sees it."""

    # The role of the message.
    role: str
    # An upper bound of the message's tokens, such as its bytes.
    token_bound: int
    # The ids of the tool calls that the message makes.
    call_ids: tuple[str, ...] = ()
    # The id of the call that the message answers; None: it is no result, or names no call.
    answered_id: str | None = None


class Window(Struct, frozen=True):
    """The part of a list that goes upstream."""

    # Ranges of indices, ascending.
    ranges: tuple[range, ...]
    # The tokens of the messages that leave; 0: all messages stay.
    evicted_tokens: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.evicted_tokens


class _WindowCut(Struct, frozen=True):
    """An index at which the list may begin."""

    # The index of the first message after the cut.
    index: int
    # The ranges that stay before the index: the leading system messages and the openers of a turn.
    pinned: tuple[range, ...]
    # The tokens of the messages that leave.
    evicted_tokens: int


def reserve_for_reply(capacity: int, max_tokens: int | None) -> int:
    """Returns the tokens of a context that are left for the reply. max_tokens: the limit that the request sets."""
    reserve = _DEFAULT_RESERVE_TOKENS if max_tokens is None else max_tokens
    return min(reserve, int(capacity * _MAX_RESERVE_SHARE))


def plan_budget(
    capacity: int, *, max_tokens: int | None = None, fixed_tokens: int = 0, note_tokens: int = 0
) -> Budget:
    """Returns the budget of one request.

    capacity: the model's context in tokens.
    max_tokens: the request's limit for the reply.
    fixed_tokens: the tokens that are sent besides the list, such as the system message and the tools.
    note_tokens: the tokens that are left free for a note.
    """
    reserve = reserve_for_reply(capacity, max_tokens)
    step = max(1, capacity // _STEPS_IN_CONTEXT)
    grain = max(1, step // _GRAINS_IN_STEP)
    max_tokens_with_note = max(0, capacity - reserve - fixed_tokens)
    # A note may use the tokens that the rounding leaves, too.
    rounded_fixed_tokens = -(-fixed_tokens // grain) * grain
    max_list_tokens = max(
        0, min(capacity - reserve - rounded_fixed_tokens, max_tokens_with_note - note_tokens)
    )
    while step > 1 and step > max_list_tokens // 2:
        # A large system message leaves little room. Halving keeps the possible steps multiples of each other.
        step //= 2
    return Budget(max_list_tokens, step, max_tokens_with_note)


def make_window_item(message: Mapping[str, Any], token_bound: int, *, is_nudge: bool = False) -> WindowItem:
    """Returns a chat message as the window sees it; fields of the wrong type are ignored.

    is_nudge: True if an agent's rules sent the message to its model (`private.is_nudge`).
    """
    role = _NUDGE_ROLE if is_nudge else message.get("role")
    calls, answers = message.get("tool_calls"), message.get("tool_call_id")
    ids = [call.get("id") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else ()
    return WindowItem(
        role if isinstance(role, str) else "",
        token_bound,
        tuple([call_id for call_id in ids if isinstance(call_id, str)]),
        answers if isinstance(answers, str) else None,
    )


def fit_window(items: Sequence[WindowItem], budget: Budget, count: Callable[[], Iterable[int]]) -> Window:
    """Chooses the part of a list that stays.

    items: oldest first, without the leading system message. System messages at the front of the items always stay.
    count: returns the tokens of each item; it is called only if the upper bounds exceed the budget.
    """
    size = len(items)
    if sum(item.token_bound for item in items) <= budget.max_list_tokens:
        return Window((range(size),))
    tokens_before = [0, *accumulate(count())]
    excess = tokens_before[size] - budget.max_list_tokens
    if excess <= 0:
        return Window((range(size),))
    cuts = list(_list_cuts(items, tokens_before))
    if not cuts:
        return Window((range(size),))
    # Whole steps leave at a time, so that the next messages do not move the cut, and the cached prefix holds.
    whole_steps = -(-excess // budget.step_tokens) * budget.step_tokens
    chosen_cut = _find_first_cut(whole_steps, cuts) or _find_first_cut(excess, cuts) or cuts[-1]
    ranges = tuple(part for part in (*chosen_cut.pinned, range(chosen_cut.index, size)) if part)
    return Window(ranges, chosen_cut.evicted_tokens)


def choose_window_start(items: Sequence[WindowItem], bounds: MessageBounds) -> int:
    """Returns the index at which the window begins if only the number of messages counts; 0: the list stays whole.

    A list of more than `max_messages` begins at its newest user message that leaves at least `min_messages`. No turn is
    split.
    """
    size = len(items)
    if size <= bounds.max_messages:
        return 0
    inside_call = _flag_open_calls(items)
    newest_first = range(size - bounds.min_messages, 0, -1)
    return next((i for i in newest_first if items[i].role == "user" and not inside_call[i]), 0)


def may_begin(items: Sequence[WindowItem], index: int) -> bool:
    """Returns whether a list may begin at this index: with an opener, and with no result of a call before it."""
    return items[index].role in OPENERS and not _flag_open_calls(items)[index]


def _find_first_cut(tokens: int, cuts: Sequence[_WindowCut]) -> _WindowCut | None:
    """Returns the first cut that frees at least this many tokens, or None."""
    return next((cut for cut in cuts if cut.evicted_tokens >= tokens), None)


def _list_cuts(items: Sequence[WindowItem], tokens_before: Sequence[int]) -> Iterator[_WindowCut]:
    """Yields every allowed cut, oldest first: each frees more tokens than the cut before it.

    Even the last cut leaves the last user message and the last round.

    tokens_before: the tokens of all items before each index.
    """
    size = len(items)
    lead_end = next((i for i, item in enumerate(items) if item.role not in SYSTEM_ROLES), size)
    inside_call = _flag_open_calls(items)
    last_user = max((i for i, item in enumerate(items) if item.role == "user"), default=-1)
    openers: range | None = None
    for index in range(lead_end, size):
        item = items[index]
        previous = items[index - 1].role if index > lead_end else ""
        pinned: tuple[range, ...] = (range(lead_end),)
        if item.role in OPENERS and _begins_turn(items, index, previous, last_user):
            openers = range(index, index + 1)
        elif openers is None:
            # The list began in the middle of a turn, so there is no user message to begin with.
            continue
        elif item.role in OPENERS and openers.stop == index:
            # This message continues openers such as [system, user].
            openers = range(openers.start, index + 1)
            continue
        elif item.role in RESULT_ROLES or openers.stop == index:
            # No cut falls before a tool's result, nor before a turn's first round, which begins where the turn does.
            continue
        else:
            pinned = (range(lead_end), openers)
        pinned_tokens = sum(tokens_before[part.stop] - tokens_before[part.start] for part in pinned)
        evicted_tokens = tokens_before[index] - pinned_tokens
        if evicted_tokens > 0 and not inside_call[index]:
            yield _WindowCut(index, pinned, evicted_tokens)


def _begins_turn(items: Sequence[WindowItem], index: int, previous: str, last_user: int) -> bool:
    """Returns whether a turn begins at an index: with a user message, or with system messages right before one."""
    if index > last_user:
        return False
    if items[index].role == "user":
        # After a system message the turn began with that message.
        return previous not in SYSTEM_ROLES
    if previous in SYSTEM_ROLES:
        return False
    upcoming = next(i for i in range(index, len(items)) if items[i].role not in SYSTEM_ROLES)
    return items[upcoming].role == "user"


def _flag_open_calls(items: Sequence[WindowItem]) -> list[bool]:
    """Returns a flag for each index: a list that begins there has a result without its call."""
    # Some clients use an id twice; a result then belongs to the newest call.
    call_indices: dict[str, int] = {}
    newest_call_index = -1
    # For each index: the change, since the index before, in the number of calls that a cut would part from their
    # results.
    changes = [0] * (len(items) + 1)
    for index, item in enumerate(items):
        if item.role in RESULT_ROLES:
            call_index = newest_call_index
            if item.answered_id is not None:
                call_index = call_indices.get(item.answered_id, newest_call_index)
            if call_index >= 0:
                changes[call_index + 1] += 1
                changes[index + 1] -= 1
        elif item.role == "assistant":
            if item.call_ids:
                newest_call_index = index
            call_indices.update(dict.fromkeys(item.call_ids, index))
    return [open_calls > 0 for open_calls in accumulate(changes[:-1])]
