"""The fields of an agent file that have the same names in the API, by kind of record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The key of this gateway's own fields: in the `metadata` of a file, and in the state of an agent.
EXTENSION = "mnemogate"

# The fields of an agent, a block, a file and a source in a file that the API's JSON has under the same name.
AGENT = (
    "name", "tags", "system", "agent_type", "description", "metadata", "llm_config", "embedding_config",
    "embedding", "model_settings", "compaction_settings", "context_window_limit", "message_buffer_autoclear",
    "response_format", "timezone", "max_files_open", "per_file_view_window_char_limit", "hidden", "tool_rules",
)  # fmt: skip
BLOCK = (
    "value", "limit", "project_id", "template_name", "is_template", "template_id", "base_template_id", "deployment_id",
    "entity_id", "preserve_on_migration", "label", "read_only", "description", "metadata", "hidden", "tags",
)  # fmt: skip
FILE = (
    "file_name", "original_file_name", "file_path", "file_type", "file_size", "file_creation_date",
    "file_last_modified_date", "processing_status", "error_message", "total_chunks", "chunks_embedded", "content",
)  # fmt: skip
SOURCE = ("name", "description", "instructions", "metadata", "embedding_config")


def select_fields(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the values of these names, and None for a missing name."""
    return {name: values.get(name) for name in names}
