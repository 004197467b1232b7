import json
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ssl_med.callbacks.journal import JsonLines
from ssl_med.learner import Learner
from ssl_med.optim import adamw, parameter_groups
from ssl_med.tasks import Task, VICReg


def setting(groups: list[dict], parameter: nn.Parameter) -> tuple[float, float]:
    """(rate factor, decay) of a parameter, which must stand in exactly one group."""
    found = [g for g in groups for p in g["params"] if p is parameter]
    assert len(found) == 1
    return found[0]["scale"], found[0]["weight_decay"]


def test_layer_decay_by_hand() -> None:
    layers, head = [nn.Linear(2, 2) for _ in range(3)], nn.Linear(2, 2)
    model = nn.ModuleList([*layers, head])
    groups = parameter_groups(model, [list(layer.parameters()) for layer in layers], 0.1, 0.5)
    assert [setting(groups, layer.weight) for layer in layers] == [(0.125, 0.1), (0.25, 0.1), (0.5, 0.1)]
    assert [setting(groups, layer.bias) for layer in layers] == [(0.125, 0.0), (0.25, 0.0), (0.5, 0.0)]
    assert setting(groups, head.weight) == (1.0, 0.1)


def test_of_a_transformer_only_matrices_are_decayed(tiny_vit) -> None:
    vit = tiny_vit(2, positions="learned", grid=(2, 2), registers=2, layer_scale=0.1)
    groups = parameter_groups(vit, vit.layers(), 0.05, 0.75)
    for name, parameter in vit.named_parameters():
        matrix = parameter.ndim == 2 and name.endswith("weight")
        assert setting(groups, parameter)[1] == (0.05 if matrix else 0.0), name
    # embedding and two blocks: three layers below the head, to which the final norm belongs
    assert setting(groups, vit.cls_token)[0] == pytest.approx(0.75**3)
    assert setting(groups, vit.blocks[0].attn.qkv.weight)[0] == pytest.approx(0.75**2)
    assert setting(groups, vit.blocks[1].attn.qkv.weight)[0] == pytest.approx(0.75)
    assert setting(groups, vit.norm.weight)[0] == 1
    assert all(group["trunk"] for group in groups)


def test_layer_decay_is_that_of_timm_but_for_the_final_norm(tiny_vit) -> None:
    """timm counts the final norm to the last block; BEiT, MAE and we count it to the head."""
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_layer_decay

    settings = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 2}
    theirs = VisionTransformer(**settings, num_classes=3, class_token=True)
    names = {id(p): name for name, p in theirs.named_parameters()}
    wanted = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(theirs, 0.05, ("pos_embed", "cls_token"), layer_decay=0.75)
        for p in group["params"]
    }
    ours = nn.ModuleDict({"backbone": tiny_vit(2, positions="learned", grid=(2, 2)), "head": nn.Linear(24, 3)})
    groups = parameter_groups(ours, ours["backbone"].layers(), 0.05, 0.75)
    found = {name.removeprefix("backbone."): setting(groups, p) for name, p in ours.named_parameters()}
    last = {"norm.weight": (1.0, 0.0), "norm.bias": (1.0, 0.0)}
    assert found == {name: pytest.approx(values) for name, values in {**wanted, **last}.items()}


def test_each_trainable_parameter_stands_in_one_group(tiny_vit) -> None:
    vit = tiny_vit(3)
    vit.patch_embed.requires_grad_(False)
    groups = parameter_groups(vit, vit.layers(), 0.05, 0.75)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in vit.parameters() if p.requires_grad)
    assert len({(g["scale"], g["weight_decay"]) for g in groups}) == len(groups)


@pytest.mark.parametrize(("precision", "fused"), [("16-mixed", False), ("bf16-mixed", True), ("32-true", True)])
def test_float16_is_not_fused_so_that_clipping_sees_unscaled_gradients(tiny_vit, precision: str, fused: bool) -> None:
    learner = Learner(VICReg(tiny_vit(2), out_dim=8))
    learner.trainer = Mock(spec=pl.Trainer, precision=precision)
    assert learner.configure_optimizers().defaults["fused"] is fused
    assert adamw(parameter_groups(nn.Linear(2, 2), [], 0.1), 0.01, (0.9, 0.95), fused=False).defaults["fused"] is False


def test_fused_adamw_makes_the_step_of_plain_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    fused = adamw(parameter_groups(ours, [], 0.1), 0.01, (0.9, 0.95))
    decay = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(decay, lr=0.01, betas=(0.9, 0.95), foreach=False)
    for model, optimiser in ((ours, fused), (theirs, plain)):
        for number in range(3):
            optimiser.zero_grad()
            model(torch.full((2, 4), number + 1.0)).square().sum().backward()
            optimiser.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


# ---- a training


class Slopes(Task):
    """Two matrices and a vector whose gradients are known: 3 and 0.03 in four numbers each, 0.1 in one."""

    def __init__(self) -> None:
        super().__init__()
        self.steep, self.flat = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.vector = nn.Parameter(torch.ones(1))

    def forward(self, batch: dict, progress: float) -> dict:
        """A plane."""
        return {"loss": 3.0 * self.steep.sum() + 0.03 * self.flat.sum() + 0.1 * self.vector.sum()}


class Look(pl.Callback):
    """What every step has left in the optimiser and in the gradients."""

    def __init__(self) -> None:
        self.decay: list[list[float]] = []
        self.norms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Learner, *args: object) -> None:
        """After a step."""
        self.decay.append([group["weight_decay"] for group in trainer.optimizers[0].param_groups])
        self.norms.append({name: float(p.grad.norm()) for name, p in pl_module.task.named_parameters()})


def run(folder: Path, steps: int, log_every: int = 1, **settings: object) -> tuple[Look, list[dict]]:
    """Train the plane; what was seen, and the lines of the log."""
    look = Look()
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[look],
        logger=JsonLines(folder),
        log_every_n_steps=log_every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader([{"image": torch.zeros(1)} for _ in range(steps)], batch_size=1)
    trainer.fit(Learner(Slopes(), **settings), batches)
    return look, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


WHOLE = math.sqrt(4 * 3.0**2 + 4 * 0.03**2 + 0.1**2)
"""Norm of all gradients of the plane together."""


def quiet(test):
    """Advice of Lightning that does not apply; ``fit`` silences the same."""
    for text in (".*does not have many workers", ".*isinstance.treespec"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test


@quiet
@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}, {"clip": 1.0, "clip_each": True}], ids=str)
def test_the_gradient_norm_is_in_every_line_of_the_log(tmp_path: Path, settings: dict) -> None:
    _, lines = run(tmp_path, 4, 2, **settings)
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["grad_norm"] for line in lines] == pytest.approx([WHOLE] * 2)  # before clipping


@quiet
def test_without_clipping_gradients_stay_and_unwritten_steps_take_no_norm(tmp_path: Path, monkeypatch) -> None:
    taken: list[int] = []
    norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *args: (taken.append(1), norm(*args))[1])
    look, _ = run(tmp_path, 6, 3)
    assert len(taken) == 2
    assert look.norms[-1] == pytest.approx({"steep": 6.0, "flat": 0.06, "vector": 0.1})


@quiet
def test_dino_clips_tensors_apart_and_its_decay_rises(tmp_path: Path) -> None:
    look, _ = run(tmp_path, 8, clip=3.0, clip_each=True, weight_decay=0.04, weight_decay_end=0.4)
    for step in (0, 2, 4, 6, 7):
        expected = 0.4 - 0.36 * (1 + math.cos(math.pi * step / 8)) / 2
        assert look.decay[step] == pytest.approx([expected, 0.0], abs=1e-7)  # matrices; the vector has none
    assert look.norms[-1] == pytest.approx({"steep": 3.0, "flat": 0.06, "vector": 0.1}, rel=1e-5)


@quiet
def test_clipping_together_shrinks_all(tmp_path: Path) -> None:
    look, _ = run(tmp_path, 1, clip=3.0, weight_decay=0.04)
    shares = {name: norm * 3.0 / WHOLE for name, norm in {"steep": 6.0, "flat": 0.06, "vector": 0.1}.items()}
    assert look.norms[-1] == pytest.approx(shares, rel=1e-5)
    assert look.decay[-1] == [0.04, 0.0]
