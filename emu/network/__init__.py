# SPDX-License-Identifier: Apache-2.0
"""Quantised networks: layer objects, the ONNX importer, built-in workloads and golden results."""
