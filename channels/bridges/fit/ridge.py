"""Reduced-rank ridge regression from a stream, in the memory of two Gram matrices.

X and Y are standardised features and targets. ``W = (XᵀX/n + λ)⁻¹ XᵀY/n`` is cut to rank r along
the directions that carry most of what it predicts (Izenman, Reduced-rank regression for the
multivariate linear model, 1975).

λ is chosen by what the map explains of messages that it was not solved from. With few tokens a
column a small λ fits noise: held-out R² was -0.40 at 1.5 tokens a column with 0.001, 0.39 with 0.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PENALTY = 1e-3
"""Where no message is held out to choose by."""

PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

HELD, PART = 4_096, 256
"""Rows that a penalty is chosen by, and most that one message gives: its rows are much alike."""

JUDGED = 1_024
"""Columns of the targets, drawn at random, that a penalty is judged on."""

TOKENS_PER_COLUMN = 6

OVERSAMPLING, ROUNDS = 64, 3
DIRECTIONS = 96
"""Random directions that a layer is thinned to where layers are chosen."""


def gram_bytes(features: int, targets: int) -> int:
    """Peak bytes: three of each Gram matrix's size, copies, factor and solution among them."""
    return 4 * (3 * features * features + 3 * features * targets)


def tokens_for(columns: int, least: int) -> int:
    """Tokens that so many columns of features are solved from: six times as many, at least."""
    return max(least, TOKENS_PER_COLUMN * columns)


class Gram:
    """Running sums of features and targets, and a few other messages to judge by.

    Args:
        features: Columns of the features.
        targets: Columns of the targets.
        device: Where the sums live.
    """

    def __init__(self, features: int, targets: int, device: torch.device) -> None:
        self.count = 0
        self.square = torch.zeros(features, features, device=device)
        self.cross = torch.zeros(features, targets, device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.sum_features = torch.zeros(features, dtype=wide, device=device)
        self.sum_targets = torch.zeros(targets, dtype=wide, device=device)
        self.square_targets = torch.zeros(targets, dtype=wide, device=device)
        self._origin: tuple[Tensor, Tensor] | None = None
        drawn = torch.randperm(targets, generator=torch.Generator().manual_seed(0))
        self._judged = drawn[:JUDGED].sort().values.to(device)
        self._held: list[tuple[Tensor, Tensor]] = []

    @property
    def held(self) -> int:
        """Rows that a penalty can be chosen by."""
        return sum(len(features) for features, _ in self._held)

    def hold(self, features: Tensor, targets: Tensor) -> None:
        """Take a message in that a penalty is chosen by, and that nothing is solved from.

        Args:
            features: Its features, (tokens, columns).
            targets: Its targets, (tokens, columns).
        """
        step = max(-(-len(features) // PART), 1)
        self._held.append((features[::step].clone(), targets[::step, self._judged]))

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take a message in: rows of features (tokens, columns) and targets (tokens, columns)."""
        if not len(features):
            return
        if self._origin is None:  # sums about the first mean lose no digits to a large offset
            self._origin = features.mean(dim=0), targets.mean(dim=0)
        x, y = features - self._origin[0], targets - self._origin[1]
        self.square.addmm_(x.T, x)
        self.cross.addmm_(x.T, y)
        self.sum_features += x.sum(dim=0)
        self.sum_targets += y.sum(dim=0)
        self.square_targets += y.square().sum(dim=0)
        self.count += len(x)

    def release(self) -> None:
        """Give the memory of the sums back."""
        self.square, self.cross = self.square.new_empty(0), self.cross.new_empty(0)

    def solve(self, columns: Tensor | None = None, penalty: float | None = None) -> "Solution":
        """The ridge solution from some columns of the features (by default all), uncut.

        Without a `penalty` it is the one of `PENALTIES` that explains most of what is held, or
        `PENALTY` where nothing is.
        """
        standard = self._standardised(columns)
        if penalty is not None:
            return standard.solve(penalty)
        if not self._held:
            return standard.solve(PENALTY)
        features = torch.cat([rows for rows, _ in self._held])
        targets = torch.cat([rows for _, rows in self._held])
        if columns is not None:
            features = features[:, columns]
        scores = standard.judge(features, targets, self._judged)
        best = max(range(len(scores)), key=scores.__getitem__)
        return standard.solve(PENALTIES[best], explained=scores[best])

    def components(self, count: int) -> tuple[Tensor, Tensor]:
        """Principal components of the features, each column as wide as the others.

        Args:
            count: How many.

        Returns:
            The features' mean, (features,), and what brings ``features - mean`` to the components,
            (features, count).
        """
        standard = self._standardised(None)
        standard.square.diagonal().mul_(standard.scale > 0)  # else a dead column were a component
        _, vectors = torch.linalg.eigh(standard.square)
        return standard.mean, standard.scale[:, None] * vectors[:, -count:].flip(1)

    def _standardised(self, columns: Tensor | None) -> "_Standardised":
        """The sums of standardised rows."""
        if self._origin is None or self.count < 2:
            raise ValueError("no rows to solve from")
        mean, target_mean = self.sum_features / self.count, self.sum_targets / self.count
        origin, target_origin = self._origin
        square, cross = self.square, self.cross
        if columns is not None:
            square, cross = square[columns][:, columns], cross[columns]
            mean, origin = mean[columns], origin[columns]
        mean32, target32 = mean.float(), target_mean.float()
        square = (square / self.count).addr_(mean32, mean32, alpha=-1)
        cross = (cross / self.count).addr_(mean32, target32, alpha=-1)
        spread = square.diagonal().clamp_min(0).sqrt()
        alive = spread > 1e-6 * spread.max()  # a column that never varies says nothing
        scale = torch.where(alive, 1 / spread.clamp_min(1e-12), 0.0)
        variance = (self.square_targets / self.count - target_mean.square()).float()
        deviation = variance.clamp_min(0).sqrt()
        square = square.mul_(scale[:, None]).mul_(scale)
        cross = cross.mul_(scale[:, None]).div_(deviation.clamp_min(1e-6))
        square.diagonal().add_((~alive).float())
        return _Standardised(
            square=square,
            cross=cross,
            mean=origin + mean32,
            scale=scale,
            offset=target_origin + target32,
            deviation=deviation,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Standardised:
    """XᵀX/n and XᵀY/n of standardised rows; the other attributes are those of `Solution`."""

    square: Tensor
    cross: Tensor
    mean: Tensor
    scale: Tensor
    offset: Tensor
    deviation: Tensor

    def factor(self, penalty: float) -> Tensor:
        """Lower Cholesky factor of the penalised Gram matrix."""
        diagonal = self.square.diagonal()
        before = diagonal.clone()
        diagonal.add_(penalty)  # in place: a copy of a wide matrix is gigabytes
        factor: Tensor = torch.linalg.cholesky(self.square)
        diagonal.copy_(before)
        return factor

    def solve(self, penalty: float, explained: float | None = None) -> "Solution":
        """The solution with a penalty."""
        factor = self.factor(penalty)
        half = torch.linalg.solve_triangular(factor, self.cross, upper=False)
        return Solution(
            factor=factor,
            half=half,
            mean=self.mean,
            scale=self.scale,
            offset=self.offset,
            deviation=self.deviation,
            penalty=penalty,
            explained=explained,
        )

    def judge(self, features: Tensor, targets: Tensor, columns: Tensor) -> list[float]:
        """What the map with each of `PENALTIES` explains of held-out rows: R² over all columns.

        Args:
            features: (tokens, features).
            targets: (tokens, judged columns).
            columns: Which of the targets' columns these are; those that never vary are left out.
        """
        alive = self.deviation[columns] > 1e-6
        columns, targets = columns[alive], targets[:, alive]
        x = (features - self.mean) * self.scale
        y = (targets - self.offset[columns]) / self.deviation[columns]
        cross, total = self.cross[:, columns], y.square().sum().clamp_min(1e-12)
        scores = []
        for penalty in PENALTIES:
            missed = y - x @ torch.cholesky_solve(cross, self.factor(penalty))
            scores.append(1 - missed.square().sum() / total)
        return [float(score) for score in torch.stack(scores)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution:
    """A solved ridge, not yet cut.

    Attributes:
        factor: Lower Cholesky factor L of the standardised, penalised Gram matrix.
        half: L⁻¹ XᵀY/n.
        mean: Mean of the features.
        scale: One over their standard deviation; 0 for a column that never varies.
        offset: Mean of the targets.
        deviation: Their standard deviation.
        penalty: The λ it was solved with.
        explained: R² of held-out rows, where the penalty was chosen by it.
    """

    factor: Tensor
    half: Tensor
    mean: Tensor
    scale: Tensor
    offset: Tensor
    deviation: Tensor
    penalty: float
    explained: float | None = None

    def full(self) -> Tensor:
        """The uncut map, (features, targets), standardised on both sides."""
        weights: Tensor = torch.linalg.solve_triangular(self.factor.mT, self.half, upper=True)
        return weights

    def spread(self, encode: Tensor) -> Tensor:
        """Standard deviation of each number of a code, (rank,), by the Gram matrix L Lᵀ."""
        deviations: Tensor = (self.factor.mT @ encode).square().sum(dim=0).sqrt().clamp_min(1e-4)
        return deviations

    def cut(self, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Its best approximation: encode (features, rank) and decode (rank, targets).

        By randomised subspace iteration (Halko, Martinsson, Tropp 2011); where the rank exceeds
        what there is, the columns beyond are zero.
        """
        half = self.half
        most = min(half.shape)
        filled = min(rank, most)
        draws = torch.randn(
            half.shape[1],
            min(filled + OVERSAMPLING, most),
            generator=torch.Generator().manual_seed(seed),
        ).to(half.device)
        basis, _ = torch.linalg.qr(draws)
        for _ in range(ROUNDS):
            basis, _ = torch.linalg.qr(half.mT @ (half @ basis))
        _, _, right = torch.linalg.svd(half @ basis, full_matrices=False)
        directions = (basis @ right.mT)[:, :filled]
        encode = torch.linalg.solve_triangular(self.factor.mT, half @ directions, upper=True)
        decode = directions.mT
        if filled < rank:
            encode = torch.nn.functional.pad(encode, (0, rank - filled))
            decode = torch.nn.functional.pad(decode, (0, 0, 0, rank - filled))
        return encode.contiguous(), decode.contiguous()


def choose_layers(
    blocks: list[Tensor], always: Tensor, targets: Tensor, count: int, *, seed: int = 0
) -> tuple[int, ...]:
    """Choose, one after the other, the source layers that add most to what is explained.

    On a small sample, with every layer and the targets thinned to random directions: a cheap score
    that looks at layers jointly, since neighbours say almost the same.

    Args:
        blocks: Per source layer, its rows (tokens, columns).
        always: Rows that are features in any case (tokens, columns), possibly of no columns.
        targets: Rows to explain (tokens, columns).
        count: How many layers to choose.

    Returns:
        Their numbers in the order of the choice: fewer layers are a beginning of it.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = _thin(targets, 4 * DIRECTIONS, generator)
    parts = [_thin(always, 2 * DIRECTIONS, generator)]
    parts += [_thin(rows, DIRECTIONS, generator) for rows in blocks]
    features = torch.cat(parts, dim=1)
    every = torch.arange(features.shape[1], device=features.device)
    known, *layers = torch.split(every, [part.shape[1] for part in parts])
    half = len(targets) // 2
    # All products once: what a candidate needs of them is looked up.
    square, cross = (features[:half].mT @ rows[:half] for rows in (features, wanted))
    square.diagonal().add_(1e-2 * half)
    chosen: list[int] = []
    while len(chosen) < min(count, len(blocks)):
        left = [number for number in range(len(blocks)) if number not in chosen]
        losses = []
        for number in left:
            columns = torch.cat([known, layers[number]])
            weights = torch.linalg.solve(square[columns][:, columns], cross[columns])
            losses.append((wanted[half:] - features[half:, columns] @ weights).square().mean())
        chosen.append(left[int(torch.stack(losses).argmin())])
        known = torch.cat([known, layers[chosen[-1]]])
    return tuple(chosen)


def _thin(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Standardised rows, in at most `most` random directions."""
    if not rows.shape[1]:
        return rows
    rows = rows - rows.mean(dim=0)
    rows = rows / rows.std(dim=0).clamp_min(1e-6)
    if rows.shape[1] <= most:
        return rows
    draws = torch.randn(rows.shape[1], most, generator=generator).to(rows.device)
    thinned: Tensor = rows @ draws / rows.shape[1] ** 0.5
    return thinned
