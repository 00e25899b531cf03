"""Which of a client's headers go on to an upstream."""

from __future__ import annotations

import pytest

from gateway.core.request.request_headers import list_headers_for_upstream
from gateway.errors import BadRequest


def test_headers_for_the_upstream_are_passed_on() -> None:
    headers = [
        (b"user-agent", b"OpenAI/Python 3.51.0"),
        (b"openai-organization", b"org"),
        (b"openai-beta", b"x=1"),
        (b"x-stainless-retry-count", b"1"),
        (b"idempotency-key", b"k"),
        (b"traceparent", b"00-1"),
        (b"x-title", b"caf\xe9"),
    ]
    assert list_headers_for_upstream(headers) == tuple((n.decode(), v.decode("latin-1")) for n, v in headers)


def test_gateway_headers_credentials_and_connection_headers_are_not_forwarded() -> None:
    headers = [
        (name, b"secret")
        for name in (
            b"authorization",
            b"proxy-authorization",
            b"cookie",
            b"x-mnemogate-key",
            b"x-mnemogate-user",
            b"x-api-key",
            b"api-key",
            b"host",
            b"content-length",
            b"accept-encoding",
            b"transfer-encoding",
            b"x-forwarded-for",
            b"x-real-ip",
            b"x-auth-request-email",
            b"x-openwebui-user-email",
        )
    ]
    assert list_headers_for_upstream(headers) == ()


def test_headers_named_by_connection_end_here() -> None:
    headers = [(b"connection", b"close, X-Title"), (b"x-title", b"t"), (b"accept", b"*/*")]
    assert list_headers_for_upstream(headers) == (("accept", "*/*"),)


@pytest.mark.parametrize(
    "name", ["x-mnemogate-memroy", "x_mnemogate_memory", "x-mnemogate_memory", "mnemogate-memory"]
)
def test_a_misspelt_gateway_header_is_refused_each_time(name: str) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest, match=r"did you mean x-mnemogate-memory\?") as refused:
            list_headers_for_upstream([(name.encode(), b"off")])
        assert refused.value.param == name


def test_a_gateway_header_that_is_like_none_is_refused_with_all_that_there_are() -> None:
    with pytest.raises(BadRequest, match="one of x-mnemogate-user, "):
        list_headers_for_upstream([(b"x-mnemogate-" + b"\xe9" * 99, b"")])
