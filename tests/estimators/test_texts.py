"""From texts to predictions, with a tiny random BERT."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, load
from gradfeat.backbones import resolve
from gradfeat.cli import main
from gradfeat.data import Inputs
from gradfeat.errors import AdapterError, ConfigurationError, DataError, GradfeatWarning
from gradfeat.linearization.lengths import LengthGroups


def draw(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of different lengths; those with more "good" than "bad" are of the class "yes"."""
    rng = np.random.default_rng(seed)
    words = ("a", "film", "the", "plot", "was", "it")
    X, y = [], []
    for i in range(n):
        text = [*rng.choice(words, rng.integers(1, 7)), "good" if i % 2 else "bad"]
        rng.shuffle(text)
        X.append(" ".join(text))
        y.append("yes" if i % 2 else "no")
    return X, y


def features(folder: Path, X: list[str]) -> np.ndarray:
    backbone = resolve(f"hf/{folder}")
    with torch.no_grad():
        return backbone.network.double()(Inputs(X, backbone.preprocessing).batch(range(len(X)))).numpy()


def run(*arguments: object) -> int:
    """Run a command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def fitted(tiny_bert):
    X, y = draw(40, 0)
    return GradientFeatureClassifier(f"hf/{tiny_bert}", random_state=0, penalty=1e-3).fit(X, y)


def test_full_model_fits_what_the_probe_cannot(fitted):
    X, y = draw(40, 0)
    probability = fitted.predict_proba(X)[np.arange(40), [int(label == "yes") for label in y]]
    activation = GradientFeatureClassifier(fitted.backbone, mode="activation", penalty=1e-3).fit(X, y)
    probe = activation.predict_proba(X)[np.arange(40), [int(label == "yes") for label in y]]
    assert np.log(probability).mean() > np.log(probe).mean()
    assert fitted.score(X, y) == 1.0
    assert all(name.startswith("transformer.encoder.layer.1.") for name in fitted.w2_)


def test_the_activation_model_is_logistic_regression_on_features(tiny_bert):
    X, y = draw(40, 0)
    probe = GradientFeatureClassifier(f"hf/{tiny_bert}", mode="activation", penalty=0.01, precision="float64").fit(X, y)
    f = features(tiny_bert, X)
    # softmax with two columns, each with penalty 0.01, is one column of their difference with half of it
    reference = LogisticRegression(C=1 / (40 * 0.005), tol=1e-10, max_iter=10_000).fit(f, y)
    np.testing.assert_allclose(probe.predict_proba(X), reference.predict_proba(f), atol=1e-5)


def test_saved_and_loaded(fitted, tmp_path):
    X, _ = draw(7, 2)
    path = fitted.save(tmp_path / "model.safetensors")
    again = load(path)
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert again.backbone_.preprocessing == fitted.backbone_.preprocessing
    assert again.predict(["it was good"]).shape == (1,)  # a shorter text than any before


def test_loaded_with_the_backbone_in_another_folder(fitted, tiny_bert, tmp_path):
    X, _ = draw(7, 2)
    path = fitted.save(tmp_path / "model.safetensors")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_bert, elsewhere)
    again = load(path, backbone=f"hf/{elsewhere}")
    assert again.backbone_.preprocessing.tokenizer == str(elsewhere)
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    with pytest.raises(AdapterError, match="another backbone"):
        load(path, backbone=f"hf/{elsewhere}?pooling=cls")


def test_loaded_without_the_folder(tiny_bert, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    X, y = draw(20, 0)
    path = GradientFeatureClassifier(f"hf/{folder}", mode="activation").fit(X, y).save(tmp_path / "model.safetensors")
    shutil.rmtree(folder)
    with pytest.raises(AdapterError, match="--backbone"):
        load(path)


def test_pickled(fitted):
    X, _ = draw(5, 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))


def test_a_module_with_a_tokenizer_beside_it(tiny_bert, tmp_path):
    X, y = draw(20, 0)
    network = resolve(f"hf/{tiny_bert}").network
    given: dict[str, Any] = {"tokenizer": str(tiny_bert), "max_length": 10}
    model = GradientFeatureClassifier(network, mode="activation", penalty=0.01, preprocessing=given).fit(X, y)
    named = GradientFeatureClassifier(f"hf/{tiny_bert}", mode="activation", penalty=0.01).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), named.predict_proba(X), atol=1e-6)
    again = load(model.save(tmp_path / "model.safetensors"), backbone=network)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_merged_network_takes_tokens(tiny_bert):
    X, y = draw(20, 0)
    model = GradientFeatureClassifier(f"hf/{tiny_bert}", mode="activation", penalty=0.01).fit(X, y)
    assert model.merge(X, y).report.agreement == 1.0


def test_longer_texts_than_in_the_fit_are_cut(fitted):
    length = fitted.backbone_.preprocessing.length
    with pytest.warns(GradfeatWarning, match="1 of 2 texts are cut"):
        found = fitted.predict_proba(["good", "bad " + "a " * length])
    np.testing.assert_allclose(found[1:], fitted.predict_proba(["bad " + "a " * (length - 3)]), atol=1e-5)


def test_four_models_share_texts(tiny_bert):
    X, y = draw(24, 0)
    X_test, y_test = draw(10, 1)
    table = compare(f"hf/{tiny_bert}", X, y, X_test, y_test, penalty=1e-2, theta2="transformer.encoder.layer.1.output")
    assert [row.mode for row in table.rows] == ["activation", "gradient", "full", "finetune"]


def test_scikit_learn_divides_texts(tiny_bert):
    X, y = draw(20, 0)
    model = GradientFeatureClassifier(f"hf/{tiny_bert}", mode="activation", penalty=0.01)
    assert cross_val_score(model, np.array(X, dtype=object), y, cv=2).shape == (2,)


def test_a_column_of_a_table(fitted):
    class Column:  # as pandas and polars have them
        ndim, shape = 1, (5,)

        def to_numpy(self):
            return np.array(draw(5, 3)[0], dtype=object)

    np.testing.assert_array_equal(fitted.predict_proba(Column()), fitted.predict_proba(draw(5, 3)[0]))


def test_regression(tiny_bert):
    X, y = draw(20, 0)
    targets = np.array([1.5 if label == "yes" else -1.5 for label in y])
    model = GradientFeatureRegressor(f"hf/{tiny_bert}", mode="activation", penalty=0.1, precision="float64")
    found = model.fit(X, targets).predict(X)
    f = features(tiny_bert, X)
    np.testing.assert_allclose(found, Ridge(alpha=20 * 0.1).fit(f, targets).predict(f), atol=1e-6)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_precisions(tiny_bert, precision, fitted):
    X, y = draw(16, 0)
    model = GradientFeatureClassifier(f"hf/{tiny_bert}", mode="full", penalty=0.1, precision=precision).fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (["good", None, "bad", "a"], DataError, r"X\[1\] is NoneType"),
        ([float("nan"), "good", "bad", "a"], DataError, r"X\[0\] is float 'nan'"),
        (np.zeros((4, 3)), ConfigurationError, "reads texts"),
    ],
)
def test_what_are_no_texts(tiny_bert, X, error, message):
    with pytest.raises(error, match=message):
        GradientFeatureClassifier(f"hf/{tiny_bert}").fit(X, [0, 1, 0, 1])


def test_mirror_images_of_texts(tiny_bert):
    with pytest.raises(DataError, match="mirror images need images"):
        GradientFeatureClassifier(f"hf/{tiny_bert}", augment="mirror").fit(*draw(10, 0))


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path):
    for part, n in (("train", 24), ("test", 10)):
        rows = [json.dumps({"words": text, "kind": label}) for text, label in zip(*draw(n, n), strict=True)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_commands(tables, tiny_bert, capsys):
    columns = ("--text-column", "words", "--label-column", "kind")
    backbone, model, train = f"hf/{tiny_bert}", tables / "model.safetensors", tables / "train.jsonl"
    options = ("--mode", "activation", "--max-length", "9", "-o", model)
    assert run("fit", train, "-b", backbone, *columns, *options) == 0
    assert "train (all): 24 texts, 2 classes" in capsys.readouterr().out
    assert load(model).backbone_.preprocessing.max_length == 9
    assert run("evaluate", model, tables, *columns, "--json") == 0
    assert '"n": 10' in capsys.readouterr().out
    (tables / "new.txt").write_text("it was good\nbad, bad\n")
    assert run("predict", model, tables / "new.txt") == 0
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows[0] == ["sample", "prediction", "no", "yes"]
    assert [row[0] for row in rows[1:]] == ["it was good", "bad, bad"]
    assert run("predict", model, tables, "--text-column", "words") == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert run("compare", tables, "-b", backbone, *columns, "--modes", "activation", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_test"] == 10
    assert run("inspect", backbone, "--most", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["auto"] == "transformer.encoder.layer.1"


def test_commands_name_what_is_wrong(tables, tiny_bert, capsys):
    train, text = tables / "train.jsonl", ("--text-column", "words")
    for arguments, message in (
        (("fit", train, "-b", f"hf/{tiny_bert}"), "no text column"),
        (("fit", train, "-b", f"hf/{tiny_bert}", *text), "no label column"),
        (("fit", train, "-b", "timm/resnet18", *text, "--label-column", "kind", "--weights", "random"), "Texts need"),
        (("inspect", f"hf/{tables}"), "The folder has test.jsonl, train.jsonl"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"penalty": (1e-3, 1e-3)}, {"solver": "adam", "epochs": 2}])
def test_groups_of_length_change_nothing_but_time(tiny_bert, options, tmp_path):
    X, y = draw(40, 0)
    found = []
    for lengths in (None, (5, 7, 9)):
        model = GradientFeatureClassifier(
            f"hf/{tiny_bert}",
            preprocessing={"length": 9, "lengths": lengths},
            random_state=0,
            precision="float64",
            **options,
        ).fit(X, y)
        found.append(model.predict_proba(X))
    assert isinstance(model.linearization_, LengthGroups)
    # what padding changes is the preconditioner, and with it the way of a solver that stops at a tolerance
    np.testing.assert_allclose(found[1], found[0], atol=1e-9 if "epochs" in options else 2e-3)
    again = load(model.save(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(again.predict_proba(X), found[1])
    with torch.no_grad():
        merged = model.merge()(Inputs(X, model.backbone_.preprocessing).batch(range(40)))
    assert merged.shape[0] == 40
    assert bool(torch.isfinite(merged).all())
