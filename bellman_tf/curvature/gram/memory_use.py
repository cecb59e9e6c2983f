"""How many numbers are held while a Gram matrix is formed, and how many samples that leaves to a block."""

import math
from typing import NamedTuple


class MemoryUse(NamedTuple):
    """Numbers that are held while a Gram matrix is formed, besides the matrix.

    Attributes:
        sample: for every sample.
        pair: for every pair of samples that meet.
    """

    sample: int = 0
    pair: int = 0

    def whole(self, samples: int, group_size: int | None) -> int:
        """Numbers for samples that are taken all at once.

        Args:
            samples: how many.
            group_size: samples per group; `None` is all of them.

        Returns:
            The count.
        """
        return samples * (self.sample + self.pair * min(samples, group_size or samples))

    def side(self, room: int) -> int:
        """Samples of a block, two of which meet at a time.

        Args:
            room: numbers that may be held.

        Returns:
            How many samples, at least one.
        """
        return max(1, room // (2 * self.sample) if self.sample else math.isqrt(room // self.pair))

    def groups(self, room: int, group_size: int) -> int:
        """Whole groups that fit.

        Args:
            room: numbers that may be held.
            group_size: samples per group.

        Returns:
            How many; 0 where one is too large.
        """
        return room // self.whole(group_size, group_size)

    def most(self, room: int, group_size: int | None, columns: int) -> int | None:
        """Samples that are taken all at once.

        Args:
            room: numbers that may be held.
            group_size: samples per group; `None` is the whole batch.
            columns: m, columns per sample.

        Returns:
            How many at most; `None` where any batch is, whose Gram matrix leaves the room itself.
        """
        if self.whole(largest(room, columns), group_size) <= room:
            return None
        if group_size is not None and (groups := self.groups(room, group_size)):
            return groups * group_size
        return room // self.sample if self.sample else math.isqrt(room // self.pair)


def largest(room: int, columns: int) -> int:
    """Samples of a Gram matrix that takes all the room.

    Args:
        room: numbers that may be held.
        columns: m, columns per sample.

    Returns:
        How many.
    """
    return math.isqrt(room) // columns
