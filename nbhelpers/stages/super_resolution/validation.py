"""Is this what the model may be trained on? Asked of every patch before epoch 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.science.ground import ground_cells
from nbhelpers.science.sentinel2 import high_darks
from nbhelpers.stages.super_resolution.packed import PackedPatches
from nbhelpers.stages.super_resolution.patch import DN_PER_REFLECTANCE
from nbhelpers.stages.super_resolution.patches import Patches, WithValidation
from nbhelpers.stages.super_resolution.survey import Pool, stretched, survey

LIMITS = (-0.1, 2.0)  # reflectance that a scene may have: below 0 by noise, above 1 on clouds, snow and roofs
MAX_OUTSIDE = 0.01  # share of the values that may lie outside: single glints do
MIN_STD = 0.01  # reflectance, over the whole set: less is no image
MOST_LISTED = 20  # broken patches whose reasons are printed


@dataclass(frozen=True)
class Validation:
    """What was found; a set that training may not start from raises instead."""

    source: Path  # where the patches lie
    bands: tuple[str, ...]
    n_patches: int  # all that were looked at
    n_left_out: int  # others of the set, which nobody asked for
    usable: tuple[int, ...]  # index of every patch that can be read and has all its pixels
    broken: Mapping[int, str]  # why a patch cannot be read, by its index
    incomplete: tuple[str, ...]  # ids of patches with pixels that were not measured, which are left out
    shapes: tuple[tuple[int, int], ...]  # (H, W) of each patch by index; of a broken one the commonest
    offsets: Mapping[int, int]  # DN offset: number of patches
    low: tuple[float, ...]  # least reflectance by band
    high: tuple[float, ...]  # greatest reflectance by band
    std: tuple[float, ...]  # standard deviation of the reflectance over all pixels, by band
    content: Mapping[int, str]  # hash of the pixels by index; constant images have none
    ground: Mapping[int, tuple[int, ...]]  # cells on the ground of each usable patch that has a georeference
    warnings: tuple[str, ...]  # what to look at, a sentence each

    def remarks(self) -> list[str]:
        """What a report must say of the data, a sentence each."""
        said = list(self.warnings)
        if self.n_left_out:
            n = self.n_patches + self.n_left_out
            said.append(f"{self.n_left_out} of the {n} patches are beyond max_patches and are left out")
        if self.incomplete:
            said.append(
                f"{len(self.incomplete)} patches have pixels without data and are left out, e.g. {self.incomplete[0]}"
            )
        if self.broken:
            first = next(iter(self.broken.values()))
            said.append(f"{len(self.broken)} of {self.n_patches} patches cannot be read: {first}")
        return said

    def lines(self) -> list[str]:
        """What a reader should see before training: ranges, offsets, every broken patch, and the result."""
        by_band = zip(self.bands, self.low, self.high, self.std, strict=True)
        text = [f"HR {band}: {low:.4f} to {high:.4f}, std {std:.4f} (reflectance)" for band, low, high, std in by_band]
        offsets = ", ".join(f"{offset} DN in {count}" for offset, count in sorted(self.offsets.items()))
        text.append(f"{len(self.usable)} of {self.n_patches} patches usable; offset {offsets}")
        text += [f"Note: {remark}" for remark in self.remarks()]
        text += [f"  {reason}" for reason in list(self.broken.values())[1:MOST_LISTED]]
        if len(self.broken) > MOST_LISTED:
            text.append(f"  and {len(self.broken) - MOST_LISTED} more")
        if self.broken:
            return [*text, f"Data validation failed for {len(self.broken)} of {self.n_patches} patches"]
        return [*text, f"Data validation passed: 0 of {self.n_patches} patches failed"]


def validate(patches: Patches, *, scale: int = 1, only: Collection[int] | None = None) -> Validation:
    """Read every band of every patch once and judge the set.

    Broken patches are listed, not judged: how many of them a training may do without is a guard's decision.

    Args:
        patches: of a folder or a packed set, whose files are compared with its index first.
        scale: of the super-resolution: height and width must be multiples of it.
        only: indices of the patches to look at; None: all.

    Raises:
        UserError: no patch can be read or none is complete; a damaged shard; a size that is no multiple; each patch
            stretched by its own percentiles; hardly any contrast; values that are no reflectance times 1e4.
    """
    for part in patches.parts if isinstance(patches, WithValidation) else (patches,):
        if isinstance(part, PackedPatches):
            part.check()
    limits = (LIMITS[0] * DN_PER_REFLECTANCE, LIMITS[1] * DN_PER_REFLECTANCE)
    wanted = set(range(len(patches)) if only is None else only)
    chosen = [patch for patch in patches.patches if patch.index in wanted]
    looks, broken, pool = survey(chosen, patches.raw, n_bands=len(patches.bands), limits=limits)
    if not looks:
        raise UserError(
            f"none of the {len(chosen)} patches in {patches.root} can be read: {next(iter(broken.values()))}"
        )
    if found := stretched(looks.values()):  # before missing pixels are sought: a stretch makes zeros
        raise UserError(
            f"every patch in {patches.root} was stretched by itself ({found}), which destroys radiometry and uses "
            "statistics of the truth: take the digital numbers as they come from the archive."
        )
    usable = tuple(index for index, look in looks.items() if not look.n_missing)
    if not usable:
        raise UserError(
            f"each of the {len(looks)} readable patches in {patches.root} has pixels of value 0 (no data) in "
            f"{', '.join(patches.bands)}: take patches that are wholly covered."
        )
    shapes = {index: looks[index].shape for index in usable}
    for index, (height, width) in shapes.items():
        if height % scale or width % scale:
            sides = [side for shape in shapes.values() for side in shape]
            fits = next((one for one in (8, 4, 2) if not any(side % one for side in sides)), None)
            raise UserError(
                f"patch {patches.patches[index].id} has {height} x {width} pixels, expected multiples of the "
                f"scale {scale}: {f'set scale to {fits}, which fits all patches, or ' if fits else ''}cut the patches "
                "again with `nbhelpers data prepare super-resolution`."
            )
    _check_values(pool, patches)
    usual = Counter(look.shape for look in looks.values()).most_common(1)[0][0]
    return Validation(
        source=patches.root,
        bands=patches.bands,
        n_patches=len(chosen),
        n_left_out=len(patches) - len(chosen),
        usable=usable,
        broken=broken,
        incomplete=tuple(patches.patches[index].id for index, look in looks.items() if look.n_missing),
        shapes=tuple(looks[i].shape if i in looks else usual for i in range(len(patches))),
        offsets=dict(Counter(looks[index].offset for index in usable)),
        low=tuple((pool.lowest / DN_PER_REFLECTANCE).tolist()),
        high=tuple((pool.highest / DN_PER_REFLECTANCE).tolist()),
        std=tuple((pool.std / DN_PER_REFLECTANCE).tolist()),
        content={index: look.content for index in usable if (look := looks[index]).content is not None},
        ground=ground_cells({index: patches.georeference(index) for index in usable}, shapes),
        warnings=tuple(_warnings(pool, patches, {looks[index].offset for index in usable})),
    )


def _check_values(pool: Pool, patches: Patches) -> None:
    std = pool.std.mean() / DN_PER_REFLECTANCE
    if not std > MIN_STD:
        raise UserError(
            f"the patches in {patches.root} have a standard deviation of {std:.5f} reflectance and values up to "
            f"{pool.highest.max():.0f} DN, expected more than {MIN_STD}: they are blank, or not reflectance times "
            f"{DN_PER_REFLECTANCE}."
        )
    share = pool.n_outside / (pool.n * pool.n_bands)
    if share > MAX_OUTSIDE:
        raise UserError(
            f"{share:.1%} of the values in {patches.root} lie outside {LIMITS[0]} to {LIMITS[1]} reflectance (they go "
            f"from {pool.lowest.min() / DN_PER_REFLECTANCE:.2f} to {pool.highest.max() / DN_PER_REFLECTANCE:.2f}): "
            f"expected reflectance times {DN_PER_REFLECTANCE}; check the units and the offset."
        )


def _warnings(pool: Pool, patches: Patches, offsets: set[int]) -> list[str]:
    found = []
    if pool.n_outside:
        found.append(f"{pool.n_outside} values lie outside {LIMITS[0]} to {LIMITS[1]} reflectance")
    if "B02" in patches.bands and offsets == {0}:
        found += filter(None, [high_darks(pool.percentile(patches.bands.index("B02"), 1))])
    return found
