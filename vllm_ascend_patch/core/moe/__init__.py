# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts over many devices: communication methods, their selection and limits, and the expert MLP.

Nothing here imports vLLM. A caller builds three long-lived values: a ``Topology`` (who is where), an
``ExpertPlacement`` (which rank holds which experts) and, once per layer, an ``ExpertWeights``; once per step a
``MoEStep``; and calls ``fused_moe`` per layer. ``selection`` decides which method a step uses, ``limits`` and
``capacity`` say what each method can take.
"""
