"""Losses as sums with denominators: PyTorch's means, NumPy's formulas, and places that hold no example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.batches.batch import Batch
from research.errors import InputError
from research.models.model import Output
from research.objectives.objective import objective

CLASSES, ROWS, SLOTS = 4, 3, 2


def given(label, logits) -> tuple[Output, Batch]:
    """Five examples in six places; the place without one holds numbers that must not count."""
    weights = np.ones((ROWS, SLOTS), np.float32)
    weights[1, 1] = 0
    blank = np.zeros((ROWS, 3), np.int32)
    ids = np.where(weights > 0, np.arange(ROWS * SLOTS).reshape(ROWS, SLOTS), -1)
    batch = Batch(blank, blank + 1, targets={"label": label}, weights=weights, ids=ids)
    return Output(hidden=None, logits=jnp.asarray(logits)), batch


def mean(chosen, output, batch) -> tuple[float, np.ndarray]:
    """The loss, and its gradient by logits."""

    def loss(logits):
        total, denominator, _ = chosen.loss(output.__class__(hidden=None, logits=logits), batch)
        return total / denominator

    value, gradient = jax.value_and_grad(loss)(output.logits)
    return float(value), np.asarray(gradient)


def present(batch, array) -> np.ndarray:
    return np.asarray(array)[np.asarray(batch.weights) > 0]


def check_against(reference, chosen, output, batch):
    """Value and gradient equal `reference(logits, labels)`, a PyTorch mean over the examples that are there."""
    torch = pytest.importorskip("torch")
    logits = torch.tensor(present(batch, output.logits), requires_grad=True)
    expected = reference(torch, logits, torch.tensor(present(batch, batch.targets["label"])))
    expected.backward()
    value, gradient = mean(chosen, output, batch)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(present(batch, gradient), logits.grad.numpy(), atol=1e-7)
    assert not gradient[1, 1].any()


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 3, (ROWS, SLOTS, CLASSES)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0, 0.25)])
def test_classification(logits, smoothing, weights):
    label = np.array([[0, 2], [1, 3], [3, 2]], np.int32)
    chosen = objective({"kind": "classification", "label_smoothing": smoothing, "class_weights": weights})
    output, batch = given(label, logits)
    # Szegedy et al. 2016, equation 7, in float64
    w = np.ones(CLASSES) if weights is None else np.array(weights)
    odds = np.exp(present(batch, logits).astype(np.float64))
    surprise = -np.log(odds / odds.sum(-1, keepdims=True))
    truth = np.eye(CLASSES)[present(batch, label)] * (1 - smoothing) + smoothing / CLASSES
    expected = (truth * w * surprise).sum() / w[present(batch, label)].sum()
    np.testing.assert_allclose(mean(chosen, output, batch)[0], expected, rtol=1e-5)

    def reference(torch, x, y):
        w = None if weights is None else torch.tensor(weights)
        return torch.nn.CrossEntropyLoss(weight=w, label_smoothing=smoothing)(x, y.long())

    check_against(reference, chosen, output, batch)


def test_classification_counts_and_predictions(logits):
    output, batch = given(np.zeros((ROWS, SLOTS), np.int32), logits)
    chosen = objective("classification")
    predicted = chosen.predict(output, batch)
    np.testing.assert_array_equal(predicted["prediction"], logits.argmax(-1))
    np.testing.assert_allclose(predicted["probabilities"].sum(-1), 1, rtol=1e-6)
    _, _, aux = chosen.loss(output, batch)
    assert aux["accuracy"] == present(batch, logits.argmax(-1) == 0).sum()


def test_multilabel(logits):
    label = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.float32)
    chosen = objective({"kind": "multilabel", "threshold": 0.3})
    output, batch = given(label, logits)
    p = 1 / (1 + np.exp(-present(batch, logits).astype(np.float64)))
    y = present(batch, label)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    np.testing.assert_allclose(mean(chosen, output, batch)[0], expected, rtol=1e-5)
    check_against(lambda torch, x, y: torch.nn.BCEWithLogitsLoss()(x, y), chosen, output, batch)
    np.testing.assert_array_equal(chosen.predict(output, batch)["prediction"], logits > np.log(0.3 / 0.7))


def test_regression(logits):
    label = np.random.default_rng(2).normal(size=(ROWS, SLOTS)).astype(np.float32)
    chosen = objective("regression")
    output, batch = given(label, logits[..., :1])
    error = present(batch, logits[..., 0]) - present(batch, label)
    np.testing.assert_allclose(mean(chosen, output, batch)[0], (error.astype(np.float64) ** 2).mean(), rtol=1e-6)
    check_against(lambda torch, x, y: torch.nn.MSELoss()(x[..., 0], y), chosen, output, batch)


def test_half_precision_logits_lose_nothing(logits):
    output, batch = given(np.zeros((ROWS, SLOTS), np.int32), logits.astype(jnp.bfloat16))
    total, denominator, _ = objective("classification").loss(output, batch)
    exact, _ = mean(objective("classification"), *given(batch.targets["label"], logits.astype(jnp.bfloat16).astype(np.float32)))
    assert total.dtype == denominator.dtype == jnp.float32
    np.testing.assert_allclose(total / denominator, exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "labels", "target", "message"),
    [
        ("clasification", "abc", "class", r"unknown kind 'clasification'.*'classification'"),
        ({"kind": "classification", "class_weights": (1.0, 2.0)}, "abc", "class", "class_weights has 2 values for 3 classes"),
        ("classification", "a", "class", "at least two classes"),
        ("classification", "abc", "number", "'classification' needs data.target 'class', got 'number'"),
        ({"kind": "classification", "metrics": ("acuracy",)}, "abc", "class", r"unknown metric 'acuracy'.*'accuracy'"),
        (3, "abc", "class", "an objective needs a kind"),
    ],
)
def test_refusals(value, labels, target, message):
    with pytest.raises(InputError, match=message):
        chosen = objective(value)
        chosen.check(target, labels)
        chosen.head(labels)
