"""Look into a built wheel and an sdist: what must be there, what must not, and how large they are.

python tools/check_wheel.py target/wheels
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

MIB = 1024 * 1024
MOST_WHEEL, MOST_SDIST = 6 * MIB, 2 * MIB
ROOT = Path(__file__).parent.parent
# Neither what is built nor what is only for this repository.
UNWANTED = re.compile(
    r"(^|/)(target|\.venv|\.git|\.cache|__pycache__|node_modules)(/|$)|\.so$|\.pyc$"
)


class WrongPackageError(Exception):
    """Says what is wrong with it."""


def require(condition: object, message: str) -> None:
    """Raise unless it holds."""
    if not condition:
        raise WrongPackageError(message)


def version() -> str:
    """Give the version of Cargo.toml, the only place that has it."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def check_wheel(path: Path, *, native: bool = True) -> None:
    """Check one wheel; without `native` as if it had an extension (for tests)."""
    size = path.stat().st_size
    require(
        size <= MOST_WHEEL, f"{path.name} has {size / MIB:.2f} MiB, more than {MOST_WHEEL / MIB}"
    )
    require(
        re.fullmatch(rf"torchetcd-{re.escape(version())}-cp310-abi3-\w+\.whl", path.name),
        f"{path.name} is no abi3 wheel of version {version()}",
    )
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = f"torchetcd-{version()}.dist-info"
        metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
        entries = wheel.read(f"{info}/entry_points.txt").decode()
    modules = {
        file.relative_to(ROOT / "python").as_posix()
        for file in (ROOT / "python").rglob("*")
        if file.suffix in {".py", ".pyi", ".typed"} or file.name == "py.typed"
    }
    require(modules <= names, f"{path.name} lacks {sorted(modules - names)}")
    others = {name for name in names - modules if not name.startswith(f"{info}/")}
    extension = {
        name for name in others if name.startswith("torchetcd/_torchetcd.") and ".so" in name
    }
    require(len(extension) == native, f"{path.name} has {len(extension)} extensions")
    require(others == extension, f"{path.name} has {sorted(others - extension)}, too")
    require(metadata["Version"] == version(), f"{path.name} says version {metadata['Version']}")
    require(metadata["Requires-Python"] == ">=3.10", "Requires-Python is not >=3.10")
    require("torch>=2.6" in metadata.get_all("Requires-Dist", []), "torch>=2.6 is not required")
    require(f"{info}/licenses/LICENSE" in names, "the license is missing")
    require("etcd-v3" in entries, "the entry point for torchrun is missing")
    print(
        f"{path.name}: {size / MIB:.2f} MiB of at most {MOST_WHEEL / MIB:.0f}, {len(names)} files"
    )


def check_sdist(path: Path) -> None:
    """Check one sdist: everything that a build needs, and nothing that was built."""
    size = path.stat().st_size
    require(
        size <= MOST_SDIST, f"{path.name} has {size / MIB:.2f} MiB, more than {MOST_SDIST / MIB}"
    )
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    wanted |= {file.relative_to(ROOT).as_posix() for file in (ROOT / "src").rglob("*.rs")}
    for folder in ("python", "build_backend"):
        wanted |= {file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob("*.py")}
    require(wanted <= names, f"{path.name} lacks {sorted(wanted - names)[:9]}")
    unwanted = sorted(name for name in names if UNWANTED.search(name))
    require(not unwanted, f"{path.name} has {unwanted[:9]}")
    print(
        f"{path.name}: {size / MIB:.2f} MiB of at most {MOST_SDIST / MIB:.0f}, {len(names)} files"
    )


def main() -> None:
    """Check what the folder has of torchetcd; check_etcd_wheel.py checks torchetcd-etcd."""
    folder = Path(sys.argv[1])
    wheels, sdists = sorted(folder.glob("torchetcd-*.whl")), sorted(folder.glob("*.tar.gz"))
    require(wheels, f"there is no wheel in {folder}")
    require(sdists, f"there is no sdist in {folder}")
    for wheel in wheels:
        check_wheel(wheel)
    for sdist in sdists:
        check_sdist(sdist)


if __name__ == "__main__":
    try:
        main()
    except WrongPackageError as exc:
        sys.exit(f"check_wheel: {exc}.")
