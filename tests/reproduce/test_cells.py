from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.reproduce.cells import Cell, duration, run_cells

CONFIGURATION = {"scale": "smoke", "labelled": 5, "depths": (1, 2)}


def counted(calls, *names, fail_at=None):
    """Cells that count how often each is computed; one may be stopped as Ctrl-C or a kill would."""

    def compute(name):
        if name == fail_at:
            raise KeyboardInterrupt
        calls.append(name)
        return {"accuracy": len(name) / 10, "how": "counted"}

    return [Cell(name, lambda name=name: compute(name)) for name in names]


def run(cells, folder, configuration=CONFIGURATION):
    lines = []
    return run_cells(cells, folder, configuration, say=lines.append), lines


def test_a_stopped_run_loses_one_cell_and_computes_no_other_again(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        run(counted(calls, "a", "bb", "ccc", fail_at="bb"), tmp_path)
    assert calls == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    results, lines = run(counted(calls, "a", "bb", "ccc"), tmp_path)
    assert calls == ["a", "bb", "ccc"]
    assert {name: result["accuracy"] for name, result in results.items()} == {"a": 0.1, "bb": 0.2, "ccc": 0.3}
    assert lines[0] == "1 of 3 cells are there already"
    assert lines[1].startswith("2/3 bb: accuracy 0.2 (")
    assert "left)" in lines[1]
    assert run(counted(calls, "a", "bb", "ccc"), tmp_path) == (results, [])
    assert len(calls) == 3


def test_what_is_kept_of_a_cell_goes_with_it_and_never_stands_in_its_way(tmp_path):
    parts, calls = tmp_path / "parts" / "a", []

    def compute():
        calls.append((parts / "half.safetensors").exists())
        if calls[-1]:
            raise DataError("half of another version")
        parts.mkdir(parents=True)
        (parts / "half.safetensors").write_bytes(b"")
        return {"accuracy": 0.5}

    parts.mkdir(parents=True)
    (parts / "half.safetensors").write_bytes(b"")
    _, lines = run([Cell("a", compute, parts)], tmp_path / "cells")
    assert calls == [True, False]
    assert lines[0] == "a is computed from its beginning: half of another version"
    assert not parts.exists()

    def fails():
        raise DataError("nothing to do with parts")

    with pytest.raises(DataError, match="nothing to do with parts"):
        run([Cell("b", fails, tmp_path / "parts" / "b")], tmp_path / "cells")


def test_processes_that_share_a_folder_compute_no_cell_twice(tmp_path):
    calls, both = [], threading.Barrier(2, timeout=60)

    def compute(name):
        if name in "ab":
            both.wait()  # one of them in each, or neither ends
        calls.append(name)
        return {"accuracy": 0.5}

    cells = [Cell(name, lambda name=name: compute(name)) for name in "abcdef"]
    with ThreadPoolExecutor(2) as pool:  # a lock is of an open file, so threads see each other's as processes do
        outcomes = [future.result() for future in [pool.submit(run, cells, tmp_path) for _ in range(2)]]
    assert sorted(calls) == list("abcdef")
    assert [list(results) for results, _ in outcomes] == [list("abcdef")] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json" for name in "abcdef"]


def test_a_cell_of_a_process_that_fails_is_computed_by_one_that_waits(tmp_path):
    begun, calls = threading.Event(), []

    def fails():
        begun.set()
        time.sleep(0.2)
        raise OSError("killed")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, [Cell("a", fails)], tmp_path)
        assert begun.wait(60)
        results, lines = run(counted(calls, "a"), tmp_path)
        with pytest.raises(OSError, match="killed"):
            first.result()
    assert lines[0] == "waiting for another process, which makes a.json"
    assert (calls, results["a"]["accuracy"]) == (["a"], 0.1)


def test_results_are_in_the_order_of_the_cells_whatever_was_there_before(tmp_path):
    run(counted([], "b"), tmp_path)
    assert list(run(counted([], "a", "b", "c"), tmp_path)[0]) == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["", '{"name": "a", "resu', "[1, 2]", '{"configuration": 3, "result": {}}'])
def test_a_file_that_cannot_be_read_is_computed_again(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    calls = []
    results, lines = run(counted(calls, "a"), tmp_path)
    assert (calls, results["a"]["accuracy"]) == (["a"], 0.1)
    assert "cannot be read" in lines[0]
    assert json.loads((tmp_path / "a.json").read_text())["result"] == results["a"]


def test_a_temporary_file_that_a_kill_left_is_no_cell(tmp_path):
    (tmp_path / ".a.json.123.tmp").write_text('{"name"')
    calls = []
    run(counted(calls, "a"), tmp_path)
    assert calls == ["a"]


def test_cells_of_another_configuration_are_refused_with_both(tmp_path):
    run(counted([], "a"), tmp_path)
    before = (tmp_path / "a.json").read_text()
    calls = []
    with pytest.raises(ConfigurationError, match=r"scale smoke, more None there; scale full, more 1 now.*--out"):
        run(counted(calls, "a"), tmp_path, {**CONFIGURATION, "scale": "full", "more": 1})
    assert calls == []
    assert (tmp_path / "a.json").read_text() == before


def test_two_cells_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="two cells are called 'a'"):
        run(counted([], "a", "a"), tmp_path)


def test_durations_are_read_at_a_glance():
    assert [duration(s) for s in (0.4, 99, 100, 3600, 6000)] == ["0 s", "99 s", "2 min", "60 min", "1.7 h"]
