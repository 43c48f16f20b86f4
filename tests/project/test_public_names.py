"""The public names of the package and their signatures are those of `public_names.txt`.

A name that is lost or changed breaks programs. After an addition
`PYTHONPATH=tests python tests/project/test_public_names.py` writes the file again.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.public_modules import modules

LIST = Path(__file__).with_name("public_names.txt")
#: From torch 2.7 on; before that a class of ours stands in for it.
TORCHS = {"torchetcd.etcd_store.QueueEmptyError", "torchetcd.errors.QueueEmptyError"}


def names_of(module: Any) -> list[str]:
    """Return the public names of a module: its `__all__`, or what it defines itself."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = (
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
    return sorted(own)


def described(name: str, value: Any) -> Iterator[str]:
    """Describe a name in lines: a class with all its members that are ours."""
    if inspect.isclass(value):
        if name in TORCHS:
            yield f"{name}: class of torch"
            return
        bases = ", ".join(base.__name__ for base in value.__bases__)
        yield f"{name}: class({bases}) {signature(value)}"
        ours: dict[str, Any] = {}
        for owner in reversed(value.__mro__):
            if owner.__module__.startswith("torchetcd"):
                ours |= vars(owner)
        for member in sorted(ours):
            if not member.startswith("_"):
                yield member_line(f"{name}.{member}", ours[member])
    elif inspect.isroutine(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def member_line(name: str, member: Any) -> str:
    if isinstance(member, (property, functools.cached_property)):
        settable = getattr(member, "fset", None) is not None
        return f"{name}: property{', settable' if settable else ''}"
    if isinstance(member, (staticmethod, classmethod)):
        return f"{name}: {type(member).__name__} {signature(member.__func__)}"
    if inspect.isroutine(member) and not inspect.ismemberdescriptor(member):
        return f"{name}{signature(member)}"
    return f"{name}: attribute"


def signature(value: Any) -> str:
    try:
        # Fields of a NamedTuple are references, which each Python writes in its own way.
        return re.sub(
            r"""ForwardRef\(('[^']*'|"[^"]*")[^)]*\)""", r"\1", str(inspect.signature(value))
        )
    except ValueError:  # of a class without a constructor of its own
        return "(...)"


def present() -> list[str]:
    lines = []
    for module_name in modules():
        module = importlib.import_module(module_name)
        lines.append(f"{module_name}: module")
        for name in names_of(module):
            lines += described(f"{module_name}.{name}", getattr(module, name))
    return sorted(lines)


def test_public_names_and_signatures() -> None:
    """Nothing is lost or changed, and nothing comes without being listed."""
    listed = LIST.read_text(encoding="utf-8").splitlines()
    found = present()
    assert sorted(set(listed) - set(found)) == [], "lost or changed"
    assert sorted(set(found) - set(listed)) == [], "not listed"


if __name__ == "__main__":
    LIST.write_text("".join(f"{line}\n" for line in present()), encoding="utf-8")
