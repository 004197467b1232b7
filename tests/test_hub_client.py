"""The hub's client is asked for what a person asked for and for nothing else; a dictionary plays the hub, offline."""

import functools
import inspect
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from exports_of import native
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects

from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.exports import load_backbone
from ssl_med.verbs.hub import pull, push
from ssl_med.verbs.hugging_face import upload

TOKEN = "hf_thisIsASecret"
NAME = "someone/model"


def as_real(real):
    """A call that the client itself would not take is an error here too; each is written down."""

    def wrap(fake):
        @functools.wraps(fake)
        def call(hub, *args, **kwargs):
            inspect.signature(real).bind(
                *([hub] if "self" in inspect.signature(real).parameters else []), *args, **kwargs
            )
            hub.calls.append((fake.__name__, kwargs))
            return fake(hub, *args, **kwargs)

        return call

    return wrap


class Hub:
    """Repositories as lists of commits, each a dictionary of files."""

    def __init__(self):
        self.repositories, self.calls, self.between = {}, [], None

    @as_real(huggingface_hub.HfApi.create_repo)
    def create_repo(self, name, private=None, exist_ok=False):
        assert exist_ok or name not in self.repositories
        kept = {"private": private, "commits": [{".gitattributes": b""}]}
        self.repositories.setdefault(name, kept)

    @as_real(huggingface_hub.HfApi.repo_info)
    def repo_info(self, name, revision=None):
        return SimpleNamespace(private=self.repositories[name]["private"], sha=self._commit(name, revision)[0])

    @as_real(huggingface_hub.HfApi.list_repo_files)
    def list_repo_files(self, name, revision=None):
        found = list(self._commit(name, revision)[1])
        if self.between:
            self.repositories[name]["commits"].append(self.between)
        return found

    @as_real(huggingface_hub.HfApi.upload_folder)
    def upload_folder(self, repo_id, folder_path, allow_patterns=None, delete_patterns=None, commit_message=None):
        names = [p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file()]
        sent = {
            n: (Path(folder_path) / n).read_bytes() for n in filter_repo_objects(names, allow_patterns=allow_patterns)
        }
        before = self.repositories[repo_id]["commits"][-1]
        gone = set(filter_repo_objects(before, allow_patterns=delete_patterns or [])) - {".gitattributes"}
        kept = {name: content for name, content in before.items() if name not in gone}
        self.repositories[repo_id]["commits"].append(kept | sent)

    @as_real(huggingface_hub.snapshot_download)
    def snapshot_download(self, name, revision=None, local_dir=None, allow_patterns=None):
        files = self._commit(name, revision)[1]
        for inner in [*filter_repo_objects(files, allow_patterns=allow_patterns), ".cache/huggingface/notes"]:
            (Path(local_dir) / inner).parent.mkdir(parents=True, exist_ok=True)
            (Path(local_dir) / inner).write_bytes(files.get(inner, b"notes"))

    def _commit(self, name, revision):
        commits = self.repositories[name]["commits"]
        number = len(commits) - 1 if revision in (None, "main") else int(revision.removeprefix("sha"))
        return f"sha{number}", commits[number]

    def asked(self):
        return [name for name, _ in self.calls]


@pytest.fixture
def hub(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a network was asked for")

    made = Hub()
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return made


@pytest.fixture
def folder(tmp_path, tiny_vit):
    return native(tiny_vit(3), tmp_path / "native", [8, 8, 8])


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_asked_of_the_hub_before_yes(folder, hub):
    assert main(["push", str(folder), "--to", NAME]) == 0
    assert hub.calls == []


def test_what_is_sent_is_the_export_and_private(folder, hub, capsys):
    assert main(["push", str(folder), "--to", NAME, "--yes"]) == 0
    assert hub.asked() == ["create_repo", "repo_info", "upload_folder"]
    assert hub.repositories[NAME]["private"] is True
    assert hub.repositories[NAME]["commits"][-1] == {".gitattributes": b"", **files_of(folder)}
    assert not any("token" in given for _, given in hub.calls)
    assert TOKEN not in "".join(capsys.readouterr())


def test_what_lay_there_before_stays_in_the_history_only(folder, hub, tmp_path):
    hub.repositories[NAME] = {"private": True, "commits": [{"old.bin": b"", ".gitattributes": b""}]}
    push(folder, NAME, yes=True)
    assert hub.repositories[NAME]["commits"][-1] == {".gitattributes": b"", **files_of(folder)}
    assert "old.bin" in hub.repositories[NAME]["commits"][0]
    pull(NAME, tmp_path / "back")


def test_public_must_be_said(folder, hub):
    push(folder, NAME, yes=True, public=True)
    assert hub.repositories[NAME]["private"] is False
    with pytest.raises(UserError, match="everybody can see it"):
        push(folder, NAME, yes=True)
    assert hub.asked().count("upload_folder") == 1


def test_names_are_no_patterns(hub, tmp_path):
    for name in ("a[b]*.txt", "ab.txt", "abc.txt"):
        (tmp_path / name).write_text(name)
    upload(tmp_path, ["a[b]*.txt"], NAME, public=False)
    assert set(hub.repositories[NAME]["commits"][-1]) == {".gitattributes", "a[b]*.txt"}


def test_there_and_back(folder, hub, tmp_path, capsys):
    push(folder, NAME, yes=True)
    assert main(["pull", NAME, "--out", str(tmp_path / "back")]) == 0
    assert "pulled commit sha1, all hashes verified" in capsys.readouterr().out
    assert files_of(tmp_path / "back") == files_of(folder)
    ours, back = load_backbone(str(folder)).state_dict(), load_backbone(str(tmp_path / "back")).state_dict()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_a_revision_is_passed_and_all_is_of_one_commit(folder, hub, tmp_path):
    push(folder, NAME, yes=True)
    hub.repositories[NAME]["commits"].append({"card.json": b"{}"})
    with pytest.raises(UserError):
        pull(NAME, tmp_path / "newest")
    hub.calls.clear()
    hub.between = {"run.py": b"", "card.json": b"{}"}  # somebody pushes after the names were looked at
    assert main(["pull", NAME, "--out", str(tmp_path / "back"), "--revision", "sha1"]) == 0
    assert [given["revision"] for _, given in hub.calls] == ["sha1"] * 3
    assert files_of(tmp_path / "back") == files_of(folder)
    with pytest.raises(UserError, match="which has one state only"):
        pull(str(folder), tmp_path / "other", revision="sha1")


@pytest.mark.parametrize(
    "name", ["../outside.txt", "a/../../outside.txt", "/outside.txt", "..\\outside.txt", "model.pkl"]
)
def test_names_that_lead_out_or_run_are_refused_before_a_byte_is_fetched(folder, hub, tmp_path, name):
    push(folder, NAME, yes=True)
    hub.repositories[NAME]["commits"].append({**hub.repositories[NAME]["commits"][-1], name: b"x"})
    with pytest.raises(UserError, match="refused: "):
        pull(NAME, tmp_path / "back")
    assert "snapshot_download" not in hub.asked()
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["backbone.safetensors", "README.md"])
def test_a_changed_file_never_appears(folder, hub, tmp_path, name):
    push(folder, NAME, yes=True)
    hub.repositories[NAME]["commits"][-1][name] += b" "
    with pytest.raises(UserError, match="SHA-256 differs"):
        pull(NAME, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_repository_without_a_card_is_refused(hub, tmp_path):
    hub.repositories[NAME] = {"private": True, "commits": [{"model.safetensors": b""}]}
    with pytest.raises(UserError, match=r"card\.json"):
        pull(NAME, tmp_path / "back")


def test_offline_nothing_is_asked(folder, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"HF_HUB_OFFLINE is set, .* to send to {NAME}"):
        push(folder, NAME, yes=True)
    with pytest.raises(UserError, match=f"HF_HUB_OFFLINE is set, .* to fetch from {NAME}"):
        pull(NAME, tmp_path / "back")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["someone/..", "some one/model", "someone/mo..del", "someone/a?b"])
def test_what_is_no_repository_is_not_asked_for(folder, hub, tmp_path, name):
    with pytest.raises(UserError, match="is no repository of a hub"):
        push(folder, name, yes=True)
    with pytest.raises(UserError, match="is no repository of a hub"):
        pull(name, tmp_path / "back")
    assert hub.calls == []


@pytest.mark.parametrize("kind", [HFValidationError, ConnectionError])
def test_the_hubs_refusal_is_one_sentence_without_the_token(folder, hub, capsys, monkeypatch, kind):
    def fail(*_, **__):
        raise kind("401: you may not\nAuthorization: a second line")

    monkeypatch.setattr(hub, "create_repo", fail)
    assert main(["push", str(folder), "--to", NAME, "--yes"]) == 2
    said = "".join(capsys.readouterr())
    assert f"cannot send to {NAME}: 401: you may not" in said
    assert "Authorization" not in said
    assert TOKEN not in said


def test_the_card_is_what_was_pushed(folder, hub):
    push(folder, NAME, yes=True)
    sent = json.loads(hub.repositories[NAME]["commits"][-1]["card.json"])
    assert set(sent["files"]) == {"backbone.safetensors", "README.md"}
