"""A part of a batch while its requests are composed, before it is submitted."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import BinaryIO

from adapters.batch.batch_provider import BatchProvider
from storage.batch_records import AssignedItem


@dataclass(slots=True)
class PartDraft:
    """A part that is being composed. Its requests are in a file without a name, which ends with the process."""

    # The upstream and the model of all requests in the part.
    upstream: str
    # The model of all requests.
    model: str
    # The items in the order of their requests in the file.
    items: list[AssignedItem] = field(default_factory=list)
    # The size of the file in bytes.
    size_bytes: int = 0
    # The requests, one a line; None: there is none yet, or the file was handed over.
    _file: BinaryIO | None = field(default=None, init=False)

    def add(self, line: bytes, item: AssignedItem) -> None:
        """Adds the request of an item. line: the request's line in the file, with its line end."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.write(line)
        self.size_bytes += len(line)
        self.items.append(item)

    def is_full(self, provider: BatchProvider, extra_bytes: int) -> bool:
        """Returns whether the provider's limits leave no room for another request of `extra_bytes`."""
        return self.size_bytes + extra_bytes > provider.max_bytes or len(self.items) >= provider.max_requests

    def leave_out(self, run_rows: Collection[int]) -> None:
        """Leaves out the requests of the items of some runs. Reads all requests and writes the others again."""
        items = self.items
        with self.hand_over() as file:
            self.items, self.size_bytes = [], 0
            for line, item in zip(file, items, strict=True):
                if item.run_row not in run_rows:
                    self.add(line, item)

    def hand_over(self) -> BinaryIO:
        """Returns the file; the caller closes it."""
        file, self._file = self._file, None
        assert file is not None  # only a draft with items is handed over, once
        file.seek(0)
        return file

    def release(self) -> None:
        """Closes the file, unless it was handed over."""
        if self._file is not None:
            self._file.close()
            self._file = None
