"""Real weights: MiniLM's hidden states, the misaki BARTs' phonemes and stories260K's story."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from research.batches.batch import Batch
from research.checkpoints.pretrained import load, read, save
from research.decoding.greedy import greedy
from research.errors import InputError
from research.text.references import resolve
from tests.parity import close

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / ".." / "shared" / "weights"
MINILM = yaml.safe_load((ROOT / "configs/models/minilm.yaml").read_text())
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder 'shared' beside the checkout")

# What llama2.c's own program prints for this file at temperature 0.
STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red \
ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with \
your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


@needs_shared
def test_stories():
    """The known greedy story, from a batch in which another prompt is padded; text goes to ids and back."""
    model, variables, tokenizer = load(SHARED / "stories260K" / "stories260K.bin")
    batch = Batch.of([[1], [1, 403, 407]])
    first, second = greedy(model, variables, batch, 200)
    assert tokenizer.decode(first) == STORY
    # "Once upon" was given to the second, so it goes on where the first said it.
    assert np.array_equal(first[2:], second[:-2])
    text = "Once upon a time, Zoë saw 3 dogs!"
    ids = tokenizer.encode_batch([text]).ids[0]
    assert ids[:5].tolist() == [1, 403, 407, 261, 378] and {0xC3 + 3, 0xAB + 3} <= set(ids.tolist())
    assert tokenizer.decode(ids) == text


@needs_shared
def test_stories_tokenizer_merges_by_score():
    """Against the algorithm itself: merge the best scored pair of neighbours until there is none."""
    import struct

    path = SHARED / "stories260K" / "tok512.bin"
    data, at, scores, names = path.read_bytes(), 4, {}, []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        names.append(data[at + 8 : at + 8 + length].decode())
        scores[names[-1]], at = (score, len(names) - 1), at + 8 + length
    _, _, tokenizer = load(path.with_name("stories260K.bin"))

    def merged(text: str) -> list[int]:
        parts = list(" " + text)
        while True:
            pairs = [(scores[a + b][0], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
            if not pairs:
                return [1] + [scores[p][1] for p in parts]
            i = -max(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    texts = [STORY.replace("\n", " "), "the cat sat on the mat", "  two  spaces", "aaaaaaa", "little littler littlest"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts).ids, strict=True):
        assert ids.tolist() == merged(text), text


@needs_shared
@pytest.mark.parametrize(
    ("accent", "words"),
    [
        ("us", {"hello": "hˈɛlO", "transformer": "tɹænsfˈɔɹməɹ"}),
        ("gb", {"hello": "hˈɛlQ", "tomato": "təmˈɑːtQ"}),
    ],
)
def test_misaki(accent, words, tmp_path):
    """Spelling to phonemes, words of unequal length in one batch; and the same ids as Transformers' own generation."""
    file = SHARED / "misaki_bart" / f"{accent}_bart.safetensors"
    found = read(file)
    assert found.report.unread == ("grapheme_chars", "phoneme_chars")
    config = json.loads(file.with_name(f"{accent}_bart_config.json").read_text())
    source = Batch.of([[1, *map(config["grapheme_chars"].index, word), 2] for word in words])
    said = np.asarray(greedy(found.model, found.variables, source, 24))
    spelt = ["".join(config["phoneme_chars"][i] for i in row if i > 3) for row in said]
    assert spelt == list(words.values())

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save(found.model, found.variables, tmp_path / "misaki")
    theirs = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "misaki").eval()
    tokens, mask = torch.tensor(source.tokens).long(), torch.tensor(source.segments).long()
    settings = {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": 24,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    generated = theirs.generate(tokens, attention_mask=mask, **settings)[:, 1:].numpy()
    assert np.array_equal(generated, said[:, : generated.shape[1]])


def test_minilm():
    """Hidden states of a padded batch of real sentences, against Transformers; and a tokenizer that fits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    try:
        folder = resolve(MINILM["reference"], sha256=MINILM.get("sha256"))
    except InputError as error:
        pytest.skip(str(error))
    found = read(folder)
    assert found.report.parameters == 22_713_216 and found.report.unread == () and found.report.dropped == ()
    texts = ["What is NATO ?", "How far is it from Denver to Aspen ?", "Who killed Gandhi ?"]
    batch = Batch.of([ids.tolist() for ids in found.tokenizer.encode_batch(texts).ids])
    ours = found.model.apply(found.variables, batch).hidden
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(batch.tokens).long(), attention_mask=torch.tensor(batch.segments).long())
    real = batch.segments > 0
    close(ours[real], expected.last_hidden_state.numpy()[real], "hidden")
