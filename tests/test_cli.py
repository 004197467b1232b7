"""The command line: light until the verb is known, one sentence for a mistake, and the nearest name for a typo."""

import subprocess
import sys

import pytest
from stores import pictures, store_of

import ssl_med
from ssl_med.cli import VERBS, build_parser, main, parse_columns, parse_overrides
from ssl_med.errors import UserError

LIGHT = """
import contextlib, io, sys
import ssl_med
from ssl_med.cli import VERBS, main
for arguments in ([], *([verb] for verb in VERBS)):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    assert "usage: ssl-med" in text.getvalue(), arguments
heavy = {"torch", "pytorch_lightning", "lightning", "numpy", "monai", "timm"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    store_of(pictures(folder / "in", 10), folder / "store")
    return str(folder / "store")


def error_of(capsys, *arguments: str) -> str:
    """What is said about a mistake; one line, and not a traceback."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    return said


def test_help_and_import_load_nothing_heavy():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_every_verb_is_a_function_of_the_package():
    for verb in VERBS:
        assert callable(getattr(ssl_med, verb)), verb
        assert verb in ssl_med.__all__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "mae_3", "--data", "{store}", "--out", "x"], "did you mean 'mae_3d'"),
        (["pretrain", "smoke/mae_2d", "--data", "{store}", "--out", "x", "--overwite"], "mean '--overwrite'"),
        (["pretrain", "smoke/mae_2d", "--data", "nowhere", "--out", "x"], "nowhere is not a store"),
        (["pretrain", "smoke/mae_2d", "--data", "{store}", "--out", "x", "--data.cro", "8"], "did you mean 'crop'"),
        (["pretrain", "smoke/mae_2d", "--data", "{store}", "--out", "x", "--data.crop"], "needs a value"),
        (["inspect", "{store}", "--limt", "3"], "'--limt' is no option of ssl-med inspect; did you mean '--limit'"),
        (["prepare", "{store}", "--out", "x", "--columns", "image"], "'image' is no FIELD=COLUMN"),
        (["prepare", "nowhere", "--out", "x"], "nowhere does not exist"),
        (["export", "nowhere", "--out", "x"], "nowhere holds no run"),
        (["probe", "nowhere", "--data", "{store}"], "nowhere holds no export"),
    ],
)
def test_a_mistake_is_one_sentence(store, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *[part.format(store=store) for part in arguments])
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(store, tmp_path):
    with pytest.raises(UserError, match="did you mean"):
        main(["pretrain", "mae_3", "--data", store, "--out", str(tmp_path / "x"), "--debug"])


def test_an_unexpected_error_is_one_line_too(monkeypatch, capsys):
    import ssl_med.verbs.inspect as verb

    def broken(**options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(verb, "inspect", broken)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == "ssl-med inspect: ZeroDivisionError: by zero (--debug shows where)\n"


def test_an_unknown_verb_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrian"])
    assert stop.value.code == 2
    assert "pretrain" in capsys.readouterr().err


def test_overrides_are_yaml_values_by_dotted_name():
    rest = ["--a.b", "1", "--c.d=[1, 2]", "--e.f", "-0.5", "--seed", "7", "--g.h=null", "--i.j", "x=y"]
    expected = {"a.b": 1, "c.d": [1, 2], "e.f": -0.5, "seed": 7, "g.h": None, "i.j": "x=y"}
    assert parse_overrides(rest, "pretrain") == expected


@pytest.mark.parametrize("rest", [["word"], ["--labels"], ["--a.b"], ["--a.b", "--c.d", "1"]])
def test_what_is_no_override_is_refused(rest):
    with pytest.raises(UserError):
        parse_overrides(rest, "pretrain")


def test_columns():
    assert parse_columns("image=images/{file},label=") == {"image": "images/{file}", "label": ""}


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == ssl_med.__version__


@pytest.mark.parametrize(("option", "instead"), [("--data.labels", "--labels"), ("--seed", "--seeds")])
def test_settings_that_finetune_fills_in_are_refused(tmp_path, capsys, option, instead):
    arguments = ["finetune", "smoke/segment", "--data", str(tmp_path), "--init", str(tmp_path), "--out", str(tmp_path)]
    assert main([*arguments, option, "4"]) == 2
    assert f"is set by finetune itself; use {instead}" in capsys.readouterr().err


def test_environment_gives_data_and_out(monkeypatch):
    parse = lambda *words: vars(build_parser().parse_args(words))  # noqa: E731
    with pytest.raises(SystemExit):
        parse("pretrain", "mae_3d")
    monkeypatch.setenv("SSL_MED_DATA", "scans")
    monkeypatch.setenv("SSL_MED_OUT", "runs")
    assert (parse("pretrain", "mae_3d")["data"], parse("pretrain", "mae_3d")["out"]) == ("scans", "runs")
    assert parse("prepare")["data"] == "scans"
    assert parse("prepare", "others", "--out", "there") | {"data": "others", "out": "there"} == parse(
        "prepare", "others", "--out", "there"
    )
