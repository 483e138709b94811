// The timestep matrix as a picture: down the model calls, to the right the film's latent frames.

import { html } from "./elements.js";
import { t } from "./words.js";

const CLEAN = [33, 41, 92], NOISE = [252, 219, 89], GIVEN = [64, 158, 97], EMPTY = [28, 28, 33];
const LEVELS = 62, MOVED = 64;
const WAITING = 0.5; // how bright noise is that the model call leaves as it is

function colour(cell) {
  const kind = cell % MOVED;
  if (kind === 0) return EMPTY;
  if (kind === 1) return GIVEN;
  const level = (kind - 2) / (LEVELS - 1);
  const bright = cell >= MOVED ? 1 : 1 - (1 - WAITING) * level;
  return CLEAN.map((clean, channel) => (clean * (1 - level) + NOISE[channel] * level) * bright);
}

// Every cell's colour as one number, as the canvas keeps its pixels.
const PIXELS = new Uint32Array(
  Uint8ClampedArray.from(Array.from({ length: 2 * MOVED }, (_, cell) => [...colour(cell), 255]).flat())
    .buffer,
);

/** The matrix as an element, drawn over and over. */
export class MatrixView {
  constructor() {
    this.canvas = html("canvas");
    this.context = this.canvas.getContext("2d");
    this.frames = html("div");
    const parts = [this.canvas, this.frames];
    this.element = html("div", { class: "srv2-cells", "aria-hidden": "true" }, ...parts);
  }

  /** Draw the cells, which `outline_plan` describes, and a frame around each window. */
  draw({ rows, columns, cells, windows }) {
    Object.assign(this.canvas, { width: columns, height: rows });
    const image = this.context.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const letters = atob(cells);
    for (let place = 0; place < letters.length; place++) {
      pixels[place] = PIXELS[letters.charCodeAt(place)];
    }
    this.context.putImageData(image, 0, 0);
    const percent = (value, whole) => `${(100 * value) / whole}%`;
    const frames = windows.map(([top, bottom, left, right]) => {
      const style = [
        `top:${percent(top, rows)}`, `height:${percent(bottom - top, rows)}`,
        `left:${percent(left, columns)}`, `width:${percent(right - left, columns)}`,
      ].join(";");
      return html("div", { class: "srv2-window", style });
    });
    this.frames.replaceChildren(...frames);
  }
}

export function drawLegend() {
  const entry = (colours, text) =>
    html("span", {}, html("i", { style: `background:${colours}` }), text);
  const rgb = (colours) => `rgb(${colours.join(",")})`;
  return html(
    "div",
    { class: "srv2-legend", "aria-hidden": "true" },
    html("span", {}, t("↓ model calls  → frames")),
    entry(rgb(NOISE), t("being denoised")),
    entry(rgb(NOISE.map((channel) => channel * WAITING)), t("waiting")),
    entry(rgb(CLEAN), t("finished")),
    entry(rgb(GIVEN), t("given")),
  );
}
