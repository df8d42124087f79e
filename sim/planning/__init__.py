# SPDX-License-Identifier: Apache-2.0
"""The allocation unit under the lifetimes of real tensors."""
