// What a graph says about a film, read around a Schedule node. Nothing here changes the graph.

import { t } from "./words.js";

/** Values of a node's widgets by name; those that do not serialise are not inputs. */
export function widgetValues(node) {
  const inputs = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
  return Object.fromEntries(inputs.map((widget) => [widget.name, widget.value]));
}

function linkOf(graph, id) {
  if (id === null || id === undefined) return null;
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;
}

function nodeOf(graph, id) {
  return graph.getNodeById?.(id) ?? null;
}

/** The node that the host names so while it is at work: `5`, or `12:5` in a subgraph. */
export function nodeByExecution(graph, name) {
  let node = null;
  for (const id of name.split(":")) {
    node = graph && nodeOf(graph, Number(id));
    graph = node?.subgraph;
  }
  return node;
}

/** The node that an input is connected to, through reroutes; null where there is none. */
export function originOf(node, name) {
  let input = node.inputs?.find((one) => one.name === name);
  let graph = node.graph;
  for (let hops = 0; input && graph && hops < 50; hops++) {
    const link = linkOf(graph, input.link);
    const origin = link && nodeOf(graph, link.origin_id);
    if (!origin) return null;
    if (origin.type !== "Reroute") return origin;
    input = origin.inputs?.[0];
  }
  return null;
}

export function isLinked(node, name) {
  return (node.inputs?.find((one) => one.name === name)?.link ?? null) !== null;
}

/** The nodes of a type that an output of this type reaches. */
export function targetsOf(node, outputType, type) {
  const graph = node.graph;
  const output = node.outputs?.find((one) => one.type === outputType);
  const found = [];
  for (const id of output?.links ?? []) {
    const link = linkOf(graph, id);
    const target = link && nodeOf(graph, link.target_id);
    if (target?.comfyClass === type) found.push(target);
  }
  return found;
}

/** The value of an input, if a widget or a primitive node holds it; undefined where a run does. */
function valueOf(node, name) {
  if (!isLinked(node, name)) return node.widgets?.find((one) => one.name === name)?.value;
  const origin = originOf(node, name);
  const primitive = /^Primitive/.test(origin?.type ?? "");
  return primitive ? origin.widgets?.[0]?.value : undefined;
}

function readStoryboard(sampler) {
  let node = originOf(sampler, "storyboard");
  if (node?.comfyClass === "SkyReelsV2StoryboardText") {
    const [text, seconds, ease] = ["text", "seconds", "ease"].map((name) => valueOf(node, name));
    return text === undefined || seconds === undefined ? null : { text, seconds, ease: ease ?? 0 };
  }
  const shots = [];
  while (node?.comfyClass === "SkyReelsV2Storyboard" && shots.length < 2000) {
    const cut = valueOf(node, "transition") === "cut";
    const shot = { seconds: valueOf(node, "seconds"), cut, ease: valueOf(node, "ease") ?? 0 };
    if (shot.seconds === undefined) return null;
    shots.unshift(shot);
    node = originOf(node, "previous");
  }
  return shots.length ? { shots } : null;
}

const IMAGES = ["start_image", "end_image", "key_images"];
const CLIPS = ["video", "video_file", "source", "prepend_to", "prepend_to_file"];
const GIVEN = [...IMAGES, ...CLIPS];

function readFrames(sampler) {
  if (!isLinked(sampler, "frames")) return { connected: [] };
  const node = originOf(sampler, "frames");
  if (node?.comfyClass !== "SkyReelsV2Frames") return null;
  const connected = GIVEN.filter((name) => isLinked(node, name));
  const [key_seconds, loop] = ["key_seconds", "loop"].map((name) => valueOf(node, name));
  if (key_seconds === undefined && connected.includes("key_images")) return null;
  return { connected, key_seconds: key_seconds ?? "", loop: loop ?? false };
}

/** The file that a sampler's model comes from, with the format of its weights. */
function readModel(sampler) {
  let node = originOf(sampler, "model");
  for (let hops = 0; node && hops < 50; hops++) {
    const values = widgetValues(node);
    const file = values.model_name ?? values.unet_name;
    if (file) return `${file} ${values.weight_dtype ?? ""}`;
    node = originOf(node, "model");
  }
  return "";
}

/** The question for the pack's route, what the page cannot know, and the film's sampler. */
export function readFilm(schedule) {
  const notes = [];
  const values = {};
  for (const name of Object.keys(widgetValues(schedule))) {
    const value = valueOf(schedule, name);
    if (value !== undefined) values[name] = value;
    else notes.push(t("{name} comes from another node when the film is made.", { name }));
  }
  const fps = isLinked(schedule, "fps_float") ? valueOf(schedule, "fps_float") : undefined;
  if (fps !== undefined) values.fps_float = fps;
  else if (isLinked(schedule, "fps_float")) notes.push(t("fps comes from another node."));
  if (isLinked(schedule, "sigmas")) notes.push(t("Drawn without the connected sigmas."));
  const [sampler] = targetsOf(schedule, "SKYREELS_V2_SCHEDULE", "SkyReelsV2Sampler");
  if (!sampler) return { question: { schedule: values }, notes, sampler: null };
  const storyboard = readStoryboard(sampler);
  if (!storyboard && isLinked(sampler, "storyboard")) notes.push(t("Drawn without the storyboard."));
  const [frames, model] = [readFrames(sampler), readModel(sampler)];
  return { question: { schedule: values, storyboard, frames, model }, notes, sampler };
}
