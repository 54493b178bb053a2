"""Functions that fit on a page and take few values, files of some hundred lines, and no bags of values by string."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from package_source import Function, Mapped, Module, functions_of, gradfeat_modules, mapped_of

PARAMETERS, FUNCTION_LINES, FILE_LINES = 7, 50, 500

# The public face may have many parameters, and their lines do not count; what it does with them has the limit of all.
PUBLIC = {
    **dict.fromkeys(
        (
            "estimators.parameters.Parameters.__init__",
            "estimators.classes.GradientFeatureClassifier.__init__",
            "baselines.all_layers.AllLayersProbe.__init__",
        ),
        "scikit-learn reads the parameters of an estimator off its constructor",
    ),
    **dict.fromkeys(
        (
            "comparison.side_by_side.compare",
            "baselines.lqf.lqf",
            "data.load.load_dataset",
            "fit.preparation.prepare",
            "pretrain.run.pretrain_encoder",
            "reproduce.run.reproduce",
            "solvers.probe.fit_probe",
        ),
        "a function that users call, with options by name",
    ),
}
# Keyword arguments that are passed on to a callable of somebody else, whatever it takes.
PASSED_ON = {
    "backbones.torch_file.": "stands for a class that a file names, which is called in any way",
    "baselines.lqf.lqf": "parameters of the estimator that it returns",
    "cli.binding.": "values of options, which typer gives by name",
    "cli._show_warning": "called as warnings.showwarning is",
    "cli.show._print": "arguments of rich's print",
    "comparison.side_by_side.compare": "parameters of the estimators that it fits",
    "data.load._given": "any of the options of `load_dataset`",
    "data.text.": "arguments of a tokenizer",
    "inspection._convolution_backward": "arguments of torch's operation",
    "linearization.capture.": "arguments of the network",
    "linearization.schema.": "arguments of torch's operation",
    "linearization.rules.": "arguments of torch's operation",
    "linearization.trace.Trace.": "arguments of torch's operation",
    "optional.from_pretrained": "arguments of transformers",
    "testing.rules.": "arguments of torch's operation",
}
# A mapping with one of these names is what a file says, or is going to say, as JSON; or, at the end, what users give by
# name.
CONTENTS = {
    *("about", "configuration", "content", "entry", "fields", "metadata", "record", "state", "stored", "values"),
    *("a", "b", "other", "value"),  # any two of them, compared; any value of JSON
    *("arguments", "classes", "preprocessing", "override", "options"),
    "estimators",  # by mode
}


def _all_functions() -> Iterator[Function]:
    for module in gradfeat_modules().values():
        yield from functions_of(module)


def test_functions_take_few_values() -> None:
    found = {each.name for each in _all_functions() if len(each.arguments) > PARAMETERS and each.name not in PUBLIC}
    assert sorted(found) == [], f"more than {PARAMETERS} parameters: group those that travel together"


def test_functions_fit_on_a_page() -> None:
    lengths = {each.name: each.body_lines if each.name in PUBLIC else each.lines for each in _all_functions()}
    found = {name for name, lines in lengths.items() if lines > FUNCTION_LINES}
    assert sorted(found) == [], f"more than {FUNCTION_LINES} lines without the docstring: split them by meaning"


def test_no_exemption_without_need() -> None:
    beyond = {each.name for each in _all_functions() if len(each.arguments) > PARAMETERS or each.lines > FUNCTION_LINES}
    assert sorted(set(PUBLIC) - beyond) == [], "within the limits of all functions, or gone: take them out of PUBLIC"


def test_files_of_some_hundred_lines() -> None:
    found = {name.removeprefix("gradfeat.") for name, each in gradfeat_modules().items() if each.lines > FILE_LINES}
    assert sorted(found) == [], f"more than {FILE_LINES} lines: split them by meaning"


def test_values_that_travel_together_have_a_type() -> None:
    bags = {each for module in gradfeat_modules().values() for each in mapped_of(module) if not _is_fine(each)}
    found = {f"{each.where}: {each.name}" for each in bags}
    assert sorted(found) == [], "a mapping of Any, read by string: make it a frozen dataclass, or name the parameters"


def _is_fine(mapped: Mapped) -> bool:
    content = not mapped.starred and mapped.name in CONTENTS
    return content or any(_is_below(mapped.where, name) for name in PASSED_ON)


def _is_below(where: str, name: str) -> bool:
    return where.startswith(name) if name.endswith(".") else where == name


def test_no_open_mapping_is_allowed_without_need() -> None:
    mapped = [each for module in gradfeat_modules().values() for each in mapped_of(module)]
    assert {name for name in PASSED_ON if not any(_is_below(each.where, name) for each in mapped)} == set()
    assert CONTENTS - {each.name for each in mapped if not each.starred} == set()


@pytest.mark.parametrize(
    ("text", "parameters", "lines"),
    [
        ("def f(a, /, b, *, c): pass", 3, 1),
        ("def f(*a, **b): pass", 2, 1),
        ("class F:\n    def f(self, a): pass", 1, 1),
        ("class F:\n    @staticmethod\n    def f(a): pass", 1, 1),
        ('def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    return a', 1, 4),
        ("def outer():\n    def f(a, b):\n        return a\n    f(1, 2)", 2, 2),
    ],
    ids=["every kind", "stars", "method", "static method", "docstring", "inside a function"],
)
def test_what_is_counted(text: str, parameters: int, lines: int) -> None:
    (found,) = (each for each in functions_of(Module("m", text, ast.parse(text))) if each.name.endswith(".f"))
    assert (len(found.arguments), found.lines) == (parameters, lines)


@pytest.mark.parametrize(
    ("text", "bags"),
    [
        ("def f(**shared: Any): pass", {"shared"}),
        ("def f(**shared: int): pass", set()),
        ("def f(settings: dict[str, Any] | None = None): pass", {"settings"}),
        ("def f(settings: dict[str, int], tree: dict[str, dict[str, Any]]): pass", set()),
        ("class F:\n    settings: Mapping[str, Any]", {"settings"}),
        ("class F:\n    def f(self, *, settings: Mapping[str, Any]): pass", {"settings"}),
    ],
    ids=["stars", "stars of a type", "parameter", "mappings of a type", "field", "of a method"],
)
def test_what_is_a_bag(text: str, bags: set[str]) -> None:
    assert {each.name for each in mapped_of(Module("m", text, ast.parse(text)))} == bags
