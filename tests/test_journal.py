"""What a run writes while it goes on: exact numbers, whole lines, nothing twice after a resume."""

import json
import math

import pytest

from ssl_med.callbacks import JsonLines
from ssl_med.callbacks.journal import clock
from ssl_med.callbacks.settings import Watching


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_exact(tmp_path):
    log = JsonLines(tmp_path)
    log.log_metrics({"loss": 0.1 + 0.2, "epoch": 0.0}, 1)
    log.log_metrics({"loss": 1 / 3}, 2)
    assert lines(tmp_path) == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1 / 3}]


def test_what_json_cannot_say_becomes_words(tmp_path):
    JsonLines(tmp_path).log_metrics({"a": math.nan, "b": -math.inf}, 1)
    assert lines(tmp_path) == [{"step": 1, "a": "nan", "b": "-inf"}]


@pytest.mark.parametrize(("resumed", "kept"), [(0, []), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])])
def test_a_resume_drops_the_steps_that_are_run_again(tmp_path, resumed, kept):
    log = JsonLines(tmp_path)
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # cut off by a kill
    JsonLines(tmp_path, resumed).log_metrics({"loss": 9.0}, 10)
    assert [line["step"] for line in lines(tmp_path)] == [*kept, 10]


def test_clock():
    assert [clock(seconds) for seconds in (-3.0, 0.0, 59.6, 93661.0)] == [
        "0:00:00",
        "0:00:00",
        "0:01:00",
        "26:01:01",
    ]


def test_only_known_trackers(tmp_path):
    with pytest.raises(ValueError, match="'mlflow' is not known; valid: tensorboard, wandb"):
        Watching(track=["mlflow"]).loggers(tmp_path, 0)
    assert [type(log).__name__ for log in Watching().loggers(tmp_path, 0)] == ["JsonLines"]


def test_nothing_is_sent_unless_asked():
    assert Watching().online is False


def test_callbacks_of_both_kinds():
    names = [[type(c).__name__ for c in Watching().callbacks(kind)] for kind in ("pretrain", "finetune")]
    assert names == [
        ["Progress", "Guard", "Health", "Probes", "Pictures", "Waiting", "Checkpoints"],
        ["Progress", "Guard", "Validate", "Pictures", "Waiting", "Checkpoints"],
    ]
