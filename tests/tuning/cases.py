"""The strategies under test, each with what it must move and how much it must train, said independently of its code.

case x family --run: one compiled training step, called three times--> Trained (logits, gradients, states, batch)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.batches.batch import Batch
from research.models import layout
from research.models.model import Output
from research.objectives.objective import Objective
from research.training.state import State
from research.training.step import train_step
from research.tuning.strategy import Tuned, nested, tune
from tests.tiny import FAMILIES, tiny, tiny_batch

WIDTH, LAYERS, NONE = 24, 3, r"$^"
Count = Callable[[tuple[int, ...]], int]

# Each program runs a few times on a tiny model: compiling it well would cost more than it saves.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


class Probe(Objective):
    """Cross-entropy of labels or of next tokens, which hands the logits out through its aux."""

    kind: str = "probe"

    def loss(self, output: Output, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        logits = output.logits
        if logits.ndim == 2:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets["label"])
            real = jnp.ones_like(losses)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch.tokens[:, 1:])
            real = (batch.segments[:, 1:] > 0) * 1.0
        return jnp.sum(losses * real), jnp.sum(real), {"logits": logits * jnp.sum(batch.weights)}


@dataclass(frozen=True)
class Case:
    """One strategy, and what is expected of it.

    `moves`: the logical names whose effective weights change; the weights in `itself` train all of their numbers;
    `beside`: (names, numbers trained beside a weight of such a name and some shape). LAST is the family's upper stack.
    """

    how: Any
    moves: str = NONE
    itself: str = NONE
    beside: tuple[tuple[str, Count], ...] = ()
    families: tuple[str, ...] = FAMILIES

    def trains(self, base: dict[str, Any], fresh: frozenset[str]) -> int:
        """How many numbers should train."""
        own = sum(leaf.size for name, leaf in base.items() if name in fresh or re.fullmatch(self.itself, name))
        return own + sum(
            count(leaf.shape) for names, count in self.beside for name, leaf in base.items() if re.fullmatch(names, name)
        )


def _same(how: Any, names: str, **more: Any) -> Case:
    return Case(how, names, names, **more)


def low_rank(rank: int) -> Count:
    """r (in + out)."""
    return lambda shape: rank * sum(shape)


def bottleneck(width: int) -> Count:
    """Down and up maps with biases, on the model's width."""
    return lambda shape: 2 * width * WIDTH + width + WIDTH


def keys_values(length: int) -> Count:
    """A key and a value of each place, as wide as the map to keys."""
    return lambda shape: 2 * length * shape[1]


_QV, _UP, _TOP = r".*/(query|value)/kernel", r".*/layers/1/mlp/up/kernel", r"LAST/layers/1/attention/.*/kernel"
_ENDS, _LAST_LAYER = r".*/(attention/output|mlp/down)/kernel", r"LAST/layers/2/.*|LAST/norm/.*|pooler/.*|head/.*"
_MOST = r".*/layers/(0|2)/(attention|mlp)/.*/kernel"
_LORA_RAGGED = {"kind": "lora", "rank": 3, "rank_stabilized": True, "targets": [_MOST, _UP]}
_PFEIFFER = {"kind": "adapter", "width": 5, "places": ["mlp"], "layers": r".*/layers/(0|2)", "activation": "relu"}
_SITES = [
    {"kind": "adapter", "width": 4},
    {"kind": "prefix", "length": 3},
    {"kind": "lora", "rank": 2},
    {"kind": "select", "patterns": [_UP]},
]
_SITE_COUNTS = (_ENDS, bottleneck(4)), (r".*/attention/key/kernel", keys_values(3)), (_QV, low_rank(2))

CASES: dict[str, Case] = {
    "full": _same("full", ".*"),
    "head": _same("head", "head/.*", families=("bert", "bart")),
    "head_pooler": _same({"kind": "head", "pooler": True}, "(head|pooler)/.*", families=("bert",)),
    "top_layers": _same({"kind": "top_layers", "layers": 1}, _LAST_LAYER),
    "bitfit": _same("bitfit", ".*/bias", families=("bert", "bart")),
    "layernorm": _same("layernorm", r"(.*/)?(attention_norm|cross_norm|mlp_norm|norm)/(scale|bias)"),
    "select": _same({"kind": "select", "patterns": [r"LAST/layers/1/.*"]}, "LAST/layers/1/.*"),
    "select_ragged": _same({"kind": "select", "patterns": [r".*/layers/(0|2)/mlp/.*"]}, r".*/layers/(0|2)/mlp/.*"),
    "lora": Case({"kind": "lora", "rank": 4, "alpha": 8}, _QV, beside=((_QV, low_rank(4)),)),
    "lora_ragged": Case(_LORA_RAGGED, f"{_MOST}|{_UP}", beside=((f"{_MOST}|{_UP}", low_rank(3)),)),
    "lora_top": Case({"kind": "lora", "rank": 2, "targets": [_TOP]}, _TOP, beside=((_TOP, low_rank(2)),)),
    "adapter": Case({"kind": "adapter", "width": 6}, beside=((_ENDS, bottleneck(6)),)),
    "adapter_ragged": Case(_PFEIFFER, beside=((r".*/layers/(0|2)/mlp/down/kernel", bottleneck(5)),)),
    "prefix": Case({"kind": "prefix", "length": 4}, beside=((r".*/attention/key/kernel", keys_values(4)),)),
    "lora_bitfit": Case(
        [{"kind": "lora", "rank": 2}, "bitfit"], f"{_QV}|.*/bias", ".*/bias", ((_QV, low_rank(2)),), ("bert", "bart")
    ),
    "sites": Case(_SITES, f"{_UP}|{_QV}", _UP, _SITE_COUNTS),
}

# Every case once, every family with every seam; the rest of the product is slow.
COVER = {
    "bert": ("full", "head", "top_layers", "bitfit", "lora_ragged", "lora_top"),
    "llama": ("full", "select", "select_ragged", "lora", "adapter_ragged", "prefix"),
    "bart": ("full", "layernorm", "lora_bitfit", "sites"),
}


def instance(name: str, family: str) -> Case:
    """The case as it reads for a family."""
    last, case = "encoder" if family == "bert" else "decoder", CASES[name]

    def told(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("LAST", last)
        if isinstance(value, dict):
            return {key: told(one) for key, one in value.items()}
        return type(value)(told(one) for one in value) if isinstance(value, list | tuple) else value

    return Case(*(told(getattr(case, field)) for field in ("how", "moves", "itself", "beside")), case.families)


def fresh_of(family: str) -> frozenset[str]:
    """Which leaves count as newly initialised."""
    return frozenset({"bert": ("head/output/kernel", "head/output/bias"), "llama": (), "bart": ("head/bias",)}[family])


@cache
def base_of(family: str) -> tuple[Any, dict[str, Any], Batch]:
    """The tiny model, its params, and a batch with loss weights."""
    model, variables = tiny(family, layers=LAYERS)
    batch = tiny_batch(family)
    return model, variables["params"], batch.replace(weights=np.ones(len(batch.tokens), np.float32))


@cache
def forward(model: Any) -> Callable[..., jax.Array]:
    """The compiled logits of a model."""
    return quick(lambda variables, batch: model.apply(variables, batch).logits)


def named(config: Any, params: Any) -> dict[str, np.ndarray]:
    """Arrays by logical name."""
    return layout.unstack(config, jax.tree.map(np.asarray, params))


@dataclass(frozen=True)
class Trained:
    """What three steps of one compiled program say. Step 3 begins with a new optimizer, away from initial zeros."""

    tuned: Tuned
    before: State
    after: State  # two steps on
    last: State  # three
    logits: tuple[np.ndarray, ...]  # before the first and before the third step
    losses: tuple[float, ...]

    def gradients(self, state: State) -> Any:
        """The gradient of the step that led to `state`, which was its optimizer's first: Adam's mean / (1 - b1)."""
        return jax.tree.map(lambda mean: np.asarray(mean) / 0.1, state.optimizer[0].mu)


@cache
def run(name: str, family: str) -> tuple[Trained, Any]:
    """Train a case for three steps. Returns also the gradients of the first."""
    model, params, batch = base_of(family)
    tuned = tune(model, params, instance(name, family).how, jax.random.key(1), fresh=fresh_of(family))
    optimizer = optax.adam(0.02, b1=0.9)
    step = quick(train_step(tuned, Probe(), optimizer))
    before = State.create(tuned.trainable, tuned.state, optimizer, seed=3)
    first, one = step(before, tuned.frozen, batch)
    after, _ = step(first, tuned.frozen, batch)
    last, three = step(after.replace(optimizer=optimizer.init(after.trainable)), tuned.frozen, batch)
    logits = tuple(np.asarray(m["logits"]) for m in (one, three))
    made = Trained(tuned, before, after, last, logits, tuple(float(m["loss"]) for m in (one, three)))
    return made, made.gradients(first)


def effective(tuned: Tuned, trainable: Any) -> dict[str, np.ndarray]:
    """The effective weights by logical name."""
    weights = tuned.strategy.weights(trainable, tuned.frozen, tuned.state)
    return named(tuned.base.config, nested({"params": weights})["params"])
