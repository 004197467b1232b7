"""Configs made to harm: none of them runs anything, each is refused with its line, in little memory and time (F31)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ssl_med.config import find_config, load_config, short_names
from ssl_med.errors import UserError
from ssl_med.plain_yaml import BYTES, DEPTH, VALUES, read_yaml

TASK = "task:\n  class_path: ssl_med.tasks.MAE\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
BOMBS: dict[str, tuple[str, str]] = {
    "a function of Python's own library": (
        "task:\n  class_path: os.system\n  init_args: {command: 'touch MARKER'}",
        "2",
    ),
    "a module that acts when it is imported": ("task:\n  class_path: antigravity.fly\n", "2"),
    "a builtin": ('task:\n  class_path: builtins.eval\n  init_args: {source: \'open("MARKER", "w")\'}', "2"),
    "a program of a package": ("task:\n  class_path: pip.__main__.main\n", "2"),
    "a function of a library": ("task:\n  class_path: torch.load\n  init_args: {f: MARKER}", "1"),
    "a part that is outside": (
        f"{TASK}  init_args:\n    backbone:\n      class_path: subprocess.Popen\n"
        "      init_args: {args: [touch, MARKER]}",
        "5",
    ),
    "a part in a list": (
        f"{TASK}  init_args:\n    backbone: {{class_path: ssl_med.backbones.ViT}}\n    views:\n"
        "      class_path: ssl_med.transforms.SingleView\n      init_args:\n        transforms:\n"
        "          - class_path: os.system\n            init_args: {command: touch MARKER}",
        "9",
    ),
    "a part named without its arguments": (f"{TASK}  init_args:\n    backbone: antigravity.fly\n", "4"),
    "parts named in a list": (
        f"{TASK}  init_args:\n    backbone: {{class_path: ssl_med.backbones.ViT}}\n    views:\n"
        "      class_path: ssl_med.transforms.SingleView\n      init_args: {transforms: [antigravity.fly]}",
        "7",
    ),
    "a setting of the trainer": (f"{TASK}trainer:\n  strategy: antigravity.fly\n", "4"),
    "a call by a tag": ("task: !!python/object/apply:os.system ['touch MARKER']", "1"),
    "an object by a tag": (f"{TASK}seed: !!python/object/new:subprocess.Popen [[touch, MARKER]]", "3"),
    "a module by a tag": (f"{TASK}seed: !!python/module:antigravity", "3"),
    "an expression": (f"{TASK}learner:\n  lr: $__import__('os').system('touch MARKER')", "4"),
    "a variable of the environment": (f"{TASK}init_from:\n  source: ${{oc.env:SECRET}}", "4"),
    "a variable inside of a word": (f"{TASK}data: {{folder: '/scans/${{SECRET}}'}}", "3"),
    "a million levels": (f"{TASK}seed: {'[' * 900_000}", "3"),
    "a million levels by dashes": (f"{TASK}seed:\n  {'- ' * 400_000}x", "4"),
    "a million levels by questions": (f"{TASK}seed:\n  {'? ' * 400_000}x", "4"),
    "a million levels of sections": (f"{TASK}seed: {'{a: ' * 200_000}", "3"),
    "ten to the eleventh by aliases": (LAUGHS + TASK, "5"),
    "ten to the eleventh by merging": (MERGES + TASK, ""),
    "a list in itself": (f"{TASK}trainer: &a [*a]", "3"),
    "a section in itself": (f"{TASK}trainer: &a {{<<: *a}}", "3"),
    "a number of too many digits": (f"{TASK}seed: {'9' * 100_000}", "3"),
    "a file of a gigabyte": ("", ""),
}
"""What is wrong -> the file, and the line that the refusal names; MARKER is a file that must not appear."""

IN_BOUNDS = """
import json, resource, sys
from pathlib import Path
from ssl_med.config import check_sections, load_config
from ssl_med.errors import UserError
import pytorch_lightning, ssl_med.learner, ssl_med.callbacks.settings, ssl_med.data.module, ssl_med.weights
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (512 << 20),) * 2)
used = resource.getrusage(resource.RUSAGE_SELF)
resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 60,) * 2)
said = {}
for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
    try:
        load_config(str(path), "pretrain")
    except UserError as error:
        said[path.stem] = str(error)
foreign = sorted({"antigravity", "pip.__main__"} & set(sys.modules))
Path(sys.argv[2]).write_text(json.dumps([said, foreign]))
"""
"""All of them in one process with 512 MB and 60 seconds of a core beyond what the imports took."""


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> tuple[dict[str, str], Path]:
    """What each file is told, and the file that none may make."""
    folder = tmp_path_factory.mktemp("bombs")
    marker, report = folder / "executed", folder / "report.json"
    for number, (text, _) in enumerate(BOMBS.values()):
        (folder / f"{number:02d}.yaml").write_text(text.replace("MARKER", str(marker)))
    with (folder / f"{list(BOMBS).index('a file of a gigabyte'):02d}.yaml").open("wb") as large:
        large.truncate(1 << 30)
    environment = {"SECRET": "open sesame", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment["BROWSER"] = f"touch {marker}"  # what antigravity opens a page with
    words = [sys.executable, "-c", IN_BOUNDS, str(folder), str(report)]
    done = subprocess.run(
        words, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, foreign = json.loads(report.read_text())
    assert foreign == []
    return {name: said.get(f"{number:02d}", "") for number, name in enumerate(BOMBS)}, marker


def test_of_26_configs_none_runs_and_all_are_refused(refused):
    said, marker = refused
    assert len(BOMBS) == 26
    assert [name for name, message in said.items() if not message] == []
    assert not marker.exists()


@pytest.mark.parametrize("name", BOMBS)
def test_the_refusal_is_short_and_names_the_line(refused, name):
    message, line = refused[0][name], BOMBS[name][1]
    assert len(message) < 700
    assert "open sesame" not in message
    if name == "a file of a gigabyte":
        assert f"at most {BYTES:,}" in message
    else:
        assert f"line {line}" in message


def test_the_payloads_bite(tmp_path):
    """The same text, read as YAML can be read, does run: the test above would notice."""
    marker = tmp_path / "executed"
    yaml.unsafe_load(BOMBS["a call by a tag"][0].replace("MARKER", str(marker)))
    assert marker.exists()


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_shipped_configs_are_far_from_the_limits(kind):
    for name in short_names(kind):
        path = find_config(name, kind)
        assert read_yaml(path)[0] == yaml.safe_load(path.read_text())
        assert path.stat().st_size < BYTES / 100
        assert sum(1 for _ in yaml.parse(path.read_text())) < VALUES / 20
    assert DEPTH > 30


def test_aliases_and_merges_in_measure_are_what_yaml_says(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 3}\n")
    content, lines = read_yaml(path)
    assert content == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 1, "y": [1, 2]}, "c": {"x": 3, "y": [1, 2]}}
    assert lines["a.y.1"] == 1
    assert lines["c"] == 3


@pytest.mark.parametrize("value", ["2024-13-45", "!!int x", "!!int ''", "!!bool x", "!!timestamp x", "!!float x"])
def test_a_value_that_is_not_what_it_looks_like_is_told_with_its_line(tmp_path, value):
    path = tmp_path / "mine.yaml"
    path.write_text(f"task: 1\nseed: {value}\n")
    with pytest.raises(UserError, match=r"is not valid YAML: .* line 2"):
        read_yaml(path)


def test_errors_of_settings_name_their_line_unless_the_command_line_set_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{TASK}  init_args:\n    mask_ration: 0.5\n    backbone: {{class_path: ssl_med.backbones.ViT}}\n")
    with pytest.raises(UserError, match=r"mine\.yaml, line 4: task\.init_args\.mask_ration: "):
        load_config(str(path), "pretrain")
    path.write_text(f"{TASK}  init_args: {{mask_ratio: 0.5, backbone: {{class_path: ssl_med.backbones.ViT}}}}\n")
    with pytest.raises(UserError, match=r"^task\.init_args\.mask_ratio: "):
        load_config(str(path), "pretrain", {"task.mask_ratio": "much"})
