"""The learning rate at every step: up from zero to the peak in `warmup` steps, then one of five shapes.

constant      peak
linear        straight down to `final` of the peak at the last step
cosine        half a cosine down to `final` of the peak
inverse_sqrt  peak * sqrt(warmup / step)
wsd           peak, then straight down to `final` of it in the last `decay` steps (warm-up, stable, decay)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax
import pydantic

from research.config import Config
from research.errors import InputError, nearest

Duration = int | float  # from 1 on: steps; below 1: a share of all steps


class Schedule(Config):
    """How the learning rate moves. An option that a kind does not have stays None, and is refused if given."""

    kind: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "linear"
    warmup: Duration = pydantic.Field(default=0, ge=0)
    final: float | None = pydantic.Field(default=None, ge=0, le=1)  # share of the peak at the end (linear, cosine, wsd)
    decay: Duration | None = pydantic.Field(default=None, gt=0)  # how long wsd goes down

    @pydantic.model_validator(mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        return own_options(value, cls, _OPTIONS)

    @pydantic.model_validator(mode="after")
    def _durations(self) -> Schedule:
        for name in ("warmup", "decay"):
            duration = getattr(self, name)
            if duration is not None and duration >= 1 and duration != int(duration):
                raise InputError(f"schedule.{name} is {duration}: from 1 on it counts steps and must be a whole number.")
        if self.kind == "inverse_sqrt" and not self.warmup:
            raise InputError("schedule inverse_sqrt needs a warmup, which is its time scale.")
        return self


_OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {"final": 0.0},
    "cosine": {"final": 0.0},
    "inverse_sqrt": {},
    "wsd": {"final": 0.0, "decay": 0.2},
}


def own_options(value: Any, config: type[Config], kinds: Mapping[str, Mapping[str, Any]]) -> Any:
    """Give `value`, a mapping about to become `config`, its kind's defaults.

    `kinds` says for each kind which options are its own, and their defaults; an option that is in no kind's table is common.

    Raises:
        InputError: an unknown kind, or an option that this kind does not have (naming the nearest that it has).
    """
    if not isinstance(value, Mapping):
        return value
    what, kind = config.__name__.lower(), value.get("kind", config.model_fields["kind"].default)
    if kind not in kinds:
        raise InputError(f"unknown {what} kind {kind!r}.{nearest(kind, kinds)}")
    special = {option for options in kinds.values() for option in options}
    known = {*config.model_fields} - special | kinds[kind].keys()
    given = {key: option for key, option in value.items() if option is not None or key not in special}
    for key in given:
        if key not in known:
            raise InputError(f"{what} {kind} has no option {key!r}.{nearest(key, known)}")
    return {**kinds[kind], **given}


def build(schedule: Schedule, peak: float, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0; the rate of step 0 is 0 where there is a warm-up.

    Linear and cosine (Loshchilov & Hutter 2017) equal the schedules of that name in Transformers at every step; inverse_sqrt is
    that of Vaswani et al. (2017) scaled to its peak, wsd that of Hu et al. (2024) with a linear decay.

    Args:
        peak: the highest learning rate.
        steps: updates in the whole of training.

    Raises:
        InputError: warm-up (and decay) longer than the training.
    """
    warmup = _steps(schedule.warmup, steps)
    decay = _steps(schedule.decay or 0, steps)
    if warmup + decay > steps:
        raise InputError(f"schedule.warmup takes {warmup} steps and schedule.decay {decay}, but training has only {steps}.")
    rest, final = max(1, steps - warmup), schedule.final or 0.0
    match schedule.kind:
        case "constant":
            shape = optax.constant_schedule(peak)
        case "linear":
            shape = optax.linear_schedule(peak, peak * final, rest)
        case "cosine":
            shape = optax.cosine_decay_schedule(peak, rest, alpha=final)
        case "inverse_sqrt":
            shape = lambda count: peak * jnp.sqrt(warmup / (warmup + jnp.maximum(count, 0)))
        case "wsd":
            shape = optax.linear_schedule(peak, peak * final, decay, transition_begin=steps - warmup - decay)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), shape], [warmup]) if warmup else shape


def _steps(duration: Duration, steps: int) -> int:
    """A duration in steps; a share is rounded up, as Transformers does, but 7 % of 100 is 7 despite binary fractions."""
    return math.ceil(round(duration * steps, 6)) if duration < 1 else int(duration)
