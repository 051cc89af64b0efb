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
# # 03 · Sentinel-2 super-resolution
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/nbhelpers/nbhelpers/blob/main/notebooks/03_super_resolution.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/nbhelpers/nbhelpers/blob/main/notebooks/03_super_resolution.ipynb)
#
# ![Input, bicubic, projection, model and truth of one place](https://raw.githubusercontent.com/nbhelpers/nbhelpers/main/notebooks/figures/03_super_resolution.png)
#
# Four times finer satellite images, first as faithful as a network can be, then as sharp as a GAN makes them, and always
# so that **the output, seen by the coarser sensor, is the input again**. That projection needs no training and is worth
# more than a decibel by itself, so it stands among the baselines: only what is above it was learnt.
#
# **You get** a trained generator, its scores by place and by band beside predictors that need no network, pictures with
# one stretch for all, a verdict, and your own GeoTIFF super-resolved with its georeference kept.
#
# | profile | for | minutes | memory of a step, float32 | download |
# |---|---|---|---|---|
# | `smoke` | checking that everything works | 1 | 0.1 GB | 5 MB |
# | `quick` | a laptop or a session without GPU | 7 | 0.1 GB | 5 MB |
# | `t4` | a free GPU (Colab, Kaggle) | up to 60 (not measured yet) | 2 GB (about half in fp16) | 820 MB of network weights |
# | `full` | several sessions | – | 2 GB | as `t4`, and the data |
#
# **Data**: simulated landscapes in BigEarthNet's own file format, made here in a minute; or
# [BigEarthNet](https://bigearth.net/) (Clasen et al. 2024; Sumbul et al. 2019; licence CDLA-Permissive-1.0), v1 or v2; or
# Sentinel-2 scenes of your own. **Tested on**: Python 3.11 on a CPU.

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
RUN_NAME = "super-resolution"  # the same name again goes on where that run stopped
DATA_DIR = ""  # empty: simulated landscapes; else BigEarthNet's folder, or a packed set
SCENES = []  # with DATA_DIR empty: your own Sentinel-2 GeoTIFFs (level 2A, 10 m), three places or more, to train on
TEST_PLACES = []  # tiles held out for the test, e.g. ["29UPU", "33UUP"]; empty: chosen by a hash of their names
VAL_PLACES = []  # the same for validation
OFFSET = None  # digital number added to your own data (-1000 for products since 2022); None: what names and files say
PREDICT_SCENE = ""  # a GeoTIFF to super-resolve at the end; empty: a simulated one
BACKBONE_WEIGHTS = "imagenet"  # downloaded once; or the path of a weight file; or "random" (the report will say so)
LPIPS_WEIGHTS = ""  # the same for the LPIPS metric; empty: those of the backbone if it is the same net, else imagenet
SEED = 0
RUN_SWEEP = False  # train the first stage alone and several shares of the second one's terms, two seeds each (hours)

# %% [markdown]
# **Your own data.** Set `DATA_DIR` to a folder in BigEarthNet's layout, or let the data cell cut `SCENES` into it:
#
# * v2: `BigEarthNet-S2/<product>/<patch>/<patch>_B02.tif`, or v1: `<patch>/<patch>_B02.tif`; one GeoTIFF a band, digital
#   numbers (reflectance × 10,000), bands of one resolution; `metadata.parquet` beside it gives countries and splits;
# * products since January 2022 hold 1,000 more than that: their names, or an offset in the files, say so; if neither
#   does, set `OFFSET = -1000`.
#
# BigEarthNet is one archive of 63 GB with millions of small files (`nbhelpers data fetch bigearthnet-s2`, which needs the
# packages zstandard and pyarrow): too much for a free notebook. Unpack it once where there is room, and pack what you want
# to train on into a few large files, `nbhelpers data pack super-resolution --data-dir BigEarthNet-S2 --to packed`: they
# are read a hundred times faster, and copied to Drive or a Kaggle Dataset as they are.

# %%
import os
from pathlib import Path

from nbhelpers.core.runtime import default_profile, workspace
from nbhelpers.stages.super_resolution.config import SIMULATED, Config

place = workspace()
profile = PROFILE or default_profile()
weights = os.environ.get("NBHELPERS_BACKBONE_WEIGHTS", BACKBONE_WEIGHTS)
config = Config.for_profile(
    profile,
    seed=SEED,
    backbone_weights=weights,
    lpips_weights=LPIPS_WEIGHTS or None,
    test_places=tuple(TEST_PLACES),
    val_places=tuple(VAL_PLACES),
    offset=OFFSET,
)
config

# %% [markdown]
# ## 3 Data
# There is no truth finer than 10 m, so the 10 m image is the truth and the input is made from it, as a sensor with 40 m
# pixels would have seen it (Wald's protocol): a blur by that sensor's transfer function, then one value for each block.

# %%
from nbhelpers.stages.super_resolution.cut import cut_scenes
from nbhelpers.stages.super_resolution.simulate import simulate

if DATA_DIR:
    data_dir = Path(DATA_DIR)
elif SCENES:
    data_dir = place.data_dir / f"{RUN_NAME}-scenes"
    cut_scenes([Path(scene) for scene in SCENES], data_dir)
else:
    data_dir = place.data_dir / f"super-resolution-{profile}"
    simulate(data_dir, **SIMULATED[profile])

# %% [markdown]
# The task reads every band of every patch once. A patch that cannot be read is listed and never replaced by another; one
# that was stretched by its own percentiles has lost its radiometry and is refused. No place stands in two splits.

# %%
from nbhelpers.stages.super_resolution.task import SuperResolutionTask

task = SuperResolutionTask(config, data_dir)
print(*task.validation.lines(), sep="\n")
for remark in task.remarks():
    print("NOTE", remark)
task.describe_data()["split"]

# %% [markdown]
# Look at the data before anything else: the truth, what the model is given, and the near infrared.

# %%
from nbhelpers import widgets
from nbhelpers.stages.super_resolution import figures

widgets.show(figures.sample_figure(task))

# %% [markdown]
# ## 4 Baselines first
# Predictors that need no network: bicubic and Lanczos interpolation, a linear filter fitted to the training patches, and
# **bicubic + projection**, the smallest change of the bicubic image that makes it degrade to the input. That one is the
# bar. A constant kernel shift of a pixel and a half would cost bicubic two decibels and make any network look good: ours is
# centred (`nbhelpers.science.degradation` says how, a test shows it).

# %%
from nbhelpers.training.report import score_table

baselines = {name: task.evaluate("val", predictor).metrics for name, predictor in task.nulls.items()}
widgets.show_table(score_table(baselines, task.headlines))

# %% [markdown]
# ## 5 Model and losses
# The generator: residual-in-residual dense blocks, then some whose convolutions look at several distances (dilation 1, 2,
# 3), sub-pixel up-sampling, a bicubic skip, and the projection as its last layer. It sees its input divided by the local
# contrast, so a dark forest and a bright field are alike to it. Untrained it *is* bicubic + projection.

# %%
generator, discriminator = task.modules["generator"], task.modules["discriminator"]
for name, module in task.modules.items():
    print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters")
generator.head, generator.up, generator.tail

# %% [markdown]
# **First stage**, faithful: $L_1 = 0.8\,\mathrm{mean}|e| + 0.2\,\mathrm{mean}\,e^2$ with the error $e$ in units of each
# sample's own contrast. **Second stage**, sharp:
#
# $$L_2 = \lambda_\mathrm{pix}\,\mathrm{mean}|e| + \lambda_\mathrm{perc}\sum_l \mathrm{mean}|\varphi_l(\hat y)-\varphi_l(y)|
# + \lambda_\mathrm{adv}\,L_\mathrm{adv}$$
#
# with $\varphi_l$ the features of a pretrained network on the RGB bands, and $L_\mathrm{adv}$ the relativistic average
# GAN loss: is the real image more real than the generated ones are on average? What the λ mean depends on network and
# data, so the settings give **shares of the gradient**. The panels show them on a real batch; the last one moved counts.

# %%
from nbhelpers.stages.super_resolution.balance import ADVERSARIAL_KNOBS, PERCEPTUAL_KNOBS, measure_balance

balance = measure_balance(task)
perceptual_panel = widgets.loss_balance(config, balance, PERCEPTUAL_KNOBS, judged="perceptual")
perceptual_panel

# %%
adversarial_panel = widgets.loss_balance(perceptual_panel.config, balance, ADVERSARIAL_KNOBS, judged="adversarial")
adversarial_panel

# %% [markdown]
# The next cell takes over what the panels say (untouched, the profile's shares).

# %%
chosen = {name: getattr(perceptual_panel.config, name) for name in ("lambda_perc", "perceptual_share")}
chosen |= {name: getattr(adversarial_panel.config, name) for name in ("lambda_adv", "adversarial_share")}
config = config.replace(chosen, source="the panels")
task = SuperResolutionTask(config, data_dir, like=task)  # the patches have been read and checked
chosen

# %% [markdown]
# ## 6 Train
# **First a quick check**: five short epochs in a run of their own. Is there contrast in the data, does the loss fall, is
# PSNR at bicubic's? If not, an hour of training would not mend it.

# %%
from nbhelpers.stages.super_resolution.quick_check import quick_check, require

check = quick_check(task, place.output_dir, f"{RUN_NAME}-{profile}")
print(*check, sep="\n")
require(check)  # stops here if one fails

# %% [markdown]
# **Then the run**, both stages in one folder. Press stop when you like, lose the session, run all again: training goes on
# at the very step where it was saved, on either side of the border between the stages. The second stage starts from the
# first one's best weights.
#
# **Guards** look on: data that are noise or in other units, test places in training, inputs that do not belong to their
# truth, a loss term that does nothing, a discriminator that always wins or never. What they find is printed with the
# numbers it was found by and with a cure. A run that could not be believed is stopped, in a box instead of a traceback.

# %%
from nbhelpers.core.runtime import make_copy_dir
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run

run = open_run(task, place.output_dir, f"{RUN_NAME}-{profile}", copy_dir=make_copy_dir(place))
watched, levels = figures.fixed_sample(task), figures.baseline_psnr(task)
live = widgets.LiveFigure(lambda history: figures.live_figure(task, history, watched, levels=levels))
fit(task, run, on_epoch=live)

# %% [markdown]
# What the guards have said of this run; an empty list is good news.

# %%
from nbhelpers.training.guards.watch import read_guards

read_guards(run)

# %% [markdown]
# ## 7 Evaluate
# The shipped checkpoint (an average of the second stage's best ones, where that is better on validation), scored once on
# the test places, beside the baselines and the first stage's best. A ✓ means that the model is better and the 95 % interval
# of the paired difference over places excludes 0.

# %%
from nbhelpers.training.report import LEGEND, make_report, table

report = make_report(task, run)
for remark in report["remarks"]:
    print("NOTE", remark)
widgets.show_table(table(report, task.headlines))
print(LEGEND)

# %% [markdown]
# Swipe between any two pictures of a test place: what did the network add, and is it there in the truth?

# %%
sample = figures.fixed_sample(task, split="test")
widgets.swipe(figures.pictures(task, sample), left="LR", right="model")

# %%
widgets.show(run.figures / "panel.png")  # this and the other pictures of the report lie in run.figures

# %% [markdown]
# What was gained in each place; and the plane of perception and distortion: the first stage is the faithful end, the second
# one trades some of it for sharpness.

# %%
widgets.show(run.figures / "places.png")
widgets.show(run.figures / "tradeoff.png")

# %% [markdown]
# Which wavelengths are there: interpolation has none of the fine ones, the truth has them all.

# %%
widgets.show(run.figures / "spectrum.png")

# %% [markdown]
# What each term contributed while training (the ledger), stage by stage.

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
# ### What does the GAN buy?
# One run cannot say. A **sweep** trains the first stage alone, and the second stage with several shares of the perceptual
# and of the adversarial term, each with several seeds, and chooses the sharpest setting that costs at most 2 dB on
# validation. The table says what each share would mean and what it costs.

# %%
from nbhelpers.stages.super_resolution.sweep import Grid, measure_grid, run_sweep

grid_panel = widgets.sweep_panel(
    Grid(),
    measure_grid(task),
    labels={"perceptual_shares": "perceptual shares", "adversarial_shares": "adversarial shares", "seeds": "seeds"},
    minutes=report["train_seconds"] / 60,
)
grid_panel

# %%
from nbhelpers.stages.super_resolution.sweep_figure import sweep_figure
from nbhelpers.training import sweep_text

if RUN_SWEEP:
    sweep_dir = place.output_dir / f"{RUN_NAME}-{profile}-sweep"
    swept = run_sweep(config, grid_panel.grid, data_dir, sweep_dir, copy_dir=make_copy_dir(place))
    for gate in swept.report["gates"]:
        print(Gate(**gate))
    found = swept.report["verdict"]
    print(f"{found['name'].upper()}: {found['meaning']}\nNext: {found['next_step']}")
    widgets.show_table(sweep_text.settings_table(swept.report))
    widgets.show(sweep_figure(swept.report))
else:
    print("Not run: set RUN_SWEEP = True in section 2.")

# %% [markdown]
# ## 9 Save, reload, predict
# The proof that the run folder holds a working model: a fresh generator with the weights from disk makes the same image.

# %%
import torch

from nbhelpers.training import checkpoint

scored = checkpoint.at(run.folder / report["checkpoint"]["path"])
again = SuperResolutionTask(config, data_dir, like=task)
checkpoint.load_weights(scored, again.modules)
again.to(task.device)
low = task.pair(sample)[1]
torch.testing.assert_close(again.super_resolve(low), task.super_resolve(low))
print(scored.folder, scored.sha256)

# %% [markdown]
# **A whole scene.** Tiles that overlap, blended, then projected together; CRS, corner and nodata as in the input, pixels four
# times smaller. A network that has learnt 40 m → 10 m is used here on 10 m: that land and blur are alike at both scales is
# an assumption, and the file's tags say so.

# %%
from nbhelpers.stages.super_resolution.predict import predict_scenes
from nbhelpers.stages.super_resolution.simulate import write_scene

scene = Path(PREDICT_SCENE) if PREDICT_SCENE else write_scene(place.data_dir / "scene.tif", size=(150, 200))
for path, consistency in predict_scenes(run, [scene], offset=OFFSET):
    print(path, consistency)

# %%
import rasterio

with rasterio.open(scene) as before, rasterio.open(path) as after:
    for one in (before, after):
        print(one.shape, one.crs, one.transform[:6], one.nodata)

# %% [markdown]
# The same from a shell: `nbhelpers predict super-resolution --run-name … --scene my_scene.tif`, or in any notebook with the
# cell `colab_cells/super_resolve_geotiff.py`.

# %%
print(run.folder / "report.md")

# %% [markdown]
# ## 10 Troubleshooting
# | what you see | why | what to do |
# |---|---|---|
# | `no patches such as <patch>/<patch>_B02.tif in …` | `DATA_DIR` points beside the data | point it at the folder that holds `BigEarthNet-S2` |
# | `band B02 has pixels of 10 m and band B05 of 20 m` | bands of two resolutions make no image | choose bands of one resolution |
# | `every patch … was stretched by itself` | the patches were made for the eye | take the digital numbers from the archive |
# | `99 % of B02 are brighter than …` | a product since 2022 without its offset | `OFFSET = -1000` |
# | `found 2 places … a split … needs 3` | no place may stand in two splits | add patches of other tiles |
# | `… was started with other settings: perceptual_share …` | same run name, other settings | choose a new `RUN_NAME`, or go back |
# | `ImageNet weights … cannot be fetched` | no internet | attach the weight file and set `BACKBONE_WEIGHTS` (for LPIPS: `LPIPS_WEIGHTS`) to its path; or `"random"` |
# | a box: `STOPPED · training_on_noise`, `· leakage`, `· unreadable` … | a guard measured that this run cannot be believed | what the box says under *what to do* |
# | `WARN gan_balance …` | the discriminator always wins, or never | what it says: mostly `discriminator_lr_factor` or `adversarial_share` |
# | verdict `nothing learnt beyond the projection` | too few steps or places | more `crops_per_epoch` or `stage1_epochs`, more tiles |
# | grain all over a super-resolved scene of 10 m | its own noise was sharpened, which 40 m inputs made from clean averages do not have | train for it: `Config.for_profile(profile, noise=0.002, consistency=False)`; the projection keeps whatever the input has |
# | sharp, and not in the truth | a GAN makes detail up where the input has none | use the first stage (`--checkpoint pixel_best`) for measurements |
# | `STOPPED · out_of_memory` | the GPU is smaller than a T4, or shared | `Config.for_profile(profile, batch_size=4, accumulate=2)` |
# | `WARN second_folder …` | Drive is full or was unmounted | make room, mount it again: the next checkpoint is copied |
# | the session restarted | Colab and Kaggle do that | run all: training goes on from the last checkpoint, at most five minutes back (on Colab: with Drive mounted) |
#
# **References.** Wald, Ranchin, Mangolini (1997), fusion of images of different resolutions, PE&RS 63 · Wang et al. (2018),
# ESRGAN, arXiv:1809.00219 · Shang et al. (2020), receptive-field blocks, arXiv:2005.12597 · Jolicoeur-Martineau (2018),
# relativistic GANs, arXiv:1807.00734 · Miyato et al. (2018), spectral norm, arXiv:1802.05957 · Blau and Michaeli (2018),
# perception against distortion, arXiv:1711.06077 · Zhang et al. (2018), LPIPS, arXiv:1801.03924 · Wortsman et al. (2022),
# averaged weights, arXiv:2203.05482 · Sumbul et al. (2019) and Clasen et al. (2024), BigEarthNet.
