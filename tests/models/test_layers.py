"""The hand-written backward passes against automatic differentiation of the plain formulas; the dropout mask's statistics."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from research.models.attention import attention, visible
from research.models.layers import drop, gelu, keep_mask, layernorm, linear, random_bytes

WORDS = jnp.array([123456789, 987654321], jnp.uint32)


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), jnp.float32)


def same(ours, plain, *inputs, atol: float = 2e-5, where=True) -> None:
    """Equal values, and equal gradients of every input, under a random cotangent (nought but `where`)."""
    out, pull = jax.vjp(ours, *inputs)
    expected, expected_pull = jax.vjp(plain, *inputs)
    np.testing.assert_allclose(out, expected, atol=atol)
    weight = jnp.where(where, random(*out.shape, seed=9), 0)
    for number, (a, b) in enumerate(zip(pull(weight), expected_pull(weight), strict=True)):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, atol=atol * 5, err_msg=f"input {number}")


def test_layernorm():
    def plain(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3) * scale + bias

    same(lambda *a: layernorm(*a, 1e-3), plain, random(3, 5, 8) * 2 + 1, random(8), random(8, seed=1))


def test_gelu():
    x = jnp.concatenate([random(200) * 3, jnp.linspace(-8, 8, 101)])
    same(gelu, lambda x: x * jax.scipy.stats.norm.cdf(x), x)
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(("width", "features"), [(6, 11), (11, 6), (7, 7)])
def test_linear(width, features):
    same(linear, lambda x, kernel: jnp.einsum("bti,io->bto", x, kernel), random(2, 5, width), random(width, features))
    assert linear(jnp.ones((2, width), jnp.bfloat16), random(width, features)).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(rate, groups, causal):
    """Masked keys, an empty row, grouped heads, dropout by fixed words: values, and gradients of what sees something."""
    segments = jnp.array([[1, 1, 1, 1, 0], [0, 1, 1, 2, 2], [0, 0, 0, 0, 0]])
    mask = visible(segments, segments, causal=causal)
    q, k, v = random(3, 4, 5, 6), random(3, 4 // groups, 5, 6, seed=1), random(3, 4 // groups, 5, 6, seed=2)

    def plain(q, k, v):
        k, v = (jnp.repeat(a, groups, axis=1) for a in (k, v))
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / jnp.sqrt(6.0)
        p = jax.nn.softmax(jnp.where(mask, scores, -1e30), -1)
        if rate:
            p = p * keep_mask(WORDS, p.shape, rate, p.dtype)
        return jnp.einsum("bhts,bhsd->bhtd", p, v)

    same(lambda q, k, v: attention(q, k, v, mask, rate=rate, words=WORDS), plain, q, k, v, where=mask.any(-1)[..., None])
    if rate:
        off = attention(q, k, v, mask, rate=rate, words=None)
        np.testing.assert_array_equal(off, attention(q, k, v, mask))
        assert np.abs(off - attention(q, k, v, mask, rate=rate, words=WORDS)).max() > 0.05


def test_masked_keys_neither_speak_nor_learn():
    """A key that no query sees changes nothing and has no gradient."""
    segments = jnp.array([[1, 1, 2, 2, 0]])
    mask = visible(segments, segments)
    q, k, v = (random(1, 2, 5, 4, seed=n) for n in range(3))
    first = lambda k, v: attention(q, k, v, mask)[:, :, :2].sum()
    for gradient in jax.grad(first, (0, 1))(k, v):
        assert not gradient[:, :, 2:].any() and gradient[:, :, :2].any()
    assert first(k.at[:, :, 2:].set(7.0), v.at[:, :, 2:].set(7.0)) == first(k, v)


def test_drop():
    x = random(40, 30)
    same(lambda x: drop(WORDS, 0.25, x), lambda x: x * keep_mask(WORDS, x.shape, 0.25, x.dtype), x)


# ---- the dropout mask -------------------------------------------------------------------------------------------------
SIZE = 1 << 16


def words(number: int) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.key(0), number))


@pytest.mark.parametrize("shape", [(SIZE,), (4, 4, 64, 64), (3, 5, 7), (1,), ()])
def test_bytes_have_their_shape(shape):
    made = random_bytes(WORDS, shape)
    assert made.shape == shape and int(made.max()) < 256 and int(made.min()) >= 0


def test_bytes_are_uniform_and_independent():
    """Chi-square over values, over neighbours in a row, and over the same place under other words; p > 1e-4 for each."""
    made = [np.asarray(random_bytes(words(n), (SIZE,))).astype(int) for n in range(4)]
    for one in made:
        assert stats.chisquare(np.bincount(one, minlength=256)).pvalue > 1e-4
        for distance in (1, 2, 4, 64, 4096):
            pairs = np.bincount((one[distance:] >> 4) * 16 + (one[:-distance] >> 4), minlength=256)
            assert stats.chisquare(pairs).pvalue > 1e-4, distance
    for one, other in itertools.combinations(made, 2):
        assert stats.chisquare(np.bincount((one >> 4) * 16 + (other >> 4), minlength=256)).pvalue > 1e-4
    low, high = WORDS
    for near in ([low ^ 1, high], [low, high + 1]):  # words that differ by one bit
        one, other = (np.asarray(random_bytes(jnp.array(w), (SIZE,)) >> 4).astype(int) for w in (WORDS, near))
        pairs = one * 16 + other
        assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mask_keeps_the_mean(rate):
    """Mean one, variance q / (1 - q) for the rate q in 256ths, and the same share in every quarter of the array."""
    mask = np.asarray(keep_mask(words(7), (SIZE,), rate, jnp.float32))
    q = round(rate * 256) / 256
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / (1 - q))}
    error = (q / (1 - q) / SIZE) ** 0.5
    assert abs(mask.mean() - 1) < 4 * error
    assert mask.var() == pytest.approx(q / (1 - q), rel=0.06)
    assert all(abs(part.mean() - 1) < 4 * 2 * error for part in mask.reshape(4, -1))


def test_mask_is_a_pure_function():
    """The same under jit, vmap and scan: remat and sharding rely on it."""
    direct = [keep_mask(words(n), (6, 5), 0.4, jnp.float32) for n in range(3)]
    many = jnp.stack([words(n) for n in range(3)])
    for made in (
        jax.vmap(lambda w: keep_mask(w, (6, 5), 0.4, jnp.float32))(many),
        jax.lax.scan(lambda c, w: (c, keep_mask(w, (6, 5), 0.4, jnp.float32)), 0, many)[1],
    ):
        np.testing.assert_array_equal(made, direct)
    assert not np.array_equal(direct[0], direct[1])
