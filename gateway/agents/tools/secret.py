"""Encrypts the secrets of definitions, by the key that the operator gives the gateway.

The cipher is AES-256-GCM with a random nonce for each value. The associated data names the project, the server and the
field, so a value that is moved to another field cannot be decrypted there. `cryptography` comes with the extra `mcp`,
and is loaded with the first secret.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson

from gateway.agents.core.mcp_server import McpSecrets, make_secrets
from gateway.agents.tools.mcp import MISSING_EXTRA
from gateway.core.definition import McpServerDefinition
from storage.definition_records import Definition

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_VARIABLE = "MNEMOGATE_SECRETS_KEY"
_NO_KEY = (
    f"secrets are not stored without a key that encrypts them: set {_KEY_VARIABLE} where the gateway starts "
    "(`openssl rand -base64 32` makes one), or name an entry of the setting tools.headers in `auth_header`"
)
_NONCE_BYTES = 12  # NIST SP 800-38D, 8.2
# The beginning of each stored value, so that a later form of values can be distinguished.
_FORM = "1:"


class SecretFault(Exception):
    """A secret that cannot be stored or read. Its text is for the caller, and has no part of a secret in it."""


class SecretCipher:
    """Encrypts and decrypts secrets."""

    def __init__(self, key: str | None) -> None:
        """Decodes the key. key: 32 bytes in base64, as the settings have checked; None: no key is set."""
        self._key = None if key is None else b64decode(key)
        self._aes: AESGCM | None = None

    async def encrypt(self, project: str, uid: str, values: Mapping[str, str]) -> dict[str, str]:
        """Returns secrets as they are stored, by their fields.

        project: the project of the MCP server.
        uid: the uid of the MCP server.
        values: the secrets in plain text, by their fields.

        Raises: SecretFault if there is no key, or `cryptography` is not installed.
        """
        if not values:
            return {}
        if self._key is None:
            raise SecretFault(_NO_KEY)
        aes = await self._get_cipher(self._key)
        stored_values = {}
        for name, value in values.items():
            nonce = os.urandom(_NONCE_BYTES)
            data = aes.encrypt(nonce, value.encode(), _make_associated_data(project, uid, name))
            stored_values[name] = _FORM + b64encode(nonce + data).decode()
        return stored_values

    async def decrypt(self, server: Definition, values: Mapping[str, str]) -> dict[str, str]:
        """Returns secrets in plain text, by their fields.

        server: the MCP server of the secrets.
        values: the secrets as they are stored, by their fields.

        Raises: SecretFault, which names the server, the field and the variable with the key.
        """
        if not values:
            return {}
        if self._key is None:
            raise SecretFault(
                f"the secrets of the MCP server {server.name!r} ({', '.join(sorted(values))}) cannot be decrypted: "
                f"{_KEY_VARIABLE} is not set"
            )
        aes = await self._get_cipher(self._key)
        return {name: _decrypt_value(aes, server, name, value) for name, value in values.items()}

    async def decrypt_all(self, server: Definition) -> McpSecrets:
        """Returns the secrets of a server as they are sent. Raises: SecretFault."""
        definition = McpServerDefinition.of(server.body)
        return make_secrets(definition, await self.decrypt(server, definition.secrets))

    async def _get_cipher(self, key: bytes) -> AESGCM:
        if self._aes is None:
            # Loading takes a tenth of a second, too long for the event loop.
            self._aes = await asyncio.to_thread(_load_cipher, key)
        return self._aes


def _load_cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise SecretFault(MISSING_EXTRA) from error
    return AESGCM(key)


def _decrypt_value(aes: AESGCM, server: Definition, name: str, value: str) -> str:
    """Returns a secret in plain text. name: the field of the secret. value: the secret as it is stored.

    Raises: SecretFault.
    """
    from cryptography.exceptions import InvalidTag

    try:
        if not value.startswith(_FORM):
            raise ValueError("another form")
        data = b64decode(value.removeprefix(_FORM), validate=True)
        owner = _make_associated_data(server.project, server.uid, name)
        return aes.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], owner).decode()
    except (InvalidTag, ValueError) as error:
        raise SecretFault(
            f"the secret {name} of the MCP server {server.name!r} cannot be decrypted with the key in {_KEY_VARIABLE}, "
            "which is not the one that encrypted it: give the server its secrets again"
        ) from error


def _make_associated_data(project: str, uid: str, name: str) -> bytes:
    return orjson.dumps(["mcp", project, uid, name])
