"""What an exported graph computes by itself."""

from __future__ import annotations

import torch

from msltrain.use.export_formats import _bilinear


def test_a_half_goes_up_as_in_the_streams_integers():
    pairs_B112 = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 5.0]]).view(4, 1, 1, 2)
    assert _bilinear(pairs_B112, (1, 1)).flatten().tolist() == [1, 2, 3, 4]
