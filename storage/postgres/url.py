"""The URL of a database as far as it has to be read before asyncpg does: what to hide, which ports, which hosts."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

# Up to the last sign, since a user and a password may hold one that nobody has escaped.
_PASSWORD = re.compile(r"(?<=://)([^:]*):.*@")
_PASSWORD_OPTION = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)


def without_secret(url: str) -> str:
    """Returns the URL as it may be shown."""
    return _PASSWORD.sub(r"\1:***@", _PASSWORD_OPTION.sub(r"\1***", url))


# Behind a host; behind the last colon, as an address of IPv6 has others.
_PORT = re.compile(r":(-?\d+)(?=,|$)")


def ports_of(url: str) -> list[str]:
    """Returns the ports of a URL: behind its hosts, or in the parameter `port`."""
    rest, _, query = url.partition("?")
    hosts = rest.partition("://")[2].partition("/")[0].rpartition("@")[2]
    more = parse_qs(query).get("port", ())
    return _PORT.findall(hosts) + [port for ports in more for port in re.findall(r"-?\d+", ports)]


# Behind a user and a password. A sign behind these hosts means that a password was not escaped: they are none then.
_HOSTS = re.compile(r"(?<=://)(?:[^/?]*@)?([^/?@]*)(?=[/?][^@]*$|$)")


def by_host(url: str) -> list[str]:
    """Returns a URL for each host that this one names before its path."""
    found = _HOSTS.search(url)
    if found is None:
        return [url]
    start, end = found.span(1)
    return [url[:start] + host + url[end:] for host in found[1].split(",")]
