"""The parts of a database's URL that are read before asyncpg reads it: the hosts and their ports."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlencode

from storage.errors import ServerRefused
from storage.masked_url import mask_password

BAD_URL = "the URL cannot be read; in a user or password write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?"

# Refuses an unescaped `/`, `?`, `#` or `@` in a password: asyncpg would take the rest for a host and ask it for ever.
_URL = re.compile(
    r"(?P<before>\w+://(?:[^/?#@]*@)?)(?P<hosts>[^/?#@]*)(?P<path>(?:/[^?#@]*)?)(?:\?(?P<options>[^#]*))?"
)
# The text after the last colon of a host. The colons of an address of IPv6 are in brackets.
_PORT = re.compile(r":([^:\]]*)\Z")
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)  # a longer number is out of range anyway
_LAST_PORT = 65535


def split_by_host(url: str) -> list[str]:
    """Returns a URL for each host that this one names, before its path or in the option `host`.

    PGHOST and PGPORT stand for a host and a port that the URL lacks, as for other programs. Each of several URLs has a
    port of its own: asyncpg would compare the number of all ports in PGPORT with the one host of a URL, and refuse it.

    Raises: ServerRefused if the URL cannot be read, or has a port that is no number from 1 to 65535.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ServerRefused(f"{mask_password(url)}: {BAD_URL}")
    options = dict(parse_qsl(match["options"] or ""))
    host_option, port_option = options.pop("host", ""), options.pop("port", "")
    hosts = (match["hosts"] or host_option or os.environ.get("PGHOST", "")).split(",")
    ports = (port_option or os.environ.get("PGPORT", "")).split(",")
    _check_ports(url, [*ports, *map(_read_port, hosts)])
    if len(hosts) == 1:
        return [url]
    _check_hosts(url, hosts, ports)
    if len(ports) == 1:
        ports *= len(hosts)
    return [_with_host(match, options, host, port) for host, port in zip(hosts, ports, strict=True)]


def _with_host(url: re.Match[str], options: Mapping[str, str], host: str, port: str) -> str:
    """Returns a URL with one host where it names several.

    options: the options of the URL, without its hosts and ports.
    port: the port of a host that names none; "": the usual port.
    """
    if url["hosts"]:
        host_and_port = host if _read_port(host) or not port else f"{host}:{port}"
        return f"{url['before']}{host_and_port}{url.string[url.end('hosts') :]}"
    return f"{url['before']}{url['path']}?{urlencode({**options, 'host': host, 'port': port})}"


def _read_port(host: str) -> str:
    """Returns the port after a host, or "". A socket is named by its directory, which has no port."""
    match = None if host.startswith("/") else _PORT.search(host)
    return "" if match is None else match[1]


def _check_hosts(url: str, hosts: Sequence[str], ports: Sequence[str]) -> None:
    """Refuses several hosts of which one has no name, or that have another number of ports. Raises: ServerRefused."""
    if not all(hosts):
        raise ServerRefused(f"{mask_password(url)}: one of its {len(hosts)} hosts has no name")
    if len(ports) not in (1, len(hosts)):
        raise ServerRefused(f"{mask_password(url)}: it names {len(hosts)} hosts and {len(ports)} ports")


def _check_ports(url: str, ports: Sequence[str]) -> None:
    """Refuses a port that is no number or out of range. An empty one stands for the usual port. Raises: ServerRefused.

    asyncpg would fail on it later, in a way that depends on the event loop.
    """
    for port in filter(None, ports):
        if not _NUMBER.fullmatch(port) or not 0 < int(port) <= _LAST_PORT:
            raise ServerRefused(f"{mask_password(url)}: a port is a number from 1 to {_LAST_PORT}")
