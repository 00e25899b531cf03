"""Maps errors of the providers' official SDKs. One generator made the SDKs, so their errors have the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from adapters.batch.batch_provider import MAX_MESSAGE_CHARS
from adapters.errors import (
    ProviderError,
    ProviderRefused,
    ProviderReplyBroken,
    ProviderTimeout,
    ProviderUnreachable,
)
from adapters.reply_headers import read_retry_after


@contextmanager
def map_sdk_errors(sdk: ModuleType, now: Callable[[], float]) -> Iterator[None]:
    """Raises errors of an SDK as provider errors.

    sdk: the module of the SDK.
    now: a function that returns the seconds since the epoch, for dates in Retry-After.
    """
    try:
        yield
    except sdk.APIStatusError as error:
        headers = ((name.lower(), value) for name, value in error.response.headers.items())
        raise ProviderRefused(
            read_error_message(error.body),
            status=error.status_code,
            retry_after_s=read_retry_after(headers, now()),
        ) from error
    except sdk.APITimeoutError as error:
        raise ProviderTimeout("the upstream gave no answer in time", phase="total") from error
    except sdk.APIConnectionError as error:
        raise ProviderUnreachable(f"the upstream cannot be reached: {error.__cause__ or error}") from error
    except ProviderError:
        raise
    except Exception as error:
        raise ProviderReplyBroken(f"the upstream's answer broke: {type(error).__name__}") from error


def read_error_message(body: object) -> str:
    """Returns the message in the body of an error, whatever form it has."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) or not message:
        return "no reason is given"
    return message[:MAX_MESSAGE_CHARS]
