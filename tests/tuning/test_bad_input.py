"""Whatever is wrong with a strategy is said in one sentence, before anything is compiled."""

from __future__ import annotations

import jax
import pytest

from research.errors import InputError
from research.tuning.strategy import Strategy, strategy, tune
from tests.tuning.cases import base_of

BOTH, UPPER = ({"kind": "select", "patterns": [f"encoder/layers/({which})/attention/query/kernel"]} for which in ("1|2", "2"))
BAD = [
    ("bert", "lroa", "unknown kind 'lroa' of strategy. Did you mean 'lora'"),
    ("bert", {"rank": 3}, "needs a kind"),
    ("bert", 7, "needs a kind, got 7"),
    ("bert", "no_such_package.tuning", "unknown kind 'no_such_package.tuning'"),
    ("bert", {"kind": "lora", "rnak": 4}, "no key tuning.rnak. Did you mean 'rank'"),
    ("bert", [{"kind": "lora", "rnak": 4}, "bitfit"], "rnak. Did you mean 'rank'"),
    ("bert", {"kind": "lora", "rank": 0}, "tuning.rank should be greater than 0, not 0"),
    ("bert", {"kind": "lora", "dropout": 1.0}, "tuning.dropout should be less than 1"),
    ("bert", {"kind": "lora", "rank": 25}, "tuning.rank is 25, but .*attention/query/kernel is only 24 x 24"),
    ("bert", {"kind": "lora", "targets": [".*/quary/kernel"]}, "tuning.targets pattern '.*/quary/kernel' matches nothing"),
    ("bert", {"kind": "lora", "targets": [".*/query/kernel", "("]}, "is not a regular expression"),
    ("bert", {"kind": "lora", "targets": [".*/query/.*"]}, "layers/0/attention/query/bias, which is no matrix"),
    ("bert", {"kind": "lora", "targets": [".*attention_norm/scale"]}, "attention_norm/scale, which is no matrix"),
    ("bert", {"kind": "lora", "targets": []}, "tuning.targets"),
    ("bert", {"kind": "select", "patterns": ["encoder/layers/7/.*"]}, "'encoder/layers/7/.*' matches nothing"),
    ("bert", {"kind": "top_layers", "layers": 4}, "tuning.layers is 4, but the encoder has only 3 layers"),
    ("llama", {"kind": "top_layers", "layers": 4}, "the decoder has only 3 layers"),
    ("llama", "bitfit", "a llama model has no biases"),
    ("llama", "head", "no head of its own"),
    ("bart", {"kind": "head", "pooler": True}, "has no pooler"),
    ("bert", {"kind": "adapter", "layers": "encoder/layers/9"}, "'\\(\\?:encoder/layers/9\\).*' matches nothing"),
    ("bert", {"kind": "adapter", "activation": "gleu"}, "tuning.activation"),
    ("bert", {"kind": "prefix", "length": 24}, "tuning.length 24 leaves no place among the 24 learned positions"),
    ("bert", {"kind": "prefix", "stacks": ["decoder"]}, "names the decoder, which a bert model does not have"),
    ("bert", ["full", "bitfit"], "parts 'full' and 'bitfit' both train .*/bias"),
    ("bert", [BOTH, UPPER], "both train .*layers/2/.*query"),
    ("bert", [UPPER, BOTH], "both train .*layers/2/.*query"),
    ("bert", [], "should have at least 1 item"),
]


@pytest.mark.parametrize(("family", "how", "message"), BAD, ids=str)
def test_one_sentence(family, how, message):
    model, params, _ = base_of(family)
    with pytest.raises(InputError, match=message) as error:
        tune(model, params, how, jax.random.key(0))
    assert "\n" not in str(error.value)


def test_what_a_strategy_may_be():
    """A name, a mapping, a list or a Strategy; equal configs are equal, hashable, and survive being written down."""
    lora = strategy({"kind": "lora", "rank": 4})
    assert strategy(lora) is lora and strategy("lora").rank == 8 and hash(lora) == hash(strategy(lora.model_dump()))
    both = strategy(["bitfit", {"kind": "lora", "rank": 4}])
    assert strategy(both.model_dump(mode="json")) == both and both.parts[1] == lora
    with pytest.raises(ValueError, match="built by"):
        Strategy(kind="lora")
