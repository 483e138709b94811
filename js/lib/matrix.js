// The timestep matrix as a picture: down the model calls, to the right the film's latent frames.

import { html } from "./elements.js";

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

/** An element with the cells, which `outline_plan` describes, and a frame around each window. */
export function drawMatrix(matrix) {
  const { rows, columns } = matrix;
  const canvas = html("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  Array.from(atob(matrix.cells), (letter, place) => {
    image.data.set([...colour(letter.charCodeAt(0)), 255], 4 * place);
  });
  context.putImageData(image, 0, 0);
  const frames = matrix.windows.map(([top, bottom, left, right]) => {
    const percent = (value, whole) => `${(100 * value) / whole}%`;
    const style = [
      `top:${percent(top, rows)}`, `height:${percent(bottom - top, rows)}`,
      `left:${percent(left, columns)}`, `width:${percent(right - left, columns)}`,
    ].join(";");
    return html("div", { class: "srv2-window", style });
  });
  return html("div", { class: "srv2-cells", "aria-hidden": "true" }, canvas, ...frames);
}

export function drawLegend() {
  const entry = (colours, text) =>
    html("span", {}, html("i", { style: `background:${colours}` }), text);
  const rgb = (colours) => `rgb(${colours.join(",")})`;
  return html(
    "div",
    { class: "srv2-legend", "aria-hidden": "true" },
    html("span", {}, "↓ model calls  → frames"),
    entry(rgb(NOISE), "being denoised"),
    entry(rgb(NOISE.map((channel) => channel * WAITING)), "waiting"),
    entry(rgb(CLEAN), "finished"),
    entry(rgb(GIVEN), "given"),
  );
}
