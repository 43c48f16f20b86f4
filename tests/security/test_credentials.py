"""User and password: where they may come from, and that a password is never shown."""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters

from support.etcd.users import CHEAP, Users
from torchetcd._rendezvous.options import default_options, parse_options
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd_rendezvous import EtcdRendezvous, create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import create_backend
from torchetcd.etcd_server import EtcdServer

USER, PASSWORD = "trainer", "p@ss, \u00e9: %2F"
# Nobody listens there: what is refused is refused before anything is sent.
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(extra_args=[CHEAP]) as running:
        yield running


@pytest.fixture(scope="module")
def users(server: EtcdServer) -> Users:
    made = Users(server)
    made.add(USER, PASSWORD, prefix="/torch")
    return made


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TORCHETCD_USER", "TORCHETCD_PASSWORD", "TORCHETCD_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def _parameters(endpoint: str, run_id: str = "run", **config: Any) -> RendezvousParameters:
    defaults = {"join_timeout": 30, "read_timeout": 10}
    return RendezvousParameters(
        "etcd-v3", endpoint, run_id, 1, 1, local_addr="127.0.0.1", **(defaults | config)
    )


def _handler(params: RendezvousParameters) -> None:
    handler = create_rdzv_handler(params)
    assert handler.next_rendezvous().rank == 0
    assert handler.shutdown()


def _backend(params: RendezvousParameters) -> None:
    backend, store = create_backend(params)
    assert backend.set_state(b"x") is not None
    store.set("key", "value")
    assert store.get("key") == b"value"


BOTH = pytest.mark.parametrize("use", [_handler, _backend])
Use = Callable[[RendezvousParameters], None]


class TestSources:
    @BOTH
    def test_parameters(self, server: EtcdServer, users: Users, prefix: str, use: Use) -> None:
        use(_parameters(server.get_endpoint(), prefix, user=USER, password=PASSWORD))

    @BOTH
    def test_environment(
        self,
        server: EtcdServer,
        users: Users,
        prefix: str,
        environment: pytest.MonkeyPatch,
        use: Use,
    ) -> None:
        environment.setenv("TORCHETCD_USER", USER)
        environment.setenv("TORCHETCD_PASSWORD", PASSWORD)
        use(_parameters(server.get_endpoint(), prefix))

    @BOTH
    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_a_file(
        self,
        server: EtcdServer,
        users: Users,
        prefix: str,
        environment: pytest.MonkeyPatch,
        tmp_path: Path,
        use: Use,
        end: str,
    ) -> None:
        file = tmp_path / "password"
        file.write_bytes(f"{PASSWORD}{end}".encode())
        environment.setenv("TORCHETCD_USER", USER)
        environment.setenv("TORCHETCD_PASSWORD_FILE", str(file))
        use(_parameters(server.get_endpoint(), prefix))

    @BOTH
    def test_a_file_that_a_parameter_names(
        self,
        server: EtcdServer,
        users: Users,
        prefix: str,
        environment: pytest.MonkeyPatch,
        tmp_path: Path,
        use: Use,
    ) -> None:
        """A path is no secret. It comes before all of the environment."""
        file = tmp_path / "password"
        file.write_text(f"{PASSWORD}\n")
        environment.setenv("TORCHETCD_PASSWORD", "of somebody else")
        use(_parameters(server.get_endpoint(), prefix, user=USER, password_file=str(file)))

    @BOTH
    def test_parameters_come_before_the_environment(
        self,
        server: EtcdServer,
        users: Users,
        prefix: str,
        environment: pytest.MonkeyPatch,
        use: Use,
    ) -> None:
        environment.setenv("TORCHETCD_USER", "nobody")
        environment.setenv("TORCHETCD_PASSWORD_FILE", "/nowhere")
        use(_parameters(server.get_endpoint(), prefix, user=USER, password=PASSWORD))

    def test_a_client_with_a_file(self, server: EtcdServer, users: Users, tmp_path: Path) -> None:
        file = tmp_path / "password"
        file.write_text(PASSWORD)
        with server.get_client(username=USER, password_file=str(file)) as client:
            assert client.password is None
            client.write("/torch/x", "y")


class TestRefused:
    """Each refusal is one sentence, comes before anything is sent, and has no password in it."""

    @BOTH
    @pytest.mark.parametrize(
        ("config", "variables", "said"),
        [
            ({"user": "me"}, {}, "The etcd user 'me' was given without a password"),
            ({}, {"USER": "me"}, "The etcd user 'me' was given without a password"),
            ({"password": "secret"}, {}, "given without a user"),
            ({}, {"PASSWORD": "secret"}, "given without a user"),
            ({}, {"PASSWORD_FILE": "good"}, "given without a user"),
            ({}, {"USER": "me", "PASSWORD": "secret", "PASSWORD_FILE": "good"}, "Both"),
            ({}, {"USER": "me", "PASSWORD_FILE": "nowhere"}, "nowhere'.*cannot be read: No such"),
            ({}, {"USER": "me", "PASSWORD_FILE": "."}, "cannot be read: Is a directory"),
            ({}, {"USER": "me", "PASSWORD_FILE": "empty"}, "empty' .* is empty"),
            ({}, {"USER": "me", "PASSWORD_FILE": "line"}, "line' .* is empty"),
            ({}, {"USER": "me", "PASSWORD_FILE": "lines"}, "holds more than one line"),
            ({}, {"USER": "me", "PASSWORD_FILE": "bytes"}, "holds no UTF-8 text"),
            ({}, {"USER": "me", "PASSWORD": "secret\udcff"}, "must be text that UTF-8 can hold"),
            ({"user": "me", "password": "secret\udcff"}, {}, "must be text that UTF-8 can hold"),
            ({"user": "me", "password": "secret", "password_file": "good"}, {}, "Both 'password'"),
            ({"user": "me", "password_file": "/no/such"}, {}, "'password_file' cannot be read"),
            ({"password_file": "good"}, {}, "without a user .* the parameter 'password_file'"),
            ({}, {"PASSWORD": "secret"}, "without a user .* it comes from TORCHETCD_PASSWORD"),
            ({"user": "me"}, {}, "set TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD"),
        ],
    )
    def test_what_cannot_be(
        self,
        environment: pytest.MonkeyPatch,
        tmp_path: Path,
        use: Use,
        config: dict[str, str],
        variables: dict[str, str],
        said: str,
    ) -> None:
        for name, content in (
            ("good", b"secret"),
            ("empty", b""),
            ("line", b"\r\n"),
            ("lines", b"secret\nsecret\n"),
            ("bytes", b"secret\xff"),
        ):
            (tmp_path / name).write_bytes(content)
        for name, value in variables.items():
            path = str(tmp_path / value) if name == "PASSWORD_FILE" else value
            environment.setenv(f"TORCHETCD_{name}", path)
        with pytest.raises(ValueError, match=rf"^[^\n]*{said}[^\n]*\.$") as caught:
            use(_parameters(NOWHERE, **config))
        _shows_nothing(caught.value, "secret")

    @BOTH
    @pytest.mark.parametrize(
        "endpoint",
        [
            "http://me:secret@h",
            "me:secret@h:2379",
            "h1,https://me:se,secret/x@h2",
            "secret@[::1]:1",
            "me:secret@",
        ],
    )
    def test_a_password_in_an_endpoint(self, use: Use, endpoint: str) -> None:
        with pytest.raises(ValueError, match=r"^An etcd endpoint must not hold a user") as caught:
            use(_parameters(endpoint))
        _shows_nothing(caught.value, "secret")

    def test_a_password_in_a_pair(self) -> None:
        with pytest.raises(ValueError, match=r"^An etcd endpoint must not hold") as caught:
            Client((("h", 1), ("me:secret@h", 2)))
        _shows_nothing(caught.value, "secret")

    @pytest.mark.parametrize("endpoint", ["http://h:1?token=x", "h:1#x", "https://h/?x"])
    def test_more_than_an_endpoint(self, endpoint: str) -> None:
        with pytest.raises(ValueError, match="is not valid"):
            Client(endpoint)

    def test_a_password_and_a_file(self) -> None:
        with pytest.raises(ValueError, match="only one of them") as caught:
            Client("h", username="me", password="secret", password_file="/x")
        _shows_nothing(caught.value, "secret")

    def test_a_file_that_a_client_cannot_use(self, server: EtcdServer, tmp_path: Path) -> None:
        for content, said in (
            (None, "cannot be read"),
            (b"\n", "is empty"),
            (b"secret\nsecret", "holds more than one line"),
            (b"secret\xff", "holds no UTF-8 text"),
        ):
            file = tmp_path / "password"
            if content is not None:
                file.write_bytes(content)
            with server.get_client(username="me", password_file=str(file)) as client:
                message = rf"^The password file '{file}' {said}[^\n]*\.$"
                with pytest.raises(ValueError, match=message) as caught:
                    client.read("/x")
            _shows_nothing(caught.value, "secret")


class TestObjects:
    """Whoever prints, copies or pickles what we hand out finds no password."""

    def test_a_client(self) -> None:
        client = Client("h", username="me", password="secret")
        assert client.password == "secret"
        _hides(client, "secret")
        assert copy.copy(client).password == copy.deepcopy(client).password == "secret"
        _ = client._native
        _hides(client, "secret")

    def test_a_handler_and_its_store(self, server: EtcdServer, users: Users, prefix: str) -> None:
        handler = create_rdzv_handler(
            _parameters(server.get_endpoint(), prefix, user=USER, password=PASSWORD)
        )
        info = handler.next_rendezvous()
        for obj in (handler, handler._rdzv_impl, info, info.store, handler._rdzv_impl._node):
            _hides(obj, PASSWORD)
        # torch's part of a store would end the process.
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(info.store, protocol)
        handler.shutdown()

    def test_a_failure_of_the_connection(self) -> None:
        params = _parameters(NOWHERE, user="me", password="secret", read_timeout=1, join_timeout=1)
        for use in (_handler, _backend):
            with pytest.raises(RendezvousConnectionError) as caught:
                use(params)
            _shows_nothing(caught.value, "secret")
        with (
            Client(NOWHERE, username="me", password="secret", read_timeout=1) as client,
            pytest.raises(EtcdConnectionFailed) as raised,
        ):
            client.read("/x")
        _shows_nothing(raised.value, "secret")


def _hides(obj: object, password: str) -> None:
    shown = f"{obj!r} {obj} {_inside(obj, 4)}"
    assert password not in shown
    assert os.fsencode(password).hex() not in shown
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        try:
            pickled = pickle.dumps(obj, protocol)
        except (TypeError, pickle.PicklingError):
            continue
        assert password.encode() not in pickled
        assert password.encode("raw_unicode_escape") not in pickled


def _inside(obj: object, depth: int) -> str:
    """Return what a debugger shows of an object: its attributes, and theirs."""
    attributes = getattr(obj, "__dict__", {})
    text = f"{attributes!r}"
    if depth:
        text += " ".join(_inside(value, depth - 1) for value in attributes.values())
    return text


def _shows_nothing(error: BaseException, password: str) -> None:
    shown = "".join(traceback.format_exception(error))
    chain: BaseException | None = error
    while chain is not None:
        shown += f"{chain!r} {chain.args!r} {vars(chain)!r}"
        # Such as the object that a decoder could not decode.
        shown += "".join(repr(getattr(chain, name, "")) for name in dir(chain) if name[0] != "_")
        chain = chain.__cause__ or chain.__context__
    # The lines of this test are in a traceback.
    lines = [line for line in shown.splitlines() if "test_credentials" not in line]
    quoted = [line.strip() for line in Path(__file__).read_text().splitlines()]
    assert not [line for line in lines if password in line and line.strip() not in quoted]


def test_a_client_has_its_own(
    server: EtcdServer, users: Users, prefix: str, environment: pytest.MonkeyPatch
) -> None:
    """A rendezvous with a client of the caller's takes nothing from the environment."""
    environment.setenv("TORCHETCD_PASSWORD", "of somebody else")
    environment.setenv("SLURM_PROCID", "7")
    with server.get_client(username=USER, password=PASSWORD) as client:
        assert not EtcdRendezvous(client, f"/torch{prefix}", "own", 1, 1, 10, 1).is_closed()
    options = default_options()
    assert (options.user, options.password, options.infra_rank) == (None, None, None)
    assert options.join_timeout == parse_options({"user": USER, "infra_rank": 7}).join_timeout
