// Rows to edit the text of the SkyReels-V2 Storyboard (Text) node in. The text stays the node's
// input: rows are written into it, and what is typed into it is shown as rows. Without this file
// the text field remains.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isLinked, originOf, targetsOf } from "./lib/graph.js";
import { StoryboardView } from "./lib/storyboard_view.js";
import { addElement, after, Asking, setWidget } from "./lib/watch.js";

const NODE = "SkyReelsV2StoryboardText";
const HEIGHT = 300; // px, least
const editors = new Map(); // by node

function refreshAll() {
  for (const editor of editors.values()) editor.refresh();
}

function valueOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/** The widget in which the store of this storyboard's film says which takes; null without one. */
function takesWidget(node) {
  const [sampler] = targetsOf(node, "SKYREELS_V2_STORYBOARD", "SkyReelsV2Sampler");
  const store = sampler && originOf(sampler, "store");
  if (store?.comfyClass !== "SkyReelsV2Store" || isLinked(store, "takes")) return null;
  return store.widgets?.find((widget) => widget.name === "takes") ? store : null;
}

/** What the rows do with takes: read() gives null where no store is connected. */
function takesOf(node) {
  return {
    read() {
      const store = takesWidget(node);
      return store && (valueOf(store, "takes") ?? "");
    },
    write(text) {
      const store = takesWidget(node);
      if (store) setWidget(store, "takes", text, app.canvas);
    },
    queue: () => app.queuePrompt(0, 1),
  };
}

function addEditor(node) {
  let own = null; // what the rows have written
  let writing = false;
  const current = () =>
    JSON.stringify({ text: valueOf(node, "text"), seconds: valueOf(node, "seconds") });
  const linked = () => isLinked(node, "text");
  const read = () => {
    view.element.hidden = linked();
    view.noteAround();
    return writing || linked() ? null : current();
  };
  // What the rows wrote themselves is not drawn over the field that a person is in.
  const show = (answer) => (current() === own ? view.confirm(answer) : view.show(answer));
  const editor = new Asking("storyboard", read, show);
  const hasLora = () => (valueOf(node, "lora_name") ?? "none") !== "none";
  const view = new StoryboardView(takesOf(node), hasLora, (text, seconds) => {
    writing = true; // a text without its seconds is not asked for
    setWidget(node, "seconds", seconds, app.canvas);
    setWidget(node, "text", text, app.canvas);
    writing = false;
    own = current();
    editor.refresh();
  });
  // A text that another node writes has no rows to edit.
  addElement(node, "shots", view.element, () => (linked() ? 0 : HEIGHT));
  editors.set(node, editor);
  for (const name of ["text", "seconds", "lora_name"]) {
    const widget = node.widgets?.find((one) => one.name === name);
    if (widget) after(widget, "callback", () => editor.refresh());
  }
  after(node, "onRemoved", () => editors.delete(node));
  setTimeout(() => editor.refresh());
}

app.registerExtension({
  name: "skyreels_v2.storyboard",
  setup() {
    api.addEventListener("graphChanged", refreshAll);
  },
  nodeCreated(node) {
    try {
      if (node.comfyClass === NODE) addEditor(node);
    } catch (error) {
      console.warn("SkyReels-V2: the storyboard's rows are not shown", error);
    }
  },
  afterConfigureGraph() {
    setTimeout(refreshAll);
  },
});
