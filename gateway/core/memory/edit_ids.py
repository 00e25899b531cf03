"""The ids of the edits of a turn. An id names the call to which the edit belongs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

# The mark between the id of a call's first edit and the number of a later edit.
_NUMBER_MARK: Final = " #"
# The most characters of an id. Some proxies put the signature of a thought into a call's id, some kilobytes. PostgreSQL
# indexes no more than 2,704 bytes, and servers take headers of some thousand.
_MAX_ID_CHARS: Final = 200


def make_edit_id(call_id: str, number: int) -> str:
    """Returns the id of an edit, which is unique in its turn. number: the number of the edit in the call, from 0."""
    first_id = shorten_call_id(call_id)
    return first_id if number == 0 else f"{first_id}{_NUMBER_MARK}{number + 1}"


def shorten_call_id(call_id: str) -> str:
    """Returns a call's id as indexes and headers take it: for a long id its digest."""
    return call_id if len(call_id) <= _MAX_ID_CHARS else sha256(call_id.encode()).hexdigest()


def map_edits_to_calls(call_ids: Iterable[str]) -> dict[str, str]:
    """Returns the ids of calls by the ids of their first edits."""
    return {make_edit_id(call_id, 0): call_id for call_id in call_ids}


def parse_call_id(edit_id: str, call_ids: Mapping[str, str]) -> str:
    """Returns the id of the call to which an edit belongs; "": to no such call.

    call_ids: the ids of the calls by the ids of their first edits (`map_edits_to_calls`).
    """
    return call_ids.get(edit_id) or call_ids.get(edit_id.rpartition(_NUMBER_MARK)[0], "")
