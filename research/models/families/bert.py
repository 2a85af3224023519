"""BERT (Devlin et al. 2019): a post-norm encoder with learned positions 0, 1, 2, ... and token types."""

from __future__ import annotations

from typing import Any, ClassVar

from research.models.config import Head, Layer, ModelConfig, Run, Stack
from research.models.family import THEIRS, Family, Fields, only_layer


class Bert(Family):
    """`BertModel` and `BertForSequenceClassification`. Masked-language files load without their head."""

    architectures: ClassVar = {"BertModel": None, "BertForSequenceClassification": "classification"}
    prefix = "bert."
    rules = (
        (r"^embeddings/tokens/", "embeddings/word_embeddings/"),
        (r"^encoder/embeddings/positions/", "embeddings/position_embeddings/"),
        (r"^encoder/embeddings/types/", "embeddings/token_type_embeddings/"),
        (r"^encoder/embeddings/norm/", "embeddings/LayerNorm/"),
        (r"^encoder/layers/", "encoder/layer/"),
        (r"/attention/output/", "/attention/output/dense/"),
        (r"/attention/(query|key|value)/", r"/attention/self/\1/"),
        (r"/attention_norm/", "/attention/output/LayerNorm/"),
        (r"/mlp/up/", "/intermediate/dense/"),
        (r"/mlp/down/", "/output/dense/"),
        (r"/mlp_norm/", "/output/LayerNorm/"),
        (r"^head/output/", "classifier/"),
    )
    aliases = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    harmless = r"embeddings\.position_ids"

    def config(self, fields: Fields, tensors: frozenset[str]) -> ModelConfig:
        fields.only(
            position_embedding_type=("absolute", None),
            is_decoder=(False, None),
            add_cross_attention=(False, None),
            is_encoder_decoder=(False,),
            pruned_heads=({}, None),
            tie_encoder_decoder=(False,),
            quantization_config=(None,),
            tie_word_embeddings=(True, False),
        )
        width, heads = fields("hidden_size", int, 768), fields("num_attention_heads", int, 12)
        dropout = fields("hidden_dropout_prob", float, 0.1)
        layer = Layer(
            heads=heads,
            kv_heads=heads,
            head_width=fields.head_width(width, heads),
            mlp_width=fields("intermediate_size", int, 3072),
            activation=fields.activation("hidden_act", "gelu"),
            epsilon=fields("layer_norm_eps", float, 1e-12),
            dropout=dropout,
            attention_dropout=fields("attention_probs_dropout_prob", float, 0.1),
        )
        stack = Stack(
            runs=(Run(kinds=(layer,), repeats=fields("num_hidden_layers", int, 12)),),
            positions=fields("max_position_embeddings", int, 512),
            types=fields("type_vocab_size", int, 2),
            embedding_norm=True,
            embedding_dropout=dropout,
        )
        head, head_dropout = None, fields("classifier_dropout", float, dropout)
        if self.form(fields) == "classification":
            labels = fields("num_labels", int, len(fields("id2label", dict, {"0": "", "1": ""})))
            head = Head(form="classification", outputs=labels, dropout=head_dropout)
        return ModelConfig(
            family="bert",
            width=width,
            vocabulary=fields("vocab_size", int, 30522),
            encoder=stack,
            pooler=head is not None or any(name.startswith("pooler.") for name in tensors),
            head=head,
            initializer_range=fields("initializer_range", float, 0.02),
            end_tokens=fields.ends(None),
        )

    def json(self, config: ModelConfig) -> dict[str, Any]:
        stack, layer, head = config.encoder, only_layer(config.encoder), config.head
        values = {
            "architectures": [self.architecture(head.form if head else None)],
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "num_hidden_layers": stack.layers,
            "num_attention_heads": layer.heads,
            "intermediate_size": layer.mlp_width,
            "hidden_act": THEIRS[layer.activation],
            "hidden_dropout_prob": layer.dropout,
            "attention_probs_dropout_prob": layer.attention_dropout,
            "max_position_embeddings": stack.positions,
            "type_vocab_size": stack.types,
            "initializer_range": config.initializer_range,
            "layer_norm_eps": layer.epsilon,
            "position_embedding_type": "absolute",
        }
        if head:
            labels = {str(number): f"LABEL_{number}" for number in range(head.outputs)}
            values |= {
                "id2label": labels,
                "label2id": {label: int(number) for number, label in labels.items()},
                "classifier_dropout": head.dropout,
            }
        return values

    def with_head(self, config: ModelConfig, head: Head | None) -> ModelConfig:
        """A classification head reads the pooled state, so a file that has no pooler gets a new one."""
        pooled = config.pooler or (head is not None and head.form == "classification")
        return config.model_copy(update={"head": head, "pooler": pooled})
