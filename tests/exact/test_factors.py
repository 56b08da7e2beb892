"""The rows' matrices out of their factors: one by one as all at once."""

from __future__ import annotations

import torch

from headwater.gradient.factors import each_dense
from headwater.types import Factors


def test_rows_one_by_one_are_the_rows_of_the_whole_product() -> None:
    """Of bfloat16 factors in float32."""
    generator = torch.Generator().manual_seed(0)
    a_BTI, g_BTO = (torch.randn(5, 7, n, generator=generator, dtype=torch.float64) for n in (3, 4))
    one_by_one = torch.cat([g_bOI.clone() for g_bOI in each_dense(Factors(a_BTI, g_BTO))])
    torch.testing.assert_close(one_by_one, torch.einsum("bto,bti->boi", g_BTO, a_BTI))
    rough = Factors(a_BTI.bfloat16(), g_BTO.bfloat16())
    rough_BOI = torch.cat([g_bOI.clone() for g_bOI in each_dense(rough)])
    torch.testing.assert_close(rough_BOI, Factors(rough.a_BTI.float(), rough.g_BTO.float()).dense())
