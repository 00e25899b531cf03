"""The mark and the reader that tests of finding a conversation share."""

from __future__ import annotations

import pytest

from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import read_text
from tests.core.conversations import (
    World,
)

both = pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])


def path_texts(world: World, exchange_row: int) -> list[str]:
    tree = Tree(world.memory().records.values())
    contents = [tree.contents.get(e) for e in tree.list_path(tree.by_id[exchange_row])]
    return [
        read_text(m) for c in contents for m in [*(c.messages or []), c.shown_reply] if m and read_text(m)
    ]
