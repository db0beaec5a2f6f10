# SPDX-License-Identifier: Apache-2.0
"""The errors of the mixture-of-experts core. Every message says what was found, what is supported and what to do."""


class MoEConfigError(ValueError):
    """A model, cluster or step that the communication methods cannot serve as it is configured."""


class MoELimitError(MoEConfigError):
    """A communication method was asked for outside the limits that the vendor documents for it."""
