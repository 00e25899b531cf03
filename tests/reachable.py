"""The texts that an object leads to, for claims that a process has let go of something.

assert [*texts_with("Miso", world.gateway.app)] == []
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

# Besides the object, the globals of these are looked through.
PACKAGES = frozenset(("gateway", "storage", "adapters"))


def texts_with(word: str, of: object) -> Iterator[str | bytes]:
    """Yields the texts with a word that an object leads to, and then those of globals of the product."""
    gc.collect()
    return (text for text in _texts_of(of) if _has(text, word))


def _has(text: str | bytes, word: str) -> bool:
    return word in text if isinstance(text, str) else word.encode() in text


def _texts_of(of: object) -> Iterator[str | bytes]:
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
    globals_of_others = {id(vars(each)) for each in sys.modules.values()} - {
        id(vars(each)) for each in modules
    }
    seen = set(globals_of_others)
    left: list[object] = [*map(vars, modules), of]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, str | bytes | bytearray):
            yield bytes(each) if isinstance(each, bytearray) else each
        elif not isinstance(each, ModuleType | FrameType | CodeType) and not _is_of_tests(each):
            left += _referents(each)


def _is_of_tests(each: Any) -> bool:
    return str(getattr(type(each), "__module__", "")).startswith(("tests", "_pytest"))


def _referents(each: object) -> list[object]:
    if isinstance(each, FunctionType):  # without the globals of its module
        return [each.__closure__, each.__defaults__, each.__kwdefaults__, each.__dict__]
    return gc.get_referents(each)
