"""Sentences from no conversation, against which the similarity of a question is measured.

Embedders differ in the similarity that they find between any two texts. The similarity of a question to these sentences
is the baseline above which a hit counts; a small memory has too few texts of its own for that. The sentences are about
many matters, some of them small talk and errands. Their vectors are cached in memory only, so the sentences may be
changed.
"""

from __future__ import annotations

from typing import Final

BASELINE_TEXTS: Final = (
    "The meeting was moved to Thursday afternoon.",
    "She bought a red bicycle at the market.",
    "How do I sort a list in Python?",
    "The river flooded the lower fields in spring.",
    "He prefers tea without sugar.",
    "Please translate this sentence into French.",
    "Interest rates rose by a quarter of a point.",
    "The museum is closed on Mondays.",
    "My phone battery drains too quickly.",
    "What is a good recipe for lentil soup?",
    "The committee published its annual report.",
    "They painted the bedroom light blue.",
    "Can you recommend a film for tonight?",
    "The train was delayed because of snow.",
    "I need to renew my passport next month.",
    "Photosynthesis turns light into chemical energy.",
    "The dog slept under the kitchen table.",
    "Our team lost the final by one goal.",
    "Write a short poem about the sea.",
    "He broke his arm while skiing.",
    "The password must have twelve characters.",
    "Thank you, that was very helpful.",
    "The new law comes into force in January.",
    "Could you explain that in simpler words?",
    "We planted tomatoes along the fence.",
    "Her brother works as a nurse in Leeds.",
    "The invoice is due at the end of the month.",
    "What time does the shop open on Sundays?",
    "The moon is about 384,000 kilometres away.",
    "I feel tired and cannot sleep at night.",
    "The bridge was built in the nineteenth century.",
    "Good morning, how are you today?",
)
