// Hearing of changes to single nodes of ours, and asking the pack's routes.

import { api } from "../../../scripts/api.js";
import { t } from "./words.js";

/** Call `then` after a function of this one object. */
export function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then();
    return result;
  };
}

/** Set a widget as a person would; whether there is such a widget. */
export function setWidget(node, name, value, canvas) {
  const widget = node.widgets?.find((one) => one.name === name);
  if (!widget) return false;
  if (widget.value !== value) {
    widget.value = value;
    widget.callback?.(value, canvas, node);
    node.setDirtyCanvas?.(true, true);
  }
  return true;
}

/** The answer of a route of the pack to a question in JSON, or `{ error }`. */
export async function ask(route, body) {
  const headers = { "Content-Type": "application/json" };
  const response = await api.fetchApi(`/skyreels_v2/${route}`, { method: "POST", headers, body });
  const known = response.headers.get("Content-Type")?.includes("json");
  return known ? response.json() : { error: t("The server answered {status}.", response) };
}

/** Questions one after the other, of which the newest wins. read() gives the question's body and
 * show(answer, body) what to do with the answer; nothing is asked twice in a row. */
export class Asking {
  constructor(route, read, show) {
    Object.assign(this, { route, read, show, asked: null, busy: false });
  }

  /** Ask once more, although nothing has changed. */
  again() {
    this.asked = null;
    return this.refresh();
  }

  async refresh() {
    if (this.busy) return;
    this.busy = true;
    try {
      for (;;) {
        const body = this.read();
        if (body === null || body === this.asked) break;
        this.asked = body;
        this.show(await ask(this.route, body));
      }
    } catch (error) {
      this.asked = null;
      this.show({ error: t("The server cannot be asked: {message}", error) });
    } finally {
      this.busy = false;
    }
  }
}

/** Put an element on a node, as no part of the workflow; height(): px, least. */
export function addElement(node, name, element, height) {
  const widget = node.addDOMWidget(name, `SKYREELS_V2_${name.toUpperCase()}`, element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    margin: 6,
  });
  widget.serialize = false;
  return widget;
}
