"""What every strategy owes, on every family: where it starts, what it moves, what it costs, what it exports."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from research.checkpoints.store import Store
from research.models import layout
from research.training.state import State
from research.trees import count, flatten
from research.tuning.strategy import Base, leaf_names, nested
from tests.tiny import FAMILIES
from tests.tuning.cases import CASES, COVER, Probe, base_of, effective, forward, fresh_of, instance, named, quick, run

PRODUCT = [
    pytest.param(name, family, id=f"{name}-{family}", marks=() if name in COVER[family] else pytest.mark.slow)
    for family in FAMILIES
    for name, case in CASES.items()
    if family in case.families
]
each = pytest.mark.parametrize(("name", "family"), PRODUCT)
mergeable = pytest.mark.parametrize(("name", "family"), [p for p in PRODUCT if p.values[0].startswith("lora")])


def by_leaf(base: Base, tree: dict) -> dict[str, np.ndarray]:
    """What of a tree like `trainable` belongs to leaves of the base themselves, by logical name."""
    found = {}
    for key, leaf in flatten(tree).items():
        key = re.sub(r"^\d+/", "", key)  # the number of a part
        if re.sub(r"@[\d,]+$", "", key) in base.params:
            names = leaf_names(base, key)
            found |= {key: leaf} if names == [key] else dict(zip(names, leaf, strict=True))
    return found


@each
def test_starts_at_the_base(name, family):
    """The model at initialisation is the base, or the strategy says that it is not."""
    model, params, batch = base_of(family)
    base, trained = forward(model)({"params": params, "tuning": {}}, batch), run(name, family)[0]
    difference = np.abs(trained.logits[0] - base).max()
    assert difference < 1e-4 if trained.tuned.strategy.identity else difference > 1e-2
    assert trained.tuned.strategy.identity == (name not in ("prefix", "sites"))


@each
def test_moves_what_it_declares_and_nothing_else(name, family):
    """After two steps every row of every trainable leaf has moved, and of the weights just those expected."""
    model, params, _ = base_of(family)
    trained, gradients = run(name, family)
    tuned, before, after = trained.tuned, flatten(trained.before.trainable), flatten(trained.after.trainable)
    names = tuned.strategy.learning_names(tuned.base, tuned.trainable)
    assert names.keys() == before.keys()
    told = [one for several in names.values() for one in several]
    assert len(told) == len(set(told)), "two rows have one name"
    for key, several in names.items():
        moved = np.asarray(before[key] != after[key])
        rows = moved if len(several) > 1 else moved[None]
        assert len(rows) == len(several), key
        assert rows.reshape(len(rows), -1).any(1).all(), f"{key} stood still"

    base, now = named(model.config, params), effective(tuned, trained.after.trainable)
    moves = {n for n in base if re.fullmatch(instance(name, family).moves, n)} | fresh_of(family)
    assert base.keys() == now.keys()
    assert {n for n in base if not np.array_equal(base[n], now[n])} == moves
    start = effective(tuned, trained.before.trainable)
    assert all(np.array_equal(base[n], start[n]) for n in base)
    assert jax.tree.structure(gradients) == jax.tree.structure(tuned.trainable)


@each
def test_costs_what_it_trains(name, family):
    """The count computed by hand; the optimizer holds two moments of that and nothing of the frozen."""
    model, params, _ = base_of(family)
    trained, _ = run(name, family)
    expected = instance(name, family).trains(named(model.config, params), fresh_of(family))
    moments = trained.before.optimizer[0]
    assert count(trained.tuned.trainable) == expected
    for moment in (moments.mu, moments.nu):
        assert jax.tree.map(lambda a: a.shape, moment) == jax.tree.map(lambda a: a.shape, trained.tuned.trainable)
    assert count(trained.before.optimizer) == 2 * expected + 1


@each
def test_gradients_are_those_of_full(name, family):
    """Cutting the model and freezing the rest change no gradient of what trains (where the function is the same)."""
    trained, gradients = run(name, family)
    if not trained.tuned.strategy.identity:
        pytest.skip("another function than the base")
    whole, everything = run("full", family)
    expected = by_leaf(whole.tuned.base, everything)
    found = by_leaf(trained.tuned.base, gradients)
    assert found.keys() >= fresh_of(family)
    assert abs(trained.losses[0] - whole.losses[0]) < 1e-5
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-3, atol=1e-5, err_msg=key)


@mergeable
def test_factored_is_materialised(name, family):
    """`variables` (the factors at their sites) against `weights` (the definition): loss and gradients, B no longer nought."""
    batch = base_of(family)[2]
    trained, _ = run(name, family)
    tuned = trained.tuned

    @quick
    @jax.value_and_grad
    def materialised(trainable):
        variables = nested({"params": tuned.strategy.weights(trainable, tuned.frozen, tuned.state), "tuning": {}})
        total, denominator, _ = Probe().loss(tuned.model.apply(variables, batch), batch)
        return total / denominator

    value, gradients = materialised(trained.after.trainable)
    assert abs(value - trained.losses[1]) < 1e-5
    found = flatten(trained.gradients(trained.last))
    for key, expected in flatten(gradients).items():
        assert np.abs(expected).max() > 1e-7 or key.endswith("key/bias"), key
        np.testing.assert_allclose(found[key], expected, rtol=1e-3, atol=1e-5, err_msg=key)


@each
def test_merged_export(name, family):
    """Where `weights` says all, it gives the tuned logits through the original, uncut model."""
    model, _, batch = base_of(family)
    trained, _ = run(name, family)
    if not trained.tuned.strategy.mergeable:
        pytest.skip("has no effective weights")
    params = layout.restack(model.config, effective(trained.tuned, trained.after.trainable))
    logits = forward(model)({"params": params, "tuning": {}}, batch)
    np.testing.assert_allclose(logits, trained.logits[1], rtol=1e-4, atol=1e-4)
    assert np.abs(trained.logits[1] - trained.logits[0]).max() > 1e-2


def _round_trip(folder, states: dict[str, State]) -> None:
    store = Store(folder)
    store.save(1, states, {"is": "a test"})
    store.wait()
    like = jax.tree.map(np.zeros_like, states)
    found, _ = store.restore(1, like)
    store.close()
    assert jax.tree.structure(found) == jax.tree.structure(states)
    for old, new in zip(jax.tree.leaves(states), jax.tree.leaves(found), strict=True):
        assert old.dtype == new.dtype and np.asarray(old).tobytes() == np.asarray(new).tobytes()


def test_states_are_saved_bitwise(tmp_path):
    """Trainable leaves (ragged ones too), strategy and optimizer state of every strategy, to disk and back."""
    states = {f"{family}_{name}": run(name, family)[0].last for family, names in COVER.items() for name in names}
    assert any("@" in key for state in states.values() for key in flatten(state.trainable))
    _round_trip(tmp_path, states)


@pytest.mark.slow
def test_all_states_are_saved_bitwise(tmp_path):
    states = {f"{p.values[1]}_{p.values[0]}": run(*p.values)[0].last for p in PRODUCT}
    assert len(states) > 35
    _round_trip(tmp_path, states)
