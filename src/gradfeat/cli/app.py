"""The commands of `gradfeat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gradfeat._version import __version__
from gradfeat.cli.options import (
    AllowDownload,
    Augment,
    BackboneName,
    BatchSize,
    Cache,
    CheckpointFolder,
    ClassWeight,
    CropPct,
    Crops,
    DataPath,
    Device,
    Encoding,
    Epochs,
    Format,
    ImageColumn,
    ImageRoot,
    ImageSize,
    Json,
    LabelColumn,
    LabelSeparator,
    LossName,
    MaxLength,
    Mean,
    Metric,
    Parametrization,
    Penalty,
    Precision,
    Resize,
    Rounds,
    Seconds,
    Seed,
    SkipBad,
    Solver,
    Std,
    TextColumn,
    Theta2,
    Weights,
)
from gradfeat.files.terminal import printable


class Commands(TyperGroup):
    """The commands; what is wrong with their arguments may be the name of a file, and is shown as such."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message") and hasattr(error, "message"):  # one about the arguments
                error.message = printable(error.message)
            raise


app = typer.Typer(
    cls=Commands,
    name="gradfeat",
    help="Linear models over the activations and gradients of a pre-trained network (Mu, Liang & Li, ICLR 2020).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gradfeat {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Linear models over the activations and gradients of a pre-trained network (Mu, Liang & Li, ICLR 2020)."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture, the table and the model.")] = Path("demo"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show the method on scikit-learn's digits: pre-train without labels, fit the four models, save and load one."""
    from gradfeat.cli.demo import run

    run(out, seed, json)


@app.command()
def fit(
    context: typer.Context,
    data: DataPath,
    backbone: BackboneName,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the fitted model.")] = Path("model.safetensors"),
    split: Annotated[str, typer.Option(help="Part of the data to fit to.")] = "train",
    data_format: Format = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    image_column: ImageColumn = None,
    image_root: ImageRoot = None,
    label_separator: LabelSeparator = None,
    encoding: Encoding = None,
    seconds: Seconds = None,
    weights: Weights = None,
    theta2: Theta2 = None,
    mode: Annotated[str, typer.Option(help="activation, gradient, full or finetune.")] = "full",
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop_pct: CropPct = None,
    max_length: MaxLength = None,
    penalty: Penalty = "auto",
    loss: LossName = "auto",
    class_weight: ClassWeight = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 64,
    solver: Solver = "auto",
    rounds: Rounds = "1",
    augment: Augment = None,
    parametrization: Parametrization = "standard",
    metric: Metric = "auto",
    precision: Precision = "auto",
    cache: Cache = "auto",
    checkpoint: CheckpointFolder = None,
    device: Device = "auto",
    seed: Seed = 0,
    skip_unreadable: SkipBad = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the penalties that were tried and the rounds: pictures, and JSON.")
    ] = None,
    json: Json = False,
) -> None:
    """Fit one model to labelled data and save it as one file."""
    from gradfeat.cli.commands import Settings, Source, fit_command
    from gradfeat.cli.given import Given

    settings = Settings(
        backbone=backbone,
        weights=weights,
        theta2=theta2,
        image_size=image_size,
        mean=mean,
        std=std,
        resize=resize,
        crop_pct=crop_pct,
        max_length=max_length,
        penalty=penalty,
        loss=loss,
        class_weight=class_weight,
        epochs=epochs,
        batch_size=batch_size,
        solver=solver,
        rounds=rounds,
        augment=augment,
        parametrization=parametrization,
        metric=metric,
        precision=precision,
        cache=cache,
        checkpoint=checkpoint,
        device=device,
        seed=seed,
        json=json,
    )
    source = Source(
        data_format,
        skip_unreadable,
        text_column,
        label_column,
        encoding,
        seconds,
        image_column=image_column,
        image_root=image_root,
        label_separator=label_separator,
    )
    fit_command(data, split, source, settings, mode, out, pictures, Given.of(context))


@app.command()
def compare(
    context: typer.Context,
    data: DataPath,
    backbone: BackboneName,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the table, the picture and the models.")
    ] = None,
    test_data: Annotated[Path | None, typer.Option(help="Test data, if not the test part of the same data.")] = None,
    split: Annotated[str, typer.Option(help="Part to fit to.")] = "train",
    test_split: Annotated[str, typer.Option(help="Part to report on.")] = "test",
    modes: Annotated[str, typer.Option(help="Models to compare.")] = "activation,gradient,full,finetune",
    crops: Crops = 1,
    data_format: Format = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    image_column: ImageColumn = None,
    image_root: ImageRoot = None,
    label_separator: LabelSeparator = None,
    encoding: Encoding = None,
    seconds: Seconds = None,
    weights: Weights = None,
    theta2: Theta2 = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop_pct: CropPct = None,
    max_length: MaxLength = None,
    penalty: Penalty = "auto",
    loss: LossName = "auto",
    class_weight: ClassWeight = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 64,
    solver: Solver = "auto",
    rounds: Rounds = "1",
    augment: Augment = None,
    parametrization: Parametrization = "standard",
    metric: Metric = "auto",
    precision: Precision = "auto",
    cache: Cache = "auto",
    checkpoint: CheckpointFolder = None,
    device: Device = "auto",
    seed: Seed = 0,
    skip_unreadable: SkipBad = False,
    json: Json = False,
) -> None:
    """Fit the four models of the method and show them side by side."""
    from gradfeat.cli.commands import Settings, Source, compare_command
    from gradfeat.cli.given import Given

    settings = Settings(
        backbone=backbone,
        weights=weights,
        theta2=theta2,
        image_size=image_size,
        mean=mean,
        std=std,
        resize=resize,
        crop_pct=crop_pct,
        max_length=max_length,
        penalty=penalty,
        loss=loss,
        class_weight=class_weight,
        epochs=epochs,
        batch_size=batch_size,
        solver=solver,
        rounds=rounds,
        augment=augment,
        parametrization=parametrization,
        metric=metric,
        precision=precision,
        cache=cache,
        checkpoint=checkpoint,
        device=device,
        seed=seed,
        json=json,
    )
    source = Source(
        data_format,
        skip_unreadable,
        text_column,
        label_column,
        encoding,
        seconds,
        image_column=image_column,
        image_root=image_root,
        label_separator=label_separator,
    )
    compare_command(data, test_data, split, test_split, source, settings, modes, out, crops, Given.of(context))


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="File that `gradfeat fit` wrote.")],
    data: Annotated[
        Path,
        typer.Argument(help="An image or WAV file, a folder of them, a text in each line, or data in a known layout."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the predictions, in UTF-8. [standard output]")
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "test",
    crops: Crops = 1,
    data_format: Format = "auto",
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    image_root: ImageRoot = None,
    encoding: Encoding = None,
    seconds: Seconds = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="The backbone, if not as in the file.")
    ] = None,
    weights: Weights = None,
    allow_download: AllowDownload = False,
    device: Device = "auto",
    skip_unreadable: SkipBad = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead of CSV.")] = False,
) -> None:
    """Predict classes and probabilities with a saved model."""
    from gradfeat.cli.commands import Source
    from gradfeat.cli.given import Given
    from gradfeat.cli.saved import predict_command

    source = Source(
        data_format,
        skip_unreadable,
        text_column,
        encoding=encoding,
        seconds=seconds,
        image_column=image_column,
        image_root=image_root,
    )
    predict_command(
        model, data, out, split, source, backbone, weights, json, crops, device, allow_download, Given.of(context)
    )


@app.command()
def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="File that `gradfeat fit` wrote.")],
    data: DataPath,
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG to draw: which classes are taken for which; for regression predictions and targets."),
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data.")] = "test",
    crops: Crops = 1,
    data_format: Format = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    image_column: ImageColumn = None,
    image_root: ImageRoot = None,
    label_separator: LabelSeparator = None,
    encoding: Encoding = None,
    seconds: Seconds = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="The backbone, if not as in the file.")
    ] = None,
    weights: Weights = None,
    allow_download: AllowDownload = False,
    device: Device = "auto",
    skip_unreadable: SkipBad = False,
    json: Json = False,
) -> None:
    """Judge a saved model on labelled data."""
    from gradfeat.cli.commands import Source
    from gradfeat.cli.given import Given
    from gradfeat.cli.saved import evaluate_command

    source = Source(
        data_format,
        skip_unreadable,
        text_column,
        label_column,
        encoding,
        seconds,
        image_column=image_column,
        image_root=image_root,
        label_separator=label_separator,
    )
    evaluate_command(
        model, data, split, source, backbone, weights, json, crops, device, allow_download, picture, Given.of(context)
    )


@app.command()
def inspect(
    context: typer.Context,
    backbone: Annotated[
        str,
        typer.Argument(
            help='"timm/<name>", "torchvision/<name>", "hf/<folder or id>", an encoder file, or a saved model.'
        ),
    ],
    weights: Weights = None,
    theta2: Annotated[
        list[str] | None,
        typer.Option(help="Only this θ₂: module, parameter or glob; may be given several times. [from the top down]"),
    ] = None,
    image_size: ImageSize = None,
    most: Annotated[int, typer.Option(min=1, help="How many candidates of θ₂ to show.")] = 5,
    json: Json = False,
) -> None:
    """Show a network's candidates of θ₂, with their parameters, memory and the cost of a pass."""
    from gradfeat.cli.given import Given
    from gradfeat.cli.inspect import run

    run(backbone, weights, theta2, image_size, most, json, Given.of(context))


@app.command()
def pretrain(
    task: Annotated[str, typer.Argument(help="vae, bigan, rotation, jigsaw, colorization, context or supervised.")],
    data: Annotated[
        Path,
        typer.Argument(help="A folder of images, an .npz file, a CIFAR folder or a VOC devkit.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the encoder and all else.")] = Path("pretrained"),
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            "-n",
            help='small, bigan, resnet20, resnet56, "timm/<name>" or "torchvision/<name>". [the task\'s own]',
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 40,
    batch_size: Annotated[int, typer.Option(help="Images in a minibatch.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of Adam's cycle; for bigan the rate. [0.002; bigan: 0.0002]")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="vae: weight of the divergence. [1]")] = None,
    latent: Annotated[int | None, typer.Option(help="vae, bigan: length of the code. [16; bigan: 64]")] = None,
    objective: Annotated[
        str | None, typer.Option(help="bigan: jensen-shannon or wasserstein. [jensen-shannon]")
    ] = None,
    permutations: Annotated[int | None, typer.Option(help="jigsaw: how many orders there are. [100]")] = None,
    rebalance: Annotated[
        float | None, typer.Option(help="colorization: λ of the weights of rare colours; 1 is no weights. [0.5]")
    ] = None,
    drop_colours: Annotated[
        bool | None, typer.Option("--drop-colours", help="context: show one colour of each patch, for photographs.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side that images are brought to. [of arrays their own; else 32]")
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data to train on.")] = "train",
    data_format: Format = "auto",
    image_column: ImageColumn = None,
    image_root: ImageRoot = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Go on where a run of the same configuration stopped, or start again: what was there is kept as "
            "checkpoint.before.safetensors until the new run is finished."
        ),
    ] = True,
    checkpoint_every: Annotated[
        int, typer.Option(help="Epochs from one writing of the state to the next; more on a GPU, where they are short.")
    ] = 1,
    half: Annotated[bool, typer.Option("--half", help="Write the encoder's weights in half precision.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    skip_unreadable: SkipBad = False,
    json: Json = False,
) -> None:
    """Pre-train an encoder on images, mostly without labels; it is a backbone for the other commands."""
    from gradfeat.cli.commands import Source
    from gradfeat.cli.pretrain import run

    options = {"beta": beta, "latent": latent, "objective": objective, "permutations": permutations}
    options |= {"rebalance": rebalance, "drop_colours": drop_colours}
    run(
        task,
        data,
        out,
        network=network,
        image_size=image_size,
        split=split,
        source=Source(data_format, skip_unreadable, image_column=image_column, image_root=image_root),
        half=half,
        json=json,
        device=device,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        options={name: value for name, value in options.items() if value is not None},
        resume=resume,
        checkpoint_every=checkpoint_every,
        random_state=seed,
    )


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="table1, table2, table3 or table4.")],
    scale: Annotated[
        str,
        typer.Option(
            help="smoke (no download, a minute), reduced (fewer labels, an hour on two cores) or full (the paper's)."
        ),
    ] = "smoke",
    data: Annotated[Path | None, typer.Option(help="Folder with the data sets of the table; not for smoke.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for cells and tables. [reproduced/TABLE-SCALE]")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="File of `gradfeat pretrain`, instead of pre-training in place; for table2 and table4 also weights of "
            "the network trained on ImageNet."
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="own, paper, paper-voc or published-code. [full: paper or paper-voc; else own]")
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(help="Labelled training images. [smoke: 200; reduced: table1 1,000, table3 5,000; else all]"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds: mean and spread are shown.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only the rows of this network; may be given several times. table3: bigan, vae; table4: jigsaw, "
            "ImageNet, and below full size rotation, supervised; table1 is of one: bigan, or vae."
        ),
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Write the table of the cells that are there; compute no more.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Compute a table of the paper beside its published numbers; the same command goes on where it stopped."""
    from gradfeat.cli.reproduce import run

    run(
        name,
        out,
        json,
        scale=scale,
        data=data,
        encoder=encoder,
        protocol=protocol,
        labels=labels,
        seeds=seeds,
        only=only,
        finished=finished,
        device=device,
    )
