"""Data as users have it: folders, tables, arrays, recordings, and the official layouts of the usual data sets.

- `load` finds out what a path holds and calls its reader, which returns a `dataset.Dataset`.
- Readers of layouts: `folder`, `arrays`, `table`, `image_table`, `audio`; `cifar`, `svhn`, `voc`, `coco`.
- Folders: `finding` (which files count), `parts` (train, validation, test).
- Tables: `lines` (encoding), `delimited` (CSV and TSV), `rows`, then `labels` (what a column of labels is), with
  `label_text` for one label and `multilabel` for several in a row.
- Files: `signatures` and `images` (what is an image, decoding), `pixels` (to 8 bits), `wav` (headers), `matlab`,
  `checksum` (is it the official file), `memory`.
- Towards the network: `inputs` (one face for every X), `preprocessing` (images), `text` (tokens), `crops` (views of
  test images), `low_shot` (draws of few labels).
"""

from __future__ import annotations

from gradfeat.data.crops import Crops
from gradfeat.data.dataset import Dataset
from gradfeat.data.inputs import Inputs, Mirrored
from gradfeat.data.load import load_dataset, load_images
from gradfeat.data.preprocessing import Preprocessing
from gradfeat.data.text import TextPreprocessing

__all__ = [
    "Crops",
    "Dataset",
    "Inputs",
    "Mirrored",
    "Preprocessing",
    "TextPreprocessing",
    "load_dataset",
    "load_images",
]
