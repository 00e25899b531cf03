"""How many values JSON may have, whatever stands in its texts."""

from __future__ import annotations

import pytest

from gateway.agents.wire.struct_fields import parse as parse_body
from gateway.agents.wire.struct_fields import read_texts
from gateway.core.json_limits import MAX_VALUES, check_values
from gateway.core.request.identity import IdentityRules, find_request_user
from gateway.dialects.chat.parse import parse
from gateway.dialects.responses.codex import find_codex_side_request
from gateway.errors import BodyTooLarge
from gateway.web.request_body import read_request_body

MANY = (
    b'{"model":"m","messages":[{"role":"user","content":"Hi."}],"x":[' + b"{}," * (MAX_VALUES // 2) + b"0]}"
)


@pytest.mark.parametrize("read", [parse, parse_body, read_texts])
def test_json_of_very_many_values_is_not_read(read: object) -> None:
    assert callable(read)
    with pytest.raises(BodyTooLarge, match="1,000,000 lists, objects and values"):
        read(MANY)


@pytest.mark.parametrize(
    "each", [b"1,", b"[],", b'"",', b'"abc",', b'{"a":1},', b'{"a":"b"},', rb'"\\",', rb'"\"",']
)
def test_values_of_any_kind_are_counted(each: bytes) -> None:
    check_values(b"[" + each * (MAX_VALUES // 4) + b"0]")
    with pytest.raises(BodyTooLarge):
        check_values(b"[" + each * (MAX_VALUES + 1) + b"0]")


@pytest.mark.parametrize("sign", [b",", b"{", b"[", rb"\\{", rb"\",", rb"\\\"[", rb"\n,"])
def test_brackets_within_a_text_are_no_values(sign: bytes) -> None:
    check_values(b'{"a":["' + sign * (MAX_VALUES * 2) + b'"],"b":{}}')


@pytest.mark.parametrize(
    "value",
    [b"1e999", b"[" * 500 + b"]" * 500, b"123456789012345678901234567890"],
    ids=["infinite", "deep", "long"],
)
def test_a_model_is_renamed_next_to_what_cannot_be_read(value: bytes) -> None:
    """The name of a tool's argument may be `model`, too."""
    body = b'{"model":"m","input":%b,"tools":[{"properties":{"model":{}}}]}' % value
    assert read_request_body(body).with_model("n") == body.replace(b'"m"', b'"n"')


def test_a_body_that_is_passed_through_may_have_more_values() -> None:
    """2,048 texts to be embedded, as tokens: a batch that servers of one's own take."""
    body = b'{"input":[' + b",".join([b"[" + b"7," * 511 + b"7]"] * 2048) + b'],"model":"m"}'
    assert read_request_body(body).with_model("n") == body.replace(b'"m"', b'"n"')
    with pytest.raises(BodyTooLarge):
        read_request_body(MANY.replace(b'"x":', b'"model":"m","x":'))


def test_no_id_is_read_of_a_field_of_very_many_values() -> None:
    """In what is passed through, too, which may have more."""
    rules = IdentityRules("default", user_order=("metadata.person",))
    for count, user in ((1, "ann"), (MAX_VALUES, None)):
        body = b'{"metadata":{"person":"ann","x":[' + b"0," * count + b"0]}}"
        assert find_request_user((), body, rules, 0.0) == user
        assert (read_request_body(body).read_value("metadata") is None) is (user is None)


def test_the_words_of_codex_about_its_turn_are_read_up_to_a_length() -> None:
    for values, name in ((1, "codex title"), (MAX_VALUES, None)):
        turn = f'{{"thread_source":"thread_title","x":[{"0," * values}0]}}'
        assert find_codex_side_request({"client_metadata": {"x-codex-turn-metadata": turn}}) == name
