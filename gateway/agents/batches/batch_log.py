"""The log of the work on one batch."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from gateway.agents.batches.batch_ids import make_public_id
from storage.batch_records import Batch


class BatchLog(logging.LoggerAdapter[logging.Logger]):
    """Logs messages about a batch. Each message begins with the public id of the batch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(logging.getLogger("mnemogate"))
        self._prefix = f"Batch {make_public_id(batch)}: "

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return self._prefix + msg, kwargs
