"""The optimizer: one gradient transformation from a config, exact for every single layer of a stacked leaf.

    gradients --clip: norm of the whole tree--> --direction: adamw | adafactor | sgd | lion | muon--> u
    new leaf = leaf - rate(step) * scale * (u + decay * leaf)

`scale` and `decay` are numbers per leaf or, where layers of a stacked leaf `[layers, ...]` differ, per layer. Weight decay is
decoupled (Loshchilov & Hutter 2019) for every kind, and multiplied by the learning rate as in PyTorch's AdamW. Adafactor and
Muon look at whole matrices, so they are mapped over the leading axis: each layer is treated as if it were stored alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pydantic

from research.config import Config
from research.errors import InputError
from research.models.layout import layer_of
from research.training import schedule as schedules
from research.training.schedule import Schedule, own_options
from research.trees import first_match, matching

Fraction = Annotated[float, pydantic.Field(ge=0, lt=1)]


class Group(Config):
    """What the leaves whose logical names match `pattern` do differently."""

    pattern: str
    learning_rate_scale: float = pydantic.Field(default=1.0, ge=0)
    weight_decay: float | None = pydantic.Field(default=None, ge=0)  # None: what the leaf would have without the group


class Optimizer(Config):
    """Which optimizer, and how fast. An option that a kind does not have stays None, and is refused if given.

    Weight decay leaves out biases, norms' scales and all other vectors, unless a group says otherwise. Of the groups the
    first that matches a name counts, for both of its values.
    """

    kind: Literal["adamw", "adafactor", "sgd", "lion", "muon"] = "adamw"
    learning_rate: float = pydantic.Field(gt=0)  # the schedule's peak
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    schedule: Schedule = Schedule()
    clip: float | None = pydantic.Field(default=1.0, gt=0)  # norm of all gradients together; None: never
    groups: tuple[Group, ...] = ()

    # adamw, lion, and what muon leaves to adamw
    betas: tuple[Fraction, Fraction] | None = None
    epsilon: float | None = pydantic.Field(default=None, ge=0)  # all but sgd and lion
    # sgd, muon
    momentum: Fraction | None = None
    nesterov: bool | None = None
    # adafactor
    decay_exponent: float | None = pydantic.Field(default=None, gt=0)  # second moments decay by 1 - t^-exponent
    update_clip: float | None = pydantic.Field(default=None, gt=0)  # most root mean square of a leaf's update
    parameter_scale: bool | None = None  # multiply the update by the leaf's root mean square
    factored_from: int | None = pydantic.Field(default=None, ge=1)  # a matrix is factored if both its sides are as long
    # muon
    iterations: int | None = pydantic.Field(default=None, ge=1)  # Newton-Schulz steps
    update_rms: float | None = pydantic.Field(default=None, ge=0)  # of a matrix; 0: scale by sqrt(max(1, out / in))
    matrices: tuple[str, ...] | None = None  # patterns of the matrices that it takes; the rest is adamw's

    @pydantic.model_validator(mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        return own_options(value, cls, _OPTIONS)

    @pydantic.model_validator(mode="after")
    def _nesterov(self) -> Optimizer:
        if self.nesterov and not self.momentum:
            raise InputError("optimizer.nesterov needs a momentum above 0.")
        return self


_OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "epsilon": 1e-8},
    "adafactor": {
        "epsilon": 1e-30,
        "decay_exponent": 0.8,
        "update_clip": 1.0,
        "parameter_scale": True,
        "factored_from": 128,
    },
    "sgd": {"momentum": 0.9, "nesterov": False},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {
        "momentum": 0.95,
        "nesterov": True,
        "iterations": 5,
        "update_rms": 0.2,
        "matrices": (r"(encoder|decoder)/layers/\d+/.+",),
        "betas": (0.9, 0.999),
        "epsilon": 1e-8,
    },
}


@dataclass(frozen=True)
class Label:
    """What is known of one leaf: its logical names (one a row, where it is `stacked` over layers) and a row's shape."""

    names: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]


def build(
    optimizer: Optimizer, steps: int, trainable: Any, names: Mapping[str, Sequence[str]]
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The gradient transformation for a trainable tree, and its learning rate as a function of the step (from 0).

    Args:
        steps: updates in the whole of training.
        trainable: nested dicts of arrays, or of their shapes (`jax.eval_shape`).
        names: the logical names behind each path of `trainable`, as `Strategy.learning_names` gives them. A name within a layer
            belongs to a row of the leaf's leading axis.

    Raises:
        InputError: a group whose pattern matches nothing or never comes first; muon without a matrix to train; a warm-up
            longer than the training.
    """
    labels = _labels(trainable, names)
    scales, decays = _grouped(optimizer, labels)
    rate = schedules.build(optimizer.schedule, optimizer.learning_rate, steps)
    transformation = optax.chain(
        optax.identity() if optimizer.clip is None else _clip(optimizer.clip),
        _DIRECTIONS[optimizer.kind](optimizer, labels),
        _with_leaf(decays, 0.0, lambda update, leaf, decay: update + decay * leaf),
        _with_leaf(scales, 1.0, lambda update, leaf, scale: update * scale),
        optax.scale_by_learning_rate(rate),
    )
    return transformation, rate


# ---- leaves ---------------------------------------------------------------------------------------------------------
def _labels(trainable: Any, names: Mapping[str, Sequence[str]]) -> Any:
    """The tree of Labels. Layers are always stored stacked (a single one as `[1, ...]`), everything else never."""

    def label(path: Any, leaf: Any) -> Label:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        rows = tuple(names[path])
        stacked = layer_of(rows[0]) is not None
        if len(rows) != (leaf.shape[0] if stacked else 1):
            raise ValueError(f"{path} of shape {leaf.shape} has {len(rows)} logical names")
        return Label(rows, stacked, leaf.shape[1:] if stacked else leaf.shape)

    return jax.tree_util.tree_map_with_path(label, trainable)


def _grouped(optimizer: Optimizer, labels: Any) -> tuple[Any, Any]:
    """Learning-rate scales and weight decays, trees of one number a leaf or one a row `[rows, 1, ...]`."""
    names = [name for label in jax.tree.leaves(labels) for name in label.names]
    rules = [(group.pattern, group) for group in optimizer.groups]
    for pattern, _ in rules:
        matching(pattern, names, "optimizer.groups pattern")
    chosen = {name: first_match(name, rules, None) for name in names}
    for pattern, group in rules:
        if not any(group is winner for winner in chosen.values()):
            raise InputError(f"optimizer.groups pattern {pattern!r} never applies: earlier ones take all that it matches.")

    def scale(name: str, label: Label) -> float:
        return chosen[name].learning_rate_scale if chosen[name] else 1.0

    def decay(name: str, label: Label) -> float:
        if chosen[name] and chosen[name].weight_decay is not None:
            return chosen[name].weight_decay
        vector = len(label.shape) < 2 or name.rsplit("/", 1)[-1] in ("bias", "scale")
        return 0.0 if vector else optimizer.weight_decay

    def spread(value: Callable[[str, Label], float], label: Label) -> float | np.ndarray:
        values = [value(name, label) for name in label.names]
        return values[0] if len(set(values)) == 1 else np.reshape(values, (-1, *(1 for _ in label.shape)))

    return tuple(jax.tree.map(lambda label, value=value: spread(value, label), labels) for value in (scale, decay))


def _with_leaf(values: Any, nothing: float, change: Callable) -> optax.GradientTransformation:
    """`change(update, leaf, value)` for every leaf whose value is not `nothing`."""

    def one(update: jax.Array, leaf: jax.Array, value: float | np.ndarray) -> jax.Array:
        return update if np.all(np.equal(value, nothing)) else change(update, leaf, jnp.asarray(value, update.dtype))

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params, values))


def _clip(limit: float) -> optax.GradientTransformation:
    """Scale all gradients so that their common norm is at most `limit` (Pascanu et al. 2013).

    One factor for everything: `optax.clip_by_global_norm` selects element by element between a gradient and a quotient, which
    doubles the time of a whole AdamW update on CPU.
    """

    def clipped(updates: Any, params: Any = None) -> Any:
        factor = limit / jnp.maximum(optax.tree.norm(updates), limit)
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(clipped)


# ---- directions -----------------------------------------------------------------------------------------------------
def _adamw(optimizer: Optimizer, labels: Any) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), with decay decoupled (Loshchilov & Hutter 2019)."""
    return optax.scale_by_adam(*optimizer.betas, optimizer.epsilon)


def _adafactor(optimizer: Optimizer, labels: Any) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, algorithm 4) with the schedule in the place of its relative step sizes."""
    parts = [
        optax.scale_by_factored_rms(
            decay_rate=optimizer.decay_exponent, min_dim_size_to_factor=optimizer.factored_from, epsilon=optimizer.epsilon
        ),
        optax.clip_by_block_rms(optimizer.update_clip),
    ]
    direction = optax.chain(*parts, *([optax.scale_by_param_block_rms()] if optimizer.parameter_scale else []))
    return _layerwise(labels, lambda label: direction)


def _sgd(optimizer: Optimizer, labels: Any) -> optax.GradientTransformation:
    """The gradient, with heavy-ball or Nesterov momentum (Sutskever et al. 2013)."""
    return optax.trace(optimizer.momentum, optimizer.nesterov) if optimizer.momentum else optax.identity()


def _lion(optimizer: Optimizer, labels: Any) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023)."""
    return optax.scale_by_lion(*optimizer.betas)


def _muon(optimizer: Optimizer, labels: Any) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices within layers, AdamW for embeddings, heads and vectors.

    `update_rms` 0.2 gives a matrix's update the size of AdamW's (Liu et al. 2025), so that one learning rate serves both.
    """
    names = [name for label in jax.tree.leaves(labels) for name in label.names if len(label.shape) == 2]
    taken = set(matching(optimizer.matrices, names, "muon lacks matrices: optimizer.matrices pattern"))
    adam = _adamw(optimizer, labels)

    def choose(label: Label) -> optax.GradientTransformation:
        if len(taken & set(label.names)) not in (0, len(label.names)):
            raise InputError(f"optimizer.matrices takes only some layers of {label.names[0]}; take all of them or none.")
        if label.names[0] not in taken:
            return adam
        width, features = label.shape
        size = optimizer.update_rms * max(width, features) ** 0.5 or max(1.0, features / width) ** 0.5
        momentum = optax.contrib.scale_by_muon(
            ns_steps=optimizer.iterations,
            beta=optimizer.momentum,
            eps=optimizer.epsilon,
            nesterov=optimizer.nesterov,
            weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(),
        )
        return optax.chain(momentum, optax.scale(size))

    return _layerwise(labels, choose)


def _layerwise(labels: Any, choose: Callable[[Label], optax.GradientTransformation]) -> optax.GradientTransformation:
    """Every leaf by its own transformation, mapped over the rows of a stacked one: none sees more than one layer.

    The state is a tree like `trainable` that holds at each leaf the state of that leaf's transformation.
    """
    own = jax.tree.map(choose, labels)
    is_own = lambda node: isinstance(node, optax.GradientTransformation)

    def lift(f: Callable, label: Label) -> Callable:
        return jax.vmap(f) if label.stacked else f

    def init(params: Any) -> Any:
        return jax.tree.map(lambda tx, label, leaf: lift(tx.init, label)(leaf), own, labels, params, is_leaf=is_own)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        one = lambda tx, label, *leaf: lift(tx.update, label)(*leaf)
        pairs = jax.tree.map(one, own, labels, updates, state, params, is_leaf=is_own)
        return tuple(jax.tree.map(lambda label, pair, part=part: pair[part], labels, pairs) for part in (0, 1))

    return optax.GradientTransformation(init, update)


_DIRECTIONS: dict[str, Callable[[Optimizer, Any], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
    "lion": _lion,
    "muon": _muon,
}
