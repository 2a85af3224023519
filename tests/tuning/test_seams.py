"""What strategies and models owe each other: cuts, packed rows, caches, composition, dropout, a strategy of the user's own."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.batches.batch import Batch
from research.models.cache import Cache
from research.models.config import Run, Stack
from research.models.model import Model
from research.training.state import State
from research.training.step import train_step
from research.trees import count, flatten
from research.tuning.lora import LowRank
from research.tuning.strategy import Tuned, tune
from tests.tiny import FAMILIES, tiny
from tests.tuning.cases import CASES, Probe, base_of, fresh_of, instance, quick

LENGTHS, SOURCES = ((5, 3), (4, 4)), ((3, 6), (5, 2))
SEAMS = ("sites", "lora_ragged", "adapter", "prefix", "top_layers", "lora_bitfit")


def tuned_far(name: str, family: str) -> tuple[Tuned, dict[str, Any]]:
    """A case away from where it starts, and its variables."""
    model, params, _ = base_of(family)
    tuned = tune(model, params, instance(name, family).how, jax.random.key(1), fresh=fresh_of(family))
    rng = np.random.default_rng(5)
    moved = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), tuned.trainable)
    return tuned, tuned.variables(moved, tuned.frozen, tuned.state)


def rows(lengths, packed: bool, seed: int) -> Batch:
    """Two examples in each of two rows, or the same four each in a row of its own, padded on the right."""
    rng, width = np.random.default_rng(seed), max(sum(pair) for pair in lengths)
    examples = [rng.integers(3, 40, n) for pair in lengths for n in pair]
    shape = (2, width) if packed else (4, width)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    for number, example in enumerate(examples):
        row, slot = divmod(number, 2) if packed else (number, 0)
        start = lengths[row][0] if slot else 0
        place = row, slice(start, start + len(example))
        tokens[place], segments[place], positions[place] = example, slot + 1, np.arange(len(example))
    ids = np.arange(4).reshape(2, 2) if packed else np.arange(4)[:, None]
    return Batch(tokens, segments, positions if packed else None, np.zeros_like(tokens), ids=ids)


def of_family(family: str, packed: bool) -> Batch:
    source = rows(SOURCES, packed, 8).replace(ids=None) if family == "bart" else None
    return rows(LENGTHS, packed, 7).replace(source=source)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "sites" else pytest.mark.slow) for n in SEAMS])
def test_packed_and_cached(name, family):
    """Several examples to a row, and decoding in pieces, give what one example a row in one piece gives."""
    if family not in CASES[name].families:
        pytest.skip("not of this family")
    tuned, variables = tuned_far(name, family)
    apply = quick(lambda batch, cache=None: tuned.model.apply(variables, batch, cache=cache))
    together, alone = of_family(family, True), of_family(family, False)
    expected = apply(alone).logits
    found = apply(together).logits
    if family == "bert":
        np.testing.assert_allclose(found.reshape(4, -1), expected[:, 0], atol=2e-5)
        return
    np.testing.assert_allclose(found[together.segments > 0], expected[alone.segments > 0], atol=5e-5)

    cache, pieces, source = Cache.empty(tuned.model.config, 4, 8), [], alone.source
    for start in (0, 2, 4, 6):
        two = slice(start, start + 2)
        piece = Batch(alone.tokens[:, two], alone.segments[:, two], source=None if start else source)
        output = apply(piece, cache)
        cache = output.cache
        pieces.append(output.logits)
    real = alone.segments > 0
    np.testing.assert_allclose(np.concatenate(pieces, 1)[real], expected[real], atol=5e-5)


@pytest.mark.parametrize(("stacks", "shifted"), [(None, {"encoder", "decoder"}), (("decoder",), {"decoder"})])
def test_a_prefix_takes_the_first_positions(stacks, shifted):
    """What enters the first layer is what enters it without a prefix from position `length` on, where there is one."""
    model, params, batch = base_of("bart")
    tuned = tune(model, params, {"kind": "prefix", "length": 5, "stacks": stacks}, jax.random.key(0))
    variables = tuned.variables(tuned.trainable, tuned.frozen, tuned.state)
    at = lambda one, start: one.replace(positions=start + np.broadcast_to(np.arange(one.tokens.shape[1]), one.tokens.shape))
    plain = at(batch, 5 * ("decoder" in shifted)).replace(source=at(batch.source, 5 * ("encoder" in shifted)))
    want = lambda model, variables, batch: quick(lambda: model.apply(variables, batch, want=("layers",)))().wanted["layers"]
    ours, expected = want(tuned.model, variables, batch), want(model, {"params": params}, plain)
    for stack in model.config.stacks:
        np.testing.assert_allclose(ours[stack][0], expected[stack][0], atol=1e-6)
        assert np.abs(ours[stack][1] - expected[stack][1]).max() > 0.01 or stack not in shifted


# ---- the cut ----------------------------------------------------------------------------------------------------------
def score_products(jaxpr: Any, times: int = 1) -> int:
    """How often a program forms `q k^T` or, going back, `g v^T`: once an attention and direction, scans multiplied out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += times * (equation.params["dimension_numbers"] == (((3,), (3,)), ((0, 1), (0, 1))))
        inner_times = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    total += score_products(inner, inner_times)
    return total


def attentions_differentiated(model: Model, params: Any, how: Any, batch: Batch) -> int:
    """Attentions that the step's backward pass goes through."""
    tuned, optimizer = tune(model, params, how, jax.random.key(0)), optax.sgd(0.1)
    state = State.create(tuned.trainable, tuned.state, optimizer, seed=0)
    step = jax.make_jaxpr(train_step(tuned, Probe(), optimizer))(state, tuned.frozen, batch).jaxpr
    forward = sum(
        layer.cross + 1 for stack in model.config.stacks.values() for run in stack.runs for layer in run.kinds * run.repeats
    )
    return score_products(step) - forward


# A decoder layer of an encoder-decoder has two attentions.
DEPTHS = [
    ("bert", "full", 3),
    ("bert", "head", 0),
    ("bert", {"kind": "top_layers", "layers": 1}, 1),
    ("bert", {"kind": "select", "patterns": ["encoder/layers/1/mlp/.*"]}, 1),  # what trains lies above layer 1's attention
    ("bert", {"kind": "lora", "targets": ["encoder/layers/2/.*/query/kernel"]}, 1),
    ("bert", {"kind": "adapter", "layers": "encoder/layers/[12]"}, 1),
    ("bert", "prefix", 3),
    ("bert", {"kind": "select", "patterns": ["embeddings/.*"]}, 3),
    ("bert", [{"kind": "lora", "targets": ["encoder/layers/2/.*/query/kernel"]}, "head"], 1),
    ("llama", {"kind": "top_layers", "layers": 2}, 2),
    ("llama", {"kind": "select", "patterns": ["decoder/norm/scale"]}, 0),
    ("bart", "full", 9),
    ("bart", "head", 0),
    ("bart", {"kind": "top_layers", "layers": 1}, 2),
    ("bart", {"kind": "prefix", "stacks": ["decoder"]}, 6),
    ("bart", {"kind": "select", "patterns": ["encoder/layers/2/.*"]}, 7),
    ("bart", {"kind": "select", "patterns": ["encoder/norm/scale"]}, 6),  # only through the decoder's cross-attention
    ("bart", {"kind": "select", "patterns": ["decoder/embeddings/.*"]}, 6),
]


@pytest.mark.parametrize(("family", "how", "depth"), DEPTHS, ids=str)
def test_below_the_cut_nothing_is_differentiated(family, how, depth):
    model, params, batch = base_of(family)
    if family == "bart":
        encoder = model.config.encoder.model_copy(update={"final_norm": True})
        model = Model(model.config.model_copy(update={"encoder": encoder}))
        norm = {"scale": jnp.ones(24), "bias": jnp.zeros(24)}
        params = params | {"encoder": params["encoder"] | {"norm": norm}}
    assert attentions_differentiated(model, params, how, batch) == depth


def test_cut_within_a_period():
    """Runs of two kinds are cut between repeats: layer 3 lies in the second repeat, so layers 2..5 are differentiated."""
    kind = tiny("bert")[0].config.encoder.runs[0].kinds[0]
    runs = (Run(kinds=(kind, kind.model_copy(update={"window": 2})), repeats=3),)
    config = tiny("bert")[0].config
    model = Model(config.model_copy(update={"encoder": Stack(**dict(config.encoder) | {"runs": runs})}))
    params = jax.tree.map(lambda s: jnp.ones(s.shape) * 0.1, model.shapes())
    tuned = tune(model, params, {"kind": "select", "patterns": [r"encoder/layers/3/mlp/.*"]}, jax.random.key(0))
    assert tuned.model.detached == (("encoder", 1),)
    assert [run.repeats for run in tuned.model.config.encoder.runs] == [
        1,
        1,
        1,
    ]  # the last for the head, which reads few places
    leaves = [f"{name}/{leaf}" for name in ("down", "up") for leaf in ("bias", "kernel")]
    assert sorted(tuned.trainable) == [f"encoder/runs/1/1/mlp/{leaf}" for leaf in leaves]


@pytest.mark.slow
def test_top_layers_and_head_cost_a_fraction():
    """Seconds a step: the head and the top layer of eight against everything."""
    model, variables = tiny("bert", layers=8, heads=4, kv_heads=4, head_width=32, mlp_width=512, width=128)
    rng = np.random.default_rng(0)
    batch = Batch.of(rng.integers(3, 40, (16, 24))).replace(targets={"label": np.zeros(16, np.int32)}, weights=np.ones(16))
    seconds = {}
    for name, how in {"full": "full", "top": {"kind": "top_layers", "layers": 1}, "head": "head"}.items():
        tuned, optimizer = tune(model, variables["params"], how, jax.random.key(0)), optax.adam(1e-3)
        state = State.create(tuned.trainable, tuned.state, optimizer, seed=0)
        step = jax.jit(train_step(tuned, Probe(), optimizer))
        jax.block_until_ready(step(state, tuned.frozen, batch))
        tries = []
        for _ in range(15):
            began = time.perf_counter()
            jax.block_until_ready(step(state, tuned.frozen, batch))
            tries.append(time.perf_counter() - began)
        seconds[name] = min(tries)
    assert seconds["head"] < 0.6 * seconds["full"], seconds
    assert seconds["top"] < 0.75 * seconds["full"], seconds


# ---- composition ------------------------------------------------------------------------------------------------------
def test_parts_of_a_composition():
    """Adapter, prefix and LoRA together train as much as apart; their order among selections does not matter."""
    model, params, _ = base_of("bart")
    each = [count(tune(model, params, part, jax.random.key(0)).trainable) for part in CASES["sites"].how]
    assert count(tune(model, params, CASES["sites"].how, jax.random.key(0)).trainable) == sum(each)
    lora, full = {"kind": "lora", "rank": 2}, "full"
    first, second = (tune(model, params, how, jax.random.key(0)) for how in ([lora, full], [full, lora]))
    assert first.strategy == second.strategy and sorted(first.trainable["0"]) == sorted(flatten(params))
    nested = tune(model, params, [[lora, "bitfit"], {"kind": "adapter"}], jax.random.key(0))
    assert [part.kind for part in nested.strategy.parts] == ["bitfit", "lora", "adapter"]


def test_sites_are_called_in_order():
    """Two LoRAs at one map add up; an adapter named first is inside the second."""
    model, params, _ = base_of("bert")
    lora, small = ({"kind": "lora", "rank": rank, "targets": [".*/layers/1/.*/query/kernel"]} for rank in (3, 2))
    tuned = tune(model, params, [lora, small], jax.random.key(0))
    trainable = jax.tree.map(lambda a: a + 0.1, tuned.trainable)
    made = tuned.variables(trainable, tuned.frozen, tuned.state)
    sites = made["tuning"]["encoder"]["runs"]["1"]["0"]["attention"]["query"]["site"]
    assert [site.a.shape[-1] for site in sites] == [3, 2]
    merged = tuned.strategy.weights(trainable, tuned.frozen, tuned.state)
    path, (one, two) = "encoder/runs/1/0/attention/query/kernel", sites
    expected = tuned.base.params[path] + one.scale * one.a @ one.b + two.scale * two.a @ two.b
    np.testing.assert_allclose(merged[path], expected, atol=1e-5)


def test_lora_scale_and_dropout():
    """alpha/r, or alpha/sqrt(r); dropout acts on A's input only, and only where there is randomness."""
    rng = np.random.default_rng(0)
    x, a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((50, 8), (8, 4), (4, 6)))
    y = jnp.asarray(rng.normal(size=(50, 6)), jnp.float32)
    model, params, _ = base_of("bert")
    for stabilised, scale in ((False, 6 / 4), (True, 6 / 2)):
        how = {"kind": "lora", "rank": 4, "alpha": 6, "targets": [".*/layers/2/.*/query/kernel"]}
        tuned = tune(model, params, how | {"rank_stabilized": stabilised}, jax.random.key(0))
        sites = flatten(tuned.variables(tuned.trainable, tuned.frozen, {})["tuning"])
        assert [site.scale for site in sites["encoder/runs/1/0/attention/query/site"]] == [scale]
    np.testing.assert_allclose(LowRank(a, b, 1.5, 0.5)(x, y, None, None), y + 1.5 * x @ a @ b, atol=1e-4)
    dropped = [LowRank(a, b, 1.5, 0.5)(x, y, None, jax.random.key(n)) - y for n in range(400)]
    assert np.abs(dropped[0] - dropped[1]).max() > 0.1
    np.testing.assert_allclose(np.mean(dropped, 0), 1.5 * x @ a @ b, atol=6 * np.std(dropped, 0).max() / 20)


def test_fresh_leaves_train_and_low_rank_leaves_them_alone():
    """`.*/kernel` means the base's matrices: a new head trains whole, not by a low rank beside it."""
    model, params, _ = base_of("bert")
    how = {"kind": "lora", "rank": 2, "targets": [".*/kernel"]}
    tuned = tune(model, params, how, jax.random.key(0), fresh=fresh_of("bert"))
    assert {part.kind for part in tuned.strategy.parts} == {"select", "lora"}
    heads = [key for key in flatten(tuned.trainable) if "head/" in key]
    assert sorted(heads) == ["0/head/output/bias", "0/head/output/kernel"]


# ---- a strategy of the user's own -------------------------------------------------------------------------------------
def test_a_users_strategy(monkeypatch):
    """`kind` may be a dotted module: one step moves what it trains, its penalty counts, its update has the last word."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parent / "example"))
    model, params, batch = base_of("bert")
    tuned = tune(model, params, {"kind": "my_tuning.pull", "strength": 0.5}, jax.random.key(0))
    optimizer = optax.sgd(0.1)
    state = State.create(tuned.trainable, tuned.state, optimizer, seed=0)
    after, metrics = quick(train_step(tuned, Probe(), optimizer))(state, tuned.frozen, batch)
    assert set(state.trainable) == {"head/output/bias"} and after.strategy["steps"] == 1
    free = tune(model, params, {"kind": "my_tuning.pull", "strength": 0}, jax.random.key(0))
    plain, _ = quick(train_step(free, Probe(), optimizer))(state, tuned.frozen, batch)
    bias = state.trainable["head/output/bias"]
    np.testing.assert_allclose(after.trainable["head/output/bias"], plain.trainable["head/output/bias"] - 0.1 * bias, atol=1e-6)
    assert float(metrics["loss"]) > 0.25 * float(jnp.sum(bias**2))
