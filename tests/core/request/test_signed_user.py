"""The user that Open WebUI signs."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Any

import orjson
import pytest

from gateway.core.request.identity import Identity, IdentityRules, identify
from gateway.core.request.signed_user import read_signed_user
from gateway.errors import BadRequest, NotAuthenticated
from tests.rows import each_row

SECRET = "a secret of both sides"
NOW = 1_760_000_000.0
# As open_webui/utils/headers.py makes it.
CLAIMS = {
    "sub": "u-1",
    "email": "a@example.org",
    "name": "Alice",
    "role": "user",
    "iss": "open-webui",
    "iat": int(NOW),
    "exp": int(NOW) + 300,
}
HEADER = {"alg": "HS256", "typ": "JWT"}


def part(value: Any) -> bytes:
    return urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=")


def token(claims: Any = CLAIMS, header: Any = HEADER, secret: str = SECRET, digest: str = "sha256") -> bytes:
    head = part(header) + b"." + part(claims)
    return head + b"." + urlsafe_b64encode(hmac.digest(secret.encode(), head, digest)).rstrip(b"=")


def test_a_signature_of_another_implementation_holds() -> None:
    """The example of jwt.io, which has no time at which it expires."""
    theirs = (
        b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5"
        b"MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
    )
    with pytest.raises(NotAuthenticated, match="no time"):
        read_signed_user(theirs, "your-256-bit-secret", NOW)


def test_a_good_token_names_its_user() -> None:
    assert read_signed_user(token(), SECRET, NOW) == ("u-1", "Alice")
    assert read_signed_user(token(), SECRET, NOW + 329).id == "u-1"  # clocks differ


@each_row(
    ("bad", "why"),
    [
        (token(secret="another"), "not signed"),
        (token(digest="sha512"), "not signed"),
        (token()[:-2], "not signed"),
        (token().rpartition(b".")[0] + b".", "not signed"),
        (token()[:40] + b"A" + token()[41:], "not signed"),
        (part({"alg": "none"}) + b"." + part(CLAIMS) + b".", "not signed"),
        (token(header={"alg": "none"}), "algorithm"),
        (token(header={"alg": "HS512"}), "algorithm"),
        (token(header=[]), "no JSON Web Token"),
        (token(claims="u-1"), "no JSON Web Token"),
        (b"", "not signed"),
        (b"...", "not signed"),
        (b"\xff.\xff.\xff", "not signed"),
        (token({**CLAIMS, "exp": NOW - 31}), "expired"),
        (token({**CLAIMS, "nbf": NOW + 31}), "not valid yet"),
        (token({**CLAIMS, "exp": None}), "no time"),
        (token({**CLAIMS, "exp": True}), "no time"),
        (token({key: value for key, value in CLAIMS.items() if key != "exp"}), "no time"),
        (token({**CLAIMS, "sub": 7}), "no user"),
        (token({**CLAIMS, "sub": " "}), "no user"),
    ],
)
def test_any_other_token_is_refused(bad: bytes, why: str) -> None:
    with pytest.raises(NotAuthenticated, match=why) as caught:
        read_signed_user(bad, SECRET, NOW)
    assert (caught.value.status, caught.value.param) == (401, "x-openwebui-user-jwt")


def ask(rules: IdentityRules, *headers: tuple[str, bytes], now: float = NOW) -> Identity:
    raw = [(name.encode(), value) for name, value in headers]
    return identify(raw, {"model": "m", "messages": [], "user": "field"}, rules, "p", now)


RULES = IdentityRules("default", jwt_secret=SECRET)


def test_a_signed_user_counts_before_every_other() -> None:
    others = (("x-mnemogate-user", b"header"), ("x-openwebui-user-id", b"plain"))
    assert ask(RULES, *others, ("x-openwebui-user-jwt", token())).user == "u-1"
    assert ask(RULES, *others).user == "header"


def test_without_a_secret_no_token_is_believed() -> None:
    rules = IdentityRules("default")
    assert ask(rules, ("x-openwebui-user-jwt", token())).user == "field"
    assert ask(rules, ("x-openwebui-user-jwt", b"nonsense")).user == "field"


def test_without_a_clock_every_token_has_expired() -> None:
    with pytest.raises(NotAuthenticated):
        identify([(b"x-openwebui-user-jwt", token())], {}, RULES, "p")


def test_two_tokens_are_refused() -> None:
    two = token({**CLAIMS, "sub": "u-2"})
    with pytest.raises(BadRequest, match="sent twice"):
        ask(RULES, ("x-openwebui-user-jwt", token()), ("x-openwebui-user-jwt", two))


def test_rules_do_not_show_the_secret() -> None:
    assert SECRET not in repr(RULES)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([], None),
        ([("x-mnemogate-user-name", "José Müller".encode())], "José Müller"),
        ([("x-mnemogate-user-name", b"Jos%C3%A9")], "José"),
        ([("x-openwebui-user-name", b"Jos%C3%A9 M")], "José M"),
        ([("x-openwebui-user-name", b"plain"), ("x-mnemogate-user-name", b"own")], "own"),
        ([("x-openwebui-user-jwt", token()), ("x-mnemogate-user-name", b"own")], "Alice"),
        ([("x-openwebui-user-jwt", token({**CLAIMS, "name": 7})), ("x-mnemogate-user-name", b"own")], "own"),
    ],
)
def test_a_signature_or_a_header_says_what_people_call_the_user(
    headers: list[tuple[str, bytes]], name: str | None
) -> None:
    assert ask(RULES, *headers).name == name


def test_a_malformed_user_name_header_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        ask(RULES, ("x-mnemogate-user-name", b"a%0Ab"))
    assert caught.value.param == "x-mnemogate-user-name"
    assert ask(RULES, ("x-openwebui-user-name", b"\xff" * 400)).name == "\ufffd" * 256
