"""Questions about an invented geography, as an English sentence and as a logical form, in the manner of GeoQuery.

    sentence: what is the area of the largest state bordering the state of texas
    form:     answer area largest state next_to stateid texas

A form is `answer`, at most one attribute, up to two relations of which one may have a superlative before it, and a
place: one of 15 states and 6 rivers. Every symbol takes one argument, so that a form needs no brackets. A sentence has
one phrase for each part of the form, out of one to four, and no sentence belongs to two forms. The names are real; no
question is answered here.

Measured over all of it: 2,292 forms of 41 words, at most 9 in a form; 76 words in sentences, at most 19 in a sentence;
51.8 sentences a form, at most 144. Measured over the first 4,000 draws of seed 0: 1,219 different forms, 6.0 words in a
form and 9.7 in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain, product
from typing import NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from vae_lightning.noise import uniform16

T = TypeVar("T")
Words: TypeAlias = tuple[str, ...]

STATES = (
    *("texas", "ohio", "utah", "iowa", "maine", "nevada", "oregon", "idaho", "kansas", "alaska", "georgia", "florida"),
    *("virginia", "colorado", "montana"),
)
RIVERS = ("snake", "platte", "wabash", "pecos", "yukon", "hudson")

PLACES = {"state": STATES, "river": RIVERS}
_PLACE_PHRASES = {
    "state": ("{name}", "the state of {name}"),
    "river": ("the {name}", "the {name} river", "the river {name}"),
}
LONGEST_SENTENCE = 19
"""The largest number of words in a sentence."""
_FORM_NUMBERS, _PHRASE_NUMBERS = 8, 5  # the random numbers of a draw
_CAPITAL = ("capital",)


class Relation(NamedTuple):
    """What maps a set of places to another set.

    Args:
        symbols: Its words in a form.
        of: What its argument is: state or river.
        gives: What it gives: state, river or city.
        phrases: The noun in singular and plural, and the words between the noun and the argument.
    """

    symbols: Words
    of: str
    gives: str
    phrases: tuple[tuple[str, str, str], ...]


RELATIONS = (
    Relation(
        *(("state", "next_to"), "state", "state"),
        (("state", "states", "bordering"), ("state", "states", "next to"), ("neighbour", "neighbours", "of")),
    ),
    Relation(
        ("state", "traverse"), "river", "state", (("state", "states", "crossed by"), ("state", "states", "along"))
    ),
    Relation(
        *(("river", "loc"), "state", "river"),
        (("river", "rivers", "in"), ("stream", "streams", "in"), ("river", "rivers", "through")),
    ),
    Relation(("city", "loc"), "state", "city", (("city", "cities", "in"), ("town", "towns", "in"))),
    Relation(
        *(("capital",), "state", "city"),
        (("capital", "capitals", "of"), ("seat", "seats", "of government in")),
    ),
)
_ADJECTIVES = {
    "largest": ("largest", "biggest"),
    "smallest": ("smallest", "tiniest"),
    "longest": ("longest",),
    "shortest": ("shortest",),
}
SUPERLATIVES = {
    "state": ("largest", "smallest"),
    "city": ("largest", "smallest"),
    "river": ("longest", "shortest"),
}
"""The superlatives of each kind of places."""
QUESTIONS = {
    "": ("what {be} {places}", "name {places}", "give me {places}", "show {places}"),
    "area": ("what is the area of {places}", "how large {be} {places}", "give me the area of {places}"),
    "population": ("what is the population of {places}", "how many people live in {places}"),
    "density": ("what is the density of {places}", "how crowded {be} {places}"),
    "elevation": ("what is the elevation of {places}", "how high {be} {places}"),
    "length": ("what is the length of {places}", "how long {be} {places}"),
    "count": ("count {places}", "what is the number of {places}"),
}
_ATTRIBUTES_OF = {
    "state": ("area", "population", "density"),
    "city": ("population", "elevation"),
    "river": ("length",),
}


class Query(NamedTuple):
    """The parts of a form.

    Args:
        attribute: A key of `QUESTIONS`; empty if the places themselves are asked for.
        relations: From the outermost to the innermost, at most two.
        superlative: One of `SUPERLATIVES`; empty if there is none.
        level: The number of the relation that the superlative belongs to.
        place: What the place is: state or river.
        name: The name of the place.
    """

    attribute: str
    relations: tuple[Relation, ...]
    superlative: str
    level: int
    place: str
    name: str

    @property
    def form(self) -> str:
        """The words of the logical form, with spaces between them."""
        words = ["answer", *([self.attribute] if self.attribute else [])]
        for level, relation in enumerate(self.relations):
            words += [self.superlative] if self.superlative and level == self.level else []
            words += relation.symbols
        return " ".join([*words, f"{self.place}id", self.name])

    def is_single(self, level: int) -> bool:
        """Whether the places at a level are one place: a name, the extreme one of a set, or the capital of one place.

        Args:
            level: The number of the relation; the number of relations for the place itself.
        """
        if level == len(self.relations) or (self.superlative and level == self.level):
            return True
        return self.relations[level].symbols == _CAPITAL and self.is_single(level + 1)


def draw_query(numbers: Sequence[int]) -> Query:
    """Return the query that eight random numbers choose.

    Args:
        numbers: Whole numbers from 0 to 65535: for depth, kind of the place, its name, the relations, whether there is
            a superlative, which one, whether there is an attribute, which one.
    """
    depth, kind, name, relation, has_superlative, which, has_attribute, attribute = numbers
    place = _choose(("state", "state", "state", "river"), kind)
    relations = _choose(_chains(place, _choose((0, 1, 1, 1, 2, 2), depth)), relation)
    query = Query("", relations, "", 0, place, _choose(PLACES[place], name))
    superlatives = _superlatives_of(relations)
    if superlatives and 3 * has_superlative < 2**16:
        superlative, level = _choose(superlatives, which)
        query = query._replace(superlative=superlative, level=level)
    if not relations or 2 * has_attribute < 2**16:
        query = query._replace(attribute=_choose(_attributes_of(query), attribute))
    return query


def draw_pairs(index: Tensor, seed: int) -> list[tuple[str, Query]]:
    """Return sentences with their queries; pair i depends on (seed, index[i]) alone.

    Args:
        index: The numbers of the pairs, [N].
        seed: The seed of all pairs.
    """
    pairs = []
    for numbers in uniform16(index, _FORM_NUMBERS + _PHRASE_NUMBERS, seed).tolist():
        query = draw_query(numbers[:_FORM_NUMBERS])
        choice = [_choose(range(count), u) for count, u in zip(_counts(query), numbers[_FORM_NUMBERS:], strict=False)]
        pairs.append((_sentence(query, choice), query))
    return pairs


def paraphrases(query: Query) -> list[str]:
    """Return all sentences of a query, each once.

    Args:
        query: For example one of `all_queries`.
    """
    return [_sentence(query, choice) for choice in product(*map(range, _counts(query)))]


@cache
def all_queries() -> dict[str, Query]:
    """Return every query of the grammar by its form, the words of which are joined by spaces."""
    queries = {}
    for place, depth in product(PLACES, range(3)):
        for relations, name in product(_chains(place, depth), PLACES[place]):
            for superlative, level in (("", 0), *_superlatives_of(relations)):
                query = Query("", relations, superlative, level, place, name)
                for attribute in (*([""] if relations else []), *_attributes_of(query)):
                    query = query._replace(attribute=attribute)
                    queries[query.form] = query
    return queries


@cache
def sentence_words() -> list[str]:
    """Return every word that stands in a sentence, in alphabetical order."""
    phrases = [*chain(*QUESTIONS.values(), *_PLACE_PHRASES.values(), *_ADJECTIVES.values(), *PLACES.values())]
    phrases += ["is are the", *(" ".join(phrase) for relation in RELATIONS for phrase in relation.phrases)]
    return sorted({word for phrase in phrases for word in phrase.split() if "{" not in word})


@cache
def _chains(place: str, depth: int) -> tuple[tuple[Relation, ...], ...]:
    """The chains of `depth` relations that fit to a place, the outermost relation first."""
    chains: list[tuple[Relation, ...]] = [()]
    for _ in range(depth):
        chains = [(r, *rest) for rest in chains for r in RELATIONS if r.of == (rest[0].gives if rest else place)]
    return tuple(chains)


def _superlatives_of(relations: tuple[Relation, ...]) -> list[tuple[str, int]]:
    """The superlatives that can stand before one of the relations, with the number of this relation."""
    sets = [(level, r) for level, r in enumerate(relations) if r.symbols != _CAPITAL]
    return [(superlative, level) for level, r in sets for superlative in SUPERLATIVES[r.gives]]


def _attributes_of(query: Query) -> tuple[str, ...]:
    """What can be asked of the places of a query: attributes of their kind, and the number of a set."""
    kind = query.relations[0].gives if query.relations else query.place
    can_be_counted = query.relations and query.relations[0].symbols != _CAPITAL and not query.is_single(0)
    return (*_ATTRIBUTES_OF[kind], *(["count"] if can_be_counted else []))


def _counts(query: Query) -> list[int]:
    """The number of phrases of each part of a query: question, place, superlative, relations."""
    phrases = [QUESTIONS[query.attribute], _PLACE_PHRASES[query.place], _ADJECTIVES.get(query.superlative, ("",))]
    return [*map(len, phrases), *(len(relation.phrases) for relation in query.relations)]


def _sentence(query: Query, choice: Sequence[int]) -> str:
    """The sentence of a query with a chosen phrase for each part, in the order of `_counts`."""
    question, place, adjective, *nouns = choice
    text = _PLACE_PHRASES[query.place][place].format(name=query.name)
    for level, (relation, chosen) in reversed(list(enumerate(zip(query.relations, nouns, strict=True)))):
        singular, plural, link = relation.phrases[chosen]
        has_adjective = bool(query.superlative) and level == query.level
        words = [_ADJECTIVES[query.superlative][adjective]] if has_adjective else []
        words += [singular if query.is_single(level) else plural, link, text]
        text = " ".join(["the", *words])
    return QUESTIONS[query.attribute][question].format(be="is" if query.is_single(0) else "are", places=text)


def _choose(options: Sequence[T], number: int) -> T:
    """An option by a number from 0 to 65535."""
    return options[number * len(options) >> 16]
