"""The loader: what a batch holds, that it is a function of (data, seed, i) alone, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from research.batches import packing
from research.batches.loader import Loader
from research.batches.plan import batching, shuffled
from research.errors import InputError

KINDS = ("padded", "buckets", "packed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def few_trials():
    """A small sample makes plans fast and the spare shape busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TRIALS", 64)
        yield


def prepared(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "tokens": rng.integers(1, 1000, n),
            "types": rng.integers(0, 2, n),
            "targets": {"label": int(rng.integers(6)), "score": rng.random(2), "tags": rng.integers(0, 9, n)},
        }
        for n in lengths
    ]


def loader(
    examples, kind="packed", *, size=8, seed=3, shuffle=True, shard=(0, 1), row_multiple=1, pad=0, drop_last=False, **values
):
    return Loader(
        examples,
        batching({"kind": kind, "size": size, **values}),
        seed=seed,
        shuffle=shuffle,
        shard=shard,
        row_multiple=row_multiple,
        pad=pad,
        drop_last=drop_last,
        per_token={"tags"},
    )


def same(a, b):
    """Equal in structure, types and every bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def check(batch, examples, pad):
    """Every example of the batch stands whole in one row, alone in its segment, with its own targets. Returns their ids."""
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))
    claimed = np.zeros(batch.tokens.shape, bool)
    for row, slot in np.argwhere(batch.ids >= 0):
        example = examples[batch.ids[row, slot]]
        where = np.flatnonzero(batch.segments[row] == slot + 1)
        assert np.array_equal(where, where[0] + np.arange(len(example["tokens"])))
        assert np.array_equal(batch.tokens[row, where], example["tokens"])
        assert np.array_equal(batch.types[row, where], example["types"])
        assert np.array_equal(batch.targets["tags"][row, where], example["targets"]["tags"])
        assert batch.targets["label"][row, slot] == example["targets"]["label"]
        assert np.array_equal(batch.targets["score"][row, slot], np.float32(example["targets"]["score"]))
        if batch.positions is not None:
            assert np.array_equal(batch.positions[row, where], np.arange(len(where)))
        claimed[row, where] = True
    assert np.array_equal(batch.segments > 0, claimed)
    assert (batch.tokens[~claimed] == pad).all() and not batch.types[~claimed].any()
    assert np.array_equal(batch.weights, (batch.ids >= 0).astype(np.float32)) and batch.weights.dtype == np.float32
    assert not batch.targets["label"][batch.ids < 0].any() and not batch.targets["tags"][~claimed].any()
    return sorted(batch.ids[batch.ids >= 0].tolist())


@settings(max_examples=120, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=50),
    kind=st.sampled_from(KINDS),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**63),
    shuffle=st.booleans(),
    row_multiple=st.sampled_from([1, 3]),
    pad=st.sampled_from([0, 7]),
)
def test_an_epoch_holds_every_example_once_whole_and_in_a_promised_shape(lengths, kind, size, seed, shuffle, row_multiple, pad):
    examples = prepared(lengths)
    data = loader(examples, kind, size=size, seed=seed, shuffle=shuffle, row_multiple=row_multiple, pad=pad)
    assert len(data) == -(-len(lengths) // size)
    for epoch in range(2):
        seen = []
        for i in range(epoch * len(data), (epoch + 1) * len(data)):
            batch = data[i]
            assert (*batch.tokens.shape, batch.ids.shape[1]) in data.shapes
            assert batch.tokens.shape[0] % row_multiple == 0
            assert (batch.positions is not None) == (kind == "packed")
            seen += check(batch, examples, pad)
        assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_few_and_hold_for_many_epochs_and_seeds(kind):
    lengths = np.random.default_rng(1).geometric(0.1, 300).clip(1, 48)
    used, promised = set(), set()
    for seed in range(5):
        data = loader(prepared(lengths), kind, seed=seed)
        promised.add(data.shapes)
        used |= {data._layout(i)[1].shape for i in range(20 * len(data))}
    assert len(promised) == 1 and used <= set(promised.pop())
    assert len(used) <= {"padded": 6, "buckets": 4, "packed": 4}[kind]


def test_a_packed_batch_holds_the_examples_of_the_padded_batch():
    examples = prepared(np.random.default_rng(2).integers(1, 40, 61))
    packed, padded = (loader(examples, kind) for kind in ("packed", "padded"))
    for i in range(2 * len(packed)):
        assert check(packed[i], examples, 0) == check(padded[i], examples, 0)


def test_packed_holds_the_worst_batch_there_can_be():
    lengths = np.array([3] * 500 + [31] * 16)
    data = loader(prepared(lengths), "packed", size=16, row_length=32)
    layout = data.plan.fit(lengths[-16:])
    assert layout.shape in data.shapes and len(set(layout.rows)) == 16
    assert data.plan.fit(lengths[:16]).shape.rows < 16


def test_a_batch_of_buckets_holds_similar_lengths_and_buckets_are_spread_over_the_epoch():
    lengths = np.repeat([4, 7, 12, 15, 30], 84)
    data = loader(prepared(lengths), "buckets", buckets=[8, 16, 32])
    epochs = [[data[i] for i in range(e * len(data), (e + 1) * len(data))] for e in range(2)]
    for batches in epochs:
        width = np.array([batch.tokens.shape[1] for batch in batches])
        assert [int((width == edge).sum()) for edge in (8, 16, 32)] == [21, 21, 11]
        assert all(
            (lengths[batch.ids] > {8: 0, 16: 7, 32: 15}[w])[batch.ids >= 0].all()
            for w, batch in zip(width, batches, strict=True)
        )
        assert all(0.25 < (width[:26] == edge).sum() / (width == edge).sum() < 0.75 for edge in (8, 16, 32))
    members = [{frozenset(batch.ids.ravel().tolist()) for batch in batches} for batches in epochs]
    assert not members[0] & members[1]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_i_does_not_depend_on_what_was_asked_before(kind):
    examples = prepared(np.random.default_rng(3).integers(1, 30, 45))
    straight = [loader(examples, kind)[i] for i in range(18)]
    other = loader(examples, kind)
    for i in (17, 0, 9, 3, 16, 3):
        assert same(other[i], straight[i])
    assert not same(straight[0], loader(examples, kind, seed=4)[0])
    assert not same(straight[0], straight[len(other)])  # another order in the next epoch


def test_the_order_is_the_same_in_another_process_and_stays_so():
    assert shuffled(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]  # a stored data position means this for ever
    assert shuffled(8, 5, 2).tolist() == [3, 5, 2, 7, 1, 0, 6, 4]
    code = (
        "import hashlib, jax, numpy as np, sys; sys.path.insert(0, sys.argv[1]); import test_loader as t\n"
        "print(t.fingerprint())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert run.stdout.strip() == fingerprint()


def fingerprint():
    data = loader(prepared(range(1, 30)), "packed", row_length=32, shapes=1)
    leaves = [leaf for i in range(5) for leaf in jax.tree.leaves(data[i])]
    return data.hash + hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves if leaf.ndim)).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_iterate_gives_the_same_batches_from_any_start(kind):
    data = loader(prepared(np.random.default_rng(4).integers(1, 30, 45)), kind)
    for start, stop, threads in ((0, 6, 1), (4, 15, 3), (7, None, 2), (5, 5, 2)):
        batches = list(data.iterate(start, stop, threads=threads))
        expected = [data[i] for i in range(start, 12 if stop is None else stop)]
        assert len(batches) == len(expected) and all(map(same, batches, expected))
    assert len(list(data)) == len(data) == 6


def test_an_abandoned_iterator_of_endless_batches_stops():
    data = loader(prepared([5] * 20))
    for _ in range(3):
        batches = data.iterate(0, 2**40)
        assert same(next(batches), data[0])
        batches.close()


@pytest.mark.slow
def test_iterate_with_worker_processes_gives_the_same_batches():
    data = loader(prepared(np.random.default_rng(4).integers(1, 30, 45)), row_length=32, shapes=1)
    batches = list(data.iterate(4, 21, workers=2))
    assert len(batches) == 17 and all(map(same, batches, map(data.__getitem__, range(4, 21))))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batches))


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_equal_blocks_of_the_global_batch(kind):
    examples = prepared(np.random.default_rng(5).integers(1, 30, 45))
    whole = loader(examples, kind, row_multiple=4)
    hosts = [loader(examples, kind, shard=(k, 4)) for k in range(4)]
    for i in range(2 * len(whole)):
        joined = jax.tree.map(lambda *blocks: np.concatenate(blocks), *(host[i] for host in hosts))
        assert same(joined, whole[i])
    assert {host.hash for host in hosts} == {loader(examples, kind).hash}  # a position outlives a change of hosts


@pytest.mark.parametrize("kind", KINDS)
def test_drop_last_leaves_out_other_examples_in_each_epoch(kind):
    data = loader(prepared(range(1, 44)), kind, drop_last=True)
    assert len(data) == 5
    epochs = [{int(n) for batch in data.iterate(5 * e, 5 * e + 5) for n in batch.ids[batch.ids >= 0]} for e in range(4)]
    assert {len(epoch) for epoch in epochs} == {40} and len(set.union(*epochs)) == 43


def test_evaluation_keeps_the_given_order():
    data = loader(prepared(range(1, 20)), "padded", shuffle=False)
    assert [n for i in range(len(data)) for n in data[i].ids.ravel().tolist()] == [*range(19), *[-1] * 5]
    assert same(data[0], data[len(data)])


def test_usage_counts_tokens_and_places():
    data = loader(prepared([3, 5, 9, 2, 2]), "padded", size=2, shuffle=False)
    usage = data.usage()  # rows of 8, 16 and 8; the last batch has an empty row
    assert (usage.batches, usage.shapes, usage.tokens, usage.places) == (3, 2, 21, 64)
    assert usage.padding == pytest.approx(43 / 64)


def test_buckets_waste_less_than_padding_and_packing_less_than_buckets():
    path = ROOT / ".." / "shared" / "data" / "trec" / "train.txt"
    if not path.exists():
        pytest.skip("TREC is not beside the checkout (../shared/data/trec/train.txt)")
    questions = dict.fromkeys(line.split(maxsplit=1)[1] for line in path.read_text(encoding="latin-1").splitlines())
    examples = [{"tokens": np.ones(len(question.split()) + 2, int)} for question in questions]
    padded, buckets, packed = (Loader(examples, batching({"kind": kind})).usage() for kind in KINDS)
    assert padded.tokens == buckets.tokens == packed.tokens
    assert packed.places * 1.5 < padded.places and packed.places * 1.1 < buckets.places
    assert packed.padding < 0.15 and packed.shapes <= buckets.shapes <= 4


def test_hash_sees_the_data_the_batching_and_the_seed():
    examples = prepared(range(1, 20))
    changed = prepared(range(1, 20))
    changed[7]["targets"]["label"] += 1
    moved = [*examples[1:], examples[0]]
    hashes = [
        loader(examples).hash,
        loader(changed).hash,
        loader(moved).hash,
        loader(examples, size=9).hash,
        loader(examples, "padded").hash,
        loader(examples, seed=4).hash,
        loader(examples, shuffle=False).hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert loader(prepared(range(1, 20))).hash == hashes[0]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "batches").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_build(path):
    config = batching(yaml.safe_load(path.read_text()))
    assert config.kind == path.stem and len(Loader(prepared(range(1, 40)), config, per_token={"tags"})) == 2


def one(**change):
    return [*prepared([3, 4]), {**prepared([5])[0], **change}]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        (one(tokens=np.ones(0, int)), r"example 2 must have tokens"),
        (one(tokens=np.ones((2, 2), int)), r"example 2 must have tokens"),
        (one(types=[0, 0]), "example 2 has 5 tokens, but types of shape"),
        (one(targets={"label": 1}), "example 2 has other parts or targets"),
        (one(labels=3), "example 2 has other parts"),
        (one(targets={"label": 1, "score": [1.0], "tags": [1] * 5}), r"'score' has shape \(1,\) in example 2"),
        (one(targets={"label": 1, "score": [1.0, 2.0], "tags": [1] * 4}), "example 2 has 5 tokens, but tags"),
        (one(targets={"label": "HUM", "score": [1.0, 2.0], "tags": [1] * 5}), "label must be numbers"),
        (one(targets={"label": 2**40, "score": [1.0, 2.0], "tags": [1] * 5}), "label holds 1099511627776"),
        ([{"tokens": [1], "target": {}}], "unknown part 'target'. Did you mean 'targets'"),
        ([{"tokens": [1], "targets": {"tag": [1]}}], "no target 'tags'.*Did you mean 'tag'"),
    ],
)
def test_refuses_bad_examples_by_name(examples, message):
    with pytest.raises(InputError, match=message):
        loader(examples)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "packed", "row_length": 32}, "example 1 has 40 tokens, but row_length allows 32"),
        ({"kind": "buckets", "buckets": [8, 32]}, "example 1 has 40 tokens, but buckets allows 32"),
        ({"kind": "pakced"}, "Did you mean 'packed'"),
        ({"kind": "padded", "size": 40, "drop_last": True}, "3 examples fill no batch of 40"),
        ({"kind": "padded", "shard": (2, 2)}, "shard must be"),
    ],
)
def test_refuses_a_batching_that_does_not_suit_the_data(values, message):
    with pytest.raises(InputError, match=message):
        loader(prepared([3, 40, 5]), **values)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "packed", "rowlength": 32},
        {"kind": "buckets", "row_length": 32},
        {"kind": "packed", "size": 0},
        {"kind": "buckets", "buckets": 0},
        {"kind": "buckets", "buckets": []},
        {"kind": "packed", "shapes": "many"},
    ],
)
def test_refuses_a_key_or_value_that_the_kind_does_not_take(values):
    with pytest.raises(pydantic.ValidationError):
        batching(values)
