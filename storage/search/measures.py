"""The measures of the ranking, each with the figures by which it was chosen.

The sets are those of `scripts/bench recall`, each divided into a half for developing and a half for testing.
"""

from __future__ import annotations

# A message is ranked with the messages around it. A word in the head of the next turn, or of the turn before, counts as
# this part of a word in the message itself; as half of that with every HALVING_TERMS in the turns between; and as
# nothing below MIN_NEIGHBOUR_FACTOR. Evidence found with 12, 16 and 24 halving terms (developing halves): real chats
# 80.5, 82.4, 86.2%; friends 84.1, 84.2, 84.0%; short talk 85.1, 85.2, 85.3%. Each step makes notes 1 or 2% longer.
NEIGHBOUR_FACTOR = 0.5
HALVING_TERMS = 16
MIN_NEIGHBOUR_FACTOR = 0.125
# A turn between counts as at least this many terms. So a word reaches at most eight turns on each side, which bounds
# the work of a search. Real chats have the same evidence with 1.
MIN_TURN_LENGTH = 4

# A turn that only asks counts less, since an earlier question like this one is no answer. It counts in full from this
# many terms besides the query's on: a long request also states something. With fewer terms it counts in proportion, and
# as at least MIN_STATEMENT_FACTOR. Its words count nothing for the turn before it, and as ANSWER_FACTOR for the turn
# after it, which may answer. With 300 questions that were asked before, 76% of the evidence is found if they count in
# full, and 84% with these numbers (2,000 tokens). A fixed quarter costs LongMemEval 0.6 points.
STATEMENT_TERMS = 12
MIN_STATEMENT_FACTOR = 0.05
ANSWER_FACTOR = 0.7
# A factor just below 1: a turn with this part of another turn's score is ranked directly after it.
AFTER_FACTOR = 0.999

# The bounds of a search that was not asked for. The best hit must hold this share of the query, measured by the squares
# of its words' weights. Then hits that hold less than MIN_SHARE of the query are left out. (A bound relative to the
# best hit gains nothing on any set, by `scripts/bench recall --rules` of 2026-11-25, and cost wishes three points.)
# Developing halves with 0.25, 0.22 and 0.2, and before, by plain weights, with 0.25:
#     evidence of short talk 85.9, 85.9, 86.8%, and 88.8%; of German facts 80, 95, 95%, and 80%;
#     a note for questions about another memory 23, 27, 31%, and 30%; for such questions in Chinese 0, 0, 0%, and 21%.
# With 0.22 "Write a poem about my dog" finds no dog.
MIN_BEST_SHARE = 0.2
MIN_SHARE = 0.05
# If the hits and their neighbours have only one term of the query between them, the best hit must hold this larger
# share: any message has one term by chance. That holds for queries of more than FEW_TERMS; of a short query one term
# may be all that the memory has ("Write a poem about my dog"). Both halves, without this bound and with it:
#     a note for questions about another memory 30.0, 31.6% and 28.4, 29.2%; for errands 17.7, 13.5% and 9.4, 6.2%;
#     for requests of wishes 14.4, 14.4% and 12.5, 13.8%;
#     evidence of small memories 92.8, 92.4% and 92.8, 92.0%; of projects in short turns 69.9, 66.4% and 69.9, 66.1%.
MIN_BEST_SHARE_OF_ONE = 0.25
FEW_TERMS = 3

# The ranking by vectors is weighed by the share of the query that the best hit by words lacks, to this power.
# Evidence found with the powers 0, 1 and 2, and by words alone (local table, both halves together, index and note
# alone): friends 59, 76, 79, and 80%; projects 64, 68, 68, and 66%; short talk 85, 84, 84, and 84%; 60 questions of
# LongMemEval 95, 94, 94, and 92%; wishes 18, 17, 15, and 5%.
VECTORS_FADE = 2
