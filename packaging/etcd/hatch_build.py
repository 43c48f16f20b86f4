"""The part of the wheel's metadata that depends on where etcd is built for (tools/etcd_wheel.py)."""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PlatformHook(BuildHookInterface[Any]):
    """Gives the wheel its platform tag: it has programs, and no extension for one Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Set the tag."""
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ['TORCHETCD_ETCD_PLATFORM']}"
