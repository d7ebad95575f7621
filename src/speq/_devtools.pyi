"""Types of the extension module for tests of the kernels; editable installs have it, wheels do not."""

import numpy as np
from numpy.typing import NDArray

from speq._native import Matrix

def multiply(isa: str, weight: Matrix, x: NDArray[np.float32], product: str, /) -> NDArray[np.float32]: ...
def decode_rows(isa: str, weight: Matrix, /) -> NDArray[np.float32]: ...
