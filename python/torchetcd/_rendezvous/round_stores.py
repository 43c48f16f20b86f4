"""What the members of a round share in etcd, as a rendezvous gives it out."""

from __future__ import annotations

import json
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.distributed import Store
from torch.distributed.elastic.rendezvous.api import RendezvousStateError

from torchetcd.etcd_store import EtcdStore

if TYPE_CHECKING:
    from torchetcd._torchetcd import Rendezvous
    from torchetcd.etcd import Client


class RoundStores:
    """The part of `EtcdRendezvous` that is about stores."""

    client: Client
    _node: Rendezvous
    _run_path: str
    _timeout: float

    def __init__(self) -> None:
        self._stores: list[tuple[int, EtcdStore]] = []
        # Not at the end of the interpreter, when stores may be used to the last.
        weakref.finalize(self, _give_up, self._stores).atexit = False

    def get_path(self, path: str) -> str:
        """Return the etcd key of `path` within this run."""
        return f"{self._run_path}/{path.lstrip('/')}"

    def _round_path(self, rdzv_version: int, name: str) -> str:
        """Return the etcd key of a part of what the members of a round share.

        A round that restarts after its record was deleted has the same number but another attempt.
        """
        return self.get_path(f"/rdzv/v_{rdzv_version}/{self._node.attempt(rdzv_version)}/{name}")

    def setup_kv_store(self, rdzv_version: int) -> Store:
        """Return the store of a round, shared by its members.

        A wait in it ends early when a member of the round is lost.
        """
        native = self._node.store(rdzv_version)
        store = EtcdStore._of_round(self.client, self._round_path(rdzv_version, "kv"), native)
        # A store stays alive until it is closed, because C++ may use it. Nobody uses one of two rounds
        # ago: its keys are deleted when the next round completes.
        for version, old in self._stores:
            if version < rdzv_version - 1:
                old.close()
        self._stores[:] = [kept for kept in self._stores if kept[0] >= rdzv_version - 1]
        self._stores.append((rdzv_version, store))
        return store

    def store_extra_data(self, rdzv_version: int, key: str, value: Any) -> None:
        """Keep a value that the nodes of a round can load by `load_extra_data`.

        Args:
            rdzv_version: The round.
            key: Any string.
            value: Anything that JSON can hold.
        """
        with self._extra_data(rdzv_version) as store:
            store.set(key, json.dumps(value))

    def load_extra_data(self, rdzv_version: int, key: str, timeout: float | None = None) -> Any:
        """Wait for a value that a node of the round stores, and return it.

        Args:
            rdzv_version: The round.
            key: As given to `store_extra_data`.
            timeout: Seconds to wait; the barrier's timeout without it (torch waits for ever).

        Raises:
            LookupError: if it is not there in time; also a `torch.distributed.DistStoreError`.
            RendezvousStateError: if the value was not stored by `store_extra_data`.
        """
        with self._extra_data(rdzv_version) as store:
            store.set_timeout(timedelta(seconds=self._timeout if timeout is None else timeout))
            value = store.get(key)
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as exc:
            path = self._round_path(rdzv_version, "extra_data")
            message = f"The extra data '{key}' below the etcd key '{path}' is not JSON: {exc}."
            raise RendezvousStateError(message) from exc

    def _extra_data(self, rdzv_version: int) -> EtcdStore:
        native = self._node.store(rdzv_version, "extra_data")
        return EtcdStore._of_round(
            self.client, self._round_path(rdzv_version, "extra_data"), native
        )


def _give_up(stores: list[tuple[int, EtcdStore]]) -> None:
    for _, store in stores:
        store._give_up()
