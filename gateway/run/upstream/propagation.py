"""The headers of a trace for upstreams. Upstreams on this network get them, others by the settings or the client."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from adapters.base import Provider
from adapters.types import ModelRequest
from gateway.core.trace_context import without_trace
from gateway.run.receipt import Receipt
from gateway.run.upstream_call import UpstreamCall
from gateway.settings import UpstreamSettings

# The ends of names that only a network's own servers know (RFC 6761, 6762 and 8375; ICANN has reserved `internal`).
_PRIVATE_NAMES: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def get_base_url(provider: Provider) -> str:
    """Returns the base URL of a provider; "": the model is built in."""
    address: str = getattr(provider, "base_url", "")
    return address


def choose_propagation(upstream: UpstreamSettings, provider: Provider) -> bool | None:
    """Returns whether the headers of a trace go to an upstream; None: only if the client has sent some."""
    if upstream.propagate is not None:
        return upstream.propagate == "always"
    return True if is_private(get_base_url(provider)) else None


def is_private(url: str) -> bool:
    """Returns whether a URL leads to a machine on this network, by its IP address or the form of its host name."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        return not ip_address(host).is_global
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(_PRIVATE_NAMES))


def with_trace_headers(
    request: ModelRequest, receipt: Receipt | None, call: UpstreamCall, *, propagates: bool | None
) -> ModelRequest:
    """Returns a request with the trace headers that its upstream may see.

    receipt: the receipt of the request; None: the request has no receipt, and is not traced.
    call: the call of the upstream by this request.
    propagates: True or False: the upstream gets trace headers or not; None: only if the client has sent some.
    """
    trace = None if receipt is None else receipt.trace
    if receipt is None or trace is None:
        # The client's headers are forwarded as they came.
        return request._replace(headers=without_trace(request.headers)) if propagates is False else request
    headers = without_trace(request.headers)
    if propagates is None:
        propagates = bool(trace.parent_id)
    if propagates:
        headers += trace.make_headers(receipt.calls.index(call) + 1)
    return request._replace(headers=headers)
