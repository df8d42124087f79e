# SPDX-License-Identifier: Apache-2.0
"""The allocation unit: `hdl.allocator.unit.Allocator`."""
