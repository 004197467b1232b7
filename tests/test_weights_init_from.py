"""Continued pretraining: begins with weights and says so, holds the trunk until heads have learned, resumes without."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from foreign_models import our_vit, shaken, timm_vit
from safetensors.torch import save_file
from stores import store_of, volumes

from ssl_med.backbones import ViT
from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.learner import Learner
from ssl_med.ops.random import sample_keys
from ssl_med.tasks import BYOL, DINO, IJEPA, MAE
from ssl_med.weights import Start, start_from

SMALL_MAE = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
SMALL_DINO = {"prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A timm ViT on disk."""
    path = tmp_path_factory.mktemp("foreign") / "vit.safetensors"
    save_file(timm_vit(channels=1).state_dict(), path)
    return path


@pytest.mark.parametrize("kind", [BYOL, DINO, IJEPA])
def test_teachers_are_copies_of_the_loaded_student(kind: type, foreign: Path) -> None:
    settings = SMALL_DINO if kind is DINO else {"hidden_dim": 16} if kind is BYOL else {}
    task = kind(our_vit(channels=1), **settings)
    started = start_from(task, Start(str(foreign)))
    teacher = {BYOL: lambda: task.teacher_backbone, DINO: lambda: task.teacher["backbone"], IJEPA: lambda: task.teacher}
    loaded = timm_vit(channels=1).norm.weight
    assert torch.equal(task.backbone.norm.weight, loaded)
    assert torch.equal(teacher[kind]().norm.weight, loaded)
    assert not started.heads
    assert any("copies of the new student" in note for note in started.audit.notes)


def test_the_same_task_is_taken_whole(tmp_path: Path) -> None:
    first, second = (DINO(our_vit(channels=1), **SMALL_DINO) for _ in range(2))
    shaken(first, 1)
    content = {"state_dict": {f"task.{name}": value for name, value in first.state_dict().items()}}
    torch.save(content, tmp_path / "a.ckpt")
    started = start_from(second, Start(str(tmp_path / "a.ckpt")))
    assert started.heads
    assert all(torch.equal(v, first.state_dict()[name]) for name, v in second.state_dict().items())
    third = DINO(our_vit(channels=1), **SMALL_DINO)
    head = {name: value.clone() for name, value in third.state_dict().items() if "backbone" not in name}
    assert not start_from(third, Start(str(tmp_path / "a.ckpt"), what="backbone")).heads
    assert all(torch.equal(value, third.state_dict()[name]) for name, value in head.items())
    other = DINO(our_vit(channels=1), **{**SMALL_DINO, "prototypes": 8})
    assert not start_from(other, Start(str(tmp_path / "a.ckpt"))).heads


class Stripes(torch.utils.data.Dataset):
    """Images of four classes: the direction of stripes, at a random phase, in noise."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.label = torch.arange(count) % 4
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        angle = self.label[:, None, None] * torch.pi / 4
        phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
        waves = torch.sin(0.8 * (x * angle.cos() + y * angle.sin()) + phase)
        self.image = (waves + 1.2 * torch.randn(count, 32, 32, generator=generator))[:, None]
        self.key = sample_keys(seed, torch.arange(count))

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, number: int) -> dict:
        return {"image": self.image[number], "key": self.key[number]}


def accuracy(vit: ViT) -> float:
    """Share of new images whose nearest neighbours among known ones are of their class, in per cent."""
    known, new = Stripes(96, 1), Stripes(200, 2)
    vit.eval()
    with torch.no_grad():
        features = [torch.nn.functional.normalize(vit(data.image).pooled, dim=1) for data in (known, new)]
    votes = known.label[(features[1] @ features[0].T).topk(5).indices]
    return 100.0 * float((votes.mode(1).values == new.label).float().mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small timm ViT that was taught the classes."""
    model, data = timm_vit(channels=1, num_classes=4, global_pool="avg", fc_norm=False), Stripes(96, 1)
    optimiser = torch.optim.AdamW(model.train().parameters(), 2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(data.image), data.label).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("trained") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def train(task: torch.nn.Module, steps: int, of: int, **settings) -> Learner:
    """The first steps of a longer training."""
    learner = Learner(task, lr=1e-3, warmup=0.1, **settings)
    loader = torch.utils.data.DataLoader(Stripes(512, 3), batch_size=16)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            trainer.should_stop = trainer.global_step >= steps

    trainer = pl.Trainer(
        max_steps=of, accelerator="cpu", enable_checkpointing=False, callbacks=[Stop()], max_epochs=-1, **quiet
    )
    trainer.fit(learner.train(), loader)
    assert trainer.global_step == steps
    return learner


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*")
@pytest.mark.parametrize("kind", [MAE, DINO])
def test_neighbours_do_not_fall_in_the_first_steps(kind: type, trained: Path) -> None:
    """12 of 200 steps, of which 10 (the default of ``--init_from``) teach the heads alone."""
    vit = our_vit(channels=1)
    task = kind(vit, **(SMALL_MAE if kind is MAE else SMALL_DINO))
    before_loading = accuracy(vit)
    start_from(task, Start(str(trained)))
    before = accuracy(vit)
    assert before > max(70, before_loading)
    train(task, 12, 200, freeze_backbone=0.05)
    assert accuracy(vit) >= before - 2
    assert not torch.equal(vit.blocks[0].attn.qkv.weight, our_vit(channels=1).blocks[0].attn.qkv.weight)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*")
def test_a_held_trunk_does_not_move_while_the_heads_do() -> None:
    task = MAE(our_vit(channels=1), **SMALL_MAE)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    learner = train(task, 4, 8, freeze_backbone=0.5, clip=1.0)
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)
    moments = [
        state["exp_avg"]
        for group in learner.optimizers().param_groups
        if group["trunk"]
        for state in (learner.optimizers().state[p] for p in group["params"])
    ]
    assert not any(moment.any() for moment in moments)
    task = MAE(our_vit(channels=1), **SMALL_MAE)
    train(task, 6, 8, freeze_backbone=0.5)
    assert not torch.equal(task.backbone.norm.weight, before["backbone.norm.weight"])


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no share of the steps"):
        Learner(MAE(our_vit(channels=1), **SMALL_MAE), freeze_backbone=1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    store_of(volumes(folder / "in", 6, masks=False), folder / "store")
    return folder / "store"


def command(store: Path, out: Path, *more: str, steps: int = 6) -> list[str]:
    quiet = ["--watch.probes", "0", "--watch.pictures", "0", "--watch.health", "0", "--data.num_workers", "0"]
    steps_of = ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu"]
    return ["pretrain", "smoke/mae_3d", "--data", str(store), "--out", str(out), *steps_of, *quiet, *more]


def backbone_file(folder: Path) -> Path:
    """A ViT of volumes as the smoke config has it, in timm's layout, in 2D: to be inflated."""
    model = timm_vit(channels=3, patch=4)
    state = {name: value for name, value in model.state_dict().items() if name != "pos_embed"}
    save_file(state, folder / "flat.safetensors")
    return folder / "flat.safetensors"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_pretrain_begins_with_weights_and_resumes_without_them(store: Path, tmp_path: Path, capsys) -> None:
    source, run = backbone_file(tmp_path), tmp_path / "run"
    arguments = command(store, run, "--init_from", str(source), "--init_from.inflate", "average")
    assert main([*arguments, "--watch.checkpoint_steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "weights of flat.safetensors" in said
    assert "learner.freeze_backbone = 0.05" in said
    record = json.loads((run / "run.json").read_text())["init_from"]
    assert record["source"] == "flat.safetensors"
    assert record["share"] > 0.95
    assert record["heads"] is False
    rows = json.loads((run / "weights.json").read_text())["rows"]
    assert any("2D to 3D" in row["how"] for row in rows)
    assert "flat.safetensors" in (run / "train.log").read_text()

    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**state, "status": "running"}))  # as if killed before the export
    source.unlink()
    assert main([*arguments, "--watch.checkpoint_steps", "2"]) == 0
    assert "weights of" not in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["init_from"] == record


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_pretrain_goes_on_from_a_run_of_the_same_task(store: Path, tmp_path: Path, capsys) -> None:
    assert main(command(store, tmp_path / "first", steps=2)) == 0
    last = max((tmp_path / "first" / "checkpoints").glob("step=*.ckpt"))
    assert main(command(store, tmp_path / "second", "--init_from", str(last), steps=2)) == 0
    said = capsys.readouterr().out
    assert "heads and teachers with it" in said
    assert "freeze_backbone" not in said
    assert json.loads((tmp_path / "second" / "run.json").read_text())["init_from"]["heads"] is True


def test_a_source_that_does_not_fit_is_one_sentence(store: Path, tmp_path: Path, capsys) -> None:
    source = backbone_file(tmp_path)
    assert main(command(store, tmp_path / "run", "--init_from", str(source))) == 2
    assert "give inflate='average' or inflate='centre'" in capsys.readouterr().err
    assert main(command(store, tmp_path / "other", "--init_from.inflat", "average")) == 2
    assert "inflate" in capsys.readouterr().err


def test_a_section_without_a_source_is_refused() -> None:
    from ssl_med.weights import as_start

    assert as_start(None) is None
    with pytest.raises(UserError, match="needs a source"):
        as_start({"channels": "mean"})


@pytest.mark.parametrize("to", ["timm", "monai", "transformers"])
def test_an_export_for_another_library_is_read_back(tmp_path: Path, to: str) -> None:
    from exports_of import native

    from ssl_med.formats import convert

    vit = our_vit(channels=1)
    folder = convert(native(vit, tmp_path / "native", [32, 32]), tmp_path / to, to)
    again = our_vit(channels=1)
    started = start_from(MAE(again, **SMALL_MAE), Start(str(folder), at_least=0.9))
    assert started.audit.share > 0.9
    assert not started.audit.missing
    (folder / "README.md").write_text("changed")  # not the weights
    start_from(MAE(our_vit(channels=1), **SMALL_MAE), Start(str(folder), at_least=0.9))
    weights = next(p for p in folder.rglob("model.*") if p.suffix in (".pt", ".safetensors"))
    weights.write_bytes(weights.read_bytes() + b"0")
    with pytest.raises(UserError, match="sha256 differs"):
        start_from(MAE(our_vit(channels=1), **SMALL_MAE), Start(str(folder)))


def tuned(folder: Path, seed: int) -> tuple[Path, ViT]:
    """A run of a fine-tuning, as it lies on disk, and its backbone."""
    from finetune import Classify
    from ssl_med.exports import export

    task = shaken(Classify(our_vit(channels=1), classes=3, window=[32, 32]), seed)
    return export({"task": task}, folder / "exports" / "task", {}).parents[1], task.backbone


def test_a_fine_tuning_gives_its_backbone_and_keeps_its_head(tmp_path: Path) -> None:
    run, backbone = tuned(tmp_path / "comparison" / "pretrained_labels=all_seed=0", 1)
    for source in (run, run / "exports" / "task", run.parent):
        task = MAE(our_vit(channels=1), **SMALL_MAE)
        started = start_from(task, Start(str(source)))
        assert all(torch.equal(v, backbone.state_dict()[name]) for name, v in task.backbone.state_dict().items())
        assert started.audit.share == 1.0
        assert not started.heads
    weights = run / "exports" / "task" / "task.safetensors"
    weights.write_bytes(weights.read_bytes() + b"0")
    with pytest.raises(UserError, match="sha256 differs"):
        start_from(MAE(our_vit(channels=1), **SMALL_MAE), Start(str(run)))


def test_of_several_runs_one_must_be_named(tmp_path: Path) -> None:
    for arm in ("pretrained", "scratch"):
        tuned(tmp_path / f"{arm}_labels=all_seed=0", 1)
    with pytest.raises(UserError, match=r"several runs; name one of: .*pretrained_labels=all_seed=0, .*scratch"):
        start_from(MAE(our_vit(channels=1), **SMALL_MAE), Start(str(tmp_path)))
