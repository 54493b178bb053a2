from __future__ import annotations

import shutil

import pytest

from gradfeat.errors import DataError
from gradfeat.reproduce import plan
from gradfeat.reproduce.needed import lacking
from gradfeat.reproduce.protocols import PROTOCOLS
from gradfeat.reproduce.scales import SCALES


def test_a_data_set_that_lacks_a_part_is_left_out_before_any_work(tmp_path):
    def found(table, scale="reduced"):
        size, protocol = SCALES[scale], PROTOCOLS["paper"]
        return plan.find(plan.Request(table, tmp_path, size, protocol, tmp_path, None, None, "cpu", print))

    for part in ("train", "test"):
        (tmp_path / "CIFAR-10" / part).mkdir(parents=True)
    svhn = tmp_path / "svhn"
    svhn.mkdir()
    (svhn / "train_32x32.mat").touch()
    places, lines = found("table3")
    assert list(places) == ["cifar10"]
    assert lines[0].startswith(f"SVHN: left out, for {svhn} lacks test_32x32.mat: download train_32x32.mat")
    assert lines[1].startswith("CIFAR-100: not found")
    assert found("table1") == ({"cifar10": tmp_path / "CIFAR-10"}, [])
    (svhn / "test_32x32.mat").touch()
    assert list(found("table3")[0]) == ["cifar10", "svhn"]
    places, lines = found("table3", "full")
    assert list(places) == ["cifar10"]
    assert "lacks extra_32x32.mat" in lines[0]
    shutil.rmtree(tmp_path / "CIFAR-10" / "test")
    places, (line,) = found("table1")
    assert list(places) == ["svhn"]
    assert "CIFAR-10 lacks test:" in line
    with pytest.raises(DataError, match=r"no data set of the table was found.\n  CIFAR-10: left out"):
        found("table1", "full")


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ("cifar-10-batches-py/data_batch_1 cifar-10-batches-py/test_batch", ""),
        ("cifar-10-batches-bin/data_batch_1.bin", "test images"),
        ("cifar-100-python/test", "training images"),
        ("cifar-100-binary/train.bin cifar-100-binary/test.bin", ""),
        ("VOC2007/ImageSets/Main/cat_trainval.txt", "ImageSets/Main/*_test.txt JPEGImages"),
        (
            "annotations/instances_train2014.json train2014/a.jpg val2014/b.jpg",
            "annotations/instances_val2014.json",
        ),
        ("train/cat/a.png", "test"),
    ],
)
def test_what_a_folder_lacks(tmp_path, files, missing):
    for file in files.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert " ".join(lacking(tmp_path)) == missing
