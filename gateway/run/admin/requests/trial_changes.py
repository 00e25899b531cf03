"""Why a trial of recall chooses other texts than the search for an earlier request with the same question did."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from gateway.run.admin.page_paths import page_path
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.records.memory_records import SourceKind
from gateway.run.admin.records.request_records import ExplainedRequest, HitRecord, LeftOutRecord
from gateway.run.admin.requests.recall_trials import TrialRecord

# The kind and the number of a text.
_HitKey = tuple[SourceKind, int]


def describe_changes(request: ExplainedRequest, trial: TrialRecord) -> str:
    """Returns a sentence on what is known of why both chose other texts; "": they chose the same, or nothing is known.

    request: it has looked for memory itself.
    """
    request_hits = _index_hits(request.chosen)
    trial_hits = _index_hits(trial.chosen)
    added_keys = trial_hits.keys() - request_hits.keys()
    gone_keys = request_hits.keys() - trial_hits.keys()
    forgotten_count = sum(hit.forgotten for hit in request.chosen)
    # The texts of one memory are numbered in one order. The question itself is one of the request's exchange.
    later_keys = {key for key in added_keys if request.exchange is not None and key[1] >= request.exchange}
    # A trial has no conversation, so it finds messages that the request's conversation showed: all, if none has left.
    own_path = page_path("m", request.memory or "", "c", request.conversation or "")
    shown_keys = added_keys & _list_left_out(request.left_out, "shown")
    if request.conversation and not request.window.evicted:
        shown_keys |= {
            key
            for key in added_keys - later_keys
            if (trial_hits[key].href or "").partition("?")[0] == own_path
        }
    muted_keys = gone_keys & _list_left_out(trial.left_out, "muted")
    ended_keys = {key for key in gone_keys if request_hits[key].until is not UNSET}
    counted_clauses = (
        (len(later_keys), "texts", "came with that question or later"),
        (forgotten_count, "texts", "that it had went when something was forgotten"),
        (len(ended_keys), "facts", "that it had ended since"),
        (len(muted_keys), "facts", "that it had must not be mentioned now"),
        (len(shown_keys), "texts", "stood in its conversation already"),
    )
    clauses = [f"{count_noun(count, noun)} {words}" for count, noun, words in counted_clauses if count]
    if (added_keys or gone_keys) and (search_clause := _describe_search(request, trial)):
        clauses.append(search_clause)
    return f"The reply was made with other texts: {'; '.join(clauses)}." if clauses else ""


def _index_hits(hits: Iterable[HitRecord]) -> dict[_HitKey, HitRecord]:
    return {(hit.kind, hit.seq): hit for hit in hits if not hit.forgotten}


def _list_left_out(hits: Iterable[LeftOutRecord], reason: str) -> set[_HitKey]:
    return {(hit.kind, hit.seq) for hit in hits if hit.reason == reason}


def _describe_search(request: ExplainedRequest, trial: TrialRecord) -> str:
    """Returns a clause on whether one of both alone has searched by meaning; "": neither, both, or it is not known."""
    request_hits = [hit for hit in (*request.chosen, *request.left_out) if hit.score is not None]
    trial_hits = [hit for hit in (*trial.chosen, *trial.left_out) if hit.score is not None]
    if not request_hits or not trial_hits:
        return ""
    request_has_meaning = any(hit.meaning is not None for hit in request_hits)
    trial_has_meaning = any(hit.meaning is not None for hit in trial_hits)
    if request_has_meaning == trial_has_meaning:
        return ""
    return f"memory was searched {'by meaning, too' if request_has_meaning else 'by words alone'}"
