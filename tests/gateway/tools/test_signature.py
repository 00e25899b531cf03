"""The schema of a Python tool is read off its signature and docstring, without running it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.agents.tools.signature import make_schema
from gateway.core.turn.arguments import repair_arguments
from gateway.errors import BadRequest

TYPES: list[tuple[str, dict[str, Any]]] = [
    ("str", {"type": "string"}),
    ("int", {"type": "integer"}),
    ("float", {"type": "number"}),
    ("bool", {"type": "boolean"}),
    ("list", {"type": "array", "items": {}}),
    ("list[str]", {"type": "array", "items": {"type": "string"}}),
    ("List[list[int]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
    ("dict", {"type": "object"}),
    ("dict[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}),
    ("typing.Dict[str, Any]", {"type": "object", "additionalProperties": {}}),
    ("Optional[int]", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    ("int | None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    ("Optional['int | None']", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    (
        "list[int] | Annotated[Union[str, list[int]], 1]",
        {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]},
    ),
    (
        "Union[int, str, None]",
        {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]},
    ),
    ("int | str | int", {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
    ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}),
    ("Literal[1, 'a', None]", {"type": ["integer", "null", "string"], "enum": [1, "a", None]}),
    ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
    (
        "Tuple[int, str]",
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        },
    ),
    ("'list[str]'", {"type": "array", "items": {"type": "string"}}),
    ("Annotated[int, 'more']", {"type": "integer"}),
    ("Any", {}),
]


@pytest.mark.parametrize(("annotation", "schema"), TYPES, ids=[each for each, _ in TYPES])
def test_an_annotation_becomes_its_schema(annotation: str, schema: dict[str, Any]) -> None:
    source = f'def f(x: {annotation}):\n    """Do.\n\n    Args:\n        x: The x.\n    """\n'
    properties = make_schema(source)["parameters"]["properties"]
    assert properties == {"x": {**schema, "description": "The x."}}


WEATHER = '''
import os
from typing import Optional

os._exit(1)  # the source is not run

def helper(x):
    return x

class Other:
    def method(self): ...

async def get_weather(agent_state: "AgentState", city: str, days: int = 3, unit: Optional[str] = None,
                      *, tags: list[str], scale: float = float("inf")) -> str:
    """
    Look the weather up.

    It is a forecast:
    of several days.

    Args:
        city (str): The city's name,
            in English: "Rome".
        days (int, optional): How many days.
        unit: celsius or fahrenheit
        tags (list[str]): Some tags.

        scale: A scale.

    Returns:
        str: the weather
    Examples:
        get_weather("Rome")
    """
    return "\\d"

weather = get_weather
'''


def test_signature_and_docstring_make_one_schema() -> None:
    schema = make_schema(WEATHER)
    assert schema == {
        "name": "get_weather",
        "description": "Look the weather up.\n\nIt is a forecast:\nof several days.\n\n"
        'Examples:\n    get_weather("Rome")',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": 'The city\'s name, in English: "Rome".'},
                "days": {"type": "integer", "description": "How many days.", "default": 3},
                "unit": {
                    "anyOf": [{"type": "string"}, {"type": "null"}],
                    "description": "celsius or fahrenheit",
                    "default": None,
                },
                "tags": {"type": "array", "items": {"type": "string"}, "description": "Some tags."},
                "scale": {"type": "number", "description": "A scale."},
            },
            "required": ["city", "tags"],
        },
    }
    assert repair_arguments(schema["parameters"], {"city": "Rome", "tags": [], "unit": None})[1] is None
    assert repair_arguments(schema["parameters"], {"city": "Rome"})[1] == "`tags` is missing"


STYLES = {
    "Google": """Fetch a page.

    It is read: all of it.

    Keyword Args:
        url (str): Where it is,
            with its scheme.
        tries: How often.

    Returns:
        str: the page
    """,
    "Sphinx": """Fetch a page.

    It is read: all of it.

    :param url: Where it is,
        with its scheme.
    :param int tries: How often.
    :type url: str
    :returns: the page
    :raises ValueError: if there is none
    """,
    "Epydoc": """Fetch a page.

    It is read: all of it.

    @param url: Where it is, with its scheme.
    @param tries: How often.
    @return: the page
    """,
    "Google, types with brackets": """Fetch a page.

    It is read: all of it.

    Args:
        url (Annotated[str, Field(min_length=1)]): Where it is, with its scheme.
        tries (int, optional (default 1)): How often.
    """,
    "NumPy without types": """Fetch a page.

    It is read: all of it.

    Parameters
    ----------
    url
        Where it is,
        with its scheme.
    tries
        How often.
    """,
    "NumPy": """Fetch a page.

    It is read: all of it.

    Parameters
    ----------
    url : str
        Where it is,
        with its scheme.
    tries : int, optional
        How often.

    Returns
    -------
    str
        the page
    """,
}


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_docstrings(style: str) -> None:
    schema = make_schema(f"def fetch(url: str, tries: int = 1):\n    {STYLES[style]!r}\n    return ''")
    assert schema["description"] == "Fetch a page.\n\nIt is read: all of it."
    properties = schema["parameters"]["properties"]
    assert properties["url"]["description"] == "Where it is, with its scheme."
    assert properties["tries"]["description"] == "How often."


def test_a_function_without_parameters_needs_no_docstring() -> None:
    assert make_schema("def now(): return 1") == {
        "name": "now",
        "description": "",
        "parameters": {"type": "object", "properties": {}, "required": []},
    }


DOC = '\n    """Do.\n\n    Args:\n        x: The x.\n    """\n'
ERRORS = [
    ("", "The source has no function at its top level."),
    ("class A:\n    def f(self): ...", "The source has no function at its top level."),
    ("x = 1\ndef f(:\n", "Line 2: this is no Python: invalid syntax."),
    ("def f(\n  x):" + DOC, "Line 2: parameter 'x' has no type."),
    ("def f(x: int): ...", "Line 1: parameter 'x' has no description in the docstring's section `Args:`."),
    ("def f(y: int):" + DOC, "Line 1: parameter 'y' has no description in the docstring's section `Args:`."),
    ("def f(*x: int):" + DOC, "Line 1: a tool cannot take any number of arguments, as 'x' does."),
    ("def f(**x: int):" + DOC, "Line 1: a tool cannot take any number of arguments, as 'x' does."),
    ("def f(x: int, /):" + DOC, "Line 1: parameter 'x' must be one that can be named."),
    ("def f(x: Order):" + DOC, "Line 1: the type `Order` has no JSON schema"),
    ("class Order: pass\ndef f(x: Order):" + DOC, "Line 2: the type `Order` has no JSON schema"),
    (
        "class A(A):\n  x: int\ndef f(x: A):" + DOC.replace("x", "y"),
        "Line 3: parameter 'x' has no description",
    ),
    (
        "class A0: pass\n"
        + "".join(f"class A{n}(A{n - 1}, b.A{n - 1}): pass\n" for n in range(1, 60))
        + "def f(x: A59):"
        + DOC,
        "Line 61: the type `A59` has no JSON schema",
    ),
    # One that holds itself has no end, and few may have very many fields when they are written out.
    ("class A:\n  x: list[A]\ndef f(x: A):" + DOC, "Line 2: the type `A` has no JSON schema"),
    (
        "class A(B):\n  x: int\nclass B(A):\n  y: B\ndef f(x: A):" + DOC,
        "Line 4: the type `B` has no JSON schema",
    ),
    (
        "class A0:\n  x: int\n"
        + "".join(f"class A{n}:\n  x: A{n - 1}\n  y: A{n - 1}\n" for n in range(1, 30))
        + "def f(x: A29):"
        + DOC,
        "Line 7: the fields of its classes have more than 100,000 characters, counted wherever one is used",
    ),
    (
        f"class A:\n  x: int = Field(description={'d' * 60_000!r})\n"
        "class B:\n  x: A\n  y: A\ndef f(x: B):" + DOC,
        "Line 5: the fields of its classes have more than 100,000 characters",
    ),
    # As deep as the gateway can write JSON around it.
    (
        "class A0:\n  x: int\n"
        + "".join(f"class A{n}:\n  x: A{n - 1}\n" for n in range(1, 120))
        + "def f(x: A119):"
        + DOC,
        "Line 241: its types or its docstring contain half a surrogate pair or a number beyond 64 bits, or are",
    ),
    ("def f(x: list[Order]):" + DOC, "Line 1: the type `Order` has no JSON schema"),
    ("def f(x: dict[int, str]):" + DOC, "Line 1: the type `dict[int, str]` has no JSON schema"),
    ("def f(x: set[str]):" + DOC, "Line 1: the type `set[str]` has no JSON schema"),
    ("def f(x: 'list['):" + DOC, "Line 1: the type `'list['` has no JSON schema"),
    ("def f(x: Literal[1.5]):" + DOC, "Line 1: the type `Literal[1.5]` has no JSON schema"),
    ("def f(x: Literal[()]):" + DOC, "Line 1: the type `Literal[()]` has no JSON schema"),
    ("def f(x: Union[()]):" + DOC, "Line 1: the type `Union[()]` has no JSON schema"),
    ("def f(x: Annotated[()]):" + DOC, "Line 1: the type `Annotated[()]` has no JSON schema"),
    ("def wetter_für_heute(): ...", "Line 1: 'wetter_für_heute' is no name for a tool"),
    ("def f(): return " + "-" * 50_000 + "1", "The source cannot be read"),
    ("def f(x: int" + " | int" * 1_000 + "):" + DOC, "Line 1: its types are nested too deeply."),
    ("def f(x: Literal['\\ud800']):" + DOC, "Line 1: its types or its docstring contain half a surrogate"),
    ("def f(x: Literal[0x1_0000_0000_0000_0000]):" + DOC, "Line 1: its types or its docstring contain half"),
    ("def f():\n    'Do \\ud800.'", "Line 1: its types or its docstring contain half a surrogate"),
    ("#" * 100_001, "The source has more than 100,000 characters."),
]


@pytest.mark.parametrize(("source", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors_name_the_line(source: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        make_schema(source)
    assert caught.value.message.startswith(message)
    assert caught.value.param == "source_code"


@pytest.mark.parametrize(
    "default",
    [
        "'\\ud800'",
        "0x1_0000_0000_0000_0000",
        "{'\\udfff': 1}",
        "float('inf')",
        "1e999",
        "[(1,)]",
        "{1: 2}",
        "b''",
    ],
)
def test_a_default_that_json_cannot_say_is_left_to_the_function(default: str) -> None:
    (x,) = make_schema(f"def f(x: Any = {default}):{DOC}")["parameters"]["properties"].values()
    assert x == {"description": "The x."}


MODELS = """
from pydantic import BaseModel, ConfigDict, Field

class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kinds: ClassVar[list[str]] = []
    sku: str = Field(..., description="The number.")
    count: int = Field(1, ge=0)
    tags: list[str] = Field(default_factory=list, description="Words.")

class Sold(Item):
    note: Optional[str] = None
    count: float

@dataclass
class Order:
    items: List[Item]
    last: "Sold | None" = field(default=None)

def sell(order: Order):
    \"""Sell.

    Args:
        order: What is sold.
    \"""
"""


TYPED_DICTS = """
class Place(TypedDict):
    city: str
    street: NotRequired[str]

class Order(Place, total=False):
    sku: Required[ReadOnly[str]]
    count: int

def sell(order: Order):
    \"""Sell.

    Args:
        order: What is sold.
    \"""
"""


def test_an_object_may_lack_what_its_typed_dict_does_not_require() -> None:
    text = {"type": "string"}
    assert make_schema(TYPED_DICTS)["parameters"]["properties"]["order"] == {
        "type": "object",
        "properties": {"city": text, "street": text, "sku": text, "count": {"type": "integer"}},
        "required": ["city", "sku"],
        "description": "What is sold.",
    }


def test_a_class_of_the_source_says_what_an_object_has() -> None:
    item = {
        "sku": {"type": "string", "description": "The number."},
        "count": {"type": "integer", "default": 1},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "Words."},
    }
    text_or_null = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    sold = {**item, "count": {"type": "number"}, "note": text_or_null}
    items = {"type": "object", "properties": item, "required": ["sku"]}
    last = {"type": "object", "properties": sold, "required": ["sku", "count"]}
    assert make_schema(MODELS)["parameters"]["properties"]["order"] == {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": items},
            "last": {"anyOf": [last, {"type": "null"}], "default": None},
        },
        "required": ["items"],
        "description": "What is sold.",
    }
