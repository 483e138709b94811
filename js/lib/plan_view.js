// The plan of a film as an element: in words, as a timeline and as a matrix; and what is not legal.

import { html } from "./elements.js";
import { drawLegend, MatrixView } from "./matrix.js";
import { addStyles } from "./styles.js";
import { TimelineView } from "./timeline.js";
import { t, tell } from "./words.js";

export class PlanView {
  /** widgets: takes(input, value), and set(input, value) for the nearest legal value. */
  constructor(widgets) {
    addStyles();
    this.widgets = widgets;
    this.words = html("div", { role: "status", "aria-live": "polite" });
    [this.timeline, this.matrix] = [new TimelineView(), new MatrixView()];
    this.drawing = html("div", { style: "display:contents" });
    this.numbers = html("pre");
    this.more = html("details", {}, html("summary", {}, t("All numbers")), this.numbers);
    const name = { role: "group", "aria-label": t("Plan of the film") };
    this.element = html("div", { class: "srv2", ...name }, this.words, this.drawing, this.more);
    this.words.append(html("div", { class: "srv2-note" }, t("The plan is being drawn…")));
  }

  /** answer: of the route; notes: what the page itself has to say. */
  show(answer, notes = []) {
    this.element.classList.toggle("srv2-stale", !answer.plan);
    if (!answer.plan) {
      this.words.replaceChildren(this.refusal(answer.refused ?? { message: answer.error }));
      return;
    }
    const told = [answer.memory, ...answer.warnings].map(tell);
    const lines = [...told, ...notes].filter(Boolean);
    this.words.replaceChildren(
      html("div", { class: "srv2-title" }, tell(answer.title)),
      ...lines.map((line) => html("div", { class: "srv2-note" }, line)),
    );
    if (!this.drawing.firstChild) {
      this.drawing.append(this.timeline.element, this.matrix.element, drawLegend());
    }
    this.timeline.draw(answer.plan);
    this.matrix.draw(answer.plan.matrix);
    this.numbers.textContent = tell(answer.summary);
  }

  refusal({ message, input, nearest }) {
    const why = message ? tell(message) : t("The plan cannot be drawn.");
    const box = html("div", { class: "srv2-refused" }, why, " ");
    if (this.widgets.takes(input, nearest)) {
      const words = t("Set {input} to {nearest}", { input, nearest });
      const button = html("button", { type: "button" }, words);
      button.addEventListener("click", () => this.widgets.set(input, nearest));
      box.append(button);
    }
    return box;
  }
}
