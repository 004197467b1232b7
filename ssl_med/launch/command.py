"""The command line that means the same as a call."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def command_line(verb: str, options: Mapping[str, Any]) -> list[str]:
    """Words after ``ssl-med``; folders are absolute, since the command is run from elsewhere.

    Args:
        verb: ``pretrain``.
        options: arguments of the verb by name; ``overrides`` are settings by dotted name. What is None or False is
            left out.
    """
    config = options["config"]
    words = [verb, str(Path(config).resolve()) if Path(config).is_file() else config]
    for name, value in options.items():
        if name in ("data", "out"):
            several = "," in str(value) and not Path(value).exists()
            folders = str(value).split(",") if several else [value]
            words += [f"--{name}", ",".join(str(Path(folder).resolve()) for folder in folders)]
        elif name not in ("config", "overrides") and value not in (None, False):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    for name, value in (options.get("overrides") or {}).items():
        words += [f"--{name}={json.dumps(value)}"]
    return words


def torchrun_line(words: list[str], processes: int, nodes: int = 1) -> str:
    """One line for every machine; ``MASTER_ADDR`` is the first one's name, ``NODE_RANK`` counts from 0."""
    start = ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(processes)]
    meeting = '--node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}"'
    how = meeting if nodes > 1 else "--standalone"
    return " ".join([shlex.join(start), how, "-m", "ssl_med.cli", shlex.join(words)])
