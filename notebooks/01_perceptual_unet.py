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
# # 01 · Radar nowcasting with a perceptual loss
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/nbhelpers/nbhelpers/blob/main/notebooks/01_perceptual_unet.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/nbhelpers/nbhelpers/blob/main/notebooks/01_perceptual_unet.ipynb)
#
# ![Truth, model, advection and persistence half an hour ahead](https://raw.githubusercontent.com/nbhelpers/nbhelpers/main/notebooks/figures/01_nowcast.png)
#
# Predict the next radar frames from the last ones. A net trained on the mean squared error alone blurs; a **perceptual
# term** keeps it sharp, if its weight is neither so small that it does nothing nor so large that it drowns the rest.
#
# **You get** a trained UNet, its scores beside persistence and advection with 95 % intervals, a picture of what each loss
# term contributed, and a verdict that says what to do next.
#
# | profile | for | minutes | memory of a step, float32 | download |
# |---|---|---|---|---|
# | `smoke` | checking that everything works | 1 | 0.1 GB | 5 MB |
# | `quick` | a laptop or a session without GPU | 10 | 0.3 GB | 5 MB |
# | `t4` | a free GPU (Colab, Kaggle) | up to 60 (not measured yet) | 3.5 GB (about half in fp16) | 800 MB of network weights |
# | `full` | several sessions | – | 8 GB | as `t4`, and the data |
#
# **Data**: simulated storms in SEVIR's own file format, made here in a minute, or your copy of
# [SEVIR](https://registry.opendata.aws/sevir/) (Veillette, Samsi, Mattioli 2020), or any radar written in that layout.
# **Tested on**: Python 3.11 on a CPU.

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
RUN_NAME = "nowcast"  # the same name again goes on where that run stopped
DATA_DIR = ""  # empty: simulated storms; else the folder that holds SEVIR's CATALOG.csv
SEVIR_EVENTS = 0  # with DATA_DIR empty: fetch so many real events (7 MB each, and 34 MB of catalogue), e.g. 60
BACKBONE_WEIGHTS = "imagenet"  # downloaded once; or the path of a weight file; or "random" (the report will say so)
LPIPS_WEIGHTS = ""  # the same for the LPIPS metric; empty: those of the backbone if it is the same net, else imagenet
SEED = 0
RUN_SWEEP = False  # train several λ with two seeds each and compare them (profile smoke does a tiny one)

# %% [markdown]
# **Real storms.** With `SEVIR_EVENTS = 60` the data cell fetches 60 events of SEVIR from its public bucket, by ranges of
# the large files, into one file of 430 MB; ask for more later and only the new ones are fetched (other data are another
# run: choose a new `RUN_NAME`). A copy of SEVIR on Drive reads as it is: `DATA_DIR = "/content/drive/MyDrive/SEVIR_Data"`.
#
# **Your own data.** Set `DATA_DIR` to a folder with
#
# * `CATALOG.csv` with at least the columns `id, file_name, file_index, img_type, time_utc, minute_offsets, pct_missing`
#   and one row of `img_type` `vil` for each event;
# * the HDF5 files it names, each with `id` `(events,)` and `vil` `(events, height, width, frames)`: uint8, 0–254 grey
#   levels, 255 where nothing was measured, frames at a regular step.
#
# Size, number of frames and step are read from the files. The event scores count pixels at or above the grey levels 16,
# 74, 133, 160, 181 and 219, so scale your intensities to SEVIR's levels.

# %%
import os
from pathlib import Path

from nbhelpers.core.runtime import default_profile, workspace
from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config

place = workspace()
profile = PROFILE or default_profile()
weights = os.environ.get("NBHELPERS_BACKBONE_WEIGHTS", BACKBONE_WEIGHTS)
config = Config.for_profile(profile, seed=SEED, backbone_weights=weights, lpips_weights=LPIPS_WEIGHTS or None)
config

# %% [markdown]
# ## 3 Data
# Simulated storms, unless you named a folder or asked for SEVIR: rain that is carried along by a curved flow, grows and
# decays, with convective cells in stratiform rain and here and there a sector that the radar did not see.

# %%
from nbhelpers.core.manifest import load_manifest
from nbhelpers.stages.perceptual_unet.sevir_fetch import fetch_events
from nbhelpers.stages.perceptual_unet.simulate import simulate

if DATA_DIR:
    data_dir = Path(DATA_DIR)
elif SEVIR_EVENTS:
    data_dir = place.data_dir / "sevir-events"
    print(fetch_events(load_manifest("sevir"), data_dir, SEVIR_EVENTS))
else:
    data_dir = place.data_dir / f"perceptual-unet-{profile}"
    simulate(data_dir, **SIMULATED[profile])

# %% [markdown]
# The task reads the catalogue, opens every file once to check that it holds what the catalogue says, and splits the
# events: no event, and where the dates allow it no day, stands in two splits.

# %%
from nbhelpers.stages.perceptual_unet.task import NowcastTask

task = NowcastTask(config, data_dir)
for remark in task.remarks():
    print("NOTE", remark)
task.describe_data()

# %% [markdown]
# Look at the data before anything else: grey levels (with SEVIR's meaning in kg m⁻² beside them), grey where nothing was
# measured.

# %%
from nbhelpers import widgets
from nbhelpers.stages.perceptual_unet import figures

widgets.show(figures.sample_figure(task))

# %% [markdown]
# ## 4 Baselines first
# What a forecast is worth that needs no training: the last frame again (persistence), and the last frame moved along the
# motion of the frames before (advection). The blurred truth is no forecast but a control: it knows the answer and is
# smooth, so a score that likes it would like blurred forecasts too.

# %%
from nbhelpers.training.report import score_table

baselines = {name: task.evaluate("val", forecast).metrics for name, forecast in task.nulls.items()}
widgets.show_table(score_table(baselines, task.headlines))

# %% [markdown]
# ## 5 Model and losses
# A UNet with frames as channels, in **coordinates that move with the rain**: every input frame is brought along the
# motion to where its rain is now, the net predicts how it will grow and decay there, and its forecasts are carried to
# their places. Untrained it is the advection forecast, so training starts at the strongest baseline. Set
# `first_guess="persistence"` to see how long a net takes to learn motion by itself.

# %%
unet = task.modules["unet"]
print(f"{sum(p.numel() for p in unet.parameters()):,} parameters")
unet.down[0], unet.head

# %% [markdown]
# The loss is
#
# $$L = \mathrm{MSE}_w(\hat y, y) + \mu\,\mathrm{MAE}_w(\hat y, y) + \frac{\lambda}{S}\,P(\hat y, y),\qquad
# P = \sum_l \operatorname{mean}\,\bigl(\varphi_l(\hat y) - \varphi_l(y)\bigr)^2$$
#
# with $\varphi_l$ the activations of a pretrained image network. The pixel errors are weighted, $w = (1 + e\,y)/k$ with
# $e$ = `emphasis` and $k$ the number of the lead: the plain MSE is smallest for the mean of all that may come, which
# forecasts strong rain too rarely. (`emphasis=0, even_leads=False, mae_weight=0` is the plain $\mathrm{MSE} + \lambda P/S$.)
#
# What λ *means* depends on the data, the network and S: with VGG16 the often copied 5e-4 with S = 6000 contributes a
# twentieth of a per cent to the plain loss. So look before you train: the panel shows, on a real batch, which share of the
# loss and of the gradient the term has. Set either λ or the share itself.

# %%
from nbhelpers.stages.perceptual_unet.balance import KNOBS, measure_balance

panel = widgets.loss_balance(config, measure_balance(task), KNOBS, judged="perceptual")
panel

# %% [markdown]
# The next cell takes over what the panel says (untouched, it is the profile's 10 % of the gradient).

# %%
config = panel.config
task = NowcastTask(config, data_dir)
{term: getattr(config, term) for term in ("lambda_perc", "perceptual_scale", "perceptual_share")}

# %% [markdown]
# ## 6 Train
# Everything goes to one folder, and from there to Drive if it is mounted. Press stop when you like, lose the session, run
# all again: training goes on at the very step where it was saved, and the result is the same to the last bit.
#
# **Guards** look on: data that are noise or in other units, test events in training, a loss term that does nothing, layers
# without a gradient, a loss that is no number, blank forecasts. What they find is printed with the numbers it was found
# by and with a cure. A run that could not be believed is stopped, in a box instead of a traceback.

# %%
from nbhelpers.core.runtime import make_copy_dir
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run

run = open_run(task, place.output_dir, f"{RUN_NAME}-{profile}", copy_dir=make_copy_dir(place))
watched = figures.fixed_sample(task)
live = widgets.LiveFigure(lambda history: figures.live_figure(task, history, watched))
fit(task, run, on_epoch=live)

# %% [markdown]
# What the guards have said of this run; an empty list is good news.

# %%
from nbhelpers.training.guards.watch import read_guards

read_guards(run)

# %% [markdown]
# ## 7 Evaluate
# The best checkpoint by validation, scored once on the test events, beside the baselines. A ✓ means that the model is
# better and the 95 % interval of the paired difference over events excludes 0.

# %%
from nbhelpers.training.report import LEGEND, make_report, table

report = make_report(task, run)
for remark in report["remarks"]:
    print("NOTE", remark)
widgets.show_table(table(report, task.headlines))
print(LEGEND)

# %% [markdown]
# Scores fall with lead time; short leads belong to persistence. Look at where the curves part. (The pictures of the report
# lie in `run.figures`.)

# %%
widgets.show(run.figures / "lead_time.png")

# %%
widgets.show(run.figures / "nowcast.png")

# %% [markdown]
# What each term contributed while training (the ledger), and where fine structure is lost.

# %%
widgets.show(run.figures / "ledger.png")
widgets.show(run.figures / "spectrum.png")

# %% [markdown]
# ## 8 Verdict
# Computed from the numbers above.

# %%
from nbhelpers.training.task import Gate

for gate in report["gates"]:
    print(Gate(**gate))
print(f"\n{report['verdict']['name'].upper()}: {report['verdict']['meaning']}\nNext: {report['verdict']['next_step']}")

# %% [markdown]
# ### Does λ matter?
# One run cannot say. A **sweep** trains several λ and several gradient shares with several seeds, λ = 0 always among them,
# chooses on validation, and gives every setting's paired difference to λ = 0. Type the values you want to try; the table
# says what each would mean and what it costs. (A grid in which nothing can matter is refused.)

# %%
from nbhelpers.stages.perceptual_unet.sweep import Grid, measure_grid, run_sweep

grid_panel = widgets.sweep_panel(
    Grid(lambdas=(), shares=(0.3,)) if profile == "smoke" else Grid(),
    measure_grid(NowcastTask(config, data_dir)),
    labels={"lambdas": "λ", "shares": "gradient shares", "seeds": "seeds"},
    minutes=report["train_seconds"] / 60,
)
grid_panel

# %% [markdown]
# With `RUN_SWEEP = True` in section 2 the next cell trains it, each setting and seed a run of its own in the sweep's
# folder. Stop it when you like: the next time it goes on, and a larger grid extends it.

# %%
swept = None
if RUN_SWEEP or profile == "smoke":
    sweep_dir = place.output_dir / f"{RUN_NAME}-{profile}-sweep"
    swept = run_sweep(config, grid_panel.grid, data_dir, sweep_dir, copy_dir=make_copy_dir(place))
    for gate in swept.report["gates"]:
        print(Gate(**gate))
    found = swept.report["verdict"]
    print(f"{found['name'].upper()}: {found['meaning']}\nNext: {found['next_step']}")
else:
    print("Not run: set RUN_SWEEP = True in section 2.")

# %%
from nbhelpers.stages.perceptual_unet.sweep_figure import sweep_figure
from nbhelpers.training import sweep_text

if swept and swept.finished:
    widgets.show_table(sweep_text.settings_table(swept.report))
    widgets.show_table(sweep_text.difference_table(swept.report, "test"))
    widgets.show(sweep_figure(swept.report))
    print(sweep_text.summary(swept.report))
    print(*sweep_text.effect_sentences(swept.report), sep="\n")

# %% [markdown]
# ### Several forecasts instead of one
# Runs that differ in their seed are an **ensemble**: the share of members that forecast strong rain is its probability.
# Blurred members agree with each other on too little of it, so their probabilities are close to 0 where it mattered. Here
# the sweep's best setting (or else its last) beside λ = 0.

# %%
from nbhelpers.stages.perceptual_unet import ensemble_report
from nbhelpers.stages.perceptual_unet.ensemble import open_ensemble

sets = {name: runs for name, runs in swept.finished.items() if len(runs) > 1} if swept else {}
plain = sets.pop(swept.report["reference"], None) if swept else None
together = None
if sets and plain:
    best = swept.report["best"]
    chosen = best if best in sets else list(sets)[-1]
    ensemble = open_ensemble(sets[chosen])
    ensemble_dir = sweep_dir / f"ensemble-{chosen}-of-{len(sets[chosen])}"
    against = open_ensemble(plain, beside=ensemble)
    together = ensemble_report.make_ensemble_report(ensemble, ensemble_dir, against=against)
else:
    print("No ensembles yet: they need a sweep with two finished seeds of λ = 0 and of another setting.")

# %%
from IPython.display import Image, display

if together:
    for name, metrics in together["metrics"].items():
        print(name)
        widgets.show_table(ensemble_report.table(metrics))
    widgets.show_table(ensemble_report.difference_table(together["differences"]))
    for name in ("exceedance", "reliability", "spread", "blur"):
        display(Image(ensemble_dir / "figures" / f"{name}.png"))

# %% [markdown]
# ## 9 Save, reload, predict
# The proof that the run folder holds a working model: a fresh net with the weights from disk forecasts the same.

# %%
import torch

from nbhelpers.training import checkpoint

scored = checkpoint.at(run.folder / report["checkpoint"]["path"])
again = NowcastTask(config, data_dir)
checkpoint.load_weights(scored, again.modules)
again.to(task.device)
again.modules["unet"].to(task.device)
torch.testing.assert_close(again.forecast(watched), task.forecast(watched))
print(scored.folder, scored.sha256)

# %% [markdown]
# Forecasts of the test events, in the layout of the data: any tool that reads SEVIR reads them.

# %%
from nbhelpers.stages.perceptual_unet.forecast_file import write_forecasts

write_forecasts(again, run.folder / "forecasts.h5", split="test", checkpoint=scored.sha256)
print(run.folder / "forecasts.h5")
print(run.folder / "report.md")

# %% [markdown]
# ## 10 Troubleshooting
# | what you see | why | what to do |
# |---|---|---|
# | `no CATALOG.csv … in …` | `DATA_DIR` points beside the data | point it at the folder that holds the catalogue |
# | `… was started with other settings: perceptual_share …` | same run name, other settings | choose a new `RUN_NAME`, or go back |
# | `… was trained on another data than …` | same run name, more events or another folder | choose a new `RUN_NAME` |
# | `ImageNet weights … cannot be fetched` | no internet | attach the weight file and set `BACKBONE_WEIGHTS` (for LPIPS: `LPIPS_WEIGHTS`) to its path; or `"random"` |
# | a box: `STOPPED · units`, `· leakage`, `· no_skill` … | a guard measured that this run cannot be believed | what the box says under *what to do*; a run that had not begun takes the mended settings under its old name |
# | `WARN loss_balance …` | a loss term does nothing, or drowns the other | set `perceptual_share`; the panel in section 5 shows where λ begins to matter |
# | `STOPPED · out_of_memory` | the GPU is smaller than a T4, or shared | `Config.for_profile(profile, batch_size=4, accumulate=2)`: the same steps in half the memory |
# | `another process is training in …` | the notebook is open twice | stop the other one, or choose another `RUN_NAME` |
# | `WARN second_folder …` | Drive is full or was unmounted | make room, mount it again: the next checkpoint is copied |
# | `is half a download` | a file ends early | fetch it again; finished files are kept |
# | the session restarted | Colab and Kaggle do that | run all: training goes on from the last checkpoint, at most five minutes back (on Colab: with Drive mounted) |
# | blank forecasts | far too much perceptual weight | the panel's strip shows where it drowns the rest |
# | CSI is 0 | too few epochs, or no strong echoes | event scores emerge around epoch 3–5; look at the data figure |
#
# **References.** Ronneberger, Fischer, Brox (2015), U-Net, arXiv:1505.04597 · Johnson, Alahi, Fei-Fei (2016), perceptual
# losses, arXiv:1603.08155 · Zhang, Isola, Efros, Shechtman, Wang (2018), LPIPS, arXiv:1801.03924 · Veillette, Samsi,
# Mattioli (2020), SEVIR, NeurIPS · Germann and Zawadzki (2002), persistence and advection as baselines, MWR 130 · Roberts
# and Lean (2008), fractions skill score, MWR 136.
