"""The report tells what a run folder holds, hides where it lies, and survives what is broken."""

import base64
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ssl_med.errors import UserError
from ssl_med.reporting import progress_png, report
from ssl_med.reporting.labels import BETTER, NO_DIFFERENCE, NOT_COMPUTED, WORSE, effect
from ssl_med.reporting.metrics import read_metrics, smooth, thin
from ssl_med.reporting.reading import find_runs
from ssl_med.reporting.redact import hide_paths, hide_places
from ssl_med.reporting.scales import fitted, powers_of_ten, round_values

# 1 x 1 transparent pixel
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects the text, the tags and the attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def run_json(**changes) -> dict:
    data = {"fingerprint": "f00dcafe", "images": 20, "patients": 17, "spatial_dims": 3, "channels": 1}
    return {
        "kind": "pretrain",
        "status": "finished",
        "task": "ssl_med.tasks.MAE",
        "backbone": "ViT small, 3D",
        "steps": 2000,
        "step": 2000,
        "seconds": 93.1,
        "parameters": {"backbone": 22_100_000, "task": 456},
        "seed": 0,
        "started": "2026-03-01T12:30:00+00:00",
        "version": "0.1.0",
        "versions": {"torch": "2.10.0"},
        "device": "cpu",
        "precision": "bf16-mixed",
        "data": {**data, "modalities": {"MR": 20}},
        "notes": ["Only 20 images: expect little."],
    } | changes


def table_json(low=0.01, high=0.05, verdict="Pretraining raised dice by 0.030.") -> dict:
    rows = [
        {
            "arm": arm,
            "labels": labels,
            "seed": seed,
            "scores": {"dice": base + 0.01 * seed + 0.02 * labels, "dice_1": 0.5},
        }
        for arm, base in (("pretrained", 0.6), ("scratch", 0.57))
        for labels in (2, 4)
        for seed in range(3)
    ]
    summary = [
        {"arm": arm, "labels": labels, "mean": base + 0.01 + 0.02 * labels, "spread": 0.01, "n": 3}
        for arm, base in (("pretrained", 0.6), ("scratch", 0.57))
        for labels in (2, 4)
    ]
    difference = {"mean": (low + high) / 2, "low": low, "high": high, "n": 3}
    head = {"metric": "dice", "higher_is_better": True, "unit": "test subjects"}
    return {**head, "rows": rows, "summary": summary, "difference": difference, "verdict": verdict}


def metric_lines(steps: int = 200) -> list[dict]:
    lines: list[dict] = []
    for step in range(10, 10 * steps + 1, 10):
        line = {
            "step": step,
            "loss": 0.4 + 0.6 * math.exp(-step / 500) + 0.02 * math.sin(step),
            "lr": 1e-4 * step / 2000,
        }
        if step % 200 == 0:
            line |= {"probe/knn": 0.5 + step / 10_000, "probe/knn_random": 0.523, "probe/linear": 0.61}
            line |= {"health/feature_spread": 0.9, "health/effective_rank": 12 + step / 300, "val/dice": 0.7}
        lines.append(line)
    return lines


def write_metrics(folder: Path, lines: list) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_pictures(folder: Path, count: int) -> None:
    (folder / "plots").mkdir(parents=True)
    for index in range(1, count + 1):
        (folder / "plots" / f"pictures_step={200 * index:07d}.png").write_bytes(PIXEL)


def write_export(folder: Path, sha256: str) -> None:
    recipe = {"class_path": "ssl_med.backbones.ViT", "init_args": {"block": {"class_path": "timm.Block"}}}
    parts = {"backbone": recipe | {"file": "backbone.safetensors", "sha256": sha256, "parameters": 7}}
    write_json(folder / "card.json", {"format": 1, "parts": parts})
    (folder / "backbone.safetensors").write_bytes(b"weights")


# sha256sum of the seven bytes "weights"
WEIGHTS_SHA256 = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"


@pytest.fixture
def full_run(tmp_path):
    folder = tmp_path / "everything"
    write_json(folder / "run.json", run_json())
    write_json(folder / "table.json", table_json())
    write_metrics(folder, metric_lines())
    write_pictures(folder, 5)
    write_export(folder / "exports" / "last", WEIGHTS_SHA256)
    (folder / "config.yaml").write_text(f"seed: 0\ndata: {tmp_path}/Patients/smith john\nmonitor: probe/knn\n", "utf-8")
    return folder


def read_page(folder: Path) -> Page:
    return Page(report(folder).read_text("utf-8"))


def test_a_full_run_shows_its_numbers(full_run):
    text = read_page(full_run).text
    for expected in (
        "Pretraining raised dice by 0.030.",
        BETTER,
        "Only 20 images: expect little.",
        "2,000 of 2,000",
        "1 min 33 s",
        "17 patients",
        "backbone 22.1 million",
        "2026-03-01 12:30 UTC",
        "random weights 0.523",
        "kNN probe: 0.700 at the end, above random weights (0.523).",
        "Linear probe: 0.610 at the end; random weights were not measured",
        "0.690 \N{PLUS-MINUS SIGN} 0.010",
        "spread over 3 seeds.",
        "+0.030, interval +0.010 to +0.050, n = 3",
        "f00dcafe",
        "ViT",
        "Last: step 1,000",
        "First, for comparison: step 200",
        "3 of the 3 panels between them",
    ):
        assert expected in text, expected


def test_the_page_needs_nothing_but_itself(full_run):
    page = read_page(full_run)
    assert "script" not in page.tags
    assert "link" not in page.tags
    raw = (full_run / "report.html").read_text("utf-8")
    assert re.search(r"https?://|url\(|@import", raw) is None
    for name, value in page.attributes:
        if name in {"src", "href"}:
            assert value.startswith(("data:image/png;base64,", "#")), value[:40]
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 5
    assert all(base64.b64decode(source.split(",", 1)[1]) == PIXEL for source in sources)


def test_no_place_of_the_machine_is_in_the_page(full_run, tmp_path):
    write_json(
        full_run / "run.json",
        run_json(
            notes=[f"Left out {tmp_path}/a b/jones.nii.gz", r"See C:\Users\kim\scan.dcm", "~/kim/x and s3://b/kim"]
        ),
    )
    page = read_page(full_run)
    raw = (full_run / "report.html").read_text("utf-8")
    for secret in (str(tmp_path), "smith", "john", "jones", "kim"):
        assert secret not in raw, secret
    assert "data: (local path)" in page.text
    assert "monitor: probe/knn" in page.text


def test_everything_foreign_is_escaped(tmp_path):
    folder = tmp_path / "run"
    notes = [ATTACK]
    write_json(
        folder / "run.json", run_json(task=ATTACK, backbone=ATTACK, status=ATTACK, notes=notes, device='" onload="x')
    )
    table = table_json(verdict=ATTACK) | {"metric": ATTACK, "unit": ATTACK}
    rows = [{"arm": ATTACK, "labels": 2, "seed": 0, "scores": {ATTACK: 0.5}}]
    write_json(folder / "table.json", table | {"summary": [], "rows": rows})
    line = {"step": 1, "loss": 1.0, f"probe/{ATTACK}": 0.5, f"val/{ATTACK}": 0.5, f"health/{ATTACK}": 1.0}
    write_metrics(folder, [line, line | {"step": 2, ATTACK: "nan"}])
    (folder / "config.yaml").write_text(f'note: "{ATTACK}"\n"{ATTACK}": 1\n', "utf-8")
    page = read_page(folder)
    raw = (folder / "report.html").read_text("utf-8")
    assert "<script" not in raw
    assert "script" not in page.tags
    assert "onload" not in dict(page.attributes)
    assert page.text.count("<script>alert(1)<") > 8


@pytest.mark.parametrize(
    ("low", "high", "expected", "look"),
    [
        (0.01, 0.05, BETTER, "better"),
        (-0.02, 0.03, NO_DIFFERENCE, "open"),
        (0.0, 0.03, NO_DIFFERENCE, "open"),
        (-0.05, -0.01, WORSE, "worse"),
    ],
)
def test_every_verdict_stands_in_the_same_place(tmp_path, low, high, expected, look):
    folder = tmp_path / "finetune"
    write_json(folder / "table.json", table_json(low, high, "The plain sentence."))
    report(folder)
    raw = (folder / "report.html").read_text("utf-8")
    box = f'<section class="summary"><h2>Summary</h2><div class="verdict {look}"><p class="badge">{expected}</p>'
    assert box + "<p>The plain sentence.</p>" in raw


def test_effect_follows_the_direction_of_the_metric():
    error = table_json(-0.05, -0.01) | {"higher_is_better": False}
    assert effect(error) == BETTER
    assert effect(table_json(math.nan, 0.1)) == NOT_COMPUTED
    assert effect({"difference": None}) == NOT_COMPUTED


def test_means_are_worked_out_where_the_table_has_none(tmp_path):
    table = table_json()
    del table["summary"], table["difference"], table["verdict"]
    table["rows"][0]["scores"]["dice"] = None
    write_json(tmp_path / "table.json", table)
    text = read_page(tmp_path).text
    assert "0.655 \N{PLUS-MINUS SIGN} 0.007 (2)" in text  # 0.65 and 0.66
    assert "Worked out for this page" in text
    assert "1 of 12 rows have no finite dice" in text
    assert "The label table holds no verdict." in text
    assert NOT_COMPUTED in text


def test_absent_parts_are_named(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "loss": 1.0}])
    text = read_page(tmp_path).text
    for part in ("run.json", "config.yaml", "table.json", "pictures in plots/", "exports", "No probe was logged"):
        assert part in text, part
    assert "was not measured here" in text
    assert "metrics.jsonl" not in text


def test_not_finite_values_are_counted_and_drawn_around(tmp_path):
    lines = metric_lines(20)
    lines[3]["loss"] = math.nan
    lines[4]["loss"] = math.inf
    lines[5]["lr"] = None
    write_metrics(tmp_path, [*lines, '{"step": 999, "lo', "7"])
    page = read_page(tmp_path)
    assert "Values of loss that were not finite and are in no curve: 2." in page.text
    assert "Values of lr that were not finite and are in no curve: 1." in page.text
    assert "Lines of metrics.jsonl that could not be read: 2." in page.text
    drawn = " ".join(value for name, value in page.attributes if name in {"points", "y1", "cy"})
    assert drawn
    assert re.search("nan|inf", drawn) is None
    assert progress_png(tmp_path).stat().st_size > 5000


def test_nothing_finite_at_all(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "loss": math.nan}])
    text = read_page(tmp_path).text
    assert "Values of loss that were not finite and are in no curve: 1." in text
    assert progress_png(tmp_path).is_file()


def test_broken_files_are_said_to_be_broken(tmp_path):
    (tmp_path / "run.json").write_text("{", "utf-8")
    (tmp_path / "table.json").write_text("[]", "utf-8")
    (tmp_path / "config.yaml").write_text("a: [", "utf-8")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "pictures_step=0000001.png").write_bytes(b"no picture")
    text = read_page(tmp_path).text
    assert "run.json could not be read" in text
    assert "table.json could not be read: it holds no JSON object." in text
    assert "config.yaml is not shown" in text
    assert "is not a PNG picture" in text


@pytest.mark.parametrize(("sha256", "fits"), [(WEIGHTS_SHA256, True), ("0" * 64, False)])
def test_exports_are_checked_against_their_card(tmp_path, sha256, fits):
    write_json(tmp_path / "run.json", run_json())
    write_export(tmp_path / "exports" / "best", sha256)
    text = read_page(tmp_path).text
    assert WEIGHTS_SHA256 in text
    assert "ViT, Block" in text
    assert ("the SHA-256 differs" in text) is not fits


def test_an_export_without_its_weights_is_reported(tmp_path):
    write_json(tmp_path / "run.json", run_json())
    write_export(tmp_path / "exports" / "best", WEIGHTS_SHA256)
    (tmp_path / "exports" / "best" / "backbone.safetensors").unlink()
    write_json(tmp_path / "exports" / "empty" / "card.json", {"format": 1})
    text = read_page(tmp_path).text
    assert "Export best: backbone.safetensors is absent." in text
    assert "Export empty: the card names no parts." in text


def test_a_folder_of_runs_gives_one_page_with_pretraining_first(tmp_path):
    write_json(tmp_path / "a_finetune" / "run.json", run_json(kind="finetune", task="finetune.Segmentation"))
    write_json(tmp_path / "a_finetune" / "table.json", table_json(-0.05, -0.01, "Pretraining lowered dice."))
    write_json(tmp_path / "pretrain" / "run.json", run_json(status="running", step=700))
    target = tmp_path / "elsewhere" / "page.html"
    assert report(tmp_path, target) == target
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]
    page = Page(target.read_text("utf-8"))
    chapters = [value for name, value in page.attributes if name == "id"]
    assert chapters == ["run-1", "run-2"]
    assert page.text.index("pretrain: MAE") < page.text.index("a_finetune: Segmentation")
    assert "700 of 2,000" in page.text
    assert WORSE in page.text
    assert {"#run-1", "#run-2"} <= {value for name, value in page.attributes if name == "href"}


def test_the_runs_of_a_comparison_follow_its_table(tmp_path):
    arm = tmp_path / "runs" / "finetune" / "scratch_seed=0"
    arm.mkdir(parents=True)
    (arm / "run.json").write_text(json.dumps({"kind": "finetune", "status": "finished", "started": "2026-01-02"}))
    facts = {"kind": "comparison", "status": "finished", "started": "2026-01-01"}
    (arm.parent / "run.json").write_text(json.dumps(facts))
    names = [run.name for run in find_runs(tmp_path / "runs")]
    assert names == ["finetune", "scratch_seed=0"]
    text = report(tmp_path / "runs").read_text()
    assert text.count("Not in this run") == 1  # of the arm; a table over runs lacks nothing


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder named 'none'"):
        report(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds none of run\.json"):
        report(tmp_path)
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        progress_png(tmp_path)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("read /data/x.nii", "read (local path)"),
        ("(/data/x)", "((local path)"),
        ("out=/srv/a", "out=(local path)"),
        ("/data/My Scans/Anna K/1.nii failed", "(local path) failed"),
        (r"\\server\share\x", "(local path)"),
        ("D:/scans/x", "(local path)"),
        ("../x/y", "(local path)"),
        ("file:///data/x", "(address)"),
        ("val/dice 12 GB/s, mean / spread, 1/2", "val/dice 12 GB/s, mean / spread, 1/2"),
        ("ssl_med.tasks.MAE: ok", "ssl_med.tasks.MAE: ok"),
    ],
)
def test_paths_are_hidden_and_nothing_else(text, hidden):
    assert hide_paths(text) == hidden


def test_configs_hide_relative_places_too():
    config = {"data": "patients/smith", "class_path": "a.B", "model": {"init_args": {"depth": 2, "ckpt_path": "x"}}}
    hidden = {"data": "(local path)", "class_path": "a.B"}
    assert hide_places(config) == hidden | {"model": {"init_args": {"depth": 2, "ckpt_path": "(local path)"}}}
    assert hide_places({"files": ["a", "b"], "data": None}) == {"files": ["(local path)"] * 2, "data": None}


def test_a_resumed_step_keeps_its_last_value(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 4.0}])
    assert read_metrics(tmp_path / "metrics.jsonl").series["loss"] == [(1.0, 5.0), (2.0, 4.0)]


def test_smoothing_keeps_a_constant_and_has_no_start_bias():
    assert all(value == pytest.approx(3.0) for _, value in smooth([(step, 3.0) for step in range(100)]))
    assert smooth([(0, 7.0), (1, 1.0)])[0] == (0, pytest.approx(7.0))


def test_thinning_keeps_every_extreme():
    points = [(float(step), math.sin(step)) for step in range(10_000)]
    points[4321] = (4321.0, 50.0)
    kept = thin(points)
    assert len(kept) < 500
    assert (4321.0, 50.0) in kept
    assert kept == sorted(kept)


def test_axes_carry_round_numbers():
    assert round_values(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_values(-3.0, 12.0, 3) == [0.0, 5.0, 10.0]
    assert powers_of_ten(0.01, 10.0) == [0.01, 0.1, 1.0, 10.0]
    scale = fitted([0.001, 10.0], 100.0, 0.0, may_bend=True)
    assert scale.logarithmic
    assert scale(0.1) == pytest.approx(50.0)
    flat = fitted([2.0, 2.0], 100.0, 0.0)
    assert flat(2.0) == pytest.approx(50.0)


def test_the_progress_picture_is_a_png_with_a_panel_per_probe(full_run):
    content = progress_png(full_run).read_bytes()
    assert content[:4] == b"\x89PNG"
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert width > 3.5 * height  # loss, kNN, linear side by side
    assert not list(full_run.glob("*.part"))


def test_a_report_needs_neither_torch_nor_matplotlib(full_run):
    code = (
        "import sys; from ssl_med.verbs.report import report; report(sys.argv[1]); "
        "sys.exit(' '.join({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(full_run)], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
