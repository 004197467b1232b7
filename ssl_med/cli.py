"""``ssl-med VERB ...``: the command line. It imports nothing heavy until the verb is known."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from ssl_med.errors import Stopped, UserError

Add = Callable[[argparse.ArgumentParser], None]


def _place(p: argparse.ArgumentParser, name: str, text: str, action: Any = None) -> None:
    """An option for a folder that an environment variable may give: ``SSL_MED_DATA``, ``SSL_MED_OUT``."""
    variable = f"SSL_MED_{name.removeprefix('--').upper()}"
    given, text = os.environ.get(variable), f"{text}; default: {variable}"
    if name.startswith("--"):
        p.add_argument(name, default=given, required=not given, help=text, **({"action": action} if action else {}))
    else:
        p.add_argument(name, default=given, nargs="?" if given else None, help=text)


def _source(p: argparse.ArgumentParser) -> None:
    _place(p, "data", "folder of scans")
    p.add_argument("--manifest", help="table (CSV, parquet) or datalist (JSON) that says what the files are")
    p.add_argument("--columns", help="what its columns mean: image=images/{file},patient=subject,label=diagnosis")
    p.add_argument("--tile", type=int, default=512, help="slides: pixels along the side of a tile; default: 512")
    p.add_argument("--tile_mpp", type=float, default=0.5, help="slides: micrometres per pixel of a tile; default: 0.5")
    p.add_argument("--tissue", type=float, default=0.25, help="slides: least share of tissue in a tile; default: 0.25")
    kinds = ["auto", "imagefolder", "patients", "tree", "frames"]
    p.add_argument("--layout", choices=kinds, default="auto", help="what the folders mean; default: by their names")


def _inspect(p: argparse.ArgumentParser) -> None:
    _source(p)
    p.add_argument("--limit", type=int, help="look at the first images only")
    p.add_argument("--sample", type=int, help="read the voxels of so many images only, and the headers of all")


def _prepare(p: argparse.ArgumentParser) -> None:
    _source(p)
    _place(p, "--out", "folder of the store")
    p.add_argument("--dataset", default="", help="name of the data set, for weights_by: dataset; it stays readable")
    p.add_argument("--workers", type=int, default=1, help="processes")
    p.add_argument("--max_bad_share", type=float, default=0.5, help="stop when more of the images cannot be used")
    p.add_argument("--format", choices=["b2nd", "npy"], default="b2nd", help="compressed chunks, or bare voxels")
    p.add_argument("--crop", type=int, help="voxels along an axis of the crops to come; default: 96 in 3D, 224 in 2D")
    p.add_argument("--dtype", choices=["same", "int16"], default="same", help="int16: floats in 65536 even steps")
    p.add_argument("--spacing", type=_spacings, help="mm to resample to: one number, or z,y,x with 0 to keep an axis")
    p.add_argument("--order", type=int, choices=[0, 1, 3], default=1, help="of that interpolation; default: 1")
    p.add_argument("--orientation", default="RAS", help="of volumes; default: RAS")
    p.add_argument(
        "--saliency",
        default="",
        metavar="KIND|FOLDER",
        help="store a saliency map of every image, for SSiT and MAE: fine_grained, spectral_residual, gradient, "
        "entropy, foreground, or a folder that holds a map at the place of each image",
    )
    p.add_argument("--ignore_label", type=int, metavar="N", help="voxels of this label of the masks count nowhere")
    p.add_argument("--rank", type=int, choices=[2, 3], help="keep images or volumes of a folder that holds both")
    p.add_argument("--check", action="store_true", help="read the whole store, and do damaged images again")
    p.add_argument("--engine", choices=["processes", "dask"], default="processes", help="what runs the workers")
    p.add_argument("--scheduler", default="", help="address or file of a Dask scheduler; default: one on this machine")


class _Several(argparse.Action):
    """An option that can be repeated: what it was given becomes one text with commas."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        given = [] if getattr(namespace, self.dest) is self.default else [getattr(namespace, self.dest)]
        setattr(namespace, self.dest, ",".join([*given, values]))


def _training(p: argparse.ArgumentParser, kind: str) -> None:
    p.add_argument("config", help=f"short name of a shipped {kind} config, or a path")
    if kind == "pretraining":
        _place(p, "--data", "store, as written by prepare; several with commas between them, or repeated", _Several)
    else:
        _place(p, "--data", "store, as written by prepare")
    _place(p, "--out", "folder of the run; repeat the command to resume")
    ways = ["auto", "must", "never", "force"]
    p.add_argument("--resume", choices=ways, default="auto", help="force: under another config; default: auto")
    p.add_argument("--overwrite", action="store_true", help="remove the run that is there")
    p.epilog = "Any setting of the config: --trainer.max_steps 100 --task.mask_ratio 0.6 --data.crop [64,64,64]"


def _pretrain(p: argparse.ArgumentParser) -> None:
    _training(p, "pretraining")
    p.add_argument("--init_from", metavar="SOURCE", help="weights to begin with: a run, an export, a file, a HF folder")
    p.add_argument("--slurm", metavar="nodes=2,gpus=8", help="write OUT.sbatch, a job that requeues itself, and end")
    p.add_argument("--torchrun", action="store_true", help="print the line that starts the run on each machine")
    p.add_argument("--supervise", type=int, nargs="?", const=10, metavar="N", help="relaunch after a crash, N times")


def _finetune(p: argparse.ArgumentParser) -> None:
    _training(p, "fine-tuning")
    p.add_argument("--init", required=True, help="run or export folder with the pretrained backbone")
    p.add_argument("--allow_overlap", action="store_true", help="only tell which test images pretraining has seen")
    p.add_argument("--labels", type=_number, help="labelled patients: a number, a share below 1; default all")
    p.add_argument("--seeds", type=int, default=1, help="repetitions, each with its own draw of patients")
    p.add_argument(
        "--compare", action="store_true", help="train the same from random weights too, and say what differs"
    )


def _curve(p: argparse.ArgumentParser) -> None:
    p.add_argument("config", help="short name of a shipped fine-tuning config, or a path")
    _place(p, "--data", "store with labels, as written by prepare")
    _place(p, "--out", "folder of the study; repeat the command to go on")
    p.add_argument("--init", required=True, help="run or export folder with the pretrained backbone")
    shares, arms = "1%,5%,10%,25%,50%,100%", "pretrained,scratch,scratch_longer,frozen,knn"
    p.add_argument("--labels", default=shares, help="patients (25) or shares (10%% or 0.1); default: %(default)s")
    p.add_argument("--draws", type=int, default=3, help="nested series of labelled patients; default: 3")
    p.add_argument("--seeds", type=int, default=2, help="repetitions of each; default: 2")
    p.add_argument("--arms", default=arms, help="which of the arms; default: %(default)s")
    more = "a further arm: NAME=EXPORT, NAME=WEIGHTS of somebody else for the same architecture, or "
    more += "NAME=timm:NETWORK[:WEIGHTS] for a network of timm; can be repeated"
    p.add_argument("--arm", action="append", default=[], help=more)
    p.add_argument("--longer", type=float, default=3.0, help="factor on the steps of scratch_longer; default: 3")
    p.add_argument("--processes", type=int, default=1, help="runs at a time, each with its share of the cores")
    p.add_argument("--floor", action="append", default=[], help="NAME=VALUE, a line in the picture; can be repeated")
    p.add_argument("--groups", help="CSV with a column id, patient or image, and columns of groups")
    p.add_argument("--metric", help="score to compare; default: the task's own")
    whose = "a test case: one image, or one patient (mean over the images); default: image"
    p.add_argument("--unit", choices=["image", "patient"], default="image", help=whose)
    p.add_argument("--resamples", type=int, help="of the bootstrap; default: 2000, 200 where each takes long")
    p.add_argument("--dry_run", action="store_true", help="only tell what would be run, and how long it takes")
    p.add_argument("--keep_models", action="store_true", help="keep checkpoints and weights of every run")
    p.add_argument("--allow_overlap", action="store_true", help="only tell which test images pretraining has seen")
    p.epilog = "Any setting of the config: --trainer.max_steps 500 --learner.lr 5e-4"


def _probe(p: argparse.ArgumentParser) -> None:
    p.add_argument("init", help="run or export folder")
    _place(p, "--data", "store with labels or masks")
    p.add_argument("--targets", choices=["label", "mask"], help="what to probe for; default: what the store has")
    p.add_argument("--split", default="test", help="whose images are tested")
    p.add_argument("--crops", type=int, default=64, help="crops per split where labels are masks")
    p.add_argument("--seed", type=int, default=0, help="of crops and random weights")


def _embed(p: argparse.ArgumentParser) -> None:
    p.add_argument("init", help="run or export folder")
    _place(p, "--data", "store")
    p.add_argument("--out", required=True, help=".parquet or .npz file")
    p.add_argument("--neighbours", type=int, default=0, help="so many nearest images of each, and their precision")
    p.add_argument("--picture", help=".png or .svg of the features on two principal axes")
    p.add_argument("--colour", default="label", help="of its points: label, site, modality, dataset, split or a group")
    p.add_argument("--umap", action="store_true", help="lay them out by UMAP (package umap-learn)")


def _predict(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="run or export folder of a fine-tuning")
    _place(p, "data", "folder of scans, or one file")
    _place(p, "--out", "folder of the predictions")


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="folder of a run; for other formats a native export will do")
    _place(p, "--out", "folder of the export")
    p.add_argument("--checkpoint", help="which checkpoint; default: the newest whole one")
    formats = ["native", "timm", "monai", "nnunet", "transformers", "onnx", "torch_export"]
    p.add_argument("--to", default="native", choices=formats, help="who loads it; default: native, ssl_med itself")
    p.add_argument("--license", help="terms of the weights, such as CC-BY-4.0; default: not stated")
    p.add_argument("--data_license", help="terms of the data they were trained on; default: not stated")


def _card(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", choices=["check"], help="verify hashes, fields, absence of paths, and that weights load")
    p.add_argument("folder", help="an export of any format")


def _push(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", help="an export of any format")
    p.add_argument("--to", required=True, help="OWNER/NAME on the Hugging Face hub, a path, or file:///...")
    p.add_argument("--yes", action="store_true", help="send; without it only say what would be sent")
    p.add_argument("--public", action="store_true", help="a new repository is private otherwise")


def _pull(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", help="OWNER/NAME on the Hugging Face hub, a path, or file:///...")
    p.add_argument("--out", required=True, help="folder of the export")
    p.add_argument("--revision", help="branch, tag or commit of the repository; default: its main branch")


def _report(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="folder of a run, or of several")
    p.add_argument("--out", help="HTML file; default: RUN/report.html")


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", default="ssl-med-demo", help="folder; repeat the command to go on where it stopped")
    p.add_argument("--seed", type=int, default=0, help="of the synthetic subjects and of the training")


def _doctor(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", help="where runs will be written; default: here")


def _plan(p: argparse.ArgumentParser) -> None:
    p.add_argument("config", nargs="?", help="pretraining config to take the model from")
    p.add_argument("--size", default="vit_base", help="vit_tiny, vit_small, vit_base, vit_large, vit_huge, vit_giant")
    p.add_argument("--spatial_dims", type=int, default=3, help="axes of space")
    p.add_argument("--crop", type=_numbers, default=96, help="voxels, one number or one per axis: 96 or 64,128,128")
    p.add_argument("--patch", type=_numbers, default=16, help="voxels, one number or one per axis")
    p.add_argument("--channels", type=int, default=1, help="channels of the image")
    p.add_argument("--mask_ratio", type=float, default=0.75, help="share of hidden patches")
    p.add_argument("--task", default="mae", help="mae, simclr, byol or dino")
    p.add_argument("--memory_gb", type=float, default=80, help="memory of one accelerator")
    p.add_argument("--gpus", type=int, default=1, help="number of accelerators")
    p.add_argument("--tflops", type=float, default=989, help="peak of one accelerator in bf16")
    p.add_argument("--utilisation", type=float, default=0.3, help="share of the peak that training reaches")
    p.add_argument("--volumes", type=int, default=1000, help="images in the store")
    p.add_argument("--volume_shape", type=_numbers, default=(256, 256, 200), help="voxels of one image")
    p.add_argument("--samples", type=float, default=1e6, help="crops seen in training")
    p.add_argument("--compression", type=float, default=2.4, help="of the store")
    p.add_argument("--crops_per_read", type=int, default=1, help="crops taken from one decoded region")
    p.add_argument("--batch", type=int, help="samples per GPU and step; default: of the config, or 64")
    p.add_argument("--scale", action="store_true", help="a table for 8 to 1024 GPUs too")
    p.add_argument("--link_gb_s", type=float, default=50, help="network of each GPU, for that table; default: 50")
    p.add_argument("--gpus_per_node", type=int, default=8, help="GPUs of a machine, for that table; default: 8")
    p.add_argument("--measure", action="store_true", help="time steps of the config on this device; seconds to minutes")
    p.add_argument("--measure_crop", type=_numbers, help="crop of the steps that are timed; default: the wanted one")


VERBS: dict[str, tuple[str, Add]] = {
    "demo": ("the whole job on data that comes with pip, in minutes", _demo),
    "inspect": ("what is in a folder of scans, and what is broken", _inspect),
    "prepare": ("a folder of scans to a store for fast crops", _prepare),
    "pretrain": ("a backbone from images without labels", _pretrain),
    "probe": ("what a frozen backbone knows, beside random weights", _probe),
    "embed": ("one feature vector per image", _embed),
    "finetune": ("a head on few labels, against the same from scratch", _finetune),
    "curve": ("what pretraining buys at every number of labels, with intervals", _curve),
    "predict": ("a fine-tuned model on new files", _predict),
    "export": ("the parts of a run worth keeping", _export),
    "card": ("may this export be given away", _card),
    "push": ("an export to a hub, when asked twice", _push),
    "pull": ("an export from a hub, verified", _pull),
    "report": ("one HTML page of a run", _report),
    "plan": ("parameters, memory, storage and hours before a GPU is booked", _plan),
    "doctor": ("is this machine ready", _doctor),
}

_MODULES = {"push": "hub", "pull": "hub"}
"""Verbs that share a file."""


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _numbers(text: str) -> int | tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    return values[0] if len(values) == 1 else values


def _spacings(text: str) -> float | list[float]:
    values = [float(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    from ssl_med import __version__

    parser = argparse.ArgumentParser(
        prog="ssl-med",
        description="Self-supervised pretraining and few-label fine-tuning for medical images, 2D and 3D.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (summary, add) in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".", allow_abbrev=False)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add(verb)
    return parser


def parse_overrides(rest: list[str], verb: str) -> dict[str, Any]:
    """``--a.b 1`` and ``--a.b=1`` to ``{"a.b": 1}``; values are YAML.

    Raises:
        UserError: something that is no setting by dotted name.
    """
    import yaml

    overrides, items = {}, list(rest)
    while items:
        item = items.pop(0)
        name, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or ("." not in name and name != "seed"):
            raise UserError(unknown_option(item, verb))
        if not equals:
            if not items or items[0].startswith("--"):
                raise UserError(f"{item} needs a value")
            value = items.pop(0)
        overrides[name] = yaml.safe_load(value)
    return overrides


def parse_columns(text: str) -> dict[str, str]:
    """``image=file,label=`` to ``{"image": "file", "label": ""}``.

    Raises:
        UserError: a part without ``=``.
    """
    parts = text.split(",")
    for part in parts:
        if "=" not in part:
            raise UserError(f"--columns: {part!r} is no FIELD=COLUMN, such as image=images/{{file}},patient=subject")
    return dict(part.split("=", 1) for part in parts)


def unknown_option(item: str, verb: str) -> str:
    """The sentence about an option that a verb does not have."""
    from ssl_med.recipe import nearest

    known = [name for name in known_options(verb) if name.startswith("--")]
    return f"{item!r} is no option of ssl-med {verb}; {nearest(item.partition('=')[0], known)}"


def known_options(verb: str) -> list[str]:
    """Names of a verb's options."""
    parser = argparse.ArgumentParser(add_help=False)
    VERBS[verb][1](parser)
    return [name for action in parser._actions for name in action.option_strings or [action.dest]]


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Call the verb; the exit code says whether it succeeded."""
    import importlib

    options = {k: v for k, v in vars(arguments).items() if k not in ("verb", "debug")}
    if arguments.verb in ("pretrain", "finetune", "curve"):
        options["overrides"] = parse_overrides(rest, arguments.verb)
    elif rest:
        raise UserError(unknown_option(rest[0], arguments.verb))
    ways = {name: options.pop(name) for name in ("slurm", "torchrun", "supervise") if name in options}
    if any(way not in (None, False) for way in ways.values()):
        from ssl_med.verbs.launch import launch

        return launch(arguments.verb, options, **ways)
    if options.get("columns"):
        options["columns"] = parse_columns(options["columns"])
    module = importlib.import_module(f"ssl_med.verbs.{_MODULES.get(arguments.verb, arguments.verb)}")
    result = getattr(module, arguments.verb)(**options)
    if arguments.verb == "doctor":
        return int(any(check.status == "fail" for check in result))
    return int(arguments.verb == "card" and any(finding.level == "error" for finding in result))


def main(argv: list[str] | None = None) -> int:
    """Entry point: one sentence for a person's mistake, a traceback only with ``--debug``."""
    arguments, rest = build_parser().parse_known_args(argv)
    if argv is None and arguments.verb == "prepare":  # this process is ours, and does nothing else
        from ssl_med.data.heap import keep_memory

        keep_memory()
    try:
        return run(arguments, rest)
    except KeyboardInterrupt as stop:
        print("\nstopped; repeat the command to go on", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Stopped) else 130
    except UserError as error:
        if arguments.debug:
            raise
        print(f"ssl-med {arguments.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if arguments.debug:
            raise
        print(f"ssl-med {arguments.verb}: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
