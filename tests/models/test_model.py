"""The model as a whole: stacked or one by one, under any policy, with its layers shown, with and without dropout."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.batches.batch import Batch
from research.errors import InputError
from research.models import layout
from research.models.block import Block
from research.models.config import ModelConfig, Run
from research.models.model import Model, Policy
from research.trees import flatten, unflatten
from tests.tiny import FAMILIES, tiny, tiny_batch

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


def period(**change) -> tuple[Model, dict]:
    """A BERT of one plain layer, then a period of two kinds, of which one has a window, three times."""
    model, _ = tiny("bert", **change)
    kind = model.config.encoder.runs[0].kinds[0]
    runs = (Run(kinds=(kind,), repeats=1), Run(kinds=(kind.model_copy(update={"window": 2}), kind), repeats=3))
    made = Model(_with_runs(model.config, runs))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32)
    return made, {"params": jax.tree.map(draw, made.shapes()), "tuning": {}}


def _with_runs(config: ModelConfig, runs: tuple[Run, ...]) -> ModelConfig:
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"runs": runs})})


def test_names_and_rows():
    """Hand-worked: run 1 of kinds (window, plain) three times holds layers 1, 3, 5 and 2, 4, 6."""
    config = period()[0].config
    rest = "attention/query/kernel"
    assert layout.logical(config, f"encoder/runs/1/0/{rest}") == [f"encoder/layers/{n}/{rest}" for n in (1, 3, 5)]
    assert layout.logical(config, f"encoder/runs/1/1/{rest}") == [f"encoder/layers/{n}/{rest}" for n in (2, 4, 6)]
    assert layout.logical(config, "pooler/dense/kernel") == ["pooler/dense/kernel"]
    assert layout.stored(config, f"encoder/layers/0/{rest}") == (f"encoder/runs/0/0/{rest}", 0)
    assert layout.stored(config, f"encoder/layers/4/{rest}") == (f"encoder/runs/1/1/{rest}", 1)
    with pytest.raises(KeyError):
        layout.stored(config, f"encoder/layers/7/{rest}")


@pytest.mark.parametrize("floor", range(8))
def test_restacked_and_split_are_the_same_model(floor):
    """Round trips are bitwise; cutting anywhere (within a period, too) changes no output and only lowers the cut."""
    model, variables = period()
    params = variables["params"]
    named = layout.unstack(model.config, params)
    again = layout.restack(model.config, named)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True))

    cut, moved = model.split(params, {"encoder": floor})
    after = layout.unstack(cut.config, moved)
    assert after.keys() == named.keys() and all(np.array_equal(after[n], named[n]) for n in named)
    below = sum(run.layers for run in cut.config.encoder.runs[: dict(cut.detached)["encoder"]])
    assert floor - 1 <= below <= floor and cut.config.encoder.layers == 7
    if floor == 4:
        batch = tiny_batch("bert")
        expected = quick(model.apply)(variables, batch).hidden
        np.testing.assert_allclose(quick(cut.apply)({"params": moved}, batch).hidden, expected, atol=1e-5)


def test_scanned_layers_are_the_layers_one_by_one():
    """`want=("layers",)` against Blocks called in a Python loop: what entered the first, what left each."""
    model, variables = period()
    batch = tiny_batch("bert")
    output = quick(lambda v, b: model.apply(v, b, want=("layers",)))(variables, batch)
    layers = output.wanted["layers"]["encoder"]
    assert layers.shape == (8, *output.hidden.shape)
    np.testing.assert_array_equal(layers[-1], output.hidden)

    named = layout.unstack(model.config, variables["params"])
    kinds = [kind for run in model.config.encoder.runs for _ in range(run.repeats) for kind in run.kinds]
    context = model._context(model.config.encoder, batch, jnp.zeros((1, 1)), None, None, None)
    x = layers[0]
    for number, kind in enumerate(kinds):
        prefix = f"encoder/layers/{number}/"
        own = unflatten({n.removeprefix(prefix): leaf for n, leaf in named.items() if n.startswith(prefix)})
        x, _ = Block(kind, model.config.width, 0.02).apply({"params": own}, x, context)
        np.testing.assert_allclose(layers[number + 1], x, atol=1e-4)
    assert np.abs(layers[1] - layers[2]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_policies(family):
    """Recomputing changes neither values nor gradients, with dropout on; bfloat16 is close, and parameters stay float32."""
    model, variables = tiny(family, layers=2, dropout=0.2, attention_dropout=0.2)
    batch, rng = tiny_batch(family), jax.random.key(3)
    real = (batch.segments > 0)[..., None]

    def grad(policy):
        def loss(params):
            hidden = model.with_policy(policy).apply({"params": params}, batch, rng=rng).hidden
            return jnp.sum(jnp.sin(hidden.astype(jnp.float32)) * real)

        return quick(jax.value_and_grad(loss))(variables["params"])

    value, gradient = grad(Policy())
    remats = ("dots", "full") if family == "bert" else ("full",)
    for remat in remats:
        other, found = grad(Policy(remat=remat))
        np.testing.assert_allclose(other, value, rtol=1e-5)
        for (path, a), b in zip(flatten(gradient).items(), flatten(found).values(), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-4 * max(1.0, float(np.abs(a).max())), err_msg=path)

    half = model.with_policy(Policy(dtype="bfloat16"))
    output = quick(half.apply)(variables, batch)
    whole = quick(model.apply)(variables, batch)
    assert output.hidden.dtype == jnp.bfloat16
    error = np.abs(np.where(real, output.hidden.astype(jnp.float32) - whole.hidden, 0))
    assert error.mean() < 0.03 * np.abs(whole.hidden).mean() + 0.01 and error.max() > 0


def test_dropout():
    """Off without rng; on with it, a function of it, different in every layer and place, and right on average."""
    model, variables = tiny("bert", layers=2, dropout=0.3, attention_dropout=0.3, activation_dropout=0.3)
    plain = Model(tiny("bert", layers=2)[0].config)
    batch = tiny_batch("bert")
    apply = quick(lambda rng: model.apply(variables, batch, rng=rng).hidden)
    expected = quick(plain.apply)(variables, batch).hidden
    np.testing.assert_allclose(quick(model.apply)(variables, batch).hidden, expected, atol=1e-5)
    one, same, other = (apply(jax.random.key(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1 and np.abs(one - expected).max() > 0.1


def test_initialisation():
    """`init` draws what `shapes` says: scales one, biases nought, matrices by the family's range, no two alike."""
    model, _ = tiny("bart", layers=2)
    params = flatten(model.init(jax.random.key(0))["params"])
    declared = flatten(model.shapes())
    assert {p: (a.shape, a.dtype) for p, a in params.items()} == {p: (s.shape, s.dtype) for p, s in declared.items()}
    assert flatten(model.axes()).keys() == params.keys()
    matrices = {}
    for path, leaf in params.items():
        last = path.rsplit("/", 1)[-1]
        if last in ("scale", "bias"):
            assert (np.asarray(leaf) == (last == "scale")).all(), path
        else:
            assert abs(float(leaf.std()) - 0.2) < 0.03 and abs(float(leaf.mean())) < 0.03, path
            matrices[path] = leaf
    query = matrices["encoder/runs/0/0/attention/query/kernel"]
    assert not np.array_equal(query[0], query[1])
    assert len({np.asarray(leaf).ravel()[0].item() for leaf in matrices.values()}) == len(matrices)


def test_refusals():
    model, variables = tiny("bert", layers=1)
    with pytest.raises(InputError, match=r"cannot return 'layer'\. Did you mean 'layers'"):
        model.apply(variables, tiny_batch("bert"), want=("layer",))
    with pytest.raises(InputError, match="25 tokens, but the model has learned positions for 24"):
        model.apply(variables, Batch.of(np.ones((1, 25), np.int32)))
    with pytest.raises(InputError, match="token id 40 is outside the model's vocabulary of 40"):
        model.apply(variables, Batch.of([[3, 40]]))
    bart, variables = tiny("bart", layers=1)
    with pytest.raises(InputError, match=r"needs batch\.source"):
        bart.apply(variables, Batch.of([[3, 4]]))
