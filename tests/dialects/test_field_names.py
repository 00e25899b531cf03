"""The names of fields in upstreams' errors, in a dialect's words."""

from __future__ import annotations

from gateway.dialects.field_names import FieldNames
from tests.rows import each_row

SLOW = "Slow down."


@each_row(
    ("names", "text", "expected"),
    [
        # All names are English words: no other word of a sentence is one.
        ({"user": "who"}, SLOW, SLOW),
        ({"user": "who"}, "The 'user' is too long.", "The 'who' is too long."),
        ({"user": "who"}, "messages[0].content is empty.", "say is empty."),
        # None but that of the messages.
        ({}, SLOW, SLOW),
        ({"max_tokens": "limit"}, "max_tokens is too large.", "limit is too large."),
    ],
)
def test_a_sentence_has_the_names_of_the_dialect(names: dict[str, str], text: str, expected: str) -> None:
    fields = FieldNames(names, messages="say", schema="parameters", words=("user",))
    assert fields.translate_sentence(text) == expected


def test_a_path_without_a_known_name_stays() -> None:
    assert FieldNames({}, messages="say", schema="parameters", words=()).translate_path("top_p") == "top_p"
