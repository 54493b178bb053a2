"""How large an experiment is: the paper's size, an hour on two cores, or a minute without any download."""

from __future__ import annotations

from dataclasses import dataclass

from gradfeat.errors import ConfigurationError, did_you_mean


@dataclass(frozen=True)
class Scale:
    """The size of an experiment.

    Attributes:
        name: For the command line and the tables.
        labelled: Labelled training images by table, drawn anew for each seed; none named: all.
        unlabelled: Training images that an encoder is pre-trained on; None: all.
        epochs: Length of pre-training, by the encoder's name.
        iterations: Most minibatches of a schedule; None: the protocol's own.
        protocol: The default one.
        splits: Parts held out, one after another, to choose penalties on; None: as many as a fit takes by itself.
        digits: Whether the data are scikit-learn's digits, and the encoder a tiny one.
    """

    name: str
    labelled: dict[str, int]
    unlabelled: int | None
    epochs: dict[str, int]
    iterations: int | None
    protocol: str
    splits: int | None = None
    digits: bool = False


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            {f"table{i}": 200 for i in (1, 2, 3, 4)},
            None,
            {"tiny": 3, "jigsaw": 3, "rotation": 3, "supervised": 3},
            40,
            "own",
            splits=1,
            digits=True,
        ),
        # Table 1 has 51 fits through up to three convolutions, where Table 3 has three through one
        Scale(
            "reduced",
            {"table1": 1_000, "table3": 5_000},
            20_000,
            {"bigan": 6, "vae": 10, "jigsaw": 5, "rotation": 5, "supervised": 5},
            800,
            "own",
        ),
        Scale("full", {}, None, {"bigan": 100, "vae": 100}, None, "paper"),
    )
}


def scale_named(name: str) -> Scale:
    """Return a scale.

    Raises:
        ConfigurationError: There is none of this name.
    """
    if name not in SCALES:
        raise ConfigurationError(f"scale must be one of {', '.join(SCALES)}, not {name!r}.{did_you_mean(name, SCALES)}")
    return SCALES[name]
