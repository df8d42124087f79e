# SPDX-License-Identifier: Apache-2.0
"""Studies of the memory ideas on the RTL chip: `sim.experiments.framework.experiment`."""
