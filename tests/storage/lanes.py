"""Jobs as the schema before lanes had them, and which of them have to be the first of their lanes."""

from __future__ import annotations

JOBS_BEFORE_LANES = (
    "INSERT INTO jobs (agent, kind, key, state, due, payload, epoch, asked, created)"
    " VALUES (?, ?, ?, ?, ?, ?, 0, 1, 1)"
)
JOBS = [
    (1, "learn", "behind", "pending", 5.0, b"{}"),
    (1, "learn", "running", "running", 9.0, b"{}"),
    (2, "learn", "waits", "retrying", 9000.0, b"{}"),
    (2, "learn", "behind", "pending", 5.0, b"{}"),
    (3, "learn", "dead", "dead", 1.0, b"{}"),
    (3, "learn", "later", "pending", 7.0, b"{}"),
    (3, "learn", "sooner", "pending", 6.0, b"{}"),
    (3, "compact", "other", "pending", 8.0, b"{}"),
    (4, "learn", "dead", "dead", 1.0, b"{}"),
    (0, "callback", "one", "pending", 5.0, b"{}"),
    (0, "callback", "two", "pending", 5.0, b"{}"),
]
FIRST = [(key,) for key in ("running", "waits", "sooner", "other", "one", "two")]
