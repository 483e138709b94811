// The lines of a store's `takes` that are about shots: which take of each, and which is made again.

const LINE = /^\s*shot\s+(\d+)\s*(only)?\s*(?::\s*(seed|take)\s+(\d+)\s*)?$/i;

function parse(line) {
  const found = LINE.exec(line);
  if (!found) return null;
  const [, number, only, what, value] = found;
  return { shot: Number(number), only: Boolean(only), what: what?.toLowerCase() ?? "", value };
}

function write({ shot, only, what, value }) {
  return `shot ${shot}${only ? " only" : ""}${what ? `: ${what} ${value}` : ""}`;
}

/** What is said of a shot: { only, what: "seed", "take" or "", value }; null where nothing is. */
export function findTake(text, shot) {
  const found = text.split("\n").map(parse).filter((one) => one?.shot === shot);
  return found.at(-1) ?? null;
}

/** The text with this said of a shot; with null, nothing. Other lines stay as they are. */
export function sayTake(text, shot, said) {
  const lines = text.split("\n").filter((line) => line.trim() && parse(line)?.shot !== shot);
  if (said) lines.push(write({ shot, ...said }));
  return lines.join("\n");
}

/** The text after shots have been put in another order; order: their old numbers, by the new. */
export function renumberTakes(text, order) {
  const lines = text.split("\n").flatMap((line) => {
    const found = parse(line);
    if (!found) return [line];
    const place = order.indexOf(found.shot);
    return place < 0 ? [] : [write({ ...found, shot: place + 1 })];
  });
  return lines.join("\n");
}
