"""Every optimizer against its paper's formula in NumPy, row by row of stacked leaves, with groups; and against PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest
import yaml

from research.errors import InputError
from research.training.optimizer import Optimizer, build
from research.training.schedule import Schedule

LAYERS = 9  # more than a side of the matrices, so that an axis of layers would be taken for one of them
SHAPES = {
    "embeddings/tokens/embedding": (11, 6),
    "encoder/runs/0/0/mlp/up/kernel": (LAYERS, 6, 8),
    "encoder/runs/0/0/mlp/up/bias": (LAYERS, 8),
    "encoder/runs/0/0/mlp_norm/scale": (LAYERS, 6),
    "encoder/runs/1/0/mlp/down/kernel": (1, 8, 5),
    "head/output/kernel": (6, 3),
    "head/output/bias": (3,),
}
NAMES = {
    path: [f"encoder/layers/{i}/{path.split('/', 4)[4]}" for i in range(shape[0])]
    if "/runs/0/" in path
    else [path.replace("runs/1/0", f"layers/{LAYERS}")]
    for path, shape in SHAPES.items()
}
GROUPS = (
    {"pattern": "encoder/layers/3/.*/bias", "weight_decay": 0.3},
    {"pattern": "encoder/layers/3/.*", "learning_rate_scale": 0.25},
    {"pattern": "encoder/layers/[0-2]/.*", "learning_rate_scale": 0.5, "weight_decay": 0.05},
    {"pattern": "head/.*", "learning_rate_scale": 3.0},
)
RATE, DECAY = 0.02, 0.1


def tree(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return {path: np.asarray(rng.normal(size=shape) * size, np.float32) for path, shape in SHAPES.items()}


def group_of(name, shape):
    """(learning-rate scale, weight decay) worked out by hand."""
    layer = int(name.split("/")[2]) if "/layers/" in name else None
    default = DECAY if len(shape) == 2 else 0.0
    if layer == 3 and name.endswith("bias"):
        return 1.0, 0.3
    if layer in (0, 1, 2):
        return 0.5, 0.05
    return (0.25 if layer == 3 else 3.0 if name.startswith("head") else 1.0), default


def rows(flat):
    """`{logical name: a row}` of a stored tree."""
    return {name: leaf[i] if "/layers/" in name else leaf for path, leaf in flat.items() for i, name in enumerate(NAMES[path])}


def train(optimizer, start, gradients):
    transformation, rate = build(optimizer, len(gradients), start, NAMES)
    params = jax.tree.map(jnp.asarray, start)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params), [float(rate(step)) for step in range(len(gradients))]


# ---- the papers, in NumPy: (direction at step t from 1, given the gradient, the row, its memory, its name) --------------
def adamw(t, g, x, memory, name):
    m, v = memory.get("m", 0 * g), memory.get("v", 0 * g)
    memory["m"], memory["v"] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def lion(t, g, x, memory, name):
    m = memory.get("m", 0 * g)
    memory["m"] = 0.99 * m + 0.01 * g
    return np.sign(0.9 * m + 0.1 * g)


def sgd(t, g, x, memory, name):
    memory["m"] = m = 0.9 * memory.get("m", 0 * g) + g
    return g + 0.9 * m


def adafactor(t, g, x, memory, name):
    rms = lambda a: np.sqrt(np.mean(a**2))
    beta, square = 1 - t**-0.8, g**2 + 1e-30
    if g.ndim == 2 and min(g.shape) >= 5:
        memory["r"] = r = beta * memory.get("r", 0) + (1 - beta) * square.mean(1)
        memory["c"] = c = beta * memory.get("c", 0) + (1 - beta) * square.mean(0)
        second = np.outer(r, c) / r.mean()
    else:
        memory["v"] = second = beta * memory.get("v", 0) + (1 - beta) * square
    u = g / np.sqrt(second)
    return u / max(1.0, rms(u)) * max(1e-3, rms(x))


def muon(t, g, x, memory, name):
    if not (name.startswith("encoder/layers") and g.ndim == 2):
        return adamw(t, g, x, memory, name)
    memory["m"] = m = 0.95 * memory.get("m", 0 * g) + 0.05 * g
    look = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    y = look / (np.linalg.norm(look) + 1e-8)
    for _ in range(5):
        a = y @ y.T
        y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
    return y * 0.2 * np.sqrt(max(g.shape))


OPTIONS = {"sgd": {"nesterov": True}, "adafactor": {"factored_from": 5}}


@pytest.mark.parametrize("formula", [adamw, adafactor, sgd, lion, muon])
def test_every_row_follows_the_paper(formula):
    """Stacked or not, with a schedule, groups by layer and clipping over everything: each row as if it were alone."""
    kind = formula.__name__
    optimizer = Optimizer(
        kind=kind,
        learning_rate=RATE,
        weight_decay=DECAY,
        groups=GROUPS,
        clip=5.0,
        schedule=Schedule(kind="linear", warmup=2),
        **OPTIONS.get(kind, {}),
    )
    start, gradients = tree(0), [tree(seed, size) for seed, size in ((1, 0.1), (2, 1.0), (3, 0.3), (4, 2.0), (5, 1.0))]
    found, rates = train(optimizer, start, gradients)
    assert rates == pytest.approx([0, RATE / 2, RATE, RATE * 2 / 3, RATE / 3])

    expected = {name: np.float64(row) for name, row in rows(start).items()}
    memory = {name: {} for name in expected}
    for t, (grads, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
        for name, g in rows(grads).items():
            x, (scale, decay) = expected[name], group_of(name, g.shape)
            g = np.float64(g) * min(1.0, 5.0 / norm)
            expected[name] = x - rate * scale * (formula(t, g, x, memory[name], name) + decay * x)
    for name, row in rows(found).items():
        np.testing.assert_allclose(row, expected[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "kind, library",
    [
        ("muon", lambda: optax.contrib.muon(RATE, consistent_rms=None)),
        ("adafactor", lambda: optax.adafactor(RATE, min_dim_size_to_factor=5)),
    ],
)
def test_a_layer_of_a_stack_equals_optax_on_that_layer_alone(kind, library):
    options = {"factored_from": 5} if kind == "adafactor" else {"update_rms": 0.0}
    optimizer = Optimizer(kind=kind, learning_rate=RATE, clip=None, schedule={"kind": "constant"}, **options)
    start, gradients = tree(0), [tree(seed) for seed in (1, 2, 3)]
    found, _ = train(optimizer, start, gradients)
    for name in (f"encoder/layers/4/mlp/{part}" for part in (["up/kernel"] if kind == "muon" else ["up/kernel", "up/bias"])):
        row, alone = jnp.asarray(rows(start)[name]), library()
        state, step = alone.init(row), jax.jit(alone.update)
        for grads in gradients:
            update, state = step(jnp.asarray(rows(grads)[name]), state, row)
            row = row + update
        np.testing.assert_allclose(rows(found)[name], row, atol=2e-6)


def test_adamw_equals_pytorch_with_parameter_groups():
    torch = pytest.importorskip("torch")
    optimizer = Optimizer(learning_rate=RATE, weight_decay=DECAY, groups=GROUPS, schedule=Schedule(kind="linear", warmup=1))
    start, gradients = tree(0), [tree(seed) for seed in range(1, 6)]
    found, rates = train(optimizer, start, gradients)
    theirs = {name: torch.tensor(row, requires_grad=True) for name, row in rows(start).items()}
    groups = [(parameter, *group_of(name, parameter.shape)) for name, parameter in theirs.items()]
    adam = torch.optim.AdamW([{"params": [p], "lr": scale, "weight_decay": decay} for p, scale, decay in groups])
    for grads, rate in zip(gradients, rates, strict=True):
        for name, grad in rows(grads).items():
            theirs[name].grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        for group, (_, scale, _) in zip(adam.param_groups, groups, strict=True):
            group["lr"] = rate * scale
        adam.step()
    for name, row in rows(found).items():
        np.testing.assert_allclose(row, theirs[name].detach().numpy(), atol=3e-6, err_msg=name)


def test_vectors_do_not_decay():
    optimizer = Optimizer(kind="sgd", learning_rate=0.5, weight_decay=0.1, schedule={"kind": "constant"})
    start = tree(0)
    found, _ = train(optimizer, start, [jax.tree.map(np.zeros_like, start)])
    moved = {path for path in SHAPES if not np.array_equal(found[path], start[path])}
    assert moved == {path for path in SHAPES if path.endswith(("kernel", "embedding"))}
    np.testing.assert_allclose(found["head/output/kernel"], start["head/output/kernel"] * 0.95, rtol=1e-6)

    odd = {"a/bias": jnp.ones((2, 3)), "a/scale": jnp.ones((2, 3)), "a/gate": jnp.ones(3), "a/table": jnp.ones((2, 3))}
    transformation, _ = build(optimizer, 1, odd, {path: [path] for path in odd})
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, odd), transformation.init(odd), odd)
    assert [path for path in odd if np.any(updates[path])] == ["a/table"]


def test_clipping_is_by_the_norm_of_the_whole_tree():
    plain = {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0, "schedule": {"kind": "constant"}}
    zero, grads = jax.tree.map(np.zeros_like, tree(0)), tree(1)
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    clipped, _ = train(Optimizer(**plain, clip=0.5), zero, [grads])
    jax.tree.map(lambda x, g: np.testing.assert_allclose(x, -g * 0.5 / norm, rtol=1e-5), clipped, grads)
    for clip in (None, float(norm) * 1.001):
        untouched, _ = train(Optimizer(**plain, clip=clip), zero, [grads])
        assert all(np.array_equal(untouched[path], -grads[path]) for path in SHAPES)


def test_a_scale_of_zero_freezes_bitwise():
    optimizer = Optimizer(
        learning_rate=0.1, weight_decay=0.1, groups=[{"pattern": "encoder/layers/5/.*", "learning_rate_scale": 0}]
    )
    start = tree(0)
    found, _ = train(optimizer, start, [tree(1), tree(2)])
    still = {name for name, row in rows(found).items() if np.array_equal(row, rows(start)[name])}
    assert still == {name for name in rows(start) if "/layers/5/" in name}


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"kind": "lion", "epsilon": 1e-8}, "optimizer lion has no option 'epsilon'"),
        ({"kind": "adamw", "momentum": 0.9}, "optimizer adamw has no option 'momentum'"),
        ({"learning_rat": 1.0}, "no option 'learning_rat'. Did you mean 'learning_rate'"),
        ({"kind": "adam"}, "unknown optimizer kind 'adam'. Did you mean 'adamw'"),
        ({"kind": "sgd", "momentum": 0.0, "nesterov": True}, "nesterov needs a momentum"),
        ({"betas": (0.9, 1.0)}, "less than 1"),
        ({"learning_rate": -1.0}, "greater than 0"),
        ({"groups": [{"pattern": "x", "learning_rate": 1.0}]}, "groups.0.learning_rate"),
    ],
)
def test_options_are_honoured_or_refused(options, sentence):
    with pytest.raises(pydantic.ValidationError, match=sentence):
        Optimizer(**{"learning_rate": 1e-3, **options})


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"groups": [{"pattern": "encoder/layer/.*"}]}, "optimizer.groups pattern 'encoder/layer/.*' matches nothing"),
        ({"groups": [{"pattern": ".*"}, {"pattern": "head/.*"}]}, "'head/.*' never applies"),
        ({"groups": [{"pattern": "head/(.*"}]}, "not a regular expression"),
        ({"kind": "muon", "matrices": ["decoder/.*"]}, "muon lacks matrices: optimizer.matrices pattern 'decoder/.*' matches"),
        ({"kind": "muon", "matrices": [".*/[0-3]/.*"]}, "takes only some layers of encoder/layers/0/mlp/up/kernel"),
        ({"schedule": {"warmup": 11}}, "training has only 10"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        build(Optimizer(learning_rate=1e-3, **options), 10, tree(0), NAMES)


def test_shapes_alone_suffice_and_names_may_be_nested():
    shapes = {"0": jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(0)))}
    names = {f"0/{path}": rows for path, rows in NAMES.items()}
    transformation, _ = build(Optimizer(kind="muon", learning_rate=1e-3), 10, shapes, names)
    assert jax.tree.leaves(jax.eval_shape(transformation.init, shapes))


SHIPPED = sorted((Path(__file__).parents[2] / "configs/optimizers").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_builds(path):
    optimizer = Optimizer.model_validate(yaml.safe_load(path.read_text()))
    assert optimizer.kind == path.stem
    assert Optimizer.model_validate(optimizer.model_dump(mode="json")) == optimizer
    build(optimizer, 100, tree(0), NAMES)
