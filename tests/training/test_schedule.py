"""Every schedule against its formula at every step, and against Transformers where that is installed."""

import math

import numpy as np
import pydantic
import pytest

from research.errors import InputError
from research.training.schedule import Schedule, build

PEAK, STEPS, WARMUP = 3e-4, 40, 7


def rates(steps=STEPS, **options):
    function = build(Schedule(**options), PEAK, steps)
    return np.array([float(function(step)) for step in range(steps + 3)])


def formula(kind, step):
    """The rate as a share of its peak, for 7 steps of warm-up among 40, from the definitions."""
    if step < WARMUP:
        return step / WARMUP
    done = min(1.0, (step - WARMUP) / (STEPS - WARMUP))
    return {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "inverse_sqrt": math.sqrt(WARMUP / step),
        "wsd": min(1.0, max(0.0, (STEPS - step) / 10)),
    }[kind]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
def test_every_step_is_the_formula(kind):
    options = {"decay": 10} if kind == "wsd" else {}
    expected = [PEAK * formula(kind, step) for step in range(STEPS + 3)]
    np.testing.assert_allclose(rates(kind=kind, warmup=WARMUP, **options), expected, rtol=2e-6, atol=1e-11)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("warmup", [0, 7, 39])
def test_equals_transformers(kind, warmup):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("transformers.optimization")
    if (kind, warmup) in (("inverse_sqrt", 0), ("wsd", 39)):
        pytest.skip("refused here; there an arbitrary time scale, or a negative plateau")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    made = {
        "constant": lambda: library.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: library.get_linear_schedule_with_warmup(optimizer, warmup, STEPS),
        "cosine": lambda: library.get_cosine_schedule_with_warmup(optimizer, warmup, STEPS),
        "inverse_sqrt": lambda: library.get_inverse_sqrt_schedule(optimizer, warmup),
        "wsd": lambda: library.get_wsd_schedule(optimizer, warmup, 10, STEPS, decay_type="linear"),
    }[kind]()
    expected = []
    for _ in range(STEPS + 1):
        expected.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    options = {"decay": 10} if kind == "wsd" else {}
    found = rates(kind=kind, warmup=warmup, **options)[: STEPS + 1]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-11)


def test_shares_of_the_steps_and_of_the_peak():
    assert np.array_equal(rates(100, warmup=0.07), rates(100, warmup=7))
    assert np.array_equal(rates(40, kind="wsd", decay=0.25), rates(40, kind="wsd", decay=10))
    for kind in ("linear", "cosine", "wsd"):
        assert rates(kind=kind, final=0.1)[-1] == pytest.approx(0.1 * PEAK)
    assert np.argmax(rates(30, warmup=0.01)) == 1, "a share is rounded up to a whole step"


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"kind": "constant", "final": 0.1}, "schedule constant has no option 'final'"),
        ({"kind": "linear", "decay": 0.1}, "schedule linear has no option 'decay'"),
        ({"kind": "linear", "warm_up": 0.1}, "Did you mean 'warmup'"),
        ({"kind": "cosin"}, "unknown schedule kind 'cosin'. Did you mean 'cosine'"),
        ({"kind": "inverse_sqrt"}, "needs a warmup"),
        ({"warmup": 2.5}, "schedule.warmup is 2.5"),
    ],
)
def test_refused(options, sentence):
    with pytest.raises(pydantic.ValidationError, match=sentence):
        Schedule(**options)


def test_longer_than_the_training_is_refused():
    with pytest.raises(InputError, match=r"takes 30 steps and schedule.decay 20, but training has only 40"):
        build(Schedule(kind="wsd", warmup=30, decay=0.5), PEAK, 40)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_a_dump_is_valid_again(kind):
    schedule = Schedule(kind=kind)
    assert Schedule.model_validate(schedule.model_dump(mode="json")) == schedule
