"""Every kind of source is read; what is broken or ambiguous is refused; a recipe may name one."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from foreign_models import our_vit, shaken, timm_vit
from safetensors.torch import save_file

import ssl_med
from ssl_med.backbones import Backbone, UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.exports import export
from ssl_med.recipe import build, recipe
from ssl_med.tasks import DINO, MAE
from ssl_med.weights import Audit, load_weights, read_source


@pytest.fixture
def model() -> torch.nn.Module:
    return timm_vit()


def checkpoint(folder: Path, step: int, content: dict) -> Path:
    """A checkpoint of a run as it is saved, with its hash beside it."""
    path = folder / "checkpoints" / f"step={step:07d}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    path.with_name(f"{path.name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def as_files(model: torch.nn.Module, folder: Path) -> dict[str, Path]:
    state = model.state_dict()
    names = sorted(state)
    save_file(state, folder / "whole.safetensors")
    save_file({n: state[n] for n in names[:9]}, folder / "first.safetensors")
    save_file({n: state[n] for n in names[9:]}, folder / "second.safetensors")
    shards = {n: "first.safetensors" if n in names[:9] else "second.safetensors" for n in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    torch.save(state, folder / "plain.pth")
    torch.save({"state_dict": state}, folder / "old.tar", _use_new_zipfile_serialization=False)
    return {
        "safetensors": folder / "whole.safetensors",
        "shards": folder / "model.safetensors.index.json",
        "pth": folder / "plain.pth",
        "legacy": folder / "old.tar",
    }


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pth", "legacy"])
def test_files(kind: str, model: torch.nn.Module, tmp_path: Path) -> None:
    path, vit = as_files(model, tmp_path)[kind], our_vit()
    audit = load_weights(str(path), vit)
    assert audit.share == 1.0
    assert torch.equal(vit.norm.weight, model.norm.weight)
    if kind != "shards":
        assert audit.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert audit.source == path.name


def test_export_and_the_run_around_it(tmp_path: Path) -> None:
    ours = shaken(our_vit())
    export({"backbone": ours}, tmp_path / "run" / "exports" / "backbone", {})
    for source in (tmp_path / "run", tmp_path / "run" / "exports" / "backbone"):
        vit = our_vit()
        audit = load_weights(source, vit)
        assert torch.equal(vit.blocks[1].mlp.fc2.weight, ours.blocks[1].mlp.fc2.weight)
        assert len(audit.loaded) == len(ours.state_dict())
    with pytest.raises(UserError, match="4 attention heads, the backbone 6"):
        load_weights(tmp_path / "run", our_vit(heads=6))
    with pytest.raises(UserError, match=r"learned|rotary"):
        load_weights(tmp_path / "run", our_vit(positions="rotary"))


def test_kind_of_positions_is_compared(tmp_path: Path) -> None:
    export({"backbone": our_vit(positions="rotary")}, tmp_path, {})
    with pytest.raises(UserError, match="rotary positions, the backbone none"):
        load_weights(tmp_path, our_vit(positions="none"))


def test_damaged_export(tmp_path: Path) -> None:
    export({"backbone": our_vit()}, tmp_path, {})
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="sha256 differs"):
        load_weights(tmp_path, our_vit())


def test_run_without_an_export_gives_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    task = MAE(shaken(our_vit()), decoder_dim=8, decoder_depth=1, decoder_heads=2)
    state = {f"task.{name}": value for name, value in task.state_dict().items()}
    checkpoint(tmp_path, 5, {"state_dict": state, "global_step": 5})
    broken = checkpoint(tmp_path, 9, {"state_dict": {}})
    vit = our_vit()
    with pytest.raises(UserError, match="holds no tensors"):
        load_weights(tmp_path, vit)
    broken.write_bytes(broken.read_bytes()[:-1])
    audit = load_weights(tmp_path, vit)
    assert audit.source == "step=0000005.ckpt"
    assert audit.part == "state_dict.backbone"
    assert torch.equal(vit.norm.bias, task.backbone.norm.bias)
    with pytest.raises(UserError, match="is damaged"):
        load_weights(broken, vit)


def test_checkpoint_of_dino_gives_what_its_export_gives(tmp_path: Path) -> None:
    task = DINO(our_vit(), prototypes=8, hidden_dim=8, bottleneck_dim=4)
    shaken(task.teacher["backbone"], 5)
    state = {f"task.{name}": value for name, value in task.state_dict().items()}
    vit = our_vit()
    audit = load_weights(checkpoint(tmp_path, 1, {"state_dict": state}), vit)
    assert torch.equal(vit.norm.bias, task.exports()["backbone"].norm.bias)
    assert audit.part == "state_dict.teacher.backbone"
    assert audit.others == ["state_dict.backbone"]
    for part in ("backbone", "state_dict.backbone"):
        load_weights(tmp_path, vit, part=part)
        assert torch.equal(vit.norm.bias, task.backbone.norm.bias)


REFUSED = {
    "missing": (lambda f: f / "nothing", "neither a file nor a folder"),
    "a link": (lambda f: "https://example.org/a.pth", "nothing is downloaded"),
    "an empty folder": (lambda f: f, "neither card.json, checkpoints/ nor config.json"),
    "another suffix": (lambda f: write(f / "a.npz", b"PK"), "is no source of weights"),
    "cut safetensors": (lambda f: write(f / "a.safetensors", b"\x08\0\0\0\0\0\0\0{}"), "no whole safetensors file"),
    "cut zip": (lambda f: write(f / "a.pt", b"PK\x03\x04abc"), "cannot be read as plain tensors"),
    "no index": (lambda f: write(f / "a.index.json", b"{}"), "has no weight_map"),
    "deep index": (lambda f: write(f / "a.index.json", b"[" * 200_000), "is not valid JSON"),
    "lost shard": (
        lambda f: write(f / "a.index.json", b'{"weight_map": {"x": "x.safetensors"}}'),
        "which is not there",
    ),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_broken_sources_are_refused(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        read_source(make(tmp_path))


def test_a_tensor_alone_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds a Tensor, not tensors by name"):
        read_source(tmp_path / "a.pt")


def test_it_is_a_class_path_in_a_recipe(model: torch.nn.Module, tmp_path: Path) -> None:
    source = as_files(model, tmp_path)["safetensors"]
    inner = recipe(our_vit())
    for name, kind in (("initialised", Backbone), ("initialised_vit", ViT)):
        plan = {"class_path": f"ssl_med.weights.{name}", "init_args": {"backbone": inner, "source": str(source)}}
        built = build(plan, kind, "backbone")
        assert torch.equal(built.norm.weight, model.norm.weight)
        assert isinstance(built.audit, Audit)
        assert recipe(built) == inner


def test_it_is_a_name_of_the_library(model: torch.nn.Module) -> None:
    assert ssl_med.load_weights(model.state_dict(), our_vit()).share == 1.0


def test_half_precision_is_taken_in_the_precision_of_the_backbone(model: torch.nn.Module) -> None:
    vit = our_vit()
    load_weights({name: value.half() for name, value in model.state_dict().items()}, vit)
    assert vit.norm.weight.dtype == torch.float32


def test_backbone_of_another_kind_by_its_own_names(tmp_path: Path) -> None:
    first, second = shaken(UNetEncoder(2, 1, [4, 6])), UNetEncoder(2, 1, [4, 6])
    torch.save({"model": {f"module.{n}": v for n, v in first.state_dict().items()}}, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt", second).share == 1.0
