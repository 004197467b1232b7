"""Configs: a YAML file by short name or path, overrides by dotted name, everything checked before anything is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_med.errors import UserError
from ssl_med.plain_yaml import line_of, read_yaml
from ssl_med.recipe import arguments, check, locate, nearest, refuse_settings

Config = dict[str, Any]
FOLDERS = {"pretrain": "pretrain_configs", "finetune": "finetune/configs"}
SECTIONS = ("task", "data", "learner", "trainer", "watch", "init_from", "seed")


def config_folder(kind: str) -> Path:
    """Where the shipped configs of a kind lie, in a checkout and in an installed wheel alike."""
    return Path(__file__).parent.parent / FOLDERS[kind]


def short_names(kind: str) -> list[str]:
    """Short names of all shipped configs, such as ``mae_3d`` and ``smoke/mae_3d``."""
    root = config_folder(kind)
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def find_config(name: str, kind: str) -> Path:
    """The file a short name or a path means.

    Raises:
        UserError: there is none; the nearest short name is offered.
    """
    shipped = config_folder(kind) / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    raise UserError(f"config {name!r} is neither a file nor a shipped config; {nearest(name, short_names(kind))}")


def load_config(name: str, kind: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config and lay the overrides over it.

    Raises:
        UserError: bad YAML, unknown sections or arguments, with the nearest valid name.
    """
    path = find_config(name, kind)
    config, lines = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold the sections {', '.join(SECTIONS)}")
    for key, value in (overrides or {}).items():
        override(config, key, value)
    try:
        check_sections(config)
    except UserError as error:
        own = {place: line for place, line in lines.items() if not _is_overridden(place, overrides or {})}
        line = line_of(str(error), own)
        raise UserError(f"{path}, line {line}: {error}" if line else str(error)) from error
    return config


def _is_overridden(place: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a value of the file may be another one by now; ``init_args`` may be left out of a name."""
    short = place.replace(".init_args", "")
    return any(f"{short}.".startswith(f"{name.replace('.init_args', '')}.") for name in overrides)


def override(config: Config, dotted: str, value: Any) -> None:
    """Set one value; ``init_args`` may be left out of the name, and a number names an entry of a list.

    A new ``class_path`` keeps the arguments that fit it.

    Raises:
        UserError: the name leads through something that is no section.
    """
    *parents, last = dotted.split(".")
    place: Any = config
    for name in parents:
        place = _step(place, name, dotted)
    if isinstance(place, list):
        raise UserError(f"--{dotted}: name a setting of an entry of this list, such as {'.'.join(parents)}.0.{last}")
    if "class_path" in place and last not in ("class_path", "init_args"):
        place = place.setdefault("init_args", {})
    if last == "class_path" and isinstance(place.get("init_args"), dict):
        valid = arguments(locate(value, dotted))
        dropped = [name for name in place["init_args"] if valid and name not in valid]
        if dropped:
            print(f"{dotted}: {value} takes no {', '.join(dropped)}; these are left out", flush=True)
        place["init_args"] = {k: v for k, v in place["init_args"].items() if k not in dropped}
    place[last] = value


def _step(place: Any, name: str, dotted: str) -> Any:
    if isinstance(place, list):
        if not name.isdigit() or int(name) >= len(place) or not isinstance(place[int(name)], dict):
            raise UserError(f"--{dotted}: {name!r} is no section of a list of {len(place)}, counted from 0")
        return place[int(name)]
    if "class_path" in place and name not in place:
        place = place.setdefault("init_args", {})
    inner = place.setdefault(name, {})
    if inner is None:
        inner = place[name] = {}
    if not isinstance(inner, dict | list):
        raise UserError(f"--{dotted}: {name!r} is a value, not a section")
    return inner


def check_sections(config: Config) -> None:
    """Refuse what no constructor takes, anywhere in the config.

    Raises:
        UserError: with the dotted key and the nearest valid one.
    """
    from pytorch_lightning import Trainer

    from ssl_med.callbacks.settings import Watching
    from ssl_med.data.module import StoreData
    from ssl_med.learner import Learner
    from ssl_med.tasks import Task
    from ssl_med.weights import Start

    for name in config:
        if name not in SECTIONS:
            raise UserError(f"config has no section {name!r}; {nearest(name, list(SECTIONS))}")
    if not isinstance(config.get("task"), dict) or "class_path" not in config["task"]:
        raise UserError("config needs a section 'task' with a class_path, such as ssl_med.tasks.MAE")
    trainer = [a for a in arguments(Trainer) if a not in RESERVED]
    check_data(config.get("data") or {}, arguments(StoreData))
    for section, target, valid in (
        ("learner", Learner, arguments(Learner)),
        ("trainer", Trainer, trainer),
        ("watch", Watching, arguments(Watching)),
        ("init_from", Start, arguments(Start)),
    ):
        for key in config.get(section) or {}:
            if key not in valid:
                raise UserError(f"{section}.{key}: there is no such setting; {nearest(key, valid)}")
        refuse_settings(section, target, config.get(section) or {})
    check(config["task"], "task", Task)


def check_data(section: Config, valid: list[str]) -> None:
    """Refuse what no store takes, in the settings of all stores and in those of each (``stores``).

    Args:
        section: ``data`` of a config.
        valid: settings of a store.

    Raises:
        UserError: an unknown setting, or one that stands in both places.
    """
    from ssl_med.data.intensity import check_policy

    own = section.get("stores") or []
    if not isinstance(own, list) or not all(isinstance(settings, dict) for settings in own):
        raise UserError("data.stores: expected a list with the settings of each store, such as [{crop: 224}]")
    shared = {name: value for name, value in section.items() if name != "stores"}
    places = [("data", shared), *((f"data.stores.{n}", settings) for n, settings in enumerate(own))]
    for place, settings in places:
        for name, value in settings.items():
            if name not in valid:
                raise UserError(f"{place}.{name}: there is no such setting; {nearest(name, [*valid, 'stores'])}")
            if settings is not shared and name in shared:
                raise UserError(f"data.{name} is set for all stores and in {place} too: leave one out")
            if name == "intensity" and isinstance(value, str):
                check_policy(value)


RESERVED = (
    "logger",
    "callbacks",
    "default_root_dir",
    "plugins",
    "enable_checkpointing",
    "use_distributed_sampler",
    # a run counts steps; what cuts the endless loader into pieces would show it the same samples again
    "fast_dev_run",
    "limit_train_batches",
    "max_epochs",
    "min_epochs",
    "min_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
)
"""Arguments of Lightning's Trainer that a run sets itself."""


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """Lines that say how two configs differ, by dotted name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *[n for n in new if n not in old]]
        return [line for n in names for line in difference(old.get(n), new.get(n), f"{where}.{n}" if where else str(n))]
    if _are_sections(old) and _are_sections(new) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for n, (a, b) in pairs for line in difference(a, b, f"{where}.{n}")]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
