"""Tiles, the calls they go in, and the cells that wait for them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dino_ray.engine.protocol import Handle
from dino_ray.engine.scheduler.blame import Record
from dino_ray.engine.scheduler.merges import Merges
from dino_ray.plan.geometry import Grid

if TYPE_CHECKING:
    from dino_ray.engine.scheduler.pool import Flight


@dataclass(eq=False, slots=True)
class Piece:
    """Tiles that are refined as one batch; a piece of work."""

    rank: int
    """Place of its first tile in the plan's order."""
    tiles: tuple[int, ...]
    refine: bool = True
    started: bool = False
    raised: int = 0
    """How often its calls raised."""
    record: Record = field(default_factory=Record)
    failed_on: set[int] = field(default_factory=set)
    """Replicas on which it raised, or that ended under it."""
    flights: list[Flight] = field(default_factory=list)
    """Its calls in flight whose answer is waited for."""


@dataclass(eq=False, slots=True)
class _Tile:
    """A tile that has been started and not yet been merged into all of its cells."""

    piece: Piece
    cells_left: set[int]
    done: bool = False
    pixels: Handle = None
    maker: int = -1
    """The replica that made the pixels, in the store of whose machine they are."""


@dataclass(eq=False, slots=True)
class _Cell:
    """A cell of which a tile has been started."""

    tiles: tuple[int, ...]
    missing: int
    """How many of its tiles are not done."""


class Work:
    """What is left to do of one image.

    Parameters
    ----------
    batch
        Tiles that are refined at once; which ones is the plan's affair, whatever is done already.
    cells_done
        Cells that the canvas holds already; what only they need is not computed.
    """

    def __init__(self, grid: Grid, batch: int, cells_done: Sequence[int], merges: Merges) -> None:
        already = set(cells_done)
        self._grid, self._merges = grid, merges
        self._groups = grid.tile_groups(batch)
        self._batch = batch
        self._ranks = {tile: rank for rank, tile in enumerate(grid.tile_order())}
        self.cells_left = set(range(grid.n_cells)) - already
        self.tiles_to_do = {tile for cell in self.cells_left for tile in grid.cell_tiles(cell)}
        self._tiles: dict[int, _Tile] = {}
        self._cells: dict[int, _Cell] = {}
        self._queue = sorted({self._ranks[tile] // batch * batch for tile in self.tiles_to_do})  # so a heap
        self._queued: dict[int, Piece] = {}  # by rank; absent: not yet made

    @property
    def alive(self) -> int:
        """Tiles started and not yet merged into all of their cells."""
        return len(self._tiles)

    @property
    def queued(self) -> int:
        """Pieces that wait for a replica."""
        return len(self._queue)

    # ---- the queue

    def earliest(self) -> Piece | None:
        """The first piece of the queue, in the plan's order."""
        while self._queue:
            rank = self._queue[0]
            piece = self._queued.get(rank)
            if piece is None:
                piece = self._queued[rank] = Piece(rank, self._groups[rank // self._batch])
            if not piece.started or self.needs(piece):
                return piece
            self.take()
        return None

    def take(self) -> None:
        """Remove the first piece from the queue."""
        del self._queued[heapq.heappop(self._queue)]

    def put(self, piece: Piece) -> None:
        """Queue a piece, at its place in the plan's order."""
        if piece.rank not in self._queued:
            heapq.heappush(self._queue, piece.rank)
        self._queued[piece.rank] = piece  # also in the place of the piece that it was split from

    def is_queued(self, piece: Piece) -> bool:
        return self._queued.get(piece.rank) is piece

    def start(self, piece: Piece) -> None:
        """A piece goes to a replica; its tiles are alive from now on."""
        if piece.started:
            return
        piece.started = True
        for tile in piece.tiles:
            cells = {cell for cell in self._grid.tile_cells(tile) if cell in self.cells_left}
            if cells:
                self._tiles[tile] = _Tile(piece, cells)
                for cell in cells:
                    if cell not in self._cells:
                        tiles = self._grid.cell_tiles(cell)
                        self._cells[cell] = _Cell(tiles, len(tiles))

    def needs(self, piece: Piece) -> bool:
        """Whether a started piece has a tile that some cell still waits for."""
        return any(
            tile.piece is piece and not tile.done
            for tile in map(self._tiles.get, piece.tiles)
            if tile is not None
        )

    # ---- what became of it

    def finish(self, piece: Piece, pixels: Sequence[Handle], maker: int) -> int:
        """Keep what a call made, as far as it is needed; returns how many of its tiles were."""
        kept = 0
        for number, handle in zip(piece.tiles, pixels, strict=True):
            tile = self._tiles.get(number)
            if tile is None or tile.done or tile.piece is not piece:
                continue
            tile.done, tile.pixels, tile.maker = True, handle, maker
            kept += 1
            for cell in sorted(tile.cells_left):
                state = self._cells[cell]
                state.missing -= 1
                if not state.missing:
                    self._merges.add(cell, state.tiles)
        return kept

    def split(self, piece: Piece) -> None:
        """Go on with the tiles of a piece one by one."""
        for number in piece.tiles:
            tile = self._tiles.get(number)
            if tile is not None and not tile.done:
                tile.piece = Piece(self._ranks[number], (number,), started=True)
                self.put(tile.piece)

    def cell_done(self, cell: int) -> Iterator[Piece]:
        """A cell is on the canvas; yields the pieces of tiles that this makes superfluous."""
        self._merges.ended(cell)
        if cell not in self.cells_left:
            return
        self.cells_left.discard(cell)
        for number in self._cells.pop(cell).tiles:
            tile = self._tiles[number]
            tile.cells_left.discard(cell)
            if not tile.cells_left:
                del self._tiles[number]
                yield tile.piece

    def cell_again(self, cell: int) -> None:
        """A cell's merge was lost, its tiles were not."""
        state = self._cells[cell]
        if not state.missing:
            self._merges.add(cell, state.tiles)

    def redo(self, cell: int, is_gone: Callable[[int], bool]) -> list[Piece]:
        """A cell's merge was lost, for want of tiles: have those made again that may be what was lost.

        If one of them is being made again anyway, that will be it. If machines are known to be gone, it is what was
        made there. Else it may be any of them.

        Parameters
        ----------
        is_gone
            Whether a replica's machine is.

        Returns
        -------
        list
            The pieces to be done again, none of them twice.
        """
        state = self._cells[cell]
        if state.missing:
            return []
        suspects = [number for number in state.tiles if is_gone(self._tiles[number].maker)] or state.tiles
        for number in suspects:
            tile = self._tiles[number]
            tile.done, tile.pixels = False, None
            self._merges.withhold(number)
            for waiting in tile.cells_left:
                self._cells[waiting].missing += 1
        return list(
            {id(piece): piece for piece in (self._tiles[number].piece for number in suspects)}.values()
        )

    def pixels(self, tiles: Sequence[int]) -> tuple[tuple[int, Handle], ...]:
        """Number and pixels of tiles that are done."""
        return tuple((number, self._tiles[number].pixels) for number in tiles)
