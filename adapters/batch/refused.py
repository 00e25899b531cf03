"""Errors of the providers' official SDKs as ours. Both are made by one generator and name theirs alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from adapters.errors import (
    ProviderBroke,
    ProviderError,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnreachable,
)
from adapters.types import read_retry_after

MOST_WORDS: Final = 500  # characters of what a provider says
_TRANSIENT: Final = frozenset((408, 409, 425, 429))


@contextmanager
def translated(sdk: ModuleType, now: Callable[[], float]) -> Iterator[None]:
    """Raises errors of an SDK as ours. sdk: its module. now: seconds since the epoch, for dates in Retry-After."""
    try:
        yield
    except sdk.APIStatusError as error:
        raise refusal(error.status_code, error.body, dict(error.response.headers), now()) from error
    except sdk.APITimeoutError as error:
        raise ProviderTimeout("the upstream gave no answer in time", phase="total") from error
    except sdk.APIConnectionError as error:
        raise ProviderUnreachable(f"the upstream cannot be reached: {error.__cause__ or error}") from error
    except ProviderError:
        raise
    except Exception as error:
        raise ProviderBroke(f"the upstream's answer broke: {type(error).__name__}") from error


def is_transient(status: int) -> bool:
    """Returns whether the same request may succeed another time."""
    return status in _TRANSIENT or status >= 500


def refusal(status: int, body: object, headers: Mapping[str, str], now_s: float) -> ProviderRefused:
    """Returns the error for a status. body: the error object, or what came in its place."""
    found = body.get("error", body) if isinstance(body, dict) else body
    said = found.get("message") if isinstance(found, dict) else found
    words = said if isinstance(said, str) and said else "no reason is given"
    again = read_retry_after(((k.lower(), v) for k, v in headers.items()), now_s)
    return ProviderRefused(words[:MOST_WORDS], status=status, retry_after_s=again)
