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
        *overview_screens.make_screens(operations),
        *audit_screen.make_screens(operations),
        *people_screens.make_screens(operations),
        *memory_screens.make_screens(operations),
        *export_screens.make_screens(operations),
        *trial_screens.make_screens(operations),
        *block_screens.make_screens(operations),
        *fact_screens.make_screens(operations),
        *conversation_screens.make_screens(operations),
        *forget_screens.make_screens(operations),
        *request_screens.make_screens(operations),
        *key_screens.make_screens(operations),
        *work_screens.make_screens(operations),
        *run_screens.make_screens(operations),
        *about_me.make_screens(operations),
    ]
