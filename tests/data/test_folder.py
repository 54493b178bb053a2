from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradfeat.data import load_dataset, load_images
from gradfeat.data.folder import part_folder
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning


def save(path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value, 0, 0)).save(path)


@pytest.fixture
def pets(tmp_path):
    for name in ("dog/b.JPG", "dog/a.png", "cat/1.jpeg", "cat/deep/2.bmp"):
        save(tmp_path / "pets" / name)
    (tmp_path / "pets/cat/notes.txt").write_text("no image")
    (tmp_path / "pets/cat/.hidden.jpg").write_text("no image")
    (tmp_path / "pets/.git/objects").mkdir(parents=True)
    (tmp_path / "pets/__MACOSX/cat").mkdir(parents=True)
    return tmp_path / "pets"


@pytest.mark.parametrize("format", ["auto", "folder"])
def test_class_folders(pets, format):
    data = load_dataset(pets, format=format)
    assert [path.relative_to(pets).as_posix() for path in data.X] == [
        "cat/1.jpeg",
        "cat/deep/2.bmp",
        "dog/a.png",
        "dog/b.JPG",
    ]
    assert data.y.tolist() == ["cat", "cat", "dog", "dog"]
    assert (data.classes, data.task, data.name, data.split) == (["cat", "dog"], "multiclass", "pets", "all")
    assert data.describe() == "pets (all): 4 images, 2 classes (left out: 1 .txt)"
    assert len(data.subset([3, 0])) == 2
    dogs = data.subset(data.y == "dog")
    assert data.X[2:] == dogs.X
    assert len(data.subset([])) == 0


def test_parts(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.png")
    data = load_dataset(tmp_path, split="val", format="folder")
    assert (len(data), data.split, data.name) == (4, "val", tmp_path.name)
    assert len(load_dataset(tmp_path, format="folder")) == 6
    assert load_dataset(tmp_path, split="valid", format="folder").X == data.X
    with pytest.raises(DataError, match=r"no part 'vall'. Its parts: train, val. Did you mean val\?"):
        load_dataset(tmp_path, split="vall", format="folder")


def test_classes_may_be_called_like_parts(tmp_path):
    for name in ("test", "training"):
        save(tmp_path / name / "a.png")
    (tmp_path / "train.csv").write_text("id,label\na,x\n")
    with pytest.warns(GradfeatWarning, match=r"test, training .* are taken as the classes. If .*train\.csv names"):
        assert load_dataset(tmp_path, format="folder").classes == ["test", "training"]


@pytest.mark.parametrize("images", ["{}.png", "train/{}.png", "images/{}.png"])
def test_a_table_beside_images_without_class_folders_is_named(tmp_path, images):
    for i in range(2):
        save(tmp_path / images.format(i))
    (tmp_path / "labels.csv").write_text("id,label\n0,x\n1,y\n")
    with pytest.raises(
        DataError, match=r"If .*labels\.csv names the files and their labels, give its path.*image_root"
    ):
        load_dataset(tmp_path)


def test_a_folder_round_parts_may_have_any_name(tmp_path):
    for part in ("train", "test", "val"):
        for name in ("normal", "pneumonia"):
            save(tmp_path / "chest_xray" / part / name / "a.png")
    data = load_dataset(tmp_path, split="test")
    assert (data.classes, data.split) == (["normal", "pneumonia"], "test")


@pytest.mark.parametrize(
    ("folders", "split", "expected"),
    [
        (["train/cat", "test/cat"], "test", "test"),
        (["training_set/cat", "test_set"], "test", "test_set"),
        (["train", "test1"], "test", "test1"),
        (["Training/cat", "Validation/cat"], "val", "Validation"),
        (["Training/cat", "Validation/cat"], "test", "."),
        (["seg_train/seg_train/cat", "seg_test/seg_test/cat", "seg_pred/seg_pred"], "test", "seg_test"),
        (["dataset/Train/cat", "dataset/Test/cat"], "test", "dataset/Test"),
        (["control", "Test"], "test", "."),
        (["cat", "dog"], "test", "."),
    ],
)
def test_the_part_of_files_without_labels(tmp_path, folders, split, expected):
    for folder in folders:
        save(tmp_path / folder / "a.png")
    assert part_folder(tmp_path, split, (".png",)) == tmp_path / expected


def test_a_class_may_have_the_name_of_the_part(tmp_path):
    for name in ("bus", "train"):
        save(tmp_path / name / "a.png")
    data = load_dataset(tmp_path, split="train", format="folder")
    assert (data.classes, data.split) == (["bus", "train"], "all")
    save(tmp_path / "train" / "cat" / "b.png")  # now it has class folders: a part
    save(tmp_path / "train" / "dog" / "b.png")
    with pytest.warns(GradfeatWarning, match="1 images beside the class folders"):
        assert load_dataset(tmp_path, split="train", format="folder").classes == ["cat", "dog"]


def test_path_that_is_not_there(pets):
    with pytest.raises(DataError, match=r"has no 'pet'. Did you mean pets\?"):
        load_dataset(pets.parent / "pet" / "train")
    with pytest.raises(DataError, match="has no 'pet'"):
        load_images(pets.parent / "pet")


def test_unknown_options(pets):
    with pytest.raises(ConfigurationError, match="Did you mean folder"):
        load_dataset(pets, format="folders")
    with pytest.raises(ConfigurationError, match="on_error must be"):
        load_dataset(pets, on_error="ignore")


def test_folders_without_classes(tmp_path):
    with pytest.raises(DataError, match="has no folders"):
        load_dataset(tmp_path, format="folder")
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 images without class folders"):
        load_dataset(tmp_path, format="folder")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images in its 1 folders"):
        load_dataset(tmp_path, format="folder")
    with pytest.raises(DataError, match="is no folder"):
        load_dataset(tmp_path / "a.png", format="folder")


def test_one_class_only(tmp_path):
    save(tmp_path / "cat/a.png")
    with pytest.raises(DataError, match="only one class, 'cat'"):
        load_dataset(tmp_path, format="folder")


def test_empty_class_folders_are_named(pets):
    (pets / "fish").mkdir()
    with pytest.raises(DataError, match=r"class folder .fish. of .*fill it"):
        load_dataset(pets, format="folder")


def damage(pets) -> None:
    whole = (pets / "dog/b.JPG").read_bytes()
    (pets / "dog/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (pets / "cat/text.png").write_text("this is no image")
    (pets / "cat/zero.gif").write_bytes(b"")


def test_all_unreadable_images_are_named_at_once(pets):
    damage(pets)
    with pytest.raises(DataError) as caught:
        load_dataset(pets, format="folder")
    message = str(caught.value)
    assert "3 of 7 images" in message
    assert all(name in message for name in ("truncated.jpg", "text.png", "zero.gif", "on_error='skip'"))
    assert "b.JPG" not in message


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_large_jpeg_cut_off_anywhere_is_found(pets, kept, options):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = pets / "dog/large.jpg"
    Image.fromarray(pixels).save(file, **options)
    assert len(load_dataset(pets, format="folder")) == 5
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"1 of 5 images(.|\n)*large.jpg"):
        load_dataset(pets, format="folder")


def test_unreadable_images_are_skipped_on_request(pets):
    expected = load_dataset(pets, format="folder")
    damage(pets)
    with pytest.warns(GradfeatWarning, match=r"3 of 7 images(.|\n)*truncated.jpg") as caught:
        data = load_dataset(pets, format="folder", on_error="skip")
    assert len(caught) == 1
    assert data.X == expected.X
    assert np.array_equal(data.y, expected.y)


def test_long_lists_are_counted(pets):
    for i in range(25):
        (pets / f"cat/bad{i:02}.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"25 of 29 images(.|\n)*bad09.jpg(.|\n)*\.\.\. and 15 more"):
        load_dataset(pets, format="folder")


def test_skipping_does_not_lose_a_class(pets):
    for name in ("dog/a.png", "dog/b.JPG"):
        (pets / name).write_bytes(b"no")
    with pytest.raises(DataError, match="class 'dog' has no readable image"):
        load_dataset(pets, format="folder", on_error="skip")


def test_images_to_predict(pets, tmp_path):
    assert [path.name for path in load_images(pets)] == ["1.jpeg", "2.bmp", "a.png", "b.JPG"]
    assert load_images(pets / "dog/b.JPG") == [pets / "dog/b.JPG"]
    with pytest.raises(DataError, match=r"notes\.txt is no image"):
        load_images(pets / "cat/notes.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="hold no image"):
        load_images(tmp_path / "none")


@pytest.mark.parametrize(("split", "count"), [("train", 1800), ("validation", 341), ("test", 372)])
def test_clothing10(shared_data, split, count):
    data = load_dataset(shared_data / "clothing10", split=split)
    assert (len(data), len(data.classes), data.split) == (count, 10, split)
    assert sorted(set(data.y)) == data.classes
    assert all(path.parent.name == label for path, label in zip(data.X, data.y, strict=True))


def test_names_of_classes_are_utf8_whatever_the_locale(tmp_path):
    for name in ("caf\u00e9", "tea"):
        save(tmp_path / name / "a.png")
    code = f"from gradfeat.data import load_dataset; print(ascii(load_dataset({str(tmp_path)!r}).y.tolist()))"
    source = Path(__file__).resolve().parents[2] / "src"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **plain}, capture_output=True, text=True)
    assert done.stdout == "['caf\\xe9', 'tea']\n", done.stderr


def test_classes_that_hold_folders_are_named(tmp_path):
    for name in ("animal/cat", "animal/dog", "plant/tree"):
        save(tmp_path / name / "a.png")
    data = load_dataset(tmp_path)
    assert data.describe().endswith("3 images, 2 classes (the folders in 'animal' are read together)")


@pytest.mark.parametrize("names", [("HAM_images_part_1", "HAM_images_part_2"), ("fold1", "fold2"), ("train", "test1")])
def test_flat_portions_are_spoken_of(tmp_path, names):
    for name in names:
        save(tmp_path / name / "a.png")
    (tmp_path / "metadata.csv").write_text("image_id,label\na,x\n")
    with pytest.warns(GradfeatWarning, match=r"called like parts .* taken as the classes. If .*metadata\.csv names"):
        data = load_dataset(tmp_path)
    assert (data.classes, data.note) == (sorted(names), "not read: metadata.csv")


def test_a_copy_of_the_data_among_its_classes(tmp_path):
    for name in ("paper", "rock", "scissors", "copy/paper", "copy/rock", "copy/scissors"):
        save(tmp_path / name / "a.png")
    with pytest.warns(GradfeatWarning, match=r"copy holds folders that are called as the other classes"):
        assert len(load_dataset(tmp_path).classes) == 4


def test_a_flat_part_is_named_with_the_table_beside_it(tmp_path):
    for name in ("Train/0", "Train/1", "Test"):
        save(tmp_path / name / "a.png")
    (tmp_path / "Test.csv").write_text("Path,ClassId\nTest/a.png,0\n")
    with pytest.raises(DataError, match=r"Test has 1 images without class folders.*If .*Test\.csv names the files"):
        load_dataset(tmp_path, split="test")


def test_train_and_val_in_one_folder(tmp_path):
    for name in ("train_val/0", "train_val/1", "test/0", "test/1"):
        save(tmp_path / name / "a.png")
    assert load_dataset(tmp_path, split="trainval").split == "train_val"
    with pytest.raises(DataError, match=r"has no part 'train'. Its parts: test, train_val"):
        load_dataset(tmp_path)
