"""Names of runs and prefixes as parts of keys, such that no run lies within another one."""

from __future__ import annotations

from urllib.parse import quote

#: etcd keeps all keys in memory, and each key of a run begins with its name.
LONGEST_RUN_ID = 16 * 1024


def run_segment(run_id: str) -> str:
    """Return a run id as the part of a key that holds no slash, and that no other run id has.

    A slash would put run "a/b" below run "a". Letters, digits and most signs stay readable.

    Raises:
        ValueError: if the run id is no text, or too long.
    """
    try:
        segment = quote(run_id, safe="!$&'()*+,;=:@~ ")
    except UnicodeEncodeError:
        segment = ""
    if run_id and not segment:
        message = f"The run id must be text that UTF-8 can hold, not {run_id!r}."
        raise ValueError(message)
    if len(segment) > LONGEST_RUN_ID:
        message = (
            f"The run id must have at most {LONGEST_RUN_ID} bytes, slashes and other than ASCII counted "
            f"as three each, not {len(segment)}: {run_id[:40]!r}..."
        )
        raise ValueError(message)
    return segment


def prefix_path(prefix: str) -> str:
    """Return a prefix with one slash on either side.

    Raises:
        ValueError: if the prefix is no text.
    """
    try:
        prefix.encode()
    except UnicodeEncodeError:
        readable = False
    else:
        readable = True
    if not readable:
        message = f"The etcd prefix must be text that UTF-8 can hold, not {prefix!r}."
        raise ValueError(message)
    stripped = prefix.strip("/")
    return f"/{stripped}/" if stripped else "/"
