"""Golden files by provider family: inputs and expected outputs, written by hand from the providers' own documents.

`anthropic` is translated, so its files hold both dialects (tests/adapters/test_anthropic_golden.py). All others speak
OpenAI's dialect, each with its own additions, none of which may be lost:

requests   in: what an application sends; out: what reaches the provider; consumed, adapted: what the reply says of it
replies    in: a body, with its status and headers; before: bytes ahead of it
streams    in: events, or bytes as they stand where a text stands; out: what comes of them, where that is not the same

says: what is in a reply, as far as the gateway reads it. from: the page it was written from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """One file of a family that speaks OpenAI's dialect."""

    family: str
    name: str
    given: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def says(self) -> dict[str, Any]:
        found: dict[str, Any] = self.given["says"]
        return found

    @property
    def status(self) -> int:
        return int(self.given.get("status", 200))

    @property
    def pieces(self) -> list[bytes]:
        """The events of a stream as the provider writes them."""
        return [
            (each if isinstance(each, str) else f"data: {json.dumps(each, ensure_ascii=False)}\n\n").encode()
            for each in self.given["in"]
        ]

    @property
    def out(self) -> list[Any]:
        """The events that are handed on."""
        return list(self.given.get("out", self.given["in"]))

    @property
    def passes(self) -> bool:
        """True where the bytes are handed on as they came."""
        return "out" not in self.given

    @property
    def body(self) -> bytes:
        """The bytes of a whole reply."""
        return (self.given.get("before", "") + json.dumps(self.given["in"], ensure_ascii=False)).encode()


def find(kind: str) -> list[Golden]:
    """Returns the files of one kind: requests, replies or streams."""
    files = sorted(file for file in ROOT.glob(f"*/{kind}/*.json") if file.parts[-3] != "anthropic")
    return [Golden(file.parts[-3], file.stem, json.loads(file.read_text("utf-8"))) for file in files]
