"""Recognises text that looks like a secret (keys, tokens, passwords, card numbers), which is not learned.

Its form alone decides. In doubt a text is withheld, since it is still in its conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# The text in place of a secret.
WITHHELD = "[withheld]"
# The most characters of a secret that is no private key, with the words before it: a JSON web token in a header.
MAX_SECRET_CHARS = 10_000

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
# Forms that providers document for their keys and tokens, and JSON web tokens. The bound of the latter is above the
# length of an HTTP header; with it, a text with many beginnings of tokens is read in linear time.
_KNOWN_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|mg|xai|gsk|hf|tgp_v1|glpat|npm|pypi|dop_v1|whsec|sbp)[-_][A-Za-z0-9_\-]{12,}"
    r"|(?:fw_|pplx-|csk-)[A-Za-z0-9]{20,}|nvapi-[\w\-]{20,}"
    r"|(?:shp(?:at|ca|pa|ss)|e2b|lin_api|ntn|r8)_[A-Za-z0-9]{20,}"
    r"|(?:lsv2_[ps][tk]|pscale_[a-z]{2,6}|figd|sntry[su])_[\w\-]{20,}"
    r"|(?:GOCSPX|AGE-SECRET-KEY|HRKU|tvly|tskey-[a-z]{3,9})-[\w\-]{20,}|dapi[0-9a-f]{32}|ATATT3[\w\-=]{30,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|xox[abeprs]-[A-Za-z0-9\-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_\-]{30,}|AQ\.[\w\-]{30,}|(?:ya29|hvs)\.[\w\-]{20,}"
    r"|SG\.[\w\-]{16,}\.[\w\-]{16,}|eyJ[\w\-]{8,8000}+\.[\w\-]{8,}\.[\w\-]*)"
)
# Words that announce a secret. The words for "password" are those of most languages in the tables of words.
_SECRET_NAME = (
    r"(?:\b|_)(?:pass(?:words?|phrase|code|wd)|passwort|kennwort|mot de passe|contraseña|senha|wachtwoord"
    r"|lösenord(?:et)?|passord(?:et)?|adgangskoden?|salasana(?:ni)?|hasło|heslo|jelsz(?:ó|avam)|şifrem?|пароль"
    r"|api[ _-]?key|access[ _-]?key|secret[ _-]?key|client[ _-]?secret|(?:access|auth|bearer)[ _-]?token|cvv|cvc"
    r"|pin(?:[ -]?(?:code|number))?)\b"
)
# Such words with a verb or a sign, and the secret after them: anything without white space.
_NAMED_SECRET = re.compile(
    rf"({_SECRET_NAME}(?:\s++(?:for|to|of|für)\s++[^\n.:=]{{0,40}}?)?[\"']?\s*+"
    r"(?:[:=]|\b(?:is|are|was|ist|lautet|es|est|è|é|är|er|jest)\b:?)\s*[\"'`]?)"
    r"([^\s\"'`]{3,})",
    re.IGNORECASE,
)
# Without a verb or a sign ("password hunter2") the next word is a secret if it mixes letters and digits, and names no
# technique ("password sha256") and no pin of a board ("pin GPIO17").
_MIXED_SECRET = re.compile(
    rf"({_SECRET_NAME}[\"']?\s++[\"'`]?)"
    r"(?!(?:argon|base|bcrypt|oauth|pbkdf|sha|version)[\d-]|(?:gpio\d{1,2}|md[2456])(?!\w))"
    r"((?=[^\s\"'`]*\d)(?=[^\s\"'`]*[^\W\d_])[^\s\"'`]{6,})",
    re.IGNORECASE,
)
# The same in scripts without spaces between words. Most passwords are in ASCII there, and the words after such a word
# are not.
_UNSPACED_NAMED_SECRET = re.compile(
    r"((?:密[码碼]|口令|パスワード|暗証番号|비밀번호|암호)(?:(?:は|是|为|為|는|은|가)\s*+[:：=]?|\s*+[:：=])\s*+[\"'`「]?)"
    r"([!-~]{3,})"
)
# A variable of an environment with the name of a secret, and a value that mixes letters and digits. The bounds of both
# lookaheads keep a text with many such names linear.
_ASSIGNED_SECRET = re.compile(
    r"(\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|KEY|PASS|PWD) ?= ?[\"']?)"
    r"((?=[^\s\"'\d]{0,200}+\d)(?=[^\s\"'A-Za-z]{0,200}+[A-Za-z])[^\s\"']{8,}+)"
)
# The password in an address, such as that of a database: "postgres://anna:…@db.example.org".
_PASSWORD_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]*:)([^\s/@]{3,}+)(?=@)", re.IGNORECASE)
# A token after the word that names its kind.
_BEARER_TOKEN = re.compile(r"(\bbearer\s+)([A-Za-z0-9._\-]{12,})", re.IGNORECASE)
# Groups of digits side by side, such as a card's number and its expiry date; no part of a decimal number.
_DIGIT_GROUPS = re.compile(r"(?<![\d.,])\d++(?![.,]+\d)(?:[ -]\d++(?![.,]+\d))*+")
# One group of digits.
_DIGIT_GROUP = re.compile(r"\d+")
# The digits of a payment card's number (ISO/IEC 7812).
_MIN_CARD_DIGITS, _MAX_CARD_DIGITS = 13, 19
# For each digit, the sum of the digits of its double, as Luhn's sum has every second digit from the end.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
# A long word of letters and digits that is no part of a path or an address; `_is_random` looks closer.
_RANDOM_WORD = re.compile(r"(?<![\w/.+=-])[A-Za-z0-9_\-+/]{24,}={0,2}(?![\w/.+=-])")
# "my password is wrong", "the pin is not": such a word after the name of a secret is not the secret.
_PLAIN_WORDS = frozenset(
    re.findall(
        r"\w+",
        "not wrong right correct incorrect invalid expired old new weak strong safe secure lost gone forgotten "
        "required missing too very still already always never now here there something nothing the a an in on my "
        "your what why",
    )
)


def withhold(text: str) -> str:
    """Returns the text with everything that looks like a secret replaced."""
    # The most precise pattern first: a broad pattern must not replace a part of a secret that a precise one finds
    # whole.
    text = _KNOWN_FORMS.sub(WITHHELD, withhold_private_keys(text))
    text = _NAMED_SECRET.sub(_withhold_value, text)
    text = _MIXED_SECRET.sub(_withhold_value, text)
    text = _UNSPACED_NAMED_SECRET.sub(_withhold_value, text)
    text = _ASSIGNED_SECRET.sub(_withhold_value, text)
    text = _PASSWORD_IN_URL.sub(rf"\1{WITHHELD}", text)
    text = _BEARER_TOKEN.sub(rf"\1{WITHHELD}", text)
    text = _DIGIT_GROUPS.sub(_withhold_cards, text)
    return _RANDOM_WORD.sub(lambda m: WITHHELD if _is_random(m[0]) else m[0], text)


def withhold_private_keys(text: str) -> str:
    """Returns the text with private keys in the form of PEM replaced."""
    return _PRIVATE_KEY.sub(WITHHELD, text)


def has_secret(text: str) -> bool:
    """Returns whether something in a text looks like a secret."""
    return withhold(text) != text


def _withhold_value(match: re.Match[str]) -> str:
    value = match[2].rstrip(".,;:!?)")
    if value.casefold() in _PLAIN_WORDS or value.startswith("[withheld"):
        return match[0]
    return f"{match[1]}{WITHHELD}{match[2][len(value) :]}"


def _withhold_cards(match: re.Match[str]) -> str:
    """Returns groups of digits with each card's number replaced."""
    text = match[0]
    if len(text) < _MIN_CARD_DIGITS:
        return text
    groups = [*_DIGIT_GROUP.finditer(text)]
    pieces: list[str] = []
    offset = 0
    for first, group in enumerate(groups):
        if group.start() >= offset and (end := _find_card_end(groups, first)) is not None:
            pieces += (text[offset : group.start()], WITHHELD)
            offset = end
    return "".join((*pieces, text[offset:]))


def _find_card_end(groups: Sequence[re.Match[str]], first: int) -> int | None:
    """Returns the end of the longest card's number that begins with a group; None: no number begins there.

    Luhn's sum is right for every payment card, and for one of ten other numbers.
    """
    end = None
    digits = ""
    # Luhn's sum of the digits, and their sum if one more digit follows: then every digit changes its place.
    total = total_if_followed = 0
    for group in groups[first : first + _MAX_CARD_DIGITS]:
        digits += group[0]
        if len(digits) > _MAX_CARD_DIGITS:
            break
        for digit in map(int, group[0]):
            total, total_if_followed = total_if_followed + digit, total + _DOUBLED[digit]
        if len(digits) >= _MIN_CARD_DIGITS and total % 10 == 0 and len({*digits}) > 1:
            end = group.end()
    return end


def _is_random(text: str) -> bool:
    """Returns whether upper case, lower case and digits are mixed, as in no word, path, number or date."""
    kinds = (
        any(c.isupper() for c in text),
        any(c.islower() for c in text),
        sum(c.isdigit() for c in text) > 2,
    )
    return all(kinds) and "/" not in text.strip("/")[1:-1]
