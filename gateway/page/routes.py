"""All screens and actions. The first one whose path fits counts."""

from __future__ import annotations

from gateway.page import (
    about_me,
    blocks,
    conversations,
    facts,
    forgetting,
    keys,
    memory,
    overview,
    people,
    requests,
    runs,
    work,
)
from gateway.page.operations import PageOperations
from gateway.page.screen import Action, Screen


def all_routes(operations: PageOperations) -> list[Screen | Action]:
    return [
        *overview.screens(operations),
        *people.screens(operations),
        *memory.screens(operations),
        *blocks.screens(operations),
        *facts.screens(operations),
        *conversations.screens(operations),
        *forgetting.screens(operations),
        *requests.screens(operations),
        *keys.screens(operations),
        *work.screens(operations),
        *runs.screens(operations),
        *about_me.screens(operations),
    ]
