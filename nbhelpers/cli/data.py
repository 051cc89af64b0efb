"""``nbhelpers data``: list, fetch, verify, simulate, prepare or pack data."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from nbhelpers.cli.common import STAGE_HELP, STAGES, simulated_dir, stage_commands
from nbhelpers.core import manifest, runtime
from nbhelpers.core.disk import human_bytes
from nbhelpers.core.errors import UserError

EVENT_STAGE = "perceptual-unet"  # knows how events lie in SEVIR's files


def add(commands: Any) -> None:
    data = commands.add_parser("data", help="list, fetch, verify, simulate, prepare or pack data")
    actions = data.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the data sets that can be fetched")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    for action, run in (("fetch", _fetch), ("verify", _verify)):
        one = actions.add_parser(action, help=f"{action} a data set")
        one.add_argument("name", help="as `data list` prints it, or the path of a manifest")
        one.add_argument("--data-dir", type=Path, help="where its files belong")
        one.set_defaults(run=run)
        if action == "fetch":
            one.add_argument(
                "--only", nargs="+", metavar="FILE", help="some of its files; patterns such as 'vil/2019/*'"
            )
            one.add_argument(
                "--events", type=int, metavar="N", help="N chosen events of SEVIR, in a folder of their own"
            )
    simulate = actions.add_parser("simulate", help="make data for a stage, in the format of the real ones")
    simulate.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
    simulate.add_argument("--profile", choices=runtime.PROFILES, help="how much (default: by this machine)")
    simulate.add_argument("--kind", metavar="NAME", help="what to simulate, where the stage has several")
    simulate.add_argument("--data-dir", type=Path, help="an empty or new folder")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.set_defaults(run=_simulate)
    prepare = actions.add_parser("prepare", help="turn data of your own into the layout that a stage reads")
    prepare.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
    prepare.add_argument("--from", dest="sources", type=Path, nargs="+", required=True, metavar="PATH", help="scenes")
    prepare.add_argument("--size", type=int, metavar="PIXELS", help="side of a patch (default: as the stage's data)")
    prepare.add_argument("--place", metavar="NAME", help="where all these scenes lie (default: by their georeference)")
    packing = actions.add_parser("pack", help="write a stage's many small files as a few that are fast to read")
    packing.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
    packing.add_argument("--data-dir", type=Path, required=True, metavar="FROM", help="folder with the data")
    for one, run in ((prepare, _prepare), (packing, _pack)):
        one.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
        one.add_argument(
            "--bands", nargs="+", metavar="BAND", help="such as B02; in the file's order where it has no names"
        )
        one.add_argument("--offset", type=int, metavar="DN", help="to add (default: as the files or their names say)")
        one.set_defaults(run=run)


def _list(arguments: argparse.Namespace) -> int:
    found = [manifest.load_manifest(name) for name in manifest.list_manifests()]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2, default=str))
        return 0
    for one in found:
        sizes = [file.bytes for file in one.files]
        size = human_bytes(sum(s or 0 for s in sizes)) + (" or more" if None in sizes else "")
        print(f"{one.name:22} {one.title}: {len(one.files)} files, {size}")
    for stage in STAGES:
        print(f"{stage:22} simulated: `nbhelpers data simulate {stage}`")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    wanted = manifest.load_manifest(arguments.name)
    if arguments.events is not None:
        if arguments.only:
            raise UserError("--only names whole files and --events single events: give one of the two.")
        folder = arguments.data_dir or runtime.workspace().data_dir / f"{wanted.name}-events"
        print(stage_commands(EVENT_STAGE).fetch_events(wanted, folder, arguments.events))
        return 0
    folder = arguments.data_dir or runtime.workspace().data_dir / wanted.name
    for path in manifest.fetch(wanted, folder, only=arguments.only):
        print(path)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    wanted = manifest.load_manifest(arguments.name)
    states = manifest.verify(wanted, arguments.data_dir or runtime.workspace().data_dir / wanted.name)
    for state in states:
        print(f"{state.status:22} {state.location}")
    return 0 if all(state.ok for state in states) else 2


def _simulate(arguments: argparse.Namespace) -> int:
    profile = arguments.profile or runtime.default_profile()
    simulate = stage_commands(arguments.stage).simulate
    name, asked = arguments.stage, {}
    if arguments.kind is not None:
        if "kind" not in inspect.signature(simulate).parameters:
            raise UserError(f"--kind is {arguments.kind!r}, but {name} simulates data of one kind only: leave it out.")
        name, asked = f"{name}-{arguments.kind}", {"kind": arguments.kind}
    folder = arguments.data_dir or simulated_dir(name, profile)
    print(simulate(folder, profile=profile, seed=arguments.seed, **asked))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    cut_scenes = _offered(arguments.stage, "prepare", "cut_scenes")
    print(cut_scenes(arguments.sources, arguments.to, **_given(arguments, "size", "place")))
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    pack = _offered(arguments.stage, "pack", "pack")
    print(pack(arguments.data_dir, arguments.to, **_given(arguments)))
    return 0


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was asked for; the rest is the stage's default."""
    values = {name: getattr(arguments, name) for name in ("bands", "offset", *names)}
    return {name: value for name, value in values.items() if value is not None}


def _offered(stage: str, action: str, function: str) -> Any:
    """What the stage does for ``data ACTION``; UserError where it has nothing of the kind."""
    commands = stage_commands(stage)
    if not hasattr(commands, function):
        offering = [name for name in STAGES if hasattr(stage_commands(name), function)]
        raise UserError(f"there is nothing to {action} for {stage}: `data {action}` is for {', '.join(offering)}.")
    return getattr(commands, function)
