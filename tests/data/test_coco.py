"""COCO2014 in its official layout, made small, and what may be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gradfeat.data import load_dataset
from gradfeat.data.coco import OFFICIAL, is_coco
from gradfeat.errors import DataError, GradfeatWarning

# ids have gaps and are not in order, as in the official files
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}, {"id": 13, "name": "stop sign"}]
IMAGES = {"train": [57870, 9, 384029], "val": [391895, 42]}
ANNOTATIONS = {
    "train": [
        {"id": 1, "image_id": 9, "category_id": 13, "iscrowd": 0},
        {"id": 2, "image_id": 57870, "category_id": 90, "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 13, "iscrowd": 0},
        {"id": 4, "image_id": 9, "category_id": 1, "iscrowd": 1},
    ],
    "val": [{"id": 5, "image_id": 42, "category_id": 1, "iscrowd": 0}],
}


def content(part: str) -> dict[str, Any]:
    images = [{"id": number, "file_name": f"COCO_{part}2014_{number:012d}.jpg"} for number in IMAGES[part]]
    return {"info": {}, "images": images, "annotations": ANNOTATIONS[part], "categories": CATEGORIES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    for part in IMAGES:
        found = content(part)
        (tmp_path / f"annotations/instances_{part}2014.json").write_text(json.dumps(found))
        (tmp_path / f"{part}2014").mkdir()
        for image in found["images"]:
            Image.new("RGB", (6, 5)).save(tmp_path / f"{part}2014" / image["file_name"])
    return tmp_path


@pytest.mark.parametrize("format", ["auto", "coco"])
def test_labels(root: Path, format: str) -> None:
    data = load_dataset(root, format=format)
    assert data.classes == ["person", "toothbrush", "stop sign"]
    assert [path.name for path in map(Path, data.X)] == [
        "COCO_train2014_000000057870.jpg",
        "COCO_train2014_000000000009.jpg",
        "COCO_train2014_000000384029.jpg",
    ]
    # the crowd of persons counts, two stop signs are one label, and the image without annotations is there
    assert data.y is not None
    assert data.y.tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert (data.name, data.task, data.split, data.ignore) == ("COCO2014", "multilabel", "train", None)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_paper_tests_on_val(root: Path, split: str) -> None:
    data = load_dataset(root, split=split)
    assert data.y is not None
    assert (data.split, data.y.tolist()) == ("val", [[0, 0, 0], [1, 0, 0]])


def test_another_number_of_images_or_categories_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dataset(root).note == "officially 82,783 images and 80 categories"
    monkeypatch.setitem(OFFICIAL, "val", 2)
    assert load_dataset(root, split="val").note == "officially 80 categories"


def test_unknown_split(root: Path) -> None:
    with pytest.raises(DataError, match=r"splits train and val \(also as test\), not 'vall'. Did you mean val\?"):
        load_dataset(root, split="vall")


def test_missing_pieces(root: Path) -> None:
    (root / "train2014/COCO_train2014_000000000009.jpg").unlink()
    with pytest.raises(DataError, match=r"train2014: 1 of 3 images are missing: COCO_train2014_000000000009.jpg"):
        load_dataset(root)
    (root / "annotations/instances_train2014.json").unlink()
    with pytest.raises(DataError, match=r"no .*instances_train2014.json: download annotations_trainval2014.zip"):
        load_dataset(root)
    for file in (root / "val2014").iterdir():
        file.unlink()
    (root / "val2014").rmdir()
    with pytest.raises(DataError, match=r"no folder .*val2014: download val2014.zip"):
        load_dataset(root, split="val")


def test_detection_needs_annotations_or_images(root: Path, tmp_path: Path) -> None:
    assert is_coco(root)
    for file in (root / "annotations").iterdir():
        file.unlink()
    assert is_coco(root)  # so that the message is about the annotations, not about class folders
    assert not is_coco(root / "train2014")
    assert not is_coco(root / "nowhere")


def test_damaged_images_are_named_or_left_out(root: Path) -> None:
    (root / "train2014/COCO_train2014_000000057870.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1 of 3 images cannot be read(.|\n)*000000057870.jpg"):
        load_dataset(root)
    with pytest.warns(GradfeatWarning, match="left out"):
        data = load_dataset(root, on_error="skip")
    assert data.y is not None
    assert data.y.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "expected an object with the lists images, annotations, categories"),
        (
            {"annotations": [{"image_id": 10, "category_id": 1}]},
            r"annotations\[0\]: expected .* found .*'image_id': 10",
        ),
        ({"annotations": [{"image_id": 9, "category_id": 2}]}, r"annotations\[0\]: .*listed image and category"),
        ({"annotations": [{"image_id": 9}]}, r"annotations\[0\]"),
        ({"annotations": [7]}, r"annotations\[0\]: .* found 7"),
        ({"annotations": [{"image_id": [9], "category_id": 1}]}, r"annotations\[0\]"),
        ({"images": [{"id": 9}]}, r"images\[0\]: expected an id and a file_name"),
        ({"images": [{"id": 9, "file_name": 9}]}, r"images\[0\]: the file_name is no text: 9"),
        ({"images": []}, "the list images is empty"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "bird"}]}, r"categories\[3\]: the id 1 is there a second time"),
    ],
)
def test_annotations_that_cannot_be_meant(root: Path, change: dict[str, Any], message: str) -> None:
    file = root / "annotations/instances_train2014.json"
    file.write_text(json.dumps({**content("train"), **change}))
    with pytest.raises(DataError, match=rf"instances_train2014\.json.*{message}"):
        load_dataset(root)


@pytest.mark.parametrize("text", [b"", b'{"images": [', b"[1, 2]", b"\xff\xfe{}"])
def test_files_that_are_no_annotations(root: Path, text: bytes) -> None:
    (root / "annotations/instances_train2014.json").write_bytes(text)
    with pytest.raises(DataError, match=r"instances_train2014\.json (is cut off or damaged|has no annotations)"):
        load_dataset(root)
