"""Small track stores for the tests of their readers."""

import json
from pathlib import Path

import zarr

from data_specs.shard_files import sealed
from data_specs.store_metadata import read_attributes
from training.reading.shard_reader import ShardReader
from training.reading.track_reader import TrackReader

EVERYTHING = "extends: mme-object\nname: everything\nhog_channels: 3\ndescriptors: [flow, hof, mbh]\n"
"""A recipe of every array that there is."""


def make_store(clips: Path, store: Path, recipe: str, shards: int = 2) -> Path:
    """Extract the clips' tracks with DIS; the list has one video more, at its end, that fails."""
    from extraction.cli import main

    listing = store.parent / "list.txt"
    listing.write_text((clips / "list.txt").read_text() + "missing.avi\n")
    (store.parent / "recipe.yaml").write_text(recipe)
    status = main(
        ["--dataset", str(listing), "--root", str(clips), "--shards", str(shards), "--out", str(store),
         "--flow", "dis", "--recipe", str(store.parent / "recipe.yaml"), "--executor", "local"]
    )  # fmt: skip
    assert status == 1
    return store


def only_file(array: Path) -> Path:
    """The one file of a small array's data."""
    (file,) = [f for f in (array / "c").rglob("*") if f.is_file()]
    return file


def unseal(store: Path) -> Path:
    """Take the sizes and checksums of files out of a store: one from before 0.5, or of somebody who means harm."""
    for shard in (store / "shards").iterdir():
        document = json.loads((shard / "zarr.json").read_text())
        for seal in ("files", "failures", "crc32"):
            del document["attributes"][seal]
        (shard / "zarr.json").write_text(json.dumps(document))
    return store


def seal_again(shard: Path) -> None:
    """Make a changed shard one that was written like that, with the sizes and checksums of the files it has now."""
    attributes = read_attributes(shard)
    for seal in ("files", "crc32"):
        del attributes[seal]
    zarr.open_group(shard, mode="r+", zarr_format=3).update_attributes(sealed(shard, attributes))


def flip_bit(file: Path, place: float) -> None:
    """Flip a bit, so far into a file: 0 at its begin, 1 at its end."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    file.write_bytes(data)


def shard_sums(reader: ShardReader, names: list[str]) -> dict[str, float]:
    """The sum of each array, read in this process."""
    return {name: float(reader.read(name, 0, reader.array(name).shape[0]).sum()) for name in names}


def field_sums(reader: TrackReader) -> list[float]:
    """A figure for each video's first row, read in this process."""
    rows = [reader.rows(video, [0], hog=True)[0] for video in reader.videos]
    return [float(row.displacement.sum() + row.hog_codes.sum()) for row in rows if row and row.hog_codes is not None]
