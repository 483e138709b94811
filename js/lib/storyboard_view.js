// Shots of a film as rows that a person edits, in any order: prompt, length, how it begins, seed, the
// strength of a LoRA.

import { html } from "./elements.js";
import { addStyles } from "./styles.js";
import { findTake, renumberTakes, sayTake } from "./takes.js";
import { clock } from "./timeline.js";
import { t, tell } from "./words.js";

const NEW_SHOT = { prompt: "", seconds: 4, cut: false, ease: null, seed: "", lora: null };
const FADE = 12; // frames of a new cross-fade
const SEEDS = 2 ** 32; // that a shot is made again with
const COLOURS = ["#5d5470", "#474058"];

/** The text of a storyboard, as `parse_storyboard` reads it, with the film's length. */
export function composeStoryboard(shots) {
  let begin = 0;
  const lines = shots.map((shot) => {
    const words = [
      `${round(begin)}s`,
      shot.cut ? "cut" : "",
      shot.ease === null ? "" : `ease ${shot.ease}`,
      shot.seed === "" ? "" : `seed ${shot.seed}`,
      shot.lora === null ? "" : `lora ${round(shot.lora)}`,
    ].filter(Boolean);
    begin += shot.seconds;
    return `${words.join(" ")}: ${shot.prompt.split(/\s+/).filter(Boolean).join(" ")}`;
  });
  return { text: lines.join("\n"), seconds: round(begin) };
}

function round(number) {
  return Math.round(number * 1000) / 1000;
}

export class StoryboardView {
  /** takes: which of each shot, in the film's store. hasLora(): whether shots have a LoRA.
   * changed(text, seconds): what the rows say. */
  constructor(takes, hasLora, changed) {
    addStyles();
    Object.assign(this, { takes, hasLora, changed, takesShown: null, loraShown: false });
    this.shots = [];
    this.only = {}; // of shots of which nothing is said, by number
    this.message = html("div", { role: "status", "aria-live": "polite" });
    this.ruler = html("div", { class: "srv2-shots", "aria-hidden": "true" });
    this.rows = html("ol", { class: "srv2-rows" });
    const append = () => this.insert(this.shots.length, NEW_SHOT);
    const add = button(t("+ Add a shot"), t("Add a shot"), append);
    const parts = [this.message, this.ruler, this.rows, add];
    const name = { role: "group", "aria-label": t("Shots of the film") };
    this.element = html("div", { class: "srv2", ...name }, ...parts);
  }

  /** answer: of the pack's route to a text that is not from here. */
  show(answer) {
    this.confirm(answer);
    this.element.classList.toggle("srv2-stale", !answer.shots);
    if (!answer.shots) return;
    this.shots = answer.shots;
    this.draw();
  }

  /** answer: of the route to what the rows say. They stand as they are. */
  confirm(answer) {
    const refused = answer.refused?.message ?? answer.error;
    const boxes = refused ? [html("div", { class: "srv2-refused" }, tell(refused))] : [];
    this.message.replaceChildren(...boxes);
    this.element.classList.remove("srv2-stale");
    this.drawRuler();
  }

  /** Draw takes that were said elsewhere, a store that has just been connected, or a LoRA. */
  noteAround() {
    const same = this.takes.read() === this.takesShown && this.hasLora() === this.loraShown;
    if (!same) this.draw();
  }

  draw() {
    [this.takesShown, this.loraShown] = [this.takes.read(), this.hasLora()];
    this.drawRuler();
    this.rows.replaceChildren(...this.shots.map((shot, index) => this.row(shot, index)));
  }

  drawRuler() {
    let begin = 0;
    const boxes = this.shots.map((shot, index) => {
      const times = { from: clock(begin), to: clock(begin + shot.seconds) };
      const title = t("Shot {shot}", { shot: index + 1 }) + t(": {from} to {to}", times);
      begin += shot.seconds;
      const edge = shot.cut && index ? "border-left:2px solid #e0604c;" : "";
      const style = `flex:${shot.seconds} 1 0;background:${COLOURS[index % 2]};${edge}`;
      return html("div", { style, title }, String(index + 1));
    });
    const total = html("span", { class: "srv2-note" }, clock(begin));
    this.ruler.replaceChildren(html("div", { class: "srv2-bar" }, ...boxes), total);
  }

  row(shot, index) {
    const set = (key, value) => {
      shot[key] = value;
      this.tell();
    };
    const number = index + 1;
    const label = t("Prompt of shot {shot}", { shot: number });
    const names = { "aria-label": label, placeholder: t("prompt") };
    const prompt = html("textarea", { rows: 2, ...names });
    prompt.value = shot.prompt;
    prompt.addEventListener("input", () => set("prompt", prompt.value));
    const fields = html("div", { class: "srv2-fields" }, ...this.fields(shot, index, set));
    const again = this.takesShown === null ? [] : [this.again(number)];
    const doubled = t("Duplicate shot {shot}", { shot: number });
    const removed = t("Remove shot {shot}", { shot: number });
    const buttons = [
      ...again,
      button("×2", doubled, () => this.insert(number, shot)),
      button("✕", removed, () => this.remove(index), this.shots.length < 2),
    ];
    const item = html(
      "li",
      { class: "srv2-row" },
      this.handle(index),
      html("div", { class: "srv2-shot" }, prompt, fields),
      html("div", { class: "srv2-buttons" }, ...buttons),
    );
    item.addEventListener("dragover", (event) => event.preventDefault());
    item.addEventListener("drop", (event) => this.drop(event, index));
    return item;
  }

  fields(shot, index, set) {
    const number = index + 1;
    const found = [this.seconds(shot, number, set), this.beginning(shot, number, set)];
    if (shot.ease !== null && !shot.cut) {
      const label = t("Frames of shot {shot}'s cross-fade", { shot: number });
      const ease = html("input", { type: "number", min: 0, max: 1000, "aria-label": label });
      ease.value = String(shot.ease);
      ease.addEventListener("change", () => {
        set("ease", Math.min(Math.max(Math.round(Number(ease.value)) || 0, 0), 1000));
        ease.value = String(shot.ease);
      });
      found.push(labelled(t("frames"), ease));
    }
    const label = t("Seed of shot {shot}", { shot: number });
    const names = { placeholder: t("sampler's"), "aria-label": label };
    const seed = html("input", { inputmode: "numeric", ...names });
    seed.value = shot.seed;
    seed.addEventListener("change", () => {
      seed.value = seed.value.replace(/\D/g, "").slice(0, 20);
      set("seed", seed.value);
    });
    const lora = this.loraShown || shot.lora !== null ? [this.lora(shot, number, set)] : [];
    const takes = this.takesShown === null ? [] : this.take(number);
    return [...found, labelled(t("seed"), seed), ...lora, ...takes];
  }

  /** How strongly the node's LoRA acts in a shot. */
  lora(shot, number, set) {
    const label = t("Strength of the LoRA in shot {shot}", { shot: number });
    const range = { min: -20, max: 20, step: 0.05 };
    const field = html("input", { type: "number", ...range, placeholder: 1, "aria-label": label });
    field.value = shot.lora ?? "";
    field.addEventListener("change", () => {
      const strength = Math.min(Math.max(Number(field.value), -20), 20);
      set("lora", field.value === "" ? null : round(strength));
      field.value = shot.lora ?? "";
    });
    return labelled("LoRA", field);
  }

  /** Which take of a shot is in the film, and whether only the shot itself is made again. */
  take(number) {
    const said = findTake(this.takesShown, number);
    const label = t("Take of shot {shot}: a number of the sampler's report, or empty", {
      shot: number,
    });
    const field = html("input", { inputmode: "numeric", class: "srv2-take", "aria-label": label });
    field.placeholder = said?.what === "seed" ? t("new") : t("first");
    field.value = said?.what === "take" ? said.value : "";
    const keep = t("Only shot {shot}: keep what follows", { shot: number });
    const only = html("input", { type: "checkbox", title: keep, "aria-label": keep });
    only.checked = Boolean(said?.only);
    field.addEventListener("change", () => {
      field.value = field.value.replace(/\D/g, "").slice(0, 6);
      const chosen = { only: false, what: "take", value: field.value };
      this.sayTake(number, field.value === "" ? null : chosen);
    });
    only.addEventListener("change", () => {
      const before = findTake(this.takesShown, number);
      if (before) this.sayTake(number, { ...before, only: only.checked });
      this.only[number] = only.checked;
    });
    return [labelled(t("take"), field), labelled(t("only"), only)];
  }

  /** Make a shot again with another seed, and queue the film. */
  again(number) {
    const label = t("Make shot {shot} again, with another seed", { shot: number });
    return button("↻", label, () => {
      const only = this.only[number] ?? findTake(this.takesShown, number)?.only ?? false;
      this.sayTake(number, { only, what: "seed", value: Math.floor(Math.random() * SEEDS) });
      this.draw();
      this.takes.queue();
    });
  }

  sayTake(number, said) {
    this.takesShown = sayTake(this.takesShown, number, said);
    this.takes.write(this.takesShown);
  }

  /** order: the numbers that the shots had. */
  renumber(order) {
    this.only = {};
    const text = this.takes.read();
    if (text) this.takes.write(renumberTakes(text, order));
  }

  seconds(shot, number, set) {
    const label = t("Seconds of shot {shot}", { shot: number });
    const field = html("input", { type: "number", min: 0.1, step: 0.1, "aria-label": label });
    field.value = String(round(shot.seconds));
    field.addEventListener("change", () => {
      if (Number(field.value) > 0) set("seconds", Number(field.value));
      field.value = String(round(shot.seconds));
    });
    return labelled(t("s"), field);
  }

  beginning(shot, number, set) {
    const field = html("select", { "aria-label": t("How shot {shot} begins", { shot: number }) });
    const ways = { continue: t("continues"), cut: t("cut"), ease: t("cross-fade") };
    for (const [value, text] of Object.entries(ways)) {
      field.append(html("option", { value }, text));
    }
    field.value = shot.cut ? "cut" : shot.ease === null ? "continue" : "ease";
    field.disabled = number === 1;
    field.addEventListener("change", () => {
      shot.cut = field.value === "cut";
      set("ease", field.value === "ease" ? FADE : null);
      this.draw();
    });
    return field;
  }

  /** To drag a row by; the arrow keys move it, too. */
  handle(index) {
    const label = t("Move shot {shot}: drag, or arrow up and down", { shot: index + 1 });
    const grip = button("⠿", label, () => {});
    grip.draggable = true;
    grip.classList.add("srv2-grip");
    grip.addEventListener("dragstart", (event) => {
      event.stopPropagation();
      event.dataTransfer.setData("text/plain", String(index));
      this.dragged = index;
    });
    grip.addEventListener("keydown", (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      const to = index + (step ?? 0);
      if (!step || to < 0 || to >= this.shots.length) return;
      event.preventDefault();
      event.stopPropagation();
      this.move(index, to);
      this.rows.querySelectorAll(".srv2-grip")[to]?.focus();
    });
    return grip;
  }

  drop(event, index) {
    if (this.dragged === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(this.dragged, index);
    this.dragged = undefined;
  }

  get numbers() {
    return this.shots.map((_, index) => index + 1);
  }

  move(from, to) {
    const order = this.numbers;
    order.splice(to, 0, ...order.splice(from, 1));
    this.renumber(order);
    const [shot] = this.shots.splice(from, 1);
    this.shots.splice(to, 0, shot);
    this.tell(true);
  }

  insert(place, shot) {
    this.renumber(this.numbers.toSpliced(place, 0, 0));
    this.shots.splice(place, 0, { ...shot });
    this.tell(true);
    this.rows.children[place]?.querySelector("textarea")?.focus();
  }

  remove(index) {
    this.renumber(this.numbers.toSpliced(index, 1));
    this.shots.splice(index, 1);
    this.tell(true);
  }

  tell(redraw = false) {
    if (redraw) this.draw();
    const { text, seconds } = composeStoryboard(this.shots);
    this.changed(text, seconds);
  }
}

function button(text, label, act, disabled = false) {
  const made = html("button", { type: "button", title: label, "aria-label": label }, text);
  made.disabled = disabled;
  made.addEventListener("click", act);
  return made;
}

function labelled(text, field) {
  return html("label", {}, field, ` ${text}`);
}
