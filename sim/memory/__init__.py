# SPDX-License-Identifier: Apache-2.0
"""``headrace dram``: a trace of memory requests on the RTL controller of one pseudo-channel."""
