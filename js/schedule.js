// The plan on the SkyReels-V2 Schedule node, redrawn as its widgets and the graph around it change.
// All numbers come from the pack's route, which plans as the node does. Without this file the node
// has its plain widgets.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { readFilm } from "./lib/graph.js";
import { Pace } from "./lib/pace.js";
import { PlanView } from "./lib/plan_view.js";
import { addElement, after, Asking, setWidget } from "./lib/watch.js";

const NODE = "SkyReelsV2Schedule";
const HEIGHT = 240; // px, least
const plans = new Map(); // by node
const pace = new Pace();

function refreshAll() {
  for (const plan of plans.values()) plan.refresh();
}

function watch(node) {
  for (const widget of node.widgets ?? []) after(widget, "callback", refreshAll);
  after(node, "onConnectionsChange", () => setTimeout(refreshAll));
}

/** The options of a widget that has some. */
function listed(widget) {
  return Array.isArray(widget.options?.values) ? widget.options.values : [];
}

function addPlan(node) {
  const view = new PlanView({
    takes: (name, value) => {
      const widget = node.widgets?.find((one) => one.name === name);
      return Boolean(widget && (typeof value === "number" || listed(widget).includes(value)));
    },
    set: (name, value) => setWidget(node, name, value, app.canvas),
  });
  let film = null; // what was read last
  const read = () => {
    film = readFilm(node);
    return JSON.stringify(film.question);
  };
  const show = (answer) => {
    const time = answer.plan ? pace.describe(film.question, answer.plan.calls) : "";
    view.show(answer, [time, ...film.notes]);
  };
  const plan = new Asking("plan", read, show);
  plan.film = () => film;
  addElement(node, "plan", view.element, () => HEIGHT);
  plans.set(node, plan);
  after(node, "onRemoved", () => plans.delete(node));
  setTimeout(() => plan.refresh());
}

/** Measure the model calls of the samplers at work; nodes: their progress, by id. */
function measure(nodes) {
  for (const plan of plans.values()) {
    const film = plan.film();
    const progress = film?.sampler && nodes?.[String(film.sampler.id)];
    if (progress?.state === "running") pace.note(film.question, progress.value);
  }
}

app.registerExtension({
  name: "skyreels_v2.schedule",
  setup() {
    api.addEventListener("graphChanged", refreshAll);
    api.addEventListener("progress_state", ({ detail }) => measure(detail?.nodes));
    api.addEventListener("execution_success", () => {
      for (const plan of plans.values()) plan.again();
    });
  },
  nodeCreated(node) {
    try {
      if (!node.comfyClass?.startsWith("SkyReelsV2")) return;
      watch(node);
      if (node.comfyClass === NODE) addPlan(node);
    } catch (error) {
      console.warn("SkyReels-V2: the plan is not shown", error);
    }
  },
  afterConfigureGraph() {
    setTimeout(refreshAll);
  },
});
