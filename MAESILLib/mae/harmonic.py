"""Smooth fills of the hidden voxels, with the visible ones as boundary values.

Harmonic: by Laplace's equation. It stands next to every metric of the model. Biharmonic: by the equation of a thin
plate under tension, which also goes on with the slope of what is visible; it is where the completion starts.

Both are solved by conjugate gradients (Y. Saad, Iterative Methods for Sparse Linear Systems, 2003, algorithm 9.1)
preconditioned with a multigrid V-cycle (U. Trottenberg, C. Oosterlee, A. Schueller, Multigrid, 2001, chapters 2 and
7.8). The cost of the harmonic fill hardly depends on the size of the holes. The biharmonic one is preconditioned with
two such cycles, which know nothing of its slope at the border; it takes five to ten times as long, and longer where
holes are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

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
        boundary = finest.vector(torch.where(known, image - mean, 0)[:, 0])
        finest.add(finest.source, finest.residual(boundary, None, finest.work[0]))
        del boundary
        solution = _solve(
            finest, lambda x, out: finest.residual(x, None, out), lambda x: _cycle(x, grids), tolerance, stop
        )
        filled = solution.cells[:, None] + mean
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

    spare = finest.vector()

    def change(x: _Vector, out: _Vector) -> _Vector:
        once, twice = spare.cells, out.cells
        _laplacian(x.cells, once)
        _laplacian(once, twice)
        torch.add(once.mul_(TENSION), twice, alpha=-1, out=twice).mul_(unknown)
        return out

    def correct(x: _Vector) -> _Vector:
        # the cycle's result and its input may not be the same vector
        spare.values.copy_(_cycle(x, grids).values)
        return _cycle(spare, grids)

    change(finest.vector(harmonic[:, 0]), finest.source)
    solution = _solve(finest, change, correct, tolerance, stop)
    filled = (harmonic + solution.cells[:, None]).clamp_(0, 1)
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


class _Vector:
    """A grid's vector and views of it: making one takes longer than computing with the few cells of a coarse grid.

    Attributes:
        values: (B, places).
        cells: (B, D, H, W), the values of the grid's cells.
        evened: the same with what makes each side even.
        pieces: ``values``, a piece at a time.
    """

    def __init__(self, grid: _Grid) -> None:
        # not the grid itself: what refers to each other in a circle is not freed at once
        self._slices, self._offsets = grid.pieces, grid.offsets
        self.values = torch.zeros(grid.batch, grid.places, device=grid.device)
        self.evened = self.values.unflatten(1, grid.shape)[:, 1:-1, 1:-1, 1:-1]
        depth, height, width = grid.size
        self.cells = self.evened[:, :depth, :height, :width]
        self.pieces = [self.values[:, piece] for piece in grid.pieces]

    @cached_property
    def neighbours(self) -> list[list[torch.Tensor]]:
        """Return for each piece the values one cell before and after along W, H and D."""
        steps = [sign * step for step in self._offsets for sign in (-1, 1)]
        return [[self.values[:, p.start + n : p.stop + n] for n in steps] for p in self._slices]


class _Grid:
    """One grid of the hierarchy: its equations, sum of links * (neighbour - cell) + source = 0 in every unknown cell.

    Its vectors hold the cells with a layer of zeros around them, and one more at the far end of an odd side, in
    row-major order. A neighbour is then always the same number of places away.

    Args:
        known, unknown: (B, D, H, W) bool cells; a coarse cell is known if any voxel in it is.
        size: (D, H, W) voxels of the volume.
        width: voxels along a side of a cell.
    """

    def __init__(self, known: torch.Tensor, unknown: torch.Tensor, size: torch.Size, width: int) -> None:
        self.batch, self.size, self.device = len(known), known.shape[1:], known.device
        self.shape = [n + n % 2 + 2 for n in self.size]
        self.places = math.prod(self.shape)
        self.damping = DAMPING if width == 1 else DAMPING * 2
        plane = self.shape[1] * self.shape[2]
        self.offsets = (1, self.shape[2], plane)
        end = self.places - plane
        length = max(1, PIECE // self.batch) if self.device.type == "cpu" else end
        self.pieces = [slice(n, min(n + length, end)) for n in range(plane, end, length)]
        # vectors that every cycle works in, and values of one piece
        self.source, *self.work = self.vector(), self.vector(), self.vector()
        buffer = torch.empty(self.batch, length, device=self.device)
        self.buffers = [buffer[:, : piece.stop - piece.start] for piece in self.pieces]
        self.areas = self._areas(size, width) if any(n % width for n in size) else None
        cells, links = self.work
        # a known cell stands for a known voxel just beyond the face, (width + 1) / 2 voxels away where the centre of
        # an unknown one is a width away: without that factor a cycle leaves 0.7 of the error
        cells.cells.copy_(known).mul_(2 * width / (width + 1)).add_(unknown)
        for number, piece in enumerate(links.pieces):
            piece.copy_(self._neighbour_sum(cells, number))
        self.weight = self.vector(unknown)
        self.weight.values.div_(links.values.clamp_min(TINY))

    def vector(self, cells: torch.Tensor | None = None) -> _Vector:
        """Return a vector of these (B, D, H, W) cells, or of zeros."""
        x = _Vector(self)
        if cells is not None:
            x.cells.copy_(cells)
        return x

    def _areas(self, size: torch.Size, width: int) -> list[list[torch.Tensor]]:
        """Return of each piece how large the faces along W, H, D are: those that the volume's end cuts are smaller."""
        shares = []
        for n, places in zip(size, self.shape, strict=True):
            begin = width * torch.arange(-1, places - 1, device=self.device)
            shares.append(((n - begin) / width).clamp(0, 1))
        d, h, w = shares[0][:, None, None], shares[1][:, None], shares[2]
        areas = [(a * b).expand(self.shape).reshape(-1) for a, b in ((d, h), (d, w), (h, w))]
        return [[area[piece] for area in areas for _ in range(2)] for piece in self.pieces]

    def add(self, x: _Vector, change: _Vector) -> None:
        """Add ``change`` to unknown cells."""
        for number, here in enumerate(x.pieces):
            is_unknown = torch.sign(self.weight.pieces[number], out=self.buffers[number])
            here.addcmul_(change.pieces[number], is_unknown)

    def relax(self, x: _Vector, spare: _Vector, source: _Vector, damping: tuple[float, ...]) -> tuple[_Vector, _Vector]:
        """Take one Jacobi step for each damping factor; return the result and the vector that is spare now."""
        for factor in damping:
            for number, here in enumerate(x.pieces):
                torch.lerp(here, self._jacobi(x, source, number), factor, out=spare.pieces[number])
            x, spare = spare, x
        return x, spare

    def residual(self, x: _Vector, source: _Vector | None, out: _Vector) -> _Vector:
        """Write ``source`` (None: 0) + sum of links * (neighbour - cell) to ``out``, for ``x`` 0 in known cells."""
        for number, here in enumerate(x.pieces):
            change = self._jacobi(x, source, number).sub_(here)
            torch.div(change, self.weight.pieces[number].clamp_min(TINY), out=out.pieces[number])
        return out

    def _jacobi(self, x: _Vector, source: _Vector | None, number: int) -> torch.Tensor:
        """Return the values that solve the equation of each cell of a piece by itself."""
        total = self._neighbour_sum(x, number)
        if source is not None:
            total += source.pieces[number]
        return total.mul_(self.weight.pieces[number])

    def _neighbour_sum(self, x: _Vector, number: int) -> torch.Tensor:
        total, neighbours = self.buffers[number], x.neighbours[number]
        if self.areas is None:
            first, second, *rest = neighbours
            torch.add(first, second, out=total)
            for neighbour in rest:
                total += neighbour
        else:
            total.zero_()
            for neighbour, area in zip(neighbours, self.areas[number], strict=True):
                total.addcmul_(neighbour, area)
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
    finest: _Grid,
    change: Callable[[_Vector, _Vector], _Vector],
    correct: Callable[[_Vector], _Vector],
    tolerance: float,
    stop: StopRequest,
) -> _Vector:
    """Return the vector that leaves no residual; at first the residual is the source of the ``finest`` grid.

    Args:
        change: what a vector adds to the residual; it may be written to the second argument.
        correct: the preconditioner, an approximate solution for a residual.
    """
    residual, solution, direction = finest.source, finest.vector(), finest.vector()
    previous = residual.values.new_full((finest.batch, 1), torch.inf)
    is_open = torch.ones_like(previous, dtype=torch.bool)
    for _ in range(MAX_CYCLES):
        stop.check()
        correction = correct(residual)
        largest = torch.maximum(correction.values.amax(1, True), -correction.values.amin(1, True))
        product = _dot(correction.values, residual.values)
        direction.values.mul_(_ratio(product, previous)).add_(correction.values)
        changed = change(direction, correction).values
        step = _ratio(product, -_dot(direction.values, changed)) * is_open
        solution.values.addcmul_(direction.values, step)
        residual.values.addcmul_(changed, step)
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


def _cycle(source: _Vector, grids: list[_Grid]) -> _Vector:
    """Return an approximate solution for ``source`` by one V-cycle from zero."""
    grid, coarser = grids[0], grids[1:]
    x, spare = grid.work
    torch.mul(source.values, grid.weight.values, out=x.values).mul_(grid.damping[0])
    x, spare = grid.relax(x, spare, source, grid.damping[1:])
    if coarser:
        fine = grid.residual(x, source, out=spare).evened
        # the equations leave out 1 / spacing^2, a quarter on the coarse grid: 4 * mean of 8 = sum / 2
        torch.mul(_halved(fine, torch.add), 0.5, out=coarser[0].source.cells)
        _interpolate(_cycle(coarser[0].source, coarser).cells, fine)
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
