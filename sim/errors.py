# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a simulation that is nobody's bad input."""


class RunError(Exception):
    """The simulated machine failed: wrong outputs, a broken invariant or no end. Exit code 1."""


class ConservationError(Exception):
    """Bytes were lost, made or counted wrongly: the result would be worthless."""
