# Copyright 2026 The modeling_deit_distill authors. Apache License 2.0.
"""The DeiT student (Touvron et al. 2020, arXiv 2012.12877): a vision transformer with a class and a distillation token.

This file travels with every checkpoint as remote code: of other packages it imports torch and transformers alone.

Shapes in comments: B batch, N tokens (prefix + patches), P patches, D hidden size, H heads, C classes.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .configuration_deit_distill import FUSIONS, DeiTDistillConfig, as_pair

MAX_WRITTEN_OUT = 1024  # tokens; beyond that the weights take too much memory


@dataclass
class DeiTDistillClassifierOutput(ModelOutput):
    """Output of [`DeiTDistillForImageClassification`]; its type is the same in training and evaluation.

    Attributes:
        loss: scalar, cross-entropy of `logits` with `labels`, if labels were given.
        logits: (batch, classes), the fusion of the heads that the configuration names.
        cls_logits: (batch, classes), the class head.
        distillation_logits: (batch, classes), the distillation head; None without the distillation token.
        hidden_states: tuple of (batch, tokens, hidden): the embeddings, then the output of each block.
        attentions: tuple of (batch, heads, tokens, tokens), one for each block.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cls_logits: torch.FloatTensor | None = None
    distillation_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def fuse_logits(cls_logits: torch.Tensor, distillation_logits: torch.Tensor | None, fusion: str) -> torch.Tensor:
    """One answer from two heads (paper, section 4, "Classification with our approach").

    Args:
        cls_logits: (batch, classes).
        distillation_logits: (batch, classes), or None for a model with one head, whose answer is `cls_logits`.
        fusion: `"logit_mean"`, `"softmax_mean"`, `"cls"` or `"distillation"`. Under `"softmax_mean"` the result is
            the log of the mean probability, so that its softmax is the mean of the two softmaxes.

    Raises:
        ValueError: an unknown fusion.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {fusion!r}; choose one of {', '.join(FUSIONS)}")
    if distillation_logits is None or fusion == "cls":
        return cls_logits
    if fusion == "distillation":
        return distillation_logits
    if fusion == "logit_mean":
        return (cls_logits + distillation_logits) / 2
    log_probs = torch.stack([F.log_softmax(cls_logits, dim=-1), F.log_softmax(distillation_logits, dim=-1)])
    return torch.logsumexp(log_probs, dim=0) - math.log(2)


def resize_position_embeddings(
    position_embeddings: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """Resize the patches' position embeddings bicubically and keep those of the prefix tokens (paper, section 5.1).

    Args:
        position_embeddings: (1, prefix + old_height·old_width, hidden).
        old_grid, new_grid: patches as (height, width).

    Returns:
        (1, prefix + new_height·new_width, hidden); the input itself if the grids are equal.
    """
    if tuple(old_grid) == tuple(new_grid):
        return position_embeddings
    num_prefix_tokens = position_embeddings.shape[1] - old_grid[0] * old_grid[1]
    prefix, patches = position_embeddings[:, :num_prefix_tokens], position_embeddings[:, num_prefix_tokens:]
    patches = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)  # (1, D, height, width)
    resized = F.interpolate(patches.float(), size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)


def drop_path(hidden_states: torch.Tensor, drop_prob: float, training: bool) -> torch.Tensor:
    """Stochastic depth (Huang et al. 2016): in training, drop samples of a branch (batch, ...), scale up the rest."""
    if drop_prob == 0.0 or not training:
        return hidden_states
    keep_prob = 1.0 - drop_prob
    mask_shape = (hidden_states.shape[0],) + (1,) * (hidden_states.dim() - 1)
    return hidden_states * hidden_states.new_empty(mask_shape).bernoulli_(keep_prob).div_(keep_prob)


def eager_attention_forward(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
    """Attention written out (B, H, N, D/H); the one kernel that returns its weights (B, H, N, N)."""
    weights = (query * scaling) @ key.transpose(-2, -1)
    weights = F.softmax(weights, dim=-1).to(query.dtype)  # its sums are in float32, whatever the dtype
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (B, N, H, D/H), (B, H, N, N)


def sdpa_attention_forward(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
    """Attention by PyTorch's fused kernels, which never hold the weights: the default.

    Transformers' own also serves masks, caches and grouped queries, and takes the host twice as long to call. On a CPU
    in bf16, the fused backward pass takes longer than all of attention written out.
    """
    if _is_trained_in_bf16_on_a_cpu(query) and key.shape[-2] <= MAX_WRITTEN_OUT:
        return eager_attention_forward(module, query, key, value, None, scaling, dropout)[0], None
    context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return context.transpose(1, 2), None  # (B, N, H, D/H)


def _is_trained_in_bf16_on_a_cpu(tensor: torch.Tensor) -> bool:
    if tensor.device.type != "cpu" or not (tensor.requires_grad and torch.is_grad_enabled()):
        return False
    return torch.bfloat16 == (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tensor.dtype)


class PatchConv(nn.Conv2d):
    """A convolution of whole patches. On a CPU in bf16 the gradient of the same product is several times as fast."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Each patch of (B, C, height, width) projected, (B, D, rows, columns)."""
        if not _is_trained_in_bf16_on_a_cpu(self.weight):
            return super().forward(pixel_values)
        height, width = self.kernel_size
        tiles = pixel_values.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, height, width)
        patches = tiles.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DeiTDistillEmbeddings(nn.Module):
    """Class token, distillation token and patches, each plus its learned position."""

    def __init__(self, config: DeiTDistillConfig):
        super().__init__()
        self.patch_size = as_pair(config.patch_size)
        self.image_size = as_pair(config.image_size)
        self.num_channels = config.num_channels
        self.patch_embeddings = PatchConv(config.num_channels, config.hidden_size, self.patch_size, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        has_two, (height, width) = config.use_distillation_token, self.grid(self.image_size)
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if has_two else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + has_two + height * width, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Patches as (height, width) of an image of `image_size`."""
        return image_size[0] // self.patch_size[0], image_size[1] // self.patch_size[1]

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Tokens (batch, prefix + patches, hidden) of `pixel_values` (batch, channels, height, width)."""
        self._check_input(pixel_values, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.patch_embeddings.weight.dtype)  # of a model in half precision
        patches = self.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)  # (B, P, D)
        tokens = [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]
        prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens]  # (B, 1, D) each
        positions = self.position_embeddings
        if interpolate_pos_encoding:
            grid = self.grid(tuple(pixel_values.shape[-2:]))
            positions = resize_position_embeddings(positions, self.grid(self.image_size), grid)
        return self.dropout(torch.cat([*prefix, patches], dim=1) + positions)  # (B, N, D)

    def _check_input(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool):
        if pixel_values.dim() != 4:
            raise ValueError(f"pixel_values are {tuple(pixel_values.shape)}, not (batch, channels, height, width)")
        channels, height, width = pixel_values.shape[1:]
        if channels != self.num_channels:
            raise ValueError(f"pixel_values have {channels} channels, the model takes {self.num_channels}")
        if interpolate_pos_encoding:
            if height < self.patch_size[0] or width < self.patch_size[1]:
                raise ValueError(f"pixel_values of {height}x{width} are smaller than one patch of {self.patch_size}")
        elif (height, width) != self.image_size:
            raise ValueError(
                f"pixel_values are {height}x{width}, the model takes {self.image_size[0]}x{self.image_size[1]}; resize "
                "the images, pass interpolate_pos_encoding=True, or load the model with another image_size"
            )


class DeiTDistillAttention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, config: DeiTDistillConfig):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False, num_queries: int | None = None):
        """Mixed tokens (B, N, D) and weights (B, H, N, N) or None; of the first `num_queries` tokens if given."""
        by_head = (*hidden_states.shape[:-1], self.num_attention_heads, self.head_dim)  # (B, N, H, D/H)
        # Parts of the last dimension: their gradients become that of `qkv` by one copy; of a permuted tensor, by two.
        parts = self.qkv(hidden_states).chunk(3, dim=-1)  # each (B, N, D)
        query, key, value = (part.view(by_head).transpose(1, 2) for part in parts)  # each (B, H, N, D/H)
        if num_queries is not None:
            query = query[:, :, :num_queries]
        settings = {"scaling": self.scaling, "dropout": self.attention_dropout if self.training else 0.0}
        context, weights = self._attention_function(output_attentions)(self, query, key, value, None, **settings)
        return self.proj(context.flatten(2)), weights  # (B, N, D), (B, H, N, N) or None

    def _attention_function(self, output_attentions: bool):
        # Fused kernels never materialise the weights, so whoever asks for them gets the eager kernel for that call.
        if output_attentions:
            return eager_attention_forward
        if self.config._attn_implementation == "sdpa":  # whatever is registered as that; register others by other names
            return sdpa_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)


class DeiTDistillMLP(nn.Module):
    """Two linear maps with the activation between them."""

    def __init__(self, config: DeiTDistillConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Each token (batch, tokens, hidden) by itself."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class DeiTDistillLayer(GradientCheckpointingLayer):
    """One pre-norm block: x + drop_path(attention(norm(x))), then x + drop_path(mlp(norm(x)))."""

    def __init__(self, config: DeiTDistillConfig, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = DeiTDistillAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DeiTDistillMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob) if config.hidden_dropout_prob > 0 else nn.Identity()
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False, num_queries: int | None = None):
        """Residual stream (batch, tokens, hidden) and weights or None; of the first `num_queries` tokens if given."""
        branch, attention_weights = self.attention(self.norm1(hidden_states), output_attentions, num_queries)
        if num_queries is not None:
            hidden_states = hidden_states[:, :num_queries]
        hidden_states = hidden_states + drop_path(self.dropout(branch), self.drop_path_rate, self.training)
        branch = self.mlp(self.norm2(hidden_states))
        hidden_states = hidden_states + drop_path(self.dropout(branch), self.drop_path_rate, self.training)
        return hidden_states, attention_weights


# What a checkpoint's own configuration is found by.
_HUB_KWARGS = {"cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder"}


class DeiTDistillPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving that both models share."""

    config_class = DeiTDistillConfig
    base_model_prefix = "deit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["DeiTDistillEmbeddings", "DeiTDistillLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DeiTDistillEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.position_embeddings, std=std)
            if module.distillation_token is not None:
                init.trunc_normal_(module.distillation_token, std=std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a checkpoint; `image_size=...` other than the checkpoint's resizes its position embeddings.

        Otherwise as in [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: a patch size or tokens other than the checkpoint's, whose position embeddings would fit nowhere.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        hub_kwargs = {name: value for name, value in kwargs.items() if name in (*_HUB_KWARGS, "_commit_hash")}
        own = cls.config_class.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        # Our configuration class may exist twice, where code is loaded remotely.
        if isinstance(config, PreTrainedConfig):
            wanted, config = config, copy.deepcopy(config)  # the caller's own is left as it is
            config.image_size = own.image_size  # the size at which the checkpoint's tensors fit
        else:
            base = own if config is None else cls.config_class.from_pretrained(config, **hub_kwargs)
            asked = {name: kwargs[name] for name in ("image_size", *base.position_fields) if name in kwargs}
            wanted = cls.config_class.from_dict({**base.to_dict(), **asked})
            kwargs["image_size"] = own.image_size
        own.check_positions_fit(wanted)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).resize_position_embeddings(wanted.image_size)
        return loaded

    def resize_position_embeddings(self, image_size: int | tuple[int, int]):
        """Fit the model to another image size, in pixels: bicubic resizing, in place (paper, section 5.1).

        Raises:
            ValueError: an image size not divisible by the patch size.
        """
        config = type(self.config).from_dict({**self.config.to_dict(), "image_size": image_size})  # checks the size
        embeddings = self.base_model.embeddings
        old_grid, new_grid = embeddings.grid(embeddings.image_size), embeddings.grid(as_pair(config.image_size))
        with torch.no_grad():
            resized = resize_position_embeddings(embeddings.position_embeddings, old_grid, new_grid)
        if resized is not embeddings.position_embeddings:
            requires_grad = embeddings.position_embeddings.requires_grad
            embeddings.position_embeddings = nn.Parameter(resized.clone(), requires_grad=requires_grad)
        embeddings.image_size = as_pair(image_size)
        self.config.image_size = image_size

    def get_position_embeddings(self) -> nn.Parameter:
        """The learned positions, (1, prefix + patches, hidden)."""
        return self.base_model.embeddings.position_embeddings

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save weights, configuration and this code, so that every Auto class finds the model again.

        transformers by itself registers the saved class alone, and `AutoModel` would then fail.
        """
        if self._auto_class is not None:
            self.config.auto_map = {"AutoModel": f"{__name__.rsplit('.', 1)[-1]}.{DeiTDistillModel.__name__}"}
        sharded = type(self)
        # FSDP2 makes a class of torch's from ours, and torch's code would be saved, under a name that nobody knows.
        self.__class__ = next(kind for kind in sharded.__mro__ if not kind.__module__.startswith("torch."))
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.__class__ = sharded


class DeiTDistillModel(DeiTDistillPreTrainedModel):
    """The transformer without heads."""

    _keys_to_ignore_on_load_unexpected = [r"^(cls|distillation)_classifier\."]

    def __init__(self, config: DeiTDistillConfig):
        super().__init__(config)
        self.embeddings = DeiTDistillEmbeddings(config)
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(DeiTDistillLayer(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        prefix_only: bool = False,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), normalised.
            interpolate_pos_encoding: resize position embeddings to the size of `pixel_values`.
            output_attentions, output_hidden_states, return_dict: as in transformers; default from the configuration.
            prefix_only: leave the patches out of what comes back, and out of most of the last block (6 % of the model).

        Returns:
            `last_hidden_state` (batch, 2 + patches, hidden), normalised: class token, distillation token (if any),
            patches (unless `prefix_only`); `pooler_output` (batch, hidden), the class token; `hidden_states` (the
            embeddings and each block's output) and `attentions` if asked for.

        Raises:
            ValueError: images of another size or number of channels than the model's.
        """
        output_attentions = _default(output_attentions, self.config.output_attentions)
        output_hidden_states = _default(output_hidden_states, self.config.output_hidden_states)
        return_dict = _default(return_dict, self.config.return_dict)
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        all_hidden_states, all_attentions = (), ()
        num_prefix_tokens = 2 if self.config.use_distillation_token else 1
        for layer in self.layers:
            all_hidden_states += (hidden_states,) if output_hidden_states else ()  # held only if asked for: memory
            num_queries = num_prefix_tokens if prefix_only and layer is self.layers[-1] else None
            hidden_states, attention = layer(hidden_states, output_attentions, num_queries)
            all_attentions += (attention,) if output_attentions else ()
        last_hidden_state = self.norm(hidden_states)
        output = BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=last_hidden_state[:, 0],
            hidden_states=(*all_hidden_states, hidden_states) if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


class DeiTDistillForImageClassification(DeiTDistillPreTrainedModel):
    """DeiT with a class head and, with the distillation token, a distillation head (paper, section 4).

    `config.fusion` is read at each forward, so it can be changed on a loaded model. For example:

        >>> model = DeiTDistillForImageClassification(DeiTDistillConfig.from_size("tiny", num_labels=10))
        >>> model(torch.zeros(1, 3, 224, 224)).distillation_logits.shape
        torch.Size([1, 10])
    """

    def __init__(self, config: DeiTDistillConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = DeiTDistillModel(config)
        sizes = (config.hidden_size, config.num_labels)
        self.cls_classifier = nn.Linear(*sizes)
        self.distillation_classifier = nn.Linear(*sizes) if config.use_distillation_token else None
        self.post_init()

    # No **kwargs: Trainer would take them as a sign that the loss is already divided by the accumulation steps.
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DeiTDistillClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (batch, channels, height, width), normalised.
            labels: (batch,) class indices or (batch, classes) probabilities; `loss` is then the cross-entropy of
                `logits`. With `config.problem_type` `"multi_label_classification"`, (batch, classes) of 0 and 1, and
                the binary cross-entropy; with `"regression"`, the default for one class, (batch,) or
                (batch, classes) values, and the mean squared error. Distillation has its loss in `trainer.py`.
            interpolate_pos_encoding, output_attentions, output_hidden_states, return_dict: as in [`DeiTDistillModel`].

        Raises:
            ValueError: as the base model; and fusion `"softmax_mean"` with labels of a problem type without a softmax.
        """
        return_dict = _default(return_dict, self.config.return_dict)
        output_attentions = _default(output_attentions, self.config.output_attentions)
        output_hidden_states = _default(output_hidden_states, self.config.output_hidden_states)
        encoded = self.deit(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions,
            output_hidden_states,
            return_dict=True,
            prefix_only=not (output_attentions or output_hidden_states),  # the heads read nothing else
        )
        cls_logits = self.cls_classifier(encoded.last_hidden_state[:, 0])
        head = self.distillation_classifier
        distillation_logits = None if head is None else head(encoded.last_hidden_state[:, 1])
        logits = fuse_logits(cls_logits, distillation_logits, self.config.fusion)
        loss = None if labels is None else self._label_loss(logits, labels)
        seen = (encoded.hidden_states, encoded.attentions)
        output = DeiTDistillClassifierOutput(loss, logits, cls_logits, distillation_logits, *seen)
        return output if return_dict else output.to_tuple()

    def _label_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # Where the configuration does not say, transformers takes labels of (batch, classes) for a choice of several
        # classes at once; here they are probabilities, as mixup makes them.
        problem_type = self.config.problem_type or ("regression" if self.num_labels == 1 else None)
        if problem_type in (None, "single_label_classification"):
            return F.cross_entropy(logits, labels.to(logits.device))
        if self.config.fusion == "softmax_mean" and self.distillation_classifier is not None:
            raise ValueError(
                f"fusion 'softmax_mean' does not fit problem_type {problem_type!r}, which has no softmax; choose "
                "'logit_mean', 'cls' or 'distillation'"
            )
        return self.loss_function(labels, logits, self.config)


def _default(value, default):
    return default if value is None else value
