# SPDX-License-Identifier: Apache-2.0
"""A decode whose parameters exceed HBM, played on the RTL of the storage tier."""
