"""The choice of the messages that go into a note, among the messages that a search has found.

Sans-IO. It knows nothing of the search; candidates come best first. `note_query.py` has the query, `note_draft.py` the
note while it is filled, `note_text.py` its text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

from msgspec import Struct

from gateway.core.prompt.note_draft import NoteDraft, NoteLine, fold_line
from gateway.core.prompt.note_query import SEARCHED_CHARS
from gateway.core.prompt.note_text import EMPTY_TOKENS, SELECTION_TOKENS, NoteHit
from gateway.core.prompt.shown_content import SHOWN_SHARE, ShownContent
from gateway.core.words import list_folded_words, stem
from storage.records import Atom, Message

# A long turn is cut to this length, because whole turns crowd the others out (measured: 6 points at 2,000 tokens).
CUT_CHARS = 600
# The same length for a question about the order of many events: the answer stands in many turns. Measured with 600,
# 400, 300 and 200 on all steps of a project: 36, 38, 39 and 40% of the sentences; on three steps 73, 72, 73 and 72%.
ORDER_CHARS = 200
# An excerpt of a selection is shorter: the messages were chosen by how they begin.
_SELECTION_CHARS = 200
# The least share of a message's words in a fact that replaces the message. Not measured; a smaller share drops messages
# that say more than the fact.
_FACT_SHARE = 2 / 3
# The share of the budget that a selection of the whole memory takes. A selection is shown if the message names nothing
# to look for, so most of the budget would be noise. Not measured.
_SELECTION_SHARE = 1 / 4
# The fewest and the most tokens of a selection. Not measured.
_SELECTION_MIN_TOKENS = 128
_SELECTION_MAX_TOKENS = 200


class Choice(Struct, frozen=True):
    """The messages chosen for a note, and the numbers of other candidates by the reason why they are left out."""

    # The chosen messages, in the order of their times.
    hits: Sequence[NoteHit] = ()
    # The candidates that the notes do not show yet. A candidate that is in no other list had no room.
    tried_seqs: Sequence[int] = ()
    # The candidates that repeat another candidate or the query, or that are replaced by facts.
    repeated_seqs: Sequence[int] = ()
    # The candidates of which the notes show the best part.
    shown_seqs: Sequence[int] = ()


NO_CHOICE = Choice()


def choose_hits(
    candidates: Sequence[Message],
    query: str,
    *,
    exclude_atoms: Set[Atom] = frozenset(),
    notes: Iterable[str] = (),
    shared_lines: Collection[str] = frozenset(),
    budget_tokens: int = 1_000,
    cut_chars: int = CUT_CHARS,
    is_selection: bool = False,
    is_order: bool = False,
) -> Choice:
    """Chooses the candidates worth a line.

    A message is left out if it stands in the window, or if it repeats another message, the query or a note.

    candidates: the messages that were found, best first.
    exclude_atoms: the atoms of the messages in the window.
    notes: the texts of the notes on this path.
    shared_lines: lines that stand in the question too, and are not shown.
    budget_tokens: the most tokens of the whole note as `render_note` makes it, without the line that names its mark.
    cut_chars: the most characters of one message that are shown.
    is_selection: True if the candidates are a selection of the whole memory (`Recall.select_messages`), as the note
        states. A message that facts cover for the most part is left out.
    is_order: True if the query asks for the order of many events, each of which one sentence states.
    """
    if is_selection:
        budget_tokens -= SELECTION_TOKENS
        cut_chars = min(cut_chars, _SELECTION_CHARS)
    shown_content = ShownContent(exclude_atoms, notes, query, shared_lines)
    draft = NoteDraft(budget_tokens - EMPTY_TOKENS, cut_chars, query, shown_content, is_order=is_order)
    if not draft.has_room:
        return Choice(tried_seqs=[message.seq for message in candidates])
    tried_candidates = _replace_by_facts(candidates)
    replaced_seqs = {message.seq for message in candidates}.difference(
        [message.seq for message in tried_candidates]
    )
    lines = _list_new_lines(tried_candidates, shown_content)
    for line in lines:
        draft.add(line)
        if not draft.has_room:
            break
    tried_seqs = [line.message.seq for line in lines]
    return Choice(draft.list_hits(), tried_seqs, [*replaced_seqs, *draft.repeated_seqs], draft.shown_seqs)


def shows_all(
    notes: Sequence[str], messages: Sequence[Message], query: str, *, exclude_atoms: Set[Atom]
) -> bool:
    """Returns whether the notes show each of these messages, so that `choose_hits` would leave them all out.

    messages: oldest first; the newest messages are the least likely to be shown.
    """
    # Most memories say more than the notes have room for.
    if SHOWN_SHARE * sum([len(message.text) for message in messages]) > sum(map(len, notes)):
        return False
    shown_content = ShownContent(exclude_atoms, notes, query)
    return all(shown_content.find_new_line(message) is None for message in reversed(messages))


def _list_new_lines(candidates: Sequence[Message], shown_content: ShownContent) -> list[NoteLine]:
    """Returns the lines of the candidates that are not shown yet, in the order in which they are tried.

    A message stands before the reply that repeats it word for word.
    """
    lines: dict[int, NoteLine] = {}
    for message in candidates:
        text = shown_content.find_new_line(message)
        if text is not None:
            lines[message.seq] = NoteLine(message, text, fold_line(text))
    ordered: dict[int, NoteLine] = {}
    for seq, line in lines.items():
        previous = line.message.previous or 0
        if previous not in ordered and previous in lines and lines[previous].folded in line.folded:
            ordered[previous] = lines[previous]
        ordered.setdefault(seq, line)
    return list(ordered.values())


def _replace_by_facts(candidates: Sequence[Message]) -> Sequence[Message]:
    """Returns the candidates. Facts that say most of the message from which they were learned replace the message."""
    facts_by_source: dict[int, list[Message]] = {}
    for message in candidates:
        for exchange_row in message.sources if message.kind == "fact" else ():
            facts_by_source.setdefault(exchange_row, []).append(message)
    if not facts_by_source:
        return candidates
    with_facts: dict[int, Message] = {}
    for message in candidates:
        replacements = [message]
        if message.kind == "message" and message.exchange_row in facts_by_source:
            facts = facts_by_source[message.exchange_row]
            words = _list_words(message.text)
            fact_words = frozenset().union(*(_list_words(fact.text) for fact in facts))
            if words and len(words & fact_words) >= _FACT_SHARE * len(words):
                replacements = [fact for fact in facts if words & _list_words(fact.text)]
        for each in replacements:
            with_facts.setdefault(each.seq, each)
    return [*with_facts.values()]


def _list_words(text: str) -> frozenset[str]:
    """Returns the words of a text without endings. Short words count only if they are numbers or not of ASCII."""
    words = list_folded_words(text[:SEARCHED_CHARS])
    return frozenset(stem(word) for word in words if len(word) > 3 or not word.isascii() or word.isdigit())


def limit_selection(budget_tokens: int) -> int:
    """Returns the tokens that a selection of the whole memory may take. budget_tokens: the most tokens of any note."""
    return min(
        budget_tokens,
        max(_SELECTION_MIN_TOKENS, int(budget_tokens * _SELECTION_SHARE)),
        _SELECTION_MAX_TOKENS,
    )
