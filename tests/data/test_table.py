from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from gradfeat.data import load_dataset
from gradfeat.data.table import load_texts
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning


@pytest.fixture
def write(tmp_path):
    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.filterwarnings("ignore:.*have an empty text")
def test_csv(write):
    data = load_dataset(write('text,label\n"good, very",yes\n"two\nlines, ""quoted""",no\n\n"",yes\n'))
    assert data.X == ["good, very", 'two\nlines, "quoted"', ""]
    assert data.y.tolist() == ["yes", "no", "yes"]
    assert data.classes == ["no", "yes"]
    assert (data.task, data.name, data.split) == ("multiclass", "data", "all")
    assert data.describe() == "data (all): 3 texts, 2 classes"
    assert data.subset([2, 0]).X == ["", "good, very"]


@pytest.mark.filterwarnings("ignore:.*have an empty text")
def test_every_field_survives_the_csv_module(tmp_path):
    texts = ['a "b"', "c,d", "e\nf", "g\r\nh", " i ", "ü\tj", ""]
    with (tmp_path / "data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, i % 2) for i, text in enumerate(texts))])
    data = load_dataset(tmp_path / "data.csv")
    assert [*data.X] == texts


def test_tsv_and_formats(write):
    content = "sentence\tlabel\nit's good, very\t1\nbad\t0\n"
    assert load_dataset(write(content, "data.tsv")).X == ["it's good, very", "bad"]
    assert load_dataset(write(content, "data.txt"), format="tsv").y.tolist() == [1, 0]


@pytest.mark.filterwarnings("ignore:.*have an empty text")
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_lines(write, name):
    rows = [{"text": "a\u2028b", "label": "x", "id": 1}, {"label": "y", "text": "", "id": 2}]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    data = load_dataset(write(content, name))
    assert data.X == ["a\u2028b", ""]
    assert data.y.tolist() == ["x", "y"]
    assert load_dataset(write(json.dumps(rows), name)).X == data.X  # one list


def test_encodings(write):
    content = "text,label\ngrün,a\nrot,b\n"
    for encoding, given in (("utf-8-sig", None), ("utf-8", None), ("latin-1", "latin-1"), ("utf-16", "utf-16")):
        assert load_dataset(write(content.encode(encoding)), encoding=given).X == ["grün", "rot"]
    with pytest.raises(DataError, match=r"data\.csv, line 2: not UTF-8 .*encoding="):
        load_dataset(write(content.encode("latin-1")))
    with pytest.raises(DataError, match="no encoding 'utf-88'"):
        load_dataset(write(content), encoding="utf-88")


@pytest.mark.parametrize(
    ("labels", "expected", "classes", "task"),
    [
        (["10", "9", "-1"], [10, 9, -1], ["-1", "9", "10"], "multiclass"),
        (["2.0", "1", "3"], [2, 1, 3], ["1", "2", "3"], "multiclass"),
        (["0.5", "1", "1e-3"], [0.5, 1.0, 0.001], [], "regression"),
        (["b", "a", " b "], ["b", "a", "b"], ["a", "b"], "multiclass"),
        (["1", "one", "2"], ["1", "one", "2"], ["1", "2", "one"], "multiclass"),
        (["nan", "na", "nan"], ["nan", "na", "nan"], ["na", "nan"], "multiclass"),
    ],
)
def test_labels(write, labels, expected, classes, task):
    data = load_dataset(write("text,label\n" + "".join(f"t,{label}\n" for label in labels)))
    assert data.y.tolist() == expected
    assert data.y.dtype.kind == np.array(expected).dtype.kind
    assert data.classes == classes
    assert data.task == task
    assert ("regression" in data.note) == (task == "regression")


def test_json_labels(write):
    rows = [{"text": "t", "label": label} for label in (True, "no", 3)]
    assert load_dataset(write("\n".join(map(json.dumps, rows)), "d.jsonl")).y.tolist() == ["true", "no", "3"]
    numbers = "\n".join(json.dumps({"text": "t", "label": label}) for label in (1.5, 2))
    assert load_dataset(write(numbers, "d.jsonl")).y.tolist() == [1.5, 2.0]


def test_columns(write):
    path = write("id,Question,answer,kind\n1,why?,because,x\n2,how?,so,y\n")
    with pytest.raises(DataError, match=r"no label column with a usual name .*Its columns: id, Question, answer, kind"):
        load_dataset(path)
    data = load_dataset(path, label_column="kind")
    assert data.X == ["why?", "how?"]
    assert load_dataset(path, text_column="answer", label_column="kind").X == ["because", "so"]
    both = write("title,text,label\nt,x,1\nt,y,2\n")
    assert load_dataset(both).X == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "name", "options", "message"),
    [
        ("text,label\na,1\nb\n", "d.csv", {}, r"d\.csv, line 3: 1 fields, where the first line names 2 columns"),
        ("text,label\na, b,1\n", "d.csv", {}, "line 2: 3 fields"),
        ('text,label\n"a\nb",1\nc\n', "d.csv", {}, "line 4: 1 fields"),
        ('text,label\na,1\n"open,2\n', "d.csv", {}, "from line 3: not CSV"),
        ("text,label\na,1\nb, \n", "d.csv", {}, r"line 3: the label in 'label' is empty"),
        ("text,label\na,1.5\nb,nan\n", "d.csv", {}, "line 3: 'label' is 'nan', where the other labels are numbers"),
        ("text,label\n", "d.csv", {}, "no rows below its head"),
        ("", "d.csv", {}, "no rows"),
        ("text,text\na,b\n", "d.csv", {}, "a column twice"),
        ("words,label\na,1\n", "d.csv", {}, "no text column .*--text-column"),
        ("sentence,question,label\na,b,1\n", "d.csv", {}, "may be sentence or question"),
        ("text,label\na,1\n", "d.csv", {"label_column": "lable"}, "Did you mean label"),
        ("text,label\na,1\n", "d.csv", {"label_column": "text"}, "both read from the column 'text'"),
        ('{"text": "a", "label": 1}\n{"text": "a"}\n', "d.jsonl", {}, "line 2: the label in 'label' is empty"),
        ('{"text": "a", "label": 1}\n{"text"\n', "d.jsonl", {}, "line 2: no JSON object"),
        ('{"text": "a", "label": null}\n', "d.jsonl", {}, "line 1: the label in 'label' is empty"),
        ('{"text": "a", "label": {"is": 1}}\n', "d.jsonl", {}, "must be one label"),
        ('{"text": 1, "label": 1}\n', "d.jsonl", {}, "line 1: 'text' must be a text, not 1"),
        ("[1]", "d.json", {}, "row 1: expected an object"),
        ("[1", "d.json", {}, "no JSON list"),
    ],
)
def test_bad_tables(write, content, name, options, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write(content, name), **options)


def test_parts_of_a_folder(write, tmp_path):
    write("text,label\na,1\n", "reviews_train.csv")
    write("text,label\nb,2\nc,1\n", "reviews_test.csv")
    train, test = load_dataset(tmp_path), load_dataset(tmp_path, split="test")
    assert (train.X, test.X) == (["a"], ["b", "c"])
    assert (train.split, test.split) == ("train", "test")
    assert train.name == tmp_path.name
    assert load_dataset(tmp_path / "reviews_test.csv").split == "all"
    with pytest.raises(DataError, match=r"no part 'val'\. Its parts: test, train"):
        load_dataset(tmp_path, split="val")
    write("text\tlabel\nb\t2\n", "other_train.tsv")
    with pytest.raises(DataError, match=r"2 tables of the part 'train', other_train\.tsv, reviews_train\.csv"):
        load_dataset(tmp_path)


def test_a_table_beside_class_folders_is_no_data_set(write, tmp_path):
    write("text,label\na,1\n", "train.csv")
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="no images"):
        load_dataset(tmp_path)


def test_columns_of_what_is_no_table(tmp_path):
    np.savez(tmp_path / "d.npz", X=np.zeros((2, 2)), y=[0, 1])
    with pytest.raises(ConfigurationError, match="text_column is for tables of texts"):
        load_dataset(tmp_path / "d.npz", text_column="text")
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match=r"neither an \.npz nor a table"):
        load_dataset(tmp_path / "notes.md")


def test_texts_without_labels(write, tmp_path):
    assert load_texts(write("good\n\nvery bad\n", "d.txt")) == ["good", "", "very bad"]
    assert load_texts(write("text\ngood\n", "d.csv")) == ["good"]
    assert load_texts(write("a\tb\ngood\tx\n", "d.txt"), format="tsv", text_column="b") == ["x"]
    write("text\npart\n", "test.csv")
    assert load_texts(tmp_path) == ["part"]
    with pytest.raises(DataError, match="is empty"):
        load_texts(write("", "d.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no table of texts"):
        load_texts(tmp_path / "empty")


def test_real_tables(shared_data):
    train = load_dataset(shared_data / "text/trec_train.csv")
    assert train.describe() == "trec_train (all): 5,452 texts, 6 classes"
    assert load_dataset(shared_data / "text/sst2_test.csv").classes == ["negative", "positive"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(write, encoding):
    content = "text,label\ngrün,a\nrot,b\n".encode(encoding)
    assert load_dataset(write(content)).X == ["grün", "rot"]
    assert load_texts(write("grün\nrot\n".encode(encoding), "d.txt")) == ["grün", "rot"]
    if encoding == "utf-8-sig":
        assert load_dataset(write(content), encoding="utf-8").X == ["grün", "rot"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text,label\na,1\n".encode("utf-16-le"), {}, "full of zero bytes.*utf-16-le"),
        (b"\x1f\x8b\x08", {}, "compressed"),
        (b"PK\x03\x04", {}, "workbook"),
        (b"version https://git-lfs.github.com/spec/v1\n", {}, "git-lfs"),
        (b"<!DOCTYPE html><html>", {}, "web page"),
        (b"text,label\r\na,1\rb\xff,2\n", {}, "line 3: not UTF-8"),
        (b"text,label\na,1\n", {"encoding": "punycode"}, "no encoding 'punycode'"),
        (b"text,label\na,1\n", {"encoding": "rot13"}, "no encoding 'rot13'"),
        (b"text,label\na,1\n", {"encoding": "utf\0"}, "no encoding"),
        (b"a good film,1\na bad one,0\n", {}, "the first line of a table must name its columns"),
    ],
)
def test_files_that_are_no_tables(write, content, options, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write(content), **options)


DEEP = 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": ' + "[" * DEEP + "]" * DEEP + "}", "line 1: .* nested too deeply"),
        ("[" * DEEP + "]" * DEEP, "nested too deeply"),
        ('{"a":' * DEEP, "nested too deeply"),
        ('{"text": ' + "[" * 500 + "]" * 500 + ', "label": 1}', "must be a text"),
        ('{"text": ' + "1" * DEEP + ', "label": 1}', "must be a text"),
        ('{"text": "a", "label": ' + "1" * DEEP + "}", "100,000 characters"),
        ('{"text": "a", "label": 1e999999999}\n{"text": "b", "label": 0.5}', "too large"),
    ],
)
def test_hostile_json_ends_in_one_short_sentence(write, content, message):
    with pytest.raises(DataError, match=message) as error:
        load_dataset(write(content, "d.jsonl"))
    assert len(str(error.value)) < 500


def test_json_lines_end_at_carriage_returns_too(write):
    lines = [json.dumps({"text": text, "label": label}) for text, label in (("a\u2028b", 1), ("c", 0))]
    for end in ("\n", "\r", "\r\n"):
        assert load_dataset(write(end.join(lines), "d.jsonl")).X == ["a\u2028b", "c"]


def test_texts_that_cannot_be_written_are_mended_and_said(write):
    rows = [{"text": text, "label": label} for text, label in (("a\ud800", 1), ("\ud83d\ude00", 0))]
    path = write("\n".join(map(json.dumps, rows)), "d.jsonl")
    with pytest.warns(GradfeatWarning, match=r"1 texts hold half a character .*U\+FFFD: line 1"):
        assert load_dataset(path).X == ["a\ufffd", "\U0001f600"]
    with pytest.warns(GradfeatWarning, match="1 texts hold a zero byte; is the file damaged. line 2"):
        assert load_dataset(write("text,label\na\0b and some more,1\nc,0\n")).X[0] == "a\0b and some more"


def test_rows_with_an_empty_text_are_said(write):
    with pytest.warns(GradfeatWarning, match=r"2 rows have an empty text: line 3, line 5"):
        data = load_dataset(write("text,label\ngood,a\n,b\nbad,b\n  ,a\n"))
    assert len(data) == 4


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("text,label\na,x,\nb,y,\n", "d.csv"),  # a delimiter ends each row
        ("text;label\na;x;;\nb;y;;\n", "d.csv"),
        ("text\tlabel\na\tx\t\nb\ty\t\n", "d.tsv"),
        ("text,label\n  \na,x\n \nb,y\n\x1a", "d.csv"),
        ("text\tlabel\na\tx\nb\ty\n", "d.tab"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "y", "id": 2}\n', "d.jsonl"),
        ('{"id": 1, "text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', "d.ndjson"),
        ('{"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}', "d.json"),  # columns, as pandas writes them
        ('{"text": ["a", "b"], "label": ["x", "y"]}', "d.json"),
        ('{\n "data": [\n  {"text": "a", "label": "x"},\n  {"text": "b", "label": "y"}\n ]\n}', "d.json"),
    ],
)
def test_forms_of_one_table(write, content, name):
    data = load_dataset(write(content, name))
    assert (data.X, data.y.tolist()) == (["a", "b"], ["x", "y"])


def test_a_single_json_object_is_a_row(write):
    data = load_dataset(write('{\n"text": "a",\n"label": "x",\n"spans": [{"start": 0}]\n}\n', "d.json"))
    assert (data.X, data.y.tolist()) == (["a"], ["x"])


def test_rows_that_hold_nothing_are_left_out(write):
    path = write("text,label\na,x\n,\nb,y\n,\n,\n")
    with pytest.warns(GradfeatWarning, match="3 rows hold nothing and are left out: line 3, line 5, line 6"):
        assert load_dataset(path).X == ["a", "b"]
    assert len(load_texts(path)) == 5  # what is predicted keeps its rows


def test_names_of_columns_that_stand_there_again_are_no_row(write):
    with pytest.warns(GradfeatWarning, match="names of the columns stand there again, and no row: line 4"):
        data = load_dataset(write("text,label\na,1\nb,0\ntext, label\nc,1\n"))
    assert (data.X, data.y.tolist()) == (["a", "b", "c"], [1, 0, 1])


@pytest.mark.parametrize("content", ["text,label\na,x,\nb,y\n", "text,label\na,x,z\nb,y,\n"])
def test_cells_beyond_the_head_that_not_all_rows_have(write, content):
    with pytest.raises(DataError, match="line 2: 3 fields"):
        load_dataset(write(content))
