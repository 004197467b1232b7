"""``train.log``: everything that was said, no path, and never the reason that a run ends."""

import logging

import pytest

from ssl_med.run_log import LOG, run_log


def test_said_on_the_terminal_and_noted_with_the_time(tmp_path, capsys):
    with run_log(tmp_path):
        LOG.info("step 1")
        LOG.warning("features are constant")
        LOG.info("only noted", extra={"quiet": True})
    LOG.info("after the run")
    said, lines = capsys.readouterr(), (tmp_path / "train.log").read_text().splitlines()
    assert (said.out, said.err) == ("step 1\n", "features are constant\n")
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO step 1",
        "WARNING features are constant",
        "INFO only noted",
    ]


def test_a_failure_is_noted_without_paths_and_goes_on_up(tmp_path):
    with pytest.raises(OSError, match="scan"), run_log(tmp_path):
        raise OSError("cannot read /home/doe/scan.nii.gz")
    assert (tmp_path / "train.log").read_text().endswith("ERROR OSError: cannot read (local path)\n")


def test_a_second_run_adds_to_the_file_and_leaves_no_handler(tmp_path):
    before = list(LOG.handlers), list(logging.getLogger("pytorch_lightning").handlers)
    for number in range(2):
        with run_log(tmp_path):
            LOG.info("run %d", number)
    assert [line[-5:] for line in (tmp_path / "train.log").read_text().splitlines()] == ["run 0", "run 1"]
    assert before == (list(LOG.handlers), list(logging.getLogger("pytorch_lightning").handlers))


def test_a_disk_that_is_full_costs_one_warning(tmp_path, capsys):
    (tmp_path / "train.log").mkdir()  # nothing can be written there
    with run_log(tmp_path):
        LOG.info("one")
        LOG.info("two")
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n"
    assert said.err.count("train.log cannot be written") == 1
