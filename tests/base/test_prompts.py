import unicodedata

import pytest
from conftest import tiny_tokenizer

from infusion.base.prompts import name_concept, parse_prompt, tokenize
from infusion.errors import UserError

NOUNS = {"my-cat": "cat", "bear1": "teddy bear"}


def words_at(text: str) -> dict[str, str]:
    """What the tokens of each concept spell."""
    tokenizer = tiny_tokenizer()
    encoded, positions = tokenize(tokenizer, [parse_prompt(text, NOUNS)])
    ids = encoded.input_ids[0]
    return {name: str(tokenizer.decode(ids[list(where)])).strip() for name, where in positions[0].items()}


def test_placeholder_becomes_class_noun():
    prompt = parse_prompt("a <my-cat> and a <bear1>", NOUNS)
    assert prompt.text == "a cat and a teddy bear"
    assert [prompt.text[m.start : m.end] for m in prompt.mentions] == ["cat", "teddy bear"]


def test_all_pieces_of_a_noun_are_found():
    assert words_at("a <my-cat>, beside a <bear1>!") == {"my-cat": "cat", "bear1": "teddy bear"}


def test_the_same_class_twice_is_told_apart():
    _, positions = tokenize(tiny_tokenizer(), [parse_prompt("a cat and a <my-cat>", NOUNS)])
    _, first = tokenize(tiny_tokenizer(), [parse_prompt("a <my-cat> and a cat", NOUNS)])
    assert len(positions[0]["my-cat"]) == len(first[0]["my-cat"]) == 1
    assert positions[0]["my-cat"] > first[0]["my-cat"]


def test_a_concept_named_twice_has_both_places():
    _, positions = tokenize(tiny_tokenizer(), [parse_prompt("<my-cat> and <my-cat>", NOUNS)])
    assert len(positions[0]["my-cat"]) == 2


def test_accents_may_be_written_in_two_ways():
    nouns = {"c": unicodedata.normalize("NFC", "café")}
    _, positions = tokenize(tiny_tokenizer(), [parse_prompt(unicodedata.normalize("NFD", "café in a <c>"), nouns)])
    assert positions[0]["c"]


def test_unknown_placeholder_suggests_the_nearest():
    with pytest.raises(UserError, match="my-cat"):
        parse_prompt("a <my-cta>", NOUNS)


def test_concept_beyond_the_last_token_is_refused():
    with pytest.raises(UserError, match="32 tokens"):
        tokenize(tiny_tokenizer(), [parse_prompt("a " * 40 + "<my-cat>", NOUNS)])


def test_captions_name_the_concept():
    assert name_concept("My Cat on a mat", "<my-cat>", "cat") == "My <my-cat> on a mat"
    assert name_concept("the <my-cat>, a cat", "<my-cat>", "cat") == "the <my-cat>, a cat"
    with pytest.raises(UserError, match="class noun"):
        name_concept("a category", "<my-cat>", "cat")
