"""Rows in GPU memory: what a request reads into, or writes from, without the store knowing how.

`TensorRows` are the rows of one tensor; `PagedRows` are blocks of an engine's paged cache, which
are gathered into staging and scattered from it by kernels. Both copy on streams of their own and
through pinned memory. On CPU tensors the same steps run one after another, without streams.

May import: kvbench.errors, kvbench.store.block, kvbench_kernels. numpy; torch when it is used.
"""

import contextlib
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Layout

if TYPE_CHECKING:
    import torch

    from kvbench_kernels.pointers import AddressTable

BUFFERS = 4  # pinned buffers of a link: one is filled while another is on its way
STAGINGS = 2  # of each direction of a paged cache: threads that move blocks at a time


class _Buffer:
    """Host memory that a device can reach, and the copy from it that may still be under way."""

    def __init__(self, size_bytes: int, *, pin: bool) -> None:
        import torch  # noqa: PLC0415  only who has tensors needs it

        self.tensor = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pin)
        self.host: Bytes = self.tensor.numpy()
        self.busy: Any = None  # a torch.cuda.Event

    def settle(self) -> None:
        """Wait until it may be used for something else."""
        if self.busy is not None:
            self.busy.synchronize()
            self.busy = None


class Link:
    """Copies between host memory and one device, each way on a stream of its own.

    Host memory that is pinned is copied from and to as it is; other memory goes through `buffers`
    pinned buffers of `size_bytes`, the most that one copy may have. Any thread may use it.
    """

    def __init__(
        self, device: "torch.device | str", size_bytes: int, buffers: int = BUFFERS
    ) -> None:
        import torch  # noqa: PLC0415  only who has tensors needs it

        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        new_stream: Any = torch.cuda.Stream
        self._outward: torch.cuda.Stream | None = new_stream(self.device) if self.on_gpu else None
        self._inward: torch.cuda.Stream | None = new_stream(self.device) if self.on_gpu else None
        self._pool: SimpleQueue[_Buffer] = SimpleQueue()
        for _ in range(buffers):
            self._pool.put(_Buffer(size_bytes, pin=self.on_gpu))

    def follow(self) -> None:
        """Copies from now on wait for what is on the current stream of this thread."""
        if self._outward is not None and self._inward is not None:
            import torch  # noqa: PLC0415  as above

            now = torch.cuda.current_stream(self.device)
            self._outward.wait_stream(now)
            self._inward.wait_stream(now)

    def outward(self) -> "contextlib.AbstractContextManager[Any]":
        """What is launched inside goes to the stream of copies to the host."""
        return _stream(self._outward)

    def inward(self) -> "contextlib.AbstractContextManager[Any]":
        """What is launched inside goes to the stream of copies to the device."""
        return _stream(self._inward)

    def to_host(self, sources: "Sequence[torch.Tensor]", outs: Sequence[Bytes]) -> None:
        """Copy uint8 [n] tensors of the device to host memory; the bytes are there on return."""
        waiting: deque[tuple[_Buffer, Bytes]] = deque()
        try:
            with self.outward():
                for source, out in zip(sources, outs, strict=True):
                    own = self._pinned(out)
                    if own is not None:
                        own.copy_(source, non_blocking=True)
                        continue
                    buffer = self._take(waiting)
                    waiting.append((buffer, out))
                    buffer.tensor[: len(out)].copy_(source, non_blocking=True)
                    buffer.busy = _mark(self._outward)
                while waiting:
                    self._land(waiting)
                _wait(self._outward)
        finally:
            for buffer, _ in waiting:  # nobody is to wait for them for ever
                self._pool.put(buffer)

    def to_device(self, data: Sequence[Bytes], targets: "Sequence[torch.Tensor]") -> None:
        """Enqueue copies of host memory to uint8 [n] tensors; `data` may be reused on return.

        The tensors are complete after `wait`, or for what follows in `inward`.
        """
        direct = False
        with self.inward():
            for source, target in zip(data, targets, strict=True):
                own = self._pinned(source)
                if own is not None:
                    target.copy_(own, non_blocking=True)
                    direct = True
                    continue
                buffer = self._pool.get()
                try:
                    buffer.settle()
                    np.copyto(buffer.host[: len(source)], source)
                    target.copy_(buffer.tensor[: len(source)], non_blocking=True)
                    buffer.busy = _mark(self._inward)
                finally:
                    self._pool.put(buffer)
            if direct:
                _wait(self._inward)

    def wait(self) -> None:
        """Wait for everything that was enqueued towards the device."""
        _wait(self._inward)

    def _pinned(self, host: Bytes) -> "torch.Tensor | None":
        """Host memory as a tensor, if a copy may go straight from and to it."""
        if not self.on_gpu or not host.flags.writeable:  # torch warns of read-only memory
            return None
        import torch  # noqa: PLC0415  as above

        tensor = torch.as_tensor(host)  # shares its memory
        return tensor if tensor.is_pinned() else None

    def _take(self, waiting: deque[tuple[_Buffer, Bytes]]) -> _Buffer:
        """A free buffer. Never waits for another thread while it holds one itself."""
        while True:
            try:
                buffer = self._pool.get_nowait() if waiting else self._pool.get()
            except Empty:
                self._land(waiting)
            else:
                buffer.settle()
                return buffer

    def _land(self, waiting: deque[tuple[_Buffer, Bytes]]) -> None:
        buffer, out = waiting[0]
        buffer.settle()
        np.copyto(out, buffer.host[: len(out)])
        waiting.popleft()
        self._pool.put(buffer)


class TensorRows:
    """The rows of a tensor of uint8 [rows, block_bytes] on any device: `kvbench.store.rows.Rows`.

    What was on the current stream when this was made is waited for. Several may share a `link`.

    Raises:
        UsageError: the tensor is not of that shape, or the bytes of a row are not adjacent.
    """

    def __init__(self, tensor: "torch.Tensor", layout: Layout, link: Link | None = None) -> None:
        wanted = (len(tensor), layout.block_bytes) if tensor.dim() else ()
        if (
            tuple(tensor.shape) != wanted
            or str(tensor.dtype) != "torch.uint8"
            or (layout.block_bytes > 1 and tensor.stride(1) != 1)
        ):
            raise UsageError(
                f"rows are {list(tensor.shape)} {tensor.dtype} with strides {tensor.stride()}: "
                f"expected uint8 [rows, {layout.block_bytes}], the bytes of a row adjacent"
            )
        self._tensor = tensor
        self._layout = layout
        self._link = link or Link(tensor.device, layout.block_bytes)
        self._link.follow()

    def __len__(self) -> int:
        return len(self._tensor)

    def send(self, index: int, out: Bytes) -> None:
        """Copy a row into host memory of uint8 [block_bytes]; the bytes are there on return."""
        self.send_many([index], [out])

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        """As `send` for each of them, waiting once."""
        self._link.to_host([self._tensor[index] for index in indexes], outs)

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        """Copy a block, or one part of it, into a row; `data` may be used again on return."""
        self.receive_many([index], part, [data])

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """As `receive` for each of them."""
        size = self._layout.part_bytes
        within = slice(None) if part is None else slice(part * size, (part + 1) * size)
        self._link.to_device(data, [self._tensor[index][within] for index in indexes])

    def finish(self, indexes: Sequence[int], part: int | None) -> None:  # noqa: ARG002  protocol
        """Return once everything received can be used."""
        self._link.wait()


class PagedCache:
    """The paged KV cache of an engine, and the staging through which its blocks come and go.

    A block is one page of each part (K and V, or both in one) of each layer, and a layer is a part
    of the block: `layout`. `layers` are as `kvbench_kernels.pointers.address_table` takes them:
    for each layer one tensor of uint8 [pages, page_bytes] for each part. Each of four stagings
    holds `staging_blocks` blocks on the device. Kept for as long as the cache; `rows` are for one
    request.

    Raises:
        ValueError: the tensors are not as they have to be.
        UsageError: a block has more layers than a layout has parts.
    """

    def __init__(
        self, layers: "Sequence[Sequence[torch.Tensor]]", *, staging_blocks: int = 8
    ) -> None:
        import torch  # noqa: PLC0415  only who has tensors needs it

        from kvbench_kernels.pointers import address_table  # noqa: PLC0415  imports triton

        self._table = address_table(layers)
        self._layers: list[AddressTable] = [address_table([layer]) for layer in layers]
        count, parts = self._table.addresses.shape
        self.layout = Layout(count * parts * self._table.page_bytes, parts=count)
        self.num_pages = self._table.num_pages
        self.link = Link(self._table.addresses.device, self.layout.block_bytes)
        self._staged = staging_blocks
        self._stagings: tuple[SimpleQueue[torch.Tensor], ...] = (SimpleQueue(), SimpleQueue())
        size = staging_blocks * self.layout.block_bytes
        for queue in self._stagings:
            for _ in range(STAGINGS):
                queue.put(torch.empty(size, dtype=torch.uint8, device=self.link.device))

    def rows(self, block_ids: Sequence[int]) -> "PagedRows":
        """These blocks, in this order, as the rows of one request."""
        return PagedRows(self, block_ids)

    def gather(self, block_ids: Sequence[int], outs: Sequence[Bytes]) -> None:
        """Copy blocks into host memory, uint8 [block_bytes] each; they are there on return."""
        from kvbench_kernels.pointers import gather_layers  # noqa: PLC0415  imports triton

        queue = self._stagings[0]
        for at in range(0, len(block_ids), self._staged):
            ids = block_ids[at : at + self._staged]
            staging = queue.get()
            try:
                with self.link.outward():
                    gather_layers(self._table, self._ids(ids), self._shaped(staging, len(ids)))
                blocks = staging.view(self._staged, -1)
                self.link.to_host([blocks[i] for i in range(len(ids))], outs[at : at + len(ids)])
            finally:
                queue.put(staging)

    def scatter(self, block_ids: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """Enqueue copies of host memory into blocks, or into one layer of them.

        `data` may be reused on return; the blocks can be used after `link.wait()`.
        """
        from kvbench_kernels.pointers import scatter_layers  # noqa: PLC0415  imports triton

        table = self._table if part is None else self._layers[part]
        size = self.layout.block_bytes if part is None else self.layout.part_bytes
        queue = self._stagings[1]
        most = self._staged * (1 if part is None else self.layout.parts)
        for at in range(0, len(block_ids), most):
            ids = block_ids[at : at + most]
            staging = queue.get()
            try:  # on one stream: whoever has this staging next is behind the scatter
                pieces = staging.view(most, size)
                self.link.to_device(data[at : at + most], [pieces[i] for i in range(len(ids))])
                with self.link.inward():
                    rows = self._shaped(staging, len(ids), part)
                    scatter_layers(rows, table, self._ids(ids))
            finally:
                queue.put(staging)

    def _shaped(
        self, staging: "torch.Tensor", count: int, part: int | None = None
    ) -> "torch.Tensor":
        """The first blocks of a staging, as [count, layers, parts, page_bytes]."""
        layers, parts = self._table.addresses.shape
        shape = (count, layers if part is None else 1, parts, self._table.page_bytes)
        return staging[: int(np.prod(shape))].view(shape)

    def _ids(self, block_ids: Sequence[int]) -> "torch.Tensor":
        import torch  # noqa: PLC0415  as above

        ids = torch.tensor(block_ids, dtype=torch.int64, pin_memory=self.link.on_gpu)
        return ids.to(self.link.device, non_blocking=True)


class PagedRows:
    """Blocks of a paged cache as `kvbench.store.rows.Rows`: row i is block `block_ids[i]`.

    What was on the current stream when this was made is waited for. `send_many` and
    `receive_many` move a batch with one launch of a kernel.

    Raises:
        UsageError: an id is not one of the cache, or is there twice.
    """

    def __init__(self, cache: PagedCache, block_ids: Sequence[int]) -> None:
        ids = [int(each) for each in block_ids]
        if any(not 0 <= each < cache.num_pages for each in ids) or len(set(ids)) < len(ids):
            raise UsageError(
                f"block ids are from 0 to {cache.num_pages - 1}, each at most once, got {ids[:8]}"
            )
        self._cache = cache
        self._ids = ids
        cache.link.follow()

    def __len__(self) -> int:
        return len(self._ids)

    def send(self, index: int, out: Bytes) -> None:
        """Copy a block into host memory of uint8 [block_bytes]; the bytes are there on return."""
        self.send_many([index], [out])

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        """As `send` for each of them."""
        self._cache.gather([self._ids[index] for index in indexes], outs)

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        """Copy a block, or one layer of it, into the cache; `data` may be used again on return."""
        self.receive_many([index], part, [data])

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """As `receive` for each of them."""
        self._cache.scatter([self._ids[index] for index in indexes], part, data)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:  # noqa: ARG002  protocol
        """Return once everything received can be used."""
        self._cache.link.wait()


def _stream(stream: "torch.cuda.Stream | None") -> "contextlib.AbstractContextManager[Any]":
    if stream is None:
        return contextlib.nullcontext()
    import torch  # noqa: PLC0415  as above

    return torch.cuda.stream(stream)


def _mark(stream: "torch.cuda.Stream | None") -> Any:  # noqa: ANN401  an event of either kind
    return None if stream is None else stream.record_event()


def _wait(stream: "torch.cuda.Stream | None") -> None:
    event = _mark(stream)
    if event is not None:
        event.synchronize()
