"""The standing facts of a user as a block of the memory section."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from gateway.core.dates import render_day
from gateway.core.memory.orders import get_own_text
from gateway.core.memory.standing import MAX_CHARS, is_standing, read_first_clause
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.tags import escape_tags
from storage.records import Block, StandingFact

# The label of the block with the standing facts.
LABEL = "always"
# The most tokens (estimated) that the block has in the memory section, since each conversation pays for them. Chosen,
# not measured.
MAX_TOKENS = 120
# The fewest tokens of the line of a fact: with fewer left, no further fact is tried.
_MIN_LINE_TOKENS = 4
# The tokens that are counted for the line of a month. Not measured.
_MONTH_TOKENS = 5
# The description of the block, for the model.
_DESCRIPTION = "What the user has stated as always true. The newest stand last. Heed them where they matter."
# The number of characters of year and month in an ISO date.
_MONTH_CHARS = 7


class StandingBlock(NamedTuple):
    """The standing facts as a block of the memory section."""

    # The block; None: no fact is shown.
    block: Block | None = None
    # The numbers of the facts that the block shows.
    shown_seqs: tuple[int, ...] = ()


class _FactLine(NamedTuple):
    """A fact with its line in the block."""

    # The fact.
    fact: StandingFact
    # The line of the fact.
    line: str


def make_standing_block(
    facts: Sequence[StandingFact], blocks: Iterable[Block], shown_seqs: Collection[int] | None
) -> StandingBlock:
    """Returns the block of standing facts.

    facts: the current facts, in the order in which the block takes them.
    blocks: the other blocks of the section. If one of these has the label of standing facts, no block is made.
    shown_seqs: the numbers of facts that the block shows already. It goes on to show these facts, for the provider's
        prompt cache; the room of a fact that is gone goes to other facts. None: the block is made again from all facts.
    """
    shown_facts = [fact for fact in facts if fact.seq in (shown_seqs or ())]
    if shown_seqs is not None and len(shown_facts) == len(shown_seqs):
        chosen_lines = [_FactLine(fact, _make_line(fact)) for fact in shown_facts]
    else:
        chosen_lines = _choose_fitting([*shown_facts, *(fact for fact in facts if fact not in shown_facts)])
    if not chosen_lines or any(block.label == LABEL for block in blocks):
        return StandingBlock()
    chosen_lines.sort(key=lambda each: each.fact.seq, reverse=True)
    lines_by_month: dict[str, list[str]] = {}
    for fact, line in reversed(chosen_lines):
        lines_by_month.setdefault(_read_month(fact), []).append(f"- {line}")
    lines = [line for month, month_lines in lines_by_month.items() for line in (f"[{month}]", *month_lines)]
    block = Block(
        id=0, label=LABEL, description=_DESCRIPTION, value="\n".join(lines), limit=0, read_only=True
    )
    return StandingBlock(block, tuple(each.fact.seq for each in chosen_lines))


def fit_into_block(facts: Sequence[StandingFact]) -> bool:
    """Returns whether the block has room for all of these facts."""
    return len(_choose_fitting(facts)) == len(facts)


def _choose_fitting(facts: Sequence[StandingFact]) -> list[_FactLine]:
    """Returns the facts that fit into the block: first those that a person asked for, then the first other facts."""
    fitting_lines: list[_FactLine] = []
    months: set[str] = set()
    tokens_left = MAX_TOKENS
    for fact in sorted(facts, key=lambda fact: not fact.is_manual):
        if tokens_left < _MIN_LINE_TOKENS:
            break
        line = _make_line(fact)
        month = _read_month(fact)
        # A month has a line of its own.
        tokens = estimate_tokens(f"- {line}\n") + (0 if month in months else _MONTH_TOKENS)
        if tokens <= tokens_left:
            fitting_lines.append(_FactLine(fact, line))
            months.add(month)
            tokens_left -= tokens
    return fitting_lines


def _make_line(fact: StandingFact) -> str:
    """Returns the line of a fact.

    For a sentence of a message it has the first clause if the clause alone states the fact, else the sentence.
    """
    text = get_own_text(fact.text)
    clause = read_first_clause(text)
    is_enough = text != fact.text and clause != text and is_standing(clause)
    return escape_tags((clause if is_enough else text)[:MAX_CHARS].rstrip(" ."))


def _read_month(fact: StandingFact) -> str:
    return render_day(fact.at)[:_MONTH_CHARS]
