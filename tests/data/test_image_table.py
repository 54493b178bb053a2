"""A table of images and labels, as image contests hand them out."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from gradfeat.data import load_dataset
from gradfeat.data.table import Columns, load_table_images
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning


@pytest.fixture
def contest(tmp_path):
    """A folder `images` with six pictures, of three suffixes, and what writes a table beside it."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("jpg", "JPG", "png", "jpg", "jpg")):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture.save(tmp_path / "images" / f"{i:03d}.{suffix}", format="PNG" if suffix == "png" else "JPEG")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "more" / "a.b.png")

    def write(content, name="train.csv"):
        path = tmp_path / name
        path.write_text(content)
        return path

    return write


ROWS = "000,x\n001,y\n002,x\n003,y\nmore/a.b,x\n"


def test_names_without_a_suffix_and_a_root(contest, tmp_path):
    path = contest("image_id,label\n" + ROWS)
    data = load_dataset(path, image_root=tmp_path / "images")
    names = ("000.jpg", "001.JPG", "002.png", "003.jpg", "more/a.b.png")
    assert list(data.X) == [tmp_path / "images" / name for name in names]
    assert data.y.tolist() == ["x", "y", "x", "y", "x"]
    assert data.describe() == "train (all): 5 images, 2 classes"


@pytest.mark.parametrize("form", ["images/{}", "images\\{}", "./images/{}", "{root}/images/{}", "../{name}/images/{}"])
def test_paths_are_relative_to_the_table(contest, tmp_path, monkeypatch, form):
    monkeypatch.chdir(os.sep)
    files = ["000.jpg", "001.JPG", "002.png"]
    values = [form.format(file, root=tmp_path, name=tmp_path.name) for file in files]
    path = contest("file_name,label\n" + "".join(f"{value},{i % 2}\n" for i, value in enumerate(values)))
    data = load_dataset(path)  # a column of that name with files in it
    assert [image.resolve() for image in data.X] == [tmp_path / "images" / file for file in files]
    assert data.y.tolist() == [0, 1, 0]


def test_a_column_of_any_name(contest, tmp_path):
    path = contest("id,scan,breed\n1,000,x\n2,001,y\n")
    data = load_dataset(path, image_column="scan", image_root=tmp_path / "images", label_column="breed")
    assert len(data.X) == 2
    with pytest.raises(DataError, match=r"no column 'skan'.*Did you mean scan"):
        load_dataset(path, image_column="skan", label_column="breed")


@pytest.mark.parametrize("column", ["Image Index", "id", "ID_CODE", "img-path", "file"])
def test_usual_names_of_the_column(contest, tmp_path, column):
    path = contest(f"{column},label\n000,x\n001,y\n")
    assert len(load_dataset(path, image_root=tmp_path / "images").X) == 2
    with pytest.raises(DataError, match=rf"no value of {column} is an image in .*There is '000' in .*images"):
        load_dataset(path)


def test_of_texts_with_ids_no_word_is_said_about_images(contest):
    with pytest.raises(DataError, match="has no text column"):
        load_dataset(contest("id,phrase,label\n17,hello,x\n18,there,y\n"))


@pytest.mark.parametrize("path", ["/kaggle/input/scans/images/000.jpg", "C:\\data\\images\\000.jpg"])
def test_paths_of_another_computer(contest, path):
    with pytest.raises(DataError, match=r"a path of another computer; there is '000\.jpg' in .*images: write paths"):
        load_dataset(contest(f"path,label\n{path},x\n"))


def test_an_image_with_two_labels(contest):
    content = "image,label\nimages/000.jpg,x\nimages/001.JPG,y\nimages/000.jpg,{}\n"
    assert load_dataset(contest(content.format("x"))).y.tolist() == ["x", "y", "x"]
    with pytest.warns(GradfeatWarning, match=r"1 rows give an image another label .*000\.jpg"):
        assert load_dataset(contest(content.format("y"))).y.tolist() == ["x", "y", "y"]


def test_json_lines_and_several_labels(contest, tmp_path):
    rows = [{"image": f"{i:03d}", "label": ["a", "b"][: i % 2 + 1]} for i in range(4)]
    path = contest("\n".join(map(json.dumps, rows)), "train.jsonl")
    data = load_dataset(path, image_root=tmp_path / "images")
    assert (data.task, data.y.tolist()) == ("multilabel", [[1, 0], [1, 1], [1, 0], [1, 1]])


def test_a_table_with_texts_stays_one_of_texts(contest):
    content = "image_path,title,label\nimages/000.jpg,hello,0\nimages/001.JPG,there,1\n"
    assert load_dataset(contest(content)).X == ["hello", "there"]
    assert len(load_dataset(contest(content), image_column="image_path").X) == 2
    assert load_dataset(contest("path,label\nimages/000.jpg,0\nb,1\n"), text_column="path").X == ["images/000.jpg", "b"]
    with pytest.raises(DataError, match="no text column"):
        load_dataset(contest("path,label\nnowhere,0\nb,1\n"))


def test_images_that_are_missing_are_named_by_row_and_path(contest, tmp_path):
    path = contest("image_id,label\n000,x\n001,y\n777,x\n888,y\n")
    root = tmp_path / "images"
    with pytest.raises(DataError) as error:
        load_dataset(path, image_root=root)
    assert "2 of 4 images in 'image_id' are not there" in str(error.value)
    assert f"line 4: {root / '777'}" in str(error.value)
    with pytest.warns(GradfeatWarning, match="2 of 4 images cannot be read and are left out"):
        data = load_dataset(path, image_root=root, on_error="skip")
    assert data.y.tolist() == ["x", "y"]
    options = {"image_column": "image_id", "on_error": "skip"}
    with pytest.raises(DataError, match="4 of 4 images in 'image_id' are not there"):  # none is left: another folder
        load_dataset(path, **options)
    with pytest.raises(DataError, match="class 'z' has no readable image"):
        load_dataset(contest("image_id,label\n000,x\n001,y\n777,z\n"), image_root=root, on_error="skip")


def test_damaged_images_are_treated_as_in_folders(contest, tmp_path):
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no image")
    path = contest("image_id,label\n000,x\n001,y\nbad,x\n")
    with pytest.raises(DataError, match="1 of 3 images cannot be read"):
        load_dataset(path, image_root=tmp_path / "images")
    with pytest.warns(GradfeatWarning, match="left out"):
        assert len(load_dataset(path, image_root=tmp_path / "images", on_error="skip")) == 2


def test_the_folder_of_the_images_is_found_for_the_message(contest, tmp_path):
    path = contest("image_id,label\n" + ROWS)
    with pytest.raises(
        DataError, match=r"no value of image_id is an image in .*--image-root.*There is '000' in .*images"
    ):
        load_dataset(path)
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(path, image_root=tmp_path / "nowhere")


@pytest.mark.parametrize("value", ["", "more", "a\0b", "a" * 5000, "/dev/zero", "http://x.org/a.jpg", "..", ".", "~"])
def test_values_that_are_no_files(contest, tmp_path, value):
    with pytest.raises(DataError, match="line 2") as error:
        load_dataset(contest(f"image_id,label\n{value},x\n001,y\n"), image_root=tmp_path / "images")
    assert len(str(error.value)) < 1000


def test_a_name_with_two_suffixes_is_not_guessed(contest, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "000.png")
    with pytest.raises(DataError, match=r"line 2: '000' may be 000\.jpg or 000\.png"):
        load_dataset(contest("image_id,label\n000,x\n001,y\n"), image_root=tmp_path / "images")


def test_parts_beside_the_folders_of_images(contest, tmp_path):
    contest("image_id,label\n000,x\n001,y\n")
    contest("image_id,label\n002,x\n003,y\n", "test.csv")
    data = load_dataset(tmp_path, split="test", image_root=tmp_path / "images")
    assert (data.split, [image.stem for image in data.X]) == ("test", ["002", "003"])


def test_images_to_predict_need_no_labels(contest, tmp_path):
    columns = Columns(image_root=tmp_path / "images")
    paths, called = load_table_images(contest("image_id\n003\nmore/a.b\n"), columns=columns)
    assert [path.name for path in paths] == ["003.jpg", "a.b.png"]
    assert called == ["003", "more/a.b"]
    assert load_table_images(contest("text\na\n")) is None


def test_options_that_do_not_fit(contest, tmp_path):
    path = contest("image_id,label\n" + ROWS)
    with pytest.raises(ConfigurationError, match="text_column is for a table of texts"):
        load_dataset(path, image_root=tmp_path / "images", text_column="label")
    with pytest.raises(ConfigurationError, match="image_root is for tables"):
        load_dataset(tmp_path, image_root=tmp_path, format="folder")
