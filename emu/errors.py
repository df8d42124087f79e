# SPDX-License-Identifier: Apache-2.0
"""The one exception that means the user can mend it: shown as one line, exit code 2."""


class UserError(Exception):
    """Bad input: one line saying what is wrong, where, and what to do."""
