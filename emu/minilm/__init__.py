# SPDX-License-Identifier: Apache-2.0
"""MiniLM, a trained sentence embedder: its files, its tokens, and its network on the chip."""
