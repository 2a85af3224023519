"""The one step: any way of cutting a batch gives the gradient of its mean loss, to float32 rounding (dropout off)."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.batches.loader import Loader
from research.batches.plan import batching
from research.models.config import Head
from research.objectives.objective import objective
from research.training.state import State
from research.training.step import predict_step, split_rows, train_step
from research.tuning.full import Full
from research.tuning.strategy import tune
from tests.tiny import CLASSES, VOCABULARY, tiny

SGD = optax.sgd(1.0)  # so that a step moves by the gradient
WEIGHTED = objective({"kind": "classification", "class_weights": (0.2, 1.0, 3.0)})
PLAIN = objective("classification")  # the tiny models have no dropout


def examples(count=27, seed=0):
    """Prepared examples of 2 to 12 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 13, count)
    return [
        {"tokens": rng.integers(3, VOCABULARY, n), "types": np.zeros(n, np.int32), "targets": {"label": i % CLASSES}}
        for i, n in enumerate(lengths)
    ]


def loader(kind="padded", size=9, **options):
    """27 examples in batches of 9, each kind in one shape."""
    options |= {"packed": {"shapes": 1}, "padded": {"multiple": 16}}.get(kind, {})
    return Loader(examples(), batching({"kind": kind, "size": size} | options), seed=3)


@cache
def started(strategy="full", average=False):
    """The tiny model under a strategy, and its first state (steps here do not donate, so it can be used again)."""
    model, variables = tiny("bert", layers=2)
    tuned = tune(model, variables["params"], strategy, jax.random.key(1))
    return tuned, State.create(tuned.trainable, tuned.state, SGD, 0, average=average)


@cache
def compiled(strategy="full", chosen=PLAIN, **options):
    return jax.jit(train_step(started(strategy)[0], chosen, SGD, **options))


def run(strategy, state, batches, **options):
    """`(state, metrics of every step)`."""
    tuned, seen = started(strategy)[0], []
    for batch in batches:
        state, metrics = compiled(strategy, **options)(state, tuned.frozen, batch)
        seen.append(jax.device_get(metrics))
    return state, seen


def close(a, b, atol=2e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), a, b)


@pytest.mark.parametrize(("kind", "strategy", "parts"), [("padded", "full", 2), ("padded", "full", 4), ("packed", "lora", 2)])
def test_accumulation_is_one_batch(kind, strategy, parts):
    """Nine rows in two or four parts, unequal in tokens and examples, with weights that make the denominators unequal too."""
    _, state = started(strategy)
    batches = [loader(kind)[i] for i in range(2)]
    assert kind == "packed" or batches[0].tokens.shape[0] % parts
    whole, numbers = run(strategy, state, batches, chosen=WEIGHTED)
    cut, numbers_cut = run(strategy, state, batches, chosen=WEIGHTED, accumulate=parts)
    close(whole.trainable, cut.trainable, atol=1e-5)
    close(numbers, numbers_cut)
    assert not np.array_equal(*(jax.tree.leaves(s.trainable)[-1] for s in (state, whole)))


def test_split_rows_keeps_every_row():
    batch = loader()[0]
    parts = split_rows(batch, 4)
    assert parts.tokens.shape == (4, 3, batch.tokens.shape[1])
    back = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), parts)
    np.testing.assert_array_equal(back.tokens[:9], batch.tokens)
    assert (back.ids[9:] == -1).all() and not back.weights[9:].any() and not back.segments[9:].any()


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_packed_is_padded(strategy):
    """The packed, the padded and the one-bucket plan hold the same examples a batch, so training is the same."""
    tuned, state = started(strategy)
    loaders = {"packed": loader("packed"), "padded": loader("padded"), "buckets": loader("buckets", buckets=[16])}
    runs = {name: run(strategy, state, [one[i] for i in range(6)]) for name, one in loaders.items()}
    assert loaders["packed"][0].slots > 1
    for other in ("padded", "buckets"):
        close([m["loss"] for m in runs["packed"][1]], [m["loss"] for m in runs[other][1]], atol=1e-5)
        close(runs["packed"][0].trainable, runs[other][0].trainable, atol=1e-4)
    found = {}
    for name in ("packed", "padded"):
        batch = loaders[name][0]
        predicted, sums = jax.jit(predict_step(tuned, PLAIN))(state.trainable, tuned.frozen, {}, batch)
        present = batch.ids >= 0
        found[name] = (np.asarray(predicted["probabilities"])[present][np.argsort(batch.ids[present])], sums)
    close(found["packed"], found["padded"])


def test_gradient_is_that_of_the_mean_loss():
    """One SGD step of rate 1 moves by the gradient of the mean over examples that stand alone in their rows."""
    tuned, state = started()
    batch = loader("packed")[0]
    moved, (metrics,) = run("full", state, [batch])
    single, ids = examples(), batch.ids[batch.ids >= 0]
    one = Loader([single[i] for i in ids], batching({"kind": "padded", "size": len(ids), "multiple": 16}), shuffle=False)[0]

    def mean(trainable):
        logits = tuned.model.apply(tuned.variables(trainable, tuned.frozen, {}), one).logits[:, 0]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), one.targets["label"], 1))

    value, gradient = jax.jit(jax.value_and_grad(mean))(state.trainable)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)
    close(jax.tree.map(jnp.subtract, state.trainable, moved.trainable), gradient)
    assert metrics["examples"] == 9 and metrics["finite"]


class Pulled(Full):
    """A strategy with a penalty that knows its own gradient, and a state that counts updates."""

    def init(self, rng, base, data=None):
        trainable, frozen, _ = super().init(rng, base, data)
        return trainable, frozen, {"updates": jnp.zeros((), jnp.int32)}

    def penalty(self, trainable, frozen, state):
        return 0.5 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(trainable))

    def update(self, state, trainable, grads, step):
        return trainable, {"updates": state["updates"] + 1 + step}


@pytest.mark.parametrize("parts", [1, 2])
def test_penalty_counts_once(parts):
    """However a batch is cut, the loss grows by the penalty and every gradient by 0.5; `update` follows each step."""
    pulled, batch = Pulled(), loader()[0]
    expected, (without,) = run("full", started()[1], [batch])
    _, state = started(pulled)
    moved, (metrics,) = run(pulled, state, [batch], accumulate=parts)
    close(moved.trainable, jax.tree.map(lambda leaf: leaf - 0.5, expected.trainable), atol=1e-5)
    np.testing.assert_allclose(metrics["loss"] - without["loss"], pulled.penalty(state.trainable, {}, {}), rtol=1e-4)
    twice, _ = run(pulled, moved, [batch], accumulate=parts)
    assert (int(moved.strategy["updates"]), int(twice.strategy["updates"]), int(twice.step)) == (1, 3, 2)


def test_average():
    """After n steps the average is `d^n w_0 + (1 - d) sum_k d^(n-k) w_k`."""
    states, decay = [started("bitfit", average=True)[1]], 0.7
    for i in range(3):
        states.append(run("bitfit", states[-1], [loader()[i]], average=decay)[0])
    shares = [decay**3, *((1 - decay) * decay ** (3 - k) for k in (1, 2, 3))]
    weighted = lambda *leaves: sum(share * leaf for share, leaf in zip(shares, leaves, strict=True))
    expected = jax.tree.map(weighted, *(s.trainable for s in states))
    close(states[-1].average, expected)
    assert states[-1].evaluated is states[-1].average and states[-1].average is not states[-1].trainable


def test_dropout_depends_on_step_and_seed():
    """The same state and batch give the same bits; another step or seed other ones."""
    model, variables = tiny("bert", layers=1, head=Head(form="classification", outputs=CLASSES, dropout=0.5))
    tuned = tune(model, variables["params"], "head", jax.random.key(1))
    state, batch = State.create(tuned.trainable, tuned.state, SGD, 0), loader()[0]
    step = jax.jit(train_step(tuned, PLAIN, SGD))
    losses = [
        float(step(one, tuned.frozen, batch)[1]["loss"])
        for one in (state, state, state.replace(step=state.step + 1), state.replace(rng=state.rng + 1))
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_not_finite_is_noticed():
    _, state = started("bitfit", average=True)
    broken = state.replace(trainable=jax.tree.map(lambda leaf: leaf * jnp.nan, state.trainable))
    verdicts = [run("bitfit", one, [loader()[0]], average=0.7)[1][0]["finite"] for one in (state, broken)]
    assert verdicts == [True, False]
