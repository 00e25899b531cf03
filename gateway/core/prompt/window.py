"""Which messages fit the token budget, and what is left out of a long conversation.

A cut is a pure function of the list, so that a caller who resends everything gets the same first message
again without anything being stored. Let T be the tokens of the list, H the high water, S the step to the low:

    T <= H    everything is kept
    T >  H    ceil((T - H) / S) * S tokens or a little more leave from the head

While the list grows by S the amount stays the same, and with it the prefix that the provider has cached; then
it jumps once. Between H - S and H tokens are kept. Where the cut may fall: before the user message that opens
a turn, or, with that opening kept, between two rounds of its turn; never between a tool call and its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

# Chosen: a fifth leaves at a time, so the cached prefix breaks once per fifth of the context.
STEP_SHARE = 5
# Chosen, for requests that do not say how long the reply may get.
DEFAULT_RESERVE_TOKENS = 4_096

SYSTEM = frozenset({"system", "developer"})
OPENERS = SYSTEM | {"user"}
ANSWERS = frozenset({"tool", "function"})


@dataclass(frozen=True, slots=True)
class Budget:
    """high: tokens the list may take, system message excluded. step: how far below it a cut goes."""

    high: int
    step: int


@dataclass(frozen=True, slots=True)
class WindowItem:
    """One message as the window sees it.

    bound: never less than its tokens; its bytes will do. calls: ids of the tool calls it makes.
    answers: the id of the call it is the result of.
    """

    role: str
    bound: int
    calls: tuple[str, ...] = ()
    answers: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a list that goes upstream. kept: ranges of indices, ascending."""

    kept: tuple[range, ...]
    evicted_tokens: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.evicted_tokens

    @property
    def indices(self) -> list[int]:
        return [index for kept in self.kept for index in kept]


def plan_budget(capacity: int, *, max_tokens: int | None = None, fixed_tokens: int = 0) -> Budget:
    """Returns the budget of one request. capacity: the model's context in tokens.

    max_tokens: the request's, for the reply.
    fixed_tokens: what is sent besides the list, such as the system message and the tools.
    """
    reserve = min(DEFAULT_RESERVE_TOKENS if max_tokens is None else max(0, max_tokens), capacity // 4)
    step = max(1, capacity // STEP_SHARE)
    # A clock in the system message must not move the cut.
    grain = max(1, step // 8)
    high = max(0, capacity - reserve - -(-fixed_tokens // grain) * grain)
    while step > 1 and step > high // 2:
        # A large system message: halving, so that the amounts stay multiples of each other.
        step //= 2
    return Budget(high, step)


def describe(message: Mapping[str, Any], bound: int) -> WindowItem:
    """Returns a chat message as the window sees it; fields of the wrong type are passed over."""
    role = message.get("role")
    calls = message.get("tool_calls")
    ids = [call.get("id") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    answers = message.get("tool_call_id")
    return WindowItem(
        role=role if isinstance(role, str) else "",
        bound=bound,
        calls=tuple(call_id for call_id in ids if isinstance(call_id, str)),
        answers=answers if isinstance(answers, str) else None,
    )


def fit_window(elements: Sequence[WindowItem], budget: Budget, count: Callable[[int], int]) -> Window:
    """Chooses what is kept of a list, oldest first, without its leading system message.

    count: the tokens of the element at an index; asked only where the bounds do not fit. System messages that
    stand at the head all the same are kept.
    """
    size = len(elements)
    if sum(element.bound for element in elements) <= budget.high:
        return Window((range(size),))
    before = [0, *accumulate(count(index) for index in range(size))]
    excess = before[size] - budget.high
    if excess <= 0:
        return Window((range(size),))
    cuts = list(_cuts(elements, before))
    # Whole steps leave at a time, so that the next messages do not move the cut, and the cached prefix holds.
    wanted = -(-excess // budget.step) * budget.step
    enough = [cut for cut in cuts if cut.tokens >= wanted] or [cut for cut in cuts if cut.tokens >= excess]
    # Little of the list may go: then it is what is enough for once, else all of it.
    chosen = next(iter([*enough, *cuts[-1:]]), None)
    if chosen is None:
        return Window((range(size),))
    kept = tuple(part for part in (*chosen.pinned, range(chosen.index, size)) if part)
    return Window(kept, chosen.tokens)


def may_begin(elements: Sequence[WindowItem], index: int) -> bool:
    """Returns whether a list may begin here, with all before it gone: where a turn opens, and not behind a call."""
    return elements[index].role in OPENERS and not _splits_a_call(elements)[index]


@dataclass(frozen=True, slots=True)
class _WindowCut:
    """A place where the list may begin anew. tokens: what leaves by it; it grows from cut to cut."""

    index: int
    pinned: tuple[range, ...]
    tokens: int


def _cuts(elements: Sequence[WindowItem], before: Sequence[int]) -> Iterator[_WindowCut]:
    """Yields every allowed cut, oldest first; the last one still keeps the last user message and round."""
    size = len(elements)
    lead = next((i for i, element in enumerate(elements) if element.role not in SYSTEM), size)
    split = _splits_a_call(elements)
    last_user = max((i for i, element in enumerate(elements) if element.role == "user"), default=-1)
    opening: range | None = None
    for index in range(lead, size):
        element = elements[index]
        previous = elements[index - 1].role if index > lead else ""
        pinned: tuple[range, ...] = (range(lead),)
        if element.role in OPENERS and _opens_a_turn(elements, index, previous, last_user):
            opening = range(index, index + 1)
        elif opening is None:
            # The list began in the middle of a turn: no user message to start on.
            continue
        elif element.role in OPENERS and opening.stop == index:
            # The rest of a run such as [system, user].
            opening = range(opening.start, index + 1)
            continue
        elif element.role in ANSWERS or opening.stop == index:
            # A result, or the turn's first round, which begins where the turn does.
            continue
        else:
            pinned = (range(lead), opening)
        tokens = before[index] - sum(before[part.stop] - before[part.start] for part in pinned)
        if tokens > 0 and not split[index]:
            yield _WindowCut(index, pinned, tokens)


def _opens_a_turn(elements: Sequence[WindowItem], index: int, previous: str, last_user: int) -> bool:
    """Returns whether a turn begins here: with a user message, or the system messages that lead up to one."""
    if index > last_user:
        return False
    if elements[index].role == "user":
        # Else the turn began with the system message before it.
        return previous not in SYSTEM
    if previous in SYSTEM:
        return False
    upcoming = next(i for i in range(index, len(elements)) if elements[i].role not in SYSTEM)
    return elements[upcoming].role == "user"


def _splits_a_call(elements: Sequence[WindowItem]) -> list[bool]:
    """Returns for each index whether a list that begins there would have a result without its call."""
    # Ids come again in some clients; the newest caller is meant.
    callers: dict[str, int] = {}
    nearest = -1
    changes = [0] * (len(elements) + 1)
    for index, element in enumerate(elements):
        if element.role in ANSWERS:
            caller = callers.get(element.answers, nearest) if element.answers is not None else nearest
            if caller >= 0:
                changes[caller + 1] += 1
                changes[index + 1] -= 1
        elif element.role == "assistant":
            if element.calls:
                nearest = index
            callers.update(dict.fromkeys(element.calls, index))
    return [open_calls > 0 for open_calls in accumulate(changes[:-1])]
