# SPDX-License-Identifier: Apache-2.0
"""From a network to command streams and memory images: `program.compile_network`."""

from emu.compiler.program import Program, compile_network

__all__ = ["Program", "compile_network"]
