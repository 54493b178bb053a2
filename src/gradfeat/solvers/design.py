"""Which samples to label next: those that reduce the variance of all logits most, each given those before it.

With H the Hessian of a fitted model, the logits of sample i have the covariance ``Xᵢ H⁻¹ Xᵢᵀ``, and the loss that this
costs, with Λᵢ the loss's curvature, is ``½ tr Λᵢ Xᵢ H⁻¹ Xᵢᵀ``: exact for a squared loss, for the rest the Fisher
information's part of it. A label of sample j adds ``Xⱼᵀ (1/(s Λⱼ) + Rⱼ)⁻¹ Xⱼ`` to H, whatever it will be (Rⱼ is of the
sample's own unknowns, see `gradfeat.solvers.leverage`). So what a label is worth is known before it is there, and a
sample that says what a chosen one has said is worth little (A-optimal design; Yu, Bi & Tresp, 2006, for a squared loss;
Ash et al., 2021, for the Fisher information).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-12  # of a curvature, relative to 1: no number to divide by


@dataclass(frozen=True)
class Design:
    """Samples in the order in which they are to be labelled.

    Attributes:
        samples: Indices into the pool, (k,).
        gains: What each reduces the pool's sum of ``tr Λᵢ Xᵢ H⁻¹ Xᵢᵀ`` by, given those before it, (k,).
        before: This sum with no sample chosen.
    """

    samples: Tensor
    gains: Tensor
    before: float


def greedy_design(rows: Tensor, noise: Tensor, k: int) -> Design:
    """Choose samples one after another, the most useful one each time.

    Args:
        rows: ``Lᵢᵀ Xᵢ H^-½`` of the pool, (n, c, size), with ``Lᵢ Lᵢᵀ = Λᵢ``.
        noise: ``1/s + Lᵢᵀ Rᵢ Lᵢ``, (n, c, c), of a label with the share s in the loss.
        k: How many, from 1 to n.

    Returns:
        The samples. Each costs two products of all rows with c vectors.
    """
    n, c, size = rows.shape
    flat = rows.reshape(n * c, size)
    gram = (flat.T @ flat).double()
    own = (rows @ rows.mT).double()  # Aᵢ M Aᵢᵀ, with M the inverse Hessian in these units: 1, less what is chosen
    seen = ((flat @ gram.to(rows)).view_as(rows) @ rows.mT).double()  # Aᵢ M G M Aᵢᵀ
    chosen, gains = torch.zeros(n, dtype=torch.bool, device=rows.device), []
    samples, taken = [], rows.new_zeros(size, 0, dtype=torch.float64)  # M = 1 - taken takenᵀ
    before = float(gram.trace())
    for _ in range(k):
        factor = torch.linalg.cholesky(noise + own)
        gain = torch.cholesky_solve(seen, factor).diagonal(dim1=1, dim2=2).sum(1).masked_fill(chosen, -torch.inf)
        best = int(gain.argmax())
        samples.append(best)
        gains.append(max(float(gain[best]), 0.0))
        chosen[best] = True
        row = rows[best].double()
        moved = row.T - taken @ (taken.T @ row.T)  # M Aⱼᵀ
        down = torch.linalg.solve_triangular(factor[best], moved.T, upper=False).T  # M loses down downᵀ
        pulled = gram @ down
        pulled = pulled - taken @ (taken.T @ pulled)  # M G down
        both = torch.cat([down, pulled], 1).to(rows)
        along, across = (flat @ both).double().view(n, c, 2 * c).split(c, 2)
        own = own - along @ along.mT
        cross = across @ along.mT
        seen = seen - cross - cross.mT + along @ (down.T @ gram @ down) @ along.mT
        taken = torch.cat([taken, down], 1)
    return Design(torch.tensor(samples), torch.tensor(gains, dtype=torch.float64), before)


def design_rows(whitened: Tensor, root: Tensor, rest: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the rows and the noise of `greedy_design`.

    Args:
        whitened: ``Xᵢ H^-½``, (n, c, size).
        root: L, (n, c, c), with ``L Lᵀ = Λᵢ``.
        rest: R, (n, c, c).
        share: Of a new sample in the loss, s.
    """
    noise = (root.mT @ rest.to(root) @ root).double()
    noise.diagonal(dim1=1, dim2=2).add_(1 / max(share, _LEAST))
    return root.to(whitened).mT @ whitened, noise
