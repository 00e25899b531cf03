"""All screens and actions. A request goes to the first screen or action with a path that fits."""

from __future__ import annotations

from gateway.page import (
    about_me,
    audit_screen,
    block_screens,
    conversation_screens,
    export_screens,
    fact_screens,
    forget_screens,
    key_screens,
    memory_screens,
    overview_screens,
    people_screens,
    request_screens,
    run_screens,
    trial_screens,
    work_screens,
)
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Screen


def list_routes(operations: PageOperations) -> list[Screen | Action]:
    return [
        *overview_screens.screens(operations),
        *audit_screen.screens(operations),
        *people_screens.screens(operations),
        *memory_screens.screens(operations),
        *export_screens.screens(operations),
        *trial_screens.screens(operations),
        *block_screens.screens(operations),
        *fact_screens.screens(operations),
        *conversation_screens.screens(operations),
        *forget_screens.screens(operations),
        *request_screens.screens(operations),
        *key_screens.screens(operations),
        *work_screens.screens(operations),
        *run_screens.screens(operations),
        *about_me.screens(operations),
    ]
