"""How much a session's records may be: a small file of zeros, compressed, would else fill any memory.

A journal of real routing grows 2 to 40 times when it is unpacked. What the records will take is estimated from their
number and size, before they are decoded.
"""

from __future__ import annotations

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema

MIB = 1 << 20
#: What any session may take, and what it may take more for each byte of its files.
ALWAYS_BYTES, PER_FILE_BYTE = 1 << 30, 64
#: Estimated memory for a record, and for a byte of its payload, of this analysis. Measured: 170 bytes for a sampled
#: token of two experts (28 bytes), 160 for a record of counts of four, 200 for a record of no bytes; a JSON text of
#: empty lists takes 22 times its size.
COST_BYTES = {
    schema.META: (4096, 24),
    schema.STEP: (256, 0),
    schema.COUNTS: (256, 2),
    schema.PHYSICAL: (256, 2),
    schema.TOPK: (256, 8),
    schema.PAIRS: (1024, 6),
}
#: A mark of metadata is a few hundred kB at most, with hundreds of layers and experts.
MOST_META_BYTES = 8 * MIB
#: Sizes of the payloads of one event, but of samples: capture writes one size for each number of experts.
MOST_SIZES = 1024


class Budget:
    """What the records of one session take, so far."""

    def __init__(self) -> None:
        self._file_bytes = 0
        self._spent_bytes = 0
        self._sizes: dict[str, set[int]] = {}

    def begin(self, file_bytes: int) -> None:
        """A journal of this size is read from here on."""
        self._file_bytes += file_bytes
        self._sizes = {}

    def spend(self, event: str, records: int, size_bytes: int) -> None:
        """Add records of one event and size.

        Raises:
            NvtxmoeError: they are more than a file of this size can hold of a real run.
        """
        if event == schema.META and size_bytes > MOST_META_BYTES:
            raise NvtxmoeError(f"damaged payload: moe.meta of {size_bytes / MIB:,.0f} MiB")
        if event != schema.TOPK:
            sizes = self._sizes.setdefault(event, set())
            sizes.add(size_bytes)
            if len(sizes) > MOST_SIZES:
                raise NvtxmoeError(f"damaged: {event} has payloads of more than {MOST_SIZES:,} sizes")
        each, per_byte = COST_BYTES[event]
        self._spent_bytes += records * (each + per_byte * size_bytes)
        if self._spent_bytes > ALWAYS_BYTES + PER_FILE_BYTE * self._file_bytes:
            raise NvtxmoeError(
                f"{self._file_bytes / MIB:,.1f} MiB of journals need over {self._spent_bytes / MIB:,.0f} MiB of "
                "memory, more than those of a real run",
                remedy="Merge its journals one by one by name; if one alone is refused, capture again",
            )
