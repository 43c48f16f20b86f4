"""Known bugs put back, one at a time, in a copy of the sources: the tests must find each of them.

    python tools/mutants.py [name ...]

Each mutant is one exact replacement. Where it does not fit the sources any more, that is an error, too.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = [
    "Cargo.toml",
    "Cargo.lock",
    "pyproject.toml",
    "README.md",
    "src",
    "benches",
    "python",
    "tests",
]
RUST_TESTS = ["cargo", "test", "--quiet", "--no-default-features", "--profile", "ci", "--lib"]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug, and the tests of which at least one must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    rust: bool = False


MUTANTS = [
    Mutant(
        "blind retry of add (a repeated write has no receipt)",
        "src/etcd/once/receipt.rs",
        "Compare::new(self.receipt.key.clone(), Ordering::Equal, version)",
        "Compare::new(self.receipt.key.clone(), Ordering::NotEqual, Target::Version(-1))",
        ("tests/client/test_lost_answers.py", "-k", "add"),
    ),
    Mutant(
        "the same, found by random histories",
        "src/etcd/once/receipt.rs",
        "Compare::new(self.receipt.key.clone(), Ordering::Equal, version)",
        "Compare::new(self.receipt.key.clone(), Ordering::NotEqual, Target::Version(-1))",
        ("tests/faults/test_store_histories.py", "-k", "one_member or anything"),
    ),
    Mutant(
        "lease renewal stops at the first error (pytorch issue 194870)",
        "src/etcd/lease.rs",
        "// At once at first: a short TTL leaves little time.",
        "std::future::pending::<()>().await;",
        ("tests/faults/test_scenarios.py", "-k", "transient"),
    ),
    Mutant(
        "a watch is restarted without a revision",
        "src/etcd/watch/session.rs",
        "let start = if watching.opened { (watching.next - 1).max(1) } else { watching.next };",
        "let start = if watching.opened { 0 } else { watching.next };",
        (
            "tests/faults/test_scenarios.py",
            "tests/client/test_connection_failover.py",
            "-k",
            "watch",
        ),
    ),
    Mutant(
        "final is written without its guard",
        "src/rendezvous/core/lead/mod.rs",
        "if purpose == Purpose::Complete && cx.settings.wrong(Variant::UnguardedCompletion) {",
        "if purpose == Purpose::Complete {",
        ("every_seed_keeps_the_invariants",),
        rust=True,
    ),
    Mutant(
        "an answer that was lost is taken as if nothing had happened",
        "src/etcd/once/receipt.rs",
        "Some(kv) if kv.value == self.mark(true) => Found::Wrote(kv.mod_revision),",
        "Some(kv) if kv.value == self.mark(true) => Found::NotApplied,",
        ("tests/client/test_lost_answers.py",),
    ),
]


def run(mutant: Mutant, copy: Path) -> bool:
    """Return whether the tests found it."""
    path = copy / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        message = f"{mutant.file} holds {source.count(mutant.old)} times: {mutant.old}"
        raise SystemExit(message)
    # A file that is older than what was built from it would not be built again.
    path.write_text(source.replace(mutant.old, mutant.new))
    env = os.environ | {
        "CARGO_TARGET_DIR": str(ROOT / "target" / "mutants"),
        "PYTHONPATH": str(copy / "python"),
        # A bug may leave something unused.
        "CARGO_ENCODED_RUSTFLAGS": "-Awarnings",
    }
    try:
        if mutant.rust:
            command = [*RUST_TESTS, *mutant.tests]
        else:
            build = ["cargo", "build", "--quiet", "--profile", "ci"]
            subprocess.run(build, cwd=copy, env=env, check=True)
            built = ROOT / "target" / "mutants" / "ci" / "lib_torchetcd.so"
            shutil.copy(built, copy / "python" / "torchetcd" / "_torchetcd.abi3.so")
            command = [sys.executable, "-m", "pytest", "--quiet", "-x", *mutant.tests]
        done = subprocess.run(
            command, cwd=copy, env=env, check=False, capture_output=True, text=True
        )
    finally:
        path.write_text(source)
    # 1 is pytest's "tests failed", 101 cargo's; all else means that the tests did not run.
    if done.returncode not in {0, 1, 101} or "error: could not compile" in done.stderr:
        raise SystemExit(done.stdout + done.stderr)
    summary = [line for line in done.stdout.splitlines() if "FAILED" in line or "violates" in line]
    print("   ", *summary[-1:], flush=True)
    return done.returncode != 0


def main() -> int:
    """Run those whose names hold one of the arguments; all without any."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(a in m.name for a in sys.argv[1:])]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        for mutant in wanted:
            begun = time.monotonic()
            print(f"{mutant.name}: {mutant.file}", flush=True)
            if not run(mutant, copy):
                missed.append(mutant.name)
            verdict = "MISSED" if missed[-1:] == [mutant.name] else "found"
            print(f"    {verdict} after {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{len(wanted) - len(missed)} of {len(wanted)} found", *missed, sep="\n  ")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
