"""All that only a card can tell, in nine minutes: ours against ComfyUI's own Wan and the reference.

    python benchmarks/pack_for_gpu.py                 # where there is a network: makes for_gpu/
    python benchmarks/gpu.py [--only SECTION ...]     # on the card, which needs none
    python benchmarks/gpu.py --rehearse               # on a processor, tiny: does all of it run?

For a bare x86-64 machine with an NVIDIA card: Python 3.12 with torch (CUDA 13), triton, einops,
safetensors and transformers, and the folder that `pack_for_gpu.py` made. The sections, the most
valuable first:

{sections}

Each runs in its own try, in a process that another takes over from where it is lost. Every row is
in `rows.json` and `table.md` (in --out) at once; `log.txt` beside them has what went wrong. Weights
are random and made on the card. What is not there, such as the reference or a newer kernel, is said
in its row. A row of a film is two forwards: of the positive and the negative prompt.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time

from gpu import driver, paths, sections
from gpu.report import Report


def arguments() -> argparse.Namespace:
    listed = "\n".join(
        f"  {n:2}  {s.name:12} {s.title}" for n, s in enumerate(sections.SECTIONS, 1)
    )
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("{sections}", listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[], help="sections by name or number")
    parser.add_argument("--rehearse", action="store_true", help="on the processor, at tiny sizes")
    parser.add_argument("--size", choices=sections.SIZES, default="540P", help="of the latents")
    parser.add_argument("--seconds", type=float, default=sections.TOTAL, help="for all of it")
    parser.add_argument("--packed", type=pathlib.Path, default=paths.PACKED)
    given = os.environ.get("SKYREELS_V2_REFERENCE")
    parser.add_argument(
        "--reference",
        type=pathlib.Path,
        default=pathlib.Path(given) if given else None,
        help="a source tree of SkyworkAI/SkyReels-V2 (else the packed one)",
    )
    parser.add_argument("--out", type=pathlib.Path, default=paths.ROOT / "output" / "gpu")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--film", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    begin, options = time.time(), arguments()
    # A script's own folder stays in front for `gpu`, whose files are named for what they hold.
    options.packed = options.packed.absolute()
    try:
        paths.require_packed(options.packed)
        wanted = sections.chosen(options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options.reference = paths.reference_folder(options.packed, options.reference)
    paths.prepare(options.packed)
    if options.film:
        from gpu.film_process import make_films

        make_films(options.film, options.out, options.packed, options.rehearse)
        return 0
    if options.worker:
        from gpu.run import work

        work(sections.chosen(options.worker), options)
        return 0
    passed = ["--packed", str(options.packed), "--size", options.size]
    passed += ["--reference", str(options.reference.absolute())] if options.reference else []
    passed += ["--rehearse"] if options.rehearse else []
    if not options.rehearse:
        paths.unpack(options.packed)
    report = Report(options.out, options.size)
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), *passed]
    driver.run_all(wanted, command, report, begin + options.seconds)
    report.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
