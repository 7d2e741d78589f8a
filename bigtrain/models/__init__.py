"""Models: bigtrain's own, and any of transformers. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bigtrain.models.lora import Lora

if TYPE_CHECKING:
    from torch import nn

__all__ = ["cnn", "decoder", "hugging_face", "lstm", "vit"]


def decoder(
    *,
    preset: str | None = None,
    path: str | None = None,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    width: int | None = None,
    head_width: int | None = None,
    mlp_width: int | None = None,
    positions: Literal["learned", "rotary"] | None = None,
    norm: Literal["layer_norm", "rms_norm"] | None = None,
    activation: Literal["gelu", "swiglu"] | None = None,
    bias: bool | None = None,
    tied: bool | None = None,
    norm_eps: float | None = None,
    rope_theta: float | None = None,
    rope_scaling: dict[str, Any] | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """The native decoder, GPT-2 style, Llama style or between: `bigtrain.models.native.Decoder`.

    Args:
        preset: a known shape (`bigtrain.models.shapes.PRESETS`) that supplies every setting that is not given.
        path: pretrained weights of GPT-2's or Llama's architecture: a Hugging Face folder (such as an export of
            bigtrain's), a GGUF file or a hub name. Its config gives the shape; a preset of the other architecture is
            refused.
        vocab_size: tokens; by default the tokenizer's.
        sequence_length: longest sequence, in tokens.
        layers: blocks.
        heads: attention heads.
        kv_heads: heads of keys and values; fewer than `heads` is grouped-query attention.
        width: of the residual stream.
        head_width: of one head; by default `width / heads`.
        mlp_width: inside the MLP; by default 4 x width, or for swiglu 8/3 x width, rounded up to 64.
        positions: learned (GPT-2) or rotary (Llama).
        norm: layer_norm (GPT-2) or rms_norm (Llama).
        activation: gelu (GPT-2) or swiglu (Llama).
        bias: biases in linear layers and LayerNorm.
        tied: one matrix for embedding and head.
        norm_eps: inside the norms.
        rope_theta: base of the rotary wavelengths.
        rope_scaling: Llama 3's stretching of them, with Hugging Face's keys.
        dropout: of embedding and both branches of a block, while training; not of attention, whose fast kernels have
            none.

    Raises:
        UserError: an unknown preset, a shape that cannot be, a path that is not such a model.
    """
    settings = locals()
    from bigtrain.models.build import build_decoder
    from bigtrain.models.shapes import SETTINGS

    given = {name: settings[name] for name in SETTINGS if settings[name] is not None}
    return build_decoder(preset, path, given, dropout)


def hugging_face(
    *,
    path: str | None = None,
    config: dict[str, Any] | None = None,
    task: Literal[
        "causal_lm", "masked_lm", "sequence_classification", "token_classification", "seq2seq", "image_classification"
    ] = "causal_lm",
    vocab_size: int | None = None,
    classes: int | None = None,
    sequence_length: int | None = None,
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa",
    lora: Lora | None = None,
    teacher: str | None = None,
    allow_missing: bool = False,
) -> nn.Module:
    """Any model of `transformers` for a task. No remote code is ever run.

    Args:
        path: pretrained weights: a folder, a GGUF file (or a folder with one), or a hub name.
        config: instead of a path: `model_type` and any settings of that model's configuration; weights are random.
        task: which of transformers' Auto classes; it goes with the objective of the same name.
        vocab_size: tokens; by default the tokenizer's. Pretrained weights may know more, not fewer.
        classes: of a classifier's head; by default the data's.
        sequence_length: longest sequence, in tokens; checked against pretrained weights.
        attention: which implementation of attention transformers is to use.
        lora: low-rank adapters (`bigtrain.models.adapters.Lora`): `{rank: 16, alpha: 32, …}`; all else is frozen.
        teacher: the path of a frozen model beside this one: the reference of `objective=dpo`, the teacher of
            `objective=distillation`.
        allow_missing: take pretrained weights that lack some of the model's, or have more than those.

    Raises:
        UserError: both or neither of path and config, no such path, no model for this task, weights that do not fit.
    """
    from bigtrain.models.wrapped import build_hugging_face

    return build_hugging_face(
        path,
        config,
        task=task,
        vocab_size=vocab_size,
        classes=classes,
        sequence_length=sequence_length,
        attention=attention,
        lora=Lora(**lora) if isinstance(lora, dict) else lora,
        teacher=teacher,
        allow_missing=allow_missing,
    )


def lstm(
    *,
    vocab_size: int | None = None,
    width: int = 256,
    layers: int = 1,
    dropout: float = 0.2,
    word_dropout: float = 0.0,
    word_shuffle: float = 0.0,
    lexical: bool = False,
    tied: bool = True,
    start_id: int = 0,
) -> nn.Module:
    """An LSTM encoder and decoder with attention, for texts that are made from texts: `LSTMSeq2Seq`.

    Args:
        vocab_size: tokens; by default the tokenizer's.
        width: of embeddings and states; half of it for each direction of reading.
        layers: of the encoder, and of the decoder.
        dropout: of embeddings, between layers and in front of the head, while training.
        word_dropout: the largest share of whole tokens of a text that is not read, while training; each sample has a
            share of its own, from 0 to it (arXiv:1512.05287 has one for all): texts in other words.
        word_shuffle: share of the samples whose tokens are read in random order, while training (arXiv:1711.00043):
            texts in another order of words.
        lexical: what is looked at goes to the head directly too: words are copied, or translated one by one
            (arXiv:1710.01329).
        tied: one matrix for embedding and head.
        start_id: the token that stands in front of every text that is written.

    Raises:
        UserError: a shape that cannot be.
    """
    from bigtrain.models.build import whole_modules
    from bigtrain.models.checks import given
    from bigtrain.models.recurrent import LSTMSeq2Seq

    with whole_modules():
        return LSTMSeq2Seq(
            given("vocab_size", vocab_size),
            width,
            layers,
            dropout,
            word_dropout,
            word_shuffle,
            lexical,
            tied,
            start_id,
        )


def cnn(
    *, classes: int | None = None, channels: int = 1, image_size: int = 28, width: int = 16, dropout: float = 0.25
) -> nn.Module:
    """A convolutional network for small images, such as MNIST's: `bigtrain.models.convolutional.ConvNet`.

    Args:
        classes: by default the data's.
        channels: 1: grey; 3: colours.
        image_size: height and width in pixels.
        width: of the first layers, a multiple of 8; it doubles twice.
        dropout: in front of the head, while training.

    Raises:
        UserError: a shape that cannot be.
    """
    from bigtrain.models.build import whole_modules
    from bigtrain.models.checks import given
    from bigtrain.models.convolutional import ConvNet

    with whole_modules():
        return ConvNet(given("classes", classes), channels, image_size, width, dropout)


def vit(
    *,
    classes: int | None = None,
    channels: int = 1,
    image_size: int = 28,
    patch_size: int = 7,
    width: int = 128,
    layers: int = 6,
    heads: int = 4,
    mlp_width: int | None = None,
    dropout: float = 0.1,
) -> nn.Module:
    """A small vision transformer: `bigtrain.models.vision_transformer.VisionTransformer`.

    Args:
        classes: by default the data's.
        channels: 1: grey; 3: colours.
        image_size: height and width in pixels.
        patch_size: pixels; it divides image_size.
        width: of the residual stream.
        layers: blocks.
        heads: of attention; they divide the width.
        mlp_width: inside the MLP; by default 4 x width.
        dropout: of patches and both branches of a block, while training.

    Raises:
        UserError: a shape that cannot be.
    """
    from bigtrain.models.build import whole_modules
    from bigtrain.models.checks import given
    from bigtrain.models.vision_transformer import VisionTransformer

    with whole_modules():
        return VisionTransformer(
            given("classes", classes), channels, image_size, patch_size, width, layers, heads, mlp_width, dropout
        )
