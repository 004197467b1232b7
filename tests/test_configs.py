"""Every shipped config: found by name, understood by the whole parser, and its task can be built."""

import copy
import re
import shlex
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from ssl_med.backbones.shared_vit import of_rank
from ssl_med.cli import build_parser, parse_overrides
from ssl_med.config import find_config, load_config, short_names
from ssl_med.fit import resolve
from ssl_med.recipe import arguments, build, locate
from ssl_med.tasks import PretextTask, SupervisedTask

PAGES = sorted((Path(__file__).parents[1] / "docs" / "tasks").glob("*.md"))
PRETRAIN, FINETUNE = short_names("pretrain"), short_names("finetune")
BACKBONE = {"class_path": "ssl_med.backbones.ViT", "init_args": {"patch": 8, "embed_dim": 24, "depth": 2, "heads": 2}}


def task_of(config: dict, kind: type) -> nn.Module:
    """Built without memory: the large ones have hundreds of millions of weights."""
    with torch.device("meta"):
        return build(copy.deepcopy(config["task"]), kind, "task")


def test_the_two_lists_hold_the_documented_names():
    assert {"mae_2d", "mae_3d", "smoke/mae_2d", "smoke/mae_3d", "demo_mae_3d"} <= set(PRETRAIN)
    assert {"classify", "segment_2d", "segment_3d", "smoke/classify", "smoke/segment"} <= set(FINETUNE)


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_configs(name):
    config = load_config(name, "pretrain")
    stores = config["data"].get("stores", [config["data"]])
    resolved, _ = resolve(config, ["store"] * len(stores))
    task = task_of(config, PretextTask)
    backbone = task.exports()["backbone"]
    kinds = [of_rank(backbone, axes) for axes in (2, 3)] if len(stores) > 1 else [backbone]
    for store, kind in zip(stores, kinds, strict=True):
        crop = store["crop"]
        crop = [crop] * kind.spatial_dims if isinstance(crop, int) else crop
        assert all(size % step == 0 for size, step in zip(crop, kind.multiple(), strict=True))
    assert resolved["trainer"]["max_steps"] >= 1
    assert len(stores) > 1 or str(backbone.spatial_dims) + "d" in name


def printed() -> list[str]:
    """The pretraining commands of the pages of the tasks."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if "ssl-med pretrain" in line]


@pytest.mark.parametrize("command", printed())
def test_what_the_pages_of_the_tasks_print_can_be_built(command):
    arguments, rest = build_parser().parse_known_args(shlex.split(command)[1:])
    overrides = parse_overrides(rest, "pretrain")
    config = load_config(arguments.config, "pretrain", overrides)
    resolve(config, ["store"])
    task = task_of(config, PretextTask)
    found = {name: attrgetter(name)(SimpleNamespace(task=task)) for name in overrides}
    assert {n: list(v) if isinstance(v, tuple) else v for n, v in found.items()} == overrides


def test_the_printed_commands_show_the_masks_and_ibot():
    assert {f"--task.mask {mask}" for mask in ("block", "tube", "saliency", "foreground")} <= {
        match for command in printed() for match in re.findall(r"--task\.mask \w+", command)
    }
    assert any("dino_2d" in command and "--task.ibot 1" in command for command in printed())


@pytest.mark.parametrize("name", ["byol_2d", "simclr_2d"])
def test_the_papers_views_on_the_pages_can_be_built(name):
    """As a person would: into a copy of the config, for RGB pictures."""
    pages = "\n".join(page.read_text() for page in PAGES)
    block = re.search(rf"<!-- config: {name} -->\n```yaml\n(.*?)```", pages, re.S)
    views = yaml.safe_load(block[1])["views"]
    config = load_config(name, "pretrain", {"task.views": views, "task.backbone.in_channels": 3})
    resolve(config, ["store"])
    task = build(copy.deepcopy(config["task"]), PretextTask, "task")
    kinds = [type(step).__name__ for step in task.views.transforms]
    assert kinds == ["RandomResizedCrop", "Flip", "ColourJitter", "Grayscale", "GaussianBlur"]
    assert task.views.transforms[0].scale == (0.08, 1.0)
    assert len(task.views.second or []) == (6 if name == "byol_2d" else 0)


@pytest.mark.parametrize("name", ["ssit_2d", "ssit_3d", "region_2d", "region_3d"])
def test_maps_of_the_store_are_taken_where_there_are_any(name, make_batch):
    task = build(copy.deepcopy(load_config(name, "pretrain")["task"]), PretextTask, "task")
    provider = task.saliency if name.startswith("ssit") else task.boxes.saliency
    batch = make_batch((32,) * task.backbone.spatial_dims, 2, task.backbone.in_channels)
    torch.testing.assert_close(provider(batch), provider.otherwise(batch))  # as when it was named alone
    stored = torch.rand_like(batch["image"][:, :1])
    assert torch.equal(provider({**batch, "saliency": stored}), stored)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_configs(name):
    config = load_config(name, "finetune")
    axes = 3 if "3d" in name else 2
    task = config["task"].setdefault("init_args", {})
    task |= {"window": [16] * axes, "backbone": copy.deepcopy(BACKBONE)}
    if "classes" in arguments(locate(config["task"]["class_path"], "task")):
        task["classes"] = 3
    task["backbone"]["init_args"]["spatial_dims"] = axes
    resolve(config, "store")
    built = task_of(config, SupervisedTask)
    kinds = {"mask": ["dice"], "label": ["balanced_accuracy", "quadratic_kappa"], "labels": ["auroc"], "value": ["r2"]}
    kinds["boxes"] = ["map_10"]
    targets = config["data"]["targets"]
    assert built.metric in kinds[targets]
    assert targets != "mask" or config["data"]["foreground"] >= 0.33


@pytest.mark.parametrize(("kind", "name"), [("pretrain", n) for n in PRETRAIN] + [("finetune", n) for n in FINETUNE])
def test_each_begins_by_saying_what_it_is(kind, name):
    first = find_config(name, kind).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
