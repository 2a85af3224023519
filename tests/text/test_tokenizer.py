"""The tokenizer against hand-made vocabularies, and against Transformers on the model that the demo uses."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import yaml

from research.errors import InputError
from research.text.tokenizer import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
MINILM = yaml.safe_load((Path(__file__).resolve().parents[2] / "configs/models/minilm.yaml").read_text())


@pytest.fixture
def directory(tmp_path):
    """A BERT tokenizer of one letter a word, its file cutting and padding to 6, as a sentence encoder's does."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(WORDS[:5])
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(6)
    backend.enable_padding(length=6)
    backend.save(str(tmp_path / "tokenizer.json"))
    for name, content in {
        "tokenizer_config.json": {"pad_token": "[PAD]", "mask_token": {"content": "[MASK]"}},
        "special_tokens_map.json": {"cls_token": "[CLS]", "eos_token": "</s>"},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def lists(arrays):
    assert all(array.dtype == np.int32 for array in arrays)
    return [array.tolist() for array in arrays]


def test_what_the_file_cuts_and_pads_is_switched_off(directory):
    encoded = Tokenizer.load(directory).encode_batch(["a", "a b c d a b c d", ""])
    assert lists(encoded.ids) == [[2, 5, 3], [2, 5, 6, 7, 8, 5, 6, 7, 8, 3], [2, 3]]
    assert lists(encoded.types) == [[0] * 3, [0] * 10, [0] * 2]
    assert encoded.truncated == 0


def test_long_texts_are_cut_and_counted_or_refused(directory):
    tokenizer = Tokenizer.load(directory)
    encoded = tokenizer.encode_batch(["a b c", "a b", "a b c d"], max_length=4)
    assert lists(encoded.ids) == [[2, 5, 6, 3], [2, 5, 6, 3], [2, 5, 6, 3]] and encoded.truncated == 2
    with pytest.raises(InputError, match=r"example 1 \('a b c'\) has 5 tokens, more than max_length 4"):
        tokenizer.encode_batch(["a", "a b c", "a b c d"], max_length=4, overflow="refuse")
    assert tokenizer.encode_batch(["a b"], max_length=4, overflow="refuse").truncated == 0
    with pytest.raises(InputError, match="max_length 3 has no room for text beside the 3 special tokens"):
        tokenizer.encode_batch(["a"], ["b"], max_length=3)


def test_pairs_lose_the_longer_side_first(directory):
    encoded = Tokenizer.load(directory).encode_batch(["a b c d", "a", "d"], ["d", "b", "a b c"], max_length=6)
    assert lists(encoded.ids) == [[2, 5, 6, 3, 8, 3], [2, 5, 3, 6, 3], [2, 8, 3, 5, 6, 3]]
    assert lists(encoded.types) == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert encoded.truncated == 2


def test_special_tokens_and_decoding(directory):
    tokenizer = Tokenizer.load(directory)
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "mask", "cls", "unk", "bos", "eos", "sep")}
    assert ids == {"pad": 0, "mask": 4, "cls": 2, "unk": 1, "bos": None, "eos": None, "sep": None}
    assert tokenizer.vocabulary_size == 9
    assert tokenizer.decode(np.array([2, 5, 6, 3])) == "a b"
    assert tokenizer.decode([2, 5, 3], skip_special=False) == "[CLS] a [SEP]"


def test_saved_and_loaded(directory, tmp_path):
    tokenizer = Tokenizer.load(directory)
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert lists(again.encode_batch(["a b x"]).ids) == [[2, 5, 6, 1, 3]]
    assert vars(again)["files"] == tokenizer.files and again.mask_id == 4
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_absent_and_damaged_files(directory, tmp_path):
    assert Tokenizer.load(tmp_path / "nowhere") is None
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer_config.json is not readable JSON"):
        Tokenizer.load(directory)
    (directory / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match="tokenizer.json is not a readable tokenizer"):
        Tokenizer.load(directory)


def test_threads_with_different_lengths_do_not_disturb_each_other(directory):
    tokenizer = Tokenizer.load(directory)
    text = "a b c d " * 10

    def length(limit: int | None) -> int:
        return len(tokenizer.encode_batch([text], max_length=limit).ids[0])

    limits = [4, 7, None, 12] * 50
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(length, limits)) == [limit or 42 for limit in limits]


def test_parity_with_transformers(cached):
    transformers = pytest.importorskip("transformers")
    directory = cached(MINILM["reference"], MINILM["sha256"])
    ours, theirs = Tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(str(directory))
    first = ["What is NATO ?", "naïve café, 東京 — \u00ad\x07 [MASK] it's", "", "unbelievably " * 200, "a b"]
    second = ["an alliance", "x", "y", "short", "antidisestablishmentarianism " * 60]
    for pairs in (None, second):
        for limit in (None, 16, 128):
            encoded = ours.encode_batch(first, pairs, max_length=limit)
            expected = theirs(first, pairs, truncation="longest_first" if limit else False, max_length=limit)
            assert lists(encoded.ids) == expected["input_ids"]
            assert lists(encoded.types) == expected["token_type_ids"]
    for name in ("pad", "mask", "bos", "eos", "unk", "cls", "sep"):
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_token_id"), name
    assert ours.vocabulary_size == len(theirs) == 30522
    ids = ours.encode_batch(["what is nato?"]).ids[0]
    assert ours.decode(ids) == "what is nato?" == theirs.decode(ids, skip_special_tokens=True)
