"""From a config to a finished run: the one way in which anything is trained."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from ssl_med import __version__
from ssl_med.callbacks import Saving, Signals, newest_whole, remove_leftovers
from ssl_med.callbacks.settings import Watching
from ssl_med.callbacks.signals import leave_together, quiet_lightning, release_children, set_timeout
from ssl_med.callbacks.validation import ended_early
from ssl_med.config import RESERVED, Config
from ssl_med.data.ledger import mark_start
from ssl_med.data.module import StoreData
from ssl_med.data.sections import data_of, folders_of, joined, sections_of
from ssl_med.data.store import summary_of
from ssl_med.errors import Stopped, UserError
from ssl_med.learner import Learner, fitting_warmup
from ssl_med.memory import out_of_memory
from ssl_med.recipe import instantiate, locate, new_parser, parse, public_path
from ssl_med.reporting import progress_png, report
from ssl_med.run_data import (
    Data,
    backbone_of,
    check_fit,
    export_task,
    lock_data,
    standardise,
    targets_of,
    trainer_settings,
)
from ssl_med.run_folder import LEDGER, Resume, RunFolder, versions, write_quarantine
from ssl_med.run_log import LOG, run_log
from ssl_med.sharding import keep_buffers, strategy_of
from ssl_med.tasks import Choice, Plan, Task
from ssl_med.weights import Start, as_start, start_from

WEIGHTS = "weights.json"
"""In a run: the audit of the weights it began with."""

SHARDED = ("fsdp", "fsdp_node")
"""Strategies whose checkpoints are folders."""

HEADS_ALONE = 0.05
"""Share of the steps in which only the new heads learn where a trained backbone was given."""


def build_parser() -> Any:
    """A parser whose schema is the constructors of what a run is made of."""
    parser = new_parser()
    parser.add_subclass_arguments(Task, "task", required=True)
    parser.add_class_arguments(StoreData, "data", instantiate=False)
    parser.add_class_arguments(Learner, "learner", skip={"task", "seed"}, instantiate=False)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=set(RESERVED), instantiate=False)
    parser.add_class_arguments(Watching, "watch")
    parser.add_argument("--init_from", type=Start | None, default=None)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def resolve(config: Config, data: str | Path | Sequence[str]) -> tuple[Config, Any]:
    """All settings with their defaults as plain data, and the parser that knows how to build them.

    Args:
        config: see :func:`ssl_med.config.load_config`.
        data: the store, or several, see :func:`ssl_med.data.sections.folders_of`.

    Raises:
        UserError: a wrong type, a class that does not fit, or no number of steps.
    """
    parser = build_parser()
    trainer = {"precision": best_precision(), "devices": 1, **(config.get("trainer") or {})}
    seed = config.get("seed", 0)
    given = {"seed": seed, **(config.get("data") or {})}
    if not isinstance(trainer.get("max_steps"), int) or trainer["max_steps"] < 1:
        raise UserError(
            f"trainer.max_steps: {trainer.get('max_steps')!r} is no number of steps: every schedule needs it"
        )
    plain = []
    for section in sections_of(given, folders_of(data)):
        parsed = parse(parser, {**config, "trainer": trainer, "data": section})
        plain.append(yaml.safe_load(parser.dump(parsed, skip_unset=False)))
    return {**plain[0], "data": joined([one["data"] for one in plain], given)}, parser


def built_of(parser: Any, resolved: Config) -> Any:
    """The objects of resolved settings, without their data."""
    data = resolved["data"]
    return instantiate(parser, {**resolved, "data": data.get("stores", [data])[0]})


def best_precision() -> str:
    """bf16 where the processor multiplies it natively, else 32 bit."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    return "bf16-mixed" if "avx512_bf16" in text or "amx_bf16" in text else "32-true"


def fit(
    kind: str,
    config: Config,
    data: str | Path | Sequence[str],
    out: str | Path,
    resume: Resume = "auto",
    overwrite: bool = False,
) -> Path:
    """Train what a config says on a store, and export what is worth keeping.

    Args:
        kind: ``pretrain`` or ``finetune``.
        config: checked, see :func:`ssl_med.config.load_config`.
        data: the store; or several, as a list or with commas between them.
        out: folder of the run.
        resume, overwrite: see :class:`ssl_med.run_folder.RunFolder`.

    Returns:
        The folder of the run.
    """
    _quiet()
    resolved, parser = resolve(config, data)
    pl.seed_everything(resolved["seed"], verbose=False)
    module = data_of(resolved["data"])
    chosen = settle(resolved, module, None if overwrite else Path(out))
    built = built_of(parser, resolved)
    check_fit(backbone_of(built.task), module)
    check_saving(built.watch, resolved["trainer"])
    folder = RunFolder(out, resolved, resume, overwrite)
    try:
        with run_log(folder.path) if folder.leads else nullcontext():
            for name, choice in chosen.items():
                LOG.info("%s = %s: %s", name, choice.value, choice.reason)
            module.ledger = folder.path / LEDGER
            if folder.leads:
                lock_data(module, folder.path)
                mark_start(module.ledger, folder.read_state().get("step", 0))
            _train(kind, built, module, resolved, folder)
            if folder.leads:
                report(folder.path)
    finally:
        folder.close()
    return folder.path


def check_saving(watch: Watching, trainer: Mapping[str, Any]) -> None:
    """Refuse to write shards beside the steps.

    Raises:
        UserError: both are asked for.
    """
    if watch.checkpoint_async and trainer.get("strategy") in SHARDED:
        raise UserError(
            f"watch.checkpoint_async: with trainer.strategy {trainer['strategy']} every process writes its shards "
            "between two steps, not beside them; leave watch.checkpoint_async out, or take trainer.strategy ddp"
        )


def settle(resolved: Config, module: Data, run: Path | None = None) -> dict[str, Choice]:
    """Fill the settings that were left open, in place; returns them by their full names, with their reasons.

    Args:
        resolved: see :func:`resolve`.
        module: the data.
        run: folder of a run that may have begun: what it measured then is not measured again.
    """
    parts = resolved["trainer"].get("accumulate_grad_batches") or 1
    size, steps = module.batch_size, resolved["trainer"]["max_steps"]
    images = sum(len(part.rows("train")) for part in module.parts)
    chosen = fill_open(resolved["task"], Plan(images, size * parts, steps, size, targets_of(module.parts[0])))
    chosen |= standardise(resolved["task"], module, run)
    found = {f"task.{name}": choice for name, choice in chosen.items()}
    if resolved["learner"]["warmup"] is None:
        found["learner.warmup"] = fitting_warmup(steps)
        resolved["learner"]["warmup"] = found["learner.warmup"].value
    return found


def fill_open(place: Config, plan: Plan) -> dict[str, Choice]:
    """What :func:`settle` does, for a training that is only planned.

    Args:
        place: section ``task`` of resolved settings.
        plan: of the training.
    """
    arguments = place["init_args"]
    offered = locate(place["class_path"], "task").choose(arguments, plan)
    chosen = {}
    for name, choice in offered.items():
        *path, last = name.split(".")
        holder = arguments
        for part in path:
            holder = holder.setdefault(part, {})
        if holder.get(last) is None:
            holder[last] = choice.value
            chosen[name] = choice
    return chosen


def _train(kind: str, built: Any, module: Data, resolved: Config, folder: RunFolder) -> None:
    if folder.leads:
        remove_leftovers(folder.path / "checkpoints")
    checkpoint = newest_whole(folder.path / "checkpoints") if folder.resumes else None
    begun_with = begin_with(built.task, resolved, folder, fresh=checkpoint is None)
    learner = Learner(built.task, **_learner_arguments(resolved, begun_with))
    step = 0 if checkpoint is None else int(checkpoint.stem.removeprefix("step="))
    signals = Signals()
    trainer = _trainer(kind, trainer_settings(resolved["trainer"], module), built.watch, folder, step, signals)
    facts = _facts(kind, learner.task, module, trainer, resolved) | begun_with
    folder.write_state(**facts, status="running", step=step)
    if folder.leads:
        begun = f"resuming {facts['task']} at step {step}" if step else f"training {facts['task']}"
        LOG.info("%s on %d images", begun, facts["data"]["images"])
    try:
        if not _run(trainer, learner, module, checkpoint):
            folder.note_stop(trainer.global_step)
            if not signals.agreed:
                raise KeyboardInterrupt
            leave_together(trainer, signals.agreed, worked=trainer.global_step > step)
            raise Stopped(signals.agreed)
    except BaseException:
        for child in release_children(trainer):
            child.kill()  # it would wait for this process for ever
        raise
    finally:
        signals.close()
    task = learner.whole()
    if trainer.is_global_zero and task is not None:
        _finish(task, module, folder, facts, trainer.global_step)


def _run(trainer: pl.Trainer, learner: Learner, module: Data, checkpoint: Path | None) -> bool:
    """Train; false when the run was asked to stop before its last step."""
    try:
        trainer.fit(learner, datamodule=module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # how Lightning answers a Ctrl+C at once
        return False
    except UserError as error:  # one from a loader process comes with the traceback of that process around it
        raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from error
    except (MemoryError, RuntimeError) as error:
        raise out_of_memory(error, learner, module.parts[0], trainer) or module.explain(error) or error from error
    return trainer.global_step >= trainer.max_steps or ended_early(trainer)


def begin_with(task: Task, resolved: Config, folder: RunFolder, fresh: bool) -> dict[str, Any]:
    """Load what ``init_from`` names into a training that begins; one that goes on has it in its checkpoint.

    Returns:
        ``init_from`` as it stands in ``run.json``: the source's name and hash, and what was loaded; or nothing.
    """
    start = as_start(resolved.get("init_from"))
    if start is None:
        return {}
    if not fresh:
        return {"init_from": folder.read_state().get("init_from")}
    audit, heads = start_from(task, start)
    if folder.leads:
        for line in str(audit).splitlines():
            LOG.info(line)
        audit.save(folder.path / WEIGHTS)
    return {
        "init_from": {
            "source": audit.source,
            "sha256": audit.sha256,
            "layout": audit.layout,
            "share": round(audit.share, 4),
            "heads": heads,
        }
    }


def _learner_arguments(resolved: Config, begun_with: dict[str, Any]) -> dict[str, Any]:
    """With a good backbone and new heads, the heads learn alone at first unless the config says otherwise."""
    arguments = {**resolved["learner"], "seed": resolved["seed"]}
    begun = begun_with.get("init_from")
    if arguments["freeze_backbone"] is None and begun and not begun["heads"]:
        arguments["freeze_backbone"] = HEADS_ALONE
        LOG.info("learner.freeze_backbone = %s: the backbone is trained already, its heads are new", HEADS_ALONE)
    return {**arguments, "betas": tuple(arguments["betas"])}


def _trainer(
    kind: str, settings: Mapping[str, Any], watch: Watching, folder: RunFolder, step: int, signals: Signals
) -> pl.Trainer:
    own = {
        "max_epochs": -1,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    given["strategy"] = strategy_of(given.get("strategy", "auto"), given.get("devices", 1))
    trainer = pl.Trainer(  # pyright: ignore[reportCallIssue]
        **{**own, **given},
        logger=watch.loggers(folder.path, step, folder.state["run"], folder.leads),
        callbacks=watch.callbacks(kind, signals),
        default_root_dir=folder.path,
        enable_checkpointing=False,
        plugins=[Saving(background=watch.checkpoint_async)],
        use_distributed_sampler=False,
    )
    keep_buffers(trainer)
    quiet_lightning(trainer)
    set_timeout(trainer, watch.collective_timeout)
    return trainer


def _quiet() -> None:
    """Advice of Lightning that does not apply: few workers are on purpose, and the sampler is ours."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*",
        ".*`max_epochs`.*",
        ".*isinstance.treespec.*",
    ):
        warnings.filterwarnings("ignore", text)


def _facts(kind: str, task: Task, module: Data, trainer: pl.Trainer, resolved: Config) -> dict[str, Any]:
    backbone = backbone_of(task)
    return {
        "kind": kind,
        "version": __version__,
        "versions": versions(),
        "task": public_path(type(task)),
        "backbone": public_path(type(backbone)),
        "parameters": {
            "backbone": sum(p.numel() for p in backbone.parameters()),
            "task": sum(p.numel() for p in task.parameters()),
        },
        "steps": trainer.max_steps,
        "seed": resolved["seed"],
        "batch_size": module.batch_size * trainer.accumulate_grad_batches,
        "device": trainer.strategy.root_device.type,
        "threads": torch.get_num_threads(),
        "precision": str(resolved["trainer"]["precision"]),
        "data": summary_of([(part.store, part.rows("train")) for part in module.parts]),
    }


def _finish(task: Task, module: Data, folder: RunFolder, facts: dict[str, Any], step: int) -> None:
    folder.write_state(step=step)
    export_task(task, module, folder.path / "exports", facts | {"seconds": folder.state["seconds"]})
    progress_png(folder.path)
    write_quarantine(folder.path)
    folder.write_state(status="finished")  # last: a kill before leaves a run that goes on and exports
