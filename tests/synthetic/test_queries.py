"""The generated questions: no sentence of two forms, draws as functions of numbers, and both languages by example."""

from __future__ import annotations

import pytest
import torch

from vae_lightning.synthetic import queries
from vae_lightning.synthetic.languages import second_language


def test_a_draw_depends_on_its_number_and_the_seed_alone() -> None:
    all_of_them = queries.draw_pairs(torch.arange(300), 4)
    assert queries.draw_pairs(torch.tensor([7, 299, 7]), 4) == [all_of_them[7], all_of_them[299], all_of_them[7]]
    assert all_of_them != queries.draw_pairs(torch.arange(300), 5)
    assert len({sentence for sentence, _ in all_of_them}) > 200


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    """The sentences of each form about Texas or the Snake; other names stand in the same places."""
    found = queries.all_queries().values()
    return [queries.paraphrases(query) for query in found if query.name in ("texas", "snake")]


def test_no_sentence_belongs_to_two_forms(sentences: list[list[str]]) -> None:
    flat = [sentence for one in sentences for sentence in one]
    assert len(flat) == len(set(flat)) > 10_000
    found = queries.all_queries()
    assert len(found) == len({second_language(query) for query in found.values()}) == 2_292


def test_the_size_of_the_grammar_is_the_one_that_its_page_tells(sentences: list[list[str]]) -> None:
    found = queries.all_queries()
    assert len({word for form in found for word in form.split()}) == 41
    assert max(len(form.split()) for form in found) == 9
    assert max(len(sentence.split()) for one in sentences for sentence in one) == queries.LONGEST_SENTENCE == 19
    words = {word for one in sentences for sentence in one for word in sentence.split()}
    assert sorted({*words, *queries.STATES, *queries.RIVERS}) == queries.sentence_words()
    assert len(queries.sentence_words()) == 76
    second = [second_language(query).split() for query in found.values()]
    assert (len({word for words in second for word in words}), max(map(len, second))) == (75, 10)
    drawn = {query.form for _, query in queries.draw_pairs(torch.arange(4000), 0)}
    assert len(drawn) == 1_219
    assert drawn <= found.keys()


def test_every_draw_is_a_sentence_of_its_form() -> None:
    for sentence, query in queries.draw_pairs(torch.arange(100), 1):
        assert sentence in queries.paraphrases(queries.all_queries()[query.form])


def test_a_known_form_has_its_sentences_in_both_languages() -> None:
    query = queries.all_queries()["answer population largest city loc stateid texas"]
    sentences = queries.paraphrases(query)
    assert len(sentences) == 2 * 2 * 2 * 2  # question, adjective, noun, name
    assert "how many people live in the biggest town in the state of texas" in sentences
    assert second_language(query) == "lom teksa lar granda borgs li popula sagu"
    both = queries.all_queries()["answer shortest river loc stateid ohio"]
    assert "what is the shortest stream in ohio" in queries.paraphrases(both)
    assert second_language(both) == "lem ohayo lo kurto flum namu"


def test_number_and_case_agree() -> None:
    """The places that are asked for are the object; the capital of one state is one, that of several states several."""
    found = queries.all_queries()
    one, several = found["answer capital stateid ohio"], found["answer capital state next_to stateid ohio"]
    assert "what is the capital of ohio" in queries.paraphrases(one)
    assert "what are the capitals of the neighbours of ohio" in queries.paraphrases(several)
    assert second_language(one) == "ler ohayo le kapit namu"
    assert second_language(several) == "ler ohayo lir naborens li kapiten namu"
    assert second_language(found["answer count city loc stateid ohio"]) == ("lem ohayo li borgen zelu")
