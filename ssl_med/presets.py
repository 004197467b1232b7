"""Sizes of the vision transformers and what they cost on paper, free of torch: no model need be built to be counted."""

import math
from typing import NamedTuple, TypedDict

RESERVE = 0.15  # of the memory, for fragments, temporary buffers and copies of the weights in bf16
GPU_HOURS_PER_STOP = 50_700  # 419 unplanned stops in 54 days on 16,384 GPUs (Llama 3, arXiv 2407.21783, table 5)


class Preset(TypedDict):
    """One transformer; the MLP's hidden width is ``int(embed_dim * mlp_ratio)``."""

    embed_dim: int
    depth: int
    heads: int
    mlp_ratio: float


PRESETS: dict[str, Preset] = {
    # tiny, small: DeiT (arXiv 2012.12877); base to huge: ViT (arXiv 2010.11929, table 1)
    "vit_tiny": {"embed_dim": 192, "depth": 12, "heads": 3, "mlp_ratio": 4.0},
    "vit_small": {"embed_dim": 384, "depth": 12, "heads": 6, "mlp_ratio": 4.0},
    "vit_base": {"embed_dim": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
    "vit_large": {"embed_dim": 1024, "depth": 24, "heads": 16, "mlp_ratio": 4.0},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "heads": 16, "mlp_ratio": 4.0},
    # Zhai et al., arXiv 2106.04560, table 2, as in timm: hidden width 6144
    "vit_giant": {"embed_dim": 1408, "depth": 40, "heads": 16, "mlp_ratio": 48 / 11},
}


class Stack(NamedTuple):
    """Transformer blocks: width of the tokens d, number of blocks, and the MLPs' hidden width h over the width."""

    width: int
    depth: int
    mlp_ratio: float = 4.0

    @property
    def hidden(self) -> int:
        """Hidden width of the MLPs."""
        return int(self.width * self.mlp_ratio)

    def parameters(self) -> int:
        """Weights and biases of qkv, projection, MLP and two norms: 12 d^2 + 13 d a block at an MLP ratio of 4."""
        d, h = self.width, self.hidden
        return self.depth * (4 * d * d + 4 * d + 2 * d * h + h + d + 4 * d)

    def flops(self, tokens: int) -> int:
        """One forward pass over N tokens: (8 d^2 + 4 d h) N for the weights, 4 N^2 d for attention, in every block.

        24 N d^2 + 4 N^2 d at an MLP ratio of 4 (Kaplan et al., arXiv 2001.08361, table 1; a multiply-add counts 2).
        """
        d, h = self.width, self.hidden
        return self.depth * ((8 * d * d + 4 * d * h) * tokens + 4 * tokens * tokens * d)

    def activation_bytes(self, tokens: int) -> float:
        """What the blocks keep for backward in bf16 with fused attention: 32.1 N d bytes a block at an MLP ratio of 4.

        Eight bf16 tensors of N d (inputs and outputs of both norms, q, k, v, the output of attention) and two of N h
        (before and after the activation) make 16 + 4 h / d; the row statistics add 0.1. Measured with saved-tensor
        hooks; Korthikanti et al. (arXiv 2205.05198) count 34 with dropout. A residual stream in fp32 adds 4.
        """
        return self.depth * (16.1 * self.width + 4 * self.hidden) * tokens

    def checkpointed_bytes(self, tokens: int) -> float:
        """With every block recomputed: the bf16 input of each, and all of the one at work (arXiv 1604.06174)."""
        return self.depth * 2 * self.width * tokens + self._replace(depth=1).activation_bytes(tokens)


def linear_parameters(inputs: int, outputs: int) -> int:
    """Weights and bias of a linear layer; the patch embedding is one (patchify + Linear)."""
    return (inputs + 1) * outputs


def linear_flops(inputs: int, outputs: int, tokens: int) -> int:
    """One forward pass of a linear layer."""
    return 2 * inputs * outputs * tokens


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Tokens the encoder of MAE sees, as :func:`ssl_med.ops.masking.visible_count` without torch."""
    return max(1, int(tokens * (1 - mask_ratio)))


def training_flops(student: float, teacher: float = 0.0) -> float:
    """Backward costs twice the forward pass (arXiv 2001.08361, section 2.1); a teacher runs forward only."""
    return 3 * student + teacher


def state_bytes(parameters: int, teacher: bool) -> int:
    """fp32 weights 4, gradients 4, Adam's moments 8, and an EMA teacher 4 bytes per parameter."""
    return (20 if teacher else 16) * parameters


def checkpoint_bytes(parameters: int, teacher: bool) -> int:
    """The state without the gradients."""
    return (16 if teacher else 12) * parameters


def batch_that_fits(memory: float, state: float, activations: float) -> int:
    """Samples beside the state while 15 % of the memory stay free; 0 when not even one fits."""
    return max(0, int(((1 - RESERVE) * memory - state) / activations))


def checkpoint_interval(cost: float, gpus: int) -> float:
    """Seconds between checkpoints that lose the least time: sqrt(2 x cost x mean time between stops).

    Young, CACM 17(9), 1974. ``cost`` is the seconds one checkpoint takes.
    """
    return math.sqrt(2 * cost * GPU_HOURS_PER_STOP * 3600 / gpus)
