// Where SkyReels-V2 Language Endpoint finds its server: in ComfyUI's settings, which are kept on the
// computer that runs ComfyUI and never in a workflow. Without this file the environment remains.

import { app } from "../../scripts/app.js";

function text(name, label, tooltip, attrs = {}) {
  return {
    id: `SkyReelsV2.Words.${name}`,
    category: ["SkyReels-V2", "Language endpoint", name],
    name: label,
    tooltip,
    type: "text",
    defaultValue: "",
    attrs,
  };
}

app.registerExtension({
  name: "skyreels_v2.settings",
  // The page shows the last one first.
  settings: [
    text("Model", "Model", "Used where a node names none. Empty: the first that the server lists."),
    text("Key", "Key", "If the server wants one. Whoever can open this page can read it.", {
      type: "password",
      autocomplete: "off",
    }),
    text(
      "Url",
      "Address",
      "Your server, such as http://localhost:11434/v1. Prompts and images that you give to a " +
        "language endpoint go there. Empty: the environment's SKYREELS_V2_WORDS_URL.",
    ),
  ],
});
