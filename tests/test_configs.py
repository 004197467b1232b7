"""Every shipped config: found by name, understood by the whole parser, and its task can be built."""

import copy

import pytest
import torch
from torch import nn

from ssl_med.backbones.shared_vit import of_rank
from ssl_med.config import find_config, load_config, short_names
from ssl_med.fit import resolve
from ssl_med.recipe import arguments, build, locate
from ssl_med.tasks import PretextTask, SupervisedTask

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
