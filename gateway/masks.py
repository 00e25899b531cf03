"""Masks keys of providers and of gateways in texts that callers chose.

All modules that mask use the patterns of this module. Only the first two of them write logs:

    log.py                           each line of the log but access lines
    web/middleware.py                id, path and model of an access line
    run/request_log.py               id and model of the last requests, also where one is looked up
    run/receipt.py                   the model's name that is stored with a turn (`Exchange.model`)
    run/usage/unwritten_counters.py  the model's name of the counters of usage, which are stored
    core/usage/gen_ai.py             the model's name in metrics and spans

The others store the masked text. A secret that has to be masked in logs alone is masked in the values of a line before
they become JSON: in `JsonFormatter.format` (log.py) and, for an access line, in `Edge._log_access` (web/middleware.py).
No log has a text that a person wrote. Other modules remove forgotten words (`storage/sql/erase.py`), find secrets in
memories (`core/memory/secret_texts.py`), and remove the secrets of an MCP server from its errors
(`agents/tools/mcp.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache

# The keys with which models are called are masked, since callers put these into the wrong field. Other secrets
# (`secret_texts.py`) are part of texts that a person wrote, which are in no log.
#
# These are the keys of the gateway (mg-), of OpenAI, Anthropic, OpenRouter and DeepSeek (sk-), of Groq (gsk_), xAI
# (xai-), Google (AIza, AQ.), Fireworks (fw_), Together (tgp_v1_), Perplexity (pplx-), Cerebras (csk-) and NVIDIA
# (nvapi-). A key may be cut off at the end of a text; a piece that is shorter than a bound below is of no use to a
# thief. The last nine prefixes have a higher bound, since names of models begin like them (xai-grok, pplx-70b).
#
# A match begins with one of a few characters, which `re` finds quickly. So the pattern of a prefix below begins after
# the prefix's first character, and looks back at that character. Any character may be percent-encoded, also twice, and
# word processors write dashes in place of a hyphen.
_HYPHEN = rb"(?:-|%(?:25)*2[Dd]|\xe2\x80[\x90-\x95]|\xe2\x88\x92|\xef\xbc\x8d)"
_MG = rb"(?:(?<=m)|(?<=%)(?:25)*6[Dd])(?:g|%(?:25)*67)" + _HYPHEN
_SK = rb"(?:(?<=s)|(?<=%)(?:25)*73)(?:k|%(?:25)*6[Bb])" + _HYPHEN
_KEY_PREFIX = rb"(?:" + _MG + rb"|" + _SK + rb")(?=[\w%-]{8})"
_AMBIGUOUS_PREFIX = (
    rb"(?:(?:(?<=f)w_|(?<=p)plx-|(?<=c)sk-)(?=[A-Za-z0-9]{20})"
    rb"|(?:(?<=g)sk_|(?<=x)ai-|(?<=A)(?:Iza|Q\.)|(?<=t)gp_v1_|(?<=n)vapi-)(?=[\w-]{20}))"
)
# No letter stands before the first character, unless it belongs to an escape of JSON or to a percent-encoding.
_NO_LETTER_BEFORE = rb"(?:(?<![A-Za-z0-9].)|(?<=\\[bfnrt].)|(?<=\\u[0-9a-f]{4}.)|(?<=%[0-9A-Fa-f]{2}.))"
# After a letter a key of the gateway is known by its length.
_WHOLE_KEY_PREFIX = _MG + rb"(?=[\w%-]{32})"
_KEY = re.compile(
    rb"([msgxAftpcn%](?:"
    + _NO_LETTER_BEFORE
    + rb"(?:" + _KEY_PREFIX + rb"|" + _AMBIGUOUS_PREFIX + rb")"
    + rb"|" + _WHOLE_KEY_PREFIX
    + rb"))[\w%-]+"
)  # fmt: skip
# Every line that has a key has a match of this pattern, which is faster to search for than `_KEY`. Testing a name for
# each of these texts with `in` takes fifty times as long.
_MAY_BE_KEY = re.compile(
    rb"mg-|sk-|%|mg\xe2|sk\xe2|mg\xef|sk\xef|gsk_|xai-|AIza|AQ\.|fw_|tgp_v1_|pplx-|nvapi-"
)


def mask_keys(line: bytes) -> bytes:
    """Returns a line with each key in it masked after its first letters. line: JSON as orjson writes it.

    Callers put keys where none belongs: into a path, a model's name, a header that an error quotes.
    """
    return _KEY.sub(rb"\1***", line) if _MAY_BE_KEY.search(line) else line


def mask_keys_in_text(text: str) -> str:
    """Returns a text that a caller chose with each key in it masked, as operators see it."""
    return mask_keys(text.encode(errors="replace")).decode()


# For names of models and paths, most of which are repeated.
mask_keys_in_name = lru_cache(maxsize=1024)(mask_keys_in_text)
