// The look of the pack's widgets, in the page's own colours; put into the page once.

const ID = "skyreels-v2-styles";

const CSS = `
.srv2 { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%;
  height: 100%; padding: 4px 6px; overflow: hidden; font: 12px/1.35 Inter, Arial, sans-serif;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-radius: 6px; }
.srv2[hidden] { display: none; }
.srv2-title { font-weight: 600; }
.srv2-note { color: var(--descrip-text, #999); }
.srv2-line { width: 100%; height: 62px; flex: none; display: block; }
.srv2-line text { font: 10px Inter, Arial, sans-serif; fill: var(--descrip-text, #999); }
.srv2-cells { position: relative; flex: 1 1 70px; min-height: 50px; }
.srv2-cells canvas { position: absolute; inset: 0; width: 100%; height: 100%;
  image-rendering: pixelated; border-radius: 3px; }
.srv2-window { position: absolute; border: 1px solid #66b8ff; box-sizing: border-box;
  pointer-events: none; }
.srv2-legend { display: flex; flex-wrap: wrap; gap: 2px 10px; color: var(--descrip-text, #999);
  font-size: 11px; flex: none; }
.srv2-legend i { display: inline-block; width: 9px; height: 9px; margin-right: 4px;
  border-radius: 2px; vertical-align: -1px; }
.srv2-refused { border-left: 3px solid #e0604c; padding: 2px 6px; }
.srv2 button { font: inherit; color: inherit; background: var(--comfy-menu-secondary-bg, #333);
  border: 1px solid var(--border-color, #555); border-radius: 4px; padding: 1px 8px;
  cursor: pointer; }
.srv2 button:hover { filter: brightness(1.25); }
.srv2 :focus-visible { outline: 2px solid #66b8ff; outline-offset: 1px; }
.srv2 details { flex: none; }
.srv2 details[open] { flex: 0 1 auto; min-height: 24px; overflow: auto; }
.srv2 summary { cursor: pointer; color: var(--descrip-text, #999); }
.srv2 pre { margin: 2px 0 0; white-space: pre-wrap; font: 11px/1.4 Inter, Arial, sans-serif;
  user-select: text; }
.srv2-shots { display: flex; gap: 6px; align-items: center; flex: none; }
.srv2-bar { display: flex; flex: 1; height: 16px; overflow: hidden; border-radius: 3px; }
.srv2-bar > div { min-width: 1px; overflow: hidden; text-align: center; font-size: 10px;
  line-height: 16px; }
.srv2-rows { flex: 1 1 auto; overflow-y: auto; list-style: none; margin: 0; padding: 0;
  display: flex; flex-direction: column; gap: 4px; min-height: 60px; }
.srv2-row { display: flex; gap: 4px; flex: none; background: var(--comfy-menu-bg, #353535);
  border-radius: 4px; padding: 3px; content-visibility: auto;
  contain-intrinsic-height: auto 76px; }
.srv2-grip { cursor: grab !important; align-self: stretch; padding: 0 4px !important; }
.srv2-shot { flex: 1; min-width: 0; display: flex; flex-direction: column; gap: 3px; }
.srv2-fields { display: flex; flex-wrap: wrap; gap: 3px 8px; align-items: center;
  color: var(--descrip-text, #999); }
.srv2-buttons { display: flex; flex-direction: column; gap: 3px; }
.srv2 textarea, .srv2 input, .srv2 select { font: inherit; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555);
  border-radius: 4px; padding: 1px 4px; box-sizing: border-box; }
.srv2 textarea { width: 100%; resize: none; }
.srv2 input[type="number"] { width: 56px; }
.srv2 input[inputmode] { width: 84px; }
.srv2 input.srv2-take { width: 44px; }
.srv2-film { flex: 1 1 110px; height: 110px; min-height: 0; width: 100%; object-fit: contain; }
.srv2-film[hidden] { display: none; }
.srv2-stale :is(.srv2-rows, .srv2-shots, .srv2-line, .srv2-cells) { opacity: 0.35; }
`;

export function addStyles() {
  if (document.getElementById(ID)) return;
  const style = document.createElement("style");
  style.id = ID;
  style.textContent = CSS;
  document.head.append(style);
}
