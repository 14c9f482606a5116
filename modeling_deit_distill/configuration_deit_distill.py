# Copyright 2026 The modeling_deit_distill authors. Apache License 2.0.
"""Configuration of the DeiT student.

This file travels with every checkpoint as remote code: of other packages it imports transformers alone.
"""

from transformers import PreTrainedConfig
from transformers.activations import ACT2CLS

FUSIONS = ("logit_mean", "softmax_mean", "cls", "distillation")

# Paper, Table 1: head dimension 64, MLP ratio 4, twelve layers.
SIZES = {
    "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


class DeiTDistillConfig(PreTrainedConfig):
    r"""Configuration of [`DeiTDistillModel`]. The defaults are DeiT-B/16 with the distillation token, at 224 pixels.

    Args:
        hidden_size (`int`): width of a token.
        num_hidden_layers (`int`): number of transformer blocks.
        num_attention_heads (`int`): attention heads per block; divides `hidden_size`.
        intermediate_size (`int`): width of the MLP's hidden layer.
        hidden_act (`str`): activation of the MLP.
        hidden_dropout_prob (`float`): dropout after the embeddings, the attention projection and the MLP.
        attention_probs_dropout_prob (`float`): dropout on attention probabilities.
        drop_path_rate (`float`): stochastic depth of the last block; it grows linearly from 0 at the first.
        image_size (`int` or `(height, width)`): input size in pixels.
        patch_size (`int` or `(height, width)`): patch size in pixels; divides `image_size`.
        num_channels (`int`): input channels.
        qkv_bias (`bool`): bias on the fused query-key-value projection.
        layer_norm_eps (`float`): epsilon of every LayerNorm.
        initializer_range (`float`): standard deviation of the truncated normal initialisation.
        use_distillation_token (`bool`): DeiT⚗ (two tokens, two heads), or plain DeiT (class token and head alone).
        fusion (`str`): how `logits` come from the two heads: `"logit_mean"` (mean of the logits: public code),
            `"softmax_mean"` (log of the mean probability: the paper), `"cls"`, `"distillation"`. A model without
            the distillation token has one head, which is its `logits` under either mean.

    Raises:
        ValueError: sizes that do not divide, a rate outside its range, or a fusion that the model cannot compute.

    Example:
        >>> config = DeiTDistillConfig.from_size("tiny", num_labels=10, image_size=32, patch_size=4)
    """

    model_type = "deit_distill"
    # `logits` alone is a classifier's answer to strangers; the heads stay visible to our own trainer's metrics.
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]
    # What must not change between a checkpoint and the model it is loaded into.
    position_fields = ("patch_size", "hidden_size", "use_distillation_token")

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_distillation_token: bool = True
    fusion: str = "logit_mean"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_rates()
        self._check_fusion()

    @classmethod
    def from_size(cls, size: str, **overrides) -> "DeiTDistillConfig":
        """The configuration of DeiT-Ti, -S or -B (paper, Table 1) with any field overridden.

        Args:
            size: `"tiny"`, `"small"` or `"base"`.
            overrides: fields of the configuration, which take precedence.

        Raises:
            ValueError: an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **overrides})

    def check_positions_fit(self, wanted: PreTrainedConfig):
        """Refuse to load a checkpoint of this configuration into a model whose position embeddings have another form.

        Raises:
            ValueError: the first field that differs.
        """
        for name in self.position_fields:
            own, asked = getattr(self, name), getattr(wanted, name)
            if name == "patch_size":
                own, asked = as_pair(own), as_pair(asked)  # 8, (8, 8) and JSON's [8, 8] are one size
            if own != asked:
                raise ValueError(
                    f"the checkpoint has {name}={own}, but {name}={asked} was asked for; position embeddings cannot be "
                    f"carried over, so leave {name} as it is or train from scratch"
                )

    def _check_sizes(self):
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_act not in ACT2CLS:
            raise ValueError(f"unknown hidden_act {self.hidden_act!r}; choose one of {', '.join(sorted(ACT2CLS))}")
        if self.hidden_size % self.num_attention_heads:
            divisors = [heads for heads in range(1, min(self.hidden_size, 32) + 1) if self.hidden_size % heads == 0]
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}; "
                f"choose {', '.join(map(str, divisors))} heads, or another hidden_size"
            )
        for image, patch in zip(as_pair(self.image_size), as_pair(self.patch_size), strict=True):
            if patch <= 0 or image <= 0 or image % patch:
                step = max(patch, 1)
                below = max(image, 0) // step * step
                nearest = f"{below} or {below + step}" if below else step
                raise ValueError(
                    f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}; "
                    f"the nearest image_size is {nearest}"
                )

    def _check_rates(self):
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        for name in (*rates, "layer_norm_eps", "initializer_range"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")

    def _check_fusion(self):
        if self.fusion not in FUSIONS:
            raise ValueError(f"unknown fusion {self.fusion!r}; choose one of {', '.join(FUSIONS)}")
        if self.fusion == "distillation" and not self.use_distillation_token:
            raise ValueError("fusion 'distillation' needs use_distillation_token=True: there is no such head otherwise")


def as_pair(size) -> tuple[int, int]:
    """`size`, a number or a (height, width), as (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)
