"""Text towers: DistilBERT and BERT-likes, CLIP's and SigLIP's. The only user of transformers' text models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedConfig,
    SiglipTextConfig,
    SiglipTextModel,
)

from vlm_core.errors import CheckpointMismatchError, CheckpointNotFoundError, InputError

Pooling = Literal["eos", "mean", "first", "last"]
"""`eos`: the end token of CLIP. `mean`: the mean over real tokens. `first`: the [CLS] token. `last`: the last place of
a text of full length, padding or not, through SigLIP's own head."""

_OWN_POOLING: dict[str, Pooling] = {"clip_text_model": "eos", "siglip_text_model": "last"}


class TextEncoder(nn.Module):
    """Token ids -> one vector per text, (B, D), before any projection."""

    def __init__(self, config: PreTrainedConfig | Mapping[str, Any], pooling: Pooling = "mean") -> None:
        """Build the tower with random weights.

        Args:
            config: a transformers configuration, or the dictionary of one, with its `model_type`:
                `clip_text_model`, `siglip_text_model`, `distilbert`, `bert` or another encoder that `AutoModel` builds.
            pooling: see `Pooling`; CLIP's tower takes `eos` and only that, SigLIP's `last`.

        Raises:
            CheckpointMismatchError: transformers does not know the type, or pooling and type do not fit.
        """
        super().__init__()
        if isinstance(config, Mapping):
            config = _config_from_dict(config)
        if pooling not in get_args(Pooling):
            raise CheckpointMismatchError(f"pooling {pooling!r} is none of {', '.join(get_args(Pooling))}")
        own = _OWN_POOLING.get(config.model_type)
        if pooling != own and (own is not None or pooling in _OWN_POOLING.values()):
            raise CheckpointMismatchError(
                f"a text encoder of type {config.model_type!r} cannot be pooled by {pooling!r}: "
                "CLIP's takes 'eos', SigLIP's 'last', BERT-likes take 'mean' or 'first'"
            )
        self.config = config
        self.pooling: Pooling = pooling
        if isinstance(config, CLIPTextConfig):
            self.model: nn.Module = CLIPTextModel(config)
        elif isinstance(config, SiglipTextConfig):
            self.model = SiglipTextModel(config)
        elif isinstance(config, BertConfig):
            self.model = BertModel(config, add_pooling_layer=False)  # its tanh pooler is never used
        else:
            self.model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers

    @classmethod
    def pretrained(cls, source: str, pooling: Pooling = "mean") -> TextEncoder:
        """Load pre-trained DistilBERT or BERT-like weights from a hub id or a directory.

        Raises:
            CheckpointNotFoundError: they are not there, damaged, or cannot be fetched.
            CheckpointMismatchError: they are of another kind of model, or lack tensors, which transformers would make
                up at random.
        """
        try:
            config = AutoConfig.from_pretrained(source)
            kwargs = {"add_pooling_layer": False} if config.model_type == "bert" else {}
            model, found = AutoModel.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **kwargs
            )
        except Exception as error:  # transformers raises what the hub client, safetensors or torch raises
            raise CheckpointNotFoundError(
                f"the pre-trained text encoder {source!r} cannot be loaded ({error}). Without a network, give a "
                "directory with config.json, model.safetensors and the tokenizer's files"
            ) from error
        missing = sorted(found["missing_keys"])
        sizes = [getattr(config, name, None) for name in ("hidden_size", "max_position_embeddings", "vocab_size")]
        if missing or None in sizes or config.model_type in _OWN_POOLING:
            reason = f"its weights lack {', '.join(missing[:3])}" if missing else f"it is a {config.model_type!r}"
            raise CheckpointMismatchError(
                f"{source!r} cannot be a text encoder: {reason}. Use DistilBERT or another BERT-like"
            )
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.config, self.pooling, self.model = config, pooling, model
        return self

    @property
    def width(self) -> int:
        """D, the width of a text's vector."""
        return int(self.config.projection_size if self.pooling == "last" else self.config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids that it has an embedding for."""
        return int(self.config.vocab_size)

    @property
    def max_tokens(self) -> int:
        """The longest input, in tokens, special tokens included."""
        return int(self.config.max_position_embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode a batch of texts.

        Args:
            input_ids: int64, (B, L), padded at the end.
            attention_mask: (B, L), 1 for real tokens; what is padding never changes the result. Not used by SigLIP's
                tower, which was trained without one: its texts are padded to `max_tokens`, always.

        Returns:
            (B, D).

        Raises:
            InputError: longer than `max_tokens` (for SigLIP's: of another length), or the two shapes differ.
        """
        if input_ids.shape != attention_mask.shape:
            raise InputError(f"input_ids {tuple(input_ids.shape)} and its mask {tuple(attention_mask.shape)} differ")
        if input_ids.shape[1] > self.max_tokens:
            raise InputError(f"{input_ids.shape[1]} tokens are more than the {self.max_tokens} of this text encoder")
        if self.pooling == "last":
            if input_ids.shape[1] != self.max_tokens:
                raise InputError(f"{input_ids.shape[1]} tokens: SigLIP's texts are padded to all {self.max_tokens}")
            return self.model(input_ids=input_ids).pooler_output  # type: ignore[no-any-return]  # untyped output
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "eos":
            return out.pooler_output  # type: ignore[no-any-return]  # transformers' outputs are untyped
        hidden: Tensor = out.last_hidden_state
        return hidden[:, 0] if self.pooling == "first" else masked_mean(hidden, attention_mask)


def masked_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over the tokens whose mask is 1; (B, L, D), (B, L) -> (B, D)."""
    weight = attention_mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def _config_from_dict(config: Mapping[str, Any]) -> PreTrainedConfig:
    values = dict(config)
    model_type = values.pop("model_type", None)
    if model_type == "clip_text_model":
        return CLIPTextConfig(**values)
    if model_type == "siglip_text_model":
        return SiglipTextConfig(**values)
    try:
        return AutoConfig.for_model(str(model_type), **values)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointMismatchError(f"transformers has no text encoder of type {model_type!r}: {error}") from error


def tokenizer_directory_files(directory: Path) -> list[str]:
    """Names of the files in `directory` that define a vocabulary; empty when it has no tokenizer."""
    return [n for n in ("tokenizer.json", "vocab.json", "vocab.txt") if (directory / n).is_file()]
