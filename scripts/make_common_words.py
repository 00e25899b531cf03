"""Makes two tables of storage/search by hand, once: how common words are (common_words.txt), and pairs of letters
(letter_pairs.txt).

The source is wordfreq's data (CC BY-SA 4.0), and of Thai, which it lacks, PyThaiNLP's (CC0). They come out of wheels on
PyPI, which are not installed. Words become terms as the search index makes them, so run this again when
storage/search/tokens.py makes other terms.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from storage.search.language import split_letter_pairs
from storage.search.tokens import list_terms, split_words

PACKAGE, THAI_PACKAGE = "wordfreq==3.1.1", "pythainlp==5.4.0"
SEARCH = Path(__file__).parents[1] / "storage/search"
WORDS, PAIRS = SEARCH / "common_words.txt", SEARCH / "letter_pairs.txt"
# The major languages of Europe, and what else is read by the same rules.
LANGUAGES = "en de fr es it pt nl sv da nb fi pl cs ro hu el ru uk tr zh ja ko"
# Shares are rounded to half powers of ten: 10^-2.5 is line 5. A term below the last line is taken for rare.
LAST_LINE, FIRST_LINE = 7, 3
# Rarer words of the source are ignored: together they decide nothing.
MIN_SHARE = 10**-4.8
# Languages with alphabets. In the others each character would count as a letter.
ALPHABETIC_LANGUAGES = "en de fr es it pt nl sv da nb pl cs ro hu el fi ru uk tr"
# Rarer pairs count as never used.
LAST_PAIR_LINE = 5
# A word counts by the root of its share, since "the" and "of" would else make up most pairs of English.
POWER = 0.5
# Added to the count of each letter, as a share of all letters: a few foreign words show nothing about a letter that the
# language hardly has.
SMOOTHING = 0.01
SOURCE = """\
# Source: wordfreq, Robyn Speer, https://github.com/rspeer/wordfreq, https://doi.org/10.5281/zenodo.7199437,
# whose data are from Wikipedia, OPUS OpenSubtitles 2018 (opensubtitles.org), SUBTLEX (Marc Brysbaert et al.; freely
# available), Google Books Ngrams (books.google.com/ngrams), the Leeds Internet Corpus, ParaCrawl, Twitter and Reddit.
# Licence of this file: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/. Changed: the most common words
# of some languages are kept, stemmed and added up, and their shares rounded.
"""
THAI_SOURCE = f"""\
# Thai: {THAI_PACKAGE}, https://github.com/PyThaiNLP/pythainlp, whose frequencies of the Thai National Corpus are CC0.
"""
WORDS_HEADING = f"""\
# How often people say the most common words: made by scripts/make_common_words.py from {PACKAGE}.
{SOURCE}{THAI_SOURCE}\
# A line: language, N, and the terms whose share of all words is about 10^(-N/2).
"""
PAIRS_HEADING = f"""\
# How often one letter follows another in words: made by scripts/make_common_words.py from {PACKAGE}.
{SOURCE}\
# A line: language, N, and the pairs whose second letter follows the first in about 10^(-N/2) of the cases. "_": a
# word's beginning or end.
"""


def words_of_source(wheel: zipfile.ZipFile, language: str) -> Iterator[tuple[str, float]]:
    """Yields the words of a language, each with its share of all words."""
    data = gzip.decompress(wheel.read(f"wordfreq/data/small_{language}.msgpack.gz"))
    # A heading, then the words of share 1, 10^-0.01, 10^-0.02 and so on.
    _, *words_by_share = msgspec.msgpack.decode(data)
    for number, words in enumerate(words_by_share):
        yield from ((word, 10 ** (-number / 100)) for word in words)


def words_of_thai(wheel: zipfile.ZipFile) -> Iterator[tuple[str, float]]:
    """Yields the words of Thai, each with its share of all words."""
    lines = wheel.read("pythainlp/corpus/tnc_freq.txt").decode().splitlines()
    counts = [(word, int(count)) for word, count in (line.split("\t") for line in lines if "\t" in line)]
    total = sum(count for _, count in counts)
    yield from ((word, count / total) for word, count in counts)


def shares_of(words: Iterable[tuple[str, float]]) -> Counter[str]:
    """Returns the terms of a language with their share of its words. words: each with its own."""
    shares = Counter[str]()
    for word, share in words:
        # Words that the index leaves out still show the language of a text.
        for term in (set(list_terms(word)) or {word}) if share >= MIN_SHARE else ():
            if not any(c.isdigit() for c in term):
                shares[term] += share  # type: ignore[assignment]  # the counts of a Counter may be fractions
    return shares


def pairs_of(wheel: zipfile.ZipFile, language: str) -> Counter[str]:
    """Returns the pairs of letters of a language with the share of their second one after the first."""
    pairs, firsts = Counter[str](), Counter[str]()
    for word, share in words_of_source(wheel, language):
        for part in split_words(word) if word.isalpha() else ():
            for pair in split_letter_pairs(part):
                pairs[pair] += share**POWER
                firsts[pair[0]] += share**POWER
    smoothing = SMOOTHING * firsts.total()
    return Counter({pair: count / (firsts[pair[0]] + smoothing) for pair, count in pairs.items()})


def lines_of(language: str, shares: Counter[str], first: int, last: int) -> list[str]:
    """Returns a table's lines for one language. first, last: the numbers of its first and last line."""
    lines: dict[int, list[str]] = {}
    for term, share in shares.most_common():
        number = max(first, round(-2 * math.log10(share)))
        if number <= last:
            lines.setdefault(number, []).append(term)
    return [f"{language} {number} {' '.join(terms)}" for number, terms in sorted(lines.items())]


@contextlib.contextmanager
def download_wheel(package: str) -> Iterator[zipfile.ZipFile]:
    """Downloads the wheel of a package, and removes it in the end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            yield wheel


def main() -> None:
    """Writes the lists of common words and pairs of all languages."""
    with download_wheel(PACKAGE) as wheel:
        shares = {each: shares_of(words_of_source(wheel, each)) for each in LANGUAGES.split()}
        pairs = [
            line
            for each in ALPHABETIC_LANGUAGES.split()
            for line in lines_of(each, pairs_of(wheel, each), 0, LAST_PAIR_LINE)
        ]
    with download_wheel(THAI_PACKAGE) as wheel:
        shares["th"] = shares_of(words_of_thai(wheel))
    words = [
        line
        for each, of_language in shares.items()
        for line in lines_of(each, of_language, FIRST_LINE, LAST_LINE)
    ]
    for path, heading, lines in ((WORDS, WORDS_HEADING, words), (PAIRS, PAIRS_HEADING, pairs)):
        path.write_text(heading + "\n".join(lines) + "\n")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
