"""The loader: batch i, whenever and wherever it is asked for.

    i --divmod by batches an epoch--> epoch, place --order(seed, epoch)--> ids --Plan.fit--> layout --Examples.batch--> Batch

Batch i depends on the examples, the batching, the seed and i, and on nothing else: not on what was asked before, nor on the
number of hosts, threads or worker processes. So the stored data position is one integer.
"""

from __future__ import annotations

import hashlib
import math
import operator
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from research.batches.batch import Batch
from research.batches.examples import Examples
from research.batches.plan import Batching, Layout, Shape, shuffled
from research.errors import InputError


class Usage(NamedTuple):
    """What an epoch costs."""

    batches: int
    shapes: int  # distinct shapes, so programs to compile
    tokens: int  # real ones
    places: int  # for tokens, padding included

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.tokens / self.places


class Loader:
    """Batches of prepared examples by index, or in order with prefetching.

    Args:
        examples: N mappings `{"tokens": [n], "types": [n], "targets": {name: array}}`, the last two optional (see
            `Examples.of`). The position of an example is its id.
        batching: how to group them.
        seed: of the order.
        shuffle: a new order each epoch; if not, every epoch takes the examples in the order given (buckets: as near to it as
            buckets allow). Either way an epoch holds every example once, and `Batch.ids` says which is where.
        shard: (k, n): batches hold the k-th of n equal blocks of rows of the global batch, for host k of n.
        row_multiple: the global batch has a multiple of this many rows, for example the number of data-parallel devices.
            Rows are added empty.
        pad: the token of padding.
        drop_last: leave out what does not fill a batch (other examples in each epoch) instead of filling up with empty rows.
        per_token: names of targets with a value for each token.

    Raises:
        InputError: bad examples (the message names one), or no batch at all.
    """

    def __init__(
        self,
        examples: Sequence[Mapping[str, Any]],
        batching: Batching,
        *,
        seed: int = 0,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
        row_multiple: int = 1,
        pad: int = 0,
        drop_last: bool = False,
        per_token: Collection[str] = frozenset(),
    ):
        if not 0 <= shard[0] < shard[1]:
            raise InputError(f"shard must be (k, n) with 0 <= k < n, got {shard}.")
        self.examples = Examples.of(examples, per_token)
        self.batching, self.seed, self.shuffle, self.shard = batching, seed, shuffle, shard
        self.pad, self.drop_last = pad, drop_last
        self.lengths = self.examples.lengths
        self.plan = batching.plan(self.lengths, math.lcm(row_multiple, shard[1]))
        self._count = len(examples) // batching.size if drop_last else -(-len(examples) // batching.size)
        if not self._count:
            raise InputError(f"{len(examples)} examples fill no batch of {batching.size}, and drop_last drops the rest.")
        self._epochs: dict[int, Int[np.ndarray, "batches size"]] = {}  # the latest two, so that an epoch's end is no cliff

    def __len__(self) -> int:
        """Batches in an epoch, the same for every epoch."""
        return self._count

    def __getitem__(self, i: int) -> Batch:
        """Batch i, counted over epochs: epoch i // len(self). NumPy arrays, this host's rows."""
        if (i := operator.index(i)) < 0:
            raise IndexError(f"batches are counted from 0, got {i}.")
        ids, layout = self._layout(i)
        mine, layout = _block(layout, *self.shard)
        return self.examples.batch(ids[mine], layout, pad=self.pad, positions=self.plan.packed)

    def __iter__(self) -> Iterator[Batch]:
        """The first epoch."""
        return self.iterate()

    def iterate(
        self, start: int = 0, stop: int | None = None, *, workers: int = 0, threads: int = 2, ahead: int = 8
    ) -> Iterator[Batch]:
        """Batches start, start + 1, ..., stop - 1, made in the background; the same as `self[i]` for those i.

        Args:
            start: the first, for example the data position of a checkpoint.
            stop: one past the last, over as many epochs as it takes; None: the end of the epoch that `start` is in.
            workers: processes that make batches; 0: threads of this one do, which is best for small examples. Processes are
                spawned, so the program must be importable (`if __name__ == "__main__"`).
            threads: threads, in each process.
            ahead: batches made ahead.
        """
        if start < 0:
            raise IndexError(f"batches are counted from 0, got {start}.")
        stop = (start // len(self) + 1) * len(self) if stop is None else stop
        return _prefetched(self, start, stop, workers, threads, ahead)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every (B, T, S) that a global batch of any epoch may have."""
        return self.plan.shapes

    @property
    def hash(self) -> str:
        """sha256 of all that batches depend on: kept with a data position, so that other data are refused on resuming.

        The number of hosts and devices is no part of it.
        """
        order = f"{self.batching.model_dump_json()} {self.seed} {self.shuffle} {self.pad} {self.drop_last}"
        return hashlib.sha256(f"{self.examples.digest()} {order}".encode()).hexdigest()

    def usage(self, epoch: int = 0) -> Usage:
        """What an epoch costs, over all hosts."""
        first = epoch * len(self)
        laid = [self._layout(i) for i in range(first, first + len(self))]
        return Usage(
            len(laid),
            len({layout.shape for _, layout in laid}),
            int(sum(self.lengths[ids].sum() for ids, _ in laid)),
            sum(layout.shape.rows * layout.shape.length for _, layout in laid),
        )

    def _layout(self, i: int) -> tuple[Int[np.ndarray, " n"], Layout]:
        """The examples of global batch i and where they stand."""
        epoch, place = divmod(i, len(self))
        ids = self._members(epoch if self.shuffle else 0)[place]
        ids = ids[ids >= 0]
        return ids, self.plan.fit(self.lengths[ids])

    def _members(self, epoch: int) -> Int[np.ndarray, "batches size"]:
        epochs = self._epochs
        if epoch not in epochs:
            count = len(self.lengths)
            order = shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count)
            members = self.plan.members(order[: len(self) * self.batching.size])
            # Replaced, never changed: other threads may be reading it.
            self._epochs = epochs = {e: epochs[e] for e in list(epochs)[-1:]} | {epoch: members}
        return epochs[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": {}}  # worker processes work out their own


def _block(layout: Layout, k: int, n: int) -> tuple[np.ndarray, Layout]:
    """Which examples stand in the k-th of n blocks of rows, and where in it."""
    height = layout.shape.rows // n
    mine = layout.rows // height == k
    return mine, Layout(
        layout.shape._replace(rows=height), layout.rows[mine] - k * height, layout.starts[mine], layout.slots[mine]
    )


def _prefetched(loader: Loader, start: int, stop: int, workers: int, threads: int, ahead: int) -> Iterator[Batch]:
    import grain

    def made(i: int) -> Batch | bytes:
        # Pickled for the way between processes: grain's shared memory is slower for arrays this small, and leaks at exit.
        return pickle.dumps(loader[i]) if workers else loader[i]

    stream = (
        grain.MapDataset.range(start, stop)
        .map(made)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    )
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which only absl's own programs parse
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead))
    iterator = iter(stream)
    try:
        for item in iterator:
            yield pickle.loads(item) if workers else item
    finally:
        iterator.close()
