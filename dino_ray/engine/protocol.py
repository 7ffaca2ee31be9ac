"""What an engine is, what travels to it, and the events that come back.

An engine runs two kinds of work: *tile calls* on model replicas, and *merges* of finished tiles into cells
of the canvas. It decides nothing: which piece goes next, and to whom, is the scheduler's; see ``drive``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from dino_ray.fidelity.record import TileFidelity
from dino_ray.plan.geometry import Grid, Rect, Scaling
from dino_ray.prompts import Captioner, Region
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import SourceInfo

if TYPE_CHECKING:
    import numpy as np

    from dino_ray.diffusion.denoiser import Denoiser, Embeddings
    from dino_ray.diffusion.families.family import Picture
    from dino_ray.dino.calibration import Calibration
    from dino_ray.dino.features import FeatureLevel, FeatureMap
    from dino_ray.dino.loading import Dino
    from dino_ray.fidelity.colour import ColourLock
    from dino_ray.fidelity.grain import Grain
    from dino_ray.upsample import Upsampler

TextArrays: TypeAlias = "Mapping[str, np.ndarray]"
"""A prompt's embeddings, as ``Embeddings`` has them."""

Handle = object
"""Names a result (a tile's pixels, a guide) that stays where the engine keeps it; only that engine can read it."""


# ---- what travels to a replica


class Readable(Protocol):
    """A source, as a replica sees it: ``raster.Source`` where its store can be reached."""

    @property
    def info(self) -> SourceInfo: ...

    def read(self, rect: Rect) -> np.ndarray:
        """Window ``rect`` (source_px) as (h, w, bands), edges replicated where it sticks out."""
        ...


@dataclass(frozen=True)
class ReplicaSpec:
    """How a replica gets its models: picklable calls, made once, where the replica lives."""

    upsampler: Callable[[], Upsampler]
    denoiser: Callable[[], Denoiser] | None = None
    """None: the base alone."""
    dino: Callable[[], Dino] | None = None
    """None: nothing is guided or verified by DINO."""
    text: Callable[[Sequence[str], Picture], Mapping[str, TextArrays]] | None = None
    """Prompts to each one's embeddings, with the source to look at; None where the model takes no text. Only one
    replica, for one call, holds the encoders."""
    image: Callable[[], Callable[[Sequence[np.ndarray]], Embeddings]] | None = None
    """What looks at the pictures of an image prompt, each (h, w, 3) in [0, 1], and makes embeddings of them; None:
    there is none. Where it looks at the whole source, only one replica, for one call, holds it."""
    captioner: Callable[[], Captioner] | None = None
    """None: what regions show is not looked for."""
    threads: int = 1
    """CPU threads of its torch."""
    torch: bool = True
    """Whether any of the models runs on torch; without, it is not even imported."""


@dataclass(frozen=True)
class Guide:
    """What is computed once per image and steers all of its tiles; numpy arrays, so that replicas share one copy."""

    features: FeatureMap | None = None
    """None: the model attends to none."""
    structure: FeatureLevel | None = None
    """Where the source has structure that must not change; None: nobody asks."""
    calibration: Calibration | None = None
    """Thresholds of the DINO model that guides and judges; None: there is none."""
    grain: Grain | None = None
    """How far the source's own pixels are to be believed; None: nobody asks."""
    worn: bool = False
    """Whether the base is that for worn sources."""
    regions: tuple[Region, ...] = ()
    """Where tiles are told something else than the general prompt."""
    text: Mapping[str, TextArrays] = field(default_factory=dict)
    """Embeddings by prompt, the negative one among them."""
    image: TextArrays = field(default_factory=dict)
    """Embeddings of the source as an image prompt."""


@dataclass(frozen=True)
class ImageTask:
    """All that a replica or a merge must know about one image, apart from its guide. A few kilobytes."""

    source: Readable
    scaling: Scaling
    grid: Grid
    canvas: Canvas
    net: Literal["auto", "clean", "worn"] | None = None
    """Which net makes the base; auto: by the source's grain. None: the base is no net's."""
    denoise: float = 0.0
    steps: int = 1
    sampler: Literal["euler", "heun"] = "euler"
    seed: int = 0
    cfg: float | None = None
    prompt: str = ""
    """What tiles are told that lie in no region."""
    regions: tuple[Region, ...] = ()
    """What tiles are told that do. A captioner's come on top."""
    negative_prompt: str | None = None
    """None: nothing is to be avoided."""
    control_scale: float = 0.0
    """Of a ControlNet; 0: it is not asked."""
    control_range: tuple[float, float] = (0.0, 1.0)
    """The part of the steps in which it is."""
    text_sees_source: bool = False
    """Whether the model's text encoder looks at the source while it reads the prompt."""
    image_prompt: Literal["image", "tile"] | None = None
    """What an image prompt looks at: the source, or each tile's base; None: there is none."""
    dino_tokens: bool = False
    """Whether the model attends to the source's features."""
    dino_strength: float = 0.0
    """Of those, and of guidance; 0: neither."""
    adaptive: float = 0.0
    """What part of the change is withheld where structure is; from above 0 on, flat tiles are left to the base."""
    verify: bool = False
    """Whether tiles are compared with their base by DINO, and mended."""
    consistency: float = 0.0
    """What part of a refined tile's difference from the source, at the source's size, is taken out."""
    color_lock: ColourLock = "off"
    batch: int = 1
    """Tiles that a replica refines at once. Which tiles go together is fixed by the plan, since pixels can depend on
    it; only tiles of a batch that keeps failing are tried one by one."""
    shared: bool = False
    """Whether every node finds the stores of source and canvas under the names that the driver knows them by."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the source, source_px."""
        return self.source.info.width, self.source.info.height


@dataclass(frozen=True)
class TileCall:
    """Tiles for one replica, which refines them as one batch."""

    number: int
    """Unique within a run of ``drive``: tiles that are tried again, or copied, travel under another number."""
    tiles: tuple[int, ...]
    refine: bool = True
    """False: the base alone, for a tile whose refinement keeps failing."""


# ---- what comes back; also the events that progress and reports are made of


@dataclass(frozen=True)
class SourceCondition:
    """What a source's pixels are off by, and what followed."""

    noise: float
    """Standard deviation, in levels of 255."""
    blocks: float
    """What JPEG left, as well."""
    worn: bool
    """Whether the net for worn sources makes the base."""

    @classmethod
    def of(cls, guide: Guide) -> SourceCondition | None:
        """What a guide says of it; None where nobody measured."""
        if guide.grain is None:
            return None
        return cls(round(255 * guide.grain.noise, 2), round(255 * guide.grain.blocks, 2), guide.worn)


@dataclass(frozen=True)
class Timings:
    """What one call cost on the worker that ran it, and what it found."""

    stages: Mapping[str, float] = field(default_factory=dict)
    """Stage name to seconds."""
    peak_rss_mb: float = 0.0
    """Largest resident size of that process so far."""
    measures: tuple[str, ...] = ()
    """What the replica had to do to fit its device's memory, newest last: ``batches of 2``, ``VAE tiling``."""
    fidelity: tuple[TileFidelity, ...] = ()
    """Of each refined tile, in the order of the call; empty where none was refined."""
    source: SourceCondition | None = None
    """What preparing an image found of its source; None where nobody asks."""


Fault = Literal["raised", "died", "memory", "node", "cancelled"]
"""Why a call or a replica was lost.

``raised``: the work itself raised an error, out of GPU memory included. ``died``: the process ended, by the work or by
somebody's hand, which can't be told apart. ``memory``: the host ran out of memory, and Ray ended the process.
``node``: the machine went, or the network to it, or what lay in its store. ``cancelled``: the driver asked for it.
"""


@dataclass(frozen=True)
class ReplicaPlaced:
    """A replica has a place, where its process starts: a new one, or an old one that starts anew."""

    replica: int
    node: str
    """Name of the machine, for people."""


@dataclass(frozen=True)
class ReplicaLoading:
    """A replica's process runs, and loads its models."""

    replica: int


@dataclass(frozen=True)
class ReplicaReady:
    """A replica has loaded its models and takes calls; also said of one that is rid of a former image's call."""

    replica: int
    timings: Timings = Timings()
    device: str = "cpu"
    """What its models run on: ``cpu``, or the GPU's name."""


@dataclass(frozen=True)
class ReplicaLeaving:
    """A replica's machine is about to go: it ends what it has and gets no more; ``ReplicaLost`` follows."""

    replica: int
    reason: str


@dataclass(frozen=True)
class ReplicaLost:
    """A replica's process is gone or does not answer."""

    replica: int
    reason: str
    for_good: bool = False
    """It does not come back: its models do not load, or its machine is gone. Else the engine starts it anew."""
    fault: Fault = "died"


@dataclass(frozen=True)
class TilesStarted:
    """Tiles went to a replica."""

    call: TileCall
    replica: int
    copy: bool = False
    """Another replica has them too, and is overdue; the first answer wins."""


@dataclass(frozen=True)
class TilesDone:
    """A replica finished tiles; their pixels lie in the engine's store, in the order of the call."""

    call: TileCall
    replica: int
    pixels: tuple[Handle, ...]
    timings: Timings = Timings()


@dataclass(frozen=True)
class TilesLost:
    """A call did not come back, or raised."""

    call: TileCall
    replica: int
    reason: str
    fault: Fault


@dataclass(frozen=True)
class TilesSpare:
    """A call ended whose answer nobody needs any more: a copy of it was faster."""

    call: TileCall
    replica: int


@dataclass(frozen=True)
class TilePoisoned:
    """A tile failed on every try; the base takes its place."""

    tile: int
    reason: str


@dataclass(frozen=True)
class CellDone:
    """A cell is merged and committed to the canvas."""

    cell: int
    timings: Timings = Timings()


@dataclass(frozen=True)
class CellLost:
    """A merge could not read its tiles, or its worker died; the canvas is as before."""

    cell: int
    reason: str
    tiles_lost: bool
    """Its tiles are no longer in the store, or some of them; else the same merge can be tried again."""
    fault: Fault = "died"


EngineEvent = (
    ReplicaPlaced
    | ReplicaLoading
    | ReplicaReady
    | ReplicaLeaving
    | ReplicaLost
    | TilesDone
    | TilesLost
    | CellDone
    | CellLost
)
"""What ``Engine.wait`` tells."""

Event = EngineEvent | TilesStarted | TilesSpare | TilePoisoned
"""What listeners of ``drive`` hear. A call ends for them as one of ``TilesDone``, ``TilesLost``, ``TilesSpare``."""


# ---- events of the job around the engine


@dataclass(frozen=True)
class StageStarted:
    """A stage of the job begins, and the one before it ends: ingest, workers, features, tiles, export."""

    stage: str


@dataclass(frozen=True)
class ImageStarted:
    """An image is read, laid out and prepared; its tiles come next."""

    name: str
    grid: Grid
    replicas: int
    """0 if an earlier run has finished all cells."""
    preparation: Timings
    cells_done: int = 0
    """By an earlier run."""


@dataclass(frozen=True)
class DriveDone:
    """All cells of an image are on its canvas."""

    tile_calls: int
    retries: int
    poisoned: Mapping[int, str]
    """Tile to the last reason; the base stands in its place."""
    copies: int = 0
    """Of the calls, those that were made while another replica was late with the same tiles."""


@dataclass(frozen=True)
class DinoEffect:
    """How much the DINO features changed one tile; see ``Replica.dino_effect``."""

    probe_tile: int
    effect: float | None
    """Mean absolute difference against the same tile without them, in levels of 255; None: could not be measured."""
    seconds: float


@dataclass(frozen=True)
class ImageDone:
    """An image's output is whole and in its place."""

    output: str


JobEvent = Event | StageStarted | ImageStarted | DriveDone | DinoEffect | ImageDone
Listener = Callable[[JobEvent], None]


class Engine(Protocol):
    """Workers of one kind. A context manager: replicas live, warm, from ``__enter__`` to ``__exit__``.

    Replicas are numbered by integers, which are never used twice for different places. They may come and go while
    work is under way.
    """

    @property
    def replicas(self) -> int:
        """How many replicas it keeps, ready or not."""
        ...

    @property
    def ready(self) -> Collection[int]:
        """Replicas that have announced themselves by ``ReplicaReady`` and take calls."""
        ...

    @property
    def hopeless(self) -> str | None:
        """Why there is no replica and there will be none; None while there is one, or one may come."""
        ...

    @property
    def merges_at_once(self) -> int:
        """How many merges are worth having in flight."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        """Compute the image's guide, once, on one replica.

        Raises
        ------
        DinoRayError
            If it can't be computed: what the loader of the model involved raised, or ``JobError``.
        """
        ...

    def share(self, task: ImageTask) -> Handle:
        """Put a task where every worker can read it."""
        ...

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        """Start a call; it ends as ``TilesDone`` or ``TilesLost``. A replica works on its calls in order."""
        ...

    def cancel(self, call: TileCall, replica: int) -> None:
        """Ask for the end of a call, waiting or at work; it ends as before, within a step of the model."""
        ...

    def replace(self, replica: int, reason: str) -> None:
        """Give a replica up that does not answer: it is ended, its calls are lost, and it starts anew."""
        ...

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        """Start the merge of some cells; each ends as ``CellDone`` or ``CellLost``.

        Parameters
        ----------
        tiles
            Number and pixels of all tiles that any of the cells is made of.

        Raises
        ------
        JobError
            Now, or from ``wait``: if the canvas can't be written (a full disk), which no retry mends.
        """
        ...

    def wait(self, timeout: float) -> list[EngineEvent]:
        """What ended since the last call; blocks until something did, or for ``timeout`` seconds."""
        ...

    def describe(self) -> str:
        """The workers, in a line, for the diagnosis of a stuck job: machines, replicas, what is waited for."""
        ...

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        """Measure, on one replica, what the DINO features do to a tile.

        Raises
        ------
        DinoRayError
            If it can't be measured.
        """
        ...

    def settle(self) -> None:
        """Forget the work in flight (a job ended, or ended early); the replicas stay usable for the next image.

        Calls that still run are cancelled; a replica is not among ``ready`` before it is rid of them.
        """
        ...
