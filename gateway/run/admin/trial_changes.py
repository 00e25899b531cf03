"""Why a trial of recall chooses other texts than the search for an earlier request with the same question did."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from gateway.run.admin.memory_records import SourceKind
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.recall_trials import TrialRecord
from gateway.run.admin.request_records import ExplainedRequest, HitRecord, LeftOutRecord

# The kind and the number of a text.
_HitKey = tuple[SourceKind, int]


def describe_changes(request: ExplainedRequest, trial: TrialRecord) -> str:
    """Returns a sentence on what is known of why both chose other texts; "": they chose the same, or nothing is known.

    request: it has looked for memory itself.
    """
    then, now = _index_hits(request.chosen), _index_hits(trial.chosen)
    added, gone = now.keys() - then.keys(), then.keys() - now.keys()
    forgotten = sum(hit.forgotten for hit in request.chosen)
    # The texts of one memory are numbered in one order. The question itself is one of the request's exchange.
    later = {key for key in added if request.exchange is not None and key[1] >= request.exchange}
    # A trial has no conversation, so it finds messages that the request's conversation showed: all, if none has left.
    own_path = page_path("m", request.memory or "", "c", request.conversation or "")
    shown = added & _list_left_out(request.left_out, "shown")
    if request.conversation and not request.window.evicted:
        shown |= {key for key in added - later if (now[key].href or "").partition("?")[0] == own_path}
    muted = gone & _list_left_out(trial.left_out, "muted")
    ended = {key for key in gone if then[key].until is not UNSET}
    clauses = [
        f"{count_noun(len(later), 'texts')} came with that question or later" if later else "",
        f"{count_noun(forgotten, 'texts')} that it had went when something was forgotten"
        if forgotten
        else "",
        f"{count_noun(len(ended), 'facts')} that it had ended since" if ended else "",
        f"{count_noun(len(muted), 'facts')} that it had must not be mentioned now" if muted else "",
        f"{count_noun(len(shown), 'texts')} stood in its conversation already" if shown else "",
        _describe_search(request, trial) if added or gone else "",
    ]
    known = [clause for clause in clauses if clause]
    return f"The reply was made with other texts: {'; '.join(known)}." if known else ""


def _index_hits(hits: Iterable[HitRecord]) -> dict[_HitKey, HitRecord]:
    return {(hit.kind, hit.seq): hit for hit in hits if not hit.forgotten}


def _list_left_out(hits: Iterable[LeftOutRecord], reason: str) -> set[_HitKey]:
    return {(hit.kind, hit.seq) for hit in hits if hit.reason == reason}


def _describe_search(request: ExplainedRequest, trial: TrialRecord) -> str:
    """Returns a clause on whether one of both alone has searched by meaning; "": neither, both, or it is not known."""
    then = [hit for hit in (*request.chosen, *request.left_out) if hit.score is not None]
    now = [hit for hit in (*trial.chosen, *trial.left_out) if hit.score is not None]
    if not then or not now:
        return ""
    by_meaning_then = any(hit.meaning is not None for hit in then)
    by_meaning_now = any(hit.meaning is not None for hit in now)
    if by_meaning_then == by_meaning_now:
        return ""
    return f"memory was searched {'by meaning, too' if by_meaning_then else 'by words alone'}"
