"""One weight's bits: the split formats, encode and decode. Knows nothing of models."""

from speq.formats.codec import decode, draft_values, encode, native_format
from speq.formats.feedback import Feedback, feedback_of
from speq.formats.floats import from_float32, to_float32
from speq.formats.spec import Spec
from speq.formats.tensor import SplitTensor

__all__ = [
    "Feedback",
    "Spec",
    "SplitTensor",
    "decode",
    "draft_values",
    "encode",
    "feedback_of",
    "from_float32",
    "native_format",
    "to_float32",
]
