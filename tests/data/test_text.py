from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from gradfeat.data import Inputs, TextPreprocessing
from gradfeat.data.text import choose_lengths
from gradfeat.errors import BackboneError, ConfigurationError, DataError, GradfeatWarning


@pytest.fixture
def preprocessing(tiny_bert):
    return TextPreprocessing(tokenizer=str(tiny_bert), max_length=8)


def test_token_ids_and_mask(preprocessing):
    x = Inputs(["a good film", "bad"], preprocessing).batch([0, 1])
    assert x.dtype == torch.int64
    # [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then good, bad, film, a
    assert x[:, 0].tolist() == [[2, 7, 4, 6, 3], [2, 5, 3, 0, 0]]
    assert x[:, 1].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


@pytest.mark.parametrize("kind", [tuple, np.array, lambda X: np.array(X, dtype=object)])
def test_texts_in_other_containers(preprocessing, kind):
    X = ["a good film", "bad"]
    assert torch.equal(Inputs(kind(X), preprocessing).batch([1, 0]), Inputs(X, preprocessing).batch([1, 0]))


def test_length_is_the_longest_texts_and_stays(preprocessing):
    inputs = Inputs(["a good film", "bad"], preprocessing)
    assert inputs.shape == (2, 2, 5)
    fixed = inputs.text_preprocessing
    assert fixed.length == 5
    assert Inputs(["it"], fixed).shape == (1, 2, 5)
    with pytest.warns(GradfeatWarning, match="longest text that the model was fitted to"):
        cut = Inputs(["a very very good film"], fixed).batch([0])
    assert cut[0, 0].tolist() == [2, 7, 9, 9, 3]  # cut before the closing token


def test_long_texts_are_counted_in_one_notice(preprocessing):
    texts = ["bad", "very " * 10, "a " * 7]
    with pytest.warns(GradfeatWarning, match=r"2 of 3 texts are cut after 8 tokens \(the longest has 12\)") as seen:
        x = Inputs(texts, preprocessing).batch([0, 1, 2])
    assert len(seen) == 1
    assert x.shape == (3, 2, 8)
    assert x[:, 1].sum(1).tolist() == [3, 8, 8]


def test_texts_are_tokenized_once(preprocessing, monkeypatch):
    inputs = Inputs(["a good film", "bad"], preprocessing)
    monkeypatch.setattr(TextPreprocessing, "tokenize", None)
    assert inputs.subset([1]).batch([0])[0, 0].tolist() == [2, 5, 3, 0, 0]
    assert not inputs.random


def test_lowercase(tiny_bert):
    texts, known = ["A GOOD film"], TextPreprocessing(tokenizer=str(tiny_bert), lowercase=True)
    assert Inputs(texts, known).batch([0])[0, 0].tolist() == [2, 7, 4, 6, 3]
    assert Inputs(texts, TextPreprocessing(tokenizer=str(tiny_bert))).batch([0])[0, 0].tolist() == [2, 1, 1, 6, 3]


def test_tokens_are_taken_as_they_are(preprocessing):
    tokens = np.array([[[2, 4, 3], [1, 1, 1]]] * 2)
    inputs = Inputs(tokens, preprocessing)
    assert torch.equal(inputs.batch([0, 1]), torch.from_numpy(tokens))
    assert inputs.text_preprocessing.length == 3


def test_empty_text(preprocessing, tmp_path, save_tokenizer):
    assert Inputs(["", "bad"], preprocessing).batch([0])[0].tolist() == [[2, 3, 0], [1, 1, 0]]
    save_tokenizer(tmp_path, special=False)
    bare = TextPreprocessing(tokenizer=str(tmp_path))
    assert Inputs(["bad"], bare).batch([0])[0].tolist() == [[5], [1]]
    with pytest.raises(DataError, match=r"text 1 \('  '\) has no tokens"):
        Inputs(["bad", "  "], bare)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (["good", None], DataError, r"X\[1\] is NoneType 'None', not a string"),
        (["good", 3.5], DataError, r"X\[1\] is float '3.5'"),
        ("good", ConfigurationError, "a single text"),
        ([], DataError, "no samples"),
        (np.zeros((2, 3)), ConfigurationError, r"list of strings; got float64 of shape \(2, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), ConfigurationError, "reads texts"),
    ],
)
def test_what_are_no_texts(preprocessing, X, error, message):
    with pytest.raises(error, match=message):
        Inputs(X, preprocessing)


def test_texts_without_a_tokenizer():
    with pytest.raises(ConfigurationError, match="Texts need a backbone with a tokenizer"):
        Inputs(["a good film", "bad"])


def test_round_trip(preprocessing):
    fixed = Inputs(["bad"], preprocessing).text_preprocessing
    assert TextPreprocessing.from_dict(json.loads(json.dumps(fixed.to_dict()))) == fixed
    assert pickle.loads(pickle.dumps(fixed)) == fixed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "lacks the tokenizer"),
        ({"tokenizer": "x", "maxlength": 3}, "Did you mean max_length"),
        ({"tokenizer": "x", "max_length": 2.5}, "whole number from 1, not 2.5"),
        ({"tokenizer": "x", "length": 9, "limit": 8}, "takes 8 tokens at most; length is 9"),
        ({"tokenizer": ""}, "must be a folder or an id"),
        ({"tokenizer": "x", "length": 4, "lengths": [3, 2, 4]}, "lengths must ascend to length, 4"),
        ({"tokenizer": "x", "length": 4, "lengths": [2, 3]}, "lengths must ascend to length, 4"),
        ({"tokenizer": "x", "lengths": [2.5]}, "lengths must ascend"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        TextPreprocessing.from_dict({"max_length": 4, **fields})


def test_folder_without_words(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match="tokenizer"):
        Inputs(["bad"], TextPreprocessing(tokenizer=str(tmp_path)))


def test_importing_gradfeat_imports_no_transformers():
    code = "import sys, gradfeat.estimators.classes, gradfeat.cli.app; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fewest_tokens(lengths, most):
    values = sorted(set(lengths))
    choices = ((*some, values[-1]) for k in range(most) for some in itertools.combinations(values[:-1], k))
    return {
        k: min(sum(min(top for top in chosen if top >= own) for own in lengths) for chosen in group)
        for k, group in itertools.groupby(sorted(choices, key=len), key=len)
    }


def test_lengths_leave_the_fewest_tokens():
    lengths = np.random.default_rng(0).geometric(0.2, 60).tolist()
    chosen = choose_lengths(1000 * lengths)
    best = fewest_tokens(lengths, 4)
    assert sum(min(top for top in chosen if top >= own) for own in lengths) == best[len(chosen)]
    tokens = [best[k] for k in sorted(best)]
    worth = [1000 * (a - b) >= max(20_000, 100 * a) for a, b in itertools.pairwise(tokens)]
    assert len(chosen) == 1 + (worth.index(False) if False in worth else len(worth))


def test_few_texts_have_one_length(preprocessing):
    assert choose_lengths([3] * 1000 + [12]) == (12,)  # 9,000 tokens saved
    assert choose_lengths([3] * 3000 + [12]) == (3, 12)
    assert Inputs(["bad", "a good film"], preprocessing).text_preprocessing.lengths is None


def test_lengths_of_a_fit_stay(preprocessing):
    fixed = Inputs(["bad"] * 6000 + ["a good film the plot"], preprocessing).text_preprocessing
    assert (fixed.length, fixed.lengths) == (7, (3, 7))
    again = Inputs(["a film"], fixed)
    assert again.text_preprocessing == fixed
    assert TextPreprocessing.from_dict(json.loads(json.dumps(fixed.to_dict()))) == fixed
    assert Inputs(again.batch([0]), fixed).text_preprocessing == fixed  # tokens as they are


def test_half_a_character_is_replaced_and_said(preprocessing):
    with pytest.warns(GradfeatWarning, match=r"1 texts hold half a character .*U\+FFFD: text 1"):
        found = Inputs(["bad", "\ud800 bad"], preprocessing).batch([0, 1])
    assert found[1, 0].tolist() == [2, 1, 5, 3]  # [UNK], then bad
