"""`tools/rust_layers.py` finds what must not be among the modules of src/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rust_layers import Crate, Layers, circles, faults
from support import ROOT

LAYERS = "low\nmiddle/one middle/two\nhigh"
LIB = "mod high;\nmod low;\nmod middle;\n"
MIDDLE = "mod one;\nmod two;\npub use one::One;\n"
FILES = {
    "lib.rs": LIB,
    "low.rs": "pub struct Low;",
    "middle/mod.rs": MIDDLE,
    "middle/one.rs": "use crate::low::Low;\npub struct One;",
    "middle/two.rs": "use crate::low::Low;",
    "high.rs": "use super::middle::One;",
}


def edges_of(folder: Path, **changed: str) -> dict[str, set[str]]:
    files = FILES | {name.replace("__", "/") + ".rs": text for name, text in changed.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return Crate(folder).edges()


def found(folder: Path, layers: str = f"{LAYERS}\nmiddle/mod lib", **changed: str) -> list[str]:
    return list(faults(edges_of(folder, **changed), Layers.parse(layers)))


def test_nothing_is_wrong_with_layers(tmp_path: Path) -> None:
    edges = edges_of(tmp_path)
    assert found(tmp_path) == []
    # What a folder gives under its own name is where it is.
    assert edges["high"] == {"middle/one"}
    assert edges["middle/mod"] == set()


def test_a_circle(tmp_path: Path) -> None:
    circle = {
        "high": "mod a;\nmod b;",
        "high__a": "use super::b::B;",
        "high__b": "fn f(a: crate::high::a::A) {}",
    }
    assert found(tmp_path, **circle) == ["a circle: high/a high/b"]
    allowed = f"{LAYERS}\nmiddle/mod lib\ncircle: high/b high/a"
    assert found(tmp_path, allowed, **circle) == []
    (tmp_path / "high" / "b.rs").write_text("")
    assert list(faults(Crate(tmp_path).edges(), Layers.parse(allowed))) == [
        "no circle any more, so it need not be allowed: high/a high/b"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "use crate::high::High;",
        "use crate::{high::{self, High}, middle};",
        "fn f() { super::high::f() }",
        "pub use crate::high::High as Other;",
        "#[cfg(not(test))]\nuse crate::high::High;",
        "mod inside {\n    use super::super::high::High;\n}",
        'const A: &str = "//"; use crate::high::High;',
        "fn f<'a>(b: &'a str) -> char { 'x' }\nuse crate::high::High;",
    ],
)
def test_an_import_from_above(tmp_path: Path, text: str) -> None:
    assert "low knows high, which is above it" in found(tmp_path, low=text)


@pytest.mark.parametrize(
    "text",
    [
        "// use crate::high::High;",
        "/// See [`crate::high::High`].\nfn f() {}",
        "/* use crate::high::High; */",
        'const A: &str = "use crate::high::High;";',
        'const A: &str = r#"use "crate::high::High";"#;',
        "#[cfg(test)]\nmod tests {\n    use crate::high::High;\n    fn f() { if true {} }\n}",
        "#[cfg(any(test, fuzzing))]\nuse crate::high::{High, Higher};",
        "#[cfg(test)]\n#[allow(unused)]\npub(crate) fn f() { crate::high::f() }",
        "use std::high::High;",
        "pub(in crate::high) fn f() {}",
    ],
)
def test_what_is_no_import(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, low=text) == []


def test_modules_that_stand_beside_one_another(tmp_path: Path) -> None:
    assert found(tmp_path, middle__two="use super::One;") == [
        "middle/two knows middle/one, which stands beside it"
    ]
    # Those of one entry may.
    assert found(tmp_path, "low\nmiddle\nhigh\nlib", middle__two="use super::One;") == []


def test_a_module_of_tests_only(tmp_path: Path) -> None:
    lib = LIB + "#[cfg(test)]\nmod checks;\n"
    edges = edges_of(tmp_path, lib=lib, checks="mod deep;", checks__deep="use crate::high::High;")
    assert not any(module.startswith("checks") for module in edges)


def test_a_module_without_a_layer(tmp_path: Path) -> None:
    changed = {"lib": LIB + "mod new;", "new": "use crate::low::Low;"}
    assert found(tmp_path, **changed) == ["new has no layer"]


def test_a_layer_without_a_module(tmp_path: Path) -> None:
    layers = f"{LAYERS}\nmiddle/mod lib gone"
    assert found(tmp_path, layers) == ["gone has a layer, but there is no such module"]


def test_circles_are_told_apart() -> None:
    edges = {"a": {"b"}, "b": {"a"}, "c": {"a", "d"}, "d": {"e"}, "e": {"c"}, "f": {"f", "a"}}
    assert circles(edges) == [["a", "b"], ["c", "d", "e"]]


def test_this_crate() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "rust_layers.py")]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    # None of these would be found in a crate that was not read.
    edges = Crate(ROOT / "src").edges()
    assert "etcd/cluster/choice" in edges["etcd/client"]
    assert "etcd/once/write" in edges["store/core"]
    assert "rendezvous" in " ".join(edges["python/rendezvous"])
