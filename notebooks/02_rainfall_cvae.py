# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Extreme rain from a conditional VAE, judged on what it samples
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/nbhelpers/nbhelpers/blob/main/notebooks/02_rainfall_cvae.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/nbhelpers/nbhelpers/blob/main/notebooks/02_rainfall_cvae.ipynb)
#
# ![A heavy day: observed, coarse rain made smooth, the median of the samples, and three samples](https://raw.githubusercontent.com/nbhelpers/nbhelpers/main/notebooks/figures/02_extremes.png)
#
# Given the coarse weather of a day, sample its rain at high resolution; above all, sample **extreme** days that one may
# train on. Such models look excellent when they *reconstruct* a day that they have seen, and are useless when they sample.
# So everything here is scored on samples of the **prior**, beside climatology, analogue days and interpolation, and on
# simulated weather beside an oracle that knows the true law of the rain.
#
# **You get** a trained model, its CRPS, wet-day frequencies, quantiles to P99.9, return levels, rank histogram and spread
# beside those baselines, with 95 % intervals, synthetic heavy days with their provenance, and a verdict.
#
# | profile | for | minutes | grid | memory of a step | download |
# |---|---|---|---|---|---|
# | `smoke` | checking that everything works | 1 | 32 × 28 | 0.02 GB | none |
# | `quick` | a laptop or a session without GPU | 5–10 | 52 × 44 | 0.1 GB | none |
# | `t4` | a free GPU (Colab, Kaggle) | up to 60 (not measured yet) | 156 × 132 | 2 GB (about half in fp16) | none |
# | `full` | several sessions | – | 156 × 132 | 4 GB | none, or your own |
#
# **Data**: weather that the notebook simulates, in the day-file layout that your own data are read from; or a climate model
# and a rain product in NetCDF, or CHIRPS daily rain alone (Funk et al. 2015, public domain). **Tested on**: Python 3.11 on a
# CPU.

# %% [markdown]
# ## 1 Setup
# Installs what is missing, and nothing else; then looks at this machine.

# %%
# include: ../colab_cells/setup.py

# %%
# include: ../colab_cells/mount_drive.py

# %% [markdown]
# ## 2 Settings
# Change what you like here, then run all. An empty `PROFILE` takes `t4` with a GPU and `quick` without.

# %% tags=["parameters"]
PROFILE = ""  # "smoke", "quick", "t4" or "full"
RUN_NAME = "rain"  # the same name again goes on where that run stopped
DATA_DIR = ""  # empty: simulated weather; else a folder of day files
LIKELIHOOD = "hurdle_gamma"  # or "tail_mae": the composite loss with a weight on extremes
SEED = 0
RUN_SWEEP = False  # train plain MAE, weights on extremes and a diluted weight, three seeds each
SAMPLES = 4  # synthetic days drawn for each heavy training day

# %% [markdown]
# **Your own data.** Set `DATA_DIR` to a folder with `X_lr/day_000000.npy` `(C, h, w)`, `Y_hr/day_000000.npy` `(1, H, W)` in
# mm/day (NaN over sea), `statics/land_sea_mask.npy` and `dist_to_coast_km.npy`, each `(1, H, W)`, and in `metadata/`
#
# * `split.json`: `{"train": [0, 1, …], "val": […], "test": […]}`, by years
# * `dates.json`: `{"000000": "1990-01-01", …}`, without which a split by years cannot be checked
# * `thresholds.json`: `{"P90": …, "P95": …, "P99": …, "P99.5": …, "units": "mm/day", "wet": 1.0, "years": [training years]}`
# * `categories.json`: `{"dry": […], "moderate": […], "heavy": […]}` and `H_W.json`: `{"H": 156, "W": 132}`
# * `dataset.json`: `{"name": "…", "source": "…", "simulated": false, "channels": ["tas", "pr", …], "x_units": {"tas": "K",
#   "pr": "mm/day", …}, "factor": 12, "pixel_km": 5.0}`
#
# A command makes all of it from NetCDF, with the thresholds of the training years and the masks:
#
# `nbhelpers data prepare rainfall-cvae --predictors COARSE_DIR --rain FINE.nc --to DIR` from daily `<var>_day_*.nc` and one
# rain product on a finer grid, or `nbhelpers data prepare rainfall-cvae --rain chirps-v2.0.*.nc --factor 4 --to DIR` from
# rain alone (its block means become the coarse predictor).

# %%
from pathlib import Path

from nbhelpers.core.runtime import default_profile, workspace
from nbhelpers.stages.rainfall_cvae.config import SIMULATED, Config

place = workspace()
profile = PROFILE or default_profile()
config = Config.for_profile(profile, seed=SEED, likelihood=LIKELIHOOD)
config

# %% [markdown]
# ## 3 Data
# Unless you named a folder, weather is simulated: an AR(1) state of moisture, ascent, wind and a front moves from day to day
# through the seasons; six coarse predictors see it with a climate model's errors; rain is drawn given the state, with
# orography, coast and heavy-tailed showers. That law is known, so it can be drawn from again: the oracle.

# %%
from nbhelpers.stages.rainfall_cvae.simulate import simulate

if DATA_DIR:
    data_dir = Path(DATA_DIR)
else:
    data_dir = place.data_dir / f"rainfall-cvae-{profile}"
    simulate(data_dir, seed=0, **SIMULATED[profile])

# %% [markdown]
# The task opens every day, checks units, masks, dates and thresholds, and refuses a year that stands in two splits.

# %%
from nbhelpers import widgets
from nbhelpers.stages.rainfall_cvae.task import RainfallTask

task = RainfallTask(config, data_dir)
for remark in task.remarks():
    print("NOTE", remark)
task.describe_data()

# %% [markdown]
# Look at the data before anything else: a heavy day, what is known of it, and where the thresholds lie.

# %%
from nbhelpers.stages.rainfall_cvae.map_figures import sample_figure

widgets.show(sample_figure(task))

# %% [markdown]
# ## 4 Baselines first
# What rain is worth that needs no training: days of the same season, days with similar weather (analogues), the coarse rain
# made smooth; and the oracle, which no model of these predictors can beat. One member has no spread: its CRPS is its MAE.

# %%
from nbhelpers.training.report import score_table

baselines = {name: task.evaluate("val", predictor).metrics for name, predictor in task.nulls.items()}
widgets.show_table(score_table(baselines, task.headlines))

# %% [markdown]
# ## 5 Model and losses
# An encoder keeps the map of the weather; a prior $p(z|x)$ and a posterior $q(z|x,y)$ give a latent map; a decoder takes
# both to the fine grid. With `hurdle_gamma` it puts out a distribution for every pixel, wet or dry and how much, and members
# are drawn from it with noise that neighbouring pixels share (a Gaussian copula whose length is fitted on validation days):
# independent pixels would have the right spread each and none at all in the mean over a region.

# %%
cvae = task.modules["cvae"]
print(f"{sum(p.numel() for p in cvae.parameters()):,} parameters, {len(task.days.split['train']):,} training days")
cvae

# %% [markdown]
# Two losses, over land only. The likelihood, $-\ln p(y|x,z) + \beta\,\mathrm{KL}$ per pixel; or the classical composite
#
# $$L = \lambda_\text{base}\,\text{MAE} + \lambda_\text{ext}\,\text{MAE}_\text{ext} + \lambda_\text{mass}\,|\overline{\hat y} -
# \overline{y}| + \beta(e)\,\text{KL}$$
#
# in mm/day, where $\text{MAE}_\text{ext}$ is each day's error over pixels above P95, averaged over the days that have such
# pixels. Multiply it by the share of such days, as is often done, and a weight of 2.0 becomes 0.2. On simulated rain the
# classical $\lambda_\text{ext} = 5$ takes 99 % of the gradient; a *share* of 30 % is about 0.03.

# %%
from nbhelpers.stages.rainfall_cvae.balance import measure_balance, tail_weight

composite = RainfallTask(config.replace({"likelihood": "tail_mae"}, source="the notebook"), data_dir, like=task)
balance = measure_balance(composite)
configurations = {
    "share of 30 %": composite.config,
    "classical": composite.config.replace({"preset": "classical"}, source="the notebook"),
    "plain MAE": composite.config.replace({"tail_share": 0.0}, source="the notebook"),
}
rows = [["configuration", "term", "raw", "weight", "share of the value", "share of the gradient"]]
for name, one in configurations.items():
    for entry in balance(one):
        shares = [f"{entry.value_share:.1%}", f"{entry.grad_share:.1%}"]
        rows.append([name, entry.term, f"{entry.raw:.3g}", f"{entry.weight:.3g}", *shares])
widgets.show_table(rows)

# %% [markdown]
# Move the weight on extremes: what it means on a real batch, and how much tail there is in an average one. (It counts with
# `LIKELIHOOD = "tail_mae"`; the likelihood has no such term.)

# %%
from nbhelpers.stages.rainfall_cvae.knobs import TAIL_KNOBS, WARM_UP_KNOBS

panel = widgets.loss_balance(
    composite.config, balance, TAIL_KNOBS, judged="mae_ext", note=tail_weight(composite, balance)
)
panel

# %% [markdown]
# What β means for the loss that is trained: the share of the gradient at the latent.

# %%
from nbhelpers.stages.rainfall_cvae.knobs import KL_KNOBS

beta_panel = widgets.loss_balance(config, measure_balance(task), KL_KNOBS, judged="kl")
beta_panel

# %% [markdown]
# β rises over the warm-up; before it has risen, no checkpoint is called best and no patience is counted. Does it fit?

# %%
from nbhelpers.stages.rainfall_cvae.schedule_fit import fits

warm_up = widgets.warm_up_panel(beta_panel.config, fits, WARM_UP_KNOBS)
warm_up

# %% [markdown]
# The next cell takes over what the panels say.

# %%
config = warm_up.config
if LIKELIHOOD == "tail_mae":
    chosen = panel.config
    config = config.replace({"lambda_ext": chosen.lambda_ext, "tail_share": chosen.tail_share}, source="the panel")
task = RainfallTask(config, data_dir, like=task)

# %% [markdown]
# ## 6 Train
# Everything goes to one folder, and from there to Drive if it is mounted. Press stop when you like, lose the session, run
# all again: training goes on at the very step where it was saved, in the middle of the warm-up too.
#
# **Guards** look on: a test year in training, rain in other units, NaN over land, an activation that cannot reach the
# target, a warm-up that does not fit, a term that is inert, drowning or diluted, a latent or a weather that nothing uses,
# selection by reconstruction.

# %%
from nbhelpers.core.runtime import make_copy_dir
from nbhelpers.stages.rainfall_cvae.drawn import fixed_sample
from nbhelpers.stages.rainfall_cvae.figures import history_figure, live_figure
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run

run = open_run(task, place.output_dir, f"{RUN_NAME}-{profile}", copy_dir=make_copy_dir(place))
watched = fixed_sample(task)
live = widgets.LiveFigure(lambda history: live_figure(task, history, watched))
fit(task, run, on_epoch=live)

# %% [markdown]
# What the guards have said of this run; an empty list is good news.

# %%
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.history import read_rows

print(read_guards(run))
widgets.show(history_figure(read_rows(run.history_file), config))

# %% [markdown]
# ## 7 Evaluate
# The best checkpoint by validation, scored once on the test years. A ✓ means that the model is better and the 95 % interval
# of the paired difference over blocks of days excludes 0. Two rows are the model itself: `posterior` has seen the day that
# it draws (a reconstruction, never a forecast), `x_shuffled` has been given another day's weather.

# %%
from nbhelpers.training.report import LEGEND, make_report, table

report = make_report(task, run)
for remark in report["remarks"]:
    print("NOTE", remark)
widgets.show_table(table(report, task.headlines))
print(LEGEND)

# %% [markdown]
# The heaviest test days: what fell, and what the model draws given the weather alone. (The pictures of the report lie in
# `run.figures`.)

# %%
widgets.show(run.figures / "extremes.png")

# %% [markdown]
# Are the extremes right? Quantiles to P99.9, and how much rain comes back once in so many years.

# %%
widgets.show(run.figures / "quantiles.png")
widgets.show(run.figures / "return_levels.png")

# %% [markdown]
# Is the spread right, per pixel, per coarse cell and over the domain? And what comes from the latent?

# %%
for name in ("ranks", "spread", "latent"):
    if (picture := run.figures / f"{name}.png").exists():  # a model without a latent has no picture of it
        widgets.show(picture)

# %% [markdown]
# What the terms contributed: the ledger's shares of the loss and of the gradient.

# %%
widgets.show(run.figures / "ledger.png")

# %% [markdown]
# ## 8 Verdict
# Computed from the numbers above.

# %%
from nbhelpers.training.task import Gate

for gate in report["gates"]:
    print(Gate(**gate))
print(f"\n{report['verdict']['name'].upper()}: {report['verdict']['meaning']}\nNext: {report['verdict']['next_step']}")

# %% [markdown]
# ### Does weight on extremes help, and what does diluting it do?
# One run cannot say. With `RUN_SWEEP = True` the next cell trains the composite loss without weight on extremes, with a
# share, with a number, and with that number multiplied by the share of days that have extremes, three seeds each. Stop it
# when you like, the next time it goes on.

# %%
from nbhelpers.stages.rainfall_cvae.sweep import Grid, measure_grid, run_sweep
from nbhelpers.stages.rainfall_cvae.sweep_figure import sweep_figure
from nbhelpers.training import sweep_text

grid_panel = widgets.sweep_panel(
    Grid(),
    measure_grid(composite),
    labels={"tail_shares": "tail shares", "lambdas": "λ_ext, and diluted", "seeds": "seeds"},
    minutes=report["train_seconds"] / 60,
)
grid_panel

# %%
if RUN_SWEEP:
    swept = run_sweep(
        config,
        grid_panel.grid,
        data_dir,
        place.output_dir / f"{RUN_NAME}-{profile}-sweep",
        copy_dir=make_copy_dir(place),
    )
    if swept.finished:
        widgets.show_table(sweep_text.settings_table(swept.report))
        widgets.show(sweep_figure(swept.report))
    print(f"{swept.report['verdict']['name'].upper()}: {swept.report['verdict']['meaning']}")
else:
    print("Not run: set RUN_SWEEP = True in section 2.")

# %% [markdown]
# ## 9 Save, reload, predict
# The proof that the run folder holds a working model: a fresh task with the weights from disk draws the same members.

# %%
import torch

from nbhelpers.training import checkpoint

scored = checkpoint.at(run.folder / report["checkpoint"]["path"])
again = RainfallTask(config, data_dir, like=task)
checkpoint.load_weights(scored, again.modules)
again.modules["cvae"].eval()  # without dropout
torch.testing.assert_close(again.members(watched), task.members(watched))
print(scored.folder, scored.sha256)

# %% [markdown]
# **Synthetic heavy days** for training another model: draws of the prior for heavy days of the *training* years, with a
# provenance that says by which checkpoint and from which data. Days of other years are refused, and so are draws of the
# posterior, which are near copies.

# %%
from nbhelpers.stages.rainfall_cvae.synth import FORECASTS, write_forecasts
from nbhelpers.stages.rainfall_cvae.synthesis import Synthesis

synthetic = run.folder / f"{FORECASTS}-{scored.folder.name}"  # a run that goes on draws others
if not synthetic.exists():
    options = Synthesis(K=SAMPLES)
    write_forecasts(
        task, synthetic, checkpoint=scored.sha256, step=report["checkpoint"]["step"], run=run.name, options=options
    )
print(synthetic, *sorted(path.name for path in synthetic.iterdir())[:3], "…")

# %% [markdown]
# Does it help? A small deterministic downscaler, trained for the same number of steps without added days, with the same
# heavy days drawn more often, and with synthetic ones: errors in the tail, false alarms, and what it costs elsewhere. One seed
# here; `benchmarks/rain_augmentation.py` does it with three.

# %%
from nbhelpers.stages.rainfall_cvae.augmented import demonstrate
from nbhelpers.stages.rainfall_cvae.augmented import table as augmentation_table
from nbhelpers.stages.rainfall_cvae.augmented_figure import augmentation_figure

steps = 20 if profile == "smoke" else 300
shown = demonstrate(task.days, synthetic, seeds=(0,), steps=steps)
print(augmentation_table(shown))
widgets.show(augmentation_figure(shown))

# %% [markdown]
# ## 10 Troubleshooting
#
# | what you see | what to do |
# |---|---|
# | `… looks like mm/h …` (or kg m-2 s-1, m) | multiply by the factor that it names, or prepare the folder again |
# | `NaN over land …` | the land mask is not that of the rain, or days have gaps: the message says which |
# | `days of the year … stand in …` | splits are by years: shuffled days would leak the weather of their neighbours |
# | `STOP schedule … its ramp ends at epoch …` | a shorter warm-up or more epochs; the panel in section 5 says what fits |
# | `STOP output_range … Relu …` | z-scores are negative on dry days: transform log1p with softplus |
# | `WARN rare_events …` | the weight on extremes is diluted or inert: a share of 30 %, undiluted |
# | `WARN latent …` | nothing uses the latent: lower `beta_kl`, `free_bits` 0.01; or `d_z` 0, which is smaller |
# | `only days of the training years may be augmented` | draw other days: a test day in training is a leak |
# | `FAIL: P99.9 of land rain …` | more years, more epochs, selection by `tw_crps`; with `tail_mae` a larger `tail_share` |
# | `run folder … was started with other settings` | choose a new `RUN_NAME` |
# | `STOP out_of_memory …` | the message names the next smaller setting |
#
# **References.** Conditional VAE and hybrid training: Sohn, Lee, Yan (2015), NeurIPS. Free bits: Kingma et al. (2016),
# arXiv:1606.04934. Extended generalised Pareto: Naveau et al. (2016), Water Resour. Res. 52. Fair CRPS: Ferro (2014), QJRMS 140.
# Threshold-weighted CRPS: Gneiting and Ranjan (2011), JBES 29. Spread and error: Fortin et al. (2014), J. Hydrometeor. 15.
# Fractions skill score: Roberts and Lean (2008), MWR 136. SEDI: Ferro and Stephenson (2011), Weather Forecast. 26. Return
# levels: Coles (2001), An Introduction to Statistical Modeling of Extreme Values. Active units: Burda et al. (2016),
# arXiv:1509.00519.
