"""torchft's lighthouse as a process of its own, as `torchft_lighthouse` runs it."""

from __future__ import annotations

from multiprocessing.connection import Connection

from forked import Forked, be_silent


class Lighthouse:
    """It runs for so many nodes until it is closed."""

    def __init__(self, nodes: int) -> None:
        self._process = Forked(_serve, nodes)
        try:
            self.address = str(self._process.receive(60))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.kill()

    def cpu_s(self) -> float:
        return self._process.cpu_s()


def _serve(connection: Connection, nodes: int) -> None:
    from torchft.coordination import LighthouseServer

    be_silent()
    server = LighthouseServer(bind="127.0.0.1:0", min_replicas=nodes)
    # It names itself by the host's name, which may stand for another address than it listens on.
    port = server.address().rsplit(":", 1)[1]
    connection.send(f"http://127.0.0.1:{port}")
    connection.poll(None)
