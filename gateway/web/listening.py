"""The address at which the gateway listens."""

from __future__ import annotations

import errno
import socket
from typing import Any, NamedTuple

from gateway.errors import GatewayError, SettingsError


class ListenAddress(NamedTuple):
    """An address of this machine, as `socket` takes it."""

    # The address family: AF_INET or AF_INET6.
    family: int
    # The host and the port, in the form of the family.
    address: Any


def resolve_address(host: str, port: int) -> ListenAddress:
    """Returns the address to listen on. Raises: SettingsError: the host cannot be found."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        # A UnicodeError: the host is no valid name.
        reason = error.strerror if isinstance(error, OSError) else "it is no valid name"
        raise SettingsError(
            f"server.host: the host {host!r} cannot be found ({reason}). Name an address of this machine, such as "
            "127.0.0.1."
        ) from error
    family, _, _, _, address = addresses[0]
    return ListenAddress(family, address)


def bind(host: str, port: int) -> socket.socket:
    """Binds an address to listen on, before anything is started.

    Raises: SettingsError: the address is not this machine's; GatewayError: the address is in use.
    """
    family, address = resolve_address(host, port)
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # the system has no such addresses, for example no IPv6
        raise _make_listen_error(host, port, error) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _make_listen_error(host, port, error) from error
    listener.setblocking(False)
    return listener


def listen(listener: socket.socket) -> None:
    """Accepts connections at a bound address. The connections wait until the server serves them.

    Raises: GatewayError: another process bound the address at the same moment, and listens there.
    """
    try:
        # uvloop listens as well, but ignores the error.
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _make_listen_error(host, port, error) from error


def _make_listen_error(host: str, port: int, error: OSError) -> GatewayError:
    """Returns the error that says why the gateway cannot listen, and which setting would help."""
    match error.errno:
        case errno.EADDRINUSE:  # the port may be free at the next start, so the settings are not at fault
            return GatewayError(
                f"server.port: another program listens on port {port} of {host}. End that one, or name another "
                "port with --port."
            )
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return SettingsError(
                f"server.host: {host} is no address of this machine. Name one of its own, or 0.0.0.0 for all."
            )
        case errno.EACCES:
            return SettingsError(
                f"server.port: this account may not listen on port {port}. Name one above 1023 with --port."
            )
    return SettingsError(f"server.port: cannot listen on port {port} of {host}: {error.strerror}")
