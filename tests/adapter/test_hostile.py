"""Files of fitted models that are damaged, or made to do harm: an `AdapterError`, in a moment and a little memory."""

from __future__ import annotations

import contextlib
import json
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rewriting import network, rewritten
from safetensors import safe_open

import gradfeat
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import AdapterError, GradfeatError
from gradfeat.estimators.adapter_file import KEY

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.array(["ant", "bee", "cat"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0)]
FAMILY = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = GradientFeatureClassifier(network(), random_state=0).fit(X, Y)
    return model.save(tmp_path_factory.mktemp("hostile") / "model.safetensors")


@pytest.fixture(scope="module")
def expected(saved: Path) -> np.ndarray:
    return gradfeat.load(saved, backbone=network()).predict_proba(X)


def description(saved: Path) -> dict[str, Any]:
    with safe_open(str(saved), framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values of a tree."""
    if path:
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


# ---- by accident ------------------------------------------------------------------------------------------------


@FAMILY
@given(data=st.data())
def test_bytes_that_are_changed_added_or_lost_are_noticed_or_change_nothing(
    saved: Path, expected: np.ndarray, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(saved.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "insert", "delete", "cut"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=20))
        case "delete":
            del content[place : place + data.draw(st.integers(1, 20))]
        case "cut":
            del content[place:]
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    try:
        model = gradfeat.load(path, backbone=network())
    except AdapterError:
        return
    np.testing.assert_array_equal(model.predict_proba(X), expected)


# ---- on purpose: with a right checksum ------------------------------------------------------------------------------

STRANGE = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        2,
        10**12,
        10**400,
        -(2**63),
        0.5,
        math.nan,
        math.inf,
        1e308,
        "",
        "x",
        "../../etc/passwd",
        "\x1b[2J\0",
        "\ud800",
        "x" * 100_000,
        [],
        [[]],
        [0],
        [10**12, 10**12],
        ["x"] * 1000,
        {},
        {"a": {}},
        "auto",
        "gradient",
        "regression",
        "<U2000000000",
    ]
)


@settings(FAMILY, max_examples=60)
@given(data=st.data())
def test_no_value_of_the_description_does_harm(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    about = description(saved)
    where = data.draw(st.sampled_from(list(places(about))))
    value = data.draw(STRANGE)

    def change(about: dict[str, Any]) -> None:
        if data.draw(st.booleans(), label="leave out") and isinstance(where[-1], str):
            parent = about
            for key in where[:-1]:
                parent = parent[key]
            del parent[where[-1]]
        else:
            put(about, where, value)

    path = rewritten(saved, tmp_path / "m.safetensors", change)
    try:
        model = gradfeat.load(path, backbone=network())
    except AdapterError as error:
        assert len(str(error)) < 3000  # noqa: PT017  (some of them are refused, and others do no harm)
        return
    with contextlib.suppress(GradfeatError):  # e.g. of columns with other names
        assert np.isfinite(model.predict_proba(X)).all()
    str(model.how_), str(model.choice_), str(model.solution_)


def _raise(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda about: put(about, tuple(where.split(".")), value)


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "shape": _raise("example.shape", [3, 10**12]),
    "negative shape": _raise("example.shape", [3, -3]),
    "another shape": _raise("example.shape", [3, 100_000_000]),
    "X_shape": _raise("backbone.built_from.X_shape", [10, 10**9]),
    "batch size 0": _raise("settings.batch_size", 0),
    "batch size": _raise("settings.batch_size", 10**12),
    "class dtype": _raise("classes.dtype", "<U2000000000"),
    "objects": _raise("classes.dtype", "V8"),
    "one class": _raise("classes.values", ["ant"]),
    "classes twice": _raise("classes.values", ["ant", "bee", "ant"]),
    "cut classes": _raise("classes.values", ["ant", "bee", "cats and dogs"]),
    "classes of another type": _raise("classes.values", ["ant", "bee", 3]),
    "no classes": _raise("classes", None),
    "regression": _raise("task", "regression"),
    "multilabel": _raise("task", "multilabel"),
    "activation": _raise("settings.mode", "activation"),
    "gradient": _raise("settings.mode", "gradient"),
    "finetune": _raise("settings.mode", "finetune"),
    "loss": _raise("settings.loss", "squared"),
    "unknown loss": _raise("settings.loss", "x" * 10**6),
    "precision": _raise("settings.precision", "float8"),
    "parametrization": _raise("settings.parametrization", "ntk_fan"),
    "another θ₂": _raise("settings.theta2", "0"),
    "no θ₂": _raise("settings.theta2", "nothing"),
    "θ₂ twice": _raise("theta2_names", ["2.weight", "2.weight"]),
    "seed": _raise("backbone.built_from.random_state", -1),
    "NaN": _raise("probe.penalty", math.nan),
    "NaN of the fit": _raise("fit.choice_.lambda1", math.nan),
    "step": _raise("merged_head.step", 1e9),
    "names of classes": _raise("fitted.class_names_", ["ant"]),
    "schedule": _raise("fit.selection_", {"best": {}, "scores": []}),
    "preprocessing": _raise("preprocessing", {"size": [0, 0], "mean": [0.5], "std": [0.5], "channels": 1}),
    "large images": _raise("preprocessing", {"size": [10**9, 1], "mean": [0.5], "std": [0.5], "channels": 1}),
    "mean": _raise("preprocessing", {"size": [4, 4], "mean": [0.5], "std": [0.5] * 3}),
    "std": _raise("preprocessing", {"size": [4, 4], "mean": [0.5] * 3, "std": [0.5, 0, math.nan]}),
    "crop": _raise("preprocessing", {"size": [4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1e-9}),
    "tokenizer": _raise("preprocessing", {"tokenizer": "https://host/tokenizer"}),
    "lengths": _raise("preprocessing", {"tokenizer": "x", "length": 10**9, "lengths": [1, 10**9]}),
    "long name": _raise("backbone.name", "timm/" + "x" * 10**7),
    "wide network": _raise("backbone.name", "timm/resnet18?in_chans=1000000"),
    "deep network": _raise("backbone.name", "gradfeat/resnet60000002"),
    "many fields": lambda about: about.update({str(i): [] for i in range(200_000)}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_description_is_refused_in_a_moment(saved: Path, tmp_path: Path, name: str) -> None:
    def change(about: dict[str, Any]) -> None:
        if name.startswith(("wide", "deep")):
            about["backbone"]["weights"] = "random"
        FORGED[name](about)

    path = rewritten(saved, tmp_path / "m.safetensors", change)
    backbone = None if "network" in name or name == "long name" else network()
    tracemalloc.start()
    begun = time.perf_counter()
    try:
        with pytest.raises(AdapterError) as caught:
            gradfeat.load(path, backbone=backbone)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 3000
    assert time.perf_counter() - begun < 20
    assert peak < 64e6 + 3 * path.stat().st_size


@pytest.mark.parametrize(
    "raw", ["[" * 100_000, '{"format_version": ' + "9" * 10_000 + "}", '{"a":' * 100_000, '{"format_version": NaN}']
)
def test_json_that_is_no_description(saved: Path, tmp_path: Path, raw: str) -> None:
    with pytest.raises(AdapterError, match="description is damaged"):
        gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", raw=raw), backbone=network())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda values: values.update(w1=values["w1"].to(torch.int64)), "w1 I64"),
        (lambda values: values.update(b=values["b"] > 0), "b BOOL"),
        (lambda values: values.update(omega=values["omega"].to(torch.complex64)), "omega C64"),
        (lambda values: values.update({"w2/2.bias": values["w2/2.bias"].to(torch.float8_e4m3fn)}), r"2\.bias F8"),
        (lambda values: values["omega"].fill_(math.nan), "not finite in 'omega'"),
        (lambda values: values["head/bias"].fill_(math.inf), "not finite in 'head/bias'"),
        (lambda values: values["probe_bias"].fill_(math.nan), "not finite in 'probe_bias'"),
        (lambda values: values.update(probe_omega=torch.full((8, 3), math.nan)), "not finite in 'probe_omega'"),
        (lambda values: values.update(probe_omega=torch.zeros(3, 8)), r"do not fit.*probe_omega \(3, 8\)"),
        (lambda values: values.update({name: torch.zeros(0, 3) for name in ("omega", "w1", "head/weight")}), "omega"),
        (lambda values: values.update({str(i): torch.zeros(0) for i in range(5000)}), r"and \d+ more"),
    ],
    ids=[
        "int",
        "bool",
        "complex",
        "fp8",
        "nan",
        "inf",
        "nan in the probe",
        "nan in ω",
        "shape of ω",
        "no features",
        "many",
    ],
)
def test_tensors_that_are_no_weights(saved: Path, tmp_path: Path, change: Any, match: str) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", tensors=change)
    with pytest.raises(AdapterError, match=match) as caught:
        gradfeat.load(path, backbone=network())
    assert len(str(caught.value)) < 3000


def test_weights_of_other_features_than_the_network_has(saved: Path, tmp_path: Path) -> None:
    def wider(values: dict[str, torch.Tensor]) -> None:
        for name in ("omega", "w1", "head/weight", "probe_omega"):
            values[name] = torch.zeros(9, 3)

    path = rewritten(saved, tmp_path / "m.safetensors", tensors=wider)
    with pytest.raises(AdapterError, match="9 features; this backbone gives 8"):
        gradfeat.load(path, backbone=network())


def test_an_intercept_in_double_precision_is_read(saved: Path, expected: np.ndarray, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", tensors=lambda values: values.update(b=values["b"].double()))
    np.testing.assert_allclose(gradfeat.load(path, backbone=network()).predict_proba(X), expected, rtol=1e-6)


def test_a_header_that_lies_about_its_length(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    path = tmp_path / "m.safetensors"
    for length in (0, 1, 2**24 + 1, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(AdapterError):
            gradfeat.load(path, backbone=network())


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little"))
        file.truncate(100_000_100)
    with pytest.raises(AdapterError, match="are enough"):
        gradfeat.load(path)


# ---- older files ----------------------------------------------------------------------------------------------------


def as_of(version: int) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        for name in ("fit", "loss"):
            del about[name]
        about["format_version"] = version

    return change


def test_a_file_of_the_second_format_knows_nothing_of_its_fit(
    saved: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    old = gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", as_of(2)), backbone=network())
    np.testing.assert_array_equal(old.predict_proba(X), expected)
    assert (old.rounds_, old.choice_, old.solution_, old.selection_, old.history_) == (None,) * 5
    assert (old.seconds_, old.depths_, old.n_iter_) == ({}, [], None)
    again = gradfeat.load(old.save(tmp_path / "again.safetensors"), backbone=network())
    assert (again.choice_, again.seconds_, again.how_) == (None, {}, old.how_)


def test_a_file_that_says_nothing_of_its_solver_is_read(saved: Path, expected: np.ndarray, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", lambda about: about["fitted"].pop("how_"))
    model = gradfeat.load(path, backbone=network())
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    assert model.how_ == {}


def test_numbers_that_are_not_finite_in_the_path_of_an_older_file_are_read(saved: Path, tmp_path: Path) -> None:
    def change(about: dict[str, Any]) -> None:
        as_of(2)(about)
        about["probe"]["path"] = [[0.1, math.inf, math.nan]]

    old = gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", change), backbone=network())
    assert old.probe_.path[0][:2] == (0.1, math.inf)
    assert math.isnan(old.probe_.path[0][2])
    again = gradfeat.load(old.save(tmp_path / "again.safetensors"), backbone=network())
    assert again.probe_.path[0][1] == math.inf


# ---- what the fit said ------------------------------------------------------------------------------------------

SAID = (
    "rounds_",
    "choice_",
    "solution_",
    "selection_",
    "history_",
    "seconds_",
    "depths_",
    "modules_",
    "n_iter_",
    "how_",
)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"mode": "activation"},
        {"mode": "gradient", "solver": "dual"},
        {"mode": "finetune", "epochs": 2},
        {"rounds": 60},
        {"theta2": "search"},
        {"penalty": (0.1, 0.2), "solver": "adam", "epochs": 2},
    ],
    ids=["full", "activation", "dual", "finetune", "rounds", "search", "adam"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_loaded_model_knows_how_it_was_fitted(tmp_path: Path, arguments: dict[str, Any]) -> None:
    labels = ((X[:, 0] > 0) + (X[:, 1] * X[:, 2] > 0)).astype(int)
    before = GradientFeatureClassifier(network(), random_state=0, **arguments).fit(X[:24], labels[:24])
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network())
    for name in SAID:
        assert getattr(after, name) == getattr(before, name), name
        assert str(getattr(after, name)) == str(getattr(before, name)), name
    assert after.probe_.path == before.probe_.path
    assert (before.rounds_ is not None) == ("rounds" in arguments)
    if before.rounds_ is not None:
        assert torch.equal(after.rounds_.point.omega, before.omega_)
    copied = gradfeat.load(after.save(tmp_path / "again.safetensors"), backbone=network())
    assert all(getattr(copied, name) == getattr(before, name) for name in SAID)
    assert (tmp_path / "again.safetensors").stat().st_size < 100_000


def test_a_loaded_regressor_knows_how_it_was_fitted(tmp_path: Path) -> None:
    before = GradientFeatureRegressor(network(), random_state=0).fit(X, X[:, :2] ** 2)
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=network())
    assert all(getattr(after, name) == getattr(before, name) for name in SAID)


# ---- names that a file gives -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "timm/" + "x" * 4000,
        "/" + "x" * 3000,
        "gradfeat/" + "x" * 3000,
        "gradfeat//dev/zero",
        "gradfeat/resnet7",
        "gradfeat/resnet20?in_channels=-1",
        "gradfeat/resnet20?in_channels=wide",
        "hf//proc/self",
        "~nobody/encoder",
        "unknown/resnet18",
        "timm/resnet18?num_classes=5",
    ],
    ids=lambda name: name[:30],
)
@pytest.mark.parametrize("weights", [None, "random", "/dev/zero", "x" * 4000])
def test_names_that_are_no_networks(saved: Path, tmp_path: Path, name: str, weights: str | None) -> None:
    path = rewritten(
        saved, tmp_path / "m.safetensors", lambda about: about["backbone"].update(name=name, weights=weights)
    )
    with pytest.raises(AdapterError):
        gradfeat.load(path)
