"""Twenty-five files that would run code if they were trusted: nothing runs, each is refused in one sentence."""

import collections
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.weights import load_weights

TENSORS = {"stages.0.0.conv1.weight": torch.zeros(2)}


class Gadget:
    """Pickled as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class WithState(Gadget):
    """A call, then a state that the result is built with."""

    def __reduce__(self) -> tuple:
        return (*self.call, {"name": "value"})


class WithItems(Gadget):
    """A call, then items that are put into the result."""

    def __reduce__(self) -> tuple:
        return (*self.call, None, iter(["a"]), iter([("b", 1)]))


def touch(marker: Path) -> tuple[Callable, str]:
    return os.system, f"touch {marker}"


def saved(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def pickled(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def raw(path: Path, marker: Path, kind: str) -> Path:
    """Opcodes by hand: INST, OBJ, STACK_GLOBAL, EXT1, and a call in an old text pickle."""
    command = f"touch {marker}"
    programs = {
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(command)])
        + command.encode()
        + b"\x85R.",
        "text": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "ext": b"\x80\x02\x82\x01(S'" + command.encode() + b"'\ntR.",
    }
    path.write_bytes(programs[kind])
    return path


def zip_with_record(path: Path, marker: Path, record: str) -> Path:
    """A real file of torch whose record was replaced by a gadget."""
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    buffer.seek(0)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as out:
        for item in whole.namelist():
            gadget = item.endswith(record)
            out.writestr(item, pickle.dumps(Gadget(*touch(marker)), 2) if gadget else whole.read(item))
    return path


def old_tar(path: Path, marker: Path) -> Path:
    """The format before 2017: pickles in a tar archive."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            data = pickle.dumps(Gadget(*touch(marker)), 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def hugging_face(folder: Path, marker: Path, how: str) -> Path:
    folder.mkdir()
    config: dict = {"model_type": "vit"}
    if how == "bin":
        saved(folder / "pytorch_model.bin", {"embeddings.cls_token": Gadget(*touch(marker))})
    if how == "auto_map":
        (folder / "code.py").write_text(f"import os\nos.system('touch {marker}')\n")
        config["auto_map"] = {"AutoModel": "code.Model"}
        saved(folder / "pytorch_model.bin", TENSORS)
    if how == "index":
        saved(folder.parent / "outside.safetensors", Gadget(*touch(marker)))
        index = {"weight_map": {"embeddings.cls_token": "../outside.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def export_with_path(folder: Path, marker: Path) -> Path:
    """A card whose file lies elsewhere."""
    folder.mkdir()
    saved(folder.parent / "elsewhere.pt", Gadget(*touch(marker)))
    part = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}, "file": "../elsewhere.pt"}
    (folder / "card.json").write_text(json.dumps({"format": 1, "parts": {"backbone": {**part, "sha256": ""}}}))
    return folder


def object_array(path: Path, marker: Path) -> Path:
    array = np.empty(1, dtype=object)
    array[0] = Gadget(*touch(marker))
    return saved(path, {"state_dict": TENSORS, "mean": array})


def instantiator(path: Path, marker: Path) -> Path:
    """Lightning's way of naming any callable (pull request 21832), with an object beside it."""
    arguments = {"_instantiator": "os.system", "command": f"touch {marker}"}
    return saved(path, {"state_dict": TENSORS, "hyper_parameters": arguments, "callbacks": Gadget(*touch(marker))})


PAYLOADS: dict[str, Callable[[Path, Path], Path]] = {
    "whole file": lambda f, m: saved(f / "a.pt", Gadget(*touch(m))),
    "beside tensors": lambda f, m: saved(f / "a.pth", {"state_dict": TENSORS, "extra": Gadget(*touch(m))}),
    "as a key": lambda f, m: saved(f / "a.pt", {"state_dict": {(Gadget(*touch(m)),): 1}}),
    "deep in a list": lambda f, m: saved(f / "a.ckpt", {"model": TENSORS, "log": [[[{"x": Gadget(*touch(m))}]]]}),
    "legacy file": lambda f, m: saved(f / "a.pth", {"model": Gadget(*touch(m))}, legacy=True),
    "bare pickle": lambda f, m: pickled(f / "a.pt", Gadget(*touch(m)), 4),
    "pickle called bin": lambda f, m: pickled(
        f / "a.bin", {"x": Gadget(eval, f"__import__('os').system('touch {m}')")}
    ),
    "pickle called safetensors": lambda f, m: pickled(f / "a.safetensors", Gadget(*touch(m))),
    "build": lambda f, m: saved(f / "a.pt", {"x": WithState(*touch(m))}),
    "items": lambda f, m: saved(f / "a.pt", {"x": WithItems(*touch(m))}),
    "newobj": lambda f, m: saved(f / "a.pt", {"x": [collections.UserDict(), Gadget(*touch(m))]}),
    "ordered dict": lambda f, m: saved(f / "a.pt", collections.OrderedDict(x=Gadget(exec, f"open({str(m)!r}, 'w')"))),
    "inst": lambda f, m: raw(f / "a.pt", m, "inst"),
    "obj": lambda f, m: raw(f / "a.pt", m, "obj"),
    "stack global": lambda f, m: raw(f / "a.pt", m, "stack_global"),
    "text pickle": lambda f, m: raw(f / "a.pt", m, "text"),
    "extension": lambda f, m: raw(f / "a.pt", m, "ext"),
    "record in a zip": lambda f, m: zip_with_record(f / "a.pt", m, "data.pkl"),
    "tar": lambda f, m: old_tar(f / "a.tar", m),
    "object array": lambda f, m: object_array(f / "a.pt", m),
    "instantiator": lambda f, m: instantiator(f / "a.ckpt", m),
    "folder with a pickle": lambda f, m: hugging_face(f / "hf", m, "bin"),
    "folder with code": lambda f, m: hugging_face(f / "hf", m, "auto_map"),
    "index that leads out": lambda f, m: hugging_face(f / "hf", m, "index"),
    "card that leads out": lambda f, m: export_with_path(f / "export", m),
}


def test_there_are_twenty() -> None:
    assert len(PAYLOADS) >= 20


@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_runs_and_it_is_refused(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    source = PAYLOADS[name](tmp_path, marker)
    backbone = UNetEncoder(2, 1, [2, 4])
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as refusal:
        load_weights(source, backbone)
    assert not marker.exists()
    assert len(str(refusal.value)) < 500
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_the_payloads_bite(tmp_path: Path) -> None:
    """The same file, read as pickle reads it, does run: the test above would notice."""
    marker = tmp_path / "executed"
    path = pickled(tmp_path / "a.pt", Gadget(*touch(marker)))
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_the_class_that_it_wanted_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"model": TENSORS, "extra": Gadget(os.system, "true")})
    with pytest.raises(UserError, match=r"it wants (posix|nt|os)\.system, which could run code"):
        load_weights(path, UNetEncoder(2, 1, [2, 4]))


def test_harmless_company_is_passed_over(tmp_path: Path) -> None:
    """Settings and scores in the files of MAE, DINO and nnU-Net; none of their classes is ever called."""
    from argparse import Namespace

    backbone = UNetEncoder(2, 1, [2, 4])
    company = {
        "args": Namespace(lr=1.0, out=Path("x")),
        "best": np.float64(0.5),
        "scores": [np.float32(1), np.int64(2)],
    }
    torch.save({"model": UNetEncoder(2, 1, [2, 4]).state_dict(), **company}, tmp_path / "a.pth")
    assert load_weights(tmp_path / "a.pth", backbone).share == 1.0
