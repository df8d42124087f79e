# SPDX-License-Identifier: Apache-2.0
"""The storage tier: a device that reads pages, and HBM as a cache of pages in front of it."""
