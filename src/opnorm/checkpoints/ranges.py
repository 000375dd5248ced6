"""Files of a known size that are read where they are asked for: a part of an archive, what lies behind a URL."""

import io


class Ranged(io.RawIOBase):
    """A read-only file with a position; a subclass fills buffers from `position` on, and moves it."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.position = size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset`, as in any file."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def room(self, buffer: memoryview) -> int:
        """Return how many bytes of `buffer` the file can fill from its position on."""
        return max(0, min(len(buffer), self.size - self.position))
