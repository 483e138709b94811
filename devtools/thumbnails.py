"""The templates' thumbnails: the films that they make with the toy weights, playing.

    python3 -m devtools.thumbnails --comfyui COMFYUI [NAME ...]

Runs workflows/api/NAME.json, or all, in this process and writes workflows/NAME.jpg. ComfyUI's page
asks a pack for that name alone, so an animated WebP lies under it: browsers look at the content.
What a language model would write is written down here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # The root's `nodes` would shadow the host's.
    sys.path[0] = str(ROOT)

from devtools import inprocess  # noqa: E402
from devtools.prompt import Prompt  # noqa: E402

SIZE, CARD = 144, (192, 144)  # px: the film, and what it lies on
DARK, BAR = (24, 25, 29), (102, 184, 255)
MOST_FRAMES = 40
SECONDS = 5.0  # at most
PROMPT = "a red circle moving right on a black background"
CAPTIONED = 65 / 24  # s: the film of the templates that is captioned


def replace_words(prompt: Prompt) -> Prompt:
    """The prompt without language models: what they would write is text in it."""
    texts = [node["inputs"].get("text") for node in prompt.values()]
    storyboard = next((text for text in texts if isinstance(text, str)), f"0s: {PROMPT}")
    written: dict[str, list[Any]] = {
        "SkyReelsV2PromptEnhancer": [PROMPT],
        "SkyReelsV2CaptionFilm": [storyboard, CAPTIONED],
        "SkyReelsV2LanguageEndpoint": [],
        "PreviewAny": [],
    }

    def resolve(value: Any) -> Any:
        if isinstance(value, list) and prompt[value[0]]["class_type"] in written:
            return written[prompt[value[0]]["class_type"]][value[1]]
        return value

    return {
        id: {**node, "inputs": {name: resolve(one) for name, one in node["inputs"].items()}}
        for id, node in prompt.items()
        if node["class_type"] not in written
    }


def read_frames(film: Path) -> tuple[list[Any], float]:
    """The frames of a video as pictures, and its seconds."""
    import av

    with av.open(str(film)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_image() for frame in file.decode(stream)]
        return frames, len(frames) / float(stream.average_rate or 24)


def draw(frames: list[Any], seconds: float, target: Path) -> None:
    """Write some of the frames as an animated picture, with how far the film is under them."""
    from PIL import Image, ImageDraw

    count = min(len(frames), MOST_FRAMES)
    cards = []
    for number in range(count):
        frame = frames[number * len(frames) // count]
        size = tuple(round(side * SIZE / max(frame.size)) for side in frame.size)
        card = Image.new("RGB", CARD, DARK)
        place = tuple((whole - side) // 2 for whole, side in zip(CARD, size, strict=True))
        card.paste(frame.resize(size, Image.Resampling.BICUBIC), place)
        reached = CARD[0] * (number + 1) // count
        ImageDraw.Draw(card).rectangle((0, CARD[1] - 3, reached, CARD[1]), fill=BAR)
        cards.append(card)
    pace = round(1000 * min(seconds, SECONDS) / count)
    options = {"save_all": True, "append_images": cards[1:], "duration": pace, "loop": 0}
    cards[0].save(target, "WEBP", quality=55, method=6, **options)


def main() -> int:
    """Make the thumbnails; 1 where a template made no film."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    names = options.names or sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
    failed = []
    with tempfile.TemporaryDirectory() as work:
        inprocess.boot_host(options.comfyui, Path(work))
        inprocess.load_pack(ROOT)
        for name in names:
            content = (ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")
            result = inprocess.execute(replace_words(json.loads(content)))
            films = [
                file for file in map(inprocess.absolute, result.files) if file.suffix == ".mp4"
            ]
            if not films:
                failed.append(name)
                print(f"{name}: {result.describe()}", file=sys.stderr)
                continue
            target = ROOT / "workflows" / f"{name}.jpg"
            draw(*read_frames(films[-1]), target)
            print(f"{name}: {target.stat().st_size} bytes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
