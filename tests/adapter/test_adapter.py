from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rewriting import network, rewritten
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import gradfeat
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import AdapterError, ConfigurationError
from gradfeat.estimators import adapter
from gradfeat.model import MODES
from gradfeat.optional import require
from gradfeat.pretrain import input_scaling, save_encoder
from gradfeat.pretrain.encoder import ConvEncoder


def build(shape: tuple[int, ...]) -> nn.Module:
    """A callable backbone, whose weights are drawn when it is called."""
    return nn.Sequential(nn.Linear(shape[1], 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU())


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def y(X: np.ndarray) -> np.ndarray:
    return (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def fitted(X: np.ndarray, y: np.ndarray, backbone: Any = None, **parameters: Any) -> Any:
    parameters = {"penalty": 0.1, "solver": "adam", "epochs": 1, "random_state": 3, **parameters}
    cls = parameters.pop("cls", GradientFeatureClassifier)
    return cls(network() if backbone is None else backbone, **parameters).fit(X, y)


@pytest.fixture(scope="module")
def saved(X: np.ndarray, y: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(X, y).save(tmp_path_factory.mktemp("saved") / "model.safetensors")


# ---- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "parametrization"), [*((mode, "standard") for mode in MODES), ("full", "ntk_fan_in")])
def test_every_mode_predicts_the_same_after_loading(
    X: np.ndarray, y: np.ndarray, tmp_path: Path, mode: str, parametrization: str
) -> None:
    before = fitted(X, y, mode=mode, parametrization=parametrization)
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network())
    np.testing.assert_allclose(after.decision_function(X), before.decision_function(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(after.predict(X), before.predict(X))
    assert (after.mode, after.parametrization) == (mode, parametrization)
    for name in before.w2_:
        assert torch.equal(after.w2_[name], before.w2_[name])


def test_multilabel(X: np.ndarray, tmp_path: Path) -> None:
    labels = (X > 0).astype(int)
    before = fitted(X, labels)
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network())
    assert after.multilabel_
    np.testing.assert_allclose(after.predict_proba(X), before.predict_proba(X), rtol=1e-6)
    assert after.predict(X).shape == labels.shape


@pytest.mark.parametrize("outputs", [None, 1, 2])
def test_regressor_keeps_the_shape_of_its_targets(X: np.ndarray, tmp_path: Path, outputs: int | None) -> None:
    targets = X[:, 0] if outputs is None else X[:, :outputs]
    before = fitted(X, targets, cls=GradientFeatureRegressor)
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network())
    assert isinstance(after, GradientFeatureRegressor)
    assert after.predict(X).shape == targets.shape
    np.testing.assert_allclose(after.predict(X), before.predict(X), rtol=1e-6, atol=1e-6)


def test_callable_backbone_is_built_again_with_the_same_seed_and_shape(
    X: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    before = fitted(X, y, build, random_state=11)
    path = before.save(tmp_path / "m.safetensors")
    np.testing.assert_allclose(gradfeat.load(path, backbone=build).predict_proba(X), before.predict_proba(X), rtol=1e-6)
    with pytest.raises(AdapterError, match=r"callable .*build"):
        gradfeat.load(path)


def test_encoder_file_is_found_by_its_name_until_it_moves(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(20, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(20) % 2
    encoder = save_encoder(
        ConvEncoder(1, channels=(4, 6), strides=(2, 2)).eval(),
        tmp_path / "encoder.safetensors",
        task="vae",
        preprocessing=input_scaling(images),
    )
    before = fitted(images, labels, f"gradfeat/{encoder}")
    path = before.save(tmp_path / "m.safetensors")
    np.testing.assert_allclose(gradfeat.load(path).predict_proba(images), before.predict_proba(images), rtol=1e-6)
    moved = encoder.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(AdapterError, match=r"(?s)encoder\.safetensors.*backbone=\.\.\."):
        gradfeat.load(path)
    after = gradfeat.load(path, backbone=f"gradfeat/{moved}")
    np.testing.assert_allclose(after.predict_proba(images), before.predict_proba(images), rtol=1e-6)


def test_timm_by_name_with_a_weights_file_until_it_moves(tmp_path: Path) -> None:
    try:
        timm = require("timm", extra="vision")
    except ImportError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    images = np.random.default_rng(0).integers(0, 256, size=(12, 32, 32, 3), dtype=np.uint8)
    before = fitted(images, np.arange(12) % 3, "timm/test_resnet", weights=weights, image_size=32, mode="activation")
    path = before.save(tmp_path / "m.safetensors")
    for after in (gradfeat.load(path), gradfeat.load(path, backbone="timm/test_resnet")):
        np.testing.assert_allclose(after.predict_proba(images), before.predict_proba(images), rtol=1e-6)
        assert after.backbone_.preprocessing == before.backbone_.preprocessing
    weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(AdapterError, match=r"(?s)timm/test_resnet.*weights\.safetensors.*--weights"):
        gradfeat.load(path)
    after = gradfeat.load(path, weights=tmp_path / "moved.safetensors")
    np.testing.assert_allclose(after.predict_proba(images), before.predict_proba(images), rtol=1e-6)


def test_a_loaded_model_can_be_saved_again(saved: Path, X: np.ndarray, tmp_path: Path) -> None:
    first = gradfeat.load(saved, backbone=network())
    second = gradfeat.load(first.save(tmp_path / "again.safetensors"), backbone=network())
    np.testing.assert_array_equal(second.decision_function(X), first.decision_function(X))
    assert second.probe_.penalty == first.probe_.penalty == 0.1
    assert torch.equal(second.probe_.bias, first.probe_.bias)


@pytest.mark.parametrize(
    "names",
    [
        np.array(["cat", "dog", "eel"]),
        np.array(["cat", "dog", "eel"], dtype=object),
        np.array([3, 5, 9], dtype=np.int16),
        np.array([1.0, 2.0, 4.0]),
        np.array([False, True, True]),
    ],
    ids=["str", "object", "int16", "float", "bool"],
)
def test_classes_keep_values_and_dtype(X: np.ndarray, y: np.ndarray, tmp_path: Path, names: np.ndarray) -> None:
    before = fitted(X, names[y], mode="activation")
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network())
    assert after.classes_.dtype == before.classes_.dtype
    np.testing.assert_array_equal(after.classes_, before.classes_)
    assert after.predict(X).dtype == before.predict(X).dtype
    np.testing.assert_array_equal(after.predict(X), before.predict(X))


def test_float64(X: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    before = fitted(X.astype(np.float64), y, network().double())
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network().double())
    np.testing.assert_allclose(after.decision_function(X), before.decision_function(X), rtol=1e-12, atol=1e-12)


def test_a_loaded_model_merges_as_the_fitted_one(saved: Path, X: np.ndarray, y: np.ndarray) -> None:
    before, after = fitted(X, y), gradfeat.load(saved, backbone=network())
    x = torch.from_numpy(X)
    torch.testing.assert_close(after.merge()(x), before.merge()(x))
    assert after.merged_head_.step == before.merged_head_.step
    assert after.merged_head_.error == before.merged_head_.error


def test_a_file_of_the_first_format_has_no_merged_network(saved: Path, X: np.ndarray, tmp_path: Path) -> None:
    def first(about: dict[str, Any]) -> None:
        del about["merged_head"]
        about["format_version"] = 1

    def without_head(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["head/weight"], tensors["head/bias"]

    path = rewritten(saved, tmp_path / "m.safetensors", first, without_head)
    old = gradfeat.load(path, backbone=network())
    np.testing.assert_array_equal(old.predict(X), gradfeat.load(saved, backbone=network()).predict(X))
    with pytest.raises(ConfigurationError, match="older version"):
        old.merge()


# ---- what is in the file ------------------------------------------------------------------------


def test_the_file_holds_tensors_and_json_and_nothing_else(saved: Path) -> None:
    with safe_open(str(saved), framework="np") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert set(metadata) == {"gradfeat_model"}
    about = json.loads(metadata["gradfeat_model"])
    assert names == {"omega", "w1", "b", "probe_bias", "w2/2.weight", "w2/2.bias", "head/weight", "head/bias"}
    assert about["theta2_names"] == ["2.weight", "2.bias"]
    assert about["format_version"] == adapter.FORMAT_VERSION
    assert about["backbone"]["summary"]["n_parameters"] == sum(p.numel() for p in network().parameters())


def test_read_needs_no_backbone(saved: Path) -> None:
    about, tensors = adapter.read(saved)
    assert about["task"] == "multiclass"
    assert tensors["w1"].shape == (8, 3)


# ---- writing: whole or not at all ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupt"])
def test_a_failure_in_writing_leaves_the_old_file_whole(
    X: np.ndarray, y: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    path = tmp_path / "m.safetensors"
    before = fitted(X, y, mode="activation")
    before.save(path)
    old = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(f"gradfeat.files.writing.os.{where}", fail)
    with pytest.raises(AdapterError if isinstance(error, OSError) else KeyboardInterrupt):
        fitted(X, 2 - y, mode="activation").save(path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_saving_makes_folders_and_replaces_files(X: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    model = fitted(X, y, mode="activation")
    path = model.save(tmp_path / "new" / "m.safetensors")
    assert model.save(path) == path
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_in_the_way_is_named(X: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be written"):
        fitted(X, y, mode="activation").save(tmp_path)
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(X: np.ndarray, y: np.ndarray, tmp_path: Path, value: float) -> None:
    model = fitted(X, y)
    model.w2_["2.bias"][0] = value
    with pytest.raises(AdapterError, match=r"not finite in w2/2\.bias"):
        model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_classes_that_are_other_objects_are_not_saved(X: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    model = fitted(X, y, mode="activation")
    classes = np.array([("a", 1), "b", 3.0], dtype=object)
    model.restore(replace(model.fitted_, targets=replace(model.fitted_.targets, classes=classes)))
    with pytest.raises(ConfigurationError, match="strings or numbers"):
        model.save(tmp_path / "m.safetensors")


# ---- files that cannot be used ------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no file"):
        gradfeat.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file(saved: Path, tmp_path: Path, share: float) -> None:
    content = saved.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AdapterError, match="damaged or cut off"):
        gradfeat.load(cut, backbone=network())


def test_another_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(AdapterError, match="not a model that gradfeat saved"):
        gradfeat.load(path)


def test_newer_format(saved: Path, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", lambda about: about.update(format_version=99))
    with pytest.raises(AdapterError, match=r"format 99.*upgrade"):
        gradfeat.load(path, backbone=network())


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", "{}", '{"format_version": "x"}', '{"format_version": 1}'])
def test_damaged_description(saved: Path, tmp_path: Path, raw: str) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", raw=raw)
    with pytest.raises(AdapterError, match="description is damaged"):
        gradfeat.load(path, backbone=network())


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("probe"),
        lambda about: about.update(settings={}),
        lambda about: about["settings"].pop("mode"),
        lambda about: about.update(backbone={}),
        lambda about: about.update(example={"shape": "x", "dtype": "float32"}),
        lambda about: about["example"].update(dtype="load"),
        lambda about: about["classes"].update(dtype="V8"),
        lambda about: about["classes"].update(dtype="no dtype"),
        lambda about: about["probe"].update(surplus=1),
        lambda about: about.update(task="eval"),
    ],
)
def test_damaged_entries_are_adapter_errors(saved: Path, tmp_path: Path, change: Any) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", change)
    with pytest.raises(AdapterError):
        gradfeat.load(path, backbone=network())


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (lambda values: values.pop("w2/2.bias"), r"missing or unknown: w2/2\.bias"),
        (lambda values: values.update(extra=torch.zeros(1)), "missing or unknown: extra"),
        (lambda values: values.update(b=torch.zeros(7)), r"shapes do not fit.*b \(7,\)"),
        (lambda values: values.update({"w2/2.bias": torch.zeros(9)}), r"2\.bias \(9,\) there"),
    ],
    ids=["missing", "surplus", "shape", "shape of w2"],
)
def test_tensors_that_do_not_fit(saved: Path, tmp_path: Path, tensors: Any, match: str) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", tensors=tensors)
    with pytest.raises(AdapterError, match=match):
        gradfeat.load(path, backbone=network())


# ---- another backbone ---------------------------------------------------------------------------


def test_other_weights_are_named_by_child(saved: Path) -> None:
    other = network()
    with torch.no_grad():
        other[0].weight += 1e-3  # type: ignore[operator]
    with pytest.raises(AdapterError, match=r"another backbone:\n  0: the same layers with other weights$"):
        gradfeat.load(saved, backbone=other)


def test_another_architecture_is_named(saved: Path) -> None:
    with pytest.raises(AdapterError, match=r"(?s)parameters: expected 80, found 87.*2: other layers"):
        gradfeat.load(saved, backbone=network(width=9))
    with pytest.raises(AdapterError, match=r"class: expected .*Sequential, found .*Identity"):
        gradfeat.load(saved, backbone=nn.Identity())


def test_a_module_must_be_given_again(saved: Path) -> None:
    with pytest.raises(AdapterError, match=r"a module.*gradfeat\.load\(path, backbone=\.\.\.\)"):
        gradfeat.load(saved)


def test_the_mean_of_targets_keeps_its_digits(X: np.ndarray, tmp_path: Path) -> None:
    targets = 1e8 + 1 / 3 + X[:, 0].astype(float)
    before = fitted(X, targets, cls=GradientFeatureRegressor)
    path = before.save(tmp_path / "m.safetensors")
    _, tensors = adapter.read(path)
    assert tensors["target_mean"].dtype == tensors["b"].dtype == torch.float64
    after = gradfeat.load(path, backbone=network())
    np.testing.assert_array_equal(after.predict(X), before.predict(X))
    assert np.abs(after.predict(X) - targets).mean() < np.abs(targets - targets.mean()).mean()
    assert after.merged_head_ is not None
    about, tensors = adapter.read(path)
    older = {**tensors, "b": tensors["b"] - tensors["target_mean"]}  # what version 2 had, of targets of mean zero
    del older["target_mean"]
    about = {**about, "format_version": 2}
    del about["sha256"]
    save_file(older, tmp_path / "older.safetensors", metadata={"gradfeat_model": json.dumps(about)})
    again = gradfeat.load(tmp_path / "older.safetensors", backbone=network())
    np.testing.assert_allclose(again.predict(X), before.predict(X) - tensors["target_mean"].numpy()[0], atol=1e-6)
