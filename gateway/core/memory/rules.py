"""The rules that the store gets when it is opened: pure functions, which it calls wherever it reads or writes."""

from __future__ import annotations

from typing import Final

from gateway.core.conversation.stored_messages import has_open_calls
from gateway.core.memory.edits import make_block_merge
from gateway.core.memory.forgetting_rules import drop_quotations, may_quote, rebuild_block
from gateway.core.memory.orders import get_own_text
from gateway.core.memory.visibility import list_recallable_messages, list_tools_used
from storage.store_rules import Rules

RULES: Final = Rules(
    list_messages=list_recallable_messages,
    get_own_text=get_own_text,
    make_block_merge=make_block_merge,
    may_quote=may_quote,
    rebuild_block=rebuild_block,
    list_tools_used=list_tools_used,
    drop_quotations=drop_quotations,
    has_open_calls=has_open_calls,
)
