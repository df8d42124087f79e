# SPDX-License-Identifier: Apache-2.0
"""The mesh alone under synthetic traffic: generators, checkers, load-latency curves."""
