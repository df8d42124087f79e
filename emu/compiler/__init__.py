# SPDX-License-Identifier: Apache-2.0
"""From a network to command streams and memory images: `compile.compile_network`."""

from emu.compiler.compile import compile_network
from emu.compiler.program import Program

__all__ = ["Program", "compile_network"]
