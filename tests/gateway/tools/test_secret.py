"""Secrets of MCP servers: encrypted for one place, and read nowhere else."""

from __future__ import annotations

import os
import sys
from base64 import b64encode

import pytest
from msgspec.structs import replace

from gateway.agents.core.mcp_server import MASK, McpSecrets, McpServerConfig, make_secrets
from gateway.agents.tools.secret import SecretCipher, SecretFault
from gateway.core.definition import McpServerDefinition
from gateway.errors import BadRequest
from storage.definition_records import Definition, DefinitionKind

KEY, OTHER = (b64encode(os.urandom(32)).decode() for _ in range(2))
SERVER = Definition(1, "u1", "shop", DefinitionKind.MCP, 0, "calc", 1, 0.0, 0.0, {})
VALUES = {"auth_token": "s3cret-ß", "env.TOKEN": ""}


async def test_an_encrypted_value_is_decrypted_and_differs_each_time() -> None:
    cipher = SecretCipher(KEY)
    first, second = [await cipher.encrypt("shop", "u1", VALUES) for _ in range(2)]
    assert await cipher.decrypt(SERVER, first) == VALUES
    assert await SecretCipher(KEY).decrypt(SERVER, second) == VALUES
    assert not set(first.values()) & set(second.values())
    assert "s3cret" not in str(first)


@pytest.mark.parametrize(
    "elsewhere", [replace(SERVER, project="other"), replace(SERVER, uid="u2")], ids=["project", "server"]
)
async def test_a_value_of_one_place_is_read_nowhere_else(elsewhere: Definition) -> None:
    cipher = SecretCipher(KEY)
    stored = await cipher.encrypt("shop", "u1", VALUES)
    with pytest.raises(SecretFault):
        await cipher.decrypt(elsewhere, stored)
    with pytest.raises(SecretFault, match=r"the secret env\.OTHER of the MCP server 'calc'"):
        await cipher.decrypt(SERVER, {"env.OTHER": stored["env.TOKEN"]})


@pytest.mark.parametrize("broken", ["", "1:", "1:AAAA", "1:?", "2:AAAA", "s3cret"])
async def test_a_value_that_was_changed_is_read_as_nothing(broken: str) -> None:
    with pytest.raises(SecretFault, match="cannot be decrypted"):
        await SecretCipher(KEY).decrypt(SERVER, {"auth_token": broken})


async def test_another_key_and_none_are_named() -> None:
    stored = await SecretCipher(KEY).encrypt("shop", "u1", VALUES)
    for key in (OTHER, None):
        with pytest.raises(SecretFault) as fault:
            await SecretCipher(key).decrypt(SERVER, stored)
        assert "MNEMOGATE_SECRETS_KEY" in str(fault.value)
        assert "'calc'" in str(fault.value)
        assert "auth_token" in str(fault.value)
    with pytest.raises(SecretFault, match="set MNEMOGATE_SECRETS_KEY"):
        await SecretCipher(None).encrypt("shop", "u1", VALUES)
    assert await SecretCipher(None).encrypt("shop", "u1", {}) == {}
    assert await SecretCipher(None).decrypt(SERVER, {}) == {}


async def test_without_the_package_the_line_to_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(SecretFault, match=r"pip install -e '\.\[mcp\]'"):
        await SecretCipher(KEY).encrypt("shop", "u1", VALUES)


# -- what of it is sent, and what stays

HTTP = McpServerDefinition("https://mcp.example.org/mcp")


@pytest.mark.parametrize(
    ("header", "token", "sent"),
    [
        (None, "abc", {"Authorization": "Bearer abc"}),
        ("authorization", "abc", {"authorization": "Bearer abc"}),
        ("Authorization", "Basic abc", {"Authorization": "Basic abc"}),
        ("X-Key", "abc", {"X-Key": "abc"}),
    ],
)
def test_a_token_is_sent_in_its_header(header: str | None, token: str, sent: dict[str, str]) -> None:
    found = make_secrets(replace(HTTP, token_header=header), {"auth_token": token, "custom_headers.X-A": "1"})
    assert found == McpSecrets({"X-A": "1", **sent})
    assert "abc" not in repr(found)


BEFORE = replace(HTTP, secrets={"auth_token": "A", "custom_headers.X-A": "B"})


@pytest.mark.parametrize(
    ("config", "stays"),
    [
        (McpServerConfig(HTTP), ["auth_token", "custom_headers.X-A"]),
        (McpServerConfig(HTTP, {"auth_token": "new"}, frozenset({"auth_token"})), ["custom_headers.X-A"]),
        (McpServerConfig(HTTP, {}, frozenset({"auth_token", "custom_headers"})), []),
        (McpServerConfig(HTTP, {"auth_token": MASK}, frozenset({"auth_token", "custom_headers"})), ["auth_token"]),
    ],
)  # fmt: skip
def test_secrets_that_are_not_named_or_masked_stay(config: McpServerConfig, stays: list[str]) -> None:
    assert sorted(config.find_retained_secrets(BEFORE)) == stays
    assert "new" not in repr(config)


def test_secrets_do_not_follow_to_another_address() -> None:
    other = replace(HTTP, url="https://mcp.example.org/other")
    with pytest.raises(BadRequest, match="give them again"):
        McpServerConfig(other).find_retained_secrets(BEFORE)
    with pytest.raises(BadRequest, match="there is none"):
        McpServerConfig(HTTP, {"env.X": MASK}, frozenset({"env"})).find_retained_secrets(BEFORE)
    every = frozenset({"auth_token", "custom_headers"})
    assert McpServerConfig(other, {"auth_token": "new"}, every).find_retained_secrets(BEFORE) == {}
