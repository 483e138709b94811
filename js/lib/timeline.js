// A film's time from left to right: seconds, shots, windows with what they share, given frames.

import { svg } from "./elements.js";

const NEW = "#4a7fb5", SHARED = "#2c4258", GIVEN = "#40a062", CUT = "#e0604c";
const SHOTS = ["#5d5470", "#474058"];
const STEPS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400];
const MOST_TICKS = 6;

/** A text such as 4.5 s or 1:20 min. */
export function clock(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(seconds < 1 ? 2 : 4))} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = whole % 60;
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)} h` : `${minutes}:${two(rest)} min`;
}

/** An SVG of the plan that the pack's route answers with; each part has a title to point at. */
export function drawTimeline(plan) {
  const first = -(plan.given.before ?? 0);
  const last = Math.max(plan.frames, ...plan.spans.map((span) => span[3]));
  const percent = (frame) => `${(100 * (frame - first)) / (last - first)}%`;
  const size = (from, to) => percent(first + Math.max(to - from, 0));
  const time = (frame) => clock(frame / plan.fps);

  function box(from, to, y, height, fill, title) {
    const place = { x: percent(from), width: size(from, to), y, height, fill };
    return svg("rect", { ...place, rx: 1 }, svg("title", {}, title));
  }

  const parts = [...ruler(plan, percent), ...shots(plan, box, percent)];
  plan.spans.forEach(([shown, begin, stop, end], index) => {
    const number = index * plan.every + 1;
    const name = plan.sliding ? "Sequence" : `Window ${number} of ${plan.windows}`;
    const text = `${name}: ${time(begin)} to ${time(stop)}, ${stop - begin} new frames`;
    const shares = begin > shown ? `, shares ${begin - shown} with the one before` : "";
    const leads = end > stop ? ", leads into what follows" : "";
    const y = 30 + 11 * (index % 2);
    if (begin > shown) parts.push(box(shown, begin, y, 9, SHARED, text + shares));
    parts.push(box(begin, stop, y, 9, NEW, text + shares + leads));
    if (end > stop) parts.push(box(stop, end, y, 9, GIVEN, text + shares + leads));
  });
  parts.push(...given(plan, box, percent, time));
  return svg("svg", { class: "srv2-line", "aria-hidden": "true" }, ...parts);
}

function ruler(plan, percent) {
  const step = STEPS.find((seconds) => plan.seconds / seconds <= MOST_TICKS) ?? plan.seconds / 4;
  const ticks = [];
  for (let second = 0; second <= plan.seconds + 1e-9; second += step) {
    const x = percent(second * plan.fps);
    ticks.push(svg("line", { x1: x, x2: x, y1: 11, y2: 15, stroke: "#888" }));
    const late = second > plan.seconds - step / 2 && second > 0;
    const anchor = second === 0 ? "start" : late ? "end" : "middle";
    ticks.push(svg("text", { x, y: 9, "text-anchor": anchor }, clock(second)));
  }
  return ticks;
}

function shots(plan, box, percent) {
  const found = [];
  plan.shots.forEach(([start, stop, cut, ease], index) => {
    const how = index === 0 ? "" : cut ? ", after a cut" : ", continues";
    const fade = ease ? `, fades in over ${ease} frames` : "";
    const span = `${clock(start / plan.fps)} to ${clock(stop / plan.fps)}`;
    const title = `Shot ${index + 1}${how}${fade}: ${span}`;
    found.push(box(start, stop, 17, 10, SHOTS[index % 2], title));
    if (cut && index) {
      const x = percent(start);
      found.push(svg("line", { x1: x, x2: x, y1: 15, y2: 52, stroke: CUT, "stroke-width": 2 }));
    }
  });
  return found;
}

function given(plan, box, percent, time) {
  const found = [];
  const pin = (frame, title) => {
    const mark = svg("circle", { cx: percent(frame), cy: 56, r: 4, fill: GIVEN });
    mark.append(svg("title", {}, title));
    return mark;
  };
  const { start, keys, end } = plan.given;
  if (start > 1) found.push(box(0, start, 53, 5, GIVEN, `Given: the first ${start} frames`));
  if (start === 1) found.push(pin(0, "Start image"));
  found.push(...keys.map((frame) => pin(frame, `Key image at ${time(frame)}`)));
  if (end) found.push(pin(plan.frames, "End image"));
  return found;
}
