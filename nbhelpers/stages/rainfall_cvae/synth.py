"""Synthetic days for a training set: written with where they come from, and trusted only after that was checked.

They are draws of the training years' weather. A day of a validation or test year among them would be known to whatever
is trained on them before it is scored there; and a draw from the posterior has seen the rain of its day: a near copy,
which adds nothing new.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers import __version__
from nbhelpers.core.disk import check_room, disk_errors, file_sha256, whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.batches import EVAL_BATCH, loader
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.facts import describe_data
from nbhelpers.stages.rainfall_cvae.layout import UNITS
from nbhelpers.stages.rainfall_cvae.split import content
from nbhelpers.stages.rainfall_cvae.synthesis import Mode, Synthesis, chosen_days, split_of
from nbhelpers.stages.rainfall_cvae.thresholds import category

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

FORECASTS = "synth"  # the folder in a run's folder
PROVENANCE = "provenance.json"
FORMAT = 1  # of the provenance; raised when its keys change
KEYS = ("mode", "split", "data", "files")  # that a reader needs
FILE_KEYS = ("file", "day", "date", "category", "drawn", "sha256")
WORDS = {"prior": "sample", "posterior": "posterior"}  # in the files' names


def write_forecasts(
    task: RainfallTask,
    path: Path,
    *,
    split: str = "train",
    checkpoint: str,
    step: int,
    run: str,
    options: Synthesis | None = None,
) -> int:
    """Draw rain of training days into ``day_%06d_sample_%02d.npy``, float32 ``(1, H, W)`` mm/day, NaN over sea.

    ``provenance.json`` says by which model, from which data and of which day each was drawn. The folder is there when
    all of it is. The same model, days and seed give the same bytes.

    Args:
        checkpoint: sha256 of the model's weights.
        step: at which they were saved.
        run: name of the run.
        options: None: 8 draws of the prior for every heavy day.

    Returns:
        The number of files.

    Raises:
        UserError: another split than train, days of other years, a folder that holds something, a full disk.
    """
    path, wanted, days = Path(path), options or Synthesis(), task.days
    if split != "train":
        raise UserError(
            f"split is {split!r}, but only days of the training years may be augmented: what is trained on draws of "
            "other days would be scored on weather that it knows; leave --split out."
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: delete it, or choose another folder with --to.")
    chosen = chosen_days(days, wanted.days)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, len(chosen) * wanted.K * (days.land.size * 4 + 4096), "writing these days")
        with whole_folder(path) as part:
            files = [
                _save(part, days, day, number, wanted.mode, rain) for day, number, rain in _drawn(task, chosen, wanted)
            ]
            about = {
                "format": FORMAT,
                "mode": wanted.mode,
                "K": wanted.K,
                "seed": wanted.seed,
                "split": split,
                "asked": list(wanted.days),
                "n_days": len(chosen),
                "years": sorted({days.dates[day].year for day in chosen}),
                "training_years": sorted(days.years["train"]),
                "units": UNITS,
                "run": run,
                "checkpoint": {"sha256": checkpoint, "step": step},
                "likelihood": task.config.likelihood,
                "tail": task.config.tail if task.config.likelihood == "hurdle_gamma" else None,
                "data": _data(days),
                "created": date.today().isoformat(),
                "version": __version__,
            }
            (part / PROVENANCE).write_text(_text(about, files), encoding="utf-8", newline="\n")
    return len(files)


def _data(days: Days) -> dict[str, Any]:
    about = describe_data(days)
    return {key: about[key] for key in ("source", "name", "product", "simulated", "sha256", "split_sha256")}


def _drawn(
    task: RainfallTask, chosen: Sequence[int], wanted: Synthesis
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Day, number of the draw, and rain ``(H, W)``, 0 over sea."""
    modules = [module for module in task.modules.values() if module.training]
    for module in modules:
        module.eval()
    try:
        for batch in loader(task.days, chosen, batch_size=EVAL_BATCH):
            members = task.sampler.members(batch, wanted.K, seed=wanted.seed, source=wanted.mode)
            for day, of_day in zip(batch.days, members.float().cpu().numpy(), strict=True):
                for number, rain in enumerate(of_day):
                    yield day, number, rain
    finally:
        for module in modules:
            module.train()


def _save(folder: Path, days: Days, day: int, number: int, mode: Mode, rain: NDArray[np.float32]) -> dict[str, Any]:
    rain = np.where(days.land, rain, np.nan).astype(np.float32)
    file = folder / file_name(day, number, mode)
    np.save(file, rain[None])
    return {
        "file": file.name,
        "day": day,
        "date": days.dates[day].isoformat(),
        "category": days.category[day],
        "drawn": category(rain, days.land, days.thresholds["P95"]),
        "sha256": file_sha256(file),
    }


def file_name(day: int, number: int, mode: Mode) -> str:
    return f"day_{day:06d}_{WORDS[mode]}_{number:02d}.npy"


def _text(about: dict[str, Any], files: Sequence[dict[str, Any]]) -> str:
    """JSON with a line for each file."""
    lines = ",\n  ".join(json.dumps(one) for one in files)
    return json.dumps(about, indent=1).removesuffix("\n}") + f',\n "files": [\n  {lines}\n ]\n}}\n'


def read_provenance(folder: Path) -> dict[str, Any]:
    """What ``provenance.json`` in ``folder`` says.

    Raises:
        UserError: it is absent, damaged, or of another version.
    """
    path = folder / PROVENANCE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not there, so nobody knows where these days come from: draw them again with `nbhelpers predict "
            "rainfall-cvae`."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): draw these days again.") from error
    kept = about.get("format") if isinstance(about, dict) else None
    if kept != FORMAT:
        raise UserError(f"{path} has the format {kept!r}, expected {FORMAT}: draw these days again.")
    if absent := [key for key in KEYS if key not in about] or [
        key for one in about["files"] for key in FILE_KEYS if key not in one
    ]:
        raise UserError(f"{path} does not say {absent[0]!r}: restore it, or draw these days again.")
    return about


def open_synthetic(folder: Path, days: Days, *, allow_copies: bool = False) -> list[tuple[int, Path]]:
    """Day and file of every draw in ``folder``, fit to be trained on beside the training days of ``days``.

    Args:
        allow_copies: take draws of the posterior, near copies of their days, that say that they are.

    Raises:
        UserError: no provenance; draws made from other data or another split; a day that is not of the training
            years, by its number, its date or its very rain; draws of the posterior; files that are not as written.
    """
    folder = Path(folder)
    about, now = read_provenance(folder), describe_data(days)
    where = folder / PROVENANCE
    for key, what in (("sha256", "other data"), ("split_sha256", "another split")):
        if about["data"].get(key) != now[key]:
            raise UserError(
                f"{where} says that these days were drawn by a model of {what} (sha256 "
                f"{str(about['data'].get(key))[:12]}… there, {now[key][:12]}… of {days.folder}): a test day could be "
                "among what it has learnt, so draw them again from a model of these data."
            )
    _check_mode(about, where, allow_copies)
    _check_years(about, days, where)
    _check_files(about, days, folder)
    return [(one["day"], folder / one["file"]) for one in about["files"]]


def _check_mode(about: dict[str, Any], where: Path, allow_copies: bool) -> None:
    mode = about["mode"]
    if mode not in WORDS:
        raise UserError(f"{where} says mode {mode!r}, expected one of {', '.join(WORDS)}: draw these days again.")
    if mode == "posterior" and not allow_copies:
        raise UserError(
            f"{where} says that these are draws of the posterior, near copies of the days they were drawn for: draw "
            "new rain with --mode prior, or say that copies are what you want (allow_copies)."
        )
    for one in about["files"]:
        if not str(one["file"]).startswith(f"day_{one['day']:06d}_{WORDS[mode]}_"):
            raise UserError(
                f"{where} says mode {mode!r} and names {one['file']} for day {one['day']}, expected a name like "
                f"{file_name(one['day'], 0, mode)}: its draws are not what it says, so draw these days again."
            )


def _check_years(about: dict[str, Any], days: Days, where: Path) -> None:
    for one in about["files"]:
        day, name = one["day"], split_of(days, one["day"])
        if about["split"] != "train" or name != "train":
            raise UserError(
                f"{where} names day {day}, which {f'is of the {name} years' if name else 'is no day'} of "
                f"{days.folder}, in draws of the {about['split']!r} split: only days of the training years may augment "
                "a training set, so draw it again from those."
            )
        if one["date"] != days.dates[day].isoformat():
            raise UserError(
                f"{where} has {one['date']} for day {day}, which is {days.dates[day]} in {days.folder}: the days were "
                "renumbered, so draw again."
            )


def _check_files(about: dict[str, Any], days: Days, folder: Path) -> None:
    """The files are those that were written, and none of them is a day that scores are made of."""
    known = {one["file"]: one for one in about["files"]}
    found = {path.name for path in folder.glob("*.npy")}
    if odd := sorted(found ^ set(known)):
        what = "is not named in" if odd[0] in found else "is missing, but named in"
        raise UserError(f"{folder / odd[0]} {what} {PROVENANCE}: draw these days again.")
    held_out = {content(days.y(day)) for name in ("val", "test") for day in days.split[name]} - {None}
    for name, one in known.items():
        path = folder / name
        if file_sha256(path) != one["sha256"]:
            raise UserError(f"{path} is not the file that {PROVENANCE} was written for: draw these days again.")
        rain = np.load(path)
        if rain.shape != (1, *days.shape):
            raise UserError(f"{path} has shape {rain.shape}, expected {(1, *days.shape)}: draw these days again.")
        if content(rain[0]) in held_out:
            raise UserError(
                f"{path} holds the observed rain of a validation or test day, not a draw for day {one['day']}: a model "
                "trained on it would know the answer; draw these days again."
            )


def drawn_categories(folder: Path) -> dict[str, str]:
    """By file name, whether the draw itself is dry, moderate or heavy, whatever its day was."""
    return {one["file"]: one["drawn"] for one in read_provenance(Path(folder))["files"]}
