"""The OpenAI-compatible provider: whose credential goes where, which headers go on, how errors are named."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import ProviderUnreachable
from adapters.factory import make_provider
from adapters.openai import OpenAICompatible
from adapters.providers import PROVIDERS
from adapters.transport import HttpTransport
from adapters.types import Header, ModelRequest
from tests.doubles.upstream import StrictUpstream

BODY = b'{"model": "m",  "messages":[{"role":"user","content":"h\xc3\xa9"}]}'


def request(*headers: Header, credential: str | None = None, **more: Any) -> ModelRequest:
    return ModelRequest(body=BODY, headers=headers, credential=credential, **more)


async def call(provider: OpenAICompatible, sent: ModelRequest) -> int:
    reply = await provider.send(sent)
    await reply.read(100_000)
    await reply.aclose()
    return reply.status


async def test_the_bytes_arrive_as_they_were_given(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    provider = OpenAICompatible("main", upstream.base_url + "/", transport=transport)
    assert await call(provider, request()) == 200
    assert upstream.last.body == BODY
    assert upstream.last.headers["content-type"] == "application/json"


CREDENTIALS = [
    # own key, the caller's credential, what is sent
    ("sk-own", None, "Bearer sk-own"),
    ("sk-own", "Bearer sk-caller", "Bearer sk-own"),
    (None, "Bearer sk-caller", "Bearer sk-caller"),
    (None, "Basic abc", "Basic abc"),
    (None, "Bearer sk-\xc3\xa9", "Bearer sk-\xc3\xa9"),  # é, as servers read a header's bytes
    (None, None, None),
]


@pytest.mark.parametrize(("key", "credential", "sent"), CREDENTIALS)
async def test_a_key_of_its_own_shuts_out_the_callers_credential(
    transport: HttpTransport,
    upstream: StrictUpstream,
    key: str | None,
    credential: str | None,
    sent: str | None,
) -> None:
    provider = OpenAICompatible("main", upstream.base_url, key=key, transport=transport)
    smuggled = ("Authorization", "Bearer smuggled")  # headers are no way around `credential`
    await call(provider, request(smuggled, credential=credential))
    assert upstream.last.headers.get("authorization") == sent
    assert key is None or "caller" not in str(upstream.last.headers)


@pytest.mark.parametrize("name", ["Authorization", "api-key", "x-api-key"])
async def test_a_key_among_the_headers_shuts_it_out_as_well(
    transport: HttpTransport, upstream: StrictUpstream, name: str
) -> None:
    provider = OpenAICompatible("azure", upstream.base_url, headers=((name, "own"),), transport=transport)
    await call(provider, request(credential="Bearer sk-caller"))
    assert upstream.last.headers[name.lower()] == "own"
    assert "caller" not in str(upstream.last.headers)


async def test_a_callers_credential_is_not_sent_with_the_next_request(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    provider = OpenAICompatible("main", upstream.base_url, transport=transport)
    await call(provider, request(("x-a", "1"), credential="Bearer first"))
    await call(provider, request())
    assert "authorization" not in upstream.last.headers
    assert "x-a" not in upstream.last.headers


async def test_headers_go_on_but_for_those_of_the_connection(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    provider = OpenAICompatible(
        "main", upstream.base_url, headers=(("X-Title", "ours"),), transport=transport
    )
    await call(
        provider,
        request(
            ("openai-organization", "org"),
            ("user-agent", "sdk/1"),
            ("x-title", "theirs"),
            ("host", "evil"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-gone"),
            ("x-gone", "1"),
            ("accept-encoding", "br"),
        ),
    )
    headers = upstream.last.headers
    assert (headers["openai-organization"], headers["user-agent"], headers["x-title"]) == (
        "org",
        "sdk/1",
        "ours",
    )
    assert headers["accept-encoding"] == "identity"
    assert headers["content-length"] == str(len(BODY))
    assert headers["host"] == f"127.0.0.1:{upstream.port}"
    assert headers.keys().isdisjoint({"connection", "x-gone", "transfer-encoding"})


@pytest.mark.parametrize(
    ("key", "headers", "sent"),
    [
        (None, (), ("org-caller", "proj-caller")),
        # OpenAI refuses another's organization, or bills a project of the caller's choice.
        ("sk-own", (), (None, None)),
        ("sk-own", (("OpenAI-Project", "proj-own"),), (None, "proj-own")),
        (None, (("Authorization", "Bearer sk-own"),), (None, None)),
        (None, (("api-key", "own"),), (None, None)),
    ],
)
async def test_a_caller_names_the_account_of_its_own_key_alone(
    transport: HttpTransport,
    upstream: StrictUpstream,
    key: str | None,
    headers: tuple[tuple[str, str], ...],
    sent: tuple[str | None, str | None],
) -> None:
    provider = OpenAICompatible("main", upstream.base_url, key=key, headers=headers, transport=transport)
    named = (("openai-organization", "org-caller"), ("openai-project", "proj-caller"))
    await call(provider, request(*named, credential="Bearer sk-caller"))
    seen = upstream.last.headers
    assert (seen.get("openai-organization"), seen.get("openai-project")) == sent


async def test_a_header_in_utf8_arrives_as_the_same_bytes(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    wire = "Müller".encode().decode("latin-1")  # as an ASGI server hands it on
    provider = OpenAICompatible("main", upstream.base_url, transport=transport)
    await call(provider, request(("x-title", wire)))
    assert upstream.last.headers["x-title"] == wire


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b"])
async def test_a_header_that_would_end_its_line_is_not_sent(
    transport: HttpTransport, upstream: StrictUpstream, value: str
) -> None:
    provider = OpenAICompatible("main", upstream.base_url, transport=transport)
    with pytest.raises(ProviderUnreachable):
        await call(provider, request(("x-title", value)))
    assert upstream.requests == []


@pytest.mark.parametrize(
    "address", ["", "api.openai.com", "ftp://x/v1", "http://", "http://u:p@x/v1", "http://x/?a=1"]
)
def test_an_address_that_is_none_is_refused_at_the_start(address: str) -> None:
    with pytest.raises(ValueError, match="main"):
        OpenAICompatible("main", address)


def test_a_key_is_not_shown() -> None:
    assert "sk-own" not in repr(OpenAICompatible("main", "http://x/v1", key="sk-own"))


def test_a_row_makes_a_provider_and_each_value_can_be_replaced() -> None:
    plain = make_provider("openai", key="k")
    assert (plain.name, plain.base_url) == ("openai", PROVIDERS["openai"].base_url)
    assert plain.capabilities.max_completion_tokens
    elsewhere = make_provider("openai", name="lab", base_url="http://lab:1/v1")
    assert (elsewhere.name, elsewhere.base_url) == ("lab", "http://lab:1/v1")
    assert not elsewhere.capabilities.max_completion_tokens
    with pytest.raises(ValueError, match="nowhere"):
        make_provider("nowhere")
