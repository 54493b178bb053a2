"""The options of all commands, in the order of their `--help`.

A new parameter of the estimators is one row here: `fit` and `compare` have its option then, and hand it on.
Defaults are those of the library's functions, written again so that `--help` need not import torch to know them.
"""

from __future__ import annotations

from pathlib import Path

from gradfeat.cli.converters import augment, numbers, penalties, rounds, theta2
from gradfeat.cli.option import REQUIRED, Option
from gradfeat.cli.rules import (
    CLASSES,
    IMAGES,
    LINEAR,
    RECORDINGS,
    TABLES,
    TEXTS,
    only_in,
    without_choice,
    without_epochs,
    without_leave_one_out,
    without_look,
    without_rounds,
    without_second_penalty,
    without_solver,
)

FITTING = ("fit", "compare")
PREDICTING = ("predict", "evaluate")
SAVED = (*PREDICTING, "audit", "forget")
JUDGED = ("fit", "compare", "evaluate", "audit")
LABELLED = (*JUDGED, "forget")
ANSWERING = ("explain", "suggest")
READING = (*FITTING, *SAVED, *ANSWERING)

# fmt: off
TABLE = (
    # ---- arguments ----
    Option("model", (*PREDICTING, "forget"), Path, REQUIRED, "File that `gradfeat fit` wrote.", argument=True),
    Option("task", ("pretrain",), str, REQUIRED, argument=True,
           help="vae, bigan, rotation, jigsaw, colorization, context or supervised."),
    Option("name", ("reproduce",), str, REQUIRED, argument=True, metavar="TABLE",
           help="table1, table2, table3 or table4."),
    Option("backbone", ("inspect",), str, REQUIRED, argument=True,
           help='"timm/<name>", "torchvision/<name>", "hf/<folder or id>", an encoder file, or a saved model.'),
    Option("data", JUDGED, Path, REQUIRED, argument=True,
           help="A folder of class folders, an .npz, .csv, .tsv or .jsonl file, or the official folder of CIFAR, "
           "SVHN, VOC or COCO2014."),
    Option("model", ("audit",), Path, REQUIRED, "File that `gradfeat fit` wrote, of these data.",
           flags=("--model", "-m")),
    Option("data", ("forget",), Path, REQUIRED, "The data that the model was fitted to, all of them.",
           flags=("--data",)),
    Option("remove", ("forget",), Path, REQUIRED,
           "Text file with a sample in each line: its path, as it is or in the data's folder, or its number from 0."),
    Option("data", ("predict",), Path, REQUIRED, argument=True,
           help="An image or WAV file, a folder of them, a text in each line, or data in a known layout."),
    Option("model", ANSWERING, Path, REQUIRED, "File that `gradfeat fit` wrote.", argument=True),
    Option("queries", ("explain",), Path, REQUIRED, argument=True, metavar="SAMPLES",
           help="What to explain: an image or WAV file, a folder of them, a text in each line, or data in a known "
           "layout."),
    Option("pool", ("suggest",), Path, REQUIRED, argument=True,
           help="Samples without labels: a folder of images, a text in each line, or data in a known layout."),
    Option("data", ("pretrain",), Path, REQUIRED, argument=True,
           help="A folder of images, an .npz file, a CIFAR folder or a VOC devkit."),

    # ---- `reproduce` ----
    Option("scale", ("reproduce",), str, "smoke",
           "smoke (no download, a minute), reduced (fewer labels, an hour on two cores) or full (the paper's)."),
    Option("data", ("reproduce",), Path | None, None, "Folder with the data sets of the table; not for smoke."),

    # ---- the backbone, what is written, and where else data come from ----
    Option("backbone", FITTING, str, REQUIRED, flags=("--backbone", "-b"),
           help='"timm/<name>", "torchvision/<name>", "hf/<folder or id>", "sentence-transformers/<folder or id>" or '
           "a gradfeat encoder file."),
    Option("out", ("demo",), Path, Path("demo"), "Folder for the picture, the table and the model."),
    Option("out", ("fit",), Path, Path("model.safetensors"), "File for the fitted model.", flags=("--out", "-o")),
    Option("out", ("compare",), Path | None, None, flags=("--out", "-o"),
           help="Folder for the table, the picture and the models."),
    Option("out", ("predict",), Path | None, None, flags=("--out", "-o"),
           help="File for the predictions, in UTF-8. [standard output]"),
    Option("out", ("pretrain",), Path, Path("pretrained"), "Folder for the encoder and all else.",
           flags=("--out", "-o")),
    Option("out", ("reproduce",), Path | None, None, flags=("--out", "-o"),
           help="Folder for cells and tables. [reproduced/TABLE-SCALE]"),
    Option("data", ANSWERING, Path | None, None, "The data that the model was fitted to, all of them."),
    Option("most", ("explain",), int, 8, "Training samples of each sign for a prediction, at most.", least=1,
           flags=("--most", "-k")),
    Option("most", ("suggest",), int, 50, "How many samples to label.", least=1, flags=("--most", "-k")),
    Option("html", ("explain",), Path | None, None,
           "HTML file with the pictures or texts of the samples; it needs nothing else."),
    Option("out", ("suggest",), Path | None, None, flags=("--out", "-o"),
           help="CSV file for the samples, the most useful one first. [standard output]"),
    Option("first", ("audit",), int, 20, "How many samples to show, the least plausible labels first.", least=1,
           flags=("--first", "-k")),
    Option("out", ("audit",), Path | None, None, flags=("--out", "-o"),
           help="CSV file for all samples, the least plausible labels first."),
    Option("html", ("audit",), Path | None, None,
           "HTML file for the suspects with their pictures or texts; it needs nothing else."),
    Option("out", ("forget",), Path, REQUIRED, "File for the model without these samples.", flags=("--out", "-o")),
    Option("picture", ("evaluate",), Path | None, None,
           "PNG to draw: which classes are taken for which; for regression predictions and targets."),
    Option("test_data", ("compare",), Path | None, None, "Test data, if not the test part of the same data."),

    # ---- `reproduce`, further ----
    Option("encoder", ("reproduce",), Path | None, None,
           "File of `gradfeat pretrain`, instead of pre-training in place; for table2 and table4 also weights of "
           "the network trained on ImageNet."),
    Option("protocol", ("reproduce",), str | None, None,
           "own, paper, paper-voc or published-code. [full: paper or paper-voc; else own]"),
    Option("labels", ("reproduce",), int | None, None,
           "Labelled training images. [smoke: 200; reduced: table1 1,000, table3 5,000; else all]"),
    Option("seeds", ("reproduce",), int, 1, "How many seeds: mean and spread are shown."),
    Option("only", ("reproduce",), list[str] | None, None,
           "Only the rows of this network; may be given several times. table3: bigan, vae; table4: jigsaw, "
           "ImageNet, and below full size rotation, supervised; table1 is of one: bigan, or vae."),
    Option("finished", ("reproduce",), bool, False, "Write the table of the cells that are there; compute no more.",
           flags=("--finished",)),

    # ---- `pretrain`: the training ----
    Option("network", ("pretrain",), str | None, None, flags=("--network", "-n"),
           help='small, bigan, resnet20, resnet56, "timm/<name>" or "torchvision/<name>". [the task\'s own]'),
    Option("epochs", ("pretrain",), int, 40, "Passes over the images."),
    Option("batch_size", ("pretrain",), int, 64, "Images in a minibatch."),
    Option("learning_rate", ("pretrain",), float | None, None,
           "Peak of Adam's cycle; for bigan the rate. [0.002; bigan: 0.0002]"),
    Option("beta", ("pretrain",), float | None, None, "vae: weight of the divergence. [1]"),
    Option("latent", ("pretrain",), int | None, None, "vae, bigan: length of the code. [16; bigan: 64]"),
    Option("objective", ("pretrain",), str | None, None,
           "bigan: jensen-shannon or wasserstein. [jensen-shannon]"),
    Option("permutations", ("pretrain",), int | None, None, "jigsaw: how many orders there are. [100]"),
    Option("rebalance", ("pretrain",), float | None, None,
           "colorization: λ of the weights of rare colours; 1 is no weights. [0.5]"),
    Option("drop_colours", ("pretrain",), bool | None, None, flags=("--drop-colours",),
           help="context: show one colour of each patch, for photographs."),
    Option("image_size", ("pretrain",), int | None, None,
           "Side that images are brought to. [of arrays their own; else 32]"),

    # ---- which part of the data, and which models ----
    Option("split", ("fit",), str, "train", "Part of the data to fit to."),
    Option("split", ("audit",), str, "train", "Part of the data that the model was fitted to."),
    Option("split", ("compare",), str, "train", "Part to fit to."),
    Option("split", ("predict",), str, "test", "Part of the data, where it has parts."),
    Option("split", ("forget",), str, "train", "Part of the data that the model was fitted to."),
    Option("split", ("evaluate",), str, "test", "Part of the data."),
    Option("split", ANSWERING, str, "train", "Part of --data that the model was fitted to."),
    Option("split", ("pretrain",), str, "train", "Part of the data to train on."),
    Option("test_split", ("compare",), str, "test", "Part to report on."),
    Option("modes", ("compare",), str, "activation,gradient,full,finetune", "Models to compare."),
    Option("crops", ("compare", *PREDICTING), int, 1, least=1, only_for=IMAGES,
           help="Random crops of each test image, averaged (Table 4 of the paper: 10). 1: centre crop."),

    # ---- how data are read ----
    Option("data_format", (*READING, "pretrain"), str, "auto",
           "Layout of the data: auto, folder, npz, cifar, svhn, voc, coco, wav, csv, tsv or jsonl."),
    Option("text_column", READING, str | None, None, only_for=TABLES,
           help="Column of a table that holds the texts. [by the usual names]"),
    Option("label_column", (*LABELLED, *ANSWERING), str | None, None,
           "Column of a table that holds the labels. [by the usual names]"),
    Option("image_column", (*READING, "pretrain"), str | None, None,
           "Column of a table that holds images: paths, or names with or without a suffix. [by the usual names]"),
    Option("image_root", (*READING, "pretrain"), Path | None, None,
           "Folder that the images of a table are relative to. [the table's own]"),
    Option("label_separator", (*LABELLED, *ANSWERING), str | None, None,
           "What stands between several labels of a row; '' takes every label as it is. [| where its parts stand "
           "alone too]"),
    Option("encoding", READING, str | None, None, only_for=TABLES,
           help="Encoding of a table or text file. [by its mark, or utf-8]"),
    Option("seconds", READING, float | None, None, only_for=RECORDINGS,
           help="Length of every recording: longer ones are cut. [1]"),

    # ---- `pretrain`: its folder ----
    Option("resume", ("pretrain",), bool, True,
           "Go on where a run of the same configuration stopped, or start again: what was there is kept as "
           "checkpoint.before.safetensors until the new run is finished."),
    Option("checkpoint_every", ("pretrain",), int, 1,
           "Epochs from one writing of the state to the next; more on a GPU, where they are short."),
    Option("half", ("pretrain",), bool, False, "Write the encoder's weights in half precision.", flags=("--half",)),

    # ---- the network ----
    Option("backbone", (*SAVED, *ANSWERING), str | None, None, "The backbone, if not as in the file.",
           flags=("--backbone", "-b")),
    Option("weights", (*READING, "inspect"), str | None, None, parameter="weights",
           help="File of the backbone's weights (.safetensors, .pth ...), or a folder with its parts; FILE::NAME "
           "takes one of several networks in it; or 'random'."),
    Option("allow_download", (*SAVED, *ANSWERING), bool, False, flags=("--allow-download",),
           help="Fetch weights and a tokenizer that are not on this machine, if need be."),
    Option("theta2", FITTING, list[str] | None, None, parameter="theta2", convert=theta2,
           idle=only_in((*LINEAR, "finetune"), "θ₂: it is the probe on the activations"),
           help="Module, parameter or glob to linearize; may be given several times. search: as many blocks from the "
           "top as held-out training data ask for. [auto]"),
    Option("theta2", ("inspect",), list[str] | None, None,
           "Only this θ₂: module, parameter or glob; may be given several times. [from the top down]"),
    Option("mode", ("fit",), str, "full", "activation, gradient, full or finetune.", parameter="mode"),
    Option("image_size", (*FITTING, "inspect"), int | None, None, parameter="image_size", only_for=IMAGES,
           help="Side that images are brought to, with no border cut off unless --crop-pct says so. [the backbone's "
           "own]"),
    Option("most", ("inspect",), int, 5, "How many candidates of θ₂ to show.", least=1),
    Option("mean", FITTING, str | None, None, parameter="preprocessing.mean", convert=numbers, only_for=IMAGES,
           help="Mean of the backbone's input, one number or one for each channel: 0.5 or 0.485,0.456,0.406"),
    Option("std", FITTING, str | None, None, parameter="preprocessing.std", convert=numbers, only_for=IMAGES,
           help="Standard deviation of the backbone's input, as for --mean."),
    Option("resize", FITTING, str | None, None, parameter="preprocessing.resize", only_for=IMAGES,
           help="How images are brought to size: shortest (crop) or squash."),
    Option("crop_pct", FITTING, float | None, None, parameter="preprocessing.crop_pct", only_for=IMAGES,
           help="Part of a resized image's side that the crop keeps: 0.875 leaves room for --crops. [the backbone's "
           "own; 1 with --image-size]"),
    Option("max_length", FITTING, int | None, None, parameter="preprocessing.max_length", only_for=TEXTS,
           help="Tokens after which a text is cut. [256, or what the model says]"),

    # ---- the fit ----
    Option("penalty", FITTING, str, "auto", parameter="penalty", convert=penalties, idle=without_second_penalty,
           help="auto, or L2 penalties by hand: one number, or one of w₁ and one of w₂ (0.01,0.001)."),
    Option("loss", FITTING, str, "auto", parameter="loss",
           help="auto (by the labels), cross_entropy, one_hot_squared, logistic or squared."),
    Option("class_weight", FITTING, str | None, None, parameter="class_weight", only_for=CLASSES,
           help="balanced: every class counts the same, however many samples it has."),
    Option("epochs", FITTING, int | None, None, parameter="epochs", idle=without_epochs,
           help="Passes over the data, of fine-tuning and of adam and sgd. [the paper's 50 epochs, or 80,000 "
           "iterations if that is less; finetune: chosen around 25]"),
    Option("batch_size", FITTING, int | None, None, parameter="batch_size",
           help="Samples in a minibatch. [64; finetune: 32]"),
    Option("solver", FITTING, str, "auto", parameter="solver", idle=without_solver,
           help="auto, subspace, dual (few samples), or adam or sgd with the paper's schedules; pairs (few labels) for "
           "finetune alone."),
    Option("effort", FITTING, str, "auto", parameter="effort",
           idle=without_look,
           help="low: the topmost block, one linearization. auto: as deep, and moving, as held-out data ask for. high: "
           "more depths and rates, and fine-tuning beside them."),
    Option("rounds", FITTING, str | None, None, parameter="rounds", convert=rounds,
           idle=without_rounds,
           help="1: one linearization. auto: the network moves where held-out data say so; a number: for so many "
           "passes. [by effort; 1 where θ₂ is named]"),
    Option("augment", FITTING, str, "auto", parameter="augment", convert=augment, only_for=IMAGES,
           help="mirror: add the mirror image of each training image. none: do not. auto: where held-out images ask "
           "for it, as --effort says."),
    Option("parametrization", FITTING, str, "standard", "standard, ntk_fan_in or ntk_fan_out.",
           parameter="parametrization", idle=only_in(LINEAR, "w₂ that it could be of: it is of gradient and full")),
    Option("metric", FITTING, str, "auto", parameter="metric",
           idle=only_in(LINEAR, "penalty of w₂, which it is the metric of: it is of gradient and full"),
           help="What the penalty of w₂ is measured in: auto, plain or whitened."),
    Option("drop_suspects", ("fit",), bool, False, flags=("--drop-suspects",), idle=without_leave_one_out,
           help="Fit once to all samples, and then without those whose label is implausible without them."),
    Option("reweight", ("fit",), bool, False, flags=("--reweight",), idle=without_leave_one_out,
           help="The same with all samples, each weighted by how its label fits without it."),
    Option("precision", FITTING, str, "auto", parameter="precision",
           help="auto (float32; float64 for a network in it), float32, bfloat16 (not for rounds) or float64."),
    Option("cache", FITTING, str, "auto", parameter="cache",
           help="The most that is kept of a sample: auto, residuals, z0 or none."),
    Option("memory", FITTING, str, "auto", parameter="memory",
           help="Bound on what is kept of the samples and what a pass needs at a time: auto, 500MB, 2GB."),
    Option("checkpoint", FITTING, Path | None, None, parameter="checkpoint",
           help="Folder for finished parts of the fit: after an interruption the same command goes on from there."),

    # ---- of most commands ----
    Option("device", (*READING, "pretrain", "reproduce"), str, "auto", "auto, cpu or cuda.", parameter="device"),
    Option("seed", (*FITTING, "pretrain", "demo"), int, 0, "Seed of all that is random.", parameter="random_state"),
    Option("skip_unreadable", (*READING, "pretrain"), bool, False, flags=("--skip-unreadable",),
           help="Leave out images that cannot be read, instead of stopping."),
    Option("pictures", ("fit",), Path | None, None, idle=without_choice,
           help="Folder for the penalties that were tried and the rounds: pictures, and JSON."),
    Option("json", ("predict",), bool, False, "Write one JSON object instead of CSV.", flags=("--json",)),
    Option("json", (*LABELLED, *ANSWERING, "inspect", "pretrain", "reproduce", "demo"), bool, False, flags=("--json",),
           help="Print one JSON object, and nothing else."),
)
# fmt: on


def options_of(command: str) -> tuple[Option, ...]:
    """Return the options of a command."""
    return tuple(option for option in TABLE if command in option.commands)
