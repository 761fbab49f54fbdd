"""Types of arrays that many modules use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Indices, sums and times.
Ints = npt.NDArray[np.int64]
#: Either width, where memory counts.
AnyInts = npt.NDArray[np.int32 | np.int64]
#: Few values: reasons, kinds.
Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
