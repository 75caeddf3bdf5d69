"""How results are written."""

from dataclasses import dataclass

from custom.errors import InputError

CHUNK = 64  # edge in voxels of the chunks of every image
TABLES = ("parquet", "csv")
VERSIONS = ("0.4", "0.5")


@dataclass(frozen=True)
class OutputSettings:
    """How results are written.

    Args:
        version: of OME-Zarr: "0.4" (Zarr v2) or "0.5" (Zarr v3), as a number too: so it comes from
            a command line.
        shards: with "0.5": edge in voxels of what one file holds, a multiple of 64; None: a file
            for every chunk of 64 voxels.
        pyramid: also write every image at half the resolution, a quarter, and so on.
        object_table: "parquet" or "csv": also write a table of the objects; None: none.

    Raises:
        InputError: values that are not among these.
    """

    version: str = "0.4"
    shards: int | None = None
    pyramid: bool = True
    object_table: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", str(self.version))
        if self.version not in VERSIONS:
            raise InputError(f"ome_zarr_version must be 0.4 or 0.5, got {self.version}")
        if self.object_table not in (*TABLES, None):
            raise InputError(
                f'object_table must be "parquet", "csv" or null, got {self.object_table!r}'
            )
        if not isinstance(self.pyramid, bool):
            raise InputError(f"pyramid must be true or false, got {self.pyramid!r}")
        if self.shards is not None:
            self._check_shards(self.shards)

    def _check_shards(self, edge: int) -> None:
        """Shards are of Zarr v3 and hold whole chunks."""
        if self.version != "0.5":
            raise InputError('shards need ome_zarr_version "0.5"; give it, or shards null')
        if isinstance(edge, bool) or not isinstance(edge, int) or edge < CHUNK or edge % CHUNK:
            raise InputError(f"shards must be a multiple of {CHUNK} voxels, or null, got {edge!r}")

    @property
    def unit(self) -> int:
        """Edge in voxels of what one file of an image holds; blocks should be multiples of it."""
        return self.shards or CHUNK
