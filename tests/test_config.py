"""Overrides, sections and names of configs: what is meant is done, and what is not understood is named."""

import pytest

from ssl_med.config import check_sections, difference, find_config, load_config, override
from ssl_med.errors import UserError
from ssl_med.fit import resolve


def config() -> dict:
    return load_config("smoke/mae_2d", "pretrain")


def test_init_args_may_be_left_out_of_a_name():
    short, long = config(), config()
    override(short, "task.backbone.embed_dim", 96)
    override(short, "task.mask_ratio", 0.5)
    override(long, "task.init_args.backbone.init_args.embed_dim", 96)
    override(long, "task.init_args.mask_ratio", 0.5)
    assert short == long != config()
    assert short["task"]["init_args"]["backbone"]["init_args"]["embed_dim"] == 96


def test_a_section_that_is_not_there_is_made():
    found = {"task": {"class_path": "ssl_med.tasks.MAE"}, "data": None}
    override(found, "data.crop", [8, 8])
    override(found, "task.backbone.class_path", "ssl_med.backbones.ViT")
    override(found, "seed", 3)
    backbone = {"backbone": {"class_path": "ssl_med.backbones.ViT"}}
    task = {"class_path": "ssl_med.tasks.MAE", "init_args": backbone}
    assert found == {"task": task, "data": {"crop": [8, 8]}, "seed": 3}


def test_another_class_keeps_the_arguments_that_fit_and_says_what_it_drops(capsys):
    found = config()
    override(found, "task.backbone.class_path", "ssl_med.backbones.UNetEncoder")
    backbone = found["task"]["init_args"]["backbone"]
    assert backbone == {"class_path": "ssl_med.backbones.UNetEncoder", "init_args": {"spatial_dims": 2}}
    said = capsys.readouterr().out
    assert "takes no patch, embed_dim, depth, heads" in said


def test_a_value_is_no_section():
    with pytest.raises(UserError, match="'crop' is a value, not a section"):
        override(config(), "data.crop.x", 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dat.crop", 3, "no section 'dat'; did you mean 'data'"),
        ("data.crops", 3, "data.crops: .* did you mean 'crop'"),
        ("learner.learning_rate", 1, "learner.learning_rate: there is no such setting"),
        ("trainer.max_step", 3, "did you mean 'max_steps'"),
        ("trainer.logger", True, "trainer.logger: there is no such setting"),
        ("watch.probe", 3, "did you mean 'probes'"),
        ("task.mask_ration", 3, "task.init_args.mask_ration: .* did you mean 'mask_ratio'"),
        ("task.backbone.dept", 3, "backbone.init_args.dept: .* did you mean 'depth'"),
        ("task.backbone.class_path", "ssl_med.backbones.Vit", "has no 'Vit'; did you mean 'ViT'"),
        ("task.class_path", "MAE", "is not a dotted path"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(name, value, message):
    with pytest.raises(UserError, match=message):
        load_config("smoke/mae_2d", "pretrain", {name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "is not valid YAML"),
        ("- 1\n- 2", "must hold the sections"),
        ("", "must hold the sections"),
        ("data: {crop: 3}", "needs a section 'task'"),
        ("task: MAE", "needs a section 'task'"),
    ],
)
def test_a_bad_file_is_told(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path), "pretrain")


def test_names_and_paths(tmp_path):
    assert find_config("smoke/mae_2d", "pretrain").name == "mae_2d.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(find_config("smoke/mae_2d", "pretrain").read_text())
    assert load_config(str(own), "pretrain") == config()
    with pytest.raises(UserError, match="did you mean 'mae_3d'"):
        find_config("mea_3d", "pretrain")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learner.lr", "fast", "learner.lr"),
        ("task.mask_ratio", "much", "mask_ratio"),
        ("data.intensity", "bright", "intensity"),
        ("trainer.max_steps", None, "max_steps: None is no number of steps"),
        ("trainer.max_steps", 0, "max_steps: 0 is no number of steps"),
        ("seed", "x", "seed"),
    ],
)
def test_a_wrong_type_is_refused_before_anything_is_built(name, value, message):
    with pytest.raises(UserError, match=message):
        resolve(load_config("smoke/mae_2d", "pretrain", {name: value}), "store")


def test_what_is_resolved_has_all_defaults_and_resolves_to_itself():
    resolved, _ = resolve(config(), "store")
    assert resolved["learner"]["weight_decay"] == 0.05
    assert resolved["task"]["init_args"]["norm_pix"] is True
    assert resolved["data"]["folder"] == "store"
    assert resolved["data"]["seed"] == resolved["seed"] == 0
    again = {**resolved, "trainer": {k: v for k, v in resolved["trainer"].items() if v is not None}}
    assert resolve(again, "store")[0] == resolved
    assert resolve(load_config("smoke/mae_2d", "pretrain", {"seed": 5}), "store")[0]["data"]["seed"] == 5


def test_numbers_in_scientific_notation_are_numbers():
    resolved, _ = resolve(load_config("smoke/mae_2d", "pretrain", {"learner.lr": "1e-3"}), "store")
    assert resolved["learner"]["lr"] == 0.001


def test_difference_names_what_differs():
    old, new = config(), config()
    assert difference(old, new) == []
    override(new, "task.mask_ratio", 0.5)
    new["learner"].pop("lr")
    new["seed"] = 1
    assert difference(old, new) == [
        "task.init_args.mask_ratio: 0.75 -> 0.5",
        "learner.lr: 0.001 -> None",
        "seed: None -> 1",
    ]


def test_sections_may_be_empty():
    check_sections({"task": {"class_path": "ssl_med.tasks.MAE"}, "data": None, "learner": None})
