"""The rules that the store is given when it is opened: pure functions, called wherever it reads or writes."""

from __future__ import annotations

from typing import Final

from gateway.core.conversation.listed import leaves_calls
from gateway.core.memory.edits import merge
from gateway.core.memory.forgetting_rules import quotes, rebuild, without_found
from gateway.core.memory.visibility import messages_of, tools_used
from storage.commands import Rules

RULES: Final = Rules(messages_of, merge, quotes, rebuild, tools_used, without_found, leaves_calls)
