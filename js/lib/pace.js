// How long a model call takes, measured while films are made on this page.

import { clock } from "./timeline.js";
import { t } from "./words.js";

const NEW_SHARE = 0.2; // of a measurement in the running mean

/** What decides how long a call takes: all but the film's length. */
function keyOf({ schedule, model }) {
  const { frames, seconds, ...rest } = schedule;
  return JSON.stringify([rest, model]);
}

export class Pace {
  constructor() {
    this.means = new Map(); // seconds a call, by key
    this.last = null;
  }

  /** Of a film to this question, so many calls are done. */
  note(question, done) {
    const [key, now] = [keyOf(question), performance.now() / 1000];
    const { last } = this;
    this.last = { key, done, now };
    if (!last || last.key !== key || done <= last.done) return;
    const seconds = (now - last.now) / (done - last.done);
    const mean = this.means.get(key) ?? seconds;
    this.means.set(key, mean + NEW_SHARE * (seconds - mean));
  }

  /** A line on so many calls, or nothing where none like them was measured. */
  describe(question, calls) {
    const seconds = this.means.get(keyOf(question));
    if (!seconds) return "";
    return t("About {whole}, at {one} a model call as last measured.", {
      whole: clock(seconds * calls),
      one: clock(seconds),
    });
  }
}
