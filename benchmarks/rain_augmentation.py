"""Whether synthetic days help a downscaler: ``python benchmarks/rain_augmentation.py RUN_FOLDER`` (half an hour).

Two settings: all training years of the run, with its own shipped weights; and the last few of them alone, from which a
generator with the same settings is trained first, so that it knows no more than the downscaler. Each downscaler is
trained with every seed on every set of days for the same number of steps, and scored on the same test years. On
simulated days redraws by the simulator's own law stand beside the first setting (the second has no record of the true
weather), as a generator without faults: what they do not help, no better cVAE will. With ``--work DIR`` a second call
goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import RESULTS, record

from nbhelpers.stages.rainfall_cvae.augmented import demonstrate, table
from nbhelpers.stages.rainfall_cvae.augmented_figure import augmentation_figure
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.folder import Day, write_days
from nbhelpers.stages.rainfall_cvae.oracle import Oracle, has_truth
from nbhelpers.stages.rainfall_cvae.synth import FORECASTS, write_forecasts
from nbhelpers.stages.rainfall_cvae.synthesis import Synthesis
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.stages.rainfall_cvae.thresholds import category
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import check_same_data, open_run
from nbhelpers.training.run import Run


def config_of(run: Run) -> Config:
    kept = run.read_config()["config"]
    return Config.for_profile(kept["profile"]).replace(kept, source=str(run.config_file))


def few_years(days: Days, folder: Path, n_years: int) -> Path:
    """The same data with the last ``n_years`` training years alone; thresholds are theirs."""
    if folder.exists():
        return folder
    years = {name: sorted(found) for name, found in days.years.items()}
    years["train"] = years["train"][-n_years:]
    kept = [day for name in ("train", "val", "test") for day in days.split[name] if day not in days.unreadable]

    def rows() -> Iterator[Day]:
        for day in sorted(kept, key=lambda day: days.dates[day]):
            yield days.dates[day], days.x(day), days.y(day)

    statics = {name: np.load(days.folder / "statics" / f"{name}.npy")[0] for name in days.static_names}
    return write_days(
        folder,
        rows(),
        statics=statics,
        channels=days.channels,
        x_units=days.x_units,
        name=f"{days.name}, {n_years} training years",
        source=days.source,
        simulated=days.simulated,
        pixel_km=days.pixel_km,
        years=years,
    )


def draws(task: RainfallTask, run: Run, folder: Path, members: int) -> Path:
    """Draws of the prior for the heavy training days, by the run's shipped weights."""
    if not folder.exists():
        check_same_data(task, run)
        _, found = checkpoint.asked_for(run, "shipped")
        checkpoint.load_weights(found, task.modules)
        wanted = Synthesis(K=members)
        write_forecasts(task, folder, checkpoint=found.sha256, step=found.step, run=run.name, options=wanted)
    return folder


def by_the_law(days: Days, members: int) -> dict[str, dict[int, list[NDArray[np.float32]]]]:
    """Heavy redraws of the heavy training days by the simulator's own law: a generator without faults."""
    if not has_truth(days.folder):
        return {}
    law, found, p95 = Oracle(days), {}, days.thresholds["P95"]
    for day in days.split["train"]:
        if days.category[day] == "heavy" and day not in days.unreadable:
            redrawn = law.members(day, members, seed=0)
            found[day] = [rain for rain in redrawn if category(rain, days.land, p95) == "heavy"]
    return {"true_law_heavy": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--data-dir", type=Path, help="its data (default: where it was trained)")
    parser.add_argument("--years", type=int, default=3, help="training years of the second setting; 0 leaves it out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--share", type=float, default=0.5, help="part of a batch that is added")
    parser.add_argument("--members", type=int, default=8, help="draws of each heavy day")
    parser.add_argument("--work", type=Path, help="folder to work in, and to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        run = Run(arguments.run)
        config = config_of(run)
        data = arguments.data_dir or Path(run.read_config()["data"]["source"])
        task = RainfallTask(config, data)
        settings = {f"{len(task.days.years['train'])} training years": (task, run)}
        if arguments.years:
            fewer = RainfallTask(config, few_years(task.days, work / f"data-{arguments.years}", arguments.years))
            own = open_run(fewer, work, f"{run.name}-{arguments.years}-years")
            if fit(fewer, own).interrupted:
                raise KeyboardInterrupt
            settings[f"{arguments.years} training years"] = (fewer, own)
        found: dict[str, Any] = {}
        for name, (one, its) in settings.items():
            folder = draws(one, its, work / f"{FORECASTS}-{len(one.days.years['train'])}", arguments.members)
            shown = demonstrate(
                one.days,
                folder,
                seeds=arguments.seeds,
                steps=arguments.steps,
                share=arguments.share,
                more=by_the_law(one.days, arguments.members),
            )
            print(f"\n{name}\n{table(shown)}")
            (RESULTS / "floors").mkdir(parents=True, exist_ok=True)
            picture = RESULTS / "floors" / f"rain_augmentation_{len(one.days.years['train'])}_years.png"
            augmentation_figure(shown).savefig(picture, dpi=110)
            found[name] = {**asdict(shown), "table": table(shown).splitlines()}
    about = "a deterministic downscaler (squared error of log(1 + mm/day)) with and without synthetic heavy days"
    record("rain_augmentation", {"what": f"{about}; {task.days.name}", "members": arguments.members, "settings": found})


if __name__ == "__main__":
    main()
