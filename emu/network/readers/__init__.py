# SPDX-License-Identifier: Apache-2.0
"""What each ONNX operator becomes: functions of the importer and a node, by operator name."""
