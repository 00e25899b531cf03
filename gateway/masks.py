"""Masks keys of providers and of gateways in texts that callers chose.

What a mask covers is decided here for all who mask, of which only the first two are logs:

    log.py                           each line of the log but access lines
    web/middleware.py                id, path and model of an access line
    run/request_log.py               id and model of the last requests, also where one is looked up
    run/receipt.py                   the model's name that is stored with a turn (`Exchange.model`)
    run/usage/unwritten_counters.py  the model's name of the counters of usage, which are stored
    core/usage/gen_ai.py             the model's name in metrics and spans

Whatever is masked here is renamed in what is stored as well, so what only logs have to mask does not belong here, but
into the values of a line before they become JSON: those of `JsonFormatter.format` (log.py) and, of an access line,
`Edge._log_access` (web/middleware.py). What a person wrote is in no log at all. Words that are forgotten or secret are
another matter (`storage/sql/erase.py`, `core/memory/secret_texts.py`), and so are the secrets of an MCP server in its
own errors (`agents/tools/mcp.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache

# Masked are the keys by which models are asked, since those are what callers put into the wrong field. Other secrets
# (`secret_texts.py`) stand in what a person wrote, and that is in no log.
#
# These are the keys of the gateway (mg-), of OpenAI, Anthropic, OpenRouter and DeepSeek (sk-), of Groq (gsk_), xAI
# (xai-), Google (AIza), Fireworks (fw_) and Together (tgp_v1_). A key may be cut off at the end of a text; a piece that
# is shorter than a bound below is of no use to a thief. The last five prefixes have a higher bound, since names of
# models begin like them (xai-grok).
#
# A match begins with one of a few characters, for which `re` looks quickly. So the pattern of a prefix below begins
# after its first character, and looks back at that character. Any character may be percent-encoded, also twice, and
# word processors write dashes in the place of a hyphen.
_HYPHEN = rb"(?:-|%(?:25)*2[Dd]|\xe2\x80[\x90-\x95]|\xe2\x88\x92|\xef\xbc\x8d)"
_MG = rb"(?:(?<=m)|(?<=%)(?:25)*6[Dd])(?:g|%(?:25)*67)" + _HYPHEN
_SK = rb"(?:(?<=s)|(?<=%)(?:25)*73)(?:k|%(?:25)*6[Bb])" + _HYPHEN
_KEY_PREFIX = rb"(?:" + _MG + rb"|" + _SK + rb")(?=[\w%-]{8})"
_AMBIGUOUS_PREFIX = (
    rb"(?:(?<=f)w_(?=[A-Za-z0-9]{20})|(?:(?<=g)sk_|(?<=x)ai-|(?<=A)Iza|(?<=t)gp_v1_)(?=[\w-]{20}))"
)
# No letter stands before the first character, unless it belongs to an escape of JSON or to a percent-encoding.
_NO_LETTER_BEFORE = rb"(?:(?<![A-Za-z0-9].)|(?<=\\[bfnrt].)|(?<=\\u[0-9a-f]{4}.)|(?<=%[0-9A-Fa-f]{2}.))"
# After a letter a key of the gateway is known by its length.
_WHOLE_KEY_PREFIX = _MG + rb"(?=[\w%-]{32})"
_KEY = re.compile(
    rb"([msgxAft%](?:"
    + _NO_LETTER_BEFORE
    + rb"(?:" + _KEY_PREFIX + rb"|" + _AMBIGUOUS_PREFIX + rb")"
    + rb"|" + _WHOLE_KEY_PREFIX
    + rb"))[\w%-]+"
)  # fmt: skip
# Every line that has a key has a match of this pattern, which is faster to search for than `_KEY`. To look for each of
# these texts by `in` takes fifty times as long for a name.
_MAY_BE_KEY = re.compile(rb"mg-|sk-|%|mg\xe2|sk\xe2|mg\xef|sk\xef|gsk_|xai-|AIza|fw_|tgp_v1_")


def mask_keys(line: bytes) -> bytes:
    """Returns a line with each key in it masked after its first letters. line: JSON as orjson writes it.

    Callers put keys where none belongs: into a path, a model's name, a header that an error quotes.
    """
    return _KEY.sub(rb"\1***", line) if _MAY_BE_KEY.search(line) else line


def mask_keys_in_text(text: str) -> str:
    """Returns a text that a caller chose with each key in it masked, as operators see it."""
    return mask_keys(text.encode(errors="replace")).decode()


# For names of models and paths, most of which come again and again.
mask_keys_in_name = lru_cache(maxsize=1024)(mask_keys_in_text)
