// The film so far, on the SkyReels-V2 Sampler while it makes the rest. Without this file the host's
// preview of the frame at work remains.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { FilmView } from "./lib/film_view.js";
import { nodeByExecution } from "./lib/graph.js";
import { addElement, after } from "./lib/watch.js";

const NODE = "SkyReelsV2Sampler";
const HEIGHT = 150; // px, least
const views = new Map(); // by node

function addView(node) {
  const view = new FilmView();
  view.element.hidden = true;
  addElement(node, "film", view.element, () => (view.empty ? 0 : HEIGHT));
  views.set(node, view);
  after(node, "onRemoved", () => {
    view.clear({});
    views.delete(node);
  });
}

/** Make room once there is something to see, and give it back where there is not. */
function fit(node, view) {
  if (view.element.hidden === view.empty) return;
  view.element.hidden = view.empty;
  const [width, height] = node.size;
  node.setSize?.([width, height + (view.empty ? -HEIGHT : HEIGHT)]);
  node.setDirtyCanvas?.(true, true);
}

/** The films are over and shown by other nodes: their room is given back. */
function clearAll() {
  for (const [node, view] of views) {
    view.clear({});
    fit(node, view);
  }
}

async function hear({ detail }) {
  const node = nodeByExecution(app.rootGraph ?? app.graph, String(detail.node));
  const view = node && views.get(node);
  if (!view) return;
  if (detail.begin) view.clear(detail);
  else if (detail.videos) {
    const address = (file) => api.apiURL(`/view?${new URLSearchParams({ ...file, type: "output" })}`);
    view.show(detail.videos.map(address));
  } else await view.add(detail);
  fit(node, view);
}

app.registerExtension({
  name: "skyreels_v2.film_progress",
  setup() {
    api.addEventListener("skyreels_v2.film", (event) => {
      hear(event).catch((error) => console.warn("SkyReels-V2: the film so far is not shown", error));
    });
    // After a failure or a cancel what is finished stays.
    api.addEventListener("execution_success", clearAll);
  },
  nodeCreated(node) {
    try {
      if (node.comfyClass === NODE) addView(node);
    } catch (error) {
      console.warn("SkyReels-V2: the film so far is not shown", error);
    }
  },
});
