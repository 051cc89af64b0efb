"""The stage's floor on real and simulated patches: ``python benchmarks/super_resolution.py`` (part of ``make floors``).

The real places are few, so each is held out once: three runs a seed, which together test on all seven, none of them on
a place that it was trained or selected on. Reports go to ``results/floors/super_resolution``; ``summary-quick.json``
lists every place's gain over the baselines and what the second stage changed. The command fails if a floor is missed on
the real places, in any report that the summary is of, or if a guard speaks: a healthy run raises none. With
``--work DIR`` a second call goes on where the first stopped; with ``--rescore`` it trains nothing, and only makes the
reports of the runs there once more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kept import kept
from sentinel_sample import real_places

from nbhelpers.stages.super_resolution.config import SIMULATED, Config
from nbhelpers.stages.super_resolution.simulate import simulate
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.stages.super_resolution.verdict import (
    FIRST_STAGE,
    GAIN,
    LEAST_MEAN,
    LEAST_PLACE,
    PRICE,
    PROJECTED,
    distance,
    gains,
)
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("NBHELPERS_REAL_DATA", ROOT / "../shared/data"))
WEIGHTS = REAL_DATA / "weights/squeezenet1_1_caffe_features.pth"
TO = ROOT / "benchmarks/results/floors/super_resolution"
# Test and validation places of each run on the real patches.
FOLDS = {
    "real-a": {"test_places": ("32VNJ", "35VPK", "series"), "val_places": ("33UUP",)},
    "real-b": {"test_places": ("29UPU", "33UUP"), "val_places": ("22JGS",)},
    "real-c": {"test_places": ("22JGS", "36MXB"), "val_places": ("35VPK",)},
}


def runs(wanted: list[str], profile: str, work: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, data folder and settings of each run."""
    if "simulated" in wanted:
        yield "simulated", simulate(work / "simulated", **SIMULATED[profile]), {}  # type: ignore[arg-type]
    if chosen := [name for name in FOLDS if name in wanted]:
        folder = work / "real"
        if not folder.exists():
            real_places(REAL_DATA, folder)
        for name in chosen:
            yield name, folder, FOLDS[name]


def line(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says of a run."""
    key, metrics, baselines = distance(report), report["metrics"], report["baselines"]
    compared = (FIRST_STAGE, *untrained(report))
    return {
        "run": report["run"],
        "minutes": round(report["train_seconds"] / 60, 1),
        "verdict": report["verdict"]["name"],
        "guards": [found["name"] for found in report["guards"]],
        "first_stage_over": {
            null: {place: round(gain, 3) for place, gain in gains(report, null).items()} for null in untrained(report)
        },
        **{
            name: {"model": round(metrics[name]["value"], 4)}
            | {other: round(baselines[other][name]["value"], 4) for other in compared}
            for name in ("psnr", "ssim", key, "rapsd_ratio")
        },
        "consistency_ppm": metrics["consistency"]["value"],
        "residual_ppm": metrics["residual"]["value"],
        "gates": {gate["name"]: gate["passed"] for gate in report["gates"]},
    }


def untrained(report: Mapping[str, Any]) -> list[str]:
    """The baselines of a report that are compared with: a report may be older than one of them."""
    return [null for null in ("bicubic", "linear", "linear_projected", PROJECTED) if null in report["baselines"]]


def missed_floors(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which floors the runs on real places miss, a sentence each; the mean over places is that of all runs."""
    missed, over_projection = [], []
    for report in reports:
        name, key = report["run"], distance(report)
        for place, gain in gains(report, "bicubic").items():
            if gain < GAIN:
                missed.append(f"{name}: {place} gains {gain:+.2f} dB over bicubic, at least {GAIN:+g} expected")
        for place, gain in gains(report, PROJECTED).items():
            over_projection.append(gain)
            if gain < LEAST_PLACE:
                missed.append(f"{name}: {place} {gain:+.2f} dB from bicubic + projection, {LEAST_PLACE:+g} expected")
        mine = report["metrics"][key]["value"]
        for other in (FIRST_STAGE, "bicubic", PROJECTED):
            if not mine < (theirs := report["baselines"][other][key]["value"]):
                missed.append(f"{name}: {key} {mine:.4f} is not below {theirs:.4f} of {other}")
        lost = report["baselines"][FIRST_STAGE]["psnr"]["value"] - report["metrics"]["psnr"]["value"]
        if lost > PRICE:
            missed.append(f"{name}: the second stage costs {lost:.2f} dB, at most {PRICE:g} expected")
    if over_projection and fmean(over_projection) < LEAST_MEAN:
        mean = fmean(over_projection)
        missed.append(f"all runs: {mean:+.3f} dB over bicubic + projection on average, {LEAST_MEAN:+g} expected")
    return missed


def write_summary(folder: Path, profile: str) -> list[str]:
    """A line for each report of the profile in the folder, and the gains of all places together; floors missed."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*-{profile}-seed*.json"))]
    real = [one for one in reports if one["run"].startswith("real")]
    missed = missed_floors(real)
    together = {}
    for null in ("bicubic", "linear", "linear_projected", PROJECTED):
        found = [one for one in real if null in one["baselines"]]
        all_ = [(place, gain) for one in found for place, gain in gains(one, null).items()]
        if all_:
            together[null] = {
                "mean": round(fmean(gain for _, gain in all_), 3),
                "least": round(min(gain for _, gain in all_), 3),
                "n_places": len({place for place, _ in all_}),
                "n_seeds": len({one["config"]["seed"] for one in found}),
            }
    content = {
        "repeat": f"python benchmarks/super_resolution.py --profile {profile}",
        "what": "first_stage_over: PSNR of the first stage above a baseline, dB, by held-out place; "
        "_ppm: largest difference of the degraded output from the input, 1e-6 reflectance",
        "real_places": together,
        "floors_missed": missed,
        "runs": [line(one) for one in reports],
    }
    (folder / f"summary-{profile}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    everything = ["simulated", *FOLDS]
    parser.add_argument("--data", choices=everything, nargs="+", default=everything)
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    parser.add_argument("--to", type=Path, default=TO)
    parser.add_argument("--rescore", action="store_true", help="train nothing: score the runs under --work once more")
    arguments = parser.parse_args()
    if arguments.rescore and arguments.work is None:
        parser.error("--rescore needs --work, the folder of the runs to score")
    work = arguments.work or Path(tempfile.mkdtemp())
    arguments.to.mkdir(parents=True, exist_ok=True)
    weights = str(WEIGHTS) if WEIGHTS.exists() else "random"
    alarms, missed = [], []
    for seed in arguments.seeds:
        for name, data_dir, places in runs(arguments.data, arguments.profile, work):
            config = Config.for_profile(arguments.profile, seed=seed, backbone_weights=weights, **places)
            task = SuperResolutionTask(config, data_dir)
            run = open_run(task, work / "runs", f"{name}-{arguments.profile}-seed{seed}")
            if not arguments.rescore:
                fit(task, run)
            elif checkpoint.find(run, "last") is None:
                print(f"{run.name} has not been trained: left out", file=sys.stderr)
                continue
            report = kept(make_report(task, run), data=name)
            (arguments.to / f"{run.name}.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
            missed = write_summary(arguments.to, arguments.profile)
            print(json.dumps(line(report)), flush=True)
            if report["guards"]:
                alarms.append(run.name)
    if alarms:
        print(f"guards spoke in {', '.join(alarms)}: a false alarm, or a run that is not healthy", file=sys.stderr)
    for sentence in missed:
        print(f"floor missed: {sentence}", file=sys.stderr)
    return 1 if alarms or missed else 0


if __name__ == "__main__":
    sys.exit(main())
