"""The measures of the ranking, and what of its formula is the same for few hits (few.py) and for many (many.py)."""

from __future__ import annotations

import math

from storage.search.find import Found

# The weight of a hit in the neighbouring turn.
NEIGHBOUR = 0.5

# A turn that only asks counts by what it says beside the query's words, in full from so many terms on: an earlier
# question like this one is no answer, a long request tells something by the way. Its words count nothing for the turn
# before it, and so much for the one behind it, which may answer. Measured with 300 questions asked before: 76% of the
# evidence where these count in full, 84% so (2,000 tokens); a fixed quarter costs LongMemEval 0.6 points.
TELLING_TERMS = 12
LEAST_TELLING = 0.05
ANSWERING = 0.7
# Puts one turn next behind another.
BEHIND = 0.999

# Bounds for a search that nobody asked for. The best hit has to hold so much of the query's weight (over 240 questions
# of LongMemEval, 550 turns each, it held 0.3 or more), or, since a question may have several parts, the best few
# together so much. Then hits below a tenth of the best score are left out, and below a twentieth of the query's weight.
LEAST_BEST_SHARE = 0.25
FEW = 5
LEAST_SHARE_OF_FEW = 0.5
LEAST_SHARE = 0.05
LEAST_RELATIVE = 0.1

# A word is as common as this memory and people in general have it, who count like as many messages as the memory has
# and like this many at least: a few messages cannot tell which words are common. Measured on LongMemEval against counts
# of the memory alone: evidence in the note with histories of 22 messages from 90.6 to 91.3%, of 550 from 87.6 to 87.9%,
# in one of 10,866 from 71.4 to 71.9%; questions about something else that get a note, with 22 messages, 35 to 30%.
_LEAST_IN_GENERAL = 500
_LEAST_ASKED = 1e-9


def weigh(found: Found) -> tuple[list[float], float]:
    """Returns the weight of each term, by how many messages have it, and what all weigh together as they are asked.

    A word never heard counts like one heard once; else, with few messages, it would outweigh all that was found.
    """
    count = found.layout.lengths.count
    others = max(count, _LEAST_IN_GENERAL)
    sample = count + others + 1
    once, weights, asked = math.log(sample / 1.5), [], 0.0
    for size, fresh, share in zip(found.sizes, found.fresh, found.in_general, strict=True):
        weight = math.log(sample / (size + len(fresh) + others * share + 0.5))
        weights.append(weight)
        asked += weight if weight < once else once
    return weights, max(asked, _LEAST_ASKED)
