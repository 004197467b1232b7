import copy
import json
import sys
import types
from pathlib import Path

import pytest
from torch import nn

import finetune
from ssl_med.backbones import Backbone, MonaiBackbone, TimmBackbone, UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.recipe import build, nearest, public_path, recipe
from ssl_med.tasks import MAE, Task
from ssl_med.transforms import Affine, Flip, Gamma, PairedViews, SingleView, Transform, Views

built: list[str] = []


class Recorder(nn.Module):
    """A class that tells when it is constructed."""

    def __init__(self, note: str = "built") -> None:
        super().__init__()
        built.append(note)


class Forgetful(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of this file under a dotted path that recipes can name."""
    module = types.ModuleType("elsewhere")
    module.Recorder, module.Forgetful = Recorder, Forgetful
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    built.clear()


def tiny(**changes) -> ViT:
    return ViT(2, **{"patch": 4, "embed_dim": 8, "depth": 1, "heads": 2, **changes})


THINGS = {
    "vit": (Backbone, lambda: tiny(registers=1, positions="learned", grid=[2, 3], layer_scale=0.1)),
    "unet": (Backbone, lambda: UNetEncoder(3, 2, [4, 8], 1, [[1, 1, 1], [1, 2, 2]])),
    "timm": (Backbone, lambda: TimmBackbone("resnet18", 1)),
    "monai": (Backbone, lambda: MonaiBackbone("SegResNet", 2, 1, 8)),
    "transform": (Transform, lambda: Gamma(probability=0.25)),
    "views": (Views, lambda: PairedViews([Flip(), Affine()], [Gamma()])),
    "mae": (Task, lambda: MAE(tiny(), SingleView([Flip()]), 0.5, 16, 1, 2, False)),
    "segment": (Task, lambda: finetune.Segment(UNetEncoder(2, 1, [4, 8], 1), 3, [16, 16], [4, 4], True, None, 0.25)),
    "classify": (Task, lambda: finetune.Classify(tiny(), 2, [8, 8], True, SingleView([Gamma()]), 0.2)),
}


@pytest.mark.parametrize(("kind", "make"), THINGS.values(), ids=THINGS)
def test_round_trip_through_json(kind: type, make) -> None:
    thing = make()
    plan = json.loads(json.dumps(recipe(thing)))
    twin = build(plan, kind)
    assert type(twin) is type(thing)
    assert recipe(twin) == recipe(thing) == plan
    shapes = {name: value.shape for name, value in thing.state_dict().items()}
    assert {name: value.shape for name, value in twin.state_dict().items()} == shapes


def mae_plan(**init_args) -> dict:
    return {"class_path": "ssl_med.tasks.MAE", "init_args": {"backbone": recipe(tiny()), **init_args}}


def test_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"recipe.init_args.mask_ration: .* did you mean 'mask_ratio'\?"):
        build(mae_plan(mask_ration=0.5), Task)


def test_unknown_argument_deep_inside_is_found() -> None:
    plan = mae_plan()
    plan["init_args"]["backbone"]["init_args"]["pach"] = 8
    with pytest.raises(UserError, match=r"recipe.init_args.backbone.init_args.pach: .* did you mean 'patch'\?"):
        build(plan, Task)
    views = {"class_path": "ssl_med.transforms.SingleView", "init_args": {"transforms": [recipe(Gamma())]}}
    views["init_args"]["transforms"][0]["init_args"]["probabilty"] = 1.0
    with pytest.raises(UserError, match=r"views.init_args.transforms\[0\].*did you mean 'probability'\?"):
        build(mae_plan(views=views), Task)


def test_unknown_class_or_module_is_named() -> None:
    with pytest.raises(UserError, match=r"plan.class_path: ssl_med.tasks has no 'MEA'; did you mean 'MAE'\?"):
        build({"class_path": "ssl_med.tasks.MEA"}, Task, "plan")
    with pytest.raises(UserError, match=r"there is no module 'ssl_med\.nowhere'"):
        build({"class_path": "ssl_med.nowhere.MAE"}, Task)
    with pytest.raises(UserError, match="'MAE' is not a dotted path"):
        build({"class_path": "MAE"}, Task)


def test_nearest_lists_all_when_nothing_is_near() -> None:
    assert nearest("zzz", ["beta", "alpha"]) == "valid: alpha, beta"


@pytest.mark.parametrize(("name", "value"), [("mask_ratio", "a lot"), ("decoder_depth", 1.5), ("norm_pix", "maybe")])
def test_wrong_type_names_the_key(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.init_args\.{name}: .*{value}") as refusal:
        build(mae_plan(**{name: value}), Task)
    assert len(str(refusal.value)) < 150


def test_wrong_type_deep_inside_names_the_key() -> None:
    plan = mae_plan()
    plan["init_args"]["backbone"]["init_args"]["depth"] = "deep"
    with pytest.raises(UserError, match=r"^recipe\.init_args\.backbone\.init_args\.depth: expected int .*deep"):
        build(plan, Task)


def test_value_that_the_constructor_refuses_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"mask_ratio must be at least 0 and below 1, got 1\.5"):
        build(mae_plan(mask_ratio=1.5), Task)


def test_missing_argument_is_named() -> None:
    with pytest.raises(UserError, match=r"^recipe: .* required: backbone$"):
        build({"class_path": "ssl_med.tasks.MAE", "init_args": {}}, Task)


def test_class_of_another_kind_is_refused_before_it_is_built() -> None:
    plan = {"class_path": "elsewhere.Recorder", "init_args": {"note": "outer"}}
    assert isinstance(build(plan, nn.Module), Recorder)
    assert built == ["outer"]
    built.clear()
    with pytest.raises(UserError, match="Recorder"):
        build(plan, Backbone)
    with pytest.raises(UserError, match="backbone"):
        build({"class_path": "ssl_med.tasks.MAE", "init_args": {"backbone": plan}}, Task)
    assert built == []


def test_a_program_in_a_recipe_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(trace)]}}
    for plan, kind in ((popen, Backbone), (mae_plan(backbone=popen), Task), (mae_plan(views=popen), Task)):
        with pytest.raises(UserError, match="Popen"):
            build(plan, kind)
    assert not trace.exists()


@pytest.mark.parametrize("path", ["os.system", "os.getcwd", "builtins.exec", "ssl_med.recipe.build"])
def test_a_function_of_no_backbone_is_refused(path: str) -> None:
    with pytest.raises(UserError):
        build({"class_path": path}, Backbone)


def test_backbone_that_the_task_cannot_use_is_one_sentence() -> None:
    plan = mae_plan(backbone=recipe(UNetEncoder(2, 1, [4, 8], 1)))
    with pytest.raises(UserError) as refusal:
        build(plan, Task)
    assert str(refusal.value) == (
        "recipe.init_args.backbone: ssl_med.backbones.UNetEncoder is no ViT; did you mean 'ssl_med.backbones.ViT'?"
    )


def test_build_leaves_the_plan_as_it_was() -> None:
    plan = mae_plan(views=recipe(SingleView([Flip()])))
    before = copy.deepcopy(plan)
    build(plan, Task)
    assert plan == before


def test_two_builds_share_nothing() -> None:
    plan = mae_plan()
    first, second = build(plan, Task), build(plan, Task)
    assert first.backbone is not second.backbone


def test_argument_that_is_not_kept_is_an_error() -> None:
    with pytest.raises(TypeError, match="Forgetful does not keep its argument 'size'"):
        recipe(Forgetful())


def test_public_path_is_the_shortest() -> None:
    assert public_path(ViT) == "ssl_med.backbones.ViT"
    assert public_path(finetune.Segment) == "finetune.Segment"
    assert public_path(Path) == "pathlib.Path"
