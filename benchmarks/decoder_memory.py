"""Whether decoding leaks: files decoded over and over in one process, its own memory (USS) after each sixth.

    python benchmarks/decoder_memory.py carphone.mp4=60 corrupted.mp4=300

Each is FILE=TIMES. A file that is refused is refused that often; what was decoded of it counts too.
"""

import argparse
from pathlib import Path

import cv2
import psutil

from data_specs.video import Video, VideoError


def memory_mib(path: Path, times: int) -> tuple[str, list[float]]:
    """What came of the file, and MiB of this process's own after each sixth of `times`."""
    outcome, found = "", []
    for number in range(1, times + 1):
        try:
            outcome = f"{sum(1 for _ in Video(path, 256))} frames"
        except VideoError as error:
            outcome = type(error).__name__
        if number % max(1, times // 6) == 0:
            found.append(psutil.Process().memory_full_info().uss / (1 << 20))
    return outcome, found


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE=TIMES")
    cv2.setNumThreads(1)
    print("| file | | times | MiB |\n| --- | --- | --- | --- |")
    for file in parser.parse_args().files:
        name, _, times = file.rpartition("=")
        outcome, found = memory_mib(Path(name), int(times))
        print(f"| {Path(name).name} | {outcome} | {times} | {', '.join(f'{mib:.0f}' for mib in found)} |", flush=True)


if __name__ == "__main__":
    main()
