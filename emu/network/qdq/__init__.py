# SPDX-License-Identifier: Apache-2.0
"""QDQ models (floats between DequantizeLinear and QuantizeLinear) as QLinear models.

Each operator between a DequantizeLinear on every operand and a QuantizeLinear on its result becomes
the integer operator of ONNX Runtime that has these scales and zero points, where there is one. Any
function of one tensor, element by element and however many nodes it has, is a table of 256 bytes
(`emu.network.qdq.functions`); layer normalisation is the project's own integer operator. Quantisers
of graph inputs and dequantisers of graph outputs stay on the host: the new model's inputs and
outputs have the old names and are integers (`Boundary`).
"""

from emu.network.qdq.converter import convert
from emu.network.qdq.scales import DEQUANTISE, QUANTISE, Boundary, Scale, is_qdq, to_integers

__all__ = ["DEQUANTISE", "QUANTISE", "Boundary", "Scale", "convert", "is_qdq", "to_integers"]
