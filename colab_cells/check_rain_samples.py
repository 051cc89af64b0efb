# Hold the rain samples of any generative model against the days that they are to resemble, and say what is wrong.
# This cell stands alone: it needs numpy and matplotlib, nothing is installed. Give it the two arrays, in an earlier
# cell or here; with neither it shows itself on three made-up models of the same days (a few seconds).
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# (K, D, H, W): K samples of each of D days in mm/day, or the path of a .npy file; of several models {"name": array, …}.
members = globals().get("members")
# (D, H, W): the days in mm/day, NaN where nothing was measured or shall count (sea), or the path of a .npy file.
observed = globals().get("observed")
BLOCK = 4  # pixels along the side of a block; best as many as one coarse pixel of your model's input covers

SCALES = {"pixel": 1, "block": BLOCK, "domain": None}  # sides of what the rain is averaged over
WET_LEVELS = (0.1, 1.0)  # mm/day
SPREAD_RANGE, TAIL_RANGE, MEAN_RANGE = (0.8, 1.25), (0.9, 1.1), (0.9, 1.1)  # what is let pass; 1 is right
WET_MARGIN = 0.03  # difference of wet-day frequencies that is let pass
# Single members' correlation with the day, and CRPS as a part of climatology's, that make copies. Samples that know the
# true rain of every 2 x 2 pixels reach 0.97 and 0.21 (regional climate model, pixels of 12 km).
COPY_CORRELATION, COPY_CRPS = 0.98, 0.1
TIMES = {"kg m-2 s-1": 86400, "m/day": 1000, "mm/h": 24}  # what makes mm/day of it
MOST = {"kg m-2 s-1": 0.015, "m/day": 1.0, "mm/h": 5.0}  # largest rain of all days that hints at such units
RESAMPLES, FEWEST_DAYS = 500, 6  # of the bootstrap over days; with fewer days its intervals are far too narrow
LOWEST, HIGHEST, WIDTH = 0.1, 2000.0, 0.01  # mm/day, and the width in ln(rain) of the bins that quantiles come from
BINS = math.ceil(math.log(HIGHEST / LOWEST) / WIDTH)
PROBABILITIES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


# --- what comes in ---


def as_array(value, name):
    """An array of floats of an array, a tensor or the path of a .npy file; masked values become NaN."""
    if isinstance(value, (str, Path)):
        if Path(value).suffix != ".npy" or not Path(value).is_file():
            raise ValueError(f"{name} is {str(value)!r}, expected an array or the path of an existing .npy file.")
        value = np.load(value, mmap_mode="r", allow_pickle=False)
    if hasattr(value, "detach"):  # a tensor, perhaps on a GPU or with a gradient
        value = value.detach().cpu().double().numpy()
    array = np.ma.asarray(value) if np.ma.isMaskedArray(value) else np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {array.dtype}, expected numbers in mm/day.")
    if array.dtype.kind == "f" and not np.ma.isMaskedArray(array):
        return array
    return np.ma.filled(array.astype(float), np.nan)


def check_observed(y):
    """Raise a ValueError unless this is (D, H, W) rain with something measured."""
    if y.ndim != 3:
        raise ValueError(f"observed has shape {y.shape}, expected (D, H, W): one map of rain for each day.")
    if np.isnan(y).all():
        raise ValueError(f"observed {y.shape} is NaN everywhere or empty, expected something that was measured.")
    if np.isinf(y).any():
        raise ValueError("observed has infinite values: set them to NaN.")
    if np.nanmin(y) < -0.01:
        raise ValueError(
            f"observed goes down to {np.nanmin(y):g} mm/day, and rain is never below 0: set what was not measured to "
            "NaN and turn transformed rain back into mm/day."
        )


def check_members(x, y, name):
    """Raise a ValueError unless these are (K, D, H, W) members of the days, with a value wherever rain was measured."""
    if x.ndim != 4:
        raise ValueError(f"{name} has shape {x.shape}, expected (K, D, H, W): K samples of each of {len(y)} days.")
    if x.shape[1:] != y.shape:
        swapped = (x.shape[0], *x.shape[2:]) == y.shape
        cure = ": its first two axes are exchanged, give array.swapaxes(0, 1)." if swapped else ", as observed has it."
        raise ValueError(f"{name} has shape {x.shape}, expected (K, {', '.join(map(str, y.shape))}){cure}")
    if len(x) < 2:
        raise ValueError(f"{name} has {len(x)} sample of each day, expected at least 2: a single one has no spread.")
    bad = sum(int((~np.isfinite(x[:, day][:, ~np.isnan(y[day])])).sum()) for day in range(len(y)))
    if bad:
        raise ValueError(
            f"{name} has {bad:,} values that are NaN or infinite where observed was measured, expected none."
        )


# --- sums of each day, from which every score is made ---


def fair_crps(x, y):
    """(N,) of sorted members (K, N): mean|x - y| - mean|x - x'| / 2 over different members (Ferro 2014, QJRMS 140)."""
    k = len(x)
    order = np.arange(1 - k, k, 2.0)
    return np.abs(x - y).mean(0) - order @ x / (k * (k - 1))


def block_means(fields, side, valid):
    """Means (..., h, w) of (..., H, W) over valid pixels of blocks; NaN where less than half a block is valid."""
    height, width = valid.shape
    rows, columns = (side or height), (side or width)
    pad = ((0, -height % rows), (0, -width % columns))

    def total(values):
        padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + list(pad))
        h, w = padded.shape[-2] // rows, padded.shape[-1] // columns
        return padded.reshape(*padded.shape[:-2], h, rows, w, columns).sum((-3, -1))

    count = total(valid.astype(float))
    enough = count >= (max(side**2 / 2, 1) if side else 1)  # of the whole domain, any pixel is enough
    return np.where(enough, total(np.where(valid, fields, 0.0)) / np.maximum(count, 1), np.nan)


def histogram(rain):
    """(1 + BINS,) counts in bins of equal width in ln(rain), the first for all below LOWEST."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log(rain.astype(np.float32) / np.float32(LOWEST)) / np.float32(WIDTH) + 1
    return np.bincount(np.clip(np.where(place > 0, place, 0), 0, BINS).astype(int).ravel(), minlength=1 + BINS)


def rank_counts(x, y):
    """(K + 1,): how often the truth has each rank among the members; among equals (dry ones) it is shared out."""
    below, equal = (x < y).sum(0), (x == y).sum(0)
    share, size = 1 / (equal + 1), len(x) + 2
    return (np.bincount(below, share, size) - np.bincount(below + equal + 1, share, size)).cumsum()[:-1]


def day_sums(fields, truth):
    """Sums over the measured pixels of a day: ``(K, H, W)`` members and the ``(H, W)`` truth; members' are means."""
    valid = ~np.isnan(truth)
    x, y = np.sort(fields[:, valid], axis=0).astype(float), truth[valid].astype(float)
    sums = {"n": y.size, "crps": fair_crps(x, y).sum(), "ranks": rank_counts(x, y)}
    sums |= {"x": x.mean(0).sum(), "y": y.sum(), "xx": (x**2).mean(0).sum(), "yy": (y**2).sum()}
    sums |= {"xy": (x.mean(0) * y).sum(), "lowest": x.min(initial=0)}
    for mm in WET_LEVELS:
        sums[f"wet {mm:g} members"], sums[f"wet {mm:g} observed"] = (x >= mm).mean(0).sum(), (y >= mm).sum()
    for scale, side in SCALES.items():
        ours, theirs = (block_means(values.astype(float), side, valid) for values in (fields, truth))
        counted = ~np.isnan(theirs)
        ours, theirs = ours[:, counted], theirs[counted]
        sums[f"variance {scale}"] = ours.var(0, ddof=1).sum()
        sums[f"error {scale}"], sums[f"n {scale}"] = ((ours.mean(0) - theirs) ** 2).sum(), theirs.size
    return sums | {"histogram members": histogram(x), "histogram observed": histogram(y)}


def climatology_sums(y):
    """(D, 2): each day's fair CRPS when all other days of ``observed`` are its members, and how many pixels have it.

    Of n days in order, those other than the r-th lie sum|y_r - y_j| = (2r - n) y_r - 2 sum_{j<=r} y_j + sum_j y_j away.
    """
    order = np.argsort(y, axis=0)  # NaN last
    ordered = np.nan_to_num(np.take_along_axis(y, order, 0).astype(float))
    n, rank = (~np.isnan(y)).sum(0), np.arange(1, len(y) + 1)[:, None, None]
    apart = (2 * rank - n) * ordered - 2 * ordered.cumsum(0) + ordered.sum(0)
    apart = np.where(rank <= n, apart, 0.0)
    others = np.maximum(n - 1, 1)
    score = apart / others - (apart.sum(0) - 2 * apart) / (2 * others * np.maximum(n - 2, 1))
    counted = (rank <= n) & (n >= 3)
    back = np.empty_like(score)
    np.put_along_axis(back, order, np.where(counted, score, 0.0), 0)
    return np.stack([back.sum((1, 2)), (~np.isnan(y) & (n >= 3)).sum((1, 2))], -1)


# --- scores ---


def ratio(a, b):
    """a / b; NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def quantiles(counts, probability):
    """(R,) mm/day of the histograms (R, 1 + BINS): even in ln(rain) within a bin, 0 below LOWEST."""
    cumulative = counts.cumsum(-1)
    wanted = probability * cumulative[:, -1]
    index = np.minimum((cumulative < wanted[:, None]).sum(-1), BINS)
    rows = np.arange(len(counts))
    above, below = cumulative[rows, index], cumulative[rows, np.maximum(index - 1, 0)]
    part = np.clip(np.nan_to_num(ratio(wanted - below, above - below)), 0, 1)
    return np.where(index > 0, LOWEST * np.exp(WIDTH * (index - 1 + part)), 0.0)


def scores(sums, k, weights):
    """Every score by name, each ``(R,)``: with the days counted as often as the rows of ``weights`` (R, D) say."""
    of = {name: weights @ values for name, values in sums.items() if not name.startswith("histogram")}
    found = {"fair CRPS": ratio(of["crps"], of["n"])}
    found["climatology's CRPS"] = ratio(*np.moveaxis(of["climatology"], -1, 0))
    found["CRPS / climatology's"] = ratio(found["fair CRPS"], found["climatology's CRPS"])
    mean_x, mean_y = ratio(of["x"], of["n"]), ratio(of["y"], of["n"])
    scatter = [np.maximum(ratio(of[2 * v], of["n"]) - mean**2, 0) for v, mean in (("x", mean_x), ("y", mean_y))]
    together = ratio(of["xy"], of["n"]) - mean_x * mean_y
    found["member-day correlation"] = ratio(together, np.sqrt(scatter[0] * scatter[1]))
    found["mean rain ratio"] = ratio(mean_x, mean_y)
    for scale in SCALES:
        spread = np.sqrt((k + 1) / k * ratio(of[f"variance {scale}"], of[f"n {scale}"]))
        found[f"spread/skill {scale}"] = ratio(spread, np.sqrt(ratio(of[f"error {scale}"], of[f"n {scale}"])))
    for mm in WET_LEVELS:
        ours, theirs = (ratio(of[f"wet {mm:g} {who}"], of["n"]) for who in ("members", "observed"))
        found |= {f"wet days {mm:g} mm": ours, f"observed wet days {mm:g} mm": theirs}
        found[f"wet difference {mm:g}"] = ours - theirs
    both = [weights @ sums[f"histogram {who}"] for who in ("members", "observed")]
    for p in (0.99, 0.999):
        found[f"P{100 * p:g} ratio"] = ratio(*(quantiles(counts, p) for counts in both))
    return found


def rank_table(counts):
    """Each rank's share times K + 1 (1 expected), two standard errors from day to day, and the reliability index."""
    n, share = counts.sum(), counts.sum(0) / counts.sum()
    days = max(len(counts), 2)
    apart = counts - share * counts.sum(1, keepdims=True)
    error = np.sqrt((apart**2).sum(0) * days / (days - 1)) / n
    ranks = len(share)
    index, chance = np.abs(share - 1 / ranks).sum(), (error * math.sqrt(2 / math.pi)).sum()
    return {"flatness": share * ranks, "error": 2 * error * ranks, "index": index, "chance": chance}


def judge(x, y, name="members"):
    """All scores of one model with their intervals, and in words what is wrong with it."""
    check_members(x, y, name)
    rows = [day_sums(x[:, day], y[day]) for day in range(len(y))]
    sums = {key: np.array([row[key] for row in rows], dtype=float) for key in rows[0]}
    sums["climatology"] = climatology_sums(y)
    k, days = len(x), len(y)
    draws = np.random.default_rng(0).multinomial(days, np.full(days, 1 / days), size=RESAMPLES).astype(float)
    value = {key: float(found[0]) for key, found in scores(sums, k, np.ones((1, days))).items()}
    limits = {}
    for key, drawn in scores(sums, k, draws).items():
        enough = days >= FEWEST_DAYS and np.isfinite(drawn).any()
        limits[key] = np.nanpercentile(drawn, [2.5, 97.5]) if enough else np.full(2, np.nan)
    for mm in WET_LEVELS:  # of the same days: whether they were wet ones says nothing of the model
        limits[f"wet days {mm:g} mm"] = value[f"observed wet days {mm:g} mm"] + limits[f"wet difference {mm:g}"]
    both = [sums[f"histogram {who}"].sum(0)[None] for who in ("members", "observed")]
    shown = [p for p in PROBABILITIES if (1 - p) * both[1].sum() >= 10]
    pairs = np.array([[quantiles(counts, p)[0] for counts in both] for p in shown]).reshape(-1, 2)
    words = findings(name, value, limits, sums, float(np.nanmax(y)))
    return {"value": value, "limits": limits, "ranks": rank_table(sums["ranks"]), "quantiles": pairs, "findings": words}


# --- what the scores say ---


def wrong_units(name, mean, truth, largest):
    """A sentence if amounts look like other units than mm/day, else None."""
    for unit, times in TIMES.items():
        for who, low, high in ((name, mean, truth), ("observed", truth, mean)):
            if high > 0 and 1 / 1.5 < times * low / high < 1.5:
                return (
                    f"WRONG UNITS? {who} looks like {unit}, not mm/day: its mean is {low:.3g} where the other's is "
                    f"{high:.3g}, about {times} times as much; multiply {who} by {times}."
                )
    for unit, most in MOST.items():
        if 0 < largest < most:
            return (
                f"WRONG UNITS? observed looks like {unit}, not mm/day: its largest value of all days is {largest:.3g}; "
                f"multiply it and the samples by {TIMES[unit]}, unless these days really were so dry."
            )
    return None


def findings(name, value, limits, sums, largest):
    """What is wrong, the cause before its effects; but for units and copies only what all of an interval agrees on."""
    mean, truth = (sums[who].sum() / sums["n"].sum() for who in "xy")
    if units := wrong_units(name, mean, truth, largest):
        return [units]
    part, correlation = value["CRPS / climatology's"], value["member-day correlation"]
    if correlation > COPY_CORRELATION or part < COPY_CRPS:
        return [
            "NEAR COPIES: these samples are near copies of the day they are scored on (correlation of a sample with "
            f"its day {correlation:.3f}, CRPS {part:.2f} of climatology's): reconstruction, not generation. Draw from "
            "the prior, without showing the model the day; no other score means anything before."
        ]
    words, lowest = [], sums["lowest"].min()
    if lowest < -0.01:
        words.append(f"NEGATIVE RAIN: samples go down to {lowest:.3g} mm/day: was a transform not undone?")
    if truth == 0:
        return [*words, "NO RAIN: observed is dry everywhere, which says little of a model of rain."]
    low, high = ({key: pair[end] for key, pair in limits.items()} for end in (0, 1))
    if low["CRPS / climatology's"] > 1:
        words.append(
            f"NO SKILL: the CRPS is {part:.2f} times climatology's: other days, drawn blindly, are better samples."
        )
    ratios = {scale: value[f"spread/skill {scale}"] for scale in SCALES}
    narrow = [scale for scale in SCALES if high[f"spread/skill {scale}"] < SPREAD_RANGE[0]]
    wide = [scale for scale in SCALES if low[f"spread/skill {scale}"] > SPREAD_RANGE[1]]
    told = ", ".join(f"{number:.2f} per {scale}" for scale, number in ratios.items())
    if "pixel" in narrow:
        words.append(
            f"TOO LITTLE SPREAD: spread/skill is {told} (1 is right): the truth often lies outside the samples."
        )
    elif narrow and "pixel" not in wide:
        words.append(
            f"INDEPENDENT PIXELS: spread/skill is {told}: right per pixel and too small per {' and '.join(narrow)}. "
            "Noise of independent pixels averages out and that of rain does not: draw spatially correlated noise."
        )
    elif narrow:
        words.append(f"SPREAD AT THE WRONG SCALE: spread/skill is {told}: too large per pixel, too small in the mean.")
    elif wide:
        shown = " Was the model shown the day?" if correlation > 0.8 else ""
        words.append(
            f"TOO MUCH SPREAD: spread/skill is {told} (1 is right): the truth lies too near the samples' mean.{shown}"
        )
    for mm in WET_LEVELS:
        ours, theirs = value[f"wet days {mm:g} mm"], value[f"observed wet days {mm:g} mm"]
        said = f"{ours:.0%} of pixels and days have at least {mm:g} mm where {theirs:.0%} should"
        if low[f"wet difference {mm:g}"] > WET_MARGIN:
            words.append(f"{'DRIZZLE' if mm < 1 else 'TOO MANY WET DAYS'}: {said}.")
        elif high[f"wet difference {mm:g}"] < -WET_MARGIN:
            words.append(f"TOO DRY: {said}.")
    tails = {which: value[f"{which} ratio"] for which in ("P99", "P99.9")}
    light = [f"{which} is {tails[which]:.2f}" for which in tails if high[f"{which} ratio"] < TAIL_RANGE[0]]
    heavy = [f"{which} is {tails[which]:.2f}" for which in tails if low[f"{which} ratio"] > TAIL_RANGE[1]]
    if light:
        words.append(f"MISSING EXTREMES: heavy rain is too light: {' and '.join(light)} times the observed one.")
    if heavy:
        words.append(f"TOO EXTREME: heavy rain is too heavy: {' and '.join(heavy)} times the observed one.")
    number = value["mean rain ratio"]
    if high["mean rain ratio"] < MEAN_RANGE[0] or low["mean rain ratio"] > MEAN_RANGE[1]:
        words.append(f"WRONG TOTAL: it rains {number:.2f} times as much as observed in the mean.")
    return words


# --- what is shown ---


def print_table(judged, y):
    """The scores of all models beside one another, then in words what is wrong with each."""
    first = next(iter(judged.values()))["value"]
    chance = first["climatology's CRPS"]
    should = {"fair CRPS": f"below climatology's {chance:.2f}", "CRPS / climatology's": "below 1, not near 0"}
    should |= {"member-day correlation": "not near 1", "mean rain ratio": "1"}
    should |= {f"spread/skill {scale}": "1" for scale in SCALES}
    should |= {f"wet days {mm:g} mm": f"observed {first[f'observed wet days {mm:g} mm']:.2f}" for mm in WET_LEVELS}
    should |= {"P99 ratio": "1", "P99.9 ratio": "1"}
    print(f"{'':24s}" + "".join(f"{name[:22]:>24s}" for name in judged) + "   should be")
    for key, right in should.items():
        cells = []
        for one in judged.values():
            low, high = one["limits"][key]
            interval = "" if np.isnan(low) else f" ({low:.2f}-{high:.2f})"
            cells.append(f"{one['value'][key]:.2f}{interval}")
        print(f"{key:24s}" + "".join(f"{cell:>24s}" for cell in cells) + f"   {right}")
    cells = [f"{one['ranks']['index']:.2f} ({one['ranks']['chance']:.2f} by chance)" for one in judged.values()]
    print(f"{'rank reliability index':24s}" + "".join(f"{cell:>24s}" for cell in cells) + "   as by chance")
    print(
        "In brackets: 95 % of resamples of the days, as if these were independent. CRPS in mm/day. Climatology's is "
        "that of all other days of observed as samples, whatever their season: the chance level.\n"
    )
    if len(y) < FEWEST_DAYS:
        print(f"Only {len(y)} days, too few to tell chance from fault: only units, copies and the sign are judged.")
    for name, one in judged.items():
        for sentence in one["findings"]:
            print(f"{name}: {sentence}")
        if not one["findings"]:
            print(
                f"{name}: nothing wrong was found. Only you can know that the model was not shown these days: loose "
                "copies of them would pass."
            )


def draw(judged):
    """CRPS, spread/skill, wet days, tails, rank histogram and quantiles of every model."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6), layout="constrained")
    skill, spread, wet, tail, ranks, pairs = axes.flat
    colours = dict(zip(judged, [COLOURS[i % len(COLOURS)] for i in range(len(judged))], strict=True))
    first = next(iter(judged.values()))["value"]

    def dots(axis, keys, labels):
        for index, (name, one) in enumerate(judged.items()):
            middle = np.maximum([one["value"][key] for key in keys], 1e-9)  # no logarithm of 0: see spread
            ends = np.array([one["limits"][key] for key in keys]).T
            reach = np.nan_to_num(np.maximum([middle - ends[0], ends[1] - middle], 0))
            place = np.arange(len(keys)) + 0.5 * ((index + 0.5) / len(judged) - 0.5)
            axis.errorbar(place, middle, reach, fmt="o", ms=6, capsize=3, color=colours[name], label=name)
        axis.set(xticks=range(len(keys)), xticklabels=labels, xlim=(-0.5, len(keys) - 0.5))

    dots(skill, ["fair CRPS"], ["samples of the day"])
    chance = first["climatology's CRPS"]
    skill.axhline(chance, color="black", ls="--", lw=1.2)
    skill.annotate(
        "climatology: other days", (0.48, chance), (0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    skill.set(title="fair CRPS (low is good, near 0 a copy)", ylabel="mm/day", ylim=(0, None))
    skill.set_ylim(0, 1.12 * skill.get_ylim()[1])
    dots(spread, [f"spread/skill {scale}" for scale in SCALES], [f"{s}" for s in SCALES])
    spread.set(title="spread / error of the samples' mean", yscale="log", ylabel="ratio (1 is right)")
    dots(tail, ["mean rain ratio", "P99 ratio", "P99.9 ratio"], ["mean", "P99", "P99.9"])
    tail.set(title="amounts: samples / observed", ylabel="ratio (1 is right)")
    for axis, (low, high) in ((spread, SPREAD_RANGE), (tail, TAIL_RANGE)):
        axis.axhspan(low, high, color="#999999", alpha=0.25, lw=0)
        axis.axhline(1, color="black", lw=1)
    bottom, top = spread.get_ylim()
    bottom, top = max(min(bottom, 0.45), 0.04), max(top, 2.2)  # without any spread the dots are below the axis
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if bottom <= t <= top]
    spread.set_ylim(bottom, top)
    spread.set_yticks(ticks, [f"{t:g}" for t in ticks])
    spread.minorticks_off()
    dots(wet, [f"wet days {mm:g} mm" for mm in WET_LEVELS], [f"at least {mm:g} mm" for mm in WET_LEVELS])
    for place, mm in enumerate(WET_LEVELS):
        number, ends = first[f"observed wet days {mm:g} mm"], [place - 0.42, place + 0.42]
        wet.fill_between(ends, number - WET_MARGIN, number + WET_MARGIN, color="#999999", alpha=0.25, lw=0)
        wet.plot(ends, [number, number], color="black", lw=1)
    wet.set(title="wet days (line: observed)", ylabel="part of all pixels and days")
    for name, one in judged.items():
        flat, error = one["ranks"]["flatness"], one["ranks"]["error"]
        place = np.arange(len(flat)) / (len(flat) - 1)
        ranks.plot(place, flat, "o-", ms=3, lw=1.3, color=colours[name])
        ranks.fill_between(place, flat - error, flat + error, color=colours[name], alpha=0.2, lw=0)
        pairs.plot(one["quantiles"][:, 1], one["quantiles"][:, 0], "o-", ms=4, lw=1.3, color=colours[name])
    ranks.axhline(1, color="black", lw=1)
    ranks.set(title="rank of the truth among the samples", xlabel="below all … above all", ylim=(0, None))
    ranks.set(ylabel="times as often as expected (1)", xticks=[])
    most = max([1.0, *(one["quantiles"].max(initial=0) for one in judged.values())])
    pairs.plot([0, most], [0, most], color="black", lw=1, zorder=0)
    pairs.set(title="quantiles, median to P99.9 at most", xlabel="observed, mm/day", ylabel="samples, mm/day")
    handles, labels = spread.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(judged), 4), frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.labelpad = 8
    plt.show()


# --- the demonstration ---


def demonstration(k=16, days=120, side=32, seed=7):
    """Made-up days, and samples by three models that know each day's large-scale weather; the third knows the day."""
    rng = np.random.default_rng(seed)
    wave = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))

    def smooth(count, length):
        """Correlated noise ``(count, days, side, side)`` of variance 1."""
        filtered = np.fft.rfft2(rng.normal(size=(count, days, side, side))) * np.exp(-2 * (np.pi * wave * length) ** 2)
        noise = np.fft.irfft2(filtered, s=(side, side))
        return noise / noise.std()

    weather = 0.8 * rng.normal(size=(1, days, 1, 1)) + 0.6 * smooth(1, 8)  # what all models are told
    unknown = 0.35 * rng.normal(size=(k + 1, days, 1, 1)) + 0.6 * smooth(k + 1, 2)  # what none can be told
    truth, drawn = weather + unknown[:1], unknown[1:]

    def rain(level):
        return 6 * np.maximum(level - 0.2, 0) ** 1.6

    day = rain(truth)[0]
    day[:, :8, :8] = np.nan  # the sea in a corner
    models = {
        "calibrated": rain(weather + drawn),
        "too sure of itself": rain(weather + 0.3 * drawn),  # the same draws, nearer to what is expected
        "posterior samples": rain(truth + 0.1 * drawn),  # the model was shown the day
    }
    return models, day


def check(members, observed):
    """Print and draw everything; returns the results by the model's name."""
    if (members is None) != (observed is None):
        given, missing = ("observed", "members") if members is None else ("members", "observed")
        raise ValueError(f"{given} is given and {missing} is not: set both, or neither for the demonstration.")
    if members is None:
        print("members and observed are not given: these are MADE-UP days and models, which show how it works.\n")
        members, observed = demonstration()
    y = as_array(observed, "observed")
    check_observed(y)
    models = members if isinstance(members, dict) else {"members": members}
    if not models:
        raise ValueError("members is an empty dict, expected an array for each model's name.")
    stacks = {str(name): as_array(one, name) for name, one in models.items()}
    judged = {name: judge(stack, y, name) for name, stack in stacks.items()}
    sizes = " / ".join(str(size) for size in sorted({len(stack) for stack in stacks.values()}))
    measured, (days, height, width) = np.mean(~np.isnan(y)), y.shape
    print(f"{sizes} samples of each of {days} days of {height} x {width} pixels, {measured:.0%} measured.\n")
    print_table(judged, y)
    draw(judged)
    return judged


rain_check = check(members, observed)
