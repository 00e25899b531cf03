"""Values in the JSON of the agents API: times, durations, ids of conversations, lines of output."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gateway.core import ids
from storage.records import DEFAULT_CONVERSATION

# The fields that only Letta's hosted product fills.
NO_AUTHORS = dict.fromkeys(("created_by_id", "last_updated_by_id"))
NO_TEMPLATE = dict.fromkeys(("project_id", "template_id", "base_template_id", "deployment_id"))
# The fields about a callback that was not made.
NO_CALLBACK = dict.fromkeys(("callback_url", "callback_sent_at", "callback_status_code", "callback_error"))


def make_conversation_id(uid: str, key: str | None) -> str:
    """Returns the public id of a conversation. key: the client's own id of the conversation; None: it has none."""
    return DEFAULT_CONVERSATION if key == DEFAULT_CONVERSATION else ids.make_id("conv", uid)


def render_time(at: float | None) -> str | None:
    """Returns a time in ISO 8601, in UTC with microseconds. at: the time in seconds since the epoch; None: no time."""
    if at is None:
        return None
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError):
        # A clock that was wrong once must not make a list unreadable.
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat(timespec="microseconds")


def measure_ns(began_at: float | None, ended_at: float | None) -> int | None:
    """Returns the nanoseconds between two times; None if one of them is None.

    began_at, ended_at: the times in seconds since the epoch. The clock may have been put back between them.
    """
    return None if began_at is None or ended_at is None else max(0, int((ended_at - began_at) * 1e9))


def split_lines(output: Any) -> list[str] | None:
    """Returns the output of a tool's code line by line; None if the output is empty."""
    return output.splitlines() if isinstance(output, str) and output else None
