"""Any frame of a video, by its index, decoded from the nearest key frame before it.

A frame's index is its place in the order in which the decoder gives the frames from first to last (`video.Video`). The
packets' timestamps say the same where there is one packet for each frame and the decoder puts out frames in the order
of their timestamps; then decoding can begin at a key frame, and frames that no other one needs are left out on the way.
Where any of this does not hold, frames are counted from the start.

PyAV and not decord: the packets are read once and kept, so that nothing has to be sought in the file (in a large one,
where it has, the place is checked); there is no thread which could hang or decode ahead; and only wanted frames are
converted.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeAlias, cast

import av
import numpy as np
from av.video.stream import VideoStream

from data_specs.container import BrokenFrameError, ContainerHeader, announced

logger = logging.getLogger(__name__)

Packet: TypeAlias = "av.Packet[VideoStream]"

# The packets of a larger file are not kept but read again for each clip.
_MOST_KEPT_BYTES = 64 << 20

# Of these a picture says whether any other one needs it. Those of H.265 and VP9 may say so of some others only.
_CAN_SKIP = frozenset({"h264"})
# Decoders that reorder pictures and keep each one with its packet's timestamp. Those of MPEG-4 part 2 and before do not
# always: there are containers without timestamps, and packets of two pictures.
_KEEPS_TIMESTAMPS = frozenset({"h264", "hevc"})


class FrameCountError(Exception):
    """The video has another number of frames than was said; `found` is that number."""

    def __init__(self, found: int) -> None:
        super().__init__(f"{found} frames")
        self.found = found


class _UnsoundOrderError(Exception):
    """Frames did not come as their timestamps promised."""


class FrameAccess:
    """A video file, opened for frames by index.

    num_frames: how many frames decoding from start to end gives, known from an earlier time. Where the packets already
    agree it is not checked again; else FrameCountError can come when the first frames are read. None: it is found here,
    from the packets where their timestamps tell it, else by decoding all of them, and is an attribute then. Should the
    packets have promised too much, FrameCountError comes when a frame is missed. counted: what was found so before, 0
    where it is not known, so that decoding all of them need not be done again.

    Attributes: `header`, what the container announces, its sizes left out; `begins`, float64, the times in seconds at
    which the frames' packets are shown, ascending, where they have one.
    Raises av.FFmpegError where the file cannot be opened, BrokenFrameError where it has no video, or where counting
    fails.
    """

    def __init__(self, path: str | Path, num_frames: int | None, counted: int = 0) -> None:
        self._path, self._is_told = str(path), num_frames is not None
        self._container = av.open(self._path, metadata_errors="replace")
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise BrokenFrameError("holds no video")
        self._stream, self._stream_index = cast(VideoStream, stream), stream.index
        self._decoder = cast(av.VideoCodecContext, stream.codec_context)
        self._decoder.thread_count = 1
        self._closed, self._counted = False, False
        self._packets: list[Packet] | None = []
        self.num_frames = num_frames or 0
        self._by_timestamp = self._index_packets()
        if not self._is_told and not self._by_timestamp:
            self.num_frames = counted or self._count_all()

    def close(self) -> None:
        """Close the file; frames can no longer be read."""
        self._closed, self._packets = True, None
        self._container.close()

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames at `indices`, each once, with its index; in order of their indices.

        If the file's timestamps turn out to be wrong, the frames come again from the first: the last one counts.
        Raises BrokenFrameError or FrameCountError.
        """
        if self._closed:
            raise ValueError(f"{self._path} has been closed")
        wanted = sorted(set(indices))
        if self._by_timestamp:
            try:
                for first, last, ranks in self._runs(wanted):
                    yield from self._run(first, last, ranks)
            except (_UnsoundOrderError, av.FFmpegError) as error:
                logger.debug("%s: counting frames from the start: %s", self._path, error)
                self._by_timestamp = False
                self._counted = self._counted and self._is_told  # the packets' word is not taken twice
            else:
                return
        yield from self._count(wanted)

    def _index_packets(self) -> bool:
        """Read all packets; whether their timestamps give frames their indices."""
        kept = 0
        keys: list[int] = []
        stamps: list[int | None] = []
        # packets that an edit list leaves out are decoded, for others may need them, and give no frame
        shown: list[bool] = []
        for packet in self._demux():
            if packet.is_keyframe:
                keys.append(len(stamps))
            shown.append(not packet.is_discard)
            stamps.append(packet.pts)
            kept += packet.size
            if self._packets is not None:
                self._packets.append(packet)
                if kept > _MOST_KEPT_BYTES:
                    self._packets = None
        if not self._is_told:
            self.num_frames = sum(shown)
        self._counted = sum(shown) == self.num_frames  # else decoding has to tell whether num_frames is right
        known = [stamp for stamp, is_shown in zip(stamps, shown, strict=True) if is_shown and stamp is not None]
        told = (
            self._counted
            and len(known) == self.num_frames == len(set(known))
            and bool(keys)
            and (self._has_presentation_times(known) if self._decoder.codec.reorder else known == sorted(known))
        )
        known.sort()
        base = float(self._stream.time_base or 0)
        self.begins = np.array(known, np.float64) * base
        self.header = ContainerHeader(
            *announced(self._container, self._stream), len(stamps), len(stamps) - sum(shown), ()
        )
        # of frames shown before the first key frame the decoder may make none
        if told and not self._is_told:
            told = keys[0] == 0 and stamps[0] == known[0]
        if not told:
            return False
        self._rank = {stamp: rank for rank, stamp in enumerate(known)}
        # where the packet of each frame is, in decoding order
        places = {stamp: place for place, stamp in enumerate(stamps) if shown[place]}
        self._place = np.array([places[stamp] for stamp in self._rank], np.int64)
        # A frame is decoded from the last key frame that is not shown after it: of an open group of pictures the first
        # frames shown need the group before.
        by_place = {place: rank for rank, place in enumerate(self._place.tolist())}
        self._key_places = [0, *(place for place in keys if place in by_place and place > 0)]
        self._key_ranks = [0, *(by_place[place] for place in self._key_places[1:])]
        self._key_stamps = {place: known[rank] for place, rank in zip(self._key_places, self._key_ranks, strict=True)}
        return self._key_ranks == sorted(self._key_ranks)

    def _has_presentation_times(self, stamps: list[int]) -> bool:
        """Whether `stamps`, in decoding order, say when frames are shown. AVI has no times: FFmpeg makes them up."""
        return (
            self._decoder.name in _KEEPS_TIMESTAMPS
            and self._container.format.name != "avi"
            and not (self._decoder.has_b_frames and stamps == sorted(stamps))
        )

    def _runs(self, wanted: list[int]) -> Iterator[tuple[int, int, set[int]]]:
        """(first packet, last packet, indices): what to decode without a break, and which frames to take from it."""
        first = last = 0
        taken: set[int] = set()
        starts = np.searchsorted(self._key_ranks, wanted, side="right") - 1
        for rank, start in zip(wanted, starts, strict=True):
            key = self._key_places[start]
            if taken and key > last + 1:
                yield first, last, taken
                taken = set()
            if not taken:
                first = last = key
            taken.add(rank)
            last = max(last, int(self._place[rank]))
        if taken:
            yield first, last, taken

    def _run(self, first: int, last: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode packets first ... last; raise _UnsoundOrderError where a frame is missing, damaged or out of order."""
        needed = {int(self._place[rank]) for rank in wanted}
        can_skip = self._decoder.name in _CAN_SKIP
        left, latest, damaged = set(wanted), -1, False
        for picture in self._decode(first, last, needed if can_skip else None):
            rank = self._rank.get(cast(int, picture.pts))
            if rank is None or rank <= latest:
                raise _UnsoundOrderError(f"a frame with time stamp {picture.pts} after frame {latest}")
            latest, damaged = rank, _is_damaged(picture, damaged)
            if rank in left:
                if damaged:
                    raise _UnsoundOrderError(f"frame {rank} is damaged")
                left.remove(rank)
                yield rank, picture
        if left:
            raise _UnsoundOrderError(f"frame {min(left)} did not come")

    def _count(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from the start and count; to the end, and the number of frames is checked, if it was not before."""
        remaining, rank, damaged = set(wanted), -1, False
        try:
            for rank, picture in enumerate(self._decode(0, None, None)):
                damaged = _is_damaged(picture, damaged)
                if rank in remaining:
                    if damaged:
                        raise BrokenFrameError(f"frame {rank} is damaged")
                    remaining.remove(rank)
                    yield rank, picture
                if self._counted and not remaining:
                    return
        except av.FFmpegError as error:
            raise BrokenFrameError(error.strerror) from error
        if rank + 1 != self.num_frames:
            self._counted = False
            raise FrameCountError(rank + 1)
        self._counted = True

    def _count_all(self) -> int:
        """How many frames decoding from start to end gives."""
        try:
            return sum(1 for _ in self._decode(0, None, None))
        except av.FFmpegError as error:
            raise BrokenFrameError(error.strerror) from error

    def _decode(self, first: int, last: int | None, needed: set[int] | None) -> Iterator[av.VideoFrame]:
        """All frames of packets first ... last (None: of the last one); with `needed`, without the frames of packets
        that are not in it and that no other frame refers to.
        """
        self._decoder.flush_buffers()
        self._decoder.skip_frame = "DEFAULT"
        skips = False
        for place, packet in enumerate(self._packets_from(first), start=first):
            if needed is not None and skips != (place not in needed):
                skips = not skips
                self._decoder.skip_frame = "NONREF" if skips else "DEFAULT"
            yield from self._decoder.decode(packet)
            if place == last:
                break
        yield from self._decoder.decode(None)

    def _packets_from(self, first: int) -> Iterator[Packet]:
        if self._packets is not None:
            yield from self._packets[first:]
            return
        begin, packets = self._seek(first)
        for place, packet in enumerate(packets, start=begin):
            if place >= first:
                yield packet

    def _seek(self, first: int) -> tuple[int, Iterator[Packet]]:
        """Packets from one at or before `first` on, and the place of the first of them."""
        if self._by_timestamp and first:
            self._container.seek(self._key_stamps[first], stream=self._stream)
            packets = self._demux()
            packet = next(packets, None)
            rank = None if packet is None or packet.pts is None else self._rank.get(packet.pts)
            if packet is not None and rank is not None and self._place[rank] <= first:
                return int(self._place[rank]), chain([packet], packets)
        # Where seeking lands is the container's choice; the beginning is certain.
        self._container.close()
        self._container = av.open(self._path, metadata_errors="replace")
        self._stream = cast(VideoStream, self._container.streams[self._stream_index])
        return 0, self._demux()

    def _demux(self) -> Iterator[Packet]:
        for packet in self._container.demux(self._stream):
            if packet.size:
                yield packet


def _is_damaged(picture: av.VideoFrame, before: bool) -> bool:
    """Whether a frame is damaged; `before`: whether the one shown before it is. Damage lasts until a key frame."""
    return picture.is_corrupt or (before and not picture.key_frame)
