import math

import pytest
import torch

from ssl_med.backbones.block import Attention
from ssl_med.ops import attention
from ssl_med.ops.attention import attend


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Arithmetic of eq. 1 of arXiv 1706.03762, one query at a time, in double precision."""
    result = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for n in range(q.shape[2]):
                weight = [math.exp(float(q[b, h, n].double() @ key.double()) / q.shape[-1] ** 0.5) for key in k[b, h]]
                for w, value in zip(weight, v[b, h], strict=True):
                    result[b, h, n] += w / sum(weight) * value.double()
    return result


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("short", [1024, 1])
def test_attend_is_softmax_attention(
    dtype: torch.dtype, tolerance: float, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SHORT", short)  # both ways of computing it
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (4, 6, 6))
    assert torch.allclose(attend(q, k, v).double(), explicit(q, k, v), atol=tolerance)


def test_attention_is_torchs_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        ours.qkv.weight.copy_(theirs.in_proj_weight)
        ours.qkv.bias.copy_(theirs.in_proj_bias.normal_())
        ours.proj.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(2, 5, 12)
    assert torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-5)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 is not divisible by 3 heads"):
        Attention(10, 3)
