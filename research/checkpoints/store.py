"""Training state <-> disk, through Orbax: written in the background, complete or absent, never half.

directory/  12/  state (arrays)  meta (JSON)      one folder a step; `keep` newest stay
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from research.errors import InputError
from research.trees import nbytes


class Store:
    """The checkpoints of one run in a directory. Arrays are copied before `save` returns, so they may be donated next."""

    def __init__(self, directory: str | Path, keep: int = 1):
        import orbax.checkpoint as ocp

        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, create=True)
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "meta"))
        except OSError as error:
            raise self._refused(error, None) from None

    def steps(self) -> list[int]:
        """The steps that are whole, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Begin to write; errors of the write show up here, in the next `save`, or in `close`.

        Raises:
            InputError: the disk is full (the last good checkpoint stays), or cannot be written.
        """
        import orbax.checkpoint as ocp

        self.wait()
        needed, free = nbytes(state), shutil.disk_usage(self.directory).free
        if needed > free:
            raise self._refused(OSError(errno.ENOSPC, f"{needed >> 20} MB needed, {free >> 20} MB free"), step)
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))
        except (OSError, ValueError) as error:
            raise self._refused(error, step) from None

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state of a step as arrays shaped and placed as `like`, and its meta.

        Raises:
            InputError: the checkpoint holds another structure or other shapes: it belongs to another config.
        """
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
            found = self._manager.restore(step, args=args)
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{self.directory / str(step)} is the checkpoint of another config ({reason}).") from None
        return found.state, found.meta

    def meta(self, step: int) -> dict[str, Any]:
        """The meta of a step alone."""
        import orbax.checkpoint as ocp

        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def drop_after(self, step: int) -> None:
        """Delete what was saved later than `step`: on resuming from there it will be made again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def drop_but(self, step: int) -> None:
        """Delete every step but one."""
        for other in self.steps():
            if other != step:
                self._manager.delete(other)

    def remove(self) -> None:
        """Delete the whole directory."""
        self.close()
        shutil.rmtree(self.directory)

    def wait(self) -> None:
        """Return when everything begun is on disk.

        Raises:
            InputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # a write that fails in TensorStore is a ValueError
            raise self._refused(error, None) from None

    def close(self) -> None:
        """Wait, and let go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _refused(self, error: OSError | ValueError, step: int | None) -> InputError:
        whole = sorted(int(p.name) for p in self.directory.glob("*") if p.name.isdigit()) if self.directory.exists() else []
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        kept = f"the last good one is step {whole[-1]}" if whole else "there is none yet"
        known = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # TensorStore says them in the midst of much else
        first, *_ = str(error).splitlines()
        reason = getattr(error, "strerror", None) or next((one for one in known if one in str(error)), first)
        return InputError(f"{what} could not be written to {self.directory}: {reason}; {kept}.")
