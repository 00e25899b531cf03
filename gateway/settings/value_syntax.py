"""The syntax of settings' values: addresses, hosts, origins, names of headers and variables, keys and secrets."""

from __future__ import annotations

import re
from base64 import b64decode
from urllib.parse import urlsplit

from gateway.errors import SettingsError
from gateway.settings import SECRET_PREFIX
from storage.masked_url import mask_password

# What the URL of a server begins with.
POSTGRES = ("postgresql://", "postgres://")
_KEY = re.compile(r"mg-[A-Za-z0-9_-]{32,}")
# The fewest different characters of a key. Of 32 random hexadecimal digits one set in thirty million has fewer.
_MIN_DIFFERENT_CHARS = 8
# The fewest bytes of the secret of a webhook, as Standard Webhooks demands.
MIN_WEBHOOK_SECRET_BYTES = 24
# The bytes of a key of AES-256.
SECRETS_KEY_BYTES = 32
_HOST = re.compile(r"[^\s/*:\[\]]+|[0-9A-Fa-f]*(?::[0-9A-Fa-f.]*){2,}")  # the second: an address of IPv6
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 5.1


def is_gateway_key(text: str) -> bool:
    """Returns whether a text has the form of a gateway key and is random enough to be one.

    Of a key the plain SHA-256 is stored, which protects random keys alone.
    """
    return _KEY.fullmatch(text) is not None and len(set(text.removeprefix("mg-"))) >= _MIN_DIFFERENT_CHARS


def is_host(text: str) -> bool:
    """Returns whether a text is the name or the address of a host, without a scheme, a port or *."""
    return _HOST.fullmatch(text) is not None


def is_header_name(text: str) -> bool:
    """Returns whether a text may be the name of an HTTP header."""
    return _HEADER.fullmatch(text) is not None


def check_address(name: str, url: str | None) -> None:
    """Raises: SettingsError: this is no upstream's address. name: the setting or variable that has it."""
    text = url or ""
    try:
        parts = urlsplit(text)
        is_address = re.match(r"https?://[^/\s]", text) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        seen = None if url is None else mask_password(url)
        raise SettingsError(f"{name} must be an http(s) URL, saw {seen!r}")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise SettingsError(f"{name}: an upstream's address has neither a user, nor a query, nor a fragment")


def is_proxy(url: str) -> bool:
    """Returns whether a URL names a proxy: `http://` and a host, maybe with a user and a port, and nothing after."""
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_whole and re.fullmatch(r"http://[^/?#\s]+/?", url) is not None


def is_webhook_secret(text: str) -> bool:
    """Returns whether a text is a secret in the form of Standard Webhooks, and long enough."""
    try:
        secret = b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and len(secret) >= MIN_WEBHOOK_SECRET_BYTES


def is_secrets_key(text: str) -> bool:
    """Returns whether a text is a key of AES-256 in base64. One byte repeated, as in an example, is none."""
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        return False
    return len(key) == SECRETS_KEY_BYTES and len(set(key)) > 1


def is_origin(text: str) -> bool:
    """Returns whether a browser would send an origin in this form; another form never matches (RFC 6454 6.2)."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?#\s]+)", text)
    if match is None:
        return False
    own_port = {"http": ":80", "https": ":443"}.get(match[1])
    host = match[2]
    return own_port is None or (host.isascii() and host == host.lower() and not host.endswith(own_port))
