"""A film's fragments, made one ordinary mp4 or mov file with its index in front.

FFmpeg keeps the index of such a file in memory until its end, 74 bytes a frame. Of a file in
fragments it keeps nothing, but editing programs do not take those, and they do not say how many
frames they have. So a film is written in fragments, and their indexes become one at the end, in the
file's own place and in constant memory. The old ones stay between the pictures, where no one looks.
Facts from ISO/IEC 14496-12 and Apple's QuickTime File Format.
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .boxes import (
    LARGE,
    Part,
    Runs,
    Table,
    find_box,
    find_boxes,
    make_box,
    make_table,
    read_boxes,
    replace_boxes,
    split_boxes,
)

# FFmpeg's options: a second at a time, or a MB where that is more. What is told of the streams
# comes with the first fragment, when they are known, and no index at the end.
OPTIONS = {
    "movflags": "use_metadata_tags+delay_moov+default_base_moof+skip_trailer",
    "frag_duration": "1000000",
    "frag_size": str(1 << 20),
}
PCM = (b"sowt", b"lpcm")  # sound of which a packet is many samples, all of one size
NOT_A_KEY = 1 << 16
MOVED = 1 << 20  # bytes at a time
MOST = 16  # bytes of the head of what holds the pictures


@dataclass
class Track:
    """What the fragments tell of one stream; times are in its own units.

    chunks, lengths: where samples begin that lie one after another, and how many these are. time,
    duration: of the last sample. end: when all has been shown.
    """

    pcm: bool
    sizes: Table
    keys: Table
    durations: Runs
    offsets: Runs
    chunks: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    samples: int = 0
    sample_size: int = 0
    time: int = 0
    duration: int = 0
    end: int = 0
    moved: bool = False  # whether pictures are shown in another order than decoded
    signed: bool = False

    @classmethod
    def empty(cls, folder: Path, pcm: bool) -> Track:
        return cls(pcm, Table(folder), Table(folder), Runs(folder), Runs(folder))

    def add(self, time: int, duration: int, size: int, key: bool, offset: int) -> None:
        """The next sample, or a packet of PCM: shown `offset` after its time."""
        self.end = max(self.end, time + offset + duration)
        if self.pcm:
            self.durations.append(1, duration)
            self.sample_size = size // duration
            self.samples += duration
            self.lengths[-1] += duration
            return
        if self.samples:
            self.durations.append(time - self.time)
        self.time, self.duration = time, duration
        self.samples += 1
        self.lengths[-1] += 1
        self.sizes.add(size)
        self.offsets.append(offset)
        self.moved |= offset != 0
        self.signed |= offset < 0
        if key:
            self.keys.add(self.samples)

    def close(self) -> None:
        """There are no more samples."""
        if self.samples and not self.pcm:
            self.durations.append(self.duration)
        self.durations.close()
        self.offsets.close()

    def tables(self, moved: int, large: bool) -> list[Part]:
        """The index's boxes, where all samples have moved by so many bytes."""
        runs = list[int]()  # from which chunk on, counted from 1; samples in each; what kind
        for number, length in enumerate(self.lengths, 1):
            if not runs or runs[-2] != length:
                runs += [number, length, 1]
        kind, code = (b"co64", "Q") if large else (b"stco", "I")
        places = struct.pack(
            f">{len(self.chunks)}{code}", *(place + moved for place in self.chunks)
        )
        plain, keys = bytes(4), len(self.keys) // 4
        parts = make_table(b"stts", plain, len(self.durations) // 8, self.durations)
        if not self.pcm and keys < self.samples:
            parts += make_table(b"stss", plain, keys, self.keys)
        if self.moved:
            version = bytes([self.signed, 0, 0, 0])
            parts += make_table(b"ctts", version, len(self.offsets) // 8, self.offsets)
        parts += make_table(b"stsc", plain, len(runs) // 3, struct.pack(f">{len(runs)}I", *runs))
        size = plain + struct.pack(">I", self.sample_size)
        parts += make_table(b"stsz", size, self.samples, self.sizes)
        return parts + make_table(kind, plain, len(self.chunks), places)


def read_fragment(content: bytes, place: int, tracks: dict[int, Track]) -> None:
    """Add what a fragment's index, at `place` in the file, tells of its samples."""
    for fragment in find_boxes(content, b"traf"):
        head, base = find_box(fragment, b"tfhd"), find_box(fragment, b"tfdt")
        flags, number = struct.unpack_from(">2I", head)
        bits = [bit for bit in (0x8, 0x10, 0x20) if flags & bit]  # the only ones in our files
        common = dict(zip(bits, struct.unpack_from(f">{len(bits)}I", head, 8), strict=True))
        (time,) = struct.unpack_from(">Q" if base[0] else ">I", base, 4)
        for run in find_boxes(fragment, b"trun"):
            time = _read_run(run, place, time, tracks[number], common)


def _read_run(run: bytes, place: int, time: int, track: Track, common: dict[int, int]) -> int:
    """Add a run of samples, the first of which is decoded at `time`; when the next one is.

    common: duration (0x8), size (0x10) and kind (0x20) of samples that do not tell their own.
    """
    flags, count, data = struct.unpack_from(">3I", run)
    if not flags & 0x1:
        raise ValueError("a fragment that does not say where its samples are")
    position = 12
    first = struct.unpack_from(">I", run, position) if flags & 0x4 else ()
    position += 4 * len(first)
    bits = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    entry = struct.Struct(f">{len(bits)}I")
    track.chunks.append(place + data)
    track.lengths.append(0)
    for sample in range(count):
        own = dict(zip(bits, entry.unpack_from(run, position), strict=True))
        position += entry.size
        duration, size = own.get(0x100, common.get(0x8, 0)), own.get(0x200, common.get(0x10, 0))
        kind = first[0] if first and not sample else own.get(0x400, common.get(0x20, 0))
        offset = own.get(0x800, 0)
        if run[0] and offset >= LARGE // 2:
            offset -= LARGE
        track.add(time, duration, size, not kind & NOT_A_KEY, offset)
        time += duration
    return time


@dataclass
class Movie:
    """What a file in fragments tells of itself, and of its tracks.

    kind: its `ftyp` box. content: its `moov` box's. begin: where the first fragment does.
    """

    kind: bytes
    content: bytes
    tracks: dict[int, Track]
    begin: int

    def write(self, moved: int, large: bool) -> list[Part]:
        """The `moov` box of a file without fragments."""
        head = find_box(self.content, b"mvhd")
        (unit,) = struct.unpack_from(">I", head, 12)
        parts: list[Part] = []
        longest = 0
        for kind, box in split_boxes(self.content):
            if kind == b"trak":
                track, length = self._write_track(box, unit, moved, large)
                parts += track
                longest = max(longest, length)
            elif kind not in (b"mvhd", b"mvex"):
                parts += make_box(kind, box)
        # FFmpeg wrote the number of a stream to come before it knew of all.
        head = _set_length(head, 16, longest)[:-4] + struct.pack(">I", max(self.tracks) + 1)
        return make_box(b"moov", *make_box(b"mvhd", head), *parts)

    def _write_track(
        self, box: bytes, unit: int, moved: int, large: bool
    ) -> tuple[list[Part], int]:
        """A track's box, and how long it is shown, in 1 / unit seconds."""
        head, medium = find_box(box, b"tkhd"), find_box(box, b"mdia", b"mdhd")
        (number,), (own,) = (struct.unpack_from(">I", one, 12) for one in (head, medium))
        track = self.tracks[number]
        media = track.samples if track.pcm else track.time + track.duration
        length = -(-track.end * unit // own)
        changed: dict[bytes, list[Part]] = dict.fromkeys((b"stts", b"stsc", b"stco"), [])
        for edits in find_boxes(box, b"edts", b"elst"):
            edits, length = _set_edits(edits, track.end, unit, own)
            changed[b"elst"] = make_box(b"elst", edits)
        changed[b"tkhd"] = make_box(b"tkhd", _set_length(head, 20, length))
        changed[b"mdhd"] = make_box(b"mdhd", _set_length(medium, 16, media))
        changed[b"stsz"] = track.tables(moved, large)
        return replace_boxes(b"trak", box, changed), length


def _set_length(box: bytes, place: int, length: int) -> bytes:
    """The content of a `mvhd`, `tkhd` or `mdhd` box that says at `place` how long it is."""
    if length < LARGE:
        return box[:place] + struct.pack(">I", length) + box[place + 4 :]
    dates = struct.unpack_from(">2I", box, 4)
    longer = b"\1" + box[1:4] + struct.pack(">2Q", *dates) + box[12:place]
    return longer + struct.pack(">Q", length) + box[place + 4 :]


def _set_edits(box: bytes, end: int, unit: int, own: int) -> tuple[bytes, int]:
    """The content of an `elst` box whose last edit is shown until `end`, and how long all are."""
    form = struct.Struct(">QqI" if box[0] else ">IiI")
    edits, whole = box[:8], 0
    for length, begin, speed in form.iter_unpack(box[8:]):
        if begin >= 0:  # not a pause
            length = -(-(end - begin) * unit // own)
        edits, whole = edits + form.pack(length, begin, speed), whole + length
    return edits, whole


def join_fragments(path: Path) -> None:
    """Make a file in fragments, as `OPTIONS` let FFmpeg write it, an ordinary one in its place.

    Raises ValueError for any other file, and where the disk has no room for the index: before
    anything has been changed. Raises OSError.
    """
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        try:
            movie = _read_movie(file, path.parent)
            spare, moved, large = _find_room(movie, end)
            _enlarge(path, end, moved)
        except (struct.error, LookupError, ArithmeticError) as error:
            raise ValueError(f"FFmpeg wrote what has no place in an index ({error})") from error
        except OSError as error:
            os.truncate(path, end)
            raise ValueError(f"there is no room for its index ({error.strerror})") from error
        _move(file, movie.begin, end, moved)
        file.seek(0)
        free = struct.pack(">I4s", 8 + spare, b"free") + bytes(spare)
        pictures = struct.pack(">I4sQ", 1, b"mdat", MOST + end - movie.begin)
        for part in [movie.kind, *movie.write(moved, large), free, pictures]:
            for piece in part.pieces() if isinstance(part, Table) else [part]:
                file.write(piece)


def _find_room(movie: Movie, end: int) -> tuple[int, int, bool]:
    """Bytes left free in front of the pictures, how far these move, and whether places are long."""
    for large in (end >= LARGE, True):
        size = len(movie.kind) + sum(map(len, movie.write(0, large)))
        spare = max(movie.begin - MOST - 8 - size, 0)
        moved = size + 8 + spare + MOST - movie.begin
        if end + moved < LARGE:
            break
    return spare, moved, large


def _enlarge(path: Path, end: int, by: int) -> None:
    """Let a file be longer, so that nothing that is written to it later lacks room."""
    with path.open("rb+", buffering=0) as file:
        file.seek(end)
        while by > 0:
            by -= file.write(bytes(min(by, MOVED)))


def _read_movie(file: BinaryIO, folder: Path) -> Movie:
    movie = Movie(b"", b"", {}, 0)
    for kind, place, begin, end in read_boxes(file):
        if kind not in (b"ftyp", b"moov", b"moof"):
            continue
        file.seek(begin)
        content = file.read(end - begin)
        if kind == b"ftyp":
            movie.kind = struct.pack(">I4s", end - begin + 8, kind) + _name_kind(content)
        elif kind == b"moov":
            movie.content = content
            for track in find_boxes(content, b"trak"):
                (number,) = struct.unpack_from(">I", find_box(track, b"tkhd"), 12)
                entries = find_box(track, b"mdia", b"minf", b"stbl", b"stsd")
                movie.tracks[number] = Track.empty(folder, entries[12:16] in PCM)
        else:
            movie.begin = movie.begin or place
            read_fragment(content, place, movie.tracks)
    if not movie.begin or not movie.tracks:
        raise ValueError("a file without fragments")
    for one in movie.tracks.values():
        one.close()
    return movie


def _name_kind(content: bytes) -> bytes:
    """What kinds of file it is, without those of fragments (iso5, iso6)."""
    return content.replace(b"iso5", b"isom").replace(b"iso6", b"iso2")


def _move(file: BinaryIO, begin: int, end: int, by: int) -> None:
    """Move bytes towards the end of a file, the last ones first."""
    while end > begin:
        start = max(end - MOVED, begin)
        file.seek(start)
        content = file.read(end - start)
        file.seek(start + by)
        file.write(content)
        end = start
