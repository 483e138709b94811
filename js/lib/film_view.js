// The finished part of a film, played in a loop while the rest is made.

import { html } from "./elements.js";
import { addStyles } from "./styles.js";
import { t } from "./words.js";

export class FilmView {
  constructor() {
    addStyles();
    this.line = html("span", { class: "srv2-note", role: "status", "aria-live": "polite" });
    this.button = html("button", { type: "button" });
    this.button.addEventListener("click", () => this.play(!this.playing));
    this.canvas = html("canvas", { class: "srv2-film" });
    this.video = html("video", { class: "srv2-film", playsinline: "" });
    this.video.muted = true;
    this.video.addEventListener("ended", () => this.playVideo(this.at + 1));
    const line = html("div", { class: "srv2-shots" }, this.button, this.line);
    const name = { role: "group", "aria-label": t("The film so far") };
    this.element = html("div", { class: "srv2", ...name }, this.canvas, this.video, line);
    this.clear({});
    this.play(true);
  }

  get empty() {
    return !this.pictures.length && !this.videos.length;
  }

  /** Forget the film; windows: of the next one. */
  clear({ windows = 0 }) {
    clearTimeout(this.timer);
    Object.assign(this, { windows, done: new Set(), pictures: [], videos: [], at: 0 });
    this.timer = null;
    this.video.removeAttribute("src");
    this.describe();
  }

  /** A strip of `count` pictures of a window, each shown for so many seconds. */
  async add({ strip, count, seconds, before, window }) {
    const { pictures } = this;
    const image = new Image();
    image.src = strip;
    await image.decode();
    if (pictures !== this.pictures) return; // of a film that is over
    const added = Array.from({ length: count }, (_, place) => ({ image, place, count, seconds }));
    // A film made backwards grows at its beginning; the strips of one window stay in order.
    const first = before && !this.done.has(window) ? 0 : null;
    if (before) pictures.splice(first ?? this.behind, 0, ...added);
    else pictures.push(...added);
    this.behind = (first ?? this.behind ?? 0) + count;
    this.done.add(window);
    this.describe();
    if (this.timer === null) this.step();
  }

  /** Addresses of the videos of the finished part, which are shown instead of pictures. */
  show(videos) {
    this.videos = videos;
    this.describe();
    if (videos.length && !this.video.getAttribute("src")) this.playVideo(0);
  }

  play(on) {
    this.playing = on;
    this.button.textContent = on ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", on ? t("Pause the film so far") : t("Play the film so far"));
    if (!on) this.video.pause();
    else if (this.videos.length) this.video.play().catch(() => {});
  }

  playVideo(index) {
    if (!this.videos.length) return;
    this.at = index % this.videos.length;
    this.video.src = this.videos[this.at];
    if (this.playing) this.video.play().catch(() => {});
  }

  /** Draw the next picture, and come back when it has been seen. */
  step() {
    const { pictures } = this;
    if (!pictures.length) return;
    const picture = pictures[this.at % pictures.length];
    this.timer = setTimeout(() => this.step(), picture.seconds * 1000);
    if (!this.playing || this.videos.length || !this.element.isConnected) return;
    const { image, place, count } = picture;
    const width = image.naturalWidth / count;
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== image.naturalHeight) this.canvas.height = image.naturalHeight;
    this.canvas.getContext("2d").drawImage(image, -place * width, 0);
    this.at = (this.at + 1) % pictures.length;
  }

  describe() {
    const videos = this.videos.length > 0;
    this.canvas.hidden = videos;
    this.video.hidden = !videos;
    const windows = Math.max(this.done.size, this.videos.length);
    this.line.textContent = t("Film so far: {done} of {all} windows", {
      done: windows,
      all: this.windows,
    });
  }
}
