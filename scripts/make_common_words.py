"""Makes storage/search/common_words.txt, the share that common words have of what people say: by hand, once.

The source is wordfreq's data (CC BY-SA 4.0), which comes out of its wheel on PyPI; it is not installed. Words become
terms as the search index makes them, so run this again when storage/search/tokens.py makes other terms.
"""

from __future__ import annotations

import gzip
import math
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import msgspec

from storage.search.tokens import words_of

PACKAGE = "wordfreq==3.1.1"
TARGET = Path(__file__).parents[1] / "storage/search/common_words.txt"
# The major languages of Europe, and what else is read by the same rules.
LANGUAGES = "en de fr es it pt nl sv da nb fi pl cs ro hu el ru uk tr zh ja ko"
# Shares are rounded to half powers of ten: 10^-2.5 is line 5. A term below the last line is taken for rare.
LEAST, MOST = 7, 3
# Words of the source below this share are not looked at: together they decide nothing.
IGNORED = 10**-4.8
HEADING = f"""\
# How often people say the most common words: made by scripts/make_common_words.py from {PACKAGE}.
# Source: wordfreq, Robyn Speer, https://github.com/rspeer/wordfreq, https://doi.org/10.5281/zenodo.7199437,
# whose data are from Wikipedia, OPUS OpenSubtitles 2018 (opensubtitles.org), SUBTLEX (Marc Brysbaert et al.; freely
# available), Google Books Ngrams (books.google.com/ngrams), the Leeds Internet Corpus, ParaCrawl, Twitter and Reddit.
# Licence of this file: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/. Changed: the most common words
# of some languages are kept, stemmed and added up, and their shares rounded.
# A line: language, N, and the terms whose share of all words is about 10^(-N/2).
"""


def shares_of(wheel: zipfile.ZipFile, language: str) -> Counter[str]:
    """Returns the terms of a language with their share of its words."""
    data = gzip.decompress(wheel.read(f"wordfreq/data/small_{language}.msgpack.gz"))
    # A heading, then the words of share 1, 10^-0.01, 10^-0.02 and so on.
    _, *words_by_share = msgspec.msgpack.decode(data)
    shares = Counter[str]()
    for number, words in enumerate(words_by_share):
        share = 10 ** (-number / 100)
        for word in words if share >= IGNORED else ():
            # What the index leaves out still tells a text's language.
            for term in set(words_of(word)) or {word}:
                if not any(c.isdigit() for c in term):
                    shares[term] += share
    return shares


def lines_of(language: str, shares: Counter[str]) -> list[str]:
    """Returns the table's lines for one language."""
    lines: dict[int, list[str]] = {}
    for term, share in shares.most_common():
        number = max(MOST, round(-2 * math.log10(share)))
        if number <= LEAST:
            lines.setdefault(number, []).append(term)
    return [f"{language} {number} {' '.join(terms)}" for number, terms in sorted(lines.items())]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("wordfreq-*.whl"))) as wheel:
            lines = [line for each in LANGUAGES.split() for line in lines_of(each, shares_of(wheel, each))]
    TARGET.write_text(HEADING + "\n".join(lines) + "\n")
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
