"""Small files written whole or not at all."""

import json
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write beside the target, then rename; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """The same for plain data."""
    write_whole(path, json.dumps(content, indent=1))
