"""The rules for summaries of a long conversation: the time to make one, its end, and its length.

A summary covers a path from its root up to an exchange. It replaces the messages up to there, at the end of the system
message; the messages after it are retained word for word. It is made early, while the window still has room, and used
when the window is full: of the summaries of a path, the oldest one with which the rest fits. So each summary breaks the
prompt's prefix once, and the list of messages alone decides which one is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

# A summary is made when this share of the window is used, so that it is ready when the window is full.
EARLY_SHARE = 0.9
# The newest messages are retained, up to this share of the window; a summary covers the messages before.
RETAINED_SHARE = 0.10
# A summary lasts for a while if the messages after it use no more than this share of the window.
ROOMY_SHARE = 0.7
# Messages that use less than this share of the window are not worth a call, nor a new prefix.
WORTHWHILE_SHARE = 0.2
# A summary may take this share of the window.
_SIZE_SHARE = 1 / 8
# The most tokens of a summary, some eight hundred words. Not measured: a longer one takes the room of messages.
MAX_TOKENS = 1_500
# The lowest limit of a summary in tokens, about sixty words, for a model with a small window. Not measured.
_MIN_TOKENS = 128
# The number of a path's newest summaries from which a request can choose.
MAX_CANDIDATES = 3


class SummaryPlan(Struct, frozen=True):
    """The bounds of a summary that is to be made now, because the window is nearly full."""

    # The fewest tokens of the window that are retained.
    retained_tokens: int
    # The most tokens of the summary.
    max_tokens: int
    # The fewest messages that are retained.
    retained_messages: int = 0
    # The row of the newest summary of the path when the request was made; 0: the path had no summary.
    newest_summary_row: int = 0


class ExchangeSize(Struct, frozen=True):
    """The room that one exchange of a path takes in the window."""

    # The tokens of its messages.
    tokens: int
    # True: a turn begins with the exchange.
    begins_turn: bool
    # The number of its messages.
    messages: int = 0
    # True: the reply has calls, which the next exchange answers.
    has_open_calls: bool = False


def limit_summary(context_tokens: int) -> int:
    """Returns the tokens that a summary may take of a window."""
    return max(_MIN_TOKENS, min(MAX_TOKENS, int(context_tokens * _SIZE_SHARE)))


def find_last_covered(
    path: Sequence[ExchangeSize], retained_tokens: int, retained_messages: int = 0
) -> int | None:
    """Returns the index of the last exchange to be covered; None: the whole path is retained.

    Whole turns are retained from the end, until they have at least `retained_tokens` and `retained_messages`.
    """
    tokens = messages = 0
    for i in range(len(path) - 1, 0, -1):
        tokens, messages = tokens + path[i].tokens, messages + path[i].messages
        if path[i].begins_turn and tokens >= retained_tokens and messages >= retained_messages:
            return i - 1
    return None
