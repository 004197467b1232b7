"""What the README and the docs print is run: snippets as they stand, commands as far as their options."""

import re
import shlex
from pathlib import Path

import pytest
from stores import store_of, volumes

from ssl_med.cli import build_parser, parse_overrides
from ssl_med.config import find_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippet(page: Path, name: str) -> str:
    """The code block behind the marker ``<!-- test: name -->``."""
    found = re.search(rf"<!-- test: {re.escape(name)} -->\n```python\n(.*?)```", page.read_text(), re.S)
    assert found, f"{page.name} has no snippet {name!r}"
    return found[1]


def test_plain_loop_of_the_readme_trains_in_at_most_fifteen_lines(tmp_path, monkeypatch):
    store_of(volumes(tmp_path / "scans", 4, shape=(34, 36, 33)), tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    code = snippet(ROOT / "README.md", "plain loop")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["step"] == 9
    moved = names["optimizer"].state[next(iter(names["task"].parameters()))]
    assert moved["step"] == 10


def commands() -> list[str]:
    """Every ``ssl-med ...`` line in the bash blocks of all pages."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]
    lines = [line.split("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("ssl-med ") :].strip() for line in lines if "ssl-med " in line]


@pytest.mark.parametrize("command", commands())
def test_printed_commands_are_understood(command):
    words = shlex.split(command)[1:]
    arguments, rest = build_parser().parse_known_args(words)
    if arguments.verb in ("pretrain", "finetune"):
        assert find_config(arguments.config, arguments.verb).is_file()
        parse_overrides(rest, arguments.verb)
    else:
        assert rest == []


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
