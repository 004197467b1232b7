"""The arms of a comparison: the config of one run, and the scores of what it made. Shared by finetune and curve."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_med.config import Config
from ssl_med.errors import UserError

FOREIGN = "ssl_med.weights.initialised"
"""Dotted name of the function that fills a backbone with the weights of somebody else."""

SCRATCH_TRAINED = (
    "scratch arms have the steps and rates of the others, without what only protects good weights "
    "(layer-wise decay of the rate, frozen beginnings)"
)
"""What a person should know of the random arms."""


@dataclass(frozen=True)
class Arm:
    """Where the backbone of an arm begins, and how it is trained.

    Attributes:
        name: as in tables.
        source: run or export folder with the backbone; or, with ``like``, a source of foreign weights.
        weights: False for the same architecture with random weights.
        longer: factor on the number of steps.
        layer_decay: of the learner, where the arm wants another than the config.
        frozen: train the head only.
        like: run or export folder whose architecture takes the foreign weights; empty for an export of our own.
        table: the foreign weights have a table of positions, and the architecture takes it.
        network: a network of timm in place of the architecture of ``like``, which then only tells of the images; its
            weights are random where ``source`` is empty.
    """

    name: str
    source: str
    weights: bool = True
    longer: float = 1.0
    layer_decay: float | None = None
    frozen: bool = False
    like: str = ""
    table: bool = False
    network: str = ""

    @property
    def folder(self) -> str:
        """The export that says what the architecture and its input are."""
        return self.like or self.source


def run_config(base: Config, data: str, arm: Arm, labels: int | float | None, draw: int, seed: int) -> Config:
    """The config of one run: backbone from the arm, classes and window from the data, labels and seed filled in.

    Args:
        base: of the fine-tuning, checked.
        data: the store.
        arm: whose run.
        labels: labelled patients, a share of them, or all.
        draw: which draw of these patients.
        seed: of weights, order and crops.

    Raises:
        UserError: the backbone was made for other images, or the task cannot be trained as the arm asks.
    """
    from ssl_med.data.intensity import channels_of
    from ssl_med.data.store import Store
    from ssl_med.exports import read_card
    from ssl_med.recipe import arguments, locate

    config, store, card = copy.deepcopy(base), Store(data), read_card(arm.folder)
    seen = (card["input"]["spatial_dims"], card["input"]["channels"])
    section = config.setdefault("data", {})
    section.setdefault("intensity", card["input"]["intensity"])
    channels = channels_of(section["intensity"], store.channels)
    if seen != (store.spatial_dims, channels):
        raise UserError(
            f"{arm.folder} was pretrained on {seen[0]}D images with {seen[1]} channels, "
            f"{data} gives {store.spatial_dims}D with {channels} (data.intensity: {section['intensity']})"
        )
    section.setdefault("crop", card["input"]["crop"])
    section |= {"labels": labels, "labels_seed": draw}
    task, crop = config["task"].setdefault("init_args", {}), section["crop"]
    _fill_backbone(config["task"], arm, card, crop)
    taken = arguments(locate(config["task"]["class_path"], "task.class_path"))
    if "window" in taken:
        task.setdefault("window", [crop] * store.spatial_dims if isinstance(crop, int) else crop)
    if "classes" in taken:
        task.setdefault("classes", _class_count(store, section.get("targets")))
    config["seed"] = seed
    return _as_trained(config, arm, taken)


def _fill_backbone(task: dict[str, Any], arm: Arm, card: Mapping[str, Any], crop: Any) -> None:
    from ssl_med.exports import find_export
    from ssl_med.verbs.timm_arm import timm_recipe

    settings = task["init_args"]
    if arm.like:
        own = _architecture(card, arm.table)
        if arm.network:
            own = timm_recipe(arm.network, card["input"]["channels"], crop)
        filled = {"class_path": FOREIGN, "init_args": {"backbone": own, "source": arm.source}}
        settings["backbone"] = filled if arm.source else own
        return
    weights = {"folder": str(find_export(arm.source)), "weights": arm.weights}
    settings["backbone"] = {"class_path": "ssl_med.exports.load_backbone", "init_args": weights}
    if _takes_decoder(task.get("class_path", ""), card):
        settings.setdefault("decoder", {"class_path": "ssl_med.exports.load_decoder", "init_args": weights})


def _architecture(card: Mapping[str, Any], table: bool) -> dict[str, Any]:
    """The recipe of an export's backbone; with a table of positions for its crop in place of computed ones."""
    own = {name: copy.deepcopy(card["parts"]["backbone"][name]) for name in ("class_path", "init_args")}
    if table:
        sides = zip(card["input"]["crop"], own["init_args"]["patch"], strict=True)
        own["init_args"] |= {"positions": "learned", "grid": [crop // patch for crop, patch in sides]}
    return own


def foreign_arm(name: str, source: str, like: str) -> tuple[Arm, str]:
    """An arm that begins with weights of somebody else, once they are known to fit, and a sentence on how they do.

    Args:
        name: of the arm.
        source: of the weights, see :func:`ssl_med.weights.load_weights`.
        like: run or export folder whose architecture takes them; a table of positions they may bring is taken too.

    Raises:
        UserError: they do not fit.
    """
    from ssl_med.backbones import Backbone
    from ssl_med.exports import read_card
    from ssl_med.recipe import build
    from ssl_med.weights import load_weights

    card, refused = read_card(like), None
    for table in (False, True) if card["parts"]["backbone"]["init_args"].get("positions") == "sincos" else (False,):
        try:
            audit = load_weights(source, build(_architecture(card, table), Backbone, "backbone"))
        except UserError as error:
            refused = refused or error
            continue
        share = f"{audit.share:.1%} of the backbone's parameters"
        places = ", positions among them: the other arms have computed ones" if table else ""
        said = f"{name}: weights of somebody else fill {share}{places}"
        return Arm(name, source, like=like, table=table), said
    raise UserError(f"--arm {name}: {refused}")


def timm_arm(name: str, source: str, like: str) -> tuple[Arm, str]:
    """An arm on a network of timm, and a sentence on how it compares with the others.

    Args:
        name: of the arm.
        source: ``timm:NETWORK`` for random weights, ``timm:NETWORK:FILE`` for those of a file.
        like: run or export folder of the other arms.

    Raises:
        UserError: see :func:`ssl_med.verbs.timm_arm.check_timm`.
    """
    from ssl_med.exports import read_card
    from ssl_med.verbs.timm_arm import check_timm, timm_source

    try:
        said = check_timm(source, read_card(like))
    except UserError as error:
        raise UserError(f"--arm {name}: {error}") from None
    network, file = timm_source(source)
    decay = None if file else 1.0
    return Arm(name, file, weights=bool(file), layer_decay=decay, like=like, network=network), f"{name}: {said}"


def _as_trained(config: Config, arm: Arm, taken: list[str]) -> Config:
    """Length and freezing as the arm asks; with random weights nothing that only protects good ones."""
    from ssl_med.recipe import locate

    task = config["task"]
    if arm.frozen:
        if "frozen" not in taken:
            raise UserError(f"{task['class_path']} cannot be trained with a frozen backbone; leave the arm frozen out")
        task["init_args"]["frozen"] = True
    if not arm.weights:
        task["init_args"] = locate(task["class_path"], "task.class_path").from_scratch(task["init_args"])
    if arm.layer_decay is not None:
        config.setdefault("learner", {})["layer_decay"] = arm.layer_decay
    if arm.longer != 1.0:
        config["trainer"]["max_steps"] = round(arm.longer * config["trainer"]["max_steps"])
    return config


def arm_config(base: Config, data: str, init: str, arm: str, labels: int | float | None, seed: int) -> Config:
    """The config of one run of ``finetune``; seed s draws subset s.

    Args:
        base: of the fine-tuning, checked.
        data: the store.
        init: run or export folder with the backbone.
        arm: ``pretrained``, or anything else for random weights, trained as the scratch arm of ``curve``.
        labels: labelled patients, a share of them, or all.
        seed: of the draw and of the training.
    """
    own = arm == "pretrained"
    chosen = Arm(arm, init, weights=own, layer_decay=None if own else 1.0)
    return run_config(base, data, chosen, labels, seed, seed)


def _takes_decoder(class_path: str, card: Mapping[str, Any]) -> bool:
    """Whether the export has a decoder that this task starts from; ``--task.decoder null`` takes a new one."""
    part = card["parts"].get("decoder", {}).get("class_path", "")
    return part.rpartition(".")[2] == "PyramidDecoder" and class_path.rpartition(".")[2] == "Segment"


def _class_count(store: Any, targets: str | None) -> int:
    if targets == "mask":
        return 1 + max(value for row in store.rows for value in row.mask_values)  # rows with masks were found before
    if targets == "labels":
        return int(store.rows.counts("labels").max())
    if targets == "boxes":
        step = 2 * store.spatial_dims + 1
        kinds = (int(value) for row in store.rows for value in row.boxes[step - 1 :: step])
        return 1 + max(0, max(kinds, default=0))  # -1 is none
    return max(len(store.class_names), 1 + int(store.rows.column("label").max()))


def refuse_what_is_filled(overrides: Mapping[str, Any], filled: Mapping[str, str], verb: str) -> None:
    """Settings that a verb fills in itself have options of their own.

    Args:
        overrides: settings by dotted name.
        filled: dotted name -> option.
        verb: whose settings.

    Raises:
        UserError: one of them was given as a setting.
    """
    for key in overrides:
        for name, option in filled.items():
            if key == name or key.startswith(f"{name}."):
                raise UserError(f"--{key} is set by {verb} itself; use {option}")


def labelled_data(data: str, base: Config, labels: int | float | None = None) -> Any:
    """The data module of a fine-tuning before its crop is known, once train and test are known to have labels.

    Raises:
        UserError: a split without labelled images, or fewer patients than ``labels``.
    """
    from ssl_med.data.module import StoreData

    module = StoreData(**{**base.get("data", {}), "crop": 1, "folder": data, "labels": labels})
    for split in ("train", "test"):
        module.rows(split)
    return module


def check_leak(module: Any, init: str | Path, allow: bool) -> Any:
    """Refuse, or tell, that test patients or images were in the pretraining; returns what was found."""
    from ssl_med.data.overlap import check_overlap
    from ssl_med.exports import find_export

    found = check_overlap(find_export(init), module.rows("test"), module.store.facts["key"], allow)
    for sentence in found.sentences():
        print(sentence, flush=True)
    return found


def tell_twins(module: Any) -> list[str]:
    """Tell, in a sentence, that images of the store stand in several splits; no sentence where none do."""
    from ssl_med.data.twins import twins

    if not (told := twins(module.store.rows).sentence()):
        return []
    print(f"{module.folder}: {told}", flush=True)
    return [told]


def scores_on_test(folder: Path, plan: Config, data: str) -> dict[str, Any]:
    """Scores of a finished run on the test split, for the set and for every case.

    Raises:
        DamagedImage: a test image is not what was stored; it stands in the quarantine of the run then.
    """
    from ssl_med.data.dataset import DamagedImage
    from ssl_med.data.module import StoreData
    from ssl_med.evaluate import best_device, evaluate
    from ssl_med.exports import load_task
    from ssl_med.run_folder import LEDGER, write_quarantine

    task = load_task(str(folder)).to(best_device())
    module = StoreData(folder=data, **plan["data"])
    module.ledger = folder / LEDGER
    multiple = task.backbone.multiple()  # pyright: ignore
    try:
        scores, cases = evaluate(task, module.whole("test", multiple))
    except DamagedImage:
        write_quarantine(folder)
        raise
    print(f"{folder.name}: test {task.metric} {scores[task.metric]:.4f}", flush=True)
    patients = len({row.patient for row in module.rows("train")})
    lists = {name: values if isinstance(values, list) else values.tolist() for name, values in cases.items()}
    return {"labels": patients, "metric": task.metric, "scores": scores, "cases": lists}
