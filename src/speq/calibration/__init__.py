"""Calibration: better draft codes for a converted checkpoint, from what its activations look like on a little text.

Exactness does not depend on it. Every weight keeps its 16 bits; only which of the bins that can hold it drafts for it
is chosen with the errors of its neighbours in view.
"""

from speq.calibration.calibrate import Calibration

__all__ = ["Calibration"]
