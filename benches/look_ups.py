"""Names that are not looked up: a benchmark of stores must not measure a name server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NoReturn

# In the environment of the second start.
_DONE = "TORCHETCD_BENCH_WITHOUT_LOOK_UPS"
# On a file system in memory that only this namespace has: nothing is left behind.
_SCRIPT = """
mount -t tmpfs none /mnt
echo 'hosts: files' > /mnt/nsswitch.conf
mount --bind /mnt/nsswitch.conf /etc/nsswitch.conf
exec "$@"
"""


def without_look_ups() -> bool:  # noqa: RET503 - it does not return there
    """Start this program again where names are known from /etc/hosts alone; False where that cannot be done.

    It needs `unshare` and, unless it is root, user namespaces.
    """
    if _DONE in os.environ:
        return True
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    prefix = [unshare, "--mount", *(["--map-root-user"] if os.getuid() else [])]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        return False
    _start_again([*prefix, "sh", "-ec", _SCRIPT, "sh", sys.executable, *sys.argv])


def _start_again(command: list[str]) -> NoReturn:
    os.environ[_DONE] = "1"
    os.execv(command[0], command)
