"""The error of a file that cannot be imported. No error quotes the file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway.errors import BadRequest

UNREADABLE_ZIP: Final = "it is a ZIP that is damaged, encrypted, or packed in a way that is not read here"


def make_wrong_file_error(reason: str) -> BadRequest:
    return BadRequest(f"This file cannot be imported: {reason}.", param="file")


@contextmanager
def map_parser_errors() -> Iterator[None]:
    """Raises a `BadRequest` in place of the errors of parsers, since these may quote the file."""
    import ijson

    try:
        yield
    except ijson.JSONError as error:
        raise make_wrong_file_error("it is no JSON, or a part of it is missing") from error
    except UnicodeDecodeError as error:
        raise make_wrong_file_error("its text is not Unicode") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise make_wrong_file_error(UNREADABLE_ZIP) from error
