"""Quantised checkpoints, told by the names of their tensors: each method stores codes and what scales them side by side
under names of its own, and not every ``config.json`` mentions it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Quantisation(NamedTuple):
    """A method, and a tensor that tells of it."""

    method: str
    tensor: str


_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E8M0")

# In this order: a name that several methods share is told by the names beside it. Each line has what ends the names of
# a matrix's tensors, in place of ".weight" or after it.
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GPTQ", (".qweight", ".g_idx")),
    ("AWQ", (".qweight", ".qzeros")),
    ("GPTQ or AWQ", (".qweight",)),
    ("compressed-tensors", (".weight_packed",)),
    ("compressed-tensors", (".weight_shape", ".weight_scale")),
    ("FP8", (".weight_scale_inv",)),
    ("bitsandbytes", (".absmax",)),
    ("bitsandbytes", (".quant_map",)),
    ("bitsandbytes", (".SCB",)),
    ("MXFP4", (".weight_blocks",)),
    ("MXFP4", ("_blocks", "_scales")),
    ("HQQ", (".W_q",)),
    ("EXL2", (".q_weight",)),
    ("EXL3", (".trellis",)),
    ("AQLM", (".codebooks",)),
    ("QuIP#", (".Qidxs",)),
    ("EETQ", (".qweight_scales",)),
    ("quanto", (".weight._data",)),
    ("MLX", (".weight", ".scales")),
)
_INFIXES = ((".quant_state.", "bitsandbytes"),)


def quantisation_method(dtypes: Mapping[str, str]) -> Quantisation | None:
    """How the weights of a checkpoint are quantised, or None.

    Args:
        dtypes: the stored type of every tensor, a safetensors name, by the tensor's name.
    """
    for name in dtypes:
        for infix, method in _INFIXES:
            if infix in name:
                return Quantisation(method, name)
    for method, endings in _ENDINGS:
        first, *others = endings
        for name in dtypes:
            stem = name.removesuffix(first)
            if stem != name and all(stem + other in dtypes for other in others):
                return Quantisation(method, name)
    for name, dtype in dtypes.items():
        if dtype in _FLOAT8:
            return Quantisation(f"FP8 ({dtype})", name)
    for name in dtypes:
        if name.endswith((".weight_scale", ".weight_scales")):
            return Quantisation("scaled integers", name)
    return None
