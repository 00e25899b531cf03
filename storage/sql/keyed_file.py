"""The empty file next to a database, `<real path>.keyed`, that marks that there are gateway keys.

A gateway that can no longer read its database must still ask for a key.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from storage.database_path import resolve_path
from storage.errors import StoreFailed, StoreUnavailable
from storage.sidecar import KEYED, has_sidecar, make_sidecar, remove_sidecar

_log = logging.getLogger("mnemogate")


def was_keyed(database: str | Path) -> bool:
    """Returns whether keys were made for this database, by the file next to it. True if its path is not trusted."""
    try:
        return has_sidecar(resolve_path(database), KEYED)
    except StoreFailed:  # callers need a key then
        return True


def update_keyed_file(path: str, *, is_keyed: bool) -> None:
    """Makes the file of a database, or removes it. path: the resolved path of the database."""
    # Where the file cannot be written, the database alone shows that there are keys.
    with contextlib.suppress(OSError, StoreUnavailable):
        if is_keyed == has_sidecar(path, KEYED):
            return
        if is_keyed:
            os.close(make_sidecar(path, KEYED))
            return
        remove_sidecar(path, KEYED)
        _log.warning(
            "This database had gateway keys and now has none, as an older copy. Requests from this machine "
            "need no key until `mnemogate keys create` makes one."
        )
