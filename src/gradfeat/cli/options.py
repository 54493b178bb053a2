"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataPath = Annotated[
    Path,
    typer.Argument(
        help="A folder of class folders, an .npz, .csv, .tsv or .jsonl file, or the official folder of CIFAR, SVHN, "
        "VOC or COCO2014."
    ),
]
Format = Annotated[
    str,
    typer.Option(help="Layout of the data: auto, folder, npz, cifar, svhn, voc, coco, wav, csv, tsv or jsonl."),
]
TextColumn = Annotated[str | None, typer.Option(help="Column of a table that holds the texts. [by the usual names]")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of a table that holds the labels. [by the usual names]")]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of a table that holds images: paths, or names with or without a suffix. [by the usual names]"
    ),
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder that the images of a table are relative to. [the table's own]")
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        help="What stands between several labels of a row; '' takes every label as it is. [| where its parts stand "
        "alone too]"
    ),
]
Encoding = Annotated[str | None, typer.Option(help="Encoding of a table or text file. [by its mark, or utf-8]")]
Seconds = Annotated[float | None, typer.Option(help="Length of every recording: longer ones are cut. [1]")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens after which a text is cut. [256, or what the model says]")]
BackboneName = Annotated[
    str,
    typer.Option(
        "--backbone",
        "-b",
        help='"timm/<name>", "torchvision/<name>", "hf/<folder or id>", "sentence-transformers/<folder or id>" or a '
        "gradfeat encoder file.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="File of the backbone's weights (.safetensors, .pth ...), or a folder with its parts; FILE::NAME takes "
        "one of several networks in it; or 'random'."
    ),
]
Theta2 = Annotated[
    list[str] | None,
    typer.Option(
        help="Module, parameter or glob to linearize; may be given several times. search: as many blocks from the top "
        "as held-out training data ask for. [auto]"
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side that images are brought to, with no border cut off unless --crop-pct says so. [the backbone's own]"
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Mean of the backbone's input, one number or one for each channel: 0.5 or 0.485,0.456,0.406"),
]
Std = Annotated[str | None, typer.Option(help="Standard deviation of the backbone's input, as for --mean.")]
Resize = Annotated[str | None, typer.Option(help="How images are brought to size: shortest (crop) or squash.")]
CropPct = Annotated[
    float | None,
    typer.Option(
        help="Part of a resized image's side that the crop keeps: 0.875 leaves room for --crops. [the backbone's own; "
        "1 with --image-size]"
    ),
]
Penalty = Annotated[
    str, typer.Option(help="auto, or L2 penalties by hand: one number, or one of w₁ and one of w₂ (0.01,0.001).")
]
LossName = Annotated[
    str, typer.Option(help="auto (by the labels), cross_entropy, one_hot_squared, logistic or squared.")
]
ClassWeight = Annotated[
    str | None, typer.Option(help="balanced: every class counts the same, however many samples it has.")
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the data, of fine-tuning and of adam and sgd. [the paper's 50 epochs, or 80,000 iterations "
        "if that is less]"
    ),
]
BatchSize = Annotated[int, typer.Option(help="Samples in a minibatch.")]
Solver = Annotated[
    str, typer.Option(help="auto, subspace, dual (few samples), or adam or sgd with the paper's schedules.")
]
Rounds = Annotated[
    str, typer.Option(help="Linearizations of `full` at most: a number, or auto while the held-out loss falls.")
]
Augment = Annotated[str | None, typer.Option(help="mirror: add the mirror image of each training image.")]
Parametrization = Annotated[str, typer.Option(help="standard, ntk_fan_in or ntk_fan_out.")]
Metric = Annotated[str, typer.Option(help="What the penalty of w₂ is measured in: auto, plain or whitened.")]
Precision = Annotated[
    str,
    typer.Option(help="auto (float32; float64 for a network in it), float32, bfloat16 (not for rounds) or float64."),
]
Cache = Annotated[str, typer.Option(help="What is kept of each sample: auto, residuals, z0 or none.")]
CheckpointFolder = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Folder for finished parts of the fit: after an interruption the same command goes on from there.",
    ),
]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", help="Fetch weights and a tokenizer that are not on this machine, if need be."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, instead of stopping.")
]
Crops = Annotated[
    int,
    typer.Option(min=1, help="Random crops of each test image, averaged (Table 4 of the paper: 10). 1: centre crop."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
