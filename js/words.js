// The language of the pack's words on the page (js/lib/words.js). Without this file all is English.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeByExecution } from "./lib/graph.js";
import { labelledInputs, labelOf, takeWords, tell } from "./lib/words.js";

const OURS = "SkyReelsV2";

async function loadWords() {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";
  if (language === "en") return;
  const table = await fetch(new URL(`./words/${language}.json`, import.meta.url));
  if (table.ok) takeWords(await table.json());
}

/** Labels for the options of a node; the values that are saved and sent stay. */
function labelOptions(node) {
  for (const name of labelledInputs(node.comfyClass)) {
    const widget = node.widgets?.find((one) => one.name === name);
    if (!widget?.options) continue;
    widget.options.getOptionLabel = (option) => labelOf(node.comfyClass, name, option ?? "");
  }
}

/** Before the page shows it: what a node of ours says while it works. */
function tellProgress({ detail }) {
  const node = nodeByExecution(app.rootGraph ?? app.graph, String(detail?.nodeId ?? ""));
  if (node?.comfyClass?.startsWith(OURS)) detail.text = tell(detail.text);
}

/** Before the page shows it: why a node of ours has failed, and the English to search for. */
function tellError({ detail }) {
  if (!detail?.node_type?.startsWith(OURS)) return;
  const english = (detail.exception_message ?? "").trim();
  const told = tell(english);
  if (told !== english) detail.exception_message = `${told}\n\n${english}`;
}

function guarded(act) {
  return (given) => {
    try {
      act(given);
    } catch (error) {
      console.warn("SkyReels-V2: words stay English", error);
    }
  };
}

app.registerExtension({
  name: "skyreels_v2.words",
  async init() {
    try {
      await loadWords();
    } catch (error) {
      console.warn("SkyReels-V2: words stay English", error);
    }
    // Listeners that capture come before the page's own.
    api.addEventListener("progress_text", guarded(tellProgress), { capture: true });
    api.addEventListener("execution_error", guarded(tellError), { capture: true });
  },
  nodeCreated: guarded(labelOptions),
});
