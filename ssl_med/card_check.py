"""Is a folder of weights fit to be given away: whole, unchanged, described, without persons and places."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_med.errors import UserError
from ssl_med.model_card import NOT_STATED, files_in, sha256_of
from ssl_med.reporting.redact import HIDDEN_PATH, hide_paths

REQUIRED = ("format", "parts", "input", "training", "data", "use", "licence", "files")
EXPECTED = ("recipe", "compute", "results", "citation")
_TEXT = (".json", ".md", ".txt", ".yaml", ".yml")
_PLACE = re.compile(rb"/(?:home|Users|root|mnt|media|srv|scratch|work|opt|usr|var|tmp)/\w[\w.-]+/")
_UID = re.compile(rb"(?<![\d.])[12]\.\d+(?:\.\d+){6,}(?![\d.])")
_MAIL = re.compile(rb"\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b")
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Finding:
    """One thing to say about a folder.

    Attributes:
        level: an ``error`` keeps it from being given away, a ``note`` does not.
        where: file or field.
        text: what is wrong.
    """

    level: Literal["error", "note"]
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:5}  {self.where}: {self.text}"


def check_folder(folder: str | Path) -> list[Finding]:
    """All findings, hashes first; weights are opened only where all hashes are those of the card.

    Raises:
        UserError: there is no card, or no readable one.
    """
    folder = Path(folder)
    card = _card_of(folder)
    findings = [*_hashes(folder, card), *_fields(card), *_traces(folder)]
    if not any(finding.level == "error" for finding in findings):
        findings += _weights(folder, card)
    return findings


def _card_of(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    if not path.is_file():
        raise UserError(f"{folder} has no card.json: it is no export, or one that was cut off")
    try:
        card = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise UserError(f"{path} holds no JSON object")
    return card


def check_hashes(folder: Path) -> list[Finding]:
    """Only that each file is the one that the card describes, and that there is no other."""
    return list(_hashes(folder, _card_of(folder)))


def _hashes(folder: Path, card: dict[str, Any]) -> Iterator[Finding]:
    files, present = card.get("files"), files_in(folder)
    listed = files if isinstance(files, dict) else {}
    if not listed:
        yield Finding("error", "card.json files", "lists no file")
    for name in sorted({*listed, *present}):
        if name not in present:
            yield Finding("error", name, "is absent")
        elif name not in listed:
            yield Finding("error", name, "is not in the card")
        elif sha256_of(folder / name) != listed[name]:
            yield Finding("error", name, "is not the file that the card describes: the SHA-256 differs")


def _fields(card: dict[str, Any]) -> Iterator[Finding]:
    for name in REQUIRED:
        if not card.get(name):
            yield Finding("error", f"card.json {name}", "is missing")
    for name in EXPECTED:
        if name not in card:
            yield Finding("note", f"card.json {name}", "is missing: `ssl-med export RUN` writes it")
    for name, text in (card.get("licence") or {}).items():
        if text == NOT_STATED:
            yield Finding("note", f"card.json licence.{name}", "is not stated")
    for field in ("intended", "forbidden"):
        if card.get("use") and not card["use"].get(field):
            yield Finding("error", f"card.json use.{field}", "is missing")


def _traces(folder: Path) -> Iterator[Finding]:
    """Paths, DICOM identifiers and addresses, in texts and in the bytes of all else."""
    for name in [*files_in(folder), "card.json"]:
        path = folder / name
        if path.suffix in _TEXT and (shown := _path_in(path.read_text("utf-8", "replace"))):
            yield Finding("error", name, f"names a place of a machine ({shown})")
        for what, pattern in (("a place of a machine", _PLACE), ("a DICOM UID", _UID), ("an e-mail address", _MAIL)):
            if _holds(path, pattern, text_only=what != "a place of a machine"):
                yield Finding("error", name, f"holds {what}")


def _path_in(text: str) -> str:
    """The number of a line with a path, not the line, so that a finding tells none itself."""
    for number, line in enumerate(text.splitlines(), 1):
        if hide_paths(line).count(HIDDEN_PATH) > line.count(HIDDEN_PATH):
            return f"line {number}"
    return ""


def _holds(path: Path, pattern: re.Pattern[bytes], text_only: bool) -> bool:
    """Random bytes of weights look like mail addresses by chance, so those are looked for in texts only."""
    if text_only and path.suffix not in _TEXT:
        return False
    rest = b""
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            if pattern.search(rest + block):
                return True
            rest = block[-256:]
    return False


def _weights(folder: Path, card: dict[str, Any]) -> Iterator[Finding]:
    """The client itself loads them."""
    try:
        _open(folder, card)
    except (UserError, RuntimeError, ValueError, KeyError, OSError) as error:
        yield Finding("error", "weights", f"do not load: {' '.join(str(error).split())[:300]}")


def _open(folder: Path, card: dict[str, Any]) -> None:
    from ssl_med.exports import load_backbone, load_task
    from ssl_med.formats.base import client

    if "client" in card:
        client(card["client"]["client"]).opens(folder)
    elif "task" in card["parts"]:
        load_task(str(folder))
    else:
        load_backbone(str(folder))
