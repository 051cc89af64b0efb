"""The stage's floor on real and simulated patches: ``python benchmarks/super_resolution.py`` (part of ``make floors``).

The real places are few, so each is held out once: three runs a seed, which together test on all seven, none of them on
a place that it was trained or selected on. Reports go to ``results/floors/super_resolution``; ``summary-quick.json``
lists every place's gain over the baselines and what the second stage changed. A healthy run raises no guard, so the
command fails if one does. With ``--work DIR`` a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kept import kept
from sentinel_sample import real_places

from nbhelpers.stages.super_resolution.config import SIMULATED, Config
from nbhelpers.stages.super_resolution.simulate import simulate
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.stages.super_resolution.verdict import FIRST_STAGE, PROJECTED, distance, gains
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
    compared = (FIRST_STAGE, "bicubic", PROJECTED, "linear")
    return {
        "run": report["run"],
        "minutes": round(report["train_seconds"] / 60, 1),
        "verdict": report["verdict"]["name"],
        "guards": [found["name"] for found in report["guards"]],
        "first_stage_over": {
            null: {place: round(gain, 3) for place, gain in gains(report, null).items()}
            for null in ("bicubic", "linear", PROJECTED)
        },
        **{
            name: {"model": round(metrics[name]["value"], 4)}
            | {other: round(baselines[other][name]["value"], 4) for other in compared}
            for name in ("psnr", "ssim", key, "rapsd_ratio")
        },
        "consistency": metrics["consistency"]["value"],
        "residual": metrics["residual"]["value"],
        "gates": {gate["name"]: gate["passed"] for gate in report["gates"]},
    }


def write_summary(folder: Path, profile: str) -> None:
    """A line for each report of the profile in the folder, and the gains of all places together."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*-{profile}-seed*.json"))]
    lines = [line(one) for one in reports]
    real = [one["first_stage_over"] for one in lines if one["run"].startswith("real")]
    together = {
        null: {"mean": round(sum(all_) / len(all_), 3), "least": min(all_), "n": len(all_)}
        for null in ("bicubic", "linear", PROJECTED)
        if (all_ := [gain for one in real for gain in one[null].values()])
    }
    content = {
        "repeat": f"python benchmarks/super_resolution.py --profile {profile}",
        "what": "first_stage_over: PSNR of the first stage above a baseline, dB, by held-out place",
        "real_places": together,
        "runs": lines,
    }
    (folder / f"summary-{profile}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    everything = ["simulated", *FOLDS]
    parser.add_argument("--data", choices=everything, nargs="+", default=everything)
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    parser.add_argument("--to", type=Path, default=TO)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    arguments.to.mkdir(parents=True, exist_ok=True)
    weights = str(WEIGHTS) if WEIGHTS.exists() else "random"
    alarms = []
    for seed in arguments.seeds:
        for name, data_dir, places in runs(arguments.data, arguments.profile, work):
            config = Config.for_profile(arguments.profile, seed=seed, backbone_weights=weights, **places)
            task = SuperResolutionTask(config, data_dir)
            run = open_run(task, work / "runs", f"{name}-{arguments.profile}-seed{seed}")
            fit(task, run)
            report = kept(make_report(task, run), data=name)
            (arguments.to / f"{run.name}.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
            write_summary(arguments.to, arguments.profile)
            print(json.dumps(line(report)), flush=True)
            if report["guards"]:
                alarms.append(run.name)
    if alarms:
        print(f"guards spoke in {', '.join(alarms)}: a false alarm, or a run that is not healthy", file=sys.stderr)
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
