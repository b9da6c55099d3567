"""Heads that ask the feature map by queries, as transformer decoders do: ML-Decoder and Query2Label.

This file needs torch alone: an exported model brings a copy of it.

B batch, D feature channels, H, W positions, P = H·W, K classes, C channels of the decoder, G queries, F = ⌈K / G⌉.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLDecoderHead(nn.Module):
    """ML-Decoder (Ridnik et al., WACV 2023): G fixed queries look at the map, and each answers for F classes.

    Class k is answer ``k mod F`` of query ``k // F``. With G = K that is one query a class; with fewer the cost stays
    that of G queries, however many classes there are. The queries are drawn once and never learn, as published. So is
    it that they are added to themselves under dropout before their norm.

    Args:
        num_features: D.
        num_classes: K.
        num_queries: G; 0: K, but 100 at most, as published.
        width: C, a multiple of 8; 0: 768, as published.
        hidden: channels inside the perceptron; 0: 2048, as published.
        dropout: 0.1 as published.

    Attributes:
        per_class: the tensors of the state that have a row for each class; none where queries are shared.
    """

    NUM_HEADS = 8
    query: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        num_queries: int = 0,
        width: int = 0,
        hidden: int = 0,
        dropout: float = 0.1,
    ):
        super().__init__()
        num_queries, width = min(num_queries or 100, num_classes), width or 768
        self.num_classes = num_classes
        self.embed = nn.Linear(num_features, width)
        self.register_buffer("query", torch.randn(num_queries, width))
        self.norm_query = nn.LayerNorm(width)
        self.decoder = _Layer(width, num_heads=self.NUM_HEADS, hidden=hidden or 2048, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(num_queries, width, -(-num_classes // num_queries)))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_normal_(self.weight)
        self.per_class = ("query", "weight", "bias") if num_queries == num_classes else ()

    def forward(self, feature_BDHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        place_BPC = torch.relu(self.embed(feature_BDHW.flatten(2).transpose(1, 2)))
        query_BGC = self.query.expand(feature_BDHW.shape[0], -1, -1)
        query_BGC = self.norm_query(query_BGC + self.dropout(query_BGC))
        answer_BGC = self.decoder(query_BGC, query_BGC, place_BPC, place_BPC)
        logit_BGF = torch.einsum("bgc,gcf->bgf", answer_BGC, self.weight)
        return logit_BGF.flatten(1)[:, : self.num_classes] + self.bias


class Query2LabelHead(nn.Module):
    """Query2Label (Liu et al., 2021): one learnt query a class, an encoder layer over the map and two decoder layers.

    As published the queries do not attend to each other, so a class is scored without the others, and the positions
    are sine codes that are added where attention compares, not to what it passes on.

    Args:
        num_features: D.
        num_classes: K.
        width: C, a multiple of 4; 0: D, as published. With another one a 1x1 convolution stands before the encoder.
        hidden: channels inside the perceptrons; 0: four times C, as published.
        dropout: 0.1 as published.

    Attributes:
        per_class: the tensors of the state that have a row for each class.
        needs_grid: the map must be whole: positions count.
    """

    NUM_HEADS, NUM_DECODERS = 4, 2
    per_class = ("query", "weight", "bias")
    needs_grid = True

    def __init__(self, num_features: int, num_classes: int, *, width: int = 0, hidden: int = 0, dropout: float = 0.1):
        super().__init__()
        width = width or num_features
        hidden = hidden or 4 * width
        self.project = nn.Identity() if width == num_features else nn.Conv2d(num_features, width, kernel_size=1)
        self.encoder = _Layer(width, num_heads=self.NUM_HEADS, hidden=hidden, dropout=dropout)
        self.decoders = nn.ModuleList(
            _Layer(width, num_heads=self.NUM_HEADS, hidden=hidden, dropout=dropout) for _ in range(self.NUM_DECODERS)
        )
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(num_classes, width))
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))
        for parameter in (*self.encoder.parameters(), *self.decoders.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, feature_BDHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        map_BCHW = self.project(feature_BDHW)
        rows, columns = map_BCHW.shape[2:]
        place_BPC = map_BCHW.flatten(2).transpose(1, 2)
        code_PC = sine_positions(rows, columns, place_BPC.shape[2], place_BPC)
        placed_BPC = place_BPC + code_PC
        place_BPC = self.encoder(place_BPC, placed_BPC, placed_BPC, place_BPC)
        query_BKC = self.query.expand(place_BPC.shape[0], -1, -1)
        state_BKC = torch.zeros_like(query_BKC)
        for decoder in self.decoders:
            state_BKC = decoder(state_BKC, state_BKC + query_BKC, place_BPC + code_PC, place_BPC)
        return (self.norm(state_BKC) * self.weight).sum(dim=2) + self.bias


def sine_positions(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """Codes (P, C) of the positions of a grid, row-major: of the row in the first half of C, of the column in the rest.

    The places along a side are numbered from 1 and scaled so that the last is 2π; channels 2i and 2i + 1 of a half are
    the sine and cosine of that over ``10000 ** (2i / (C / 2))`` (DETR's normalised sine embedding).

    Args:
        rows, columns: the grid.
        width: C, a multiple of 4.
        like: dtype and device of the result are its.
    """
    half = width // 2
    step_C = torch.arange(0, half, 2, dtype=torch.float32, device=like.device)
    period_C = 10000 ** (step_C / half)

    def side(number: int) -> Tensor:
        place_N = torch.arange(1, number + 1, dtype=torch.float32, device=like.device)
        angle_NC = (place_N / (number + 1e-6) * (2 * math.pi))[:, None] / period_C
        return torch.stack((angle_NC.sin(), angle_NC.cos()), dim=2).flatten(1)

    row_RC, column_QC = side(rows), side(columns)
    code_RQC = torch.cat((row_RC[:, None].expand(-1, columns, -1), column_QC[None].expand(rows, -1, -1)), dim=2)
    return code_RQC.flatten(0, 1).to(like.dtype)


class _Layer(nn.Module):
    """Attention and a two-layer perceptron, each added to its input and then normalised ("post-norm").

    Args:
        width: C.
        num_heads: of the attention; divides C.
        hidden: channels between the two layers of the perceptron.
        dropout: of the attention's weights, of both sums and inside the perceptron.
    """

    def __init__(self, width: int, *, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = _Attention(width, num_heads, dropout)
        self.norm_attended = nn.LayerNorm(width)
        self.linear_in = nn.Linear(width, hidden)
        self.linear_out = nn.Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state_BGC: Tensor, query_BGC: Tensor, key_BPC: Tensor, value_BPC: Tensor) -> Tensor:
        """``state`` (B, G, C) with what its queries found, and with what the perceptron makes of that."""
        found_BGC = self.attention(query_BGC, key_BPC, value_BPC)
        state_BGC = self.norm_attended(state_BGC + self.dropout(found_BGC))
        more_BGC = self.linear_out(self.dropout(torch.relu(self.linear_in(state_BGC))))
        return self.norm_out(state_BGC + self.dropout(more_BGC))


class _Attention(nn.Module):
    """Scaled dot-product attention with several heads and PyTorch's first weights.

    ``nn.MultiheadAttention`` computes the same, and fixes the size of the batch when it is exported.
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        for linear in (self.in_proj, self.out_proj):
            nn.init.zeros_(linear.bias)

    def forward(self, query_BGC: Tensor, key_BPC: Tensor, value_BPC: Tensor) -> Tensor:
        """What each query found, (B, G, C)."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        query, key, value = (
            F.linear(one, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for one, weight, bias in zip((query_BGC, key_BPC, value_BPC), weights, biases)
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(found.transpose(1, 2).flatten(2))
