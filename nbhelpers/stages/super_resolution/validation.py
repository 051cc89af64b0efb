"""Is this what the model may be trained on? Asked of every patch before epoch 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.packed import PackedPatches
from nbhelpers.stages.super_resolution.patch import DN_PER_REFLECTANCE
from nbhelpers.stages.super_resolution.patches import Patches, WithValidation
from nbhelpers.stages.super_resolution.survey import Pool, stretched, survey

LIMITS = (-0.1, 2.0)  # reflectance that a scene may have: below 0 by noise, above 1 on clouds, snow and roofs
MAX_OUTSIDE = 0.01  # share of the values that may lie outside: single glints do
MIN_STD = 0.01  # reflectance, over the whole set: less is no image
MOST_LISTED = 20  # broken patches whose reasons are printed
HIGH_DARKS = 1000  # DN: where not even 1 % of the blue band is darker, 1000 may have been added


@dataclass(frozen=True)
class Validation:
    """What was found; a set that training may not start from raises instead."""

    source: Path  # where the patches lie
    bands: tuple[str, ...]
    n_patches: int  # all that were found
    usable: tuple[int, ...]  # index of every patch that can be read and has all its pixels
    broken: Mapping[int, str]  # why a patch cannot be read, by its index
    incomplete: tuple[str, ...]  # ids of patches with pixels that were not measured, which are left out
    shapes: tuple[tuple[int, int], ...]  # (H, W) of each patch by index; of a broken one the commonest
    offsets: Mapping[int, int]  # DN offset: number of patches
    low: tuple[float, ...]  # least reflectance by band
    high: tuple[float, ...]  # greatest reflectance by band
    std: tuple[float, ...]  # standard deviation of the reflectance over all pixels, by band
    content: Mapping[int, str]  # hash of the pixels by index; constant images have none
    warnings: tuple[str, ...]  # what to look at, a sentence each

    def remarks(self) -> list[str]:
        """What a report must say of the data, a sentence each."""
        said = list(self.warnings)
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


def validate(patches: Patches, *, scale: int = 1) -> Validation:
    """Read every band of every patch once and judge the set.

    Broken patches are listed, not judged: how many of them a training may do without is a guard's decision.

    Args:
        patches: of a folder or a packed set, whose files are compared with its index first.
        scale: of the super-resolution: height and width must be multiples of it.

    Raises:
        UserError: no patch can be read or none is complete; a damaged shard; a size that is no multiple; each patch
            stretched by its own percentiles; hardly any contrast; values that are no reflectance times 1e4.
    """
    for part in patches.parts if isinstance(patches, WithValidation) else (patches,):
        if isinstance(part, PackedPatches):
            part.check()
    limits = (LIMITS[0] * DN_PER_REFLECTANCE, LIMITS[1] * DN_PER_REFLECTANCE)
    looks, broken, pool = survey(patches.patches, patches.raw, n_bands=len(patches.bands), limits=limits)
    if not looks:
        raise UserError(
            f"none of the {len(patches)} patches in {patches.root} can be read: {next(iter(broken.values()))}"
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
    for index in usable:
        if any(side % scale for side in looks[index].shape):
            height, width = looks[index].shape
            raise UserError(
                f"patch {patches.patches[index].id} has {height} x {width} pixels, expected multiples of the "
                f"scale {scale}: cut the patches again with `nbhelpers data prepare super-resolution`."
            )
    _check_values(pool, patches)
    usual = Counter(look.shape for look in looks.values()).most_common(1)[0][0]
    return Validation(
        source=patches.root,
        bands=patches.bands,
        n_patches=len(patches),
        usable=usable,
        broken=broken,
        incomplete=tuple(patches.patches[index].id for index, look in looks.items() if look.n_missing),
        shapes=tuple(looks[i].shape if i in looks else usual for i in range(len(patches))),
        offsets=dict(Counter(looks[index].offset for index in usable)),
        low=tuple((pool.lowest / DN_PER_REFLECTANCE).tolist()),
        high=tuple((pool.highest / DN_PER_REFLECTANCE).tolist()),
        std=tuple((pool.std / DN_PER_REFLECTANCE).tolist()),
        content={index: look.content for index in usable if (look := looks[index]).content is not None},
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
        dark = pool.percentile(patches.bands.index("B02"), 1)
        if dark > HIGH_DARKS:
            found.append(
                f"99 % of B02 are brighter than {dark:.0f} DN though no offset is declared: products of baseline 04.00 "
                "and later hold 1000 more; if these do, give offset -1000"
            )
    return found
