"""The rules of recall that `scripts/bench recall --rules` turns off name their places in texts."""

from __future__ import annotations

import pytest

from scripts.talk.rules import RULES, Rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_turned_off_at_names_that_exist(rule: Rule) -> None:
    """A rename of a constant or function does not change a name in a text, and mypy does not read it."""
    originals = [getattr(module, name) for module, name, _ in rule.off]
    with rule.turned_off():
        assert [getattr(module, name) for module, name, _ in rule.off] == [value for *_, value in rule.off]
    assert [getattr(module, name) for module, name, _ in rule.off] == originals
