"""Reads the query of a URL. It may name the user of a request, so a query that could be read in two ways is refused."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.types import Scope

from gateway.core.nul import check_no_nul
from gateway.dialects.fields import QUOTED_CHARS
from gateway.errors import BadRequest


def read_query(scope: Scope) -> dict[str, str]:
    """Returns the parameters of a query. Raises: BadRequest: it is not UTF-8, or has a parameter twice, or U+0000."""
    try:
        # Bytes that are no UTF-8 are not replaced: two ids could become the same, and their users would share a memory.
        pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise BadRequest("The query of the URL is not UTF-8.") from error
    query: dict[str, str] = {}
    for name, value in pairs:
        if name in query:
            raise BadRequest(
                f"The parameter `{name[:QUOTED_CHARS]}` was sent twice.", param=name[:QUOTED_CHARS]
            )
        query[name] = value
    check_no_nul(query)
    return query
