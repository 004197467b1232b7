"""``ssl-med demo``: the whole job on data that arrives by pip, through the same verbs a user's files take."""

import time
from pathlib import Path

SUBJECTS = 24
SPACING_MM = 3.0
LABELS = 2
SEEDS = 2


def demo(out: str | Path = "ssl-med-demo", seed: int = 0) -> Path:
    """Make synthetic subjects, then inspect, prepare, pretrain, probe, fine-tune against scratch, predict and report.

    The subjects are synthetic: warped and re-imaged copies of one real brain template (MNI152, the average of 152
    people, from nilearn). Their files are then read like anybody's.

    Args:
        out: folder of everything; repeating the command goes on where it stopped.
        seed: of the subjects and of the training.

    Returns:
        The report.
    """
    from ssl_med.data.samples import write_cohort, write_examples
    from ssl_med.files import write_json
    from ssl_med.run_folder import is_finished
    from ssl_med.verbs.finetune import finetune
    from ssl_med.verbs.inspect import inspect
    from ssl_med.verbs.predict import predict
    from ssl_med.verbs.prepare import prepare
    from ssl_med.verbs.pretrain import pretrain
    from ssl_med.verbs.probe import probe
    from ssl_med.verbs.report import report

    out, began = Path(out), time.monotonic()
    scans, store, runs = out / "scans", out / "store", out / "runs"
    _say("1/8 data", f"{SUBJECTS} SYNTHETIC subjects from the MNI152 template (nilearn), as NIfTI and one DICOM series")
    write_cohort(scans, SUBJECTS, seed, SPACING_MM)
    _say("2/8 inspect", "what is in the folder, and in the real scans that pydicom carries")
    inspect(scans)
    inspect(write_examples(out / "examples"))
    _say("3/8 prepare", "scans to a store")
    prepare(scans, store)
    _say("4/8 pretrain", "a 3D ViT by MAE on the training subjects, without labels")
    base = runs / "pretrain"
    if is_finished(base, {"seed": seed}):
        print(f"{base} is finished")
    else:
        pretrain("demo_mae_3d", store, base, {"seed": seed})
    _say("5/8 probe", "what the frozen backbone knows about tissue, beside random weights")
    write_json(base / "probe.json", probe(base, store, seed=seed))
    _say(
        "6/8 fine-tune", f"tissue segmentation on {LABELS} labelled subjects, pretrained against scratch, {SEEDS} seeds"
    )
    table = finetune("demo_segment_3d", store, base, runs / "finetune", LABELS, SEEDS, compare=True)
    _say("7/8 predict", "the fine-tuned model on the DICOM series")
    series = sorted(path for path in (scans / "images").iterdir() if path.is_dir())
    predict(runs / "finetune" / f"pretrained_labels={LABELS}_seed=0", series[0], out / "predictions")
    _say("8/8 report", "one page")
    page = report(runs, out / "report.html")
    print(f"\n{table['verdict']}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes. Exported backbone: {base / 'exports' / 'backbone'}")
    print(f"Report: {page}")
    return page


def _say(step: str, text: str) -> None:
    print(f"\n== {step}: {text}", flush=True)
