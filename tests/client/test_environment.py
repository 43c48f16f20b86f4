"""Environment variables: one table, read by jobs and by the command line alike, after what is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.certificates import Authority
from torchetcd import _environment
from torchetcd._defaults import GROUP_PREFIX
from torchetcd._environment import VARIABLES
from torchetcd._registration import register
from torchetcd._rendezvous.group_url import parse_url
from torchetcd._rendezvous.options import make_client, parse_options
from torchetcd.cli import main
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import create_backend
from torchetcd.etcd_server import EtcdServer

PACKAGE = Path(_environment.__file__).parent
OURS = re.compile(r"\b_?TORCHETCD_[A-Z_]*[A-Z]\b")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in VARIABLES:
        if "TORCHETCD_" in variable.name:
            monkeypatch.delenv(variable.name, raising=False)
    return monkeypatch


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, str]:
    """Files of a CA, a certificate and its key."""
    ca = Authority(tmp_path)
    return ca.ca_cert, *ca.issue("client")


def _parameters(endpoint: str = "", run_id: str = "run", **config: Any) -> RendezvousParameters:
    given = {"join_timeout": 30, "last_call_timeout": 0, "local_addr": "127.0.0.1"}
    return RendezvousParameters("etcd-v3", endpoint, run_id, 1, 1, **(given | config))


class TestTable:
    def test_it_has_every_variable_of_the_source(self) -> None:
        named = {
            name
            for path in PACKAGE.rglob("*.py")
            for name in OURS.findall(path.read_text(encoding="utf-8"))
        }
        assert named == {variable.name for variable in VARIABLES if "TORCHETCD" in variable.name}

    def test_it_says_what_each_means(self) -> None:
        names = [variable.name for variable in VARIABLES]
        assert len(set(names)) == len(names)
        assert all(variable.meaning.endswith(".") and variable.readers for variable in VARIABLES)

    @pytest.mark.parametrize("name", ["ENDPOINT", "PREFIX", "USER", "PASSWORD"])
    def test_empty_is_not_set(self, environment: pytest.MonkeyPatch, name: str) -> None:
        variable = getattr(_environment, name)
        assert variable.get() is None
        environment.setenv(variable.name, "")
        assert variable.get() is None
        environment.setenv(variable.name, "x")
        assert variable.get() == "x"


class TestSwitches:
    @pytest.mark.parametrize("value", ["1", "true", "True", "YES", "on", " 1 "])
    def test_on(
        self, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
    ) -> None:
        environment.setenv("TORCHETCD_DEBUG", value)
        assert _environment.DEBUG.is_on()
        assert not caplog.records

    @pytest.mark.parametrize("value", ["", "0", "false", "NO", "Off"])
    def test_off(
        self, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
    ) -> None:
        environment.setenv("TORCHETCD_DEBUG", value)
        assert not _environment.DEBUG.is_on()
        assert not caplog.records

    @pytest.mark.parametrize("value", ["2", "y", "enable", "tcp://10.0.0.1:80"])
    def test_neither(
        self, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
    ) -> None:
        environment.setenv("TORCHETCD_DEBUG", value)
        assert not _environment.DEBUG.is_on()
        (record,) = caplog.records
        assert record.getMessage() == (
            "The environment variable TORCHETCD_DEBUG must be 1, true, yes, on (on) or 0, false, no, off "
            f"(off), not {value!r}: it counts as off."
        )

    def test_the_takeover(
        self, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        environment.setenv("TORCHETCD_OVERRIDE", "yes")
        caplog.set_level("INFO", "torchetcd")
        register()
        assert "TORCHETCD_OVERRIDE=yes is set" in caplog.text

    def test_the_traceback_of_the_command_line(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("TORCHETCD_DEBUG", "on")
        environment.setattr("torchetcd.cli.app._invoke", lambda _args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["runs"])


class TestEndpoint:
    """One rule for all: what is given, then the variable, then localhost:2379."""

    @staticmethod
    def _handler(given: str) -> list[str]:
        return make_client(_parameters(given), parse_options({})).endpoints

    @staticmethod
    def _backend(given: str) -> list[str]:
        return create_backend(_parameters(given))[0]._client.endpoints

    @pytest.fixture(params=["_handler", "_backend"])
    def endpoints_of(
        self, request: pytest.FixtureRequest, environment: pytest.MonkeyPatch
    ) -> Callable[[str], list[str]]:
        # The backend asks for the members at once; nobody listens there.
        environment.setattr("torchetcd.etcd.Client._members", lambda *_: [])
        found: Callable[[str], list[str]] = getattr(self, request.param)
        return found

    @pytest.mark.parametrize("nothing", ["", " "])
    def test_not_given(
        self,
        environment: pytest.MonkeyPatch,
        endpoints_of: Callable[[str], list[str]],
        nothing: str,
    ) -> None:
        assert endpoints_of(nothing) == ["http://localhost:2379"]
        environment.setenv("TORCHETCD_ENDPOINT", "h1:1,https://h2")
        assert endpoints_of(nothing) == ["http://h1:1", "https://h2:2379"]
        assert endpoints_of("h3") == ["http://h3:2379"]

    def test_who_gives_none_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        self._handler("")
        assert caplog.messages == [
            "No etcd endpoint is given by --rdzv-endpoint or TORCHETCD_ENDPOINT: the default "
            "localhost:2379 is used."
        ]

    def test_a_variable_that_is_none(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("TORCHETCD_ENDPOINT", "h1;h2")
        with pytest.raises(
            ValueError, match=r"'h1;h2' is not valid.* given by TORCHETCD_ENDPOINT\.$"
        ):
            self._handler("")

    @pytest.mark.parametrize("given", ["h1,", ",h1", "h1,,h2"])
    def test_the_backend_takes_no_localhost_for_a_comma(self, given: str) -> None:
        with pytest.raises(ValueError, match="nothing before or after a comma"):
            self._backend(given)


class TestSite:
    """What a site sets for everybody holds for jobs and for the command line."""

    @pytest.fixture
    def site(self, etcd_server: EtcdServer, prefix: str, environment: pytest.MonkeyPatch) -> str:
        environment.setenv("TORCHETCD_ENDPOINT", etcd_server.get_endpoint())
        environment.setenv("TORCHETCD_PREFIX", f"{prefix}/site")
        return f"{prefix}/site"

    def test_a_job_and_the_command_line_agree(
        self, site: str, run_id: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        handler = create_rdzv_handler(_parameters(run_id=run_id))
        handler.next_rendezvous()
        assert handler._rdzv_impl.get_path("").startswith(f"{site}/run_")
        assert main(["runs", "--json"]) == 0
        assert run_id in json.dumps(json.loads(capsys.readouterr().out))
        handler.shutdown()

    def test_what_is_given_comes_first(self, site: str, prefix: str, run_id: str) -> None:
        handler = create_rdzv_handler(_parameters(run_id=run_id, etcd_prefix=f"{prefix}/own"))
        handler.next_rendezvous()
        assert handler._rdzv_impl.get_path("").startswith(f"{prefix}/own/run_")
        handler.shutdown()

    def test_groups_stay_apart(self, site: str) -> None:
        url = parse_url("etcd-v3://h/job?rank=0&world_size=1")
        assert url.options.etcd_prefix == GROUP_PREFIX

    def test_tls_protocol_and_timeout(
        self, environment: pytest.MonkeyPatch, certificate: tuple[str, str, str]
    ) -> None:
        names = ("TORCHETCD_CA_CERT", "TORCHETCD_CERT", "TORCHETCD_KEY")
        for name, file in zip(names, certificate, strict=True):
            environment.setenv(name, file)
        environment.setenv("TORCHETCD_TIMEOUT", "2.5")
        options = parse_options({})
        assert (options.ca_cert, options.ssl_cert, options.ssl_cert_key) == certificate
        # As the command line has it, too.
        assert (options.protocol, options.read_timeout) == ("https", 2.5)
        environment.setenv("TORCHETCD_PROTOCOL", "HTTP")
        assert parse_options({}).protocol == "http"
        assert parse_options({"protocol": "https", "read_timeout": 7}).read_timeout == 7
        backend, _ = self._unconnected(environment)
        client = backend._client
        assert (client._ca_cert, client._cert, client._key) == certificate
        assert (client.protocol, client.read_timeout) == ("http", 2.5)
        backend, _ = self._unconnected(environment, protocol="https", read_timeout=7)
        assert (backend._client.protocol, backend._client.read_timeout) == ("https", 7)

    @staticmethod
    def _unconnected(environment: pytest.MonkeyPatch, **config: Any) -> Any:
        environment.setattr("torchetcd.etcd.Client._members", lambda *_: [])
        return create_backend(_parameters("h", **config))

    @pytest.mark.parametrize("own", ["ssl_cert", "cert"])
    def test_a_certificate_that_is_given_has_its_own_key(
        self, environment: pytest.MonkeyPatch, certificate: tuple[str, str, str], own: str
    ) -> None:
        environment.setenv("TORCHETCD_CERT", certificate[1])
        environment.setenv("TORCHETCD_KEY", "/no/such/key")
        options = parse_options({own: __file__})
        assert (options.ssl_cert, options.ssl_cert_key) == (__file__, None)

    def test_the_key_of_a_certificate_that_is_an_option(
        self,
        environment: pytest.MonkeyPatch,
        certificate: tuple[str, str, str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        _, cert, key = certificate
        clients: list[tuple[str, str] | None] = []

        def client(*_args: object, cert: tuple[str, str] | None, **_kwargs: object) -> None:
            clients.append(cert)
            raise ValueError("enough is known")

        environment.setattr("torchetcd.cli.target.Client", client)
        environment.setenv("TORCHETCD_CERT", cert)
        environment.setenv("TORCHETCD_KEY", key)
        for options in ([], ["--cert", __file__], ["--cert", __file__, "--key", cert]):
            assert main(["runs", *options]) == 2
        assert clients == [(cert, key), (__file__, __file__), (__file__, cert)]
        assert capsys.readouterr().err.count("enough is known") == 3

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("CA_CERT", "/no/such/file", "names the file '/no/such/file', which does not exist"),
            ("CERT", "/no/such/file", "names the file '/no/such/file', which does not exist"),
            (
                "KEY",
                __file__,
                "needs TORCHETCD_CERT or the parameter 'ssl_cert', which is not given",
            ),
            ("PROTOCOL", "ftp", "must be http or https, not 'ftp'"),
            ("TIMEOUT", "soon", "must be a number of seconds, at least 0.1"),
            ("TIMEOUT", "0", "must be a number of seconds, at least 0.1"),
        ],
    )
    def test_what_cannot_be(
        self, environment: pytest.MonkeyPatch, name: str, value: str, said: str
    ) -> None:
        environment.setenv(f"TORCHETCD_{name}", value)
        with pytest.raises(ValueError, match=rf"^The environment variable TORCHETCD_{name} {said}"):
            parse_options({})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("h1;h2", "'h1;h2' is not valid: the host must not contain ';': commas separate endpoints"),
        ("h1 h2", "the host must not contain ' ': commas separate endpoints"),
        ("etcd-1:2379,", "'etcd-1:2379,' is not valid: there is nothing before or after a comma"),
        (",etcd-1:2379", "',etcd-1:2379' is not valid: there is nothing before or after a comma"),
        (
            "h1,h2:x",
            "'h2:x' in 'h1,h2:x' is not valid: the port 'x' is not a number from 1 to 65535",
        ),
        ("etcd://h:2379/job", "its scheme 'etcd://' is not http:// or https://"),
        ("etcd-v3://h:2379", "its scheme 'etcd-v3://' is not http:// or https://"),
        ("unix:///run/etcd.sock", "its scheme 'unix://' is not http:// or https://"),
        ("http://h:2379/v3", "it has the path '/v3'"),
        ("h:2379/job", "it has the path '/job'"),
        ('"h:2379"', "the host must not contain '\"'"),
        ("'h'", 'the host must not contain "\'"'),
        ("http://", "the host is missing"),
        (":2379", "the host is missing"),
        ("::1:2379:x", "an IPv6 address with a port needs brackets"),
        ("[::1", "the bracket is not closed"),
        ("[h]:1", "'h' is not an IPv6 address"),
        ("[fe80::1%eth0]", "'fe80::1%eth0' is not an IPv6 address"),
        ("[::1]x", "'x' after the bracket is not a port"),
        ("h:0", "the port '0' is not a number from 1 to 65535"),
        ("h:65536", "the port '65536' is not"),
        ("h:+1", "the port '+1' is not"),
        ("höst", "the host must not contain 'ö'"),
        ("h" * 300 + ";", "hhh...' is not valid"),
    ],
)
def test_an_endpoint_that_is_none(given: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^The etcd endpoint .*separated by commas\.$") as raised:
        create_rdzv_handler(_parameters(given))
    assert reason in str(raised.value)


@pytest.mark.parametrize("make", [Client, lambda endpoint: create_backend(_parameters(endpoint))])
def test_a_quorum_where_none_can_be(make: Callable[[str], object]) -> None:
    """One sentence that says where it can be, and what to do here."""
    with pytest.raises(ValueError, match="endpoint") as raised:
        make("job://a,b,c")
    assert str(raised.value) == (
        "The endpoint 'job://a,b,c' names a quorum inside the job, which only the rendezvous backend "
        "'etcd-v3', `torchetcd.aio.Client` and the command line know: give the endpoints of its members "
        "here, such as http://host-a:2379."
    )
