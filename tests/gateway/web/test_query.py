"""The query of a request: an error names the parameter that is wrong."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest
from gateway.web.query import read_query


def test_a_parameter_that_was_sent_twice_is_named() -> None:
    with pytest.raises(BadRequest, match="`user`") as refusal:
        read_query({"query_string": b"limit=5&user=ann&order=asc&user=bob"})
    assert refusal.value.param == "user"


def test_the_beginning_of_a_long_name_is_quoted() -> None:
    with pytest.raises(BadRequest) as refusal:
        read_query({"query_string": b"&".join([b"a" * 5_000 + b"=1"] * 2)})
    assert len(refusal.value.message) < 200
