"""How common words are in what people say: the background against which a memory's own words are counted.

A memory of ten messages cannot tell that "go" is a common word and "whale" is none. The table beside this module
(common_words.txt; made by scripts/make_common_words.py, which names its source and licence) can.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain, filterfalse
from pathlib import Path
from struct import Struct

from storage.search.words import split_words, terms_of_word, words_of

_TABLE = Path(__file__).with_name("common_words.txt")
# A term of line N of the table is 10^(-N/2) of all words; one below the last line counts as never said. Those of the
# last line are common to the degree 1.
_FIRST_LINE, _LAST_LINE = 2, 7
_MOST = _LAST_LINE + 1 - _FIRST_LINE
# Words in a message, to make of a word's share of all words the share of messages that have it. Measured on
# LongMemEval in histories of 22 messages with 100, 150 and 300: evidence in the note 91.5, 91.3 and 90.8%; questions
# about something else that get a note: 31, 30 and 27%.
_MESSAGE_WORDS = 150
_SHARES = [
    0.0, *(min(1.0, _MESSAGE_WORDS * 10 ** (-line / 2)) for line in range(_LAST_LINE, _FIRST_LINE - 1, -1))
]  # fmt: skip
# A word that is in a larger share of people's messages tells nothing.
SAYS_NOTHING = 0.5
# A word that is in a larger share names nothing. These are some 150 words of a language, beside those said to
# assistants. One of LongMemEval's 500 questions has no others, and none of short talk's 1,088. With all words of the
# table, some 500, these were 8 and 43.
NAMES_NOTHING = 0.1
# Words of a text that tell its language.
_TELLING_WORDS = 64
# One of a language's most common words does not show it, since short words are words of several ("van"); one that is
# said to assistants does.
_ENGLISH_LEAD = 5

# What people say to an assistant whatever the matter is, which no corpus of books and films shows: courtesies, going
# on, asking for something or what is remembered. Chosen by hand; they count as more common than any word of the table.
_SAID_TO_ASSISTANTS = {
    "en": """hi hello hey thank thanks thx ok okay yes yeah yep no nope sure great good nice cool fine perfect awesome
        right morning afternoon even evening night bye goodbye sorry welcome continue go ahead next tell say
        help something anything lol wow now again still then give show explain describe make let know want
        write another
        remember remind recall talk talked discuss discussed told mentioned learned far summarize everything""",
    "de": """hallo hi danke bitte ok okay ja nein gut genau super klar prima toll weiter jetzt nochmal noch mal einmal
        mehr nun dann schreib schreibe schreiben gib zeig zeige erklär erkläre erklären sag sage sagen mach
        mache machen hilf helfen kannst könntest weißt wissen will möchte erzähl erzähle tschüss du dir mir
        dich bist wer wie geht gehts machst
        über mich erinnerst erinnern kennst kennen worüber gesprochen geredet besprochen gesagt erzählt""",
    "fr": """bonjour salut merci ok oui non bien super parfait continue continuer encore maintenant plus puis écris
        écrire donne donner montre explique expliquer dis dire fais faire aide aider peux pouvez pourrais
        veux voudrais suite alors voilà svp plaît raconte bonsoir ça va vas tu toi comment
        moi sais savez souviens souvenez rappelles connais connaissez parlé parlions raconté avons""",
    "es": """hola gracias ok sí no bien vale claro perfecto sigue seguir continúa ahora otra vez más escribe escribir
        escríbeme da dame dar muestra muéstrame explica explicar explícame di dime decir haz hazme hacer
        ayuda ayúdame puedes podrías quiero quisiera entonces favor cuenta cuéntame adiós qué tal cómo estás
        mí sabes sabe recuerdas acuerdas conoces hablamos hablado hablando dije dicho contado quién soy""",
    "it": """ciao grazie ok sì no bene certo perfetto continua continuare adesso ora ancora più scrivi scrivere scrivimi
        dammi mostra mostrami spiega spiegare spiegami dimmi dire fai fare fammi aiuta aiutami puoi potresti
        voglio vorrei allora poi favore racconta raccontami buongiorno buonasera come stai va
        sai ricordi conosci parlato parlavamo detto raccontato sono""",
    "pt": """olá oi obrigado obrigada ok sim não bem claro perfeito continua continue continuar agora mais outra vez
        escreva escreve escrever dá dê mostra mostre explica explique explicar diz diga dizer faz faça fazer
        ajuda ajude pode poderia quero queria então favor conta conte tchau
        mim sabe sabes lembra lembras conhece conheces falamos disse contei quem sou""",
    "nl": """hallo hoi bedankt dank ok ja nee goed prima verder ga nu nog eens meer dan schrijf schrijven geef toon laat
        leg uitleggen zeg zeggen maak maken help helpen kun kunt kan wil graag vertel alsjeblieft wat hoe gaat
        weet herinner herinneren kent gesproken besproken verteld hadden mij""",
    "sv": """hej tack ok ja nej bra fortsätt nu igen mer skriv ge visa förklara säg gör hjälp kan vill berätta
        snälla vad hur mår
        minns ihåg känner pratade berättat vem""",
    "da": """hej tak ok ja nej godt fortsæt nu igen mere skriv giv vis forklar sig gør hjælp kan vil fortæl venligst
        hvad hvordan går
        husker kender talte snakkede fortalt""",
    "nb": """hei takk ok ja nei bra fortsett nå igjen mer skriv gi vis forklar si gjør hjelp kan vil fortell hva
        hvordan går
        husker kjenner snakket pratet fortalt""",
    "pl": """cześć dzięki dziękuję ok tak nie dobrze dalej kontynuuj teraz jeszcze raz więcej napisz daj pokaż wyjaśnij
        powiedz zrób pomóż możesz chcę proszę opowiedz co jak masz
        wiesz pamiętasz znasz rozmawialiśmy mówiliśmy mówiłem mówiłam jestem mnie czym""",
    "ru": """привет спасибо ок да нет хорошо дальше продолжай продолжи теперь сейчас ещё раз напиши дай покажи
        объясни скажи сделай помоги можешь хочу пожалуйста расскажи что как дела ты кто
        знаешь помнишь говорили разговаривали обсуждали рассказывал рассказывала меня мне""",
}
# When something was said, which names nothing either. But these weigh as the table has it, as in "When did I dance for
# the first time?"
_WHEN = frozenset(
    words_of(
        """last time yesterday letztes letzten letzte mal zuletzt gestern dernière fois hier última vez ayer
        ultima volta ieri ontem vorige keer gisteren sist senast igår sidst ostatnio wczoraj
        прошлый последний раз вчера"""
    )
)
# Of two with the same score the first counts. Each has 16 bits of a term's degrees.
_LANGUAGES = (*_SAID_TO_ASSISTANTS, "ja", "zh", "cs", "el", "fi", "hu", "ro", "tr", "uk")
_DEGREE_BITS, _DEGREE = 16, 0xFFFF
_BY_LANGUAGE = Struct(f"<{len(_LANGUAGES)}H")


def shares_in_general(words: Sequence[str], terms: Sequence[str]) -> list[float]:
    """Returns for each term which share of people's messages has it, in the language that a text seems to be in.

    words: all of the text's.
    """
    degrees = load_tables().get
    some = words[:_TELLING_WORDS]
    # A function word, which has no terms, stands for itself.
    said = {*chain.from_iterable(map(terms_of_word, some)), *filterfalse(terms_of_word, some)}
    # The degrees of all languages are added at once.
    scores = sum(filter(None, map(degrees, said)), _ENGLISH_LEAD)
    by_language = _BY_LANGUAGE.unpack(scores.to_bytes(_BY_LANGUAGE.size, "little"))
    shift = _DEGREE_BITS * by_language.index(max(by_language))
    return [_SHARES[degrees(term, 0) >> shift & _DEGREE] for term in terms]


def least_common(terms: Sequence[str], shares: Sequence[float]) -> float:
    """Returns which share of people's messages has the rarest of the terms that may name something; 1: none may."""
    return min([share for term, share in zip(terms, shares, strict=True) if term not in _WHEN], default=1.0)


def names_nothing(text: str) -> bool:
    """Returns whether a text has words, and each of them is among the most common of its language: "Who am I?"

    Such a text has nothing to look for; if it asks for anything, it asks for the memory as a whole.
    """
    words = split_words(text)
    terms = [*chain.from_iterable(map(terms_of_word, words))]
    return bool(words) and least_common(terms, shares_in_general(words, terms)) > NAMES_NOTHING


def says_nothing(words: Sequence[str], terms: Sequence[str]) -> bool:
    """Returns whether each term of a text is in most of people's messages: "And now?" words: all of the text's."""
    return min(shares_in_general(words, terms), default=1.0) > SAYS_NOTHING


@cache
def load_tables() -> dict[str, int]:
    """Returns for each common term to which degree it is common in each language, one beside the other.

    That are 9,000 terms, in 6 ms and 0.7 MB.
    """
    tables: dict[str, int] = {}
    for line in _TABLE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            language, number, *terms = line.split()
            degree = _LAST_LINE + 1 - int(number) << _DEGREE_BITS * _LANGUAGES.index(language)
            tables.update((term, tables[term] + degree if term in tables else degree) for term in terms)
    for place, text in enumerate(_SAID_TO_ASSISTANTS.values()):
        shift = _DEGREE_BITS * place
        for term in words_of(text):
            tables[term] = tables.get(term, 0) & ~(_DEGREE << shift) | _MOST << shift
    # Few of them differ, which then lie near to each other.
    values = {value: value for value in tables.values()}
    return {term: values[value] for term, value in tables.items()}
