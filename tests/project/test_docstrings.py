"""The examples in docstrings of public names do what they show. `endpoint` is where an etcd listens."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator

import pytest

from support.public_modules import modules
from torchetcd.etcd_server import EtcdServer

FINDER = doctest.DocTestFinder(exclude_empty=True)


def _examples() -> Iterator[doctest.DocTest]:
    """Give the docstrings of public names that have examples, each once, wherever they are defined."""
    seen = set()
    for module_name in modules():
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            if id(value) in seen:
                continue
            seen.add(id(value))
            for test in FINDER.find(value, f"{module_name}.{name}", globs={}):
                if test.examples:
                    yield test


EXAMPLES = list(_examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.name))
def test_an_example(example: doctest.DocTest, etcd_server: EtcdServer) -> None:
    example.globs["endpoint"] = etcd_server.get_endpoint()
    said: list[str] = []
    failed, tried = doctest.DocTestRunner().run(example, out=said.append)
    assert tried
    assert not failed, "".join(said)


def test_the_main_names_have_one() -> None:
    """What a newcomer looks up first: torch's names, the clients and the stores."""
    have = {example.name for example in EXAMPLES}
    missing = {
        "torchetcd.aio.Client",
        "torchetcd.aio.Store",
        "torchetcd.etcd.Client",
        "torchetcd.etcd_rendezvous.create_rdzv_handler",
        "torchetcd.etcd_rendezvous_backend.create_backend",
        "torchetcd.etcd_server.EtcdServer",
        "torchetcd.etcd_store.EtcdStore",
        "torchetcd.metrics.snapshot",
    } - have
    assert not missing, f"{missing} have none; there are {sorted(have)}"
