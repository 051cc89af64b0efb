"""Bad input through the command line: one clear sentence, exit code 2, and nothing already written is lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sevir
import torch
from safetensors.torch import load_file, save_file

from nbhelpers import cli
from nbhelpers.core import download, manifest
from nbhelpers.core.errors import UserError
from nbhelpers.science import backbones
from nbhelpers.stages.perceptual_unet import data
from nbhelpers.training import checkpoint
from nbhelpers.training.run import Run

SETTINGS = {
    "profile": "smoke",
    "n_in": 2,
    "n_out": 1,
    "crop": 32,
    "windows_per_epoch": 4,
    "eval_windows": 1,
    "base_channels": 4,
    "depth": 1,
    "batch_size": 4,
    "epochs": 1,
    "first_guess": "persistence",
    "lambda_perc": 0,
    "lpips_weights": "random",
}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self) -> tuple:
        return Path.touch, (self.flag,)


def command(folder: Path, run: str, **changes: Any) -> list[str]:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SETTINGS | changes).items() if value is not None]
    places = [f"--data-dir={folder / 'data'}", f"--output-dir={folder / 'runs'}", f"--run-name={run}"]
    return ["train", "perceptual-unet", *places, *flags]


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a finished run "done"."""
    folder = tmp_path_factory.mktemp("finished")
    sevir.write_sevir(folder / "data", sevir.storms(5, n_frames=6))
    assert cli.main(command(folder, "done")) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be damaged."""
    monkeypatch.setenv("NBHELPERS_HOME", str(tmp_path / "home"))
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def sentence(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """The one line on standard error of a command that ends with exit code 2."""

    def run(arguments: list[str]) -> str:
        capfd.readouterr()
        assert cli.main(arguments) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("nbhelpers: "), lines
        assert "Traceback" not in lines[0] and not lines[0].rstrip().endswith(":")
        return lines[0]

    return run


def hdf5(folder: Path) -> Path:
    return folder / "data" / sevir.FILE_NAME


def rewrite(folder: Path, **storage: Any) -> None:
    """The HDF5 file anew, from other arrays than the catalogue expects."""
    hdf5(folder).unlink()
    with h5py.File(hdf5(folder), "w") as file:
        for name, value in storage.items():
            file[name] = value


def cut(length: int, *, patch_end: bool = False) -> Callable[[Path], None]:
    """Keep the first ``length`` bytes (negative: lose so many); the recorded end of file can be made to agree."""

    def damage(folder: Path) -> None:
        content = bytearray(hdf5(folder).read_bytes()[:length])
        if patch_end:
            assert content[8] == 0  # version 0 of the superblock has the end of the file at byte 40
            content[40:48] = len(content).to_bytes(8, "little")
        hdf5(folder).write_bytes(content)

    return damage


def change_row(index: int, **changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        events = sevir.storms(5, n_frames=6)
        rows = [sevir.row(id, i, events[id]) for i, id in enumerate(events)]
        rows[index] |= changes
        sevir.write_catalogue(folder / "data/CATALOG.csv", rows)

    return damage


def change_text(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "data/CATALOG.csv"
        path.write_bytes(change(path.read_bytes()))

    return damage


IDS = np.array([f"R{i:02d}" for i in range(5)], dtype="S")
SHAPE = (5, 32, 32, 6)
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no data folder": (lambda f: shutil.rmtree(f / "data"), "does not exist: give --data-dir"),
    "missing catalogue": (lambda f: (f / "data/CATALOG.csv").unlink(), "no CATALOG.csv or SEVIR_CATALOG.csv in"),
    "catalogue cut off": (change_text(lambda b: b[:-30]), "CATALOG.csv line 6 ends early"),
    "catalogue is binary": (change_text(lambda b: b"\x1f\x8b\x08\xff\xfe" + b), "cannot be read as CSV text"),
    "catalogue of another kind": (change_text(lambda b: b"a,b\n1,2\n"), "lacks the column.s. id, file_name"),
    "catalogue without usable rows": (change_text(lambda b: b.splitlines(True)[0]), "has 0 rows of type 'vil'"),
    "time unreadable": (change_row(1, time_utc="yesterday"), "line 3 cannot be read .*yesterday"),
    "offsets unreadable": (change_row(1, minute_offsets="0:5:x"), "line 3 cannot be read"),
    "index unreadable": (change_row(1, file_index="inf"), "line 3 cannot be read"),
    "missing files": (
        change_text(lambda b: b.replace(b"vil/", b"gone/")),
        "names 1 files, .*none of them is",
    ),
    "index outside the file": (change_row(2, file_index=5), "R02 has file_index 5, but .*holds 5 events"),
    "negative index": (change_row(2, file_index=-1), "R02 has file_index -1"),
    "another event at the index": (change_row(2, file_index=1), "holds event R01 at index 1 where .*expects R02"),
    "another number of frames": (change_row(0, minute_offsets="0:5:10"), "R00 has 3 minute_offsets.* 6 frames"),
    "another step": (change_row(0, minute_offsets="0:2:4:6:8:10"), "R00 has a frame every 2 min, but event"),
    "header cut off": (cut(500), "not a readable HDF5 file"),
    "empty file": (cut(0), "not a readable HDF5 file"),
    "raw data cut off": (cut(-3000), "not a readable HDF5 file"),
    "raw data cut off, header patched": (cut(-3000, patch_end=True), "half a download|damaged HDF5 file"),
    "not HDF5": (lambda f: hdf5(f).write_text("<html>Quota exceeded</html>"), "not a readable HDF5 file"),
    "wrong dtype": (lambda f: rewrite(f, id=IDS, vil=np.zeros(SHAPE, "f4")), "is float32 of shape .*expected uint8"),
    "wrong signed dtype": (lambda f: rewrite(f, id=IDS, vil=np.zeros(SHAPE, "i1")), "is int8 .*expected uint8"),
    "no events axis": (
        lambda f: rewrite(f, id=IDS, vil=np.zeros((32, 32, 6), "u1")),
        r"of shape \(32, 32, 6\), expected",
    ),
    "time first": (
        lambda f: rewrite(f, id=IDS, vil=np.zeros((5, 6, 32, 32), "u1")),
        "has 6 minute_offsets.* 32 frames",
    ),
    "no vil": (lambda f: rewrite(f, id=IDS, ir069=np.zeros(SHAPE, "u1")), "no dataset 'vil' .it has id, ir069."),
    "vil is a group": (lambda f: rewrite(f, **{"vil/x": np.zeros(3)}), "no dataset 'vil'"),
    "too few ids": (lambda f: rewrite(f, id=IDS[:3], vil=np.zeros(SHAPE, "u1")), "expected one id for each of the 5"),
    "frames too small": (lambda f: rewrite(f, id=IDS, vil=np.zeros((5, 32, 31, 6), "u1")), "32 x 31 pixels, expected"),
    "nothing measured": (lambda f: rewrite(f, id=IDS, vil=np.full(SHAPE, 255, "u1")), "holds nothing but 255"),
    "nothing measured, chunked": (
        lambda f: sevir.write_hdf5(hdf5(f), {i.decode(): np.full((6, 32, 32), 255, "u1") for i in IDS}, compression=4),
        "holds nothing but 255",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_one_sentence_and_leave_what_is_there(
    damage: str, folder: Path, sentence: Callable[[list[str]], str]
) -> None:
    change, message = DAMAGES[damage]
    change(folder)
    before = fingerprint(folder)
    found = sentence(command(folder, "new", num_workers=0))
    assert_matches(message, found)
    after = fingerprint(folder)
    assert {name: after.get(name) for name in before} == before
    assert str(folder / "data") in found or re.search(r"event R0\d", found)  # where


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(UserError, match=pattern):
        raise UserError(text)


def test_events_of_different_sizes_are_refused(folder: Path, sentence: Callable[[list[str]], str]) -> None:
    other = "vil/2019/SEVIR_VIL_RANDOMEVENTS_2019_0901_1231.h5"
    sevir.write_hdf5(folder / "data" / other, {"R04": sevir.storm(4, n_frames=6, height=48)})
    change_row(4, file_name=other, file_index=0)(folder)
    assert "different sizes [(32, 32), (48, 32)]" in sentence(command(folder, "new"))


def test_damage_that_appears_during_a_run_costs_only_what_is_not_yet_done(
    folder: Path, sentence: Callable[[list[str]], str]
) -> None:
    with h5py.File(hdf5(folder), "r+") as file:  # same catalogue and same size
        file["vil"][:] = 255
    before = fingerprint(folder / "runs")
    assert "other settings: the data hash" in sentence(command(folder, "done", epochs=2))
    assert fingerprint(folder / "runs") == before
    assert len(json.loads((folder / "runs/done/report.json").read_text())["metrics"]) > 10


def test_an_error_in_a_loader_process_is_one_sentence_too(folder: Path, sentence: Callable[[list[str]], str]) -> None:
    rewrite(folder, id=IDS, vil=np.full(SHAPE, 255, "u1"))
    assert "holds nothing but 255" in sentence(command(folder, "new", num_workers=1))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"base_channels": 8}, "base_channels (4 there, 8 now)"),
        ({"seed": 1}, "seed (0 there, 1 now)"),
        ({"lambda_perc": None, "perceptual_share": 0.2, "backbone_weights": "random"}, "perceptual_share (none there"),
        ({"n_out": 2, "lr": 0.1}, "n_out (1 there, 2 now), lr (0.002 there, 0.1 now)"),
    ],
)
def test_a_run_folder_with_other_settings_is_refused_and_left_as_it_is(
    folder: Path, sentence: Callable[[list[str]], str], change: dict[str, Any], names: str
) -> None:
    before = fingerprint(folder)
    found = sentence(command(folder, "done", **change))
    assert names in found and "'done-2'" in found
    assert fingerprint(folder) == before


@pytest.mark.parametrize(("n_events", "storage"), [(6, {}), (7, {"compression": 4})])
def test_a_run_folder_with_other_data_is_refused(
    folder: Path, sentence: Callable[[list[str]], str], n_events: int, storage: dict[str, Any]
) -> None:
    sevir.write_sevir(folder / "data", sevir.storms(n_events, n_frames=6), **storage)
    before = fingerprint(folder)
    assert "the data hash" in sentence(command(folder, "done"))
    assert fingerprint(folder) == before


def test_a_folder_that_is_no_run_is_refused(folder: Path, sentence: Callable[[list[str]], str]) -> None:
    (folder / "runs/thesis").mkdir()
    (folder / "runs/thesis/chapter1.tex").write_text("years of work")
    before = fingerprint(folder)
    assert "holds no config.json, so it is no run" in sentence(command(folder, "thesis"))
    assert fingerprint(folder) == before


def test_code_in_a_checkpoint_is_never_run(folder: Path, sentence: Callable[[list[str]], str], tmp_path: Path) -> None:
    run, flag = Run(folder / "runs/done"), tmp_path / "fired"
    last = checkpoint.find(run, "last")
    assert last is not None
    state = last.folder / "state.pt"
    torch.save({"format": 1, "step": last.step, "bomb": Bomb(flag)}, state)
    before = fingerprint(folder)
    assert "state.pt is not a state this package wrote" in sentence(command(folder, "done", epochs=2))
    after = fingerprint(folder)
    assert {name for name in before if after.get(name) != before[name]} <= {"runs/done/config.json"}
    # A whole checkpoint from elsewhere, its hashes in order: still nothing is run.
    about = {"step": last.step, "state_sha256": checkpoint.file_sha256(state)}
    weights = last.folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"checkpoint": json.dumps(about)})
    with pytest.raises(UserError, match="holds code, which is never run"):
        checkpoint.load_state(checkpoint.at(last.folder))
    assert not flag.exists()
    torch.load(state, weights_only=False)
    assert flag.exists()  # it would have


def test_code_in_backbone_weights_is_never_run(
    folder: Path, sentence: Callable[[list[str]], str], tmp_path: Path
) -> None:
    torch.save({"features.0.weight": Bomb(tmp_path / "fired")}, tmp_path / "vgg16.pth")
    before = fingerprint(folder)
    found = sentence(command(folder, "new", lambda_perc=0.1, backbone_weights=tmp_path / "vgg16.pth"))
    assert "vgg16.pth is no state dict of plain tensors" in found
    found = sentence(command(folder, "new", lpips_weights=tmp_path / "vgg16.pth"))
    assert "vgg16.pth is no state dict of plain tensors" in found
    assert not (tmp_path / "fired").exists()
    assert fingerprint(folder) == before


def test_weights_that_cannot_be_fetched_are_one_sentence(
    folder: Path, sentence: Callable[[list[str]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    content = json.loads((Path(__file__).parents[1] / "data_manifests/perceptual-weights.json").read_text())
    for file in content["files"]:
        file["mirrors"] = ["http://127.0.0.1:9/" + file["path"]]
    (tmp_path / "perceptual-weights.json").write_text(json.dumps(content))
    unreachable = manifest.load_manifest(tmp_path / "perceptual-weights.json")
    monkeypatch.setattr(backbones, "load_manifest", lambda name: unreachable)
    found = sentence(command(folder, "new", lpips_weights="imagenet"))
    assert "ImageNet weights of squeeze are not here" in found and "set it to 'random'" in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_in": 6, "n_out": 1}, "6 . 1 frames every 5 min does not fit into event R0"),
        ({"step_minutes": 7}, "step_minutes is 7, but event"),
        ({"crop": 16}, "crop is 16, expected 0 .whole frames. or at least 32"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"perceptual_share": 0.1}, "set either lambda_perc or perceptual_share"),
        ({"perceptual_share": 1.0, "lambda_perc": None}, "perceptual_share is 1.0, expected a share"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
    ],
)
def test_settings_that_make_no_sense(
    folder: Path, sentence: Callable[[list[str]], str], changes: dict[str, Any], message: str
) -> None:
    before = fingerprint(folder)
    assert_matches(message, sentence(command(folder, "new", **changes)))
    assert fingerprint(folder) == before


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path, {f"R{i}": sevir.storm(i, n_frames=3, height=8, width=8) for i in range(3)})
    events = data.read_catalogue(tmp_path)
    whole = (tmp_path / sevir.FILE_NAME).read_bytes()
    for length in range(0, len(whole), 29):
        (tmp_path / sevir.FILE_NAME).write_bytes(whole[:length])
        for read in (lambda: data.check_events(events), lambda: data.read_event(events[-1])):
            with pytest.raises(UserError, match="half a download"):
                read()


def test_a_header_with_a_flipped_byte_is_read_or_refused_but_never_a_traceback(tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path, {f"R{i}": sevir.storm(i, n_frames=3, height=8, width=8) for i in range(3)})
    events = data.read_catalogue(tmp_path)
    whole, refused = (tmp_path / sevir.FILE_NAME).read_bytes(), 0
    for place in range(8, 2048, 11):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / sevir.FILE_NAME).write_bytes(damaged)
        try:
            data.check_events(events)
        except UserError:
            refused += 1
    assert refused > 20
