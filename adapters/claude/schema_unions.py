"""Schemas of tools without unions at their top, where Anthropic refuses them: the branches are merged into one object.

The merged object takes the properties of all branches, and requires those that all branches require; the tool itself
judges the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from adapters.claude.error_form import Untranslatable
from adapters.types import Json

_Value = TypeVar("_Value")
_UNIONS: Final = ("anyOf", "oneOf", "allOf")
# The most properties and required names of all branches together. Chosen far above the numbers in real tools: to merge
# so many takes 0.3 s.
_MAX_MERGED: Final = 100_000


class UnionMerger:
    """Merges the unions of one request's schemas."""

    def __init__(self) -> None:
        # The properties and names that may still be merged. A few short definitions that name each other can multiply
        # to very many.
        self._remaining = _MAX_MERGED
        # The tool's schema with its definitions, and its path in the request.
        self._root: Json = {}
        self._path = ""
        # Definitions that were merged already, by reference. {}: the definition is being merged, or has nothing.
        self._definitions: dict[str, Json] = {}

    def merge(self, schema: Json, path: str) -> Json:
        """Returns a tool's schema without unions at its top. path: its path in the request.

        Raises: Untranslatable: the request has too much to merge, or its unions go too deep.
        """
        self._root = schema
        self._path = path
        self._definitions = {}
        try:
            return self._merge_schema(schema)
        except RecursionError:
            raise Untranslatable("The unions of this schema lead too deep into one another.", path) from None

    def _merge_schema(self, schema: Json) -> Json:
        if schema.keys().isdisjoint(_UNIONS):
            return schema
        merged = _MergedSchema(schema)
        for union in _UNIONS:
            branches = [self._resolve(branch) for branch in _read_value_or_empty(list, schema.get(union))]
            for branch in branches:
                schema_count = merged.add_properties(branch)
                self._charge(schema_count + len(_read_required_names(branch)))
            merged.add_requirements(branches, needs_all=union != "allOf")
        return merged.make_schema()

    def _charge(self, count: int) -> None:
        """Counts further merged properties and names. Raises: Untranslatable: the request has too much to merge."""
        self._remaining -= count
        if self._remaining < 0:
            raise Untranslatable("The unions of this schema have too many branches.", self._path)

    def _resolve(self, branch: Any) -> Json:
        """Returns a branch of a union with the unions at its own top merged. A branch that is a `$ref` is looked up."""
        branch = _read_value_or_empty(dict, branch)
        ref = unquote(str(branch.get("$ref", "")))
        parent, _, name = ref.rpartition("/")
        if parent not in ("#/$defs", "#/definitions"):
            return self._merge_schema(branch)
        if ref not in self._definitions:
            self._definitions[ref] = {}  # inside itself the definition adds nothing
            name = name.replace("~1", "/").replace("~0", "~")  # RFC 6901, section 4
            definition = _read_value_or_empty(dict, self._root.get(parent[2:])).get(name)
            self._definitions[ref] = self._resolve(definition)
        return self._definitions[ref]


class _MergedSchema:
    """A schema into which the branches of its unions are merged."""

    def __init__(self, schema: Json) -> None:
        self._schema = {key: value for key, value in schema.items() if key not in _UNIONS}
        # The schemas of each property in the branches, each once, by their texts. A property of several branches,
        # usually a discriminator, may follow the schema of any branch.
        self._schemas_by_property: dict[str, dict[str, Any]] = {}
        self._required = _read_required_names(schema)

    def add_properties(self, branch: Json) -> int:
        """Adds the properties of a branch. Returns the number of their schemas."""
        schema_count = 0
        for name, value in _read_value_or_empty(dict, branch.get("properties")).items():
            schemas = _list_schema_alternatives(value)
            schema_count += len(schemas)
            self._schemas_by_property.setdefault(name, {}).update(
                (repr(schema), schema) for schema in schemas
            )
        return schema_count

    def add_requirements(self, branches: Sequence[Json], *, needs_all: bool) -> None:
        """Adds the names that the branches of a union require. needs_all: True for names that all require."""
        counts = Counter(name for branch in branches for name in dict.fromkeys(_read_required_names(branch)))
        min_count = len(branches) if needs_all else 1
        self._required += [name for name, count in counts.items() if count >= min_count]
        if branches and all(branch.get("additionalProperties") is False for branch in branches):
            self._schema["additionalProperties"] = False

    def make_schema(self) -> Json:
        """Returns the merged schema. A property that the schema itself has stays as it is."""
        properties: Json = {}
        for name, schemas_by_text in self._schemas_by_property.items():
            schemas = [*schemas_by_text.values()]
            properties[name] = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        properties |= _read_value_or_empty(dict, self._schema.get("properties"))
        schema = {**self._schema, "properties": properties}
        if self._required:
            schema["required"] = list(dict.fromkeys(self._required))
        return schema


def _read_required_names(schema: Json) -> list[str]:
    return [name for name in _read_value_or_empty(list, schema.get("required")) if isinstance(name, str)]


def _list_schema_alternatives(value: Any) -> list[Any]:
    """Returns the schemas that a property's value may follow: the schemas of its `anyOf`, or the property's schema."""
    match value:
        case {"anyOf": list(alternatives), **rest} if not rest:
            return alternatives
    return [value]


def _read_value_or_empty(value_type: type[_Value], value: Any) -> _Value:
    """Returns a value; an empty value of `value_type` in place of one of another type: schemas come from anywhere."""
    return value if isinstance(value, value_type) else value_type()
