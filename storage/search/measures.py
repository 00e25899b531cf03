"""The measures of the ranking by words, with what they were chosen against."""

from __future__ import annotations

# A message is ranked with what is around it: a word in the head of the next turn, or of the one before, is this much of
# a word in it; half as much with every HALVING_TERMS in the turns between; and nothing below MIN_NEIGHBOUR_FACTOR.
# Measured with 12, 16 and 24 terms on developing halves: of real chats 80.5, 82.4 and 86.2% of the evidence, of friends
# 84.1, 84.2 and 84.0, of short talk 85.1, 85.2 and 85.3, in notes that are each time 1 or 2% longer.
NEIGHBOUR_FACTOR = 0.5
HALVING_TERMS = 16
MIN_NEIGHBOUR_FACTOR = 0.125
# A turn between counts as this many terms at least, so that a word reaches eight turns on each side at most, and what a
# search adds up is bounded. Real chats have the same evidence with 1.
SHORTEST_TURN = 4

# A turn that only asks counts by its words besides the query's, in full from so many terms on: an earlier
# question like this one is no answer, a long request states something by the way. Its words count nothing for the turn
# before it, and so much for the one after it, which may answer. Measured with 300 questions asked before: 76% of the
# evidence where these count in full, 84% so (2,000 tokens); a fixed quarter costs LongMemEval 0.6 points.
TELLING_TERMS = 12
MIN_TELLING_FACTOR = 0.05
ANSWER_FACTOR = 0.7
# Puts one turn directly after another.
AFTER_FACTOR = 0.999

# Bounds for a search that was not asked for. The best hit has to hold so much of the query, measured by the squares of
# its words' weights. Then hits below a twentieth of the query are left out; a bound relative to the best hit is worth
# nothing on any set (`scripts/bench recall --rules`, 2026-11-25), and cost wishes three points with vectors.
# Measured on developing halves, by weights with 0.25 before, by squares with 0.25, 0.22 and 0.2: of short talk 88.8,
# 85.9, 85.9 and 86.8% of the evidence, of German facts 80, 80, 95, 95; a note for questions that belong to another
# memory: 30, 23, 27, 31%, for such in Chinese 21, 0, 0, 0. With 0.22 "Write a poem about my dog" finds no dog.
MIN_BEST_SHARE = 0.2
MIN_SHARE = 0.05
# Of a query of more terms than a few the best hit has to hold this much where such hits have one term between them,
# with what is around them: anything said has one by chance. Of few terms one may be all that memory has ("Write a poem
# about my dog"). Measured by both halves, without and with this: a note for questions that belong to another memory
# 30.0, 31.6 and 28.4, 29.2%, for errands 17.7, 13.5 and 9.4, 6.2%, for requests of wishes 14.4, 14.4 and 12.5, 13.8%;
# evidence of small memories 92.8, 92.4 and 92.8, 92.0%, of projects in short turns 69.9, 66.4 and 69.9, 66.1%, of the
# other sets as before.
MIN_BEST_SHARE_OF_ONE = 0.25
FEW_TERMS = 3

# The ranking by vectors counts the less, the more of the query the best hit by words holds: that part that it lacks, to
# this power. Measured with the local table (index and note alone), both halves together, with 0 (as it was), 1 and 2,
# and by words alone: friends 59, 76, 79, 80% of the evidence; projects 64, 68, 68, 66; short talk 85, 84, 84, 84; of 60
# questions of LongMemEval 95, 94, 94, 92; wishes 18, 17, 15, 5.
VECTORS_FADE = 2
