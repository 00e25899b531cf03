"""Golden files of the providers: inputs and expected outputs, written by hand from the providers' documents.

The files of `anthropic` have both dialects, because it is translated (tests/adapters/test_anthropic_golden.py). The
other providers speak OpenAI's dialect, with additions that must not be lost. Their files have these fields:

    file       field              value
    requests   in                 the request of an application
               out                the request that must reach the provider
               consumed, adapted  the values of these `x-mnemogate-` headers in the reply
    replies    in                 the body; `status` and `headers` belong to it
               before             bytes before the body
    streams    in                 the events; a text stands for its bytes
               out                the events that the client gets, if they differ

Replies and streams also have `says`: the content that the gateway must read from them. `from` is the address of the
document.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """A file of a provider that speaks OpenAI's dialect."""

    # The name of the provider.
    family: str
    # The name of the file, without its ending.
    name: str
    # The content of the file.
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """The id of the test."""
        return f"{self.family}-{self.name}"

    @property
    def says(self) -> dict[str, Any]:
        """The content that the gateway must read from a reply."""
        content: dict[str, Any] = self.fields["says"]
        return content

    @property
    def status(self) -> int:
        return int(self.fields.get("status", 200))

    @property
    def pieces(self) -> list[bytes]:
        """The events of a stream as the provider writes them."""
        return [
            (each if isinstance(each, str) else f"data: {json.dumps(each, ensure_ascii=False)}\n\n").encode()
            for each in self.fields["in"]
        ]

    @property
    def out(self) -> list[Any]:
        """The events that the client gets."""
        return list(self.fields.get("out", self.fields["in"]))

    @property
    def passes_unchanged(self) -> bool:
        """True if the client gets the bytes of the stream as they came."""
        return "out" not in self.fields

    @property
    def body(self) -> bytes:
        """The bytes of a whole reply."""
        return (self.fields.get("before", "") + json.dumps(self.fields["in"], ensure_ascii=False)).encode()


def find_golden_files(kind: str) -> list[Golden]:
    """Returns the files of one kind: requests, replies or streams."""
    files = sorted(file for file in ROOT.glob(f"*/{kind}/*.json") if file.parts[-3] != "anthropic")
    return [Golden(file.parts[-3], file.stem, json.loads(file.read_text("utf-8"))) for file in files]
