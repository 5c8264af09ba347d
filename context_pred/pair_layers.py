"""The pair layers: necks that join a neighbour and a centre, and the head that names the position."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import caffe_batch_norm, xavier_caffe


class PairNeck(nn.Module):
    """OpenMMLab's pair layer: join (neighbour, centre), fc, batch norm, ReLU, dropout.

    The weight is used in two halves, ``W·[n; c] = Wn·n + Wc·c``, so that a patch of many pairs is multiplied once.
    Source: mmselfsup 0.x and 1.x, ``RelativeLocNeck`` (momentum .003; normal(0, .01) weights, zero bias).
    """

    def __init__(self, channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * channels, out_channels)
        self.bn = nn.BatchNorm1d(out_channels, momentum=0.003)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, neighbors: Tensor, centers: Tensor, neighbor: Tensor | None, center: Tensor | None) -> Tensor:
        """Join pooled vectors, (n, C) and (c, C), by the index of each pair (None: one to one); return (M, D)."""
        to_neighbor, to_center = self.fc.weight.chunk(2, 1)
        joined = _taken(F.linear(neighbors, to_neighbor, self.fc.bias), neighbor) + _taken(
            F.linear(centers, to_center), center
        )
        out: Tensor = self.drop(self.relu(self.bn(joined)))
        return out


class ContextNetNeck(nn.Module):
    """The paper's fc7 and fc8 over (centre, neighbour): fc7 with Caffe's batch norm, fc8 without.

    Source: deepcontext, ``train.py``; Doersch et al. 2015, Fig. 3.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.fc7 = nn.Linear(2 * channels, out_channels)
        self.bn7 = caffe_batch_norm(out_channels, nn.BatchNorm1d)
        self.fc8 = nn.Linear(out_channels, out_channels)
        self.apply(xavier_caffe)

    def forward(self, neighbors: Tensor, centers: Tensor, neighbor: Tensor | None, center: Tensor | None) -> Tensor:
        """Join pooled vectors, (n, C) and (c, C), by the index of each pair (None: one to one); return (M, D)."""
        to_center, to_neighbor = self.fc7.weight.chunk(2, 1)
        joined = _taken(F.linear(centers, to_center, self.fc7.bias), center) + _taken(
            F.linear(neighbors, to_neighbor), neighbor
        )
        return F.relu(self.fc8(F.relu(self.bn7(joined))))


class PositionHead(nn.Module):
    """The 8-way classifier of the neighbour's position (raster order)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(channels, 8)
        nn.init.normal_(self.fc_cls.weight, std=0.005)
        nn.init.zeros_(self.fc_cls.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) to logits (M, 8)."""
        out: Tensor = self.fc_cls(x)
        return out


def _taken(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows[index]
