"""How a job ended, as the exception under way tells it, and what that does for a spare."""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    record,
)
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError

from support.processes.zygote import Zygote, run_forked
from torchetcd._closed_run import SHUTDOWN, Closed, closed_text, how_it_ended
from torchetcd._rendezvous.job_ending import SUCCEEDED, Ending, ending, failure_of_agent, under_way
from torchetcd.errors import RendezvousOverError

HOST = "gpu-3"


def failure(
    exitcode: int, error_file: str = "", at: int = 0, local_rank: int = 1
) -> ProcessFailure:
    made = ProcessFailure(local_rank, 4711, exitcode, error_file)
    made.timestamp = at or made.timestamp
    return made


def child_failed(*failures: ProcessFailure, name: str = "/home/ann/train.py") -> ChildFailedError:
    return ChildFailedError(name, {5 + number: made for number, made in enumerate(failures)})


class TestText:
    def test_no_exception(self) -> None:
        assert ending(None, HOST) == SUCCEEDED == ("succeeded", "the job succeeded")

    def test_an_exit_code(self) -> None:
        assert ending(child_failed(failure(7)), HOST) == (
            "failed",
            "train.py failed on host gpu-3, rank 5, exit code 7",
        )

    def test_a_signal_that_killed_a_worker(self) -> None:
        assert ending(child_failed(failure(-9)), HOST) == (
            "failed",
            "train.py failed on host gpu-3, rank 5, exit code -9 (SIGKILL)",
        )
        _, text = ending(child_failed(failure(-99)), HOST)
        assert text.endswith("exit code -99 (signal 99)")

    @pytest.mark.parametrize(
        ("message", "said"),
        [
            (
                {"message": "ValueError: no\nmore", "extraInfo": {"timestamp": "1"}},
                ": ValueError: no",
            ),
            ("\n RuntimeError: gone", ": RuntimeError: gone"),
            ({"extraInfo": {"timestamp": "1"}}, ""),
        ],
    )
    def test_the_error_of_a_worker(self, tmp_path: Path, message: object, said: str) -> None:
        path = tmp_path / "error.json"
        path.write_text(json.dumps({"message": message}))
        _, text = ending(child_failed(failure(1, str(path))), HOST)
        assert text == f"train.py failed on host gpu-3, rank 5, exit code 1{said}"

    def test_the_first_of_several_workers(self) -> None:
        _, text = ending(
            child_failed(failure(1, at=30), failure(7, at=20), failure(1, at=40)), HOST
        )
        assert "rank 6, exit code 7" in text

    def test_a_module(self) -> None:
        assert ending(child_failed(failure(1), name="pkg.train"), HOST).text.startswith(
            "pkg.train failed"
        )
        assert ending(child_failed(failure(1), name=""), HOST).text.startswith("a worker failed")

    @pytest.mark.parametrize(
        ("exc", "said"),
        [
            (SignalException("x", signal.SIGTERM), ("signal", "the agent got SIGTERM")),
            (KeyboardInterrupt(), ("signal", "the agent got SIGINT")),
            (ValueError("one\ntwo"), ("failed", "ValueError: one")),
            (ValueError(), ("failed", "ValueError")),
            (SystemExit(), SUCCEEDED),
            (SystemExit(0), SUCCEEDED),
            (SystemExit(3), ("failed", "SystemExit: 3")),
            (RendezvousOverError("x"), SUCCEEDED),
        ],
    )
    def test_of_the_agent(self, exc: BaseException, said: tuple[str, str]) -> None:
        assert ending(exc, HOST) == said

    def test_an_exception_of_which_nothing_can_be_asked(self) -> None:
        class HostileError(Exception):
            def __str__(self) -> str:
                raise ZeroDivisionError

        assert ending(HostileError(), HOST) == ("failed", "HostileError")
        broken = child_failed(failure(1))
        broken.failures = {}
        assert ending(broken, HOST) == ("failed", "ChildFailedError")


class TestUnderWay:
    """What torch's launcher does around `shutdown()`."""

    @staticmethod
    def launch(do: Any, outer: BaseException | None) -> Ending:
        """The shape of `launch_agent` (torch `launcher/api.py`)."""
        seen: list[Ending] = []

        def agent() -> object:
            try:
                return do()
            except ChildFailedError:  # noqa: TRY203 - as there
                raise
            except Exception:  # noqa: TRY203 - as there
                raise
            finally:
                seen.append(ending(under_way(), HOST, outer))

        with contextlib.suppress(Exception):
            agent()
        return seen[0]

    @staticmethod
    def fail(exc: BaseException, cause: BaseException | None = None) -> Any:
        def do() -> None:
            if cause is None:
                raise exc
            try:
                raise cause
            except BaseException:
                raise exc  # noqa: B904 - what fails on the way out

        return do

    def test_a_return(self) -> None:
        assert self.launch(lambda: {0: None}, None) == SUCCEEDED

    def test_a_raise(self) -> None:
        assert self.launch(self.fail(child_failed(failure(7))), None).text.endswith("exit code 7")

    def test_what_fails_on_the_way_out(self) -> None:
        """The reason of the end is further down the chain."""
        late = OSError("no such process")
        assert self.launch(self.fail(late, SignalException("x", signal.SIGTERM)), None) == (
            "signal", "the agent got SIGTERM",
        )  # fmt: skip
        _, text = self.launch(self.fail(late, child_failed(failure(7))), None)
        assert text.endswith("exit code 7")
        assert (
            self.launch(self.fail(late, ValueError("x")), None).text == "OSError: no such process"
        )

    def test_an_agent_that_is_started_again_after_an_error(self) -> None:
        """The error of the first launch is being handled while the second one ends well."""
        try:
            raise child_failed(failure(7))
        except ChildFailedError:
            before = under_way()
            assert self.launch(lambda: None, None).result == "failed"
            assert self.launch(lambda: None, before) == SUCCEEDED
            # An error of its own has the other one as its context.
            assert self.launch(self.fail(ValueError("mine")), before).text == "ValueError: mine"


class TestAgentOfOlderTorch:
    """It calls `shutdown()` itself when its workers have failed, and raises nothing."""

    class Agent:
        def __init__(self, entrypoint: object, *args: str) -> None:
            spec = types.SimpleNamespace(entrypoint=entrypoint, args=args)
            self._worker_group = types.SimpleNamespace(spec=spec)

        def _invoke_run(self, run_result: object) -> BaseException | None:
            return self._stop_workers()

        def _stop_workers(self) -> BaseException | None:
            return failure_of_agent()

    @pytest.mark.parametrize(
        ("command", "name"),
        [
            ((sys.executable, "-u", "/home/ann/train.py", "--steps"), "train.py"),
            ((sys.executable, "-u", "-m", "pkg.train"), "pkg.train"),
            (("/bin/sleep", "7"), "sleep"),
            ((failure,), "failure"),
        ],
    )
    def test_workers_that_failed(self, command: tuple[Any, ...], name: str) -> None:
        result = RunResult(state=WorkerState.FAILED, failures={5: failure(7)})
        assert ending(self.Agent(*command)._invoke_run(result), HOST) == (
            "failed",
            f"{name} failed on host gpu-3, rank 5, exit code 7",
        )

    def test_workers_of_which_nothing_is_known(self) -> None:
        result = RunResult(state=WorkerState.UNHEALTHY)
        said = ending(self.Agent("x")._invoke_run(result), HOST)
        assert said == ("failed", "the workers failed")

    @pytest.mark.parametrize("result", [RunResult(state=WorkerState.SUCCEEDED), None, 7])
    def test_nothing_failed(self, result: object) -> None:
        assert self.Agent("x")._invoke_run(result) is None
        assert failure_of_agent() is None


class TestOver:
    """The exception of a spare whose job has succeeded."""

    def test_it_is_both(self) -> None:
        over = RendezvousOverError("the job is over")
        assert isinstance(over, RendezvousClosedError)
        assert isinstance(over, SystemExit)
        assert (str(over), over.code) == ("the job is over", 0)
        again = pickle.loads(pickle.dumps(over))
        assert (str(again), again.code) == ("the job is over", 0)

    def test_torchs_decorator_of_main(self) -> None:
        @record
        def main() -> int:
            raise RendezvousOverError("x")

        assert main() is None

    @pytest.mark.parametrize("decorated", ["", "@record"])
    def test_the_end_of_the_interpreter(self, decorated: str, torch_alone: Zygote) -> None:
        program = f"""
from torch.distributed.elastic.multiprocessing.errors import record
from torchetcd.errors import RendezvousOverError
{decorated}
def main():
    try:
        raise RendezvousOverError("the job is over")
    except Exception:
        raise
main()
"""
        done = run_forked(torch_alone, program)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestClosedText:
    NOW = 1_800_000_300.0

    def text(self, **other: Any) -> str:
        fields: dict[str, Any] = {
            "by": "gpu-3 (pid 7)", "reason": SHUTDOWN, "at": 1_800_000_000, "result": "succeeded",
            "text": "the job succeeded", "round": 3, "world": 16, "run_ttl_s": 7200.0,
        }  # fmt: skip
        return closed_text("my job", Closed(tuple((fields | other).values())), self.NOW)

    def test_all_that_is_known(self) -> None:
        assert self.text() == (
            "The run 'my job' is closed. It was closed at 2027-01-15 08:00:00 UTC, 5 min ago, by gpu-3 "
            "(pid 7): the job succeeded (shutdown() was called). To go on: start the job with another "
            "--rdzv-id; or open this run again by `torchetcd reopen 'my job' --reason ...`, or by "
            "if_closed=reopen in --rdzv-conf. By itself it is forgotten 2 h after its last agent has gone."
        )

    def test_by_an_operator(self) -> None:
        said = self.text(by="ann@ops", reason="the disk is full.", result=None, text=None)
        assert "by ann@ops: the disk is full. To go on" in said

    def test_without_a_time(self) -> None:
        assert "It was closed by gpu-3" in self.text(at=0)

    @pytest.mark.parametrize(
        ("text", "reason", "said"),
        [
            (None, SHUTDOWN, SHUTDOWN),
            ("the job succeeded", "the job succeeded", "the job succeeded"),
            ("a.py failed.", "budget spent", "a.py failed (budget spent)"),
            ("a\x1b[2Jb", "", "a [2Jb"),
            (None, None, "no reason was given"),
        ],
    )
    def test_how_it_ended(self, text: str | None, reason: str | None, said: str) -> None:
        assert how_it_ended(text, reason) == said
