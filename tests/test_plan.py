"""``ssl-med plan``: its formulas against timm, torch's flop counter and saved tensors, and the measured tables."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch.utils.flop_counter import FlopCounterMode

from ssl_med.errors import UserError
from ssl_med.ops import masking
from ssl_med.presets import (
    PRESETS,
    Stack,
    batch_that_fits,
    checkpoint_bytes,
    checkpoint_interval,
    linear_flops,
    linear_parameters,
    state_bytes,
    training_flops,
    visible_count,
)
from ssl_med.verbs import plan as plan_module
from ssl_med.verbs.plan import plan
from ssl_med.verbs.plan_model import Model, token_count

LARGE = Stack(1024, 24)


def stack_of(size):
    preset = PRESETS[size]
    return Stack(preset["embed_dim"], preset["depth"], preset["mlp_ratio"])


def test_no_torch_is_imported():
    code = "import ssl_med.verbs.plan as p, sys; p.plan(); assert 'torch' not in sys.modules"
    root = Path(plan_module.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


# --- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "name", "patch"),
    [
        ("vit_tiny", "vit_tiny_patch16_224", 16),
        ("vit_small", "vit_small_patch16_224", 16),
        ("vit_base", "vit_base_patch16_224", 16),
        ("vit_large", "vit_large_patch16_224", 16),
        ("vit_huge", "vit_huge_patch14_224", 14),
        ("vit_giant", "vit_giant_patch14_224", 14),
    ],
)
def test_encoders_have_the_parameters_of_timms(size, name, patch):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, pos_embed="none")
    stack = stack_of(size)
    assert stack.parameters() == sum(p.numel() for p in model.blocks.parameters())
    assert model.blocks[0].attn.num_heads == PRESETS[size]["heads"]
    ours = Model(stack, None, (patch, patch), channels=3, class_token=True)
    assert ours.encoder_parameters() == sum(p.numel() for p in model.parameters())


def test_the_decoder_is_counted_layer_by_layer():
    decoder = Stack(48, 2)
    model = Model(Stack(64, 3), decoder, (2, 2, 4), channels=2, class_token=False)
    layers = [torch.nn.Linear(64, 48), *[Block(48, 4, qkv_bias=True) for _ in range(2)], torch.nn.LayerNorm(48)]
    layers += [torch.nn.Linear(48, 2 * 2 * 4 * 2)]
    mask_token = 48
    assert model.decoder_parameters() == mask_token + sum(p.numel() for layer in layers for p in layer.parameters())


def test_the_librarys_own_mae_has_the_parameters_that_are_planned():
    from ssl_med.backbones import ViT
    from ssl_med.tasks import MAE

    task = MAE(ViT(spatial_dims=3, patch=(4, 8, 8), size="tiny", depth=2), decoder_dim=64, decoder_depth=1)
    model = Model(Stack(192, 2), Stack(64, 1), (4, 8, 8), channels=1, class_token=True)
    assert model.encoder_parameters() == sum(p.numel() for p in task.backbone.parameters())
    assert model.decoder_parameters() == sum(p.numel() for p in task.decoder.parameters())


# --- FLOPs ----------------------------------------------------------------------------------------------------------


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(("tokens", "width", "mlp_ratio"), [(50, 64, 4.0), (200, 32, 2.0)])
def test_flops_of_a_stack_are_those_torch_counts(tokens, width, mlp_ratio):
    stack = Stack(width, 3, mlp_ratio)
    blocks = torch.nn.Sequential(*[Block(width, 4, mlp_ratio=mlp_ratio) for _ in range(3)])
    for block in blocks:
        block.attn.fused_attn = False  # the counter sees both products of attention, backward too
    x = torch.randn(1, tokens, width, requires_grad=True)
    assert counted(lambda: blocks(x)) == stack.flops(tokens)
    training = counted(lambda: blocks(x).sum().backward())
    assert training == pytest.approx(training_flops(stack.flops(tokens)), rel=0.05)


def test_flops_of_a_masked_model_are_those_torch_counts():
    encoder, decoder = Stack(48, 2), Stack(32, 2)
    model = Model(encoder, decoder, (4, 4), channels=1, class_token=True)
    embed, across, predict = torch.nn.Linear(16, 48), torch.nn.Linear(48, 32), torch.nn.Linear(32, 16)
    deep, shallow = [Block(48, 4) for _ in range(2)], [Block(32, 4) for _ in range(2)]
    patches, tokens, visible = torch.randn(1, 40, 16), 40, 10

    def forward():
        x = embed(patches)[:, : visible + 1]  # the class token takes the place of one more
        for block in deep:
            x = block(x)
        x = torch.cat([across(x), torch.zeros(1, tokens - visible, 32)], 1)
        for block in shallow:
            x = block(x)
        return predict(x[:, 1 + visible :])  # only what was hidden

    assert counted(forward) == model.flops(tokens, visible)


def test_a_linear_layer():
    layer = torch.nn.Linear(5, 7)
    assert linear_parameters(5, 7) == sum(p.numel() for p in layer.parameters())
    assert linear_flops(5, 7, 11) == counted(lambda: layer(torch.randn(11, 5)))


@pytest.mark.parametrize(
    ("crop", "patch", "tokens", "gflop"),
    [
        (96, 16, 216, {"vit_small": 10, "vit_base": 38, "vit_large": 135, "vit_huge": 279}),
        (96, 8, 1728, {"vit_small": 128, "vit_base": 404, "vit_large": 1338, "vit_huge": 2664}),
        (128, 16, 512, {"vit_base": 97, "vit_large": 335, "vit_huge": 687}),
        (128, 8, 4096, {"vit_small": 483, "vit_base": 1314, "vit_large": 4123, "vit_huge": 7903}),
        (160, 8, 8000, {"vit_small": 1519, "vit_base": 3718, "vit_large": 11123, "vit_huge": 20552}),
    ],
)
def test_the_table_of_tokens_and_forward_flops(crop, patch, tokens, gflop):
    assert token_count((crop,) * 3, (patch,) * 3) == tokens
    for size, expected in gflop.items():
        assert stack_of(size).flops(tokens) / 1e9 == pytest.approx(expected, rel=0.02)


def test_attention_is_22_percent_of_vit_large_at_1728_tokens():
    square = 4 * 1728**2 * 1024 * 24
    assert square / LARGE.flops(1728) == pytest.approx(0.22, abs=0.005)


# --- bytes ----------------------------------------------------------------------------------------------------------


def kept_bytes(block, x):
    """Bytes of the distinct storages that autograd keeps under bf16 autocast, weights and their copies left out."""
    weights, kept = {tuple(p.shape) for p in block.parameters()}, {}

    def pack(tensor):
        if tuple(tensor.shape) not in weights and tuple(reversed(tensor.shape)) not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        block(x)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("mlp_ratio", [4.0, 2.0])
@pytest.mark.parametrize(("tokens", "width"), [(216, 192), (500, 128)])
def test_activations_are_those_autograd_keeps(tokens, width, mlp_ratio):
    """The CPU's fused attention keeps what the GPU's does (q, k, v, output, one sum per row), so the counts compare."""
    block, x = Block(width, 2, mlp_ratio=mlp_ratio, qkv_bias=True), torch.randn(1, tokens, width, requires_grad=True)
    predicted = Stack(width, 1, mlp_ratio).activation_bytes(tokens)
    assert kept_bytes(block, x.bfloat16()) == pytest.approx(predicted, rel=0.01)
    residual_in_fp32 = 4 * tokens * width
    assert kept_bytes(block, x) == pytest.approx(predicted + residual_in_fp32, rel=0.01)


def test_activations_are_32_bytes_per_token_and_width():
    assert LARGE.activation_bytes(216) == pytest.approx(32.1 * 216 * 1024 * 24)


def test_checkpointing_keeps_one_tensor_a_block_and_one_block():
    assert LARGE.checkpointed_bytes(1000) == pytest.approx(24 * 2 * 1000 * 1024 + 32.1 * 1000 * 1024)


def test_state_and_checkpoint_are_those_of_adam():
    layer = torch.nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(2, 30)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in (state["exp_avg"], state["exp_avg_sq"])]
    weights, gradients = list(layer.parameters()), [p.grad for p in layer.parameters()]

    def size(tensors):
        return sum(t.numel() * t.element_size() for t in tensors)

    number = linear_parameters(30, 20)
    assert state_bytes(number, teacher=False) == size(weights) + size(gradients) + size(moments)
    assert state_bytes(number, teacher=True) == 2 * size(weights) + size(gradients) + size(moments)
    assert checkpoint_bytes(number, teacher=True) == 2 * size(weights) + size(moments)
    assert checkpoint_bytes(number, teacher=False) == size(weights) + size(moments)


def test_the_batch_leaves_15_percent_free_and_is_never_negative():
    assert batch_that_fits(100, 25, 10) == 6
    assert batch_that_fits(100, 90, 10) == 0


def test_visible_tokens_are_those_of_the_masking():
    for tokens in (1, 7, 216, 1000):
        for ratio in (0.0, 0.4, 0.75, 0.9, 0.99):
            assert visible_count(tokens, ratio) == masking.visible_count(tokens, ratio)


# --- Young's rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gpus", "minutes"), [(8, 252), (64, 89), (256, 45), (1024, 22)])
def test_checkpoint_intervals_of_the_table(gpus, minutes):
    assert checkpoint_interval(5.0, gpus) / 60 == pytest.approx(minutes, rel=0.02)


def test_youngs_interval_loses_the_least_time():
    cost, gpus = 5.0, 256
    mean_time = 50_700 * 3600 / gpus

    def lost(interval):
        return cost / interval + interval / 2 / mean_time

    best = min((math.exp(step / 100) for step in range(2000)), key=lost)
    assert checkpoint_interval(cost, gpus) == pytest.approx(best, rel=0.01)


# --- the verb -------------------------------------------------------------------------------------------------------


def test_mae_of_vit_large_at_96_with_patch_8():
    """Platform survey: 1.25 TF, 238 samples/s, 422 MB/s decoded, 1.4 GB/s from storage for 8 GPUs, 15 h for 1e8."""
    got = plan(size="vit_large", patch=8, class_token=False, gpus=8, samples=1e8, volumes=10**6)
    assert (got["tokens"], got["visible_tokens"]) == (1728, 432)
    assert got["flops_per_sample"] / 1e12 == pytest.approx(1.25, rel=0.02)
    assert got["samples_per_second_per_gpu"] == pytest.approx(238, rel=0.02)
    assert got["storage_decoded_gb_s"] / 8 == pytest.approx(0.422, rel=0.02)
    assert got["storage_compressed_gb_s"] == pytest.approx(1.4, rel=0.02)
    assert got["hours"] == pytest.approx(15, rel=0.04)
    assert got["batch"] == pytest.approx(100, rel=0.15)
    assert got["batch_checkpointed"] > 400
    assert got["store_gb"] == pytest.approx(11_000, rel=0.02)
    assert got["conversion_core_hours"] == pytest.approx(135, rel=0.02)


def test_dino_of_vit_large_with_patch_8():
    """Platform survey: 14 TF, 21 samples/s, 89 MB/s decoded, a batch of about 14, state 6.1 GB."""
    got = plan(size="vit_large", task="dino", patch=8, class_token=False)
    assert got["flops_per_sample"] / 1e12 == pytest.approx(14, rel=0.02)
    assert got["samples_per_second_per_gpu"] == pytest.approx(21, rel=0.02)
    assert got["storage_decoded_gb_s"] == pytest.approx(0.089, rel=0.15)
    assert got["batch"] == pytest.approx(14, abs=1)
    assert got["state_bytes"] / 1e9 == pytest.approx(6.1, rel=0.02)
    assert got["checkpoint_gb"] == pytest.approx(4.8, rel=0.02)
    assert got["parameters_decoder"] == 0
    assert got["visible_tokens"] == got["tokens"]


def test_two_views_cost_twice_and_a_teacher_a_third_more():
    one = plan(mask_ratio=0.0, task="simclr")
    both = plan(task="byol")
    assert both["flops_per_sample"] == pytest.approx(one["flops_per_sample"] * 4 / 3)
    assert both["activation_bytes_per_sample"] == one["activation_bytes_per_sample"]
    assert both["state_bytes"] / one["state_bytes"] == pytest.approx(20 / 16)


def test_every_gpu_divides_the_hours_and_multiplies_the_reading():
    one, eight = plan(gpus=1), plan(gpus=8)
    assert eight["hours"] == pytest.approx(one["hours"] / 8)
    assert eight["storage_compressed_gb_s"] == pytest.approx(8 * one["storage_compressed_gb_s"])
    assert plan(crops_per_read=4)["storage_decoded_gb_s"] == pytest.approx(one["storage_decoded_gb_s"] / 4)


def test_images_and_anisotropic_patches():
    assert plan(spatial_dims=2, crop=224, channels=3, volume_shape=(224, 224))["tokens"] == 196
    assert plan(crop=(32, 96, 96), patch=(4, 16, 16))["tokens"] == 8 * 6 * 6


def test_every_number_is_printed(capsys):
    got = plan(size="vit_large", patch=8)
    printed, assumptions = capsys.readouterr().out.split("assumed:\n")
    assert len(printed.splitlines()) == len(got)
    for words in ("30% of 989 TFLOP/s", "1,000,000 samples", "2.4:1", "0.74 GB/s", "15%", "50,700 GPU-hours"):
        assert words in assumptions
    assert "1,728" in printed
    assert "303  million parameters" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop": (96, 100, 96)}, r"along axis y: 100 = 6 x 16 \+ 4"),
        ({"crop": (90, 224), "spatial_dims": 2}, "along axis y"),
        ({"crop": 8}, "choose a multiple of 16, e.g. 16"),
        ({"crop": 80, "task": "dino"}, r"made of crop \(80, 80, 80\).*along axis z: 40"),
        ({"crop": (96, 96)}, "spatial_dims=3"),
        ({"patch": 0}, "patch must be above 0"),
        ({"size": "vit_enormous"}, "vit_enormous.*vit_giant"),
        ({"task": "jigsaw"}, "jigsaw.*mae"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"gpus": 0}, "gpus must be above 0, got 0"),
        ({"spatial_dims": 1}, "spatial_dims"),
        ({"channels": 0}, "channels"),
        ({"volume_shape": (0, 10, 10)}, "volume_shape"),
        ({"batch": 0}, "batch must be above 0"),
        ({"link_gb_s": 0}, "link_gb_s must be above 0"),
        ({"measure": True}, "name one, such as mae_3d"),
        ({"measure": True, "config": "mae_3d", "size": "vit_tiny", "patch": 8}, "change size, patch there"),
        ({"measure": True, "config": "mae_3d", "scale": True}, "one at a time"),
        ({"measure_crop": 48}, "give measure too"),
    ],
)
def test_errors_say_what_and_where(arguments, words):
    with pytest.raises(UserError, match=words):
        plan(**arguments)


CONFIG = """
task:
  class_path: ssl_med.tasks.MAE
  init_args:
    mask_ratio: 0.6
    backbone: {class_path: ssl_med.backbones.ViT, init_args: {size: large, spatial_dims: 2, patch: 8, in_channels: 3}}
data: {crop: [128, 64]}
"""


def test_a_config_gives_the_model_the_task_and_the_crop(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    same = {"size": "vit_large", "spatial_dims": 2, "patch": 8, "channels": 3, "mask_ratio": 0.6, "crop": (128, 64)}
    assert plan(str(path)) == plan(**same)
    assert plan(str(path), size="vit_huge") == plan(**(same | {"size": "vit_huge"}))


def test_a_config_may_change_the_width_of_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG.replace("size: large", "size: tiny, embed_dim: 64, depth: 2"))
    blocks = plan(str(path))["parameters_encoder"] - (linear_parameters(8 * 8 * 3, 64) + 3 * 64)
    assert blocks == Stack(64, 2).parameters()


def test_a_config_that_plan_cannot_count_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG.replace("tasks.MAE", "tasks.Jigsaw"))
    with pytest.raises(UserError, match="names Jigsaw, ViT; plan knows"):
        plan(str(path))
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="names no class"):
        plan(str(path))
    with pytest.raises(UserError, match="neither a file nor"):
        plan("no_such_config")
