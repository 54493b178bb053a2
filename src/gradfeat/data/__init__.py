"""Data as users have it: folders, arrays, and the official layouts of the usual data sets."""

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
