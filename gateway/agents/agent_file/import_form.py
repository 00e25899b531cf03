"""The form fields that are sent with an agent file."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, UnsetType

from gateway.agents.wire.sent_values import get_sent_or
from gateway.agents.wire.struct_fields import NO_SECRETS, ONE_PROJECT, Form, Maybe, Name


class ImportForm(Form):
    """The form fields sent with an agent file. The second names of three of them are those of older clients."""

    append_copy_suffix: bool = False
    override_existing_tools: bool = True
    strip_messages: bool = False
    name: Maybe[Name] = UNSET
    override_name: Maybe[Name] = UNSET
    model: Maybe[Name] = UNSET
    override_model_handle: Maybe[Name] = UNSET
    embedding: Maybe[str] = UNSET
    override_embedding_handle: Maybe[str] = UNSET
    env_vars_json: Annotated[str | None, NO_SECRETS] | UnsetType = UNSET
    secrets: Annotated[str | None, NO_SECRETS] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET

    def __post_init__(self) -> None:
        # The older name counts if it alone was sent.
        self.name = get_sent_or(self.name, self.override_name)
        self.model = get_sent_or(self.model, self.override_model_handle)
        self.embedding = get_sent_or(self.embedding, self.override_embedding_handle)
