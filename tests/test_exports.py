"""An export rebuilds exactly what was exported, or says why not."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.exports import export, find_export, load_backbone, read_card
from ssl_med.recipe import build, recipe

FACTS = {"input": {"spatial_dims": 2, "channels": 1}, "training": {"steps": 3}, "data": {"images": 4}}


@pytest.fixture
def exported(tmp_path, tiny_vit):
    backbone = tiny_vit(2)
    return export({"backbone": backbone}, tmp_path / "run" / "exports" / "backbone", FACTS), backbone


def change_weights(folder, change) -> None:
    """Write other weights with a card that fits them."""
    path = folder / "backbone.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    card = read_card(folder)
    card["parts"]["backbone"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))


def test_what_comes_back_is_the_same(exported):
    folder, backbone = exported
    loaded = load_backbone(str(folder))
    assert recipe(loaded) == recipe(backbone)
    image = torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded.eval()(image).pooled, backbone.eval()(image).pooled)


def test_the_card_says_what_it_is(exported):
    folder, backbone = exported
    card = read_card(folder)
    part = card["parts"]["backbone"]
    assert card["format"] == 1
    assert {name: card[name] for name in FACTS} == FACTS
    assert {"class_path": part["class_path"], "init_args": part["init_args"]} == recipe(backbone)
    assert part["class_path"] == "ssl_med.backbones.ViT"
    assert part["parameters"] == sum(p.numel() for p in backbone.parameters())
    assert part["sha256"] == hashlib.sha256((folder / part["file"]).read_bytes()).hexdigest()
    assert {p.name for p in folder.iterdir()} == {"backbone.safetensors", "card.json", "README.md"}
    readme = (folder / "README.md").read_text()
    assert part["sha256"][:16] in readme
    assert "not a medical device" in readme


def test_random_weights_are_the_control(exported):
    folder, backbone = exported
    loaded = load_backbone(str(folder), weights=False)
    assert recipe(loaded) == recipe(backbone)
    assert not torch.equal(loaded.patch_embed.proj.weight, backbone.patch_embed.proj.weight)


@pytest.mark.parametrize("weights", [True, False])
def test_it_is_a_class_path_in_a_recipe(exported, weights):
    folder, backbone = exported
    plan = {"class_path": "ssl_med.exports.load_backbone", "init_args": {"folder": str(folder), "weights": weights}}
    built = build(plan, Backbone, "backbone")
    assert torch.equal(built.patch_embed.proj.weight, backbone.patch_embed.proj.weight) is weights
    assert recipe(built) == recipe(backbone)  # not the path it came from


def test_changed_bytes_are_refused(exported):
    folder, _ = exported
    path = folder / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs"):
        load_backbone(str(folder))


def test_weights_must_fill_the_backbone_exactly(exported):
    folder, _ = exported
    change_weights(folder, lambda weights: weights.update(extra=torch.ones(1)))
    with pytest.raises(UserError, match=r"unexpected \['extra'\]"):
        load_backbone(str(folder))
    change_weights(folder, lambda weights: (weights.pop("extra"), weights.pop("norm.weight")))
    with pytest.raises(UserError, match=r"missing \['norm.weight'\]"):
        load_backbone(str(folder))


def test_places(exported, tmp_path):
    folder, _ = exported
    run = tmp_path / "run"
    assert find_export(folder) == find_export(run) == folder
    with pytest.raises(UserError, match="holds no export"):
        find_export(tmp_path)
    export({"backbone": load_backbone(str(folder))}, run / "exports" / "second", FACTS)
    with pytest.raises(UserError, match="several exports: name one of backbone, second"):
        find_export(run)


def test_another_format_or_part_is_refused(exported):
    from ssl_med.exports import load_task

    folder, _ = exported
    with pytest.raises(UserError, match="has no task; its parts: backbone"):
        load_task(str(folder))
    card = read_card(folder) | {"format": 9}
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="is of format 9"):
        load_backbone(str(folder))
