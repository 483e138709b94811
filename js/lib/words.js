// Words in the language that a person has chosen in ComfyUI: the page's own, labels of options, and
// what the server says. The server speaks English, so that programs can rely on it; where the page
// shows it, its sentences are found by their fixed parts, and the values in them stay as they are.
// Without a table, as for English, all is shown as it is.

const HOLE = /\{(#?\w+)\}/; // {1} is any value, {#1} a number
const NUMBER = /^[-+\d.,:%]+$/;
const NEAREST = "; nearest: "; // ends sentences of any kind, and is taken off first
const FIRST = 1e6;

let words = { page: {}, options: {} };
let sentences = []; // those with the most fixed letters first, but for NEAREST

/** Take a language's table, such as js/words/zh.json. */
export function takeWords({ page = {}, options = {}, messages = {} }) {
  words = { page, options };
  sentences = Object.entries(messages).map(([text, translated]) => {
    const parts = text.split(HOLE);
    const fixed = parts.filter((_, place) => place % 2 === 0);
    const numbers = parts.filter((_, place) => place % 2).map((name) => name.startsWith("#"));
    const rank = fixed.join("").length + (text.includes(NEAREST) ? FIRST : 0);
    return { fixed, numbers, translated, rank };
  });
  sentences.sort((one, other) => other.rank - one.rank);
}

/** A text of the page, with values in place of its {names}. */
export function t(text, values = {}) {
  return (words.page[text] ?? text).replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}

/** What the server says, line by line. */
export function tell(text) {
  if (!text || !sentences.length) return text;
  return text.split("\n").map(tellLine).join("\n");
}

/** What is shown for an option of a node's input, which is sent as it is. */
export function labelOf(kind, input, option) {
  const label = words.options[kind]?.[input]?.[option];
  return label ? t("{label} ({option})", { label, option }) : option;
}

/** The inputs of a kind of node whose options have labels. */
export function labelledInputs(kind) {
  return Object.keys(words.options[kind] ?? {});
}

function tellLine(line) {
  for (const { fixed, numbers, translated } of sentences) {
    const values = matchParts(fixed, line);
    if (!values?.every((value, place) => !numbers[place] || NUMBER.test(value))) continue;
    // {2} is the second value as it is, {t2} is one that is words in turn, {l2} a list of such.
    return translated.replace(/\{([tl]?)(\d+)\}/g, (_, kind, number) => {
      const value = values[number - 1] ?? "";
      if (kind === "l") return value.split(", ").map(tellLine).join("、");
      return kind ? tellLine(value) : value;
    });
  }
  return line;
}

/** What stands between fixed parts that follow one another from begin to end; null elsewhere. */
function matchParts(fixed, text) {
  if (!text.startsWith(fixed[0])) return null;
  const values = [];
  let at = fixed[0].length;
  for (let place = 1; place < fixed.length; place++) {
    const part = fixed[place];
    const last = place === fixed.length - 1;
    const next = last ? text.length - part.length : text.indexOf(part, at);
    if (next < at || !text.startsWith(part, next)) return null;
    values.push(text.slice(at, next));
    at = next + part.length;
  }
  return at === text.length ? values : null;
}
