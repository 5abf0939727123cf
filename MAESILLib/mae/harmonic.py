"""Smooth fills of the hidden voxels, with the visible ones as boundary values.

Harmonic: by Laplace's equation. It stands next to every metric of the model. Biharmonic: by the equation of a thin
plate under tension, which also goes on with the slope of what is visible; it is where the completion starts.

Both are solved by conjugate gradients (Y. Saad, Iterative Methods for Sparse Linear Systems, 2003, algorithm 9.1)
preconditioned with a multigrid V-cycle (U. Trottenberg, C. Oosterlee, A. Schueller, Multigrid, 2001, chapters 2 and
7.8). The cost of the harmonic fill hardly depends on the size of the holes. The biharmonic one is preconditioned with
two such cycles, which know nothing of its slope at the border; it takes five to ten times as long, and longer where
holes are large.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from MAESILLib.runtime.stopping import NEVER, StopRequest

MAX_CYCLES = 400
"""The harmonic fill takes fewer than ten, the biharmonic one about 16 with patches of 8 voxels, and 105 with cubes of
32 voxels of which one in a hundred is known."""
CONTRACTION = 0.5
"""What a cycle leaves of its largest correction: measured 0.05 to 0.15 for patches of 4, 8, 16 or 32 voxels, 0.6 for
patches of 5 or 7 and for single voxels, 1.5 where one voxel in a thousand is known."""
DAMPING = (0.5695, 1.7321)
"""Two Jacobi steps by the Chebyshev roots for the rough half of the 7-point stencil's spectrum, [1/3, 2]: together
they shrink every rough error below 0.35."""
PIECE = 2**18
"""Voxels a CPU works on at a time, so that intermediate results stay in its cache."""
LAPLACIAN_PLANES = 32
TINY = 1e-6
TENSION = 0.05
"""Weight of the squared gradient beside the squared Laplacian, so that a plate does not swing in large holes. Of 0,
0.02, 0.05, 0.1 and 0.3 the best on crops of 12 training CTs: 23.13, 23.22, 23.25, 23.21, 22.98 dB; harmonic 22.01."""


@torch.no_grad()
def harmonic_fill(
    image: torch.Tensor, known: torch.Tensor, tolerance: float = 1e-4, stop: StopRequest = NEVER
) -> torch.Tensor:
    """Solve Laplace's equation in the unknown voxels, with the known voxels as boundary values.

    Each unknown voxel becomes the mean of its face neighbours; nothing passes the border of the volume (Neumann).
    What one sample of a batch becomes does not depend on the others, but for rounding.

    Args:
        image: (B, 1, D, H, W) intensities; unknown voxels are not read.
        known: (B, 1, D, H, W) bool.
        tolerance: largest error of any voxel, in the intensity's unit, as the last correction tells it.

    Returns:
        (B, 1, D, H, W) float32: ``image`` where known, else the fill; 0.5 where a sample knows nothing at all.

    Raises:
        ArithmeticError: the tolerance was not reached, for one below about 1e-6 because of float32.
    """
    image = image.float()
    count = known.sum((1, 2, 3, 4), keepdim=True)
    # where, not a product: an unknown NaN or infinity must not get through either
    mean = torch.where(known, image, 0).sum((1, 2, 3, 4), keepdim=True) / count
    # deviations from the mean: zero is then a fair first guess, and float32 rounds less
    mean = torch.where(count > 0, mean, 0.5)
    filled = mean.expand_as(image)
    if grids := _hierarchy(known[:, 0]):
        finest = grids[0]
        boundary = finest.spread(torch.where(known, image - mean, 0)[:, 0])
        source = torch.zeros_like(boundary)
        finest.add(source, finest.residual(boundary, None, finest.work[0]))
        del boundary
        solution = _solve(
            source, lambda x, out: finest.residual(x, None, out), lambda x: _cycle(x, grids), tolerance, stop
        )
        filled = finest.inside(solution)[:, None] + mean
    return torch.where(known, image, filled)


@torch.no_grad()
def biharmonic_fill(
    harmonic: torch.Tensor, known: torch.Tensor, tolerance: float = 0.1, stop: StopRequest = NEVER
) -> torch.Tensor:
    """Choose the unknown voxels that make the image's squared Laplacian, and a little its squared gradient, least.

    The best linear prediction of an image whose power falls with the 4th power of the frequency, as that of surfaces
    in space does; the harmonic fill is that of one whose power falls with the 2nd.

    Args:
        harmonic: (B, 1, D, H, W) intensities in [0, 1], the known ones and the :func:`harmonic_fill` of the others.
        known: (B, 1, D, H, W) bool.
        tolerance: corrections end where the largest of any voxel, in the intensity's unit, is about this: at 0.1 the
            PSNR is within 0.02 dB of that of the solution.

    Returns:
        (B, 1, D, H, W) float32, clipped to [0, 1] where unknown.

    Raises:
        ArithmeticError: the tolerance was not reached.
    """
    grids = _hierarchy(known[:, 0])
    if not grids:
        return harmonic
    finest, unknown = grids[0], ~known[:, 0]

    spare = torch.zeros_like(finest.work[0])

    def change(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        once, twice = finest.inside(spare), finest.inside(out)
        _laplacian(finest.inside(x), once)
        _laplacian(once, twice)
        torch.add(once.mul_(TENSION), twice, alpha=-1, out=twice).mul_(unknown)
        return out

    solution = _solve(
        change(finest.spread(harmonic[:, 0]), torch.zeros_like(finest.work[0])),
        change,
        # the cycle's result and its input may not be the same vector
        lambda x: _cycle(spare.copy_(_cycle(x, grids)), grids),
        tolerance,
        stop,
    )
    filled = (harmonic + finest.inside(solution)[:, None]).clamp_(0, 1)
    return torch.where(known, harmonic, filled)


def _laplacian(image: torch.Tensor, out: torch.Tensor) -> None:
    """Write the sum of the differences to the face neighbours (B, D, H, W) to ``out``; nothing passes the border."""
    out.zero_()
    for axis in (1, 2, 3):
        # a few planes at a time: the steps of all are a volume more
        for first in range(0, image.shape[1], LAPLACIAN_PLANES):
            planes = slice(first, first + LAPLACIAN_PLANES + (axis == 1))
            steps = image[:, planes].diff(dim=axis)
            total, count = out[:, planes], steps.shape[axis]
            total.narrow(axis, 0, count).add_(steps)
            total.narrow(axis, 1, count).sub_(steps)


class _Grid:
    """One grid of the hierarchy: its equations, sum of links * (neighbour - cell) + source = 0 in every unknown cell.

    Its vectors are (B, places): the cells with a layer of zeros around them, and one more at the far end of an odd
    side, in row-major order. A neighbour is then always the same number of places away.

    Args:
        known, unknown: (B, D, H, W) bool cells; a coarse cell is known if any voxel in it is.
        size: (D, H, W) voxels of the volume.
        width: voxels along a side of a cell.
    """

    def __init__(self, known: torch.Tensor, unknown: torch.Tensor, size: torch.Size, width: int) -> None:
        batch, self.size = len(known), known.shape[1:]
        self.shape = [n + n % 2 + 2 for n in self.size]
        self.damping = DAMPING if width == 1 else DAMPING * 2
        plane = self.shape[1] * self.shape[2]
        self.offsets = (1, self.shape[2], plane)
        end = (self.shape[0] - 1) * plane
        length = max(1, PIECE // batch) if known.device.type == "cpu" else end
        self.pieces = [slice(n, min(n + length, end)) for n in range(plane, end, length)]
        # vectors that every cycle works in, and values of one piece
        self.work = torch.zeros(2, batch, end + plane, device=known.device).unbind()
        self.buffer = known.new_empty(batch, length, dtype=torch.float32)
        self.areas = self._areas(size, width) if any(n % width for n in size) else None
        cells, links = self.work
        # a known cell stands for a known voxel just beyond the face, (width + 1) / 2 voxels away where the centre of
        # an unknown one is a width away: without that factor a cycle leaves 0.7 of the error
        self.inside(cells).copy_(known).mul_(2 * width / (width + 1)).add_(unknown)
        for piece in self.pieces:
            links[:, piece] = self._neighbour_sum(cells, piece)
        self.weight = self.spread(unknown).div_(links.clamp_min(TINY))

    def _areas(self, size: torch.Size, width: int) -> list[torch.Tensor]:
        """Return how large the faces of cells along W, H, D are: those that the volume's end cuts are smaller."""
        shares = []
        for n, places in zip(size, self.shape, strict=True):
            begin = width * torch.arange(-1, places - 1, device=self.buffer.device)
            shares.append(((n - begin) / width).clamp(0, 1))
        d, h, w = shares[0][:, None, None], shares[1][:, None], shares[2]
        return [(a * b).expand(self.shape).reshape(-1) for a, b in ((d, h), (d, w), (h, w))]

    def spread(self, cells: torch.Tensor) -> torch.Tensor:
        """Lay out (B, D, H, W) cells as a vector."""
        x = torch.zeros_like(self.work[0])
        self.inside(x).copy_(cells)
        return x

    def inside(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (B, D, H, W) cells of a vector."""
        depth, height, width = self.size
        return x.unflatten(1, self.shape)[:, 1 : depth + 1, 1 : height + 1, 1 : width + 1]

    def evened(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same with what makes each side even."""
        return x.unflatten(1, self.shape)[:, 1:-1, 1:-1, 1:-1]

    def add(self, x: torch.Tensor, change: torch.Tensor) -> None:
        """Add ``change`` to unknown cells."""
        for piece in self.pieces:
            is_unknown = torch.sign(self.weight[:, piece], out=self._buffer(piece))
            x[:, piece].addcmul_(change[:, piece], is_unknown)

    def relax(
        self, x: torch.Tensor, spare: torch.Tensor, source: torch.Tensor, damping: tuple[float, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one Jacobi step for each damping factor; return the result and the vector that is spare now."""
        for factor in damping:
            for piece in self.pieces:
                torch.lerp(x[:, piece], self._jacobi(x, source, piece), factor, out=spare[:, piece])
            x, spare = spare, x
        return x, spare

    def residual(self, x: torch.Tensor, source: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        """Write ``source`` (None: 0) + sum of links * (neighbour - cell) to ``out``, for ``x`` 0 in known cells."""
        for piece in self.pieces:
            change = self._jacobi(x, source, piece).sub_(x[:, piece])
            torch.div(change, self.weight[:, piece].clamp_min(TINY), out=out[:, piece])
        return out

    def _buffer(self, piece: slice) -> torch.Tensor:
        return self.buffer[:, : piece.stop - piece.start]

    def _jacobi(self, x: torch.Tensor, source: torch.Tensor | None, piece: slice) -> torch.Tensor:
        """Return the values that solve the equation of each cell by itself."""
        total = self._neighbour_sum(x, piece)
        if source is not None:
            total += source[:, piece]
        return total.mul_(self.weight[:, piece])

    def _neighbour_sum(self, x: torch.Tensor, piece: slice) -> torch.Tensor:
        total = self._buffer(piece).zero_()
        for axis, step in enumerate(self.offsets):
            for place in (slice(piece.start - step, piece.stop - step), slice(piece.start + step, piece.stop + step)):
                if self.areas is None:
                    total += x[:, place]
                else:
                    total.addcmul_(x[:, place], self.areas[axis][piece])
        return total


def _hierarchy(known: torch.Tensor) -> list[_Grid]:
    """Build the grids of (B, D, H, W), finest first, each with half the cells an axis, until none is unknown."""
    grids: list[_Grid] = []
    size, unknown = known.shape[1:], ~known
    while unknown.any() and max(known.shape[1:]) > 1:
        grids.append(_Grid(known, unknown, size, 2 ** len(grids)))
        pads = [pad for n in reversed(known.shape[1:]) for pad in (0, n % 2)]
        known, unknown = (_halved(F.pad(x, pads), torch.bitwise_or) for x in (known, unknown))
        unknown = unknown & ~known
    return grids


def _solve(
    residual: torch.Tensor,
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    correct: Callable[[torch.Tensor], torch.Tensor],
    tolerance: float,
    stop: StopRequest,
) -> torch.Tensor:
    """Return the vector that leaves no residual. Consumes ``residual``.

    Args:
        change: what a vector adds to the residual; it may be written to the second argument.
        correct: the preconditioner, an approximate solution for a residual.
    """
    solution, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    previous = residual.new_full((len(residual), 1), torch.inf)
    is_open = torch.ones_like(previous, dtype=torch.bool)
    for _ in range(MAX_CYCLES):
        stop.check()
        correction = correct(residual)
        largest = torch.maximum(correction.amax(1, True), -correction.amin(1, True))
        product = _dot(correction, residual)
        direction.mul_(_ratio(product, previous)).add_(correction)
        changed = change(direction, correction)
        step = _ratio(product, -_dot(direction, changed)) * is_open
        solution.addcmul_(direction, step)
        residual.addcmul_(changed, step)
        # a sample that is done stays as it is, whatever the others of its batch need
        is_open &= CONTRACTION * largest > tolerance
        if not is_open.any():
            return solution
        previous = product
    raise ArithmeticError(f"smooth fill: tolerance {tolerance:g} not reached in {MAX_CYCLES} cycles")


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the inner product of each sample, (B, 1)."""
    return torch.stack([one.dot(other) for one, other in zip(a, b, strict=True)])[:, None]


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(b > 0, a / b, 0)


def _cycle(source: torch.Tensor, grids: list[_Grid]) -> torch.Tensor:
    """Return an approximate solution for ``source`` by one V-cycle from zero."""
    grid, coarser = grids[0], grids[1:]
    x, spare = grid.work
    torch.mul(source, grid.weight, out=x).mul_(grid.damping[0])
    x, spare = grid.relax(x, spare, source, grid.damping[1:])
    if coarser:
        fine = grid.evened(grid.residual(x, source, out=spare))
        # the equations leave out 1 / spacing^2, a quarter on the coarse grid: 4 * mean of 8 = sum / 2
        coarse_source = coarser[0].spread(_halved(fine, torch.add)).mul_(0.5)
        _interpolate(coarser[0].inside(_cycle(coarse_source, coarser)), fine)
        grid.add(x, spare)
    return grid.relax(x, spare, source, grid.damping[::-1])[0]


def _halved(x: torch.Tensor, combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Combine each 2x2x2 cells of (B, D, H, W), sides even, into one."""
    x = combine(x[:, ::2], x[:, 1::2])
    x = combine(x[:, :, ::2], x[:, :, 1::2])
    return combine(x[..., ::2], x[..., 1::2])


def _interpolate(coarse: torch.Tensor, out: torch.Tensor) -> None:
    """Write (B, D, H, W) cells to ``out`` (B, 2D, 2H, 2W) by trilinear interpolation."""
    x = F.pad(coarse, (1,) * 6, mode="replicate")
    for axis in (3, 2, 1):
        count = x.shape[axis] - 2
        fine = out if axis == 1 else x.new_empty([2 * count if a == axis else n for a, n in enumerate(x.shape)])
        # a fine centre lies a quarter of a coarse cell off a coarse centre
        for side, half in zip((0, 2), fine.unflatten(axis, (count, 2)).unbind(axis + 1), strict=True):
            torch.lerp(x.narrow(axis, 1, count), x.narrow(axis, side, count), 0.25, out=half)
        x = fine
