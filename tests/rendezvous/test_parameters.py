"""The parameters of the handler: their names, defaults and checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.handlers import handlers_of
from torchetcd._rendezvous.options import PARAMETERS, parse_options
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvous, EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer


@pytest.fixture
def run_id(prefix: str) -> str:
    return prefix.strip("/")


@pytest.fixture
def make(etcd_server: EtcdServer, run_id: str) -> Iterator[Callable[..., EtcdRendezvousHandler]]:
    with handlers_of(etcd_server.get_endpoint(), run_id) as create:
        yield create


class TestParameters:
    def test_minimum(self, etcd_server: EtcdServer, run_id: str) -> None:
        handler = create_rdzv_handler(
            RendezvousParameters("etcd", etcd_server.get_endpoint(), run_id, 1, 1)
        )
        assert handler.next_rendezvous().world_size == 1
        assert handler.shutdown()

    def test_additional(self, make: Callable[..., EtcdRendezvousHandler], prefix: str) -> None:
        """As `--rdzv-conf` gives them: strings."""
        handler = make(
            1,
            4,
            timeout="60",
            last_call_timeout="1",
            close_timeout="10",
            keep_alive_ttl="5",
            on_member_loss="Ignore",
            run_ttl="60",
            etcd_prefix=prefix,
            protocol="hTTp",
            read_timeout="10",
            heartbeat_timeout="5",
            cas_backoff_max_seconds="1",
        )
        assert handler.next_rendezvous().world_size == 1

    def test_names_of_both_of_torchs_handlers(self) -> None:
        assert parse_options({"timeout": "7"}).join_timeout == 7
        assert parse_options({"join_timeout": 7}).join_timeout == 7
        assert parse_options({"join_timeout": "7", "timeout": 7}).join_timeout == 7
        file = __file__
        options = parse_options({"cacert": file, "cert": file, "key": file})
        assert options == parse_options({"ca_cert": file, "ssl_cert": file, "ssl_cert_key": file})

    def test_defaults(self) -> None:
        options = parse_options({})
        assert (options.join_timeout, options.last_call_timeout, options.close_timeout) == (
            600,
            30,
            30,
        )
        assert (options.keep_alive_ttl, options.run_ttl) == (10, 7200)
        assert (options.etcd_prefix, options.protocol) == ("/torchelastic/p2p", "http")
        assert parse_options({"ca_cert": __file__}).protocol == "https"
        assert parse_options({"cert": __file__}).protocol == "https"
        assert parse_options({"ca_cert": __file__, "protocol": "http"}).protocol == "http"
        assert (options.on_member_loss, options.read_timeout) == ("restart", 60)
        assert (options.if_closed, options.survivor_grace) == ("fail", 60)
        assert parse_options({"timeout": None}) == options

    @pytest.mark.parametrize(
        ("config", "ttl"),
        [
            ({"keep_alive_interval": "2", "keep_alive_max_attempt": "4"}, 8),
            ({"keep_alive_interval": 10}, 30),
            ({"keep_alive_max_attempt": 2}, 10),
            ({"keep_alive_interval": 1, "keep_alive_max_attempt": 1}, 2),
            ({"keep_alive_ttl": 3, "keep_alive_interval": 9, "keep_alive_max_attempt": 9}, 3),
        ],
    )
    def test_the_ttl(self, config: dict[str, Any], ttl: int) -> None:
        assert parse_options(config).keep_alive_ttl == ttl

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("timeout", "0", "at least 1"),
            ("join_timeout", "-1", "at least 1"),
            ("join_timeout", "soon", "a whole number of seconds"),
            ("join_timeout", "1.5", "a whole number of seconds"),
            ("join_timeout", "", "a whole number of seconds"),
            ("join_timeout", True, "a whole number of seconds"),
            ("join_timeout", float("inf"), "a whole number of seconds"),
            ("join_timeout", float("nan"), "a whole number of seconds"),
            ("join_timeout", [], "a whole number of seconds"),
            ("join_timeout", 30.7, "a whole number of seconds"),
            ("join_timeout", Decimal("30.7"), "a whole number of seconds"),
            ("join_timeout", 9999999999999999999, "at most 9000000000"),
            ("join_timeout", "9" * 5000, "at most 9000000000"),
            ("timeout", 1e300, "at most 9000000000"),
            ("last_call_timeout", "-1", "at least 0"),
            ("last_call_timeout", 0.9, "a whole number of seconds"),
            ("last_call_timeout", 10**30, "at most 9000000000"),
            ("survivor_grace", "9000000001", "at most 9000000000"),
            ("close_timeout", 10**19, "at most 9000000000"),
            ("keep_alive_ttl", 10**12, "at most 9000000000 as etcd's leases have"),
            ("keep_alive_interval", 10**30, "at most 9000000000"),
            ("keep_alive_max_attempt", 10**30, "at most 9000000000"),
            ("run_ttl", "9000000001", "at most 9000000000 as etcd's leases have"),
            ("read_timeout", float("inf"), "at most 9000000000"),
            ("read_timeout", 10**400, "at most 9000000000"),
            ("read_timeout", True, "a number of seconds"),
            ("close_timeout", "0", "at least 1"),
            ("keep_alive_ttl", "1", "at least 2"),
            ("keep_alive_interval", "0", "at least 1"),
            ("keep_alive_max_attempt", "x", "a whole number of attempts, at least 1"),
            ("run_ttl", 1, "at least 2"),
            ("read_timeout", "0", "at least 0.1"),
            ("read_timeout", "ten", "a number of seconds"),
            ("on_member_loss", "maybe", "restart or ignore"),
            ("protocol", "ftp", "http or https"),
            ("etcd_prefix", "", "a non-empty string"),
            ("if_closed", "again", "fail or reopen"),
            ("survivor_grace", -1, "a whole number of seconds, at least 0"),
            ("etcd_prefix", 7, "a non-empty string"),
            ("user", "", "a non-empty string"),
            ("password", 12345, "a non-empty string"),
            ("ca_cert", "/no/such/file", "does not exist"),
            ("cacert", "/no/such/file", "does not exist"),
            ("ssl_cert", "/no/such/file", "does not exist"),
            ("cert", "/no/such/file", "does not exist"),
            ("ssl_cert_key", "/no/such/file", "does not exist"),
            ("key", "/no/such/file", "does not exist"),
        ],
    )
    def test_invalid(self, name: str, value: object, allowed: str) -> None:
        # Nobody listens there: nothing is sent before all is checked.
        params = RendezvousParameters("etcd-v3", "127.0.0.1:1", "run", 1, 1, **{name: value})
        with pytest.raises(ValueError, match="^The rendezvous parameter") as raised:
            create_rdzv_handler(params)
        message = str(raised.value)
        assert f"'{name}'" in message
        assert allowed in message
        # A password is not for the log, nor is what nobody reads to the end.
        assert (str(value)[:100] in message) == (name != "password")
        assert len(message) < 500

    @pytest.mark.parametrize(
        ("argv", "environment", "grace"),
        [
            (["/bin/torchrun", "--shutdown-timeout", "60", "train.py"], {}, 90),
            (["/bin/torchrun", "--shutdown_timeout=0", "train.py"], {}, 30),
            (["/lib/torch/distributed/run.py", "--shutdown-timeout=45", "x.py"], {}, 75),
            # The script's own argument, and another program's.
            (["/bin/torchrun", "train.py", "--shutdown-timeout", "7"], {}, 60),
            (["/bin/other", "--shutdown-timeout", "7"], {}, 60),
            (["/bin/other"], {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}, 150),
            (["/bin/torchrun", "train.py"], {"PET_SHUTDOWN_TIMEOUT": "5"}, 35),
            (
                ["/bin/torchrun", "--shutdown-timeout", "9", "train.py"],
                {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"},
                39,
            ),
            (["/bin/other"], {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "soon"}, 60),
            (["/bin/torchrun", "--nnodes"], {}, 60),
            ([], {}, 60),
        ],
    )
    def test_how_long_survivors_are_waited_for(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        argv: list[str],
        environment: dict[str, str],
        grace: int,
    ) -> None:
        """As long as the launcher gives workers, and what it gives them after SIGKILL."""
        monkeypatch.setattr("sys.argv", argv)
        for name in ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert parse_options({}).survivor_grace == grace
        assert parse_options({"survivor_grace": "7"}).survivor_grace == 7
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("seconds", [9_000_000_000, "9000000000", 9e9])
    def test_what_is_longest(
        self, make: Callable[..., EtcdRendezvousHandler], seconds: object
    ) -> None:
        """All of it works, for as long as etcd itself can think of."""
        times = ["join_timeout", "survivor_grace", "close_timeout", "keep_alive_ttl", "run_ttl"]
        handler = make(1, 2**31 - 1, read_timeout=seconds, **dict.fromkeys(times, seconds))
        info = handler.next_rendezvous()
        info.store.set("key", "value")
        assert info.store.get("key") == b"value"
        assert handler.shutdown()

    def test_a_product_that_is_too_long(self) -> None:
        config = {"keep_alive_interval": 10**6, "keep_alive_max_attempt": 10**6}
        with pytest.raises(
            ValueError, match=r"'keep_alive_max_attempt' must be at most 9000000000"
        ):
            parse_options(config)

    def test_whole_numbers_however_they_are_given(self) -> None:
        options = parse_options(
            {"join_timeout": 30.0, "read_timeout": "2.5", "run_ttl": Decimal(9)}
        )
        assert (options.join_timeout, options.read_timeout, options.run_ttl) == (30, 2.5, 9)
        assert isinstance(options.join_timeout, int)

    @pytest.mark.parametrize(("least", "most"), [(1, 2**31), (0, 1), (2, 1), (10**30, 10**30)])
    def test_impossible_numbers_of_nodes(self, least: int, most: int) -> None:
        with pytest.raises(ValueError, match="1 <= min_nodes <= max_nodes <= 2147483647"):
            EtcdRendezvous(Client("127.0.0.1", 1), "/p", "run", least, most, 30, 5)

    @pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 10**19])
    def test_impossible_times(self, seconds: float) -> None:
        """torch's class takes fractions, which must be times all the same."""
        with pytest.raises(ValueError, match="'timeout' must be a number of seconds, at least 0"):
            EtcdRendezvous(Client("127.0.0.1", 1), "/p", "run", 1, 1, seconds, 5)
        with pytest.raises(ValueError, match="'last_call_timeout' must be a number of seconds"):
            EtcdRendezvous(Client("127.0.0.1", 1), "/p", "run", 1, 1, 30, seconds)

    def test_two_names_with_two_values(self) -> None:
        """Torchrun adds timeout=900 to what it is given."""
        assert parse_options({"timeout": 900, "join_timeout": "7"}).join_timeout == 7
        with pytest.raises(ValueError, match="'timeout'.* not 'x'"):
            parse_options({"timeout": "x", "join_timeout": "7"})

    def test_a_key_without_its_certificate(self) -> None:
        with pytest.raises(ValueError, match="'ssl_cert_key' needs 'ssl_cert'"):
            parse_options({"key": __file__})

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("last_call_timout", "'last_call_timeout'"),
            ("keepalive_ttl", "'keep_alive_ttl'"),
            ("etcd_prefx", "'etcd_prefix'"),
        ],
    )
    def test_misspelt(self, caplog: pytest.LogCaptureFixture, name: str, hint: str) -> None:
        parse_options({name: "1"})
        assert f"The rendezvous parameter '{name}' is not known" in caplog.text
        assert f"Did you mean {hint}?" in caplog.text

    def test_unknown(self, caplog: pytest.LogCaptureFixture) -> None:
        parse_options({"zzz": "1"})
        assert "'zzz' is not known" in caplog.text
        assert "Did you mean" not in caplog.text

    def test_known(self, caplog: pytest.LogCaptureFixture) -> None:
        parse_options({name: None for parameter in PARAMETERS for name in parameter.names})
        assert not caplog.records

    @pytest.mark.parametrize(
        "endpoint", ["host:port", "host:0", "host:65536", "[::1", "http://", "a b"]
    )
    def test_an_endpoint_that_is_none(self, endpoint: str) -> None:
        with pytest.raises(ValueError, match="endpoint") as raised:
            create_rdzv_handler(RendezvousParameters("etcd-v3", endpoint, "run", 1, 1))
        assert endpoint in str(raised.value)

    def test_what_only_a_quorum_has(
        self, make: Callable[..., EtcdRendezvousHandler], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A site may set the variable of the secret for all its jobs, which is no mistake."""
        make(quorum="5", quorum_replace_after=60)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.message.startswith(
            "The rendezvous parameters 'quorum' and 'quorum_replace_after' have no effect, because the "
            "endpoint 'localhost:"
        )
        caplog.clear()
        make()
        assert not caplog.records

    @pytest.mark.parametrize("name", ["none", "None"])
    def test_the_run_that_has_no_name(
        self,
        make: Callable[..., EtcdRendezvousHandler],
        caplog: pytest.LogCaptureFixture,
        prefix: str,
        name: str,
    ) -> None:
        make(run_id=name, etcd_prefix=prefix)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "--rdzv-id" in record.message
