from __future__ import annotations

import pytest

from gradfeat.backbones.names import Name, parse_name
from gradfeat.errors import ConfigurationError


def test_parts():
    assert parse_name("timm/resnet18.a1_in1k") == Name("timm", "resnet18.a1_in1k")
    assert parse_name("gradfeat/some/file.safetensors") == Name("gradfeat", "some/file.safetensors")
    assert parse_name("hf/owner/bert?pooling=cls") == Name("hf", "owner/bert", {"pooling": "cls"})
    assert parse_name("hf//a/folder") == Name("hf", "/a/folder")


def test_option_values():
    options = parse_name("timm/x?a=1&b=0.5&c=same&d=true&e=False&f=none&g=1e-3&h=inf").options
    assert options == {"a": 1, "b": 0.5, "c": "same", "d": True, "e": False, "f": None, "g": 1e-3, "h": "inf"}
    assert type(options["d"]) is bool


def test_path_of_a_file_is_an_encoder(tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.touch()
    assert parse_name(str(path)) == Name("gradfeat", str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "e.g. timm/resnet18"),
        ("encoder.safetensors", "No file 'encoder.safetensors'"),
        ("tim/resnet18", "Did you mean timm"),
        ("hf/", "no model"),
        ("huggingface/bert", "hf/<folder or id>"),
        ("timm/", "no model"),
        ("timm/x?a", "Cannot read the options"),
        ("timm/x?a=1&a=2", "given twice"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_name(name)
