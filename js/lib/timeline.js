// A film's time from left to right: seconds, shots, windows with what they share, given frames.

import { svg } from "./elements.js";
import { t } from "./words.js";

const NEW = "#4a7fb5", SHARED = "#2c4258", GIVEN = "#40a062", CUT = "#e0604c";
const SHOTS = ["#5d5470", "#474058"];
const STEPS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400];
const MOST_TICKS = 6;
const HEIGHT = 62; // px
const PIN = 8; // px, a dot's width

/** A text such as 4.5 s or 1:20 min. */
export function clock(seconds) {
  if (seconds < 60) {
    return t("{seconds} s", { seconds: Number(seconds.toPrecision(seconds < 1 ? 2 : 4)) });
  }
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = whole % 60;
  const two = (number) => String(number).padStart(2, "0");
  const time = hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
  return hours ? t("{time} h", { time }) : t("{time} min", { time });
}

/** The film's time as an element, drawn over and over. All marks of a colour are one path, since a
 * film may have hundreds; what is said of the one under the pointer is its title. */
export class TimelineView {
  constructor() {
    const stretched = { width: "100%", height: HEIGHT, preserveAspectRatio: "none" };
    this.bars = svg("svg", stretched);
    this.ruler = svg("g");
    this.title = svg("title");
    const parts = [this.title, this.bars, this.ruler];
    this.element = svg("svg", { class: "srv2-line", "aria-hidden": "true" }, ...parts);
    this.element.addEventListener("pointermove", (event) => this.point(event));
  }

  /** Draw the plan that the pack's route answers with. */
  draw(plan) {
    this.marks = [...shots(plan), ...windows(plan), ...given(plan)];
    this.frames = Math.max(plan.frames, ...plan.spans.map((span) => span[3]));
    this.bars.setAttribute("viewBox", `0 0 ${this.frames} ${HEIGHT}`);
    this.bars.replaceChildren(...paths(this.marks));
    this.ruler.replaceChildren(...ruler(plan, this.frames));
  }

  /** Say what lies under the pointer. */
  point({ clientX, clientY }) {
    const box = this.element.getBoundingClientRect();
    const perPixel = this.frames / box.width;
    const frame = (clientX - box.left) * perPixel;
    const y = ((clientY - box.top) * HEIGHT) / box.height;
    const near = this.marks?.findLast((mark) => {
      const slack = mark.pin ? (PIN / 2) * perPixel : 0;
      const within = mark.from - slack <= frame && frame < mark.to + slack;
      return within && mark.top <= y && y < mark.top + mark.height;
    });
    this.title.textContent = near ? near.title() : "";
  }
}

// The lines of a mark; a dot is a line without length, whose round ends are seen.
const LINES = {
  box: (from, to, top, height) => `M${from} ${top}H${to}v${height}H${from}z`,
  line: (from, to, top, height) => `M${from} ${top}v${height}`,
  dot: (from, to, top, height) => `M${from} ${top + height / 2}h0`,
};

/** Elements with all marks, in their order, a path for each colour and kind. */
function paths(marks) {
  const drawn = new Map();
  for (const { from, to, top, height, fill, pin } of marks) {
    const key = `${fill} ${pin ?? ""}`;
    if (!drawn.has(key)) drawn.set(key, { fill, pin, lines: [] });
    drawn.get(key).lines.push(LINES[pin ?? "box"](from, to, top, height));
  }
  return Array.from(drawn.values(), ({ fill, pin, lines }) => {
    const width = pin === "dot" ? PIN : 2;
    const stroke = { stroke: fill, "stroke-width": width, "vector-effect": "non-scaling-stroke" };
    const cap = { "stroke-linecap": pin === "dot" ? "round" : "butt" };
    return svg("path", { d: lines.join(""), ...(pin ? { ...stroke, ...cap } : { fill }) });
  });
}

function ruler(plan, frames) {
  const step = STEPS.find((seconds) => plan.seconds / seconds <= MOST_TICKS) ?? plan.seconds / 4;
  const ticks = [];
  for (let second = 0; second <= plan.seconds + 1e-9; second += step) {
    const x = `${(100 * second * plan.fps) / frames}%`;
    ticks.push(svg("line", { x1: x, x2: x, y1: 11, y2: 15, stroke: "#888" }));
    const late = second > plan.seconds - step / 2 && second > 0;
    const anchor = second === 0 ? "start" : late ? "end" : "middle";
    ticks.push(svg("text", { x, y: 9, "text-anchor": anchor }, clock(second)));
  }
  return ticks;
}

function shots(plan) {
  const found = [], cuts = [];
  plan.shots.forEach(([start, stop, cut, ease], index) => {
    const title = () => {
      const how = index === 0 ? "" : cut ? t(", after a cut") : t(", continues");
      const fade = ease ? t(", fades in over {ease} frames", { ease }) : "";
      const times = { from: clock(start / plan.fps), to: clock(stop / plan.fps) };
      const shot = t("Shot {shot}", { shot: index + 1 });
      return `${shot}${how}${fade}${t(": {from} to {to}", times)}`;
    };
    found.push({ from: start, to: stop, top: 17, height: 10, fill: SHOTS[index % 2], title });
    if (cut && index) {
      cuts.push({ from: start, to: start, top: 15, height: 37, fill: CUT, pin: "line", title });
    }
  });
  return [...found, ...cuts];
}

function windows(plan) {
  const time = (frame) => clock(frame / plan.fps);
  return plan.spans.flatMap(([shown, begin, stop, end], index) => {
    const title = () => {
      const numbers = { window: index * plan.every + 1, all: plan.windows };
      const name = plan.sliding ? t("Sequence") : t("Window {window} of {all}", numbers);
      const span = t(": {from} to {to}", { from: time(begin), to: time(stop) });
      const made = t(", {frames} new frames", { frames: stop - begin });
      const shared = { frames: begin - shown };
      const shares = begin > shown ? t(", shares {frames} with the one before", shared) : "";
      const leads = end > stop ? t(", leads into what follows") : "";
      return `${name}${span}${made}${shares}${leads}`;
    };
    const place = { top: 30 + 11 * (index % 2), height: 9, title };
    return [
      { from: shown, to: begin, fill: SHARED, ...place },
      { from: begin, to: stop, fill: NEW, ...place },
      { from: stop, to: end, fill: GIVEN, ...place },
    ].filter(({ from, to }) => from < to);
  });
}

function given(plan) {
  const { start, keys, end } = plan.given;
  const mark = (from, to, pin, text) => {
    const place = pin ? { top: 52, height: PIN, pin } : { top: 53, height: 5 };
    return { from, to, fill: GIVEN, ...place, title: () => text };
  };
  const pin = (frame, text) => mark(frame, frame, "dot", text);
  const key = (frame) => t("Key image at {time}", { time: clock(frame / plan.fps) });
  const found = keys.map((frame) => pin(frame, key(frame)));
  if (start > 1) found.push(mark(0, start, null, t("Given: the first {start} frames", { start })));
  if (start === 1) found.push(pin(0, t("Start image")));
  if (end) found.push(pin(plan.frames, t("End image")));
  return found;
}
