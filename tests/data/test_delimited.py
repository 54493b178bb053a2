"""CSV and TSV files: what stands in quotes, what an open quote swallows, and what stands between fields."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradfeat.data import load_dataset
from gradfeat.data.delimited import Quoted, read_delimited
from gradfeat.data.lines import split_lines
from gradfeat.data.table import load_texts
from gradfeat.errors import DataError, GradfeatWarning

FEW = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
FILE = Path("data.csv")


@pytest.fixture
def write(tmp_path):
    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def columns(content: str, format: str = "csv") -> tuple[list[str], list[str]]:
    """Texts and labels of a table, as the reader gives them."""
    rows = read_delimited(FILE, content, format)
    return [row["text"] for _, row in rows], [row["label"] for _, row in rows]


texts = st.text(alphabet=' ab",\t;|\n\ré', max_size=12)
tables = st.lists(st.tuples(texts, st.sampled_from(["yes", "no"])), min_size=1, max_size=5)


@pytest.mark.filterwarnings("ignore:.*a quoted text goes on")
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
@given(table=tables)
@FEW
def test_what_the_csv_module_writes_is_read(delimiter, quoting, table):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows([("text", "label"), *table])
    assert columns(stream.getvalue()) == ([text for text, _ in table], [label for _, label in table])


@given(table=tables, label_first=st.booleans())
@FEW
def test_a_tsv_without_quoting_keeps_its_rows_whatever_its_quotes(table, label_first):
    table = [(text.translate(str.maketrans("\t\r\n", "   ")), label) for text, label in table]
    lines = [("text", "label"), *table]
    content = "".join(f"{label}\t{text}\n" if label_first else f"{text}\t{label}\n" for text, label in lines)
    found, labels = columns(content, "tsv")
    assert labels == [label for _, label in table]
    for (text, _), read in zip(table, found, strict=True):  # as it stands, or what a balanced field of quotes holds
        assert read in (text, text[1:-1].replace('""', '"'))


@given(st.text(alphabet="a \n\r\x0b\x0c\x1c\x85\u2028\u2029", max_size=20))
@FEW
def test_lines_end_where_universal_newlines_do(content):
    reference = [line.removesuffix("\n") for line in io.StringIO(content, newline=None)]
    assert split_lines(content) == reference


def test_an_open_quote_in_a_tsv_is_an_ordinary_character(write):
    data = load_dataset(write('text\tlabel\n"hello\t1\nplain\t1\nworld"\t0\nlast\t1\n', "d.tsv"))
    assert data.X == ['"hello', "plain", 'world"', "last"]
    assert data.y.tolist() == [1, 1, 0, 1]
    odd = load_dataset(write('text\tlabel\n"Good" he said "bye"\ty\n"open\tn\n"closed"\ty\n', "d.tsv"))
    assert odd.X == ['"Good" he said "bye"', '"open', '"closed"']


def test_balanced_quotes_in_a_tsv_are_quotes(write):
    assert load_dataset(write('text\tlabel\n"two\nlines, ""q"""\ty\n"tab\there"\tn\n', "d.tsv")).X == [
        'two\nlines, "q"',
        "tab\there",
    ]
    with pytest.raises(DataError, match=r"from line 3: not TSV"):  # a head in quotes: the file is quoted
        load_dataset(write('"text"\t"label"\n"a"\t"1"\n"hello\t1\n"b"\t"0"\n', "d.tsv"))
    with pytest.warns(GradfeatWarning, match="line 2: a quoted text goes on to line 4"):
        assert load_texts(write('text\n"hello\nplain\nworld"\nb\n', "d.tsv")) == ["hello\nplain\nworld", "b"]


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"hello,1\nplain,1\nworld",0\nlast,1\n',
        'label,text\n1,"hello\n0,plain\n1,world"\n0,last\n',
        'id,text,label\n1,"a,0\n2,b,1\n3,c",0\n4,d,1\n5,e,0\n',
        'id,text,label\nq1,"a,0\nq2,b,1\nq3,c",0\nq4,d,1\nq5,e,0\nq6,f,0\n',  # ids tell nothing
        'text,label\n"hello,0.5\nplain,1.5\nworld",0.25\nlast,2.5\n',
    ],
)
def test_an_open_quote_that_merges_rows_of_a_csv_is_an_error(write, content):
    with pytest.raises(DataError, match=r"data\.csv, line 2: a quoted text goes on to line 4.*quote left open"):
        load_dataset(write(content))


def test_merged_rows_that_are_not_certain_are_said(write):
    with pytest.warns(GradfeatWarning, match="line 2: a quoted text goes on to line 3.*It is read as one text"):
        data = load_dataset(write('text,label\n"hello,pos\nworld",neg\nlast,neg\n'))
    assert data.X == ["hello,pos\nworld", "last"]


@pytest.mark.parametrize(
    "text", ["Hello, world\nbye", "a,b\nc,d", "one\n\ntwo, three", "Roses, red\nviolets, blue\nand, so on", "x,\ny"]
)
def test_texts_of_several_lines_with_commas_are_no_merged_rows(write, text):
    data = load_dataset(write(f'text,label\n"{text}",1\nok,0\nfine,1\n'))
    assert list(data.X) == [text, "ok", "fine"]


@pytest.mark.filterwarnings("ignore:.*It is read as one text")
def test_a_number_in_a_text_is_no_label(write):
    for n, number in ((2, "4000"), (9, "4")):
        rows = "".join(f"t{i},{i % 2}\n" for i in range(n))
        data = load_dataset(write(f'text,label\n"12 Main St,{number}\nZurich",1\n{rows}'))
        assert data.X[0] == f"12 Main St,{number}\nZurich"


def test_what_stands_between_fields_is_read_off_the_head(write):
    for content, name in (
        ('text;label\n"a;b";1\n"c, d";0\n', "d.csv"),
        ('sep=;\r\ntext;label\r\na;b;1\r\n"c, d";0\r\n'.replace("a;b", '"a;b"'), "d.csv"),
        ("text\tlabel\na;b\t1\nc, d\t0\n", "d.csv"),
        ('text,label\na;b,1\n"c, d",0\n', "d.tsv"),
        ("text|label\na;b|1\nc, d|0\n", "d.csv"),
        ('text,x;y,label\na;b,z,1\n"c, d",z,0\n', "d.csv"),
    ):
        data = load_dataset(write(content, name))
        assert (data.X, data.y.size) == (["a;b", "c, d"], 2), content
    assert load_texts(write("text\na;b\nc, d\n".replace("c, d", '"c, d"'))) == ["a;b", "c, d"]


def test_columns_without_a_name_do_not_count(write):
    assert load_dataset(write("text,label,,\na,1,,\nb,0,,\n")).X == ["a", "b"]


def test_quoted_fields_are_told_from_others():
    (_, row), *_ = read_delimited(FILE, 'a,b\n"1",1\n', "csv")
    assert [isinstance(value, Quoted) for value in row.values()] == [True, False]


def test_long_fields(write):
    long = "word, " * 50_000
    data = load_dataset(write(f'text,label\n"{long}",1\nb,0\n'))
    assert list(data.X) == [long, "b"]
    assert load_dataset(write("text,label\n" + "a" * 200_000 + ",1\nb,0\n")).X[0] == "a" * 200_000


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"' + "a,1\n" * 50_000 + 'b",0\n',
        'text,label\n"' + '""a,1\n' * 50_000,
        "text,label\n" + '"a,"' * 50_000 + "\n",
        "a" * 1_000_000,
        "a," * 200_000,
        "\0" * 1_000_000,
        "text,label\n" + "a," * 200_000 + "\n",
    ],
    ids=["merged", "open", "doubled", "one field", "many columns", "zeros", "many fields"],
)
def test_hostile_tables_end_in_one_short_sentence(write, content):
    with pytest.raises(DataError) as error:
        load_dataset(write(content))
    assert len(str(error.value)) < 2000
