"""A second generated language for the questions of `queries`: verb last, case endings, a gender for each noun.

    English:  what is the population of the largest city in texas
    Second:   lom teksa lar granda borgs li popula sagu
              the-in texas the-of largest city-of the inhabitants tell

The words that describe a noun stand before the noun, so that the order of the parts is reversed. An article tells
gender and case, or plural and case; an adjective has the ending of the gender; a noun has the ending of number and
case. A query has one sentence. Nobody speaks this language: results on it are of two generated languages, not of
translation between natural ones.

Measured over all 2,292 queries: 75 words, 8.3 in a sentence, 10 at most; no sentence belongs to two queries.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from vae_lightning.synthetic.queries import RIVERS, STATES, Query

Case: TypeAlias = Literal["object", "of", "in"]
"""A case: English marks the three by the place in the sentence, by `of`, and by `in`."""

_NAMES = dict(
    zip(
        (*STATES, *RIVERS),
        (
            *("teksa", "ohayo", "yutal", "ayova", "menes", "nevado", "oregu", "idahe", "kanza", "alasko", "yorgi"),
            *("floris", "virgin", "kolora", "montu", "serpa", "plato", "vabas", "pekos", "yukona", "hudsel"),
        ),
        strict=True,
    )
)
_GENDER_OF_NAME = dict(zip(_NAMES, "mnffmnnmfmfnnmf" + "nfmmnf", strict=True))
_ARTICLES: dict[str, dict[Case, str]] = {
    "m": {"object": "lo", "of": "lor", "in": "lom"},
    "f": {"object": "la", "of": "lar", "in": "lam"},
    "n": {"object": "le", "of": "ler", "in": "lem"},
    "plural": {"object": "li", "of": "lir", "in": "lim"},
}
_SINGULAR: dict[Case, str] = {"object": "", "of": "s", "in": "e"}
_PLURAL: dict[Case, str] = {"object": "en", "of": "ens", "in": "em"}
_NOUNS: dict[tuple[str, ...], tuple[str, str, Case]] = {  # stem, gender, and the case of the noun's complement
    ("state", "next_to"): ("nabor", "m", "of"),
    ("state", "traverse"): ("land", "n", "in"),
    ("river", "loc"): ("flum", "m", "in"),
    ("city", "loc"): ("borg", "f", "in"),
    ("capital",): ("kapit", "n", "of"),
}
_ADJECTIVES = {"largest": "grand", "smallest": "minim", "longest": "long", "shortest": "kurt"}
_ENDING_OF_ADJECTIVE = {"m": "o", "f": "a", "n": "e"}
_ATTRIBUTES = {  # with the article: their genders are n, plural, f, f, f
    "area": "le areal",
    "population": "li popula",
    "density": "la densa",
    "elevation": "la alta",
    "length": "la extensa",
}


def second_language(query: Query) -> str:
    """Return the sentence of a query in the second language.

    Args:
        query: What the sentence asks for.
    """
    if query.attribute in _ATTRIBUTES:
        return f"{_places(query, 0, 'of')} {_ATTRIBUTES[query.attribute]} sagu"
    return f"{_places(query, 0, 'object')} {'zelu' if query.attribute == 'count' else 'namu'}"


def _places(query: Query, level: int, case: Case) -> str:
    """The words for the places at a level of the query, in a case."""
    if level == len(query.relations):
        return f"{_ARTICLES[_GENDER_OF_NAME[query.name]][case]} {_NAMES[query.name]}"
    stem, gender, inner_case = _NOUNS[query.relations[level].symbols]
    single = query.is_single(level)
    words = [_places(query, level + 1, inner_case), _ARTICLES[gender if single else "plural"][case]]
    if query.superlative and level == query.level:
        words.append(_ADJECTIVES[query.superlative] + _ENDING_OF_ADJECTIVE[gender])
    return " ".join([*words, stem + (_SINGULAR if single else _PLURAL)[case]])
