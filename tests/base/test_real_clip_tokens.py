"""Where a noun stands among the tokens of the real CLIP vocabulary, which the package open_clip_torch brings along."""

import gzip
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from infusion.base.prompts import parse_prompt, tokenize
from infusion.errors import UserError

_NUM_MERGES = 49152 - 256 - 2  # as in CLIP's own tokenizer


@pytest.fixture(scope="module")
def clip_tokenizer():
    try:
        vocabulary = next(f for f in files("open_clip_torch") or () if f.name == "bpe_simple_vocab_16e6.txt.gz")
    except (PackageNotFoundError, StopIteration):
        pytest.skip("open_clip_torch, whose vocabulary file this reads, is not installed")
    lines = gzip.decompress(Path(vocabulary.locate()).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : _NUM_MERGES + 1]]
    letters = list(_byte_letters())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, merges, model_max_length=77)  # type: ignore[arg-type]  # pairs are what it takes


def _byte_letters():
    """A printable letter for each byte, in the order of GPT-2's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def test_it_is_clips_own_vocabulary(clip_tokenizer):
    ids = clip_tokenizer("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def tokens_of(tokenizer, text, noun):
    encoded, (positions,) = tokenize(tokenizer, [parse_prompt(text.replace("{}", "<x>"), {"x": noun})])
    return encoded.input_ids[0].tolist(), positions["x"]


@pytest.mark.parametrize(
    "text", ["a {}", "{}", "a photo of a {}.", "a {}, on the beach", "A RED {} IN A HAT", "a {} next to a {}", '"{}"!']
)
@pytest.mark.parametrize(
    "noun", ["cat", "teddy bear", "teddybear", "Teddy Bear", "backpack", "shih tzu", "axolotl", "café"]
)
def test_the_noun_is_found_whole(clip_tokenizer, text, noun):
    ids, at = tokens_of(clip_tokenizer, text, noun)
    alone = clip_tokenizer(noun, add_special_tokens=False).input_ids
    assert [ids[i] for i in at] == alone * text.count("{}")


def test_a_noun_of_several_pieces_has_them_all(clip_tokenizer):
    assert len(tokens_of(clip_tokenizer, "a {}", "teddybear")[1]) > 1
    assert len(tokens_of(clip_tokenizer, "a {}", "teddy bear")[1]) == 2


def test_another_of_its_class_is_left_alone(clip_tokenizer):
    ids, at = tokens_of(clip_tokenizer, "a cat next to a {}", "cat")
    assert len(at) == 1 and ids.index(ids[at[0]]) < at[0]


def test_at_the_limit_and_beyond_it(clip_tokenizer):
    ids, at = tokens_of(clip_tokenizer, "red " * 74 + "{}", "cat")
    assert at == (75,) and ids[76] == clip_tokenizer.eos_token_id
    with pytest.raises(UserError, match="beyond the 77 tokens"):
        tokens_of(clip_tokenizer, "red " * 75 + "{}", "cat")
    with pytest.raises(UserError, match="beyond the 77 tokens"):
        tokens_of(clip_tokenizer, "red " * 74 + "{}", "teddy bear")
