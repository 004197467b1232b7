"""The ways to tune: what moves when, how fast, and what is left of it in an export."""

import copy
import math

import pytest
import torch

from finetune import Adapters, Classify, Frozen, Full, LinearThenFull, LoRA, Sawtooth, Segment
from finetune.lora import LoRALinear
from finetune.tuning import as_tuning
from ssl_med.backbones import TimmBackbone, UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.exports import export, load_task
from ssl_med.optim import parameter_groups
from ssl_med.recipe import build, recipe
from ssl_med.schedules import warmup_cosine
from ssl_med.tasks import SupervisedTask, Task

PRESETS = ["full", "frozen", "linear_then_full", "sawtooth", "lora", "adapters"]


def classify(tiny_vit, **changes) -> Classify:
    torch.manual_seed(0)
    return Classify(tiny_vit(2), 2, [8, 8], **changes)


def train(task: Classify, batch: dict, start: float = 0.0, end: float = 1.0, count: int = 4) -> None:
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 0.1)
    for number in range(count):
        optimiser.zero_grad()
        task(batch, start + (end - start) * number / count)["loss"].backward()
        optimiser.step()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_class_with_its_defaults_in_a_config(tiny_vit, name) -> None:
    task = classify(tiny_vit, tuning=name)
    twin = build(recipe(task), Task)
    assert isinstance(twin, Classify)
    assert type(twin._how) is type(as_tuning(name))
    explicit = classify(tiny_vit, tuning=as_tuning(name))
    plan = recipe(explicit)
    assert plan["init_args"]["tuning"]["class_path"].startswith("finetune.")
    assert recipe(build(plan, Task)) == plan


def test_unknown_preset_is_refused(tiny_vit) -> None:
    plan = recipe(classify(tiny_vit))
    plan["init_args"]["tuning"] = "half"
    with pytest.raises(UserError, match="tuning"):
        build(plan, Task)


@pytest.mark.parametrize("progress", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_full_is_what_every_task_does(progress) -> None:
    assert Full().rates(progress, 0.1) == (warmup_cosine(progress, 0.1),) * 2
    assert Frozen().rates(progress, 0.1) == (0.0, warmup_cosine(progress, 0.1))


def test_linear_then_full_has_two_warm_ups() -> None:
    tuning = LinearThenFull(share=0.25)
    assert [tuning.rates(p, 0.1) for p in (0.0, 0.025)] == [(0, 0), pytest.approx((0, 1))]
    assert tuning.rates(0.25 - 1e-9, 0.1) == pytest.approx((0, 0), abs=1e-6)
    assert tuning.rates(0.25, 0.1) == pytest.approx((0, 0))
    assert tuning.rates(0.25 + 0.075, 0.1) == pytest.approx((1, 1))
    assert tuning.rates(1.0, 0.1) == pytest.approx((0, 0), abs=1e-12)


def test_sawtooth_has_two_teeth() -> None:
    tuning = Sawtooth(ramp=0.1)
    points = {0.0: (0, 0), 0.05: (0, 0.5), 0.0999999: (0, 1), 0.1: (0, 0), 0.15: (0.5, 0.5), 0.2: (1, 1), 1.0: (0, 0)}
    for progress, expected in points.items():
        assert tuning.rates(progress, 0.7) == pytest.approx(expected, abs=1e-5), progress
    assert tuning.rates(0.6, 0.0)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("tuning", [LinearThenFull(0.4), Sawtooth(0.2)], ids=["linear_then_full", "sawtooth"])
def test_random_weights_get_the_same_rates_without_standing_still(tuning) -> None:
    other = tuning.from_scratch()
    for progress in (0.0, 0.1, 0.15, 0.3, 0.5, 0.9):
        rate = tuning.rates(progress, 0.05).head
        assert other.rates(progress, 0.05) == (rate, rate)
        assert other.trains(progress)


def test_settings_of_the_scratch_arm() -> None:
    assert Classify.from_scratch({"classes": 2}) == {"classes": 2}
    assert Classify.from_scratch({"tuning": "frozen"}) == {"tuning": "frozen"}
    assert Segment.from_scratch({"tuning": "lora"})["tuning"]["class_path"] == "finetune.Full"
    plan = {"class_path": "finetune.Sawtooth", "init_args": {"ramp": 0.2}}
    found = Segment.from_scratch({"tuning": plan})["tuning"]
    assert found == {"class_path": "finetune.Sawtooth", "init_args": {"ramp": 0.2, "freeze": False}}


@pytest.mark.parametrize("tuning", [LinearThenFull(0.5), Sawtooth(0.5)], ids=["linear_then_full", "sawtooth"])
def test_the_backbone_holds_still_at_first_and_costs_no_backward(make_batch, tuning) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("resnet10t", in_channels=1)  # has batch statistics
    task, batch = Classify(backbone, 2, [32, 32], tuning=tuning).train(), make_batch((32, 32))
    before = copy.deepcopy(backbone.state_dict())
    train(task, batch, 0.0, 0.45)
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.training
    train(task, batch, 0.5, 1.0)
    assert backbone.training
    assert all(p.grad is not None for p in backbone.parameters())
    assert not any(torch.equal(p, before[name]) for name, p in backbone.named_parameters() if p.ndim > 1)


def test_a_resumed_run_is_in_the_phase_of_its_step(make_batch, tiny_vit) -> None:
    batch = make_batch((8, 8))
    task = classify(tiny_vit, tuning=LinearThenFull(0.5)).train()
    task(batch, 0.7)["loss"].backward()
    assert task.backbone.training
    assert task.eval().backbone.training is False
    assert task.train().backbone.training


def test_groups_know_trunk_and_head(tiny_vit) -> None:
    task = classify(tiny_vit)
    inside = {id(p) for p in task.backbone.parameters()}
    for group in parameter_groups(task, task.layers(), 0.05, 0.75):
        assert all((id(p) in inside) == group["trunk"] for p in group["params"])


@pytest.mark.parametrize("name", ["lora", "adapters"])
def test_added_parts_change_nothing_before_training_and_only_they_move(tiny_vit, make_batch, name) -> None:
    batch, plain = make_batch((8, 8)), tiny_vit(2).eval()
    task = classify(tiny_vit, tuning=name)
    with torch.no_grad():
        assert torch.equal(task.backbone(batch["image"]).pooled, plain(batch["image"]).pooled)
    before = copy.deepcopy(task.state_dict())
    train(task, batch)
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {n for n, p in task.named_parameters() if p.requires_grad}
    assert any(".up" in name for name in moved)
    share = sum(p.numel() for p in task.backbone.parameters() if p.requires_grad)
    assert 0 < share < 0.5 * sum(p.numel() for p in plain.parameters())
    assert all(not group["trunk"] for group in parameter_groups(task, task.layers(), 0.05, 0.5))


def test_lora_is_the_formula_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 10))
    ours = LoRALinear(copy.deepcopy(base[0]), rank=3, alpha=12.0)
    theirs = get_peft_model(base, LoraConfig(r=3, lora_alpha=12, target_modules=["0"]))
    with torch.no_grad():
        ours.up.normal_()
        theirs.base_model.model[0].lora_A["default"].weight.copy_(ours.down)
        theirs.base_model.model[0].lora_B["default"].weight.copy_(ours.up)
    x = torch.randn(5, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(copy.deepcopy(ours).merged()(x), theirs.merge_and_unload()(x))


def test_low_rank_changes_are_merged_at_export(tiny_vit, make_batch, tmp_path) -> None:
    task, batch = classify(tiny_vit, tuning=LoRA(rank=2)), make_batch((8, 8))
    train(task, batch)
    merged = task.merged().eval()
    assert not any(isinstance(m, LoRALinear) for m in merged.modules())
    assert recipe(merged)["init_args"]["tuning"] == "full"
    assert [name for name, _ in merged.backbone.named_parameters()] == [n for n, _ in tiny_vit(2).named_parameters()]
    assert any(isinstance(m, LoRALinear) for m in task.modules())  # the training may go on
    export({"task": merged}, tmp_path, {})
    with torch.no_grad():
        expected = task.eval().predict(batch)
        torch.testing.assert_close(load_task(str(tmp_path)).predict(batch), expected)
        assert not torch.allclose(expected, torch.full_like(expected, 0.5))


@pytest.mark.parametrize("name", ["full", "frozen", "adapters", "sawtooth"])
def test_other_tunings_are_exported_as_they_are(tiny_vit, make_batch, tmp_path, name) -> None:
    task, batch = classify(tiny_vit, tuning=name), make_batch((8, 8))
    train(task, batch, 0.6)
    assert task.merged() is task
    export({"task": task.merged()}, tmp_path, {})
    loaded: SupervisedTask = load_task(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded.predict(batch), task.eval().predict(batch))


@pytest.mark.parametrize("tuning", [LoRA(), Adapters()], ids=["lora", "adapters"])
def test_backbones_without_attention_are_refused_with_a_way_on(tuning) -> None:
    with pytest.raises(UserError, match=r"UNetEncoder has no attention.*full or sawtooth"):
        Classify(UNetEncoder(2, 1, (4, 8), 1), 2, [8, 8], tuning=tuning)


def test_lora_reaches_timm_and_3d() -> None:
    backbone = TimmBackbone("vit_tiny_patch16_224", in_channels=1, image_size=32)
    Classify(backbone, 2, [32, 32], tuning="lora")
    assert sum(isinstance(m, LoRALinear) for m in backbone.modules()) == 24
    volume = ViT(3, 4, embed_dim=24, depth=2, heads=2, taps=2)
    task = Segment(volume, 2, [8, 8, 8], [4, 8], tuning="lora")
    assert math.prod(task.logits(torch.zeros(1, 1, 8, 8, 8)).shape) == 2 * 512


def test_frozen_is_one_thing_under_two_names(tiny_vit) -> None:
    for task in (classify(tiny_vit, frozen=True, tuning="sawtooth"), classify(tiny_vit, tuning="frozen")):
        assert not any(p.requires_grad for p in task.backbone.parameters())
        assert task.rates(0.5, 0.0).trunk == 0
