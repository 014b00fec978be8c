"""How much memory PyTorch's CUDA allocator takes from the device for a sequence of allocations."""

import bisect
from itertools import count

MIB = 2**20


class Block:
    """A stretch of a segment, free or in use, between its neighbours."""

    __slots__ = ("after", "before", "free", "number", "size", "small")

    def __init__(self, size: int, small: bool, number: int, before: "Block | None", after: "Block | None"):
        self.size, self.small, self.number, self.before, self.after = size, small, number, before, after
        self.free = False


class CachingAllocator:
    """PyTorch's rules: sizes are rounded up to 512 bytes; up to 1 MiB they come out of segments of 2 MiB, below 10 MiB
    out of segments of 20 MiB, larger ones get a segment of their own, rounded up to 2 MiB. The smallest free block that
    is large enough is taken, and split when enough is left; free neighbours merge; nothing goes back to the device.

    Source: c10/cuda/CUDACachingAllocator.cpp with its default settings.
    """

    def __init__(self):
        self.reserved = 0  # bytes taken from the device; never falls, so it is the peak too
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}  # by `small`; sorted by size
        self._used: dict[int, Block] = {}
        self._numbers = count()

    def allocate(self, key: int, size: int) -> None:
        """`key` names the allocation until it is released."""
        size = -(-size // 512) * 512
        small = size <= MIB
        free = self._free[small]
        place = bisect.bisect_left(free, (size,))
        block = free.pop(place)[2] if place < len(free) else self._segment(size, small)
        rest = block.size - size
        if rest >= 512 if small else rest > MIB:
            tail = Block(rest, small, next(self._numbers), block, block.after)
            if tail.after:
                tail.after.before = tail
            block.size, block.after = size, tail
            self._put(tail)
        block.free = False
        self._used[key] = block

    def release(self, key: int) -> None:
        block = self._used.pop(key)
        if block.after and block.after.free:
            self._take(block.after)
            _swallow(block, block.after)
        if block.before and block.before.free:
            block, freed = block.before, block
            self._take(block)
            _swallow(block, freed)
        self._put(block)

    def _segment(self, size: int, small: bool) -> Block:
        whole = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        self.reserved += whole
        return Block(whole, small, next(self._numbers), None, None)

    def _put(self, block: Block) -> None:
        block.free = True
        bisect.insort(self._free[block.small], (block.size, block.number, block))

    def _take(self, block: Block) -> None:
        free = self._free[block.small]
        free.pop(bisect.bisect_left(free, (block.size, block.number)))


def _swallow(block: Block, after: Block) -> None:
    """`block` grows over its right neighbour."""
    block.size += after.size
    block.after = after.after
    if block.after:
        block.after.before = block
