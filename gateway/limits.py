"""Limits that need no setting, each with its reason. `Gateway` takes others, which tests use."""

from __future__ import annotations

from msgspec import Struct


class Limits(Struct, frozen=True):
    """Times are in seconds, sizes in bytes."""

    # A client that needs longer for its request's head holds a connection and sends nothing: a slow-loris attack.
    header_timeout_s: float = 20.0
    # The body gets this time, and one second more for each 16 KiB of it, which is the pace of a poor mobile network.
    body_timeout_s: float = 30.0
    # A client that reads nothing for a minute has gone without closing its connection.
    send_timeout_s: float = 60.0
    # The seconds that an idle connection stays open when the gateway stops, to answer a request on its way. Requests
    # take milliseconds; a busy proxy uses each of its connections within a second.
    last_request_s: float = 1.0
    # The interval of an agent stream's pings; Letta's number.
    ping_s: float = 20.0
    # All bodies over 64 KiB together; each is in memory twice while it is parsed, so this is about half a GiB.
    bodies_in_flight_bytes: int = 256 * 1024 * 1024
    # The size of a reply that is remembered as it streams; in memory it takes five times as much. 128,000 tokens that
    # come one by one are 40 MB.
    streamed_bytes: int = 128 * 1024 * 1024
    # Upstreams change their lists of models a few times a month, and a list costs them next to nothing. 0: never.
    models_refresh_s: float = 300.0
    # The most seconds that the end of a reply waits for its commit. A commit takes a few milliseconds, a busy disk a
    # hundred.
    commit_wait_s: float = 0.25
    # The most seconds that a request waits for its limits and their use. They are read in a millisecond; a reader that
    # is busy with a large list, or a database that hangs, must not hold up chat.
    limit_read_s: float = 0.25
    # The most seconds that an agent waits for another one's answer. Tools of agents take seconds, and a client's own
    # timeout is often a few minutes.
    answer_wait_s: float = 120.0
    # A step of an agent is stored or not answered at all, so its end waits for a disk that has a bad moment.
    step_wait_s: float = 5.0
    # The page's reads share a reader with turns. Its screens take a hundredth of a second, also of a large memory.
    page_read_s: float = 0.25
    # Calls of the background model, and of the embedder, at a time: it must not crowd out the provider's live turns.
    background_calls: int = 2
