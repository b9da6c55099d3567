"""Mixup, CutMix and SpliceMix: images of a batch mixed with each other, and their labels with them.

Who is mixed with whom is drawn among the images that this process has in the batch, by (seed, epoch, key); how, by that
alone. Legend: B samples, C channels, H = W = S pixels, K classes, G cells of a grid.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msltrain.stream.keepmasks.fill import fill_holes
from msltrain.stream.keepmasks.shapes import hide_boxes
from msltrain.stream.order.random import GRID, MIX_BOX, MIX_ORDER, MIX_SHARE, hash64, key_hash, uniform
from msltrain.stream.pixels.batch import Batch

GRIDS = ((1, 2), (2, 2), (2, 3))
"""Rows and columns of SpliceMix's grids; those that are not square are transposed half of the time."""
_GRID_SHARES = (0.3, 0.4, 0.3)
_BLANK_OFTEN = 0.3
"""How often some cells of a grid, any number but all, stay empty."""
_SPLICED_SHARE = 4
"""A batch gains one spliced image for this many."""


def mixup(batch: Batch, *, seed: int, epoch: int, alpha: float) -> Batch:
    """λ · image + (1 − λ) · other, targets alike, with λ ~ Beta(α, α) (Zhang et al., ICLR 2018, arXiv 1710.09412).

    Deviation: there λ is one for a batch; here each image has its own.
    """
    own_B = _betas(batch.key_hash_B, alpha, seed=seed, epoch=epoch)
    partner_B = _partners(batch.key_hash_B, seed=seed, epoch=epoch)
    return _mixed(batch, partner_B, own_B, image_BCHW=None)


def cutmix(batch: Batch, *, seed: int, epoch: int, alpha: float) -> Batch:
    """A box with the image's ratio, its centre any pixel, cut off at the edge, shows the other image; targets are mixed
    by area. Before it is cut off, the box takes 1 − λ of the area, λ ~ Beta(α, α) (Yun et al., ICCV 2019, arXiv
    1905.04899).

    Deviation: there λ and the box are the same in a batch; here each image has its own.
    """
    image_BCHW, size = batch.image_BCHW, batch.image_BCHW.shape[-1]
    own_B = _betas(batch.key_hash_B, alpha, seed=seed, epoch=epoch)
    partner_B = _partners(batch.key_hash_B, seed=seed, epoch=epoch)
    side_B1 = np.floor(size * np.sqrt(1 - own_B))[:, None]
    start_B2 = np.floor(uniform(batch.key_hash_B, seed, epoch, MIX_BOX, 2) * size) - np.floor(side_B1 / 2)
    box_B4 = np.concatenate([start_B2, start_B2 + side_B1], axis=1).clip(0, size)
    own_B = 1 - (box_B4[:, 2:] - box_B4[:, :2]).prod(axis=1) / size**2
    other_BCHW = image_BCHW[torch.from_numpy(partner_B).to(image_BCHW.device)]
    image_BCHW = fill_holes(image_BCHW, hide_boxes(box_B4, size, image_BCHW.device), other_BCHW)
    return _mixed(batch, partner_B, own_B, image_BCHW)


def splicemix(batch: Batch, *, seed: int, epoch: int) -> Batch:
    """The batch, and after it a quarter as many images more, at least one: grids of images of the batch made smaller,
    1×2, 2×2 or 2×3 with the shares 0.3, 0.4 and 0.3. In 30 % of them some cells stay empty. A class that any cell shows
    is present (Wang et al., arXiv 2311.15200, 2023).

    Deviation: in its authors' code all grids of a batch have one shape; here each has its own. Its second part, a
    consistency between a grid and its images (SpliceMix-CL), is not included.
    """
    images, targets, ignores, members = [], [], [], []
    num_spliced = max(1, len(batch) // _SPLICED_SHARE)
    # As many permutations of the batch, one after the other, as the largest grids need.
    num_rounds = -(-num_spliced * max(rows * columns for rows, columns in GRIDS) // len(batch))
    pool = np.concatenate([_order(batch.key_hash_B, seed, epoch, turn) for turn in range(num_rounds)])
    for _ in range(num_spliced):
        lot, blanks, how_many, turned, *order = uniform(batch.key_hash_B[pool[:1]], seed, epoch, GRID, 10)[0]
        rows, columns = GRIDS[int(np.searchsorted(np.cumsum(_GRID_SHARES), lot, side="right").clip(0, 2))]
        cell_G, pool = pool[: rows * columns], pool[rows * columns :]
        if turned < 0.5:
            rows, columns = columns, rows
        num_blank = 1 + int(how_many * (len(cell_G) - 1)) if blanks < _BLANK_OFTEN else 0
        shown_G = np.argsort(order[: len(cell_G)], kind="stable") >= num_blank
        images.append(_grid(batch.image_BCHW, cell_G, shown_G, rows, columns))
        shown = torch.from_numpy(cell_G[shown_G]).to(batch.target_BK.device)
        targets.append(batch.target_BK[shown].amax(dim=0))
        ignores.append(batch.ignore_BK[shown].any(dim=0) & (targets[-1] == 0))
        members.append(cell_G)
    keys = ["+".join(batch.keys[cell] for cell in cell_G) for cell_G in members]
    first = np.array([cell_G[0] for cell_G in members])
    image_BCHW = torch.cat([batch.image_BCHW, torch.stack(images)])
    return replace(
        batch,
        image_BCHW=image_BCHW.contiguous(memory_format=torch.channels_last),
        target_BK=torch.cat([batch.target_BK, torch.stack(targets)]),
        ignore_BK=torch.cat([batch.ignore_BK, torch.stack(ignores)]),
        keys=batch.keys + keys,
        key_hash_B=np.concatenate([batch.key_hash_B, key_hash(keys)]),
        index_B=np.concatenate([batch.index_B, batch.index_B[first]]),
        crop_B4=np.concatenate([batch.crop_B4, batch.crop_B4[first]]),
        flip_B=np.concatenate([batch.flip_B, batch.flip_B[first]]),
    )


def _grid(image_BCHW: Tensor, cell_G: np.ndarray, shown_G: np.ndarray, rows: int, columns: int) -> Tensor:
    """One spliced image (C, H, W); cells that are not shown are 0."""
    size = image_BCHW.shape[-1]
    row_edges = [round(size * row / rows) for row in range(rows + 1)]
    column_edges = [round(size * column / columns) for column in range(columns + 1)]
    spliced_CHW = torch.zeros_like(image_BCHW[0])
    for place, (cell, shown) in enumerate(zip(cell_G.tolist(), shown_G.tolist(), strict=True)):
        if shown:
            row, column = divmod(place, columns)
            down, across = slice(*row_edges[row : row + 2]), slice(*column_edges[column : column + 2])
            sides = (down.stop - down.start, across.stop - across.start)
            small_1CHW = F.interpolate(image_BCHW[cell : cell + 1], sides, mode="bilinear", align_corners=True)
            spliced_CHW[:, down, across] = small_1CHW[0]
    return spliced_CHW


def _mixed(batch: Batch, partner_B: np.ndarray, own_B: np.ndarray, image_BCHW: Tensor | None) -> Batch:
    """The batch with targets mixed by the share of each image's own, and so its images where none are given."""
    device = batch.image_BCHW.device
    partner = torch.from_numpy(partner_B).to(device)
    own_B1 = torch.from_numpy(own_B.astype(np.float32)).to(device)[:, None]
    if image_BCHW is None:
        own_B111 = own_B1[:, :, None, None]
        image_BCHW = own_B111 * batch.image_BCHW + (1 - own_B111) * batch.image_BCHW[partner]
    return replace(
        batch,
        image_BCHW=image_BCHW,
        target_BK=own_B1 * batch.target_BK + (1 - own_B1) * batch.target_BK[partner],
        ignore_BK=(batch.ignore_BK & (own_B1 > 0)) | (batch.ignore_BK[partner] & (own_B1 < 1)),
    )


def _partners(key_hash_B: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Whom each image is mixed with, int64 (B,): in a circle, so nobody with itself unless it is alone."""
    order_B = _order(key_hash_B, seed, epoch, 0)
    partner_B = np.empty_like(order_B)
    partner_B[order_B] = np.roll(order_B, -1)
    return partner_B


def _order(key_hash_B: np.ndarray, seed: int, epoch: int, turn: int) -> np.ndarray:
    return np.argsort(hash64(seed, epoch, MIX_ORDER, turn, key_hash_B), kind="stable")


def _betas(key_hash_B: np.ndarray, alpha: float, *, seed: int, epoch: int) -> np.ndarray:
    """λ ~ Beta(α, α) of each image, float64 (B,). NumPy keeps the streams of RandomState for ever, unlike others."""
    lot_B = hash64(seed, epoch, MIX_SHARE, key_hash_B)
    return np.array([np.random.RandomState(lot & 0xFFFFFFFF).beta(alpha, alpha) for lot in lot_B.tolist()])
